package shm

import "time"

// HandleID names one handle of one slot: slot << 4 | handle. Slot 0 does not
// exist, so 0 is nobody. It fits 16 bits.
type HandleID uint32

// HandlesPerSlot is how many handles a slot has.
const HandlesPerSlot = 16

// Slot returns the slot that the handle belongs to.
func (id HandleID) Slot() uint32 { return uint32(id) >> 4 }

// Index returns the handle's place in its slot.
func (id HandleID) Index() int { return int(id & (HandlesPerSlot - 1)) }

const latchWaiters = 1 << 31

// Latch is a short lock in shared memory, held for tens of nanoseconds and
// never across user code. Its owner is a handle; if the owner's process dies,
// whoever waits repairs the owner's slot, which releases the latch.
//
// Word: handle id (bits 0 to 15), waiters (bit 31).
type Latch struct{ w Word32 }

// Owner returns the handle that holds the latch, 0 if nobody does.
func (l *Latch) Owner() HandleID { return HandleID(l.w.Load() &^ latchWaiters) }

// TryLock takes the latch if it is free.
func (l *Latch) TryLock(id HandleID) bool { return l.w.Load() == 0 && l.w.CAS(0, uint32(id)) }

// Lock takes the latch for the handle id, which belongs to c. It waits for a
// living owner without limit, and repairs a dead one first. An error means
// that the store is damaged or that c was evicted.
func (l *Latch) Lock(c *Client, id HandleID) error {
	if l.TryLock(id) {
		return nil
	}
	return l.lockSlow(c, id)
}

func (l *Latch) lockSlow(c *Client, id HandleID) error {
	_, err := l.lock(c, id, Spin{}, nil, nil)
	return err
}

// LockUntil is Lock that gives up when goOn returns false. It asks after each
// sleep: after 20 ms at most, and when *cancel, which may be nil, becomes 1. It
// does not spin, and reports whether the caller has the latch.
func (l *Latch) LockUntil(c *Client, id HandleID, cancel *Word32, goOn func() bool) (bool, error) {
	return l.lock(c, id, Spin{left: spinDisabled}, cancel, goOn)
}

func (l *Latch) lock(c *Client, id HandleID, spin Spin, cancel *Word32, goOn func() bool) (bool, error) {
	slept := uint32(0)
	for {
		v := l.w.Load()
		owner := HandleID(v &^ latchWaiters)
		if owner == 0 {
			// After a sleep others may sleep as well, and only the bit tells.
			if l.w.CAS(v, uint32(id)|slept) {
				return true, nil
			}
			continue
		}
		if spin.Again() {
			continue
		}
		if slept != 0 && goOn != nil && !goOn() {
			// The wake-up may have been meant for one of the others.
			l.w.Wake(1)
			return false, nil
		}
		if v&latchWaiters == 0 && !l.w.CAS(v, v|latchWaiters) {
			continue
		}
		if err := c.WaitOwner(owner.Slot(), Watch{&l.w, v | latchWaiters}, cancel, 0); err != nil {
			return false, err
		}
		slept = latchWaiters
	}
}

// Unlock releases the latch. A word that names another owner was overwritten by
// somebody: it stays, as any word of shared memory may be damaged.
//
// Preconditions: the handle id holds it.
func (l *Latch) Unlock(id HandleID) {
	for {
		v := l.w.Load()
		if HandleID(v&^latchWaiters) != id {
			return
		}
		if l.w.CAS(v, 0) {
			if v&latchWaiters != 0 {
				l.w.Wake(1)
			}
			return
		}
	}
}

// TakeFrom makes the latch that of handle id if owner is still named in it.
//
// Preconditions: owner is known not to hold it, whatever the word says.
func (l *Latch) TakeFrom(owner, id HandleID) bool {
	v := l.w.Load()
	return HandleID(v&^latchWaiters) == owner && l.w.CAS(v, uint32(id)|v&latchWaiters)
}

// Break releases the latch of a dead handle, if it holds it, and wakes every
// waiter in any case: the handle may have died just after it was woken.
//
// Preconditions: the caller has claimed the handle's slot for recovery.
func (l *Latch) Break(id HandleID) {
	for {
		v := l.w.Load()
		if HandleID(v&^latchWaiters) != id || l.w.CAS(v, 0) {
			break
		}
	}
	l.w.Wake(All)
}

// Spin paces a loop that waits for another process before it sleeps: up to
// about 20 µs, in pauses that double. The zero Spin is ready.
//
// Exponential pauses matter: with one PAUSE a turn, two processes updating
// one hot record ran 1.6 to 1.9 times slower.
type Spin struct{ n, left uint32 }

const (
	spinPauses   = 1024 // PAUSEs in all: 13 ns each where it was measured
	spinLongest  = 24   // PAUSEs at a time: more give two updaters of one record more throughput and a longer p99
	waitSlice    = 20 * time.Millisecond
	spinDisabled = ^uint32(0)
)

// Again waits a little and reports whether to look again; false means sleep.
func (s *Spin) Again() bool {
	if s.left == spinDisabled {
		return false
	}
	if s.n == 0 {
		s.n, s.left = 1, spinPauses
		if SimEnabled {
			s.left = spinDisabled
			return false
		}
	}
	if s.left == 0 {
		return false
	}
	n := min(s.n, s.left)
	Pause(n)
	s.left -= n
	s.n = min(2*s.n, spinLongest)
	return true
}

// Clear makes a latch free that nobody can know yet.
func (l *Latch) Clear() { l.w.Store(0) }
