package ring

import (
	"context"
	"fmt"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// arm makes the word of a sleeper odd, by a full barrier, and returns it. The
// sleeper looks for the last time behind it.
func arm(w *shm.Word32) uint32 {
	v := (w.Load() + 1) | 1 // it is odd already if garbage says so
	w.Swap(v)
	return v
}

// disarm makes the word even: a waker may have done so.
func disarm(w *shm.Word32, v uint32) { w.Store(v + 1) }

// sliceTime is that of shm's waits.
const sliceTime = 20 * time.Millisecond

// waitSlice is the Options.Wait of who has no client.
func waitSlice(w shm.Watch, cancel *shm.Word32) error {
	shm.WaitAny(sliceTime, w, shm.Watch{W: cancel, Val: 0})
	return nil
}

// sleeper ends waits when their context ends. The zero sleeper has none yet.
type sleeper struct {
	word *shm.Word32
	end  func() bool     // forgets it, nil if there is nothing to forget
	done <-chan struct{} // of the context before
	keep bool            // there were two waits with it, so there may be more
}

// cancel returns a word that becomes 1 when ctx ends, nil if it never does.
func (s *sleeper) cancel(ctx context.Context) *shm.Word32 {
	done := ctx.Done()
	if s.keep = done == s.done; s.keep && s.end != nil {
		return s.word
	}
	s.stop()
	if s.done = done; done == nil {
		return nil
	}
	w := new(shm.Word32)
	s.word = w
	s.end = context.AfterFunc(ctx, w.Raise)
	return w
}

// waited forgets a context that was waited with for the first time: most are of one
// call, and to forget them later takes a goroutine.
func (s *sleeper) waited() {
	if !s.keep {
		s.stop()
	}
}

func (s *sleeper) stop() {
	if s.end != nil {
		s.end()
		s.end = nil
	}
}

// Ringer is what a Bell rings: a shm.Doorbell, or what stands for it in tests.
// What was rung stays until it is drained, also if nobody listened.
type Ringer interface {
	Ring()
	Drain()
}

// Bell wakes a consumer that sleeps on file descriptors, one of which Ringer
// makes readable. Several rings may share it.
//
// The sleeper calls Arm, looks at all its rings for the last time (Ready),
// sleeps unless it found something, and calls Disarm in any case, before it
// polls.
type Bell struct {
	word   *shm.Word32
	ringer Ringer
	armed  uint32
}

// OpenBell opens the bell at off, for ringing or for sleeping. A zeroed region
// is a good bell.
func OpenBell(r *shm.Region, off shm.Offset, ringer Ringer) (*Bell, error) {
	switch size := r.Size(); {
	case off%align != 0:
		return nil, fmt.Errorf("ring: bell at %d: the offset is not a multiple of %d", off, align)
	case off > size || BellSize > size-off:
		return nil, fmt.Errorf("ring: bell: %d bytes at %d are outside a region of %d", BellSize, off, size)
	}
	return &Bell{word: &shm.At[bell](r, off).asleep, ringer: ringer}, nil
}

// Arm says that the consumer sleeps. From here on who commits rings.
func (b *Bell) Arm() { b.armed = arm(b.word) }

// Disarm says that the consumer is awake, and takes out what was rung.
func (b *Bell) Disarm() {
	disarm(b.word, b.armed)
	b.ringer.Drain()
}

// Asleep reports whether the consumer is armed and nobody has rung since.
func (b *Bell) Asleep() bool { return b.word.Load()&1 != 0 }

// Wake ends the sleep, if the consumer sleeps: for who has left something
// elsewhere that it looks at after Arm, and has made that seen by a full barrier.
func (b *Bell) Wake() {
	if v := b.word.Load(); v&1 != 0 {
		b.ring(v)
	}
}

// ring wakes the sleep that the word v stands for. See doc.go for the order.
func (b *Bell) ring(v uint32) {
	if planted("bell") {
		if b.word.CAS(v, v+1) {
			b.ringer.Ring()
		}
		return
	}
	b.ringer.Ring()
	b.word.CAS(v, v+1)
}
