package bench

import (
	"io"
	"time"
)

// RingOptions are how to measure rings.
type RingOptions struct {
	Quick    bool
	Dir      string        // a ramdisk; default /dev/shm
	Rounds   int           // of all contestants; default 15, quick 5
	Slice    time.Duration // of one contestant; default 200 ms, quick 100 ms
	Progress io.Writer     // nil: none
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
		o.Progress = io.Discard
	}
}

// RingWorkerOptions are one end of our ring, in a process of its own.
type RingWorkerOptions struct {
	Idle   string // a strategy of package ring
	Server bool
	Dir    string
	CPU    int
	Slice  time.Duration
}

// The contestants, in the order in which they take turns. Ours are named by
// what both ends do while there is nothing to do; the others spin.
const (
	peerFloor    = "c-ring"
	peerBusy     = "ring-busy"
	peerAdaptive = "ring-adaptive"
	peerSleep    = "ring-sleep"
	peerDatagram = "c-datagram"
	peerPipe     = "c-pipe"
)

var ringPeers = []string{peerFloor, peerBusy, peerAdaptive, peerSleep, peerDatagram, peerPipe}
