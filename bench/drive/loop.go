package drive

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/mainzdb/mainz/transport"
)

// Idle is what a loop does when there is nothing to do.
type Idle string

const (
	// Adaptive spins as long as a wakeup would cost, then sleeps.
	Adaptive Idle = "adaptive"
	// Busy spins for ever. It takes a whole CPU, and should be pinned to it.
	Busy Idle = "busy"
	// Sleep does not spin.
	Sleep Idle = "sleep"
)

// ParseIdle finds the kind of this name; "" is Adaptive.
func ParseIdle(s string) (Idle, error) {
	switch i := Idle(s); i {
	case "":
		return Adaptive, nil
	case Adaptive, Busy, Sleep:
		return i, nil
	}
	return "", fmt.Errorf("idle %q: want adaptive, busy or sleep", s)
}

// Options are how to run a loop.
type Options struct {
	Idle Idle // default Adaptive
	// Spin is how long Adaptive spins. Default: what a wakeup costs on this
	// machine, measured when the loop starts.
	Spin time.Duration
	// CPU pins the thread, if not negative.
	CPU int
}

const (
	// What a wakeup cost in a virtual machine, and the bounds of what is
	// believed of a measurement: a neighbour may have been in the way.
	defaultSpin = 100 * time.Microsecond
	minSpin     = 20 * time.Microsecond
	maxSpin     = 300 * time.Microsecond

	tickEvery = 10 * time.Millisecond
	// clockEvery is how many turns there are between two looks at the clock,
	// which cost 50 ns, twenty times as much as one at an AF_XDP ring.
	clockEvery = 64

	// batch is how many datagrams a turn takes, as many as the driver in C that we are
	// compared with.
	batch = 64
)

// spinTime is how long it pays to wait awake: as long as a wakeup costs. Whoever
// waits so never does worse than twice the best.
func spinTime() time.Duration {
	cost, err := wakeCost()
	if err != nil {
		return defaultSpin
	}
	return min(max(cost, minSpin), maxSpin)
}

// Loop turns until the context ends or a turn says that it is done. A turn
// polls and answers, and tells whether it found something to do; its time is
// up to clockEvery turns old.
func Loop(ctx context.Context, t transport.Transport, o Options, turn func(now time.Duration) (busy, done bool)) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if o.Idle == "" {
		o.Idle = Adaptive
	}
	if o.Spin == 0 && o.Idle == Adaptive {
		o.Spin = spinTime()
	}
	if o.Idle == Sleep {
		o.Spin = 0
	}
	if o.CPU >= 0 {
		if err := pin(o.CPU); err != nil {
			return fmt.Errorf("pin to CPU %d: %w", o.CPU, err)
		}
	}
	var (
		start             = time.Now()
		now, worked, tick time.Duration
	)
	for i := 0; ; i++ {
		if i%clockEvery == 0 {
			now = time.Since(start)
			if ctx.Err() != nil {
				return nil
			}
		}
		if now >= tick {
			tick = now + tickEvery
			if err := t.Tick(now); err != nil {
				return err
			}
		}
		busy, done := turn(now)
		// An error is in the counters, and the datagram is lost: it is for
		// the layer above to send it again.
		_ = t.Flush()
		switch {
		case done:
			return nil
		case busy:
			worked = now
		case o.Idle != Busy && now-worked >= o.Spin:
			sleep(t.Fds(), tick-now)
			now = time.Since(start)
			worked = now
			if o.Idle == Sleep {
				worked -= o.Spin
			}
			i = 0
		}
	}
}

// Echo sends back what comes. It returns what came while there was no room for
// an answer.
func Echo(ctx context.Context, t transport.Transport, o Options) (unanswered uint64, err error) {
	back := func(p []byte, from transport.PeerID) {
		b := t.Buf(from, len(p))
		if b == nil {
			unanswered++
			return
		}
		t.Commit(copy(b, p))
	}
	err = Loop(ctx, t, o, func(time.Duration) (bool, bool) { return t.Poll(batch, back) > 0, false })
	return unanswered, err
}
