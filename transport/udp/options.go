package udp

import (
	"fmt"
	"net/netip"

	"github.com/mainzdb/mainz/transport"
)

// Options are how to open a [Conn].
type Options struct {
	// Listen is the address and port of this node: one address of one
	// interface, for peers know us by it. Port 0 takes any free port.
	Listen netip.AddrPort
	Filter transport.Filter
	// BufferBytes is the size of the socket's buffers. Default: 4 MiB, or
	// what net.core.rmem_max allows to an ordinary user.
	BufferBytes int
	// OnAnswer is called by Poll for answers to probes that were sent with
	// Probe.
	OnAnswer func(p transport.Probe, from int)
}

const defaultBufferBytes = 4 << 20

func (o *Options) check() error {
	a := o.Listen.Addr()
	if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
		return fmt.Errorf("listen %v: need the address of one interface, for peers know this node by it", o.Listen)
	}
	o.Listen = netip.AddrPortFrom(a.Unmap(), o.Listen.Port())
	if o.BufferBytes == 0 {
		o.BufferBytes = defaultBufferBytes
	}
	return o.Filter.Check()
}
