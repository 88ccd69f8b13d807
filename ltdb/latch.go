package ltdb

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// What a latch covers, as a handle's journal tells it.
type latchOf uint8

const (
	classLatch  latchOf = iota // n: class + 1
	bucketLatch                // n: the bucket's offset
	tableLatch                 // n: 1
	orphanLatch                // n: 1
	spareLatch                 // n: 1
)

// wants reports whether the handle's journal says that it holds the latch or
// waits for it. That stands there from before the first attempt until after
// the release.
func (h *handle) wants(what latchOf, n uint64) bool {
	switch what {
	case classLatch:
		return uint64(h.classIntent.Load()) == n
	case bucketLatch:
		return h.bucketIntent.Load() == n
	case orphanLatch:
		return uint64(h.orphanIntent.Load()) == n
	case spareLatch:
		return uint64(h.spareIntent.Load()) == n
	}
	return uint64(h.tableIntent.Load()) == n
}

// latchWanted returns how many handles of attached clients hold the latch at an
// offset or wait for it.
func (s *Store) latchWanted(off shm.Offset) (n int) {
	what, id := bucketLatch, off
	if off == shm.OffsetOf(s.r, &s.dbHead.latch) {
		what, id = tableLatch, 1
	} else if off == shm.OffsetOf(s.r, &s.node.orphanLatch) {
		what, id = orphanLatch, 1
	} else if off == shm.OffsetOf(s.r, &s.node.spare.latch) {
		what, id = spareLatch, 1
	} else if c := (off - shm.OffsetOf(s.r, &s.classes[0])) / classLineSize; c < classes {
		what, id = classLatch, c+1
	}
	for i := uint32(1); i <= s.seg.Slots(); i++ {
		if s.seg.Slot(i).Live.Load() == 0 {
			continue
		}
		b := shm.At[body](s.r, s.seg.SlotBody(i))
		for k := range b.handles {
			if b.handles[k].wants(what, id) {
				n++
			}
		}
	}
	return n
}

// errLatched: the latch is held by somebody who lives, who may be stopped. Who may
// not wait for him puts his work aside. It never leaves the package.
var errLatched = errors.New("ltdb: latch is held")

// lockLatch takes a latch whose journal says so already. It waits as long as the
// running call's context allows (errLatched for the dispatcher, which waits for
// nobody), and repairs the owner first if he is dead.
func (a *actor) lockLatch(l *shm.Latch, what latchOf, n uint64) error {
	if l.TryLock(a.id) {
		return nil
	}
	return a.lockLatchSlow(l, what, n)
}

func (a *actor) lockLatchSlow(l *shm.Latch, what latchOf, n uint64) error {
	s := a.s
	// Whose journal does not know of a latch has not got it, and who would wait
	// for him would wait for ever. What the latch covers is checked at each step.
	if o := s.ownerless(l, a.id, what, n); o != 0 && l.TakeFrom(o, a.id) {
		s.noteDamage(damagedLatch, uint64(what)<<48|n)
		return nil
	}
	switch err := s.spinLatch(s.c, l, a.id); {
	case err != errLatched:
		return err
	case s.slot == DispatcherSlot:
		return errLatched
	}
	var cancel *shm.Word32
	if a.ctx != nil {
		w, stop := s.canceller(a.ctx)
		defer stop()
		cancel = w
	}
	var err error
	began := time.Now()
	ok, e := l.LockUntil(s.c, a.id, cancel, func() bool {
		switch {
		case a.ctx != nil && a.ctx.Err() != nil:
			err = s.latched(l, what, n, a.ctx.Err())
		case !s.closed.Load():
		case a.use.Load() != actorRetired:
			err = errClosed
		case time.Since(began) > leaveLimit:
			err = errLatched
		}
		return err == nil
	})
	if ok || e != nil {
		return e
	}
	return err
}

// latchError is the error of a wait for a latch that its context has ended, or that the
// dispatcher puts aside. It wraps the context's error, or errLatched.
type latchError struct {
	what   string
	holder Holder
	err    error
}

func (e *latchError) Unwrap() error { return e.err }

func (e *latchError) Error() string {
	h := &e.holder
	if h.Slot == 0 {
		return fmt.Sprintf("%s: its latch was not had in time; it is free now: %v", e.what, e.err)
	}
	return fmt.Sprintf("%s: its latch is held by process %d (%q in slot %d, attached since %s): %v; if that process is stopped, let it go on, or end it",
		e.what, h.PID, h.Name, h.Slot, h.Attached.Format(time.RFC3339), e.err)
}

// latched says who has a latch that was waited for in vain.
func (s *Store) latched(l *shm.Latch, what latchOf, n uint64, err error) error {
	e := &latchError{holder: s.holder(l.Owner().Slot()), err: err}
	switch what {
	case classLatch:
		e.what = fmt.Sprintf("free blocks of %d bytes", classSizes[n-1])
	case bucketLatch:
		e.what = "a bucket of a hash table"
	case tableLatch:
		e.what = "the table of databases and conditions"
	case orphanLatch:
		e.what = "the pieces of dead clients"
	case spareLatch:
		e.what = "the block kept for a full store"
	}
	return e
}

// leaveLimit is for how long a client that leaves waits for a latch. What it has to
// leave undone for that others do.
const leaveLimit = time.Second

// spinLatch tries for some microseconds, for as long as a latch is held by who
// runs. A dead owner is repaired.
func (s *Store) spinLatch(c *shm.Client, l *shm.Latch, id shm.HandleID) error {
	for spin := (shm.Spin{}); ; {
		if l.TryLock(id) {
			return nil
		}
		if !spin.Again() {
			break
		}
	}
	if o := l.Owner(); o != 0 && c.Dead(o.Slot()) {
		if _, err := c.Recover(o.Slot()); err != nil {
			return err
		}
		if l.TryLock(id) {
			return nil
		}
	}
	return errLatched
}

// ownerless returns the owner that the latch names if that can't have it, for
// whom a wait would never end: one that does not exist, a free slot's, the
// caller itself, or one whose journal does not know of it. A handle that takes
// and releases the latch again and again may look like that for a moment,
// hence the repetition. 0: there is none such.
func (s *Store) ownerless(l *shm.Latch, id shm.HandleID, what latchOf, n uint64) shm.HandleID {
	first := l.Owner()
	for range 64 {
		o := l.Owner()
		if o == 0 || o != first || o != id && s.mayHold(o, what, n) {
			return 0
		}
		runtime.Gosched()
	}
	return first
}

func (s *Store) mayHold(o shm.HandleID, what latchOf, n uint64) bool {
	off := s.seg.SlotBody(o.Slot())
	return off != 0 && s.seg.Slot(o.Slot()).Live.Load() != 0 && shm.At[body](s.r, off).handles[o.Index()].wants(what, n)
}
