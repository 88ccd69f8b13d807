package ltdb

import (
	"math/bits"

	"github.com/mainzdb/mainz/shm"
)

// spot is where a record was found: its entry, the entry's word, its block
// and the block's seq at the comparison of the key.
type spot struct {
	entry *shm.Word64
	e     uint64
	b     *block
	seq   uint64
	meta  uint64
}

// maxLooks is how often others may change the record under us: a damaged store
// ends in an error.
const maxLooks = 1 << 16

// bucketAt returns the overflow bucket in the block at ref, or nil.
func (s *Store) bucketAt(ref uint32) *bucket {
	off := refOffset(ref)
	if off < s.dataStart {
		return nil
	}
	return shm.Window[bucket](s.r, off+overflowBucketAt, bucketSize)
}

// match returns a bit for each entry with the tag. There is no branch in it:
// where a key stands in its bucket can't be predicted, and a branch on it
// would be resolved only when the line has come from memory, and then throw
// away what the CPU had begun of the next operation.
func (bk *bucket) match(tag uint64) uint32 {
	return has(bk.entry[0].Load(), tag) |
		has(bk.entry[1].Load(), tag)<<1 |
		has(bk.entry[2].Load(), tag)<<2 |
		has(bk.entry[3].Load(), tag)<<3 |
		has(bk.entry[4].Load(), tag)<<4 |
		has(bk.entry[5].Load(), tag)<<5 |
		has(bk.entry[6].Load(), tag)<<6
}

// has is 1 if e has the tag, else 0.
func has(e, tag uint64) uint32 { return uint32(((e^tag)&tagMask - 1) >> 63) }

// isBucket reports whether an overflow bucket stands in the block at ref.
func (s *Store) isBucket(ref uint32) bool {
	b := s.freeBlockAt(ref, 0)
	return b != nil && b.seq.Load()&1 == 0 && metaFlags(b.meta.Load()) == flagBucket
}

// chain walks along a bucket's chain, for all who are in no hurry: bk is the bucket it
// is at, nil behind the last one, and err says then whether the chain was whole.
//
//	c := s.chainOf(bk)
//	for ; c.bk != nil; c.next() {
//		…
//	}
//	return c.err
type chain struct {
	s    *Store
	bk   *bucket
	ref  uint32 // of the block that bk stands in, or, if err is set, should; 0: it is the table's
	seen walk
	err  error
}

func (s *Store) chainOf(bk *bucket) chain { return chain{s: s, bk: bk} }

// next goes to the overflow bucket.
func (c *chain) next() {
	ref := c.bk.overflow.Load()
	c.bk = nil
	switch {
	case ref == 0:
	case !c.s.isBucket(ref) || c.seen.again(ref):
		c.ref, c.err = ref, errBadChain
	default:
		c.ref, c.bk = ref, c.s.bucketAt(ref)
	}
}

// find looks the key up. ok is false if there is no record; then the whole
// chain was seen while no entry of the key stood in it.
//
// A block that does not have the key counts as a mismatch only if entry and
// seq are unchanged afterwards: it may have been given to another record
// while the keys were compared, and this record may stand in the same entry
// with another block.
func (db *DB) find(hash uint64, key []byte, at *spot) (ok bool, err error) {
	tag := tagOf(hash)
	s := db.s
	bk := &db.buckets[hash&db.mask]
	for chain := (walk{}); ; {
		for m := bk.match(tag); m != 0; m &= m - 1 {
			w := &bk.entry[bits.TrailingZeros32(m)%entriesPerBucket]
			e := w.Load()
			if (e^tag)&tagMask != 0 || e == 0 {
				continue
			}
			c := entryClass(e)
			b := s.blockAt(entryRef(e), c)
			if b == nil {
				return false, errBadBlock
			}
			seq := b.seq.Load()
			meta := b.meta.Load()
			if seq&1 == 0 && metaShape(meta) == shapeOf(len(key), c) &&
				blockHeaderSize+uint64(len(key)) <= uint64(classSizes[c]) &&
				s.r.Equal(refOffset(entryRef(e))+blockHeaderSize, key) {
				// Whoever reads or locks looks at entry and seq once more.
				at.entry, at.e, at.b, at.seq, at.meta = w, e, b, seq, meta
				return true, nil
			}
			if hit, err := db.lookAgain(w, e, seq, key, at); hit || err != nil {
				return hit, err
			}
		}
		ref := bk.overflow.Load()
		if ref == 0 {
			return false, nil
		}
		if bk = s.bucketAt(ref); bk == nil || chain.again(ref) {
			return false, errBadChain
		}
	}
}

// lookAgain tells whether the entry at w, which did not have the key when it
// was e and its block's seq was seq, really does not.
func (db *DB) lookAgain(w *shm.Word64, e, seq uint64, key []byte, at *spot) (bool, error) {
	if planted("mismatch") {
		return false, nil
	}
	s := db.s
	tag := e & tagMask
	for range maxLooks {
		c := entryClass(e)
		b := s.blockAt(entryRef(e), c)
		if b == nil {
			return false, errBadBlock
		}
		shm.LoadBarrier()
		now := w.Load()
		if now == 0 || now&tagMask != tag {
			return false, nil
		}
		if now&identity == e&identity && b.seq.Load() == seq && seq&1 == 0 {
			// A block that is used as one of another class would be freed as
			// that, and overwrite its neighbours in its next life.
			if metaClass(b.meta.Load()) != c && b.seq.Load() == seq && w.Load()&identity == e&identity {
				return false, errBadClass
			}
			return false, nil
		}
		e = now
		if b = s.blockAt(entryRef(e), entryClass(e)); b == nil {
			return false, errBadBlock
		}
		c = entryClass(e)
		seq = b.seq.Load()
		meta := b.meta.Load()
		if seq&1 == 0 && metaShape(meta) == shapeOf(len(key), c) &&
			blockHeaderSize+uint64(len(key)) <= uint64(classSizes[c]) &&
			s.r.Equal(refOffset(entryRef(e))+blockHeaderSize, key) {
			at.entry, at.e, at.b, at.seq, at.meta = w, e, b, seq, meta
			return true, nil
		}
	}
	return false, errOddBlock
}
