package ltdb

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// What makes a caller that could not go on at once wait and begin again. They
// never leave the package.
var (
	errHeld = errors.New("ltdb: lock is held")
	errGate = errors.New("ltdb: gate is closed")
)

// tryLock takes the record's lock for this client's slot, with the entry's
// offset in cell from before the first CAS until after the release. ok is
// false if there is no record. It returns errHeld if the lock is somebody
// else's, and leaves the cell standing then: who waits for a lock needs it as
// much as who holds it, since it may die just after it was woken.
//
// on is the entry that this call has slept on, nil for none. The wake-up that
// ends a sleep is meant for one sleeper; others may sleep on, which only the
// W bit will tell whoever unlocks, so it is set again with the lock. If the
// record stands there no more, the others are woken from here, before the
// cell forgets the entry: a death in between would lose their wake-up.
func (s *Store) tryLock(db *DB, key []byte, hash uint64, cell *shm.Word64, on *shm.Word64, at *spot) (ok bool, err error) {
	return s.tryLockAs(db, key, hash, cell, on, at, false)
}

// tryLockAs is tryLock for who may have starved for long: others may have, too, so S
// stays, and the lock goes from one that has slept to the next. That is fair and slow:
// each waits for a wake-up.
func (s *Store) tryLockAs(db *DB, key []byte, hash uint64, cell *shm.Word64, on *shm.Word64, at *spot, starved bool) (ok bool, err error) {
	slept := on != nil
	for range maxLooks {
		ok, err := db.seek(hash, key, at), error(nil)
		if !ok {
			ok, err = db.find(hash, key, at)
		}
		if on != nil && (!ok || err != nil || at.entry != on) {
			if !planted("pass") {
				on.Hi().Wake(shm.All)
			}
			on = nil
		}
		if !ok || err != nil {
			cell.Store(0)
			return false, err
		}
		if !planted("celllate") {
			cell.Store(shm.OffsetOf(s.r, at.entry))
		}
		if !isFree(at.e, slept) {
			return true, errHeld
		}
		mine := at.e | s.me
		if slept {
			if mine &^= bitS; starved {
				mine |= bitS
			}
			if !planted("waiter") {
				mine |= bitW
			}
		}
		if !at.entry.CAS(at.e, mine) {
			continue
		}
		at.e = mine
		// The word is as it was when the key was compared, but the block
		// behind it may have been another record's since, and this one's again.
		if at.b.seq.Load() == at.seq || db.still(key, at) || planted("nostill") {
			// A repair may have marked it since we looked: that leaves the seq.
			if !planted("oldflags") {
				at.meta = at.b.meta.Load()
			}
			if s.gate.Gate.Load()&3 == shm.GateOpen && metaFlags(at.meta)&flagOwn != 0 {
				return true, nil
			}
			err = errGate
			if metaFlags(at.meta)&flagOwn == 0 {
				err = ErrNotHere
			}
		}
		if !s.release(at) {
			err = errLockLost
		}
		cell.Store(0)
		if err != nil {
			return false, err
		}
	}
	cell.Store(0)
	return false, errOddBlock
}

func isFree(e uint64, slept bool) bool {
	return e&ownerMask == 0 && (slept || e&bitS == 0)
}

// still compares the key anew, under the lock.
func (db *DB) still(key []byte, at *spot) bool {
	at.seq = at.b.seq.Load()
	at.meta = at.b.meta.Load()
	return at.seq&1 == 0 && metaShape(at.meta) == shapeOf(len(key), entryClass(at.e)) &&
		db.s.r.Equal(refOffset(entryRef(at.e))+blockHeaderSize, key)
}

// spinFor waits a little for a lock that tryLock met: most are held for less
// than a wake-up takes. It reports whether a new attempt may do.
func spinFor(spin *shm.Spin, at *spot) bool {
	for spin.Again() {
		// That the entry names another block says nothing: each store of the holder
		// makes one. To look for the record anew then took block and bucket from a
		// holder who was busy with them, 1.7 times tdb's throughput in place of 2.
		if isFree(at.entry.Load(), false) {
			return true
		}
	}
	return false
}

// starvesAfter is how long a waiter lets newcomers overtake it, and how long
// a newcomer steps back for who starves.
const starvesAfter = time.Millisecond

// starvedAfter is how long a waiter may have been overtaken, its wait for the turn
// included, before all others who have slept go before newcomers as well, as long as
// who takes the lock has waited for so long.
const starvedAfter = 5 * time.Millisecond

// contended waits for the record's lock in the kernel and calls then with it.
// It holds no actor meanwhile unless it was given one: whoever has the lock
// may need an actor to release it. ok is false, and nothing was done, if
// there is no record (any more).
//
// Of this process's goroutines only one at a time waits in the kernel for a
// record; the others wait for it, in order, so that ten thousand of them need
// neither as many threads nor as many cells.
func (db *DB) contended(ctx context.Context, own *actor, key []byte, hash uint64, then func(*actor, *spot, *lock) error) (ok bool, err error) {
	s := db.s
	if ctx == nil {
		return false, errNoContext
	}
	if err := s.enter(); err != nil {
		return false, err
	}
	defer s.exit()
	if err := s.openGate(ctx); err != nil {
		return false, err
	}
	since := time.Now() // waiting for the turn may make it starve
	if err := s.turns.enter(ctx, hash); err != nil {
		return false, err
	}
	l, err := s.locks.get()
	if err != nil {
		s.turns.leave(hash)
		return false, err
	}
	var at spot
	start := shm.Ticks()
	ok, err = s.lockSleep(ctx, db, key, hash, l.cell, &at, since)
	s.turns.leave(hash)
	if !ok || err != nil {
		s.locks.put(l)
		return false, err
	}
	a := own
	if a == nil {
		if a, err = s.borrow(ctx); err != nil { // the store was closed
			s.unlock(&at, l.cell)
			s.locks.put(l)
			return false, err
		}
		defer s.giveBack(a)
	}
	a.h.counters[countWaits].Inc()
	a.sample(latencyWait, start)
	return true, then(a, &at, l)
}

// lockSleep waits for the lock. since is when the caller began to wait, which may have
// been for its turn: then it starves from the first sleep on.
func (s *Store) lockSleep(ctx context.Context, db *DB, key []byte, hash uint64, cell *shm.Word64, at *spot, since time.Time) (bool, error) {
	cancel, stop := s.canceller(ctx)
	defer stop()
	start := time.Now()
	var on *shm.Word64 // the entry slept on, nil before
	for orphaned := 0; ; {
		ok, err := s.tryLockAs(db, key, hash, cell, on, at, time.Since(since) > starvedAfter)
		if err == errGate {
			if err = s.openGate(ctx); err == nil {
				continue
			}
		}
		if err != errHeld {
			return ok, err
		}
		if at.entry != on {
			on = nil // deleted, and stored anew elsewhere: those there are awake
		}
		switch {
		case s.closed.Load():
			err = errClosed
		case ctx.Err() != nil:
			err = ctx.Err()
		default:
			waited := time.Since(start)
			if waited < orphanAfter || s.hasHolder(at, cell) {
				orphaned = 0
			} else if orphaned++; orphaned > orphanLooks {
				err = errOrphan
				break
			}
			var slept bool
			if slept, err = s.sleep(at, time.Since(since) > starvesAfter, cancel); slept {
				on = at.entry
			}
		}
		if err != nil {
			if on != nil {
				on.Hi().Wake(shm.All) // our wake-up may have been meant for others
			}
			cell.Store(0)
			return false, err
		}
	}
}

// A record's owner has a cell for it from before it takes the lock until after
// it has released it. One without is no owner: the lock word is damaged, and
// nobody will ever release it. Who has waited for so long, and sees that in so
// many time slices in a row, gives up with an error.
const (
	orphanAfter = 100 * time.Millisecond
	orphanLooks = 10
)

// hasHolder reports whether the lock that tryLock has met may be released one
// day. own is the caller's cell, which has the entry as well.
func (s *Store) hasHolder(at *spot, own *shm.Word64) bool {
	e := at.e
	owner := entryOwner(e)
	if owner == 0 {
		return true
	}
	sl := s.seg.Slot(owner)
	if sl == nil {
		return false
	}
	if owner == DispatcherSlot {
		return sl.Generation.Load() != 0 // it has a table in place of cells, and what it holds outlives it
	}
	if sl.Live.Load() != 0 {
		off := shm.OffsetOf(s.r, at.entry)
		b := shm.At[body](s.r, s.seg.SlotBody(owner))
		for i := range b.cells {
			if w := &b.cells[i]; w.Load() == off && w != own {
				return true
			}
		}
	}
	return at.entry.Load() != e
}

// sleep waits once for the record's lock, whose entry is in the cell already.
// slept is false if the entry changed first.
func (s *Store) sleep(at *spot, starves bool, cancel *shm.Word32) (slept bool, err error) {
	e := at.e
	owner := entryOwner(e)
	if owner == 0 {
		// Free, but reserved for who starves: a nap makes us one of them.
		err := s.c.WaitOwner(0, shm.Watch{W: at.entry.Hi(), Val: hi(e)}, cancel, starvesAfter)
		return true, err
	}
	if owner == DispatcherSlot {
		owner = 0
	} else if owner > s.seg.Slots() {
		return false, errOrphan
	}
	want := e | bitW
	if starves {
		want |= bitS
	}
	if want != e && !at.entry.CAS(e, want) {
		return false, nil
	}
	err = s.c.WaitHeld(owner, shm.Watch{W: at.entry.Hi(), Val: hi(want)}, hi(ownerMask), cancel, 0)
	return true, err
}

// shared reports whether another client has a cell for the entry whose upper
// half w is, or another handle wants the latch that w is. Called only when a
// wait has ended by its time slice.
func (s *Store) shared(_ *shm.Client, w *shm.Word32) bool {
	off := shm.OffsetOf(s.r, w)
	if off&7 == 0 {
		return s.latchWanted(off) > 1 // by more than the caller
	}
	off &^= 7
	for i := uint32(1); i <= s.seg.Slots(); i++ {
		if i != s.slot && s.seg.Slot(i).Live.Load() != 0 && hasCell(s, i, off) {
			return true
		}
	}
	return false
}

func hi(e uint64) uint32 { return uint32(e >> 32) }

// unlock releases the record and gives the cell back.
func (s *Store) unlock(at *spot, cell *shm.Word64) error {
	if planted("cell") {
		cell.Store(0)
	}
	// A record that a sweep may have moved keeps the flag until its next commit.
	if metaFlags(at.meta)&flagOwnerDied != 0 && metaTags(at.meta) == 0 {
		at.b.meta.Store(at.b.meta.Load() &^ (flagOwnerDied << 24))
	}
	ok := s.release(at)
	cell.Store(0)
	if !ok {
		return errLockLost
	}
	return nil
}

// release lets go of the entry, to the dispatcher if it waits. The identity
// stays what it is by now: a sweep may have changed it under the lock.
func (s *Store) release(at *spot) bool {
	for {
		e := at.entry.Load()
		if e&ownerMask != s.me {
			return false
		}
		if at.entry.CAS(e, released(e, e&identity)) {
			if e&(bitW|bitD|bitS) != 0 {
				s.wake(at.entry, e, e&identity)
			}
			return true
		}
	}
}

// swapEntry replaces the identity of an entry that owner holds and releases
// its lock, in one CAS: the commit. W, D and S may be set meanwhile, so it
// takes a loop. The waiters' wake-up follows it. It returns false, and
// changes nothing, if the entry is not owner's.
func (s *Store) swapEntry(entry *shm.Word64, owner, id uint64) bool {
	for {
		e := entry.Load()
		if e&ownerMask != owner {
			return false
		}
		if entry.CAS(e, released(e, id)) {
			if e&(bitW|bitD|bitS) != 0 {
				s.wake(entry, e, id)
			}
			return true
		}
	}
}

// released is what an owned entry becomes. D hands the lock to the dispatcher
// and keeps the sleepers' bits; an entry that goes away takes its bits along.
func released(e, id uint64) uint64 {
	switch {
	case id == 0:
		return 0
	case e&bitD != 0:
		return id | e&(bitW|bitS) | ownedBy(DispatcherSlot)
	}
	return id | e&bitS
}

// wake does what a release owes to those who waited when the entry was e. Of
// an entry that is gone all wake up, and look anew.
func (s *Store) wake(entry *shm.Word64, e, id uint64) {
	switch {
	case id == 0:
		entry.Hi().Wake(shm.All)
		if e&bitD != 0 && s.served() {
			s.rung(entry)
		}
	case e&bitD != 0:
		s.ring(entry)
	case e&bitW != 0:
		entry.Hi().Wake(1)
	}
}

// ring tells the dispatcher that an entry was handed to it. If it has left, or
// there never was one and D is a stray bit, the record must not stay locked: the
// lock is taken off again.
func (s *Store) ring(entry *shm.Word64) {
	if planted("noring") {
		return
	}
	if s.served() {
		s.rung(entry)
		return
	}
	for {
		e := entry.Load()
		if entryOwner(e) != DispatcherSlot || entry.CAS(e, e&identity) {
			entry.Hi().Wake(shm.All)
			return
		}
	}
}

// openGate waits until the segment is open.
func (s *Store) openGate(ctx context.Context) error {
	for {
		g := s.gate.Gate.Load()
		switch {
		case s.closed.Load():
			return errClosed
		case g&3 == shm.GateOpen:
			return nil
		case g&3 != shm.GateFrozen:
			return s.seg.Why()
		case ctx.Err() != nil:
			return ctx.Err()
		case s.c == nil: // an observer waits without a slot
			select {
			case <-ctx.Done():
			case <-time.After(time.Millisecond):
			}
			continue
		}
		cancel, stop := s.canceller(ctx)
		err := s.c.WaitOwner(0, shm.Watch{W: s.gate.Gate.Lo(), Val: uint32(g)}, cancel, 0)
		stop()
		if err != nil {
			return err
		}
	}
}

// waitGate is openGate for those who have not entered.
func (s *Store) waitGate(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()
	return s.openGate(ctx)
}

// canceller returns a word that becomes 1 when ctx ends.
func (s *Store) canceller(ctx context.Context) (*shm.Word32, func() bool) {
	if ctx.Done() == nil {
		return nil, func() bool { return true }
	}
	w := new(shm.Word32)
	return w, context.AfterFunc(ctx, w.Raise)
}

// turns lets one goroutine at a time wait for a record in the kernel.
type turns struct {
	mu sync.Mutex
	m  map[uint64]*[]chan struct{}
}

// enter waits for the turn on the record with that hash.
func (t *turns) enter(ctx context.Context, hash uint64) error {
	t.mu.Lock()
	q := t.m[hash]
	if q == nil {
		if t.m == nil {
			t.m = map[uint64]*[]chan struct{}{}
		}
		t.m[hash] = new([]chan struct{})
		t.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	*q = append(*q, mine)
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	for i, c := range *q {
		if c == mine {
			*q = append((*q)[:i], (*q)[i+1:]...)
			t.mu.Unlock()
			return ctx.Err()
		}
	}
	t.mu.Unlock()
	t.leave(hash) // the turn came at the same time: pass it on
	return ctx.Err()
}

// leave passes the turn on.
func (t *turns) leave(hash uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.m[hash]
	if len(*q) == 0 {
		delete(t.m, hash)
		return
	}
	next := (*q)[0]
	*q = (*q)[1:]
	close(next)
}
