package ltdb

import "fmt"

// recordTags looks at the tags of a record.
func (k *checker) recordTags(db *DB, key []byte, ref uint32, c int, meta uint64, dlen int, where string) {
	s, tags := k.s, metaTags(meta)
	switch {
	case db.mode == KV && tags != 0:
		k.bad("%s: %d tags in a database of mode kv", where, tags)
	case db.mode == KV:
	case pieceSize(len(key), dlen, tags) > uint64(classSizes[c]):
		k.bad("%s: key of %d, value of %d bytes and %d tags in a block of %d", where, len(key), dlen, tags, classSizes[c])
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
func (k *checker) index(where string, root uint32, count *int) {
	s := k.s
	for root != 0 {
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
			at := fmt.Sprintf("%s word %d", where, i)
			p, ok := s.pieceAt(v)
			if k.visit(entryRef(v), entryClass(v), at) == nil || !ok {
				k.bad("%s: %#x names no piece", at, v)
				continue
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
			case !there && v&stateMask == stateLive && count == &k.r.Pieces && k.here(p.db, key):
				k.bad("%s: live piece %#x is not in its record %q", at, p.counter, want)
			}
		}
		root = next
	}
	if o := s.node.orphanLatch.Owner(); o != 0 {
		k.bad("latch of the orphan indexes is held by handle %d.%d", o.Slot(), o.Index())
	}
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
		k.index(fmt.Sprintf("orphans of slot %d", i), k.s.node.orphan[i].Load(), &k.r.Orphans)
	}
}

// pieces looks for pieces that no index knows.
func (k *checker) pieces() {
	for o, rec := range k.tags {
		if _, ok := k.words[o]; !ok {
			k.bad("piece %#x of record %q is in no index", o.Counter, rec)
		}
	}
}
