package bench

import (
	"time"
)

// NetOptions are how to measure the transports.
type NetOptions struct {
	Quick    bool
	Rounds   int                // of all contestants, twice as many for the rate; default 9
	Slice    time.Duration      // of one contestant; default 300 ms, quick 100 ms
	Window   int                // datagrams under way for the rate; default 64
	Progress func(where string) // may be nil
}

func (o *NetOptions) defaults() {
	if o.Rounds == 0 {
		o.Rounds = 9
	}
	if o.Slice == 0 {
		o.Slice = 300 * time.Millisecond
		if o.Quick {
			o.Slice = 100 * time.Millisecond
		}
	}
	if o.Window == 0 {
		o.Window = 64
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
}

// NetWorkerOptions are one end of a contestant, in a process of its own.
type NetWorkerOptions struct {
	Peer         string // of netPeers, but for c-udp
	Server       bool
	Listen, To   string // addresses with ports
	Size, Window int
	CPU          int
	Slice        time.Duration
}

// The contestants, in the order in which they take turns.
const (
	peerC       = "c-udp"
	peerGo      = "go-net"
	peerUDP     = "udp"
	peerGeneric = "xdp-generic"
	peerNative  = "xdp-native"
)

var (
	netPeers = []string{peerC, peerGo, peerUDP, peerGeneric, peerNative}
	netSizes = []int{64, 1024}
)
