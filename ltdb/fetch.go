package ltdb

import (
	"context"
	"errors"
	"math/bits"
	"slices"

	"github.com/mainzdb/mainz/shm"
)

// Looks at a record before a reader gives up validating and takes the lock:
// a large record that is written all the time may never hold still.
const readLooks = 8

// read appends the record's value to dst without a store to shared memory.
// done is false if the gate was not open or others kept changing the record.
//
// The order matters: gate, entry, seq, key and data, then all of them again
// the other way round. What was copied counts only if nothing has changed in
// between, the record is ours and the lease still ran afterwards.
func (db *DB) read(dst, key []byte, hash uint64) (out []byte, found, done bool, err error) {
	s := db.s
	g := s.gate.Gate.Load()
	if g&3 != shm.GateOpen {
		return dst, false, false, nil
	}
	var at spot
	for range readLooks {
		ok, err := db.find(hash, key, &at)
		if err != nil {
			return dst, false, true, err
		}
		if !ok {
			if s.gate.Gate.Load() != g || !s.leaseRuns() {
				return dst, false, false, nil
			}
			return dst, false, true, nil
		}
		size := at.b.size.Load()
		n := int(uint32(size))
		from := dataOffset(len(key))
		c := entryClass(at.e)
		if n > s.maxValue || from+uint64(n) > uint64(classSizes[c]) {
			// Torn, or damaged: the second look tells.
			if at.unchanged() {
				return dst, false, true, errBadBlock
			}
			continue
		}
		out := slices.Grow(dst, n)[:len(dst)+n]
		s.r.CopyOut(out[len(dst):], refOffset(entryRef(at.e))+from)
		shm.LoadBarrier()
		if !at.unchanged() && !planted("seqlock") {
			continue
		}
		if s.gate.Gate.Load() != g || !s.leaseRuns() {
			return dst, false, false, nil
		}
		switch f := metaFlags(at.meta); {
		case f&flagOwn == 0:
			return dst, false, true, ErrNotHere
		case f&flagEmpty != 0:
			return dst, false, true, nil
		}
		return out, true, true, nil
	}
	return dst, false, false, nil
}

// quickGo is read for the usual case, in one go: the first entry with the tag
// has the key, nobody changes the record, dst has room. If anything else is
// the case it says no and read finds out. It calls nothing and looks at each
// word as few times as it can: fewer instructions let the CPU begin the next
// read, and its cache misses, before this one has ended. quick_amd64.s does the
// same with fewer still.
func (db *DB) quickGo(dst, key []byte, hash uint64) ([]byte, bool) {
	tag := tagOf(hash)
	g := db.gate.Load()
	bk := &db.buckets[hash&db.mask]
	// match, in place.
	m := has(bk.entry[0].Load(), tag) |
		has(bk.entry[1].Load(), tag)<<1 |
		has(bk.entry[2].Load(), tag)<<2 |
		has(bk.entry[3].Load(), tag)<<3 |
		has(bk.entry[4].Load(), tag)<<4 |
		has(bk.entry[5].Load(), tag)<<5 |
		1<<6
	w := &bk.entry[bits.TrailingZeros32(m)]
	e := w.Load()
	c := entryClass(e)
	size := uint64(classSizes[c])
	off := refOffset(entryRef(e))
	if off-db.start > db.size-size { // in front of the data area too: then the difference is huge
		return dst, false
	}
	b := shm.Unchecked[block](db.r, off)
	seq := b.seq.Load()
	const telling = 0xffffff | (flagOwn|flagEmpty)<<24
	if b.meta.Load()&telling != shapeOf(len(key), c)|flagOwn<<24 {
		return dst, false
	}
	n := uint64(uint32(b.size.Load()))
	from := dataOffset(len(key))
	if from+n > size || n > uint64(cap(dst)-len(dst)) || !db.r.EqualUnchecked(off+blockHeaderSize, key) {
		return dst, false
	}
	out := dst[:uint64(len(dst))+n]
	db.r.CopyOutUnchecked(out[len(dst):], off+from)
	shm.LoadBarrier()
	if planted("seqlock") {
		return out, true
	}
	if seq&1 != 0 || (w.Load()^e)&identity != 0 || b.seq.Load() != seq ||
		g&3 != shm.GateOpen || db.gate.Load() != g || db.lease.Load() != shm.NoLease {
		return dst, false
	}
	return out, true
}

// unchanged is the second look.
func (at *spot) unchanged() bool {
	return at.entry.Load()&identity == at.e&identity && at.b.seq.Load() == at.seq
}

// leaseRuns reports whether this node may still speak for its records. With
// no other node there is no lease, and no clock is read.
func (s *Store) leaseRuns() bool {
	t := s.leas.Ticks.Load()
	return t == shm.NoLease || before(t)
}

//go:noinline
func before(t uint64) bool { return shm.Ticks() < t }

func checkKey(key []byte) error {
	if uint(len(key)-1) >= maxKey {
		return errBadKey
	}
	return nil
}

// fetch appends the record's value to dst. own is the caller's actor, nil if
// it has none.
func (db *DB) fetch(ctx context.Context, own *actor, dst, key []byte, hash uint64) ([]byte, error) {
	if out, ok := db.quick(dst, key, hash); ok {
		return out, nil
	}
	return db.fetchMiss(ctx, own, dst, key, hash)
}

// fetchMiss goes on where quick said no.
func (db *DB) fetchMiss(ctx context.Context, own *actor, dst, key []byte, hash uint64) ([]byte, error) {
	out, found, done, err := db.read(dst, key, hash)
	if found {
		return out, nil
	}
	if err != nil {
		return dst, err
	}
	if done {
		return dst, ErrNotFound
	}
	return db.fetchSlow(ctx, own, dst, key, hash)
}

// fetchSlow waits for the gate, or copies the value under the record's lock.
func (db *DB) fetchSlow(ctx context.Context, own *actor, dst, key []byte, hash uint64) ([]byte, error) {
	s := db.s
	if ctx == nil {
		return dst, errNoContext
	}
	if err := s.enter(); err != nil {
		return dst, err
	}
	defer s.exit()
	if own != nil && own.of != nil { // what follows may need more of the actor than its counters
		if err := own.of.enter(); err != nil {
			return dst, err
		}
		defer own.of.leave()
	}
	for {
		if own != nil {
			own.h.counters[countRetries].Inc()
		}
		switch {
		case s.leaseRuns():
			if err := s.openGate(ctx); err != nil {
				return dst, err
			}
		case s.gate.Gate.Load()&3 == shm.GateDead: // the truer reason
			return dst, s.seg.Why()
		default:
			return dst, ErrLeaseLost
		}
		out, found, done, err := db.read(dst, key, hash)
		if err != nil {
			return dst, err
		}
		if found {
			return out, nil
		}
		if done {
			return dst, ErrNotFound
		}
		if s.gate.Gate.Load()&3 != shm.GateOpen {
			continue
		}
		if s.c == nil { // an observer takes no lock: it looks again
			if ctx.Err() != nil {
				return dst, ctx.Err()
			}
			continue
		}
		ok, err := db.contended(ctx, own, key, hash, func(_ *actor, at *spot, l *lock) error {
			defer s.locks.put(l)
			var err error
			dst, found, err = s.copyLocked(dst, len(key), at)
			return errors.Join(err, s.unlock(at, l.cell))
		})
		if err == nil && !(ok && found) {
			err = ErrNotFound
		}
		return dst, err
	}
}

// copyLocked appends the value of a locked record. Nothing can change it, but
// nobody has checked it yet either.
func (s *Store) copyLocked(dst []byte, klen int, at *spot) (out []byte, found bool, err error) {
	c := entryClass(at.e)
	n := int(uint32(at.b.size.Load()))
	from := dataOffset(klen)
	if (n > s.maxValue || from+uint64(n) > uint64(classSizes[c])) && !planted("believed") {
		return dst, false, errBadBlock
	}
	if metaFlags(at.meta)&flagEmpty != 0 {
		return dst, false, nil
	}
	out = slices.Grow(dst, n)[:len(dst)+n]
	// find has seen that the block is in the region
	s.r.CopyOutUnchecked(out[len(dst):], refOffset(entryRef(at.e))+from)
	return out, true, nil
}

// Batch is reusable room for FetchBatch: the caller sets Keys, FetchBatch the
// rest, anew each time. Value[i] is valid until the next use of the Batch; its
// capacity is clipped. Where Err[i] is set, Value[i] is nil.
type Batch struct {
	Keys  [][]byte
	Value [][]byte
	Err   []error // ErrNotFound, ErrTooBig of the key, or what a Fetch returns
	buf   []byte
}

// Keys whose cache misses overlap. The CPU has room for 10 to 20 at a time.
const batchAhead = 8

func (db *DB) fetchBatch(ctx context.Context, own *actor, b *Batch) (found int) {
	n := len(b.Keys)
	b.Value = slices.Grow(b.Value[:0], n)[:n]
	b.Err = slices.Grow(b.Err[:0], n)[:n]
	b.buf = b.buf[:0]
	var hash [batchAhead]uint64
	for first := 0; first < n; first += batchAhead {
		keys := b.Keys[first:min(first+batchAhead, n)]
		for i, key := range keys {
			hash[i] = db.hash(key)
			shm.PrefetchOf(&db.buckets[hash[i]&db.mask])
		}
		for i := range keys {
			db.prefetch(hash[i])
		}
		for i, key := range keys {
			at := len(b.buf)
			out, err := b.buf, error(errBadKey)
			if checkKey(key) == nil {
				out, err = db.fetch(ctx, own, b.buf, key, hash[i])
			}
			b.Value[first+i] = nil
			if err == nil {
				found++
				b.buf = out
				b.Value[first+i] = out[at:len(out):len(out)]
			}
			b.Err[first+i] = err
		}
	}
	return found
}

// prefetch asks for the two lines of the block that the key most likely has.
func (db *DB) prefetch(hash uint64) {
	tag := tagOf(hash)
	bk := &db.buckets[hash&db.mask]
	if m := bk.match(tag); m != 0 {
		off := refOffset(entryRef(bk.entry[bits.TrailingZeros32(m)%entriesPerBucket].Load()))
		db.s.r.PrefetchAt(off)
		db.s.r.PrefetchAt(off + 64)
	}
}
