package transport

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

var (
	// ErrNotSupported says that this machine or system cannot do it at all.
	ErrNotSupported = errors.New("not supported")
	// ErrPeer is a list of peers that cannot be used as it stands.
	ErrPeer = errors.New("unusable peer")
	// ErrInterfaceGone says that the interface was deleted under a transport
	// that was told to use no other way.
	ErrInterfaceGone = errors.New("interface is gone")
	// ErrPathFailed says that the forced path does not carry datagrams
	// (any more).
	ErrPathFailed = errors.New("path failed")
)

// PeerID names a peer, as the caller likes: the dispatcher takes the PNN.
type PeerID uint32

// MaxPeerID is the largest PeerID: transports index tables by it.
const MaxPeerID = 1<<16 - 1

// Peer is another node, and where its datagrams come from and go to.
type Peer struct {
	ID   PeerID
	Addr netip.AddrPort
}

// Transport moves datagrams for one thread, and only for that one.
type Transport interface {
	// Poll hands over at most max datagrams that have arrived and returns how
	// many it did. p is valid until f returns. f may call Buf, Commit and MTU,
	// and nothing else of this transport.
	Poll(max int, f func(p []byte, from PeerID)) int

	// Buf returns room for a datagram of n bytes to a peer, to be written in
	// place. nil: there is none now, because too much is queued (Flush, and
	// try again), n is above MTU(to), or to is no peer. The room is valid
	// until the next call of any method; without Commit it is taken back.
	Buf(to PeerID, n int) []byte

	// Commit queues the first n bytes of what Buf returned.
	//
	// Preconditions: Buf returned room for at least n bytes, and no other
	// method was called since.
	Commit(n int)

	// Flush gives the queue to the kernel, with one system call where that is
	// possible. What the kernel has no room for stays queued. An error tells
	// that datagrams were dropped (and counted) and why; it needs no answer
	// but a line in a log.
	Flush() error

	// SetPeers replaces the peers. It may block shortly and allocate.
	SetPeers(peers []Peer) error

	// MTU is the largest datagram that Buf has room for, on the path in force
	// to this peer; 0 if it is no peer. It may change at any time.
	MTU(to PeerID) int

	// Tick does what is due now and again: neighbours, routes, MTUs, proving
	// the path and leaving it if it is dead. To be called every 10 to 100 ms
	// with a monotonic time; it may allocate and do system calls. After an
	// error the transport is of no use any more.
	Tick(now time.Duration) error

	// Fds are descriptors to sleep on: one of them becomes readable when Poll
	// would find something. The list may change with Tick and SetPeers.
	Fds() []int

	// Path tells which way the datagrams go, and why not a better one.
	Path() Path

	// Stats are the counters since the transport was opened. It may do a few
	// system calls.
	Stats() Stats

	// Close gives everything back. It may be called twice.
	Close() error
}

// Kind is a way for datagrams.
type Kind uint8

const (
	KindMemory Kind = iota
	KindUDP
	KindXDPGeneric
	KindXDPNative
	KindXDPZeroCopy
)

var kindNames = [...]string{"memory", "udp", "xdp-generic", "xdp-native", "xdp-zerocopy"}

func (k Kind) String() string { return kindNames[k] }

// Refusal is a better way that could not be had.
type Refusal struct {
	Kind Kind
	Err  error
}

// Path is the way in force.
type Path struct {
	Kind      Kind
	Interface string // whose queues are taken, or were to be; "" where none was asked for
	Queues    int    // AF_XDP sockets, one per receive queue
	Proven    bool   // a peer has answered over this very path
	Refused   []Refusal
}

// String is the path on one line, for logs and status.
func (p Path) String() string {
	var b strings.Builder
	b.WriteString(p.Kind.String())
	if p.Interface != "" {
		fmt.Fprintf(&b, " on %s", p.Interface)
	}
	if p.Kind >= KindXDPGeneric && !p.Proven {
		b.WriteString(" (not proven yet)")
	}
	for _, r := range p.Refused {
		fmt.Fprintf(&b, "; not %s: %v", r.Kind, r.Err)
	}
	return b.String()
}

// Drop is why a datagram got lost in our hands.
type Drop uint8

const (
	DropStranger  Drop = iota // its source is no peer
	DropMalformed             // its lengths do not fit, or it is too short
	DropForeign               // it does not begin as ours do
	DropNoRoom                // it came while no buffer or ring entry was free, or waited in one that was given up
	DropTooBig                // it was larger than a frame
	DropNoSocket              // its receive queue has no socket, and the kernel's stack took it
	DropUnsent                // the kernel refused to send it
	NumDrops
)

var dropNames = [NumDrops]string{"stranger", "malformed", "foreign", "no-room", "too-big", "no-socket", "unsent"}

func (d Drop) String() string { return dropNames[d] }

// Stats count datagrams. On a wire that loses nothing, what one side sent in
// packets and probes is what the other side received and both sides dropped:
// losses do not tell probes from the rest.
type Stats struct {
	RxPackets      uint64 `json:"rx_packets"` // handed over by Poll
	RxBytes        uint64 `json:"rx_bytes"`
	TxPackets      uint64 `json:"tx_packets"` // given to the kernel by Flush
	TxBytes        uint64 `json:"tx_bytes"`
	RxKernel       uint64 `json:"rx_kernel"` // of these, by the kernel's stack
	TxKernel       uint64 `json:"tx_kernel"`
	RxCalls        uint64 `json:"rx_calls"` // system calls to receive and to send
	TxCalls        uint64 `json:"tx_calls"`
	ProbesSent     uint64 `json:"probes_sent"` // see [Probe]: questions and answers, not among the packets
	ProbesReceived uint64 `json:"probes_received"`

	Drops [NumDrops]uint64 `json:"-"` // by their number, which says nobody anything
}

// Dropped is the sum over all reasons but DropNoSocket, which is no loss.
func (s Stats) Dropped() uint64 {
	n := uint64(0)
	for d, v := range s.Drops {
		if Drop(d) != DropNoSocket {
			n += v
		}
	}
	return n
}
