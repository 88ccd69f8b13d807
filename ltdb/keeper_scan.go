package ltdb

import "github.com/mainzdb/mainz/shm"

const (
	scanPlaces  = 1 << 24 // entries of a chain, in a cursor
	scanBuckets = 16384   // of the hash table, in one call
)

// Scan calls f for records of a database, from a cursor on, which is 0 at first. It
// ends when f returns false, or after as many records as one turn may take. It returns
// the cursor to go on from, 0 at the end. A record that is there throughout comes once.
// What f is given is valid during the call.
func (k *Keeper) Scan(id uint32, cursor uint64, f func(key []byte, r *Held) bool) (next uint64) {
	db := k.db(id)
	if db == nil {
		return 0
	}
	s := k.s
	n, from := cursor/scanPlaces, cursor%scanPlaces
	for last := n + scanBuckets; n < uint64(len(db.buckets)); n, from = n+1, 0 {
		if n == last {
			return n * scanPlaces
		}
		c, at := s.chainOf(&db.buckets[n]), uint64(0)
		for ; c.bk != nil && at < scanPlaces-entriesPerBucket; c.next() {
			for i := range c.bk.entry {
				if at++; at > from && k.scanEntry(&c.bk.entry[i]) && !f(k.scanKey, &k.scanned) {
					return n*scanPlaces + at
				}
			}
		}
		k.fail(c.err)
	}
	return 0
}

// scanEntry copies the record at an entry; false if this node owns none there.
func (k *Keeper) scanEntry(w *shm.Word64) bool {
	s, a := k.s, k.a
	for range maxLooks {
		e := w.Load()
		if e == 0 {
			return false
		}
		b := s.blockAt(entryRef(e), entryClass(e))
		if b == nil {
			k.fail(errBadBlock)
			return false
		}
		at := spot{entry: w, e: e, b: b, seq: b.seq.Load(), meta: b.meta.Load()}
		klen := metaKeyLen(at.meta)
		fits := at.seq&1 == 0 && klen >= 1 && klen <= maxKey &&
			blockHeaderSize+uint64(klen) <= uint64(classSizes[entryClass(e)])
		if fits {
			k.scanKey = room(k.scanKey[:0], klen)
			s.r.CopyOut(k.scanKey, refOffset(entryRef(e))+blockHeaderSize)
			fits = a.copyRecord(klen, &at)
		}
		rsn, acc := b.rsn.Load(), b.acc.Load()
		shm.LoadBarrier()
		if at.seq&1 != 0 || !at.unchanged() {
			continue
		}
		if !fits {
			k.fail(errBadBlock)
			return false
		}
		k.scanned = Held{rsn, uint32(acc), uint32(acc >> 32), a.look.data, a.look.tags}
		return metaFlags(at.meta)&flagOwn != 0
	}
	k.fail(errOddBlock)
	return false
}
