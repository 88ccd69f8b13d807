package bench

import (
	"strings"
	"time"
)

// RingOptions are how to measure rings.
type RingOptions struct {
	Quick    bool
	Dir      string             // a ramdisk; default /dev/shm
	Rounds   int                // of all contestants; default 15, quick 5
	Slice    time.Duration      // of one contestant; default 200 ms, quick 100 ms
	Progress func(where string) // may be nil
}

func (o *RingOptions) defaults() {
	if o.Dir == "" {
		o.Dir = "/dev/shm"
	}
	if o.Rounds == 0 {
		if o.Rounds = 15; o.Quick {
			o.Rounds = 5
		}
	}
	if o.Slice == 0 {
		if o.Slice = 200 * time.Millisecond; o.Quick {
			o.Slice = 100 * time.Millisecond
		}
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
}

// RingWorkerOptions are one end of our ring, in a process of its own.
type RingWorkerOptions struct {
	Idle   string // a strategy of package ring
	Server bool
	Dir    string
	CPU    int
	Slice  time.Duration
	// Call is what a client asks of its node's dispatcher: nop, fetch or rmw, of
	// 64 bytes. "" is a message over a bare ring.
	Call string
}

// The contestants, in the order in which they take turns. Ours are named by
// what both ends do while there is nothing to do; the others spin. mainzd is a
// client and the dispatcher of its node: a call that does nothing, the fetch of a
// record of 64 bytes, and locking, reading and storing one.
const (
	peerFloor    = "c-ring"
	peerBusy     = "ring-busy"
	peerAdaptive = "ring-adaptive"
	peerSleep    = "ring-sleep"
	peerDatagram = "c-datagram"
	peerPipe     = "c-pipe"
)

var ringPeers = []string{peerFloor, peerBusy, peerAdaptive, peerSleep,
	"mainzd-busy-nop", "mainzd-busy-fetch", "mainzd-busy-rmw",
	"mainzd-adaptive-nop", "mainzd-adaptive-fetch", "mainzd-adaptive-rmw",
	"mainzd-sleep-nop", "mainzd-sleep-fetch", "mainzd-sleep-rmw",
	peerDatagram, peerPipe}

// ofC tells the peers that C drives from ours.
func ofC(peer string) bool { return strings.HasPrefix(peer, "c-") }
