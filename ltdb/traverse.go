package ltdb

import (
	"context"
	"iter"
	"runtime"
	"slices"

	"github.com/mainzdb/mainz/shm"
)

// Entry is one record of a Traverse. Its slices are valid until the next step.
type Entry struct {
	Key, Data []byte
	RSN       uint64 // updates since the record's life began
}

// Traverse yields the database's records, in no order. It yields each record that
// exists throughout at least once, and only once if nobody deletes it and stores it
// anew meanwhile. It holds no lock while the loop's body runs, which may change the
// database. An error ends the loop.
func (db *DB) Traverse(ctx context.Context) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		if ctx == nil {
			yield(Entry{}, errNoContext)
			return
		}
		t := traversal{db: db, c: db.s.chainOf(&db.buckets[0])}
		for {
			ok, err := t.next(ctx)
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if !ok || !yield(t.e, nil) {
				return
			}
		}
	}
}

// traversal is a place in a database: between two steps nothing is held, and
// the store may be closed.
type traversal struct {
	db *DB
	n  int   // bucket of the table
	c  chain // at that one, or one of its chain
	i  int   // entry of it that is next
	e  Entry
}

// next goes to the next record; ok is false at the end.
func (t *traversal) next(ctx context.Context) (ok bool, err error) {
	s := t.db.s
	if err := s.enter(); err != nil {
		return false, err
	}
	defer s.exit()
	for {
		for t.i < entriesPerBucket {
			t.i++
			if ok, err := t.db.readEntry(ctx, &t.c.bk.entry[t.i-1], &t.e); ok || err != nil {
				return ok, err
			}
		}
		t.i = 0
		if t.c.next(); t.c.bk != nil {
			continue
		}
		if t.c.err != nil {
			return false, t.c.err
		}
		if t.n++; t.n == len(t.db.buckets) {
			return false, nil
		}
		if t.n%1024 == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		t.c = s.chainOf(&t.db.buckets[t.n])
	}
}

// readEntry copies the record at an entry, as read does, without knowing its
// key. ok is false if there is none.
func (db *DB) readEntry(ctx context.Context, w *shm.Word64, out *Entry) (ok bool, err error) {
	s := db.s
	var spin shm.Spin
	odd := 0
	for {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		e := w.Load()
		if e == 0 {
			return false, nil
		}
		g := s.gate.Gate.Load()
		if g&3 != shm.GateOpen {
			if err := s.openGate(ctx); err != nil {
				return false, err
			}
			continue
		}
		c := entryClass(e)
		b := s.blockAt(entryRef(e), c)
		if b == nil {
			return false, errBadBlock
		}
		at := spot{entry: w, e: e, b: b, seq: b.seq.Load()}
		at.meta = b.meta.Load()
		klen, n := metaKeyLen(at.meta), int(uint32(b.size.Load()))
		fits := klen >= 1 && klen <= maxKey && n <= s.maxValue && blockSize(klen, n) <= uint64(classSizes[c])
		if fits {
			out.Key = slices.Grow(out.Key[:0], klen)[:klen]
			out.Data = slices.Grow(out.Data[:0], n)[:n]
			s.r.CopyOut(out.Key, refOffset(entryRef(e))+blockHeaderSize)
			s.r.CopyOut(out.Data, refOffset(entryRef(e))+dataOffset(klen))
			out.RSN = b.rsn.Load()
		}
		shm.LoadBarrier()
		if at.seq&1 != 0 && at.unchanged() {
			if odd++; odd == maxLooks {
				return false, errOddBlock
			}
		}
		if at.seq&1 != 0 || !at.unchanged() || s.gate.Gate.Load() != g {
			// Others are at it: a large record that is stored all the time needs
			// a gap as long as its copy.
			if !spin.Again() {
				runtime.Gosched()
			}
			continue
		}
		if !s.leaseRuns() {
			return false, ErrLeaseLost
		}
		if !fits {
			return false, errBadBlock
		}
		f := metaFlags(at.meta)
		return f&flagEmpty == 0 && f&flagOwn != 0, nil
	}
}
