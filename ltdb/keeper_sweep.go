package ltdb

import "github.com/mainzdb/mainz/shm"

// Walks of the Keeper over all records, as a recovery makes them: the gate is closed, and
// the pass is over. What it changes it changes beneath the locks of clients.

// eachEntry calls f for every record's entry of all databases, or of those of
// one mode, in the order in which they stand.
func (k *Keeper) eachEntry(mode Mode, f func(db *DB, w *shm.Word64)) {
	s := k.s
	for i := range s.dbs {
		if s.dbs[i].ready.Load() == 0 {
			continue
		}
		db := k.db(s.dbs[i].id.Load())
		if db == nil || mode != 0 && db.mode != mode {
			continue
		}
		for n := range db.buckets {
			c := s.chainOf(&db.buckets[n])
			for ; c.bk != nil; c.next() {
				for i := range c.bk.entry {
					if c.bk.entry[i].Load() != 0 {
						f(db, &c.bk.entry[i])
					}
				}
			}
			k.fail(c.err)
		}
	}
}

// spotAt reads an entry whose record nobody changes; false if it is empty or
// damaged. key is appended to.
func (k *Keeper) spotAt(w *shm.Word64, key []byte) (at spot, whole []byte, ok bool) {
	s := k.s
	e := w.Load()
	if e == 0 {
		return at, key, false
	}
	b := s.blockAt(entryRef(e), entryClass(e))
	if b == nil {
		k.fail(errBadBlock)
		return at, key, false
	}
	at = spot{entry: w, e: e, b: b, seq: b.seq.Load(), meta: b.meta.Load()}
	n := metaKeyLen(at.meta)
	if n < 1 || n > maxKey || blockHeaderSize+uint64(n) > uint64(classSizes[entryClass(e)]) || at.seq&1 != 0 {
		k.fail(errBadBlock)
		return at, key, false
	}
	whole = room(key[:0], n)
	s.r.CopyOut(whole, refOffset(entryRef(e))+blockHeaderSize)
	return at, whole, true
}

// Each calls f for every record that this node owns, empty ones too, in a fixed order.
// The key is valid during the call. f must not insert.
//
// Preconditions: the pass is over.
func (k *Keeper) Each(f func(db uint32, key []byte, rsn uint64)) {
	var buf []byte
	k.eachEntry(0, func(db *DB, w *shm.Word64) {
		at, key, ok := k.spotAt(w, buf)
		buf = key
		if ok && metaFlags(at.meta)&flagOwn != 0 {
			f(db.id, key, at.b.rsn.Load())
		}
	})
}

// Sweep takes out the pieces of all records for which keep returns false. It sweeps
// records that a client has locked as well, and leaves them locked: that client can't
// commit before the gate is open.
//
// Preconditions: the pass is over.
func (k *Keeper) Sweep(keep func(o OPID) bool) {
	var buf []byte
	k.eachEntry(Pieces, func(db *DB, w *shm.Word64) {
		at, key, ok := k.spotAt(w, buf)
		buf = key
		if !ok || !k.a.copyRecord(len(key), &at) {
			return
		}
		l := &k.a.look
		n := len(l.tags)
		for i := 0; i < len(l.tags); {
			if o := tagOPID(l.tags[i:]); keep(o) {
				i += tagSize
			} else {
				l.cut(o)
			}
		}
		if len(l.tags) == n {
			return
		}
		if len(l.tags) == 0 && at.e&ownerMask == 0 && metaFlags(at.meta)&keptFlags == 0 {
			k.erase(&at)
			return
		}
		acc := at.b.acc.Load()
		r := Held{at.b.rsn.Load() + 1, uint32(acc), uint32(acc >> 32), l.data, l.tags}
		flags := metaFlags(at.meta) &^ flagEmpty
		if err := k.replace(db.id, key, &at, &r, true, flags, at.b.epoch.Load()); err != nil {
			k.fail(err)
		}
	})
}

// DropProvisional drops the records that recoveries have made which never opened.
func (k *Keeper) DropProvisional() {
	var buf []byte
	k.eachEntry(Pieces, func(_ *DB, w *shm.Word64) {
		at, key, ok := k.spotAt(w, buf)
		buf = key
		if ok && k.provisional(&at) {
			k.erase(&at)
		}
	})
}
