package ltdb

import (
	"errors"

	"github.com/mainzdb/mainz/shm"
)

// What the Keeper does for a request: look at a record, lock it, give it a value, take
// it away, and leave the lock to a client.

// Held is a record as the Keeper reads and writes it. The slices that Look sets belong
// to the Keeper until its next Look.
type Held struct {
	RSN       uint64
	LAccessor uint32
	LACount   uint32
	Data      []byte
	Tags      []byte // rows of tags: PNN u32, life u64, counter u64, length u32
}

// seen is a record as it was found.
func (k *Keeper) seen(at *spot) seenAt {
	return seenAt{shm.OffsetOf(k.s.r, at.entry), at.e & identity, at.seq}
}

// Look reads the last committed value into r, whether the gate is open or not. It
// returns false if this node owns no such record.
func (k *Keeper) Look(id uint32, key []byte, r *Held) bool {
	db := k.db(id)
	if db == nil {
		return false
	}
	hash, l := db.hash(key), &k.a.look
	for range maxLooks {
		ok, err := db.find(hash, key, &l.at)
		if err != nil || !ok {
			k.fail(err)
			return false
		}
		fits := k.a.copyRecord(len(key), &l.at)
		rsn, acc := l.at.b.rsn.Load(), l.at.b.acc.Load()
		shm.LoadBarrier()
		if !l.at.unchanged() {
			continue
		}
		switch {
		case !fits:
			k.fail(errBadBlock)
			return false
		case metaFlags(l.at.meta)&flagOwn == 0:
			return false
		}
		k.book.note(k.seen(&l.at))
		k.data, k.tags = append(k.data[:0], l.data...), append(k.tags[:0], l.tags...)
		*r = Held{rsn, uint32(acc), uint32(acc >> 32), k.data, k.tags}
		return true
	}
	k.fail(errOddBlock)
	return false
}

// LockResult is the answer of TryLock.
type LockResult uint8

// TryLock's answers: the dispatcher holds it; another does, and Rung tells when
// to try again; there is no room for a new record.
const (
	LockTaken LockResult = iota
	LockHeld
	LockNoSpace
)

// TryLock locks a record for the dispatcher: LockTaken, also if the Keeper has it
// already. A record that is not there is made, empty and owned by this node; an
// arriving one may use the reserve. After LockHeld Rung tells when to try again.
func (k *Keeper) TryLock(id uint32, key []byte, arriving bool) LockResult {
	db := k.db(id)
	if db == nil {
		return LockNoSpace
	}
	s, hash := k.s, db.hash(key)
	var at spot
	for range maxLooks {
		ok, err := db.find(hash, key, &at)
		if err != nil {
			k.fail(err)
			return LockNoSpace
		}
		if !ok {
			switch err := k.insert(db, key, hash, arriving, &at); {
			case err == nil:
				return LockTaken
			case err == errHeld: // somebody else has made it
				continue
			case errors.Is(err, errLatched):
				k.book.tellLater(db, key)
				return LockHeld
			case !errors.Is(err, ErrNoSpace):
				k.fail(err)
				fallthrough
			default:
				return LockNoSpace
			}
		}
		switch owner := entryOwner(at.e); {
		case owner == DispatcherSlot:
			return LockTaken
		case owner != 0:
			w := k.book.at(db, key, shm.OffsetOf(s.r, at.entry))
			w.waits = true
			if at.e&bitD != 0 || at.entry.CAS(at.e, at.e|bitD) {
				return LockHeld
			}
		case at.e&bitS != 0 && !k.book.overdue(db, key):
			return LockHeld // a sleeper goes first
		case at.entry.CAS(at.e, at.e&^(bitD|bitS)|s.me):
			at.e = at.e&^(bitD|bitS) | s.me
			if at.b.seq.Load() == at.seq || db.still(key, &at) {
				return LockTaken
			}
			if !s.release(&at) {
				k.fail(errLockLost)
				return LockNoSpace
			}
		}
	}
	k.fail(errOddBlock)
	return LockNoSpace
}

// insert makes an empty record that the dispatcher holds. It does not wait for
// the bucket's latch.
func (k *Keeper) insert(db *DB, key []byte, hash uint64, arriving bool, at *spot) error {
	s, a := k.s, k.a
	c := classOf(blockSize(len(key), 0))
	a.keep, a.arriving = 0, arriving
	defer func() { a.arriving = false }()
	n := 1
	if c == 0 {
		n = 2
	}
	for a.have(c) < n || a.have(0) < 1 {
		if err := a.reserve(c, n); err != nil {
			return err
		}
		if err := a.reserve(0, 1); err != nil {
			return err
		}
	}
	bk := &db.buckets[hash&db.mask]
	if o := bk.latch.Owner(); o != 0 {
		if s.c.Dead(o.Slot()) {
			if _, err := s.c.Recover(o.Slot()); err != nil {
				return err
			}
		}
		return errLatched
	}
	a.h.bucketIntent.Store(shm.OffsetOf(s.r, bk))
	if !bk.latch.TryLock(a.id) {
		a.h.bucketIntent.Store(0)
		return errLatched
	}
	err := a.insertLatched(db, bk, key, hash, a.cell, at, c)
	a.h.jNew.Store(0)
	bk.latch.Unlock(a.id)
	a.h.bucketIntent.Store(0)
	a.cell.Store(0) // the dispatcher's locks have no cells
	return err
}

// Holder returns who holds the record's lock: 0, a client's slot, or
// DispatcherSlot.
func (k *Keeper) Holder(id uint32, key []byte) uint32 {
	if db := k.db(id); db != nil {
		var at spot
		if ok, err := db.find(db.hash(key), key, &at); ok {
			return entryOwner(at.e)
		} else if err != nil {
			k.fail(err)
		}
	}
	return 0
}

// findHeld finds a record that the dispatcher holds.
func (k *Keeper) findHeld(id uint32, key []byte, at *spot) bool {
	db := k.db(id)
	if db == nil {
		return false
	}
	ok, err := db.find(db.hash(key), key, at)
	if err == nil && (!ok || at.e&ownerMask != k.s.me) {
		err = errLockLost
	}
	k.fail(err)
	return err == nil
}

// Unlock releases a record. A record without a value is removed, unless the Keeper
// attends it. After a few services in a row for which clients slept, it is a client's
// turn.
//
// Preconditions: the Keeper holds the record's lock.
func (k *Keeper) Unlock(id uint32, key []byte) {
	var at spot
	if !k.findHeld(id, key, &at) {
		return
	}
	s, a := k.s, k.a
	if f := metaFlags(at.meta); f&flagEmpty != 0 && f&(keptFlags|flagAway) == 0 && at.meta&metaWaited == 0 {
		switch err := a.makeRoom(entryClass(at.e), 1); {
		case err == nil:
			k.fail(a.publish(&at, a.cell, 0, andUnlock))
			k.flush(&at)
			return
		case errors.Is(err, errLatched):
			k.book.tellLater(k.db(id), key).left = true // to be dropped then
		}
	}
	for {
		e := at.entry.Load()
		if e&ownerMask != s.me {
			k.fail(errLockLost)
			return
		}
		free := e & identity
		if e&bitW == 0 {
			if at.entry.CAS(e, free) {
				return
			}
			continue
		}
		b := k.book.burstOf(shm.OffsetOf(s.r, at.entry))
		starve := b.n+1 >= localBurst
		if starve {
			free |= bitS
		}
		if !at.entry.CAS(e, free) {
			continue
		}
		if b.n++; starve {
			b.n = 0
		}
		at.entry.Hi().Wake(1)
		return
	}
}

// UnlockTo leaves the lock to a client: the tenant of that generation of a slot. If
// that client has no cell for the record, UnlockTo unlocks the record and returns
// false. Such a client has died or left, or has never announced the record
// (Handle.Announce).
//
// Preconditions: the Keeper holds the record's lock.
func (k *Keeper) UnlockTo(id uint32, key []byte, slot, generation uint32) bool {
	var at spot
	if !k.findHeld(id, key, &at) {
		return false
	}
	s := k.s
	if !s.announced(slot, generation, shm.OffsetOf(s.r, at.entry)) {
		k.Unlock(id, key)
		return false
	}
	for {
		e := at.entry.Load()
		if e&ownerMask != s.me {
			k.fail(errLockLost)
			return false
		}
		// With D until the second look: by it the lock can be told from any other
		// that the slot may have had by then.
		given := e&(identity|bitW) | bitD | ownedBy(slot)
		if planted("takeany") {
			given &^= bitD
		}
		if at.entry.CAS(e, given) {
			break
		}
	}
	return k.confirmGiven(id, key, at.entry, slot, generation)
}

// announced reports whether the client of that generation of a slot has a cell for
// the entry at off, which nobody is about to clear after its death. The generation is
// looked at last: the cell was this client's then, and not its successor's.
func (s *Store) announced(slot, generation uint32, off shm.Offset) bool {
	sl := s.seg.Slot(slot)
	if sl == nil || slot == DispatcherSlot {
		return false
	}
	found := false
	b := shm.At[body](s.r, s.seg.SlotBody(slot))
	for i := range b.cells {
		if b.cells[i].Load() == off {
			found = true
			break
		}
	}
	return found && (uint32(sl.Generation.Load()) == generation || planted("anytenant"))
}

// confirmGiven is the second look at a client that was left a lock. Who repairs a slot marks
// the cell before it looks at the entry, so either the cell stands here, and a repair
// will find the lock, or it does not, and the lock is taken back. It is still the lock
// that was given as long as D stands: a release would have handed the record over, and a
// repair takes D off first.
func (k *Keeper) confirmGiven(id uint32, key []byte, entry *shm.Word64, slot, generation uint32) bool {
	s := k.s
	stands := planted("nosecond") || s.announced(slot, generation, shm.OffsetOf(s.r, entry))
	for {
		e := entry.Load()
		free := e & identity
		switch {
		case entryOwner(e) == DispatcherSlot: // it was handed back
			k.Unlock(id, key)
			return false
		case entryOwner(e) != slot:
			return false
		case e&bitD == 0 && !planted("takeany"):
			// It is repaired at the moment, and may be handed to us.
			k.book.at(k.db(id), key, shm.OffsetOf(s.r, entry)).left = true
			return stands
		case stands:
			free = e &^ bitD
		}
		if entry.CAS(e, free) {
			if !stands {
				entry.Hi().Wake(shm.All)
			}
			return stands
		}
	}
}

// Gave looks at a record that the dispatcher before this one was about to leave to a
// client, and reports whether it had left it. If that client is gone, Gave takes the
// lock back.
func (k *Keeper) Gave(id uint32, key []byte, slot, generation uint32) bool {
	db := k.db(id)
	if db == nil {
		return false
	}
	var at spot
	ok, err := db.find(db.hash(key), key, &at)
	k.fail(err)
	if err != nil || !ok || entryOwner(at.e) != slot || slot == DispatcherSlot {
		return false
	}
	return k.confirmGiven(id, key, at.entry, slot, generation)
}

// Publish gives a record a new value and keeps the lock: LockTaken. LockHeld: somebody
// holds the latch of a free list, and Rung tells when to try again. LockNoSpace: there
// is no room; an arriving record may use the reserve.
//
// Preconditions: the Keeper holds the record's lock.
func (k *Keeper) Publish(id uint32, key []byte, r *Held, arriving bool) LockResult {
	var at spot
	if !k.findHeld(id, key, &at) {
		return LockNoSpace
	}
	err := k.replace(id, key, &at, r, arriving, flagOwn|metaFlags(at.meta)&keptFlags, 0)
	switch {
	case err == nil:
		return LockTaken
	case errors.Is(err, errLatched):
		k.book.tellLater(k.db(id), key)
		return LockHeld
	}
	return LockNoSpace
}

// PublishFor is Publish for a client: the tenant of that generation of a slot. In a
// database of pieces the value may have a piece of that client. LockNoSpace: the
// client's index has gone to the orphans. Then somebody may have looked for the piece
// already, in vain, and it would stay for ever.
//
// A look before the commit is enough. Whoever removes the pieces of the dead needs the
// record's lock to look for each. The Keeper has that lock from before the look until
// after the commit, so an index that goes to the orphans in between is worked through
// later.
func (k *Keeper) PublishFor(id uint32, key []byte, r *Held, slot, generation uint32) LockResult {
	db := k.db(id)
	if db != nil && db.mode == Pieces && !k.s.indexed(slot, generation) {
		return LockNoSpace
	}
	return k.Publish(id, key, r, false)
}

// indexed reports whether the client of that generation of a slot has its index: it
// loses it before its pieces are removed, be it dead or about to leave. The generation
// is looked at last: the index was this client's then, and not its successor's.
func (s *Store) indexed(slot, generation uint32) bool {
	sl := s.seg.Slot(slot)
	switch {
	case sl == nil || slot == DispatcherSlot:
		return false
	case planted("noindex"):
		return true
	case planted("leaving"):
		g, alive := s.Tenant(slot)
		return alive && uint32(g) == generation
	}
	return shm.At[body](s.r, s.seg.SlotBody(slot)).pieces.Load() != 0 && uint32(sl.Generation.Load()) == generation
}

// replace publishes a block with the given flags in the place of at's, which
// the dispatcher holds, or which nobody else can commit to.
func (k *Keeper) replace(id uint32, key []byte, at *spot, r *Held, arriving bool, flags, epoch uint64) error {
	s, a, db := k.s, k.a, k.db(id)
	size := pieceSize(len(key), len(r.Data), len(r.Tags)/tagSize)
	if len(r.Data) > s.maxValue || size > s.maxBlock || db.mode == KV && len(r.Tags) > 0 {
		return errBadValue
	}
	if len(r.Data) == 0 {
		flags |= flagEmpty
	}
	c := classOf(size)
	a.keep, a.arriving = 0, arriving
	err := a.makeRoom(entryClass(at.e), 1)
	var dr draft
	if err == nil {
		dr, err = a.draftFor(c, at)
	}
	a.arriving = false
	if err != nil {
		if !errors.Is(err, ErrNoSpace) && !errors.Is(err, errLatched) {
			k.fail(err)
		}
		return err
	}
	a.writeNew(dr, key, r.Data)
	s.r.CopyIn(refOffset(dr.ref)+tagsOffset(len(key), len(r.Data)), r.Tags)
	dr.b.rsn.Store(r.RSN)
	dr.b.acc.Store(uint64(r.LAccessor) | uint64(r.LACount)<<32)
	dr.b.size.Store(uint64(uint32(len(r.Data))) | db.hash(key)<<32)
	dr.b.meta.Store(makeMeta(len(key), dr.c, flags) | uint64(len(r.Tags)/tagSize)<<32)
	dr.b.epoch.Store(epoch)
	dr.b.seq.Store(dr.odd + 1)
	next := at.e&tagMask | makeID(dr.ref, dr.c)
	if err := a.publish(at, a.cell, next, beneath); err != nil {
		k.fail(err)
		return err
	}
	k.flush(at)
	return nil
}

// flush gives large blocks back. What it can't now, makeRoom does later.
func (k *Keeper) flush(at *spot) {
	if entryClass(at.e) >= smallClasses {
		if err := k.a.flushBig(); !errors.Is(err, errLatched) {
			k.fail(err)
		}
	}
}

// Remove takes a record off the node, together with its lock.
//
// Preconditions: the Keeper holds the record's lock.
func (k *Keeper) Remove(id uint32, key []byte) {
	var at spot
	if k.findHeld(id, key, &at) && !k.erase(&at) {
		k.book.undone = append(k.book.undone, watchKey{id, string(key)}) // it stays locked
	}
}

// erase reports whether it could: if not, somebody holds a latch that it needs.
func (k *Keeper) erase(at *spot) bool {
	a := k.a
	if err := a.makeRoom(entryClass(at.e), 1); err != nil {
		if errors.Is(err, errLatched) {
			return false
		}
		k.fail(err)
		return true
	}
	if err := a.publish(at, a.cell, 0, beneath); err != nil {
		k.fail(err)
		return true
	}
	k.flush(at)
	return true
}

// Touch notes which node has asked for a record last, and how often in a row. That is
// no update. Touch leaves a record alone that a client holds.
func (k *Keeper) Touch(id uint32, key []byte, accessor, count uint32) {
	k.withLock(id, key, func(at *spot) { at.b.acc.Store(uint64(accessor) | uint64(count)<<32) })
}

// withLock calls f with a record that the dispatcher holds, or that was free and
// is locked for f. It reports whether it did.
func (k *Keeper) withLock(id uint32, key []byte, f func(at *spot)) bool {
	db := k.db(id)
	if db == nil {
		return false
	}
	at := &k.at
	for range maxLooks {
		ok, err := db.find(db.hash(key), key, at)
		if err != nil || !ok {
			k.fail(err)
			return false
		}
		switch entryOwner(at.e) {
		case DispatcherSlot:
			f(at)
			return true
		case 0:
			mine := at.e&^(bitS|bitD) | k.s.me
			if !at.entry.CAS(at.e, mine) {
				continue
			}
			at.e = mine
			same := at.b.seq.Load() == at.seq || db.still(key, at)
			if same {
				at.meta = at.b.meta.Load()
				f(at)
			}
			if !k.s.release(at) {
				k.fail(errLockLost)
				return false
			}
			if same {
				return true
			}
		default:
			return false
		}
	}
	return false
}
