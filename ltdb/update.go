package ltdb

import (
	"context"
	"errors"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// A draft is a block being written that only this actor knows: it stands in
// the journal as j.new, with an odd seq.
type draft struct {
	ref uint32
	c   int
	b   *block
	odd uint64
}

// writeAheadFrom is the size from which a value is written before its record
// is locked. Small ones are written after it: to write first and to throw it
// away when the lock is taken was twice as slow on contended records.
const writeAheadFrom = 1024

// draft gets a block of class c to write in.
//
// Preconditions: reserve(c) said yes.
func (a *actor) draft(c int) (draft, error) {
	ref := a.take(c)
	b := a.s.blockAt(ref, c)
	if b == nil || a.s.classAt(ref) != c {
		a.h.jNew.Store(0)
		return draft{}, errBadBlock
	}
	// Odd already if its last writer died in the middle.
	odd := b.seq.Load() | 1
	b.seq.Store(odd)
	shm.StoreBarrier()
	return draft{ref, c, b, odd}, nil
}

// write fills in the value, and the key from the block that has it. Both blocks
// are known to lie in the region, and the draft to have room: by its class.
func (a *actor) write(d draft, klen int, data []byte, old uint32) {
	off := refOffset(d.ref)
	a.s.r.CopyUnchecked(off+blockHeaderSize, refOffset(old)+blockHeaderSize, klen)
	a.s.r.CopyInUnchecked(off+dataOffset(klen), data)
}

// writeNew fills in key and value.
func (a *actor) writeNew(d draft, key, data []byte) {
	off := refOffset(d.ref)
	a.s.r.CopyIn(off+blockHeaderSize, key)
	a.s.r.CopyIn(off+dataOffset(len(key)), data)
}

// seal fills in the header and makes the seq even.
func (d draft) seal(klen, dlen int, hash, rsn, acc, flags uint64) {
	d.b.rsn.Store(rsn)
	d.b.acc.Store(acc)
	d.b.size.Store(uint64(uint32(dlen)) | hash<<32)
	d.b.meta.Store(makeMeta(klen, d.c, flags))
	d.b.seq.Store(d.odd + 1)
}

// drop gives an unused draft back.
func (a *actor) drop(d draft) {
	d.b.seq.Store(d.odd + 1)
	if planted("dropfirst") {
		a.h.jNew.Store(0)
	}
	a.put(d.ref, d.c)
	a.h.jNew.Store(0)
}

// accessed is the record's next LACCESSOR and LACOUNT: this node, once more.
func (s *Store) accessed(acc uint64) uint64 {
	vnn := uint64(s.gate.VNN.Load())
	if acc&0xffffffff == vnn {
		return acc + 1<<32
	}
	return vnn | 1<<32
}

// store replaces the value of the record, or makes the record. It never
// waits: errHeld and errGate tell the caller to.
func (a *actor) store(db *DB, key, data []byte, hash uint64, at *spot) error {
	s := a.s
	c := classOf(blockSize(len(key), len(data)))
	a.keep = 0
	if c >= smallClasses || a.mag[c].n == 0 {
		if ok, err := a.gather(c, 1); err != nil {
			return err
		} else if !ok {
			return a.storeFull(db, key, data, hash, at, c)
		}
	}
	if len(data) >= writeAheadFrom {
		return a.storeLarge(db, key, data, hash, at, c)
	}
	ok, err := s.tryLock(db, key, hash, a.cell, nil, at, newcomer)
	if err == nil && !ok {
		err = a.insert(db, key, hash, a.cell, at)
	}
	if err != nil {
		a.cell.Store(0)
		return err
	}
	return a.commit(len(key), data, hash, at, a.cell)
}

// storeFull is store where no free block of class c lies at hand: the record's
// own block may do, if it has one.
func (a *actor) storeFull(db *DB, key, data []byte, hash uint64, at *spot, c int) error {
	ok, err := a.s.tryLock(db, key, hash, a.cell, nil, at, newcomer)
	if err != nil {
		a.cell.Store(0)
		return err
	}
	if ok {
		if c <= entryClass(at.e) {
			return a.commit(len(key), data, hash, at, a.cell)
		}
		if err := a.letGo(at, a.cell); err != nil {
			return err
		}
	}
	a.cell.Store(0)
	if err := a.reserve(c, 1); err != nil {
		return err
	}
	return a.store(db, key, data, hash, at)
}

func (a *actor) storeLarge(db *DB, key, data []byte, hash uint64, at *spot, c int) error {
	s := a.s
	d, err := a.draft(c)
	if err != nil {
		return err
	}
	a.writeNew(d, key, data)
	ok, err := s.tryLock(db, key, hash, a.cell, nil, at, newcomer)
	if err == nil && ok {
		if err = a.makeRoom(entryClass(at.e), 1); err == nil {
			return a.finish(d, len(key), len(data), hash, at, a.cell)
		}
		s.unlock(at, a.cell)
	}
	// The journal has room for one new block, and an insert needs it.
	a.drop(d)
	if err == nil {
		if err = a.insert(db, key, hash, a.cell, at); err == nil {
			return a.commit(len(key), data, hash, at, a.cell)
		}
	}
	a.cell.Store(0)
	if e := a.flushBig(); e != nil {
		return e
	}
	return err
}

// commit gives a locked record a new value and releases the lock, whatever
// it returns.
func (a *actor) commit(klen int, data []byte, hash uint64, at *spot, cell *shm.Word64) error {
	var start uint64
	if a.sampled(countStores) {
		start = shm.Ticks()
	}
	d, err := a.prepare(klen, data, at)
	if err != nil {
		return errors.Join(err, a.letGo(at, cell))
	}
	old := entryRef(at.e)
	err = a.finish(d, klen, len(data), hash, at, cell)
	if planted("publish") {
		a.write(d, klen, data, old)
	}
	if start != 0 {
		a.sample(latencyStore, start)
		a.s.turns.courtesy()
	}
	return err
}

// prepare writes the next value of a locked record into a draft. The key comes
// from the old block, which stays as it is while the record is locked.
func (a *actor) prepare(klen int, data []byte, at *spot) (draft, error) {
	if err := a.makeRoom(entryClass(at.e), 1); err != nil {
		return draft{}, err
	}
	d, err := a.draftFor(classOf(blockSize(klen, len(data))), at)
	if err == nil && !planted("publish") {
		a.write(d, klen, data, entryRef(at.e))
	}
	return d, err
}

// finish publishes a draft as the record's value and releases the lock.
func (a *actor) finish(d draft, klen, dlen int, hash uint64, at *spot, cell *shm.Word64) error {
	d.seal(klen, dlen, hash, at.b.rsn.Load()+1, a.s.accessed(at.b.acc.Load()), flagOwn|metaFlags(at.meta)&keptFlags)
	a.h.counters[countStores].Inc()
	return a.replace(at, cell, at.e&tagMask|makeID(d.ref, d.c))
}

// release says what a commit does with the record's lock.
type release uint8

const (
	andUnlock release = iota // its owner releases it, in the commit's CAS
	andKeep                  // its owner keeps it
	beneath                  // it stays whose it is: a change of the dispatcher, also beneath a client's lock
)

// publish is the commit, and the only one: whatever changes a record that is there
// becomes visible here. It puts id in the place of the record's identity, in one CAS,
// takes the old block, and tells who waits for a change. An id of 0 takes the record
// away.
//
// The order of the journal's stores is what repair relies on. j.old is set
// before the CAS: then "the entry still has j.old" means not committed, and
// nobody else can publish that ref again before we have freed it. j.new is
// cleared before j.old: the other way round, a death in between would read
// as "not committed", and the published block would be freed.
//
// Preconditions: this client has the lock, or, beneath it, nobody else commits: the
// dispatcher has the lock, or the pass of a freeze is over.
func (a *actor) publish(at *spot, cell *shm.Word64, id uint64, how release) error {
	if a.spare {
		return a.publishSpare(at, cell, id, how)
	}
	s, h := a.s, a.h
	old, oldClass := entryRef(at.e), entryClass(at.e)
	if !planted("oldlate") {
		h.jEntry.Store(shm.OffsetOf(s.r, at.entry))
		h.jOld.Store(old)
	}
	if how == andUnlock && planted("cell") {
		cell.Store(0)
	}
	ok := false
	if how == andUnlock {
		ok = s.swapEntry(at.entry, s.me, id)
	} else {
		ok = s.swapIdentity(at, id, how)
	}
	if !ok {
		return a.lost(cell)
	}
	if planted("oldlate") {
		h.jEntry.Store(shm.OffsetOf(s.r, at.entry))
		h.jOld.Store(old)
	}
	if planted("putlate") {
		h.jNew.Store(0)
		h.jOld.Store(0)
	}
	a.put(old, oldClass)
	if planted("journal") {
		h.jOld.Store(0)
		h.jNew.Store(0)
	} else {
		h.jNew.Store(0)
		h.jOld.Store(0)
	}
	if how == andUnlock && planted("forgetfirst") {
		cell.Store(0)
	}
	if at.meta&(flagAttended<<24|metaWaited) != 0 && !planted("untold") {
		s.changed(at, how)
	}
	if how == andUnlock {
		cell.Store(0)
	}
	return nil
}

// settle ends a call that has published: the update happened, whatever it
// returns, and an error says that it may not count.
func (a *actor) settle(oldClass int) error {
	if oldClass >= smallClasses {
		if err := a.flushBig(); err != nil {
			return err
		}
	}
	return a.s.validate()
}

// replace is publish and settle of a call that ends with them.
func (a *actor) replace(at *spot, cell *shm.Word64, id uint64) error {
	if err := a.publish(at, cell, id, andUnlock); err != nil {
		return err
	}
	return a.settle(entryClass(at.e))
}

// swapIdentity gives the entry another identity, and keeps its lock: how is andKeep or
// beneath. An entry that goes beneath its lock takes the lock along, and whoever sleeps
// there looks anew. It returns false, and changes nothing, if the record isn't the
// caller's to change.
func (s *Store) swapIdentity(at *spot, id uint64, how release) bool {
	for {
		e := at.entry.Load()
		if how == andKeep && e&ownerMask != s.me || how == beneath && e&identity != at.e&identity {
			return false
		}
		if id == 0 {
			if !at.entry.CAS(e, 0) {
				continue
			}
			at.entry.Hi().Wake(shm.All)
			return true
		}
		if at.entry.CAS(e, e&lockBits|id) {
			return true
		}
	}
}

// lost cleans up after an entry that somebody else has overwritten.
func (a *actor) lost(cell *shm.Word64) error {
	if ref := a.h.jNew.Load(); ref != 0 {
		if c := a.s.classAt(ref); c >= 0 && (c >= smallClasses || a.mag[c].n < magazineSize) {
			a.put(ref, c)
		}
	}
	a.h.jNew.Store(0)
	a.h.jOld.Store(0)
	cell.Store(0)
	return errLockLost
}

// erase removes a locked record and releases the lock. A record that the
// dispatcher keeps an eye on stays as an empty one, and so does one whose next
// holder is to be told of a death.
func (a *actor) erase(klen int, hash uint64, at *spot, cell *shm.Word64) error {
	if metaFlags(at.meta)&keptFlags != 0 {
		return a.empty(klen, hash, at, cell)
	}
	if err := a.makeRoom(entryClass(at.e), 1); err != nil {
		return errors.Join(err, a.s.unlock(at, cell))
	}
	a.h.counters[countDeletes].Inc()
	return a.replace(at, cell, 0)
}

// empty gives a locked record an empty block and releases the lock.
func (a *actor) empty(klen int, hash uint64, at *spot, cell *shm.Word64) error {
	d, err := a.prepare(klen, nil, at)
	if err != nil {
		return errors.Join(err, a.s.unlock(at, cell))
	}
	d.seal(klen, 0, hash, at.b.rsn.Load()+1, a.s.accessed(at.b.acc.Load()),
		flagOwn|flagEmpty|metaFlags(at.meta)&keptFlags)
	return a.replace(at, cell, at.e&tagMask|makeID(d.ref, d.c))
}

// letGo releases a locked record that keeps its value: one that has none is
// erased, as nobody can tell it from an absent one, but for its next holder who
// is to be told of a death.
func (a *actor) letGo(at *spot, cell *shm.Word64) error {
	if f := metaFlags(at.meta); f&flagEmpty != 0 && f&keptFlags == 0 && a.makeRoom(entryClass(at.e), 1) == nil {
		return a.replace(at, cell, 0)
	}
	return a.s.unlock(at, cell)
}

// insert makes an empty record that is locked, with its entry in cell. It
// returns errHeld, which makes the caller begin again, if there is one by now.
func (a *actor) insert(db *DB, key []byte, hash uint64, cell *shm.Word64, at *spot) error {
	s, h := a.s, a.h
	c := classOf(blockSize(len(key), 0))
	// No handle waits with a latch held, so blocks come first: one for the
	// record, one in case the chain must grow.
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
	if !planted("intentlate") {
		h.bucketIntent.Store(shm.OffsetOf(s.r, bk))
	}
	if err := a.lockLatch(&bk.latch, bucketLatch, shm.OffsetOf(s.r, bk)); err != nil {
		h.bucketIntent.Store(0)
		return err
	}
	if planted("intentlate") {
		h.bucketIntent.Store(shm.OffsetOf(s.r, bk))
	}
	err := a.insertLatched(db, bk, key, hash, cell, at, c)
	if planted("unlatchfirst") {
		bk.latch.Unlock(a.id)
		h.jNew.Store(0)
	} else {
		h.jNew.Store(0) // published, or dropped: repair of the latch looks at it
		if planted("intentfirst") {
			h.bucketIntent.Store(0)
		}
		bk.latch.Unlock(a.id)
	}
	h.bucketIntent.Store(0)
	return err
}

func (a *actor) insertLatched(db *DB, bk *bucket, key []byte, hash uint64, cell *shm.Word64, at *spot, c int) error {
	s := a.s
	if s.gate.Gate.Load()&3 != shm.GateOpen && s.slot != DispatcherSlot {
		return errGate
	}
	if there, err := db.find(hash, key, at); (there || err != nil) && !planted("twice") {
		if err == nil {
			err = errHeld
		}
		return err
	}
	entry, err := a.emptyEntry(bk)
	if err != nil {
		return err
	}
	if !planted("insertcell") {
		cell.Store(shm.OffsetOf(s.r, entry))
	}
	d, err := a.draft(c)
	if err != nil {
		return err
	}
	a.writeNew(d, key, nil)
	d.seal(len(key), 0, hash, 0, s.accessed(0), flagOwn|flagEmpty)
	e := tagOf(hash) | makeID(d.ref, d.c) | s.me
	if planted("unlocked") {
		e &^= ownerMask
	}
	entry.Store(e)
	*at = spot{entry, e, d.b, d.odd + 1, makeMeta(len(key), d.c, flagOwn|flagEmpty)}
	a.h.counters[countInserts].Inc()
	return nil
}

// emptyEntry finds room in a latched chain, or makes it.
func (a *actor) emptyEntry(bk *bucket) (*shm.Word64, error) {
	s := a.s
	last, c := bk, s.chainOf(bk)
	for ; c.bk != nil; c.next() {
		last = c.bk
		for i := range last.entry {
			if last.entry[i].Load() == 0 {
				return &last.entry[i], nil
			}
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	d, err := a.draft(0)
	if err != nil {
		return nil, err
	}
	more := s.bucketAt(d.ref)
	more.latch.Clear()
	more.overflow.Store(0)
	for i := range more.entry {
		more.entry[i].Store(0)
	}
	d.seal(0, 0, 0, 0, 0, flagBucket)
	if planted("linklate") {
		a.h.jNew.Store(0)
	}
	last.overflow.Store(d.ref)
	a.h.jNew.Store(0)
	a.h.counters[countOverflows].Inc()
	return &more.entry[0], nil
}

// validate is the last look of an update: it happened, but does it count?
func (s *Store) validate() error {
	if s.gate.Gate.Load()&3 == shm.GateOpen && s.leaseRuns() {
		return nil
	}
	return s.validateSlow()
}

// validateSlow waits for a closed gate. If it opens in the same life, this
// node kept its data, and the freeze waited for us: the update counts.
//
// The dispatcher does not wait: nobody but itself closes the gate and opens it again, so
// the freeze of a gate that somebody has overwritten while it changed something would
// keep its loop until the end of the wait. What it has changed counts.
func (s *Store) validateSlow() error {
	if s.slot == DispatcherSlot {
		if s.gate.Gate.Load()&3 == shm.GateDead {
			return endedError{s.seg.Why()}
		}
		return nil
	}
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	err := s.openGate(ctx)
	if errors.Is(err, ErrClosed) {
		return endedError{err}
	}
	if err != nil || s.gate.Life.Load() != s.life || !s.leaseRuns() {
		return ErrLeaseLost
	}
	return nil
}
