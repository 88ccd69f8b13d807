package ltdb

import (
	"context"
	"errors"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// What makes a caller that could not go on at once wait and begin again. They
// never leave the package.
var (
	errHeld = errors.New("ltdb: lock is held")
	errGate = errors.New("ltdb: gate is closed")
)

// Who asks for a lock, as far as a free word with S on goes: it was left to one who
// has slept for it. S is a request with a bound, no lock: who waits steps back for
// stepBack at most, who can't wait does not step back at all, and whoever takes the lock
// takes S off. So it does not matter whether the sleeper is still there.
const (
	anybody  = ownerMask        // has slept or stepped back already, or never waits
	newcomer = ownerMask | bitS // waits, and has not slept yet
)

// tryLock takes the record's lock for this client's slot, with the entry's
// offset in cell from before the first CAS until after the release. ok is
// false if there is no record. It returns errHeld if the lock is somebody
// else's, and leaves the cell standing then: who waits for a lock needs it as
// much as who holds it, since it may die just after it was woken.
//
// who is which bits of a word make it somebody else's: anybody or newcomer.
//
// on is the entry that this call has slept on, nil for none. The wake-up that
// ends a sleep is meant for one sleeper; others may sleep on, which only the
// W bit will tell whoever unlocks, so it is set again with the lock. If the
// record stands there no more, the others are woken from here, before the
// cell forgets the entry: a death in between would lose their wake-up.
func (s *Store) tryLock(db *DB, key []byte, hash uint64, cell *shm.Word64, on *shm.Word64, at *spot,
	who uint64) (ok bool, err error) {
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
		if who == anybody && planted("trysteps") {
			who = newcomer
		}
		if at.e&who != 0 {
			return true, errHeld
		}
		mine := at.e&^(bitS|bitD) | s.me // D is asked of an owner only
		if planted("leftd") {
			mine |= at.e & bitD
		}
		if slept && !planted("waiter") {
			mine |= bitW
		}
		if !at.entry.CAS(at.e, mine) {
			continue
		}
		at.e = mine
		if err = s.checkLocked(db, key, at); err == nil {
			return true, nil
		}
		if !s.release(at) {
			err = errLockLost
		}
		cell.Store(0)
		if err != errAgain {
			return false, err
		}
	}
	cell.Store(0)
	return false, errOddBlock
}

// checkLocked looks at a record whose lock the caller has just got, and whose entry and
// block are in at. errAgain: it is another record by now.
func (s *Store) checkLocked(db *DB, key []byte, at *spot) error {
	// The word is as it was when the key was compared, but the block
	// behind it may have been another record's since, and this one's again.
	if at.b.seq.Load() != at.seq && !db.still(key, at) && !planted("nostill") {
		return errAgain
	}
	// A repair may have marked it since we looked: that leaves the seq.
	if !planted("oldflags") {
		at.meta = at.b.meta.Load()
	}
	if metaFlags(at.meta)&flagOwn == 0 {
		return ErrNotHere
	}
	if s.gate.Gate.Load()&3 != shm.GateOpen {
		return errGate
	}
	return nil
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
func (s *Store) spinFor(spin *shm.Spin, at *spot) bool {
	for !s.lineAt(at.e) && spin.Again() {
		// That the entry names another block says nothing: each store of the holder
		// makes one. To look for the record anew then took block and bucket from a
		// holder who was busy with them, 1.7 times tdb's throughput in place of 2.
		e := at.entry.Load()
		if e&newcomer == 0 {
			return true
		}
		if s.lineAt(e) {
			break
		}
	}
	return false
}

// lineAt reports whether an entry word says that goroutines of this process stand in
// line for it: S on a word that is owned. To spin is no use then, as its owner will
// give it to them.
func (s *Store) lineAt(e uint64) bool { return e&(ownerMask|bitS) == s.me|bitS }

// stepBack is for how long a newcomer leaves a free record to who has slept for it.
const stepBack = time.Millisecond

// contended waits for the record's lock and calls then with it.
// It holds no actor meanwhile unless it was given one: whoever has the lock
// may need an actor to release it. ok is false, and nothing was done, if
// there is no record (any more).
func (db *DB) contended(ctx context.Context, own *actor, key []byte, hash uint64,
	then func(*actor, *spot, *lock) error) (ok bool, err error) {
	s := db.s
	if ctx == nil {
		return false, errNoContext
	}
	if err := s.enter(); err != nil {
		return false, err
	}
	defer s.exit()
	defer func() {
		if !ok {
			err = db.waitedFor(ctx, key, hash, err)
		}
	}()
	if err := s.openGate(ctx); err != nil {
		return false, err
	}
	var at spot
	start := shm.Ticks()
	l, err := s.lockInLine(ctx, db, key, hash, &at)
	if l == nil || err != nil {
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
	a.ctx = ctx
	a.h.counters[countWaits].Inc()
	a.sample(latencyWait, start)
	return true, then(a, &at, l)
}

// lockInLine waits for the lock, in the line of this process's goroutines. It returns
// the lock's cell with it, nil if there is no such record.
func (s *Store) lockInLine(ctx context.Context, db *DB, key []byte, hash uint64, at *spot) (*lock, error) {
	t := &s.turns
	var w *waiter
	join := func() {
		w = t.join(hash)
		if db.seek(hash, key, at) {
			t.stands(w, at.entry)
		}
	}
	join()
	defer func() { t.done(w) }()
	for {
		given, err := t.wait(ctx, s, w)
		l := w.l
		if err == nil && l == nil {
			if l, err = s.locks.get(); err != nil {
				t.leave(w)
				return nil, err
			}
			w.l = l
		}
		if err != nil {
			if l != nil {
				s.locks.put(l)
			}
			return nil, err
		}
		if given {
			if err = s.takeOver(db, key, w.entry, l.cell, at); err == nil {
				return l, nil
			}
			s.locks.put(l)
			if err == errGate {
				err = s.openGate(ctx)
			}
			if err != nil && err != errAgain {
				return nil, err
			}
			t.done(w) // it has left the line
			join()
			continue
		}
		ok, err := s.lockSleep(ctx, db, key, w, at)
		if err == errOurs {
			continue
		}
		if ok && err == nil {
			if t.take(w, at.entry) && !planted("nomark") {
				at.e |= s.mark(at.entry, bitS)
			}
			return l, nil
		}
		t.leave(w)
		s.locks.put(l)
		return nil, err
	}
}

// errOurs says that a goroutine of this process has the record, and will give it to
// the line.
var errOurs = errors.New("ltdb: this process has the lock")

// mark sets bits in an entry that this process owns, and returns them, 0 if it does not
// own the entry.
func (s *Store) mark(entry *shm.Word64, bits uint64) uint64 {
	for {
		e := entry.Load()
		if e&ownerMask != s.me {
			return 0
		}
		if e&bits == bits || entry.CAS(e, e|bits) {
			return bits
		}
	}
}

// takeOver looks at the record that another goroutine of this process has given to the
// caller, with its lock.
func (s *Store) takeOver(db *DB, key []byte, entry *shm.Word64, cell *shm.Word64, at *spot) error {
	*at = spot{entry: entry, e: entry.Load()}
	if at.e&ownerMask != s.me {
		cell.Store(0)
		return errLockLost
	}
	err := error(errBadBlock)
	if at.b = s.blockAt(entryRef(at.e), entryClass(at.e)); at.b != nil {
		at.seq = ^uint64(0) // compare the key
		err = s.checkLocked(db, key, at)
	}
	if err != nil {
		if !s.release(at) {
			err = errLockLost
		}
		cell.Store(0)
	}
	return err
}

// lockSleep waits for the lock in the kernel. errOurs: this process has it, and the
// line is parked. w is the first of its line, and w.l.cell has the entry meanwhile.
func (s *Store) lockSleep(ctx context.Context, db *DB, key []byte, w *waiter, at *spot) (bool, error) {
	cancel, stop := s.canceller(ctx)
	defer stop()
	cell := w.l.cell
	var on *shm.Word64 // the entry slept on, nil before
	for who := uint64(newcomer); ; {
		if w.entitled.Load() {
			who = anybody
		}
		ok, err := s.tryLock(db, key, w.line.hash, cell, on, at, who)
		if err == errGate {
			s.turns.departs(w)
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
		case w.since.IsZero():
			w.since = time.Now()
		case time.Since(w.since) >= orphanAfter && !s.hasHolder(at, cell):
			if w.orphaned++; w.orphaned > orphanLooks {
				err = errOrphan
			}
		default:
			w.orphaned = 0
		}
		if err == errHeld {
			switch {
			case at.e&ownerMask == 0 && w.entitled.Load():
				err = nil
			case at.e&ownerMask == 0:
				s.turns.departs(w)
				s.stepAside(ctx, at.entry)
				err, who = nil, anybody
			case at.e&ownerMask == s.me:
				if s.parkLine(w, at.entry, on != nil) {
					return false, errOurs
				}
				err = nil
			default:
				s.turns.departs(w)
				var slept bool
				if slept, err = s.sleep(at, cancel); slept {
					on, who = at.entry, anybody
				}
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

// parkLine parks the line whose first is w at an entry that this process owns. It
// returns false if it does no longer. slept says that w has slept at the entry: the
// wake-up was meant for others as well, so W is set for them.
func (s *Store) parkLine(w *waiter, entry *shm.Word64, slept bool) bool {
	bits := uint64(bitS)
	if slept {
		bits |= bitW
	}
	s.turns.park(w, entry)
	if s.mark(entry, bits) == 0 {
		return !s.turns.unparked(w)
	}
	return true
}

// stepAside leaves a free record to who was woken for it, until somebody has it or
// for a short time. It is no sleep on the word: a wake-up is for others. It sleeps in Go,
// so that a processor is free for who was woken.
func (s *Store) stepAside(ctx context.Context, entry *shm.Word64) {
	if shm.SimEnabled && simulated() {
		return // others may run before the next access anyway
	}
	for end := time.Now().Add(stepBack); entry.Load()&newcomer == bitS && ctx.Err() == nil && time.Now().Before(end); {
		time.Sleep(stepBack / 16)
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

// sleep waits once for the record's lock, which another process has and whose entry is
// in the cell already. slept is false if the entry changed first.
func (s *Store) sleep(at *spot, cancel *shm.Word32) (slept bool, err error) {
	e := at.e
	owner := entryOwner(e)
	if owner == DispatcherSlot {
		owner = 0
	} else if owner > s.seg.Slots() {
		return false, errOrphan
	}
	want := e | bitW
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
	ok := s.release(at)
	cell.Store(0)
	if !ok {
		return errLockLost
	}
	return nil
}

// comeBack is unlock for who has waited until the record was free, and locks it again
// at once, for something that may not be done under the lock: it is not given to this
// process's line. If it were, everybody in a line of such callers would find it taken by
// the next one, for ever.
func (s *Store) comeBack(at *spot, cell *shm.Word64) error {
	ok := s.releaseSlow(at.entry, s.me, 0, keepID|passLine)
	cell.Store(0)
	if !ok {
		return errLockLost
	}
	return nil
}

// clearOwnerDied takes the flag off that the record's last holder has died: the caller had
// the record in hands and could ask. Who takes a lock for a moment of his own,
// to store, to append, to wait, leaves it for the next one.
func (a *actor) clearOwnerDied(at *spot) {
	if metaFlags(at.meta)&flagOwnerDied == 0 {
		return
	}
	at.meta &^= flagOwnerDied << 24
	if metaTags(at.meta) == 0 {
		at.b.meta.Store(at.b.meta.Load() &^ (flagOwnerDied << 24))
		return
	}
	// A sweep may have moved the record. It comes after the pass of a freeze, which
	// waits for who is busy, and who is busy sees the gate closed. Then the flag
	// stays, and the next holder is told once more.
	a.h.busy.Swap(1)
	if a.s.gate.Gate.Load()&3 == shm.GateOpen {
		e := at.entry.Load()
		if b := a.s.blockAt(entryRef(e), entryClass(e)); b != nil && e&ownerMask == a.s.me {
			b.meta.Store(b.meta.Load() &^ (flagOwnerDied << 24))
		}
	}
	a.h.busy.Store(0)
}

// release lets go of the entry, to the dispatcher if it waits. The identity
// stays what it is by now: a sweep may have changed it under the lock.
func (s *Store) release(at *spot) bool {
	for {
		e := at.entry.Load()
		if e&ownerMask != s.me {
			return false
		}
		if e&(bitW|bitD|bitS) != 0 || s.turns.called.Load() != 0 {
			return s.releaseSlow(at.entry, s.me, 0, keepID)
		}
		if at.entry.CAS(e, e&identity) {
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
		if e&(bitW|bitD|bitS) != 0 || s.turns.called.Load() != 0 {
			return s.releaseSlow(entry, owner, id, 0)
		}
		if entry.CAS(e, id) {
			return true
		}
	}
}

// How releaseSlow releases.
const (
	keepID   = 1 << iota // the identity stays; else it becomes id
	passLine             // not to this process's line
)

// releaseSlow is the release of a record for which somebody waits, or for which
// somebody was called who has not run yet.
//
// The lock goes, in this order: to the dispatcher, which asked by D; to the first of
// this process's own line, if it was overtaken often enough and the process's share of
// time lasts; else to whoever comes. If somebody sleeps when the share is over, S is
// left on the free word; so it is if the first of the line is up, and was overtaken often
// enough. If somebody sleeps while the share lasts nobody overtakes the first, as each
// free word costs a wake-up of the sleeper.
func (s *Store) releaseSlow(entry *shm.Word64, owner, id uint64, how int) bool {
	t := &s.turns
	var heir *waiter // who is given the record
	asked, over, more, passed, leave := false, false, false, false, false
	for {
		e := entry.Load()
		if e&ownerMask != owner {
			if heir != nil {
				s.disinherit(heir)
			}
			return false
		}
		if how&keepID != 0 {
			id = e & identity
		}
		if e&bitW != 0 && !asked {
			asked, over = true, t.over(entry, shm.OffsetOf(s.r, entry))
		}
		waits := e&bitS != 0 || owner == s.me && t.called.Load() != 0
		toLine := waits && e&bitD == 0 && id != 0 && how&passLine == 0 && (e&bitW == 0 || !over)
		if toLine && heir == nil && !passed {
			heir, more, leave = s.inherit(entry, e&bitW == 0)
			passed = heir == nil
		}
		if toLine && heir != nil {
			n := id | owner | e&bitW
			if more {
				n |= bitS
			}
			if !entry.CAS(e, n) {
				continue
			}
			if t.give(heir, entry) && n&bitS == 0 {
				// Somebody has come to the line meanwhile. The heir may be gone by
				// now, and the record be given on: then S is on, or nobody waits.
				if s.mark(entry, bitS) == 0 {
					t.prod(entry, false)
				}
			}
			return true
		}
		if heir != nil { // the dispatcher has come
			s.disinherit(heir)
			heir = nil
		}
		n := released(e, id)
		if n != 0 && e&bitD == 0 && (leave || over && e&bitW != 0) {
			n |= bitS
		}
		if !entry.CAS(e, n) {
			continue
		}
		if e&bitS != 0 && !planted("noprod") {
			t.prod(entry, n&identity == 0)
		}
		s.wake(entry, e, id)
		return true
	}
}

// inherit chooses who of this process's line is given the entry, nil for nobody. Its
// cell has the entry before it has the lock. more: others wait behind. leave: the record
// is to be left to the first of the line, who is up.
func (s *Store) inherit(entry *shm.Word64, patient bool) (w *waiter, more, leave bool) {
	w, more, leave = s.turns.claim(entry, patient)
	if w == nil {
		return nil, false, leave
	}
	if w.l == nil {
		l, err := s.locks.get()
		if err != nil {
			s.turns.unclaim(w) // it will meet that itself
			return nil, false, false
		}
		w.l = l
	}
	w.l.cell.Store(shm.OffsetOf(s.r, entry))
	return w, more, false
}

func (s *Store) disinherit(w *waiter) {
	w.l.cell.Store(0)
	s.turns.unclaim(w)
}

// released is what an owned entry becomes. D hands the lock to the dispatcher and
// keeps the sleepers' bit; an entry that goes away takes its bits along. S does not
// stay: on an owned entry it speaks of the owner's goroutines.
func released(e, id uint64) uint64 {
	if id != 0 && e&bitD != 0 {
		return id | e&bitW | ownedBy(DispatcherSlot)
	}
	return id
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
	if shm.SimEnabled && simulated() {
		if own, ok := ctx.(interface{ AfterFunc(func()) func() bool }); ok {
			return w, own.AfterFunc(w.Raise) // in the task that ends it, not in a goroutine
		}
	}
	return w, context.AfterFunc(ctx, w.Raise)
}
