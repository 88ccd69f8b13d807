package ltdb

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// actor is this process's side of a handle: the view of its journal and
// magazines, and scratch memory. One call at a time uses it: who borrows it claims
// use, who has a Handle for it claims the Handle's seat.
type actor struct {
	s  *Store
	h  *handle
	id shm.HandleID

	// cell is the lock cell for locks that live for one call.
	cell *shm.Word64
	// keep has a bit for each class that the running call has reserved.
	keep     uint32
	mag      [smallClasses]magazine
	bigClass [bigSlots]uint8
	free     *lock // locks at hand, nfree of them
	nfree    int
	words    wordSlots // of the piece index
	look     look      // what the running call has seen of its record
	// ctx bounds the waits of the running call for latches; nil: nothing does.
	ctx context.Context
	// arriving: the running call may use the reserve.
	arriving bool
	// spare: the actor has the spare's latch, and its draft is the spare.
	spare bool
	// elsewhere is asked about orphans whose record is not here; nil: erase them.
	elsewhere func(p *PieceEntry) bool
	of        *Handle // that has the actor; nil while it is in the pool
	held      *lock   // records locked through that, the last first

	_   [64]byte // keeps use off the lines that the owner writes
	use useWord
}

// useWord is who uses an actor, or a Handle.
type useWord struct{ v uint32 }

func (w *useWord) Load() uint32 { return atomic.LoadUint32(&w.v) }

func (w *useWord) CompareAndSwap(from, to uint32) bool {
	return atomic.CompareAndSwapUint32(&w.v, from, to)
}

// stateWord is a lock's generation and state.
type stateWord struct{ v uint64 }

func (w *stateWord) Load() uint64 { return atomic.LoadUint64(&w.v) }

func (w *stateWord) CompareAndSwap(from, to uint64) bool {
	return atomic.CompareAndSwapUint64(&w.v, from, to)
}

// States of actor.use.
const (
	actorRetired = iota // the store is closed, or for reading only
	actorIdle
	actorBusy     // borrowed for one call
	actorReserved // a Handle's
)

// pooled is how many actors DB's own methods always have.
const pooled = 2

func (a *actor) init(s *Store, i int) {
	a.s = s
	a.h = &s.body.handles[i]
	a.id = s.c.HandleID(i)
	a.cell = &s.body.cells[i]
	a.use.Store(actorIdle)
}

// borrow gets an actor for one call. It starts looking at a place that
// depends on the goroutine, so that goroutines on different CPUs mostly use
// different actors, and the same ones again. It waits while all are taken, as long
// as ctx allows, which then bounds the call's waits for latches as well.
func (s *Store) borrow(ctx context.Context) (*actor, error) {
	at := int(shm.GoroutineHint() % shm.HandlesPerSlot)
	if simulated() {
		at = 0 // the same one in each run
	}
	a := &s.actors[at]
	if planted("nouse") || a.use.Load() == actorIdle && a.use.CompareAndSwap(actorIdle, actorBusy) {
		a.ctx = ctx
		return a, nil
	}
	return s.borrowSlow(ctx, at)
}

func (s *Store) borrowSlow(ctx context.Context, at int) (*actor, error) {
	for {
		if s.closed.Load() {
			return nil, errClosed
		}
		if s.c == nil {
			return nil, errReadOnly
		}
		if a := s.anyIdle(at); a != nil {
			a.ctx = ctx
			return a, nil
		}
		if ctx == nil {
			return nil, errNoContext
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.wanted.Add(1)
		a := s.anyIdle(at) // one may have come back before wanted was seen
		if a == nil && !s.closed.Load() {
			// Who gives one back looks at wanted without a barrier behind its
			// store: both may have missed the other.
			select {
			case <-s.idle:
			case <-ctx.Done():
			case <-time.After(time.Millisecond):
			}
		}
		if s.wanted.Add(-1) > 0 {
			s.nudge()
		}
		if a != nil {
			a.ctx = ctx
			return a, nil
		}
	}
}

func (s *Store) anyIdle(at int) *actor {
	for i := range s.actors {
		a := &s.actors[(at+i)&(shm.HandlesPerSlot-1)]
		if a.use.Load() == actorIdle && a.use.CompareAndSwap(actorIdle, actorBusy) {
			return a
		}
	}
	return nil
}

// giveBack ends a borrowed call.
func (s *Store) giveBack(a *actor) {
	a.use.Store(actorIdle)
	if s.wanted.Load() > 0 {
		s.nudge()
	}
}

func (s *Store) nudge() {
	select {
	case s.idle <- struct{}{}:
	default:
	}
}

// flushIdle empties the magazines of this process's idle actors, for a call with
// that context.
func (s *Store) flushIdle(ctx context.Context) {
	for i := range s.actors {
		a := &s.actors[i]
		if !a.use.CompareAndSwap(actorIdle, actorBusy) {
			continue
		}
		a.ctx = ctx
		_ = a.flushBig() // the caller meets what is wrong as well
		for c := range smallClasses {
			if a.mag[c].n > 0 {
				if a.flush(c, magazineSize) != nil {
					break // the caller meets the damage as well
				}
			}
		}
		s.giveBack(a)
	}
}
