package ltdb

import (
	"fmt"
	"runtime"

	"github.com/mainzdb/mainz/shm"
)

// recordTags looks at the tags of a record.
func (k *checker) recordTags(db *DB, key []byte, ref uint32, c int, meta uint64, dlen int, where string) {
	s, tags := k.s, metaTags(meta)
	switch {
	case db.mode == KV && tags != 0:
		k.bad("%s: %d tags in a database of mode kv", where, tags)
	case db.mode == KV:
	case pieceSize(len(key), dlen, tags) > uint64(classSizes[c]):
		k.bad("%s: key of %d, value of %d bytes and %d tags in a block of %d", where, len(key), dlen, tags,
			classSizes[c])
	default:
		b := make([]byte, tags*tagSize)
		s.r.CopyOut(b, refOffset(ref)+tagsOffset(len(key), dlen))
		sum := 0
		for ; len(b) > 0; b = b[tagSize:] {
			o := tagOPID(b)
			sum += int(tagLen(b))
			if o.PNN != s.pnn || o.Life != s.life || slotOf(o.Counter) == 0 {
				continue // another node's, or the dispatcher's
			}
			if other, twice := k.tags[o]; twice {
				k.bad("%s: piece %#x is in %s as well", where, o.Counter, other)
			}
			k.tags[o] = fmt.Sprintf("%d %s", db.id, key)
		}
		if sum != dlen {
			k.bad("%s: pieces of %d bytes in a value of %d", where, sum, dlen)
		}
	}
}

// index walks one chain of pages.
//
// On a live store it forgets what it has found at a word that has changed meanwhile.
func (k *checker) index(where string, slot, root uint32, count *int) {
	s := k.s
	for root != 0 {
		if k.live != nil {
			k.live.by = k.pieceMotion(slot)
		}
		if k.visit(root, pageClass, where) == nil {
			return
		}
		page, next := s.pageAt(root)
		if page == nil {
			k.bad("%s: block %d is no page", where, root)
			return
		}
		k.r.Pages++
		for i := range page.word {
			v := page.word[i].Load()
			if v == 0 {
				continue
			}
			*count++
			found := k.mark()
			if k.live != nil {
				k.live.ev = evidence{v}
			}
			k.word(fmt.Sprintf("%s word %d", where, i), v, count == &k.r.Pieces)
			if k.live != nil && page.word[i].Load() != v {
				k.forget(found) // it is another piece's, or nobody's, by now
			}
		}
		if k.live != nil {
			k.live.ev = evidence{}
		}
		root = next
	}
}

// word looks at a word of an index. alive: of a living client's.
func (k *checker) word(at string, v uint64, alive bool) {
	s := k.s
	p, ok := s.pieceAt(v)
	if k.visit(entryRef(v), entryClass(v), at) == nil || !ok {
		k.bad("%s: %#x names no piece", at, v)
		return
	}
	if (v^stampOf(p.counter))>>stampShift != 0 {
		k.bad("%s: its stamp is not that of piece %#x", at, p.counter)
	}
	o := s.opid(p.counter)
	if other, twice := k.words[o]; twice {
		k.bad("%s: piece %#x is in %s as well", at, p.counter, other)
	}
	k.words[o] = at
	key := make([]byte, p.klen)
	s.r.CopyOut(key, refOffset(p.ref)+blockHeaderSize)
	rec, there := k.tags[o]
	switch want := fmt.Sprintf("%d %s", p.db, key); {
	case there && rec != want:
		k.bad("%s: piece of record %q is in %q", at, want, rec)
	case !there && v&stateMask == stateLive && alive && k.here(p.db, key) && !k.tagged(p.db, key, o):
		k.bad("%s: live piece %#x is not in its record %q", at, p.counter, want)
	}
}

// tagged reports whether a record of a live store has the tag of the piece o, or can't
// be read: the pass may have seen the record as it was changed, or not at all.
func (k *checker) tagged(id uint32, key []byte, o OPID) bool {
	if k.live == nil {
		return false
	}
	db, a := k.s.databaseOf(id), &actor{s: k.s}
	for range 1000 {
		var at spot
		if ok, err := db.find(db.hash(key), key, &at); err != nil || !ok {
			return err != nil
		}
		whole := a.copyRecord(len(key), &at)
		shm.LoadBarrier()
		if !whole || at.b.seq.Load() != at.seq || (at.entry.Load()^at.e)&identity != 0 {
			runtime.Gosched()
			continue
		}
		for t := a.look.tags; len(t) >= tagSize; t = t[tagSize:] {
			if tagOPID(t) == o {
				return true
			}
		}
		return false
	}
	return true
}

// here reports whether this node owns the record.
func (k *checker) here(id uint32, key []byte) bool {
	db := k.s.databaseOf(id)
	if db == nil {
		return false
	}
	var at spot
	ok, err := db.find(db.hash(key), key, &at)
	return err == nil && (!ok || metaFlags(at.meta)&flagOwn != 0)
}

func (k *checker) orphans() {
	for i := range k.s.node.orphan {
		root := k.s.node.orphan[i].Load()
		if root == 0 {
			continue
		}
		if off := k.s.seg.SlotBody(uint32(i)); k.live != nil && off != 0 &&
			shm.At[body](k.s.r, off).pieces.Load() == root {
			continue // it is being moved there, and was looked at
		}
		k.index(fmt.Sprintf("orphans of slot %d", i), uint32(i), root, &k.r.Orphans)
		k.settled()
	}
	k.latch(&k.s.node.orphanLatch, orphanLatch, 1, func() string { return "the orphan indexes" })
}

// pieces looks for pieces that no index knows.
func (k *checker) pieces() {
	for o, rec := range k.tags {
		if _, ok := k.words[o]; !ok {
			k.doubt(k.pieceMotion(slotOf(o.Counter)), evidence{}, "piece %#x of record %q is in no index", o.Counter,
				rec)
		}
	}
}
