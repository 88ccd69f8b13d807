package ltdb

import "github.com/mainzdb/mainz/shm"

// What a dispatcher leaves behind when it dies: records that it had locked, or
// that were handed to it, D bits of records that it waited for, flags of those
// that it attended, empty records. Its successor walks all records for them
// while clients work, a slice at a time. Nothing of it needs a closed gate: who
// comes to a record that the walk has not reached finds it locked by the
// dispatcher, and waits, as for any other lock; the dispatcher itself finds what
// it asks for, a lock of its own.
//
// The first round looks at the entries' words alone. That is some 64 bytes for
// three records, in the order in which they stand, so it is over soon: about
// 10 ms for a million. It ends what others wait for. When it has passed an
// entry, D can be set there by this dispatcher only. The second round looks at
// the blocks, whose flags cost others a needless bell, or memory.

// Left is one walk over what the dispatchers before this one have left. The zero
// Left is ready.
type Left struct {
	round  int
	db     int // place in the table of databases
	bucket int
}

const (
	leftWords = iota
	leftFlags
	leftOver
)

// Released reports whether the locks are released: what the walk still has to do
// keeps nobody.
func (l *Left) Released() bool { return l.round > leftWords }

// leftStride is how many buckets the walk looks at before it asks goOn again.
var leftStride = [...]int{leftWords: 128, leftFlags: 8}

// ReleaseLeft goes on with the walk until goOn returns false, and reports whether the
// walk is over. It asks goOn after some microseconds each. keep says of a record that a
// dispatcher has locked whether it is locked for somebody, and stays so; a nil keep
// keeps none.
func (k *Keeper) ReleaseLeft(l *Left, keep func(db uint32, key []byte) bool, goOn func() bool) (over bool) {
	s := k.s
	for ; l.round < leftOver; l.round, l.db, l.bucket = l.round+1, 0, 0 {
		for ; l.db < len(s.dbs); l.db, l.bucket = l.db+1, 0 {
			if s.dbs[l.db].ready.Load() == 0 {
				continue
			}
			db := k.db(s.dbs[l.db].id.Load())
			if db == nil {
				continue
			}
			for l.bucket < len(db.buckets) {
				for range min(leftStride[l.round], len(db.buckets)-l.bucket) {
					k.releaseBucket(db, &db.buckets[l.bucket], l.round, keep)
					l.bucket++
				}
				if !goOn() {
					return false
				}
			}
		}
	}
	return true
}

// ReleaseUnlisted makes the whole walk at once.
func (k *Keeper) ReleaseUnlisted(keep func(db uint32, key []byte) bool) {
	var l Left
	k.ReleaseLeft(&l, keep, func() bool { return true })
}

// Leave releases what this Keeper holds, waits for and attends, so that nobody hands a
// record over to a dispatcher that is gone.
func (k *Keeper) Leave() {
	for _, w := range k.book.of {
		if w.attended {
			k.Attend(w.db.id, w.key, false)
		}
	}
	k.book.clear()
	var l Left
	k.ReleaseLeft(&l, nil, func() bool { return !l.Released() })
}

func (k *Keeper) releaseBucket(db *DB, bk *bucket, round int, keep func(db uint32, key []byte) bool) {
	s := k.s
	c := s.chainOf(bk)
	for ; c.bk != nil; c.next() {
		for i := range c.bk.entry {
			w := &c.bk.entry[i]
			e := w.Load()
			switch {
			case e == 0:
			case round == leftWords:
				if e&bitD != 0 || entryOwner(e) == DispatcherSlot {
					k.releaseWord(db, w, keep)
				}
				if !s.isHeld(w, e) && !k.book.waited(shm.OffsetOf(s.r, w)) {
					k.releaseNobodys(w)
				}
			default:
				if b := s.blockAt(entryRef(e), entryClass(e)); b == nil {
					k.fail(errBadBlock)
				} else if metaFlags(b.meta.Load())&(flagAttended|flagEmpty) != 0 {
					k.releaseFlags(db, w)
				}
			}
		}
	}
	k.fail(c.err)
}

// releaseWord takes the lock of a dead dispatcher off an entry, or its D bit.
func (k *Keeper) releaseWord(db *DB, w *shm.Word64, keep func(db uint32, key []byte) bool) {
	if k.book.waited(shm.OffsetOf(k.s.r, w)) {
		return // the bit, or what came of it, is this dispatcher's
	}
	for {
		e := w.Load()
		free := e &^ bitD
		if planted("leftd") {
			free = e
		}
		if entryOwner(e) == DispatcherSlot {
			if keep != nil {
				if _, key, ok := k.spotAt(w, nil); ok && keep(db.id, key) {
					return
				}
			}
			free = e & identity
		}
		if e == free {
			return
		}
		if w.CAS(e, free) {
			w.Hi().Wake(shm.All)
			return
		}
	}
}

// releaseNobodys releases a record that a slot has locked whose client has no cell for
// it: nobody ever will. Such a lock is damage, as of a program that stored where it must
// not.
//
// A client has a cell from before it takes a lock until after it has released it, but
// cells are looked at one by one, and one lock after another, in different cells, might
// be missed. D tells: a release hands the record over to this dispatcher then, so as long
// as the owner stays, the lock is one and the same, and so is its cell.
func (k *Keeper) releaseNobodys(w *shm.Word64) {
	s := k.s
	e := w.Load()
	if s.isHeld(w, e) || !w.CAS(e, e|bitD) {
		return
	}
	for {
		e = w.Load()
		owner, free := entryOwner(e), e&identity
		switch {
		case owner == DispatcherSlot: // it was released just now, to us
		case e&bitD == 0:
			return // it was deleted, and what stands here now is somebody else's
		case s.isHeld(w, e):
			free = e &^ bitD
		default:
			if b := s.blockAt(entryRef(e), entryClass(e)); b != nil {
				b.meta.Store(b.meta.Load() | flagOwnerDied<<24)
			}
		}
		if w.CAS(e, free) {
			if free&ownerMask == 0 {
				w.Hi().Wake(shm.All)
			}
			return
		}
	}
}

// isHeld reports whether the entry w, whose word is e, is free, the dispatcher's, or
// locked by a slot that has a cell for it.
func (s *Store) isHeld(w *shm.Word64, e uint64) bool {
	owner := entryOwner(e)
	if owner == 0 || owner == DispatcherSlot {
		return true
	}
	return owner <= s.seg.Slots() && hasCell(s, owner, shm.OffsetOf(s.r, w))
}

// releaseFlags takes the flag of a dead dispatcher off a record, and drops an
// empty one.
func (k *Keeper) releaseFlags(db *DB, entry *shm.Word64) {
	s := k.s
	if !k.scanEntry(entry) {
		return
	}
	key := append([]byte(nil), k.scanKey...)
	if w := k.book.find(db.id, key); w != nil && w.attended {
		return
	}
	// An empty record that a client has locked is dropped by that client.
	e := entry.Load()
	b := s.blockAt(entryRef(e), entryClass(e))
	if entryOwner(e) != 0 && (b == nil || metaFlags(b.meta.Load())&flagAttended == 0) {
		return
	}
	k.unattend(db, key)
}
