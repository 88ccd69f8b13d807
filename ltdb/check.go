package ltdb

import (
	"context"
	"fmt"

	"github.com/mainzdb/mainz/shm"
)

// Report is what Check found.
type Report struct {
	Errors     []string `json:"errors"`     // broken invariants, the first of many; none: the store is sound
	Broken     int      `json:"broken"`     // how many there were in all
	Records    int      `json:"records"`    // with a value
	Empty      int      `json:"empty"`      // without one: locked for the first time, or left so by a dead client
	Locked     int      `json:"locked"`     // record locks that living clients hold
	Blocks     int      `json:"blocks"`     // carved
	Free       int      `json:"free"`       // on the free lists
	AtHand     int      `json:"at_hand"`    // in magazines
	Chains     int      `json:"chains"`     // overflow buckets
	Histograms int      `json:"histograms"` // blocks of statistics
	Pieces     int      `json:"pieces"`     // in the indexes of the living
	Orphans    int      `json:"orphans"`    // in those of the dead
	Pages      int      `json:"pages"`      // of all indexes
	Spare      int      `json:"spare"`      // 1: the block that nobody gets
	Spans      int      `json:"spans"`      // taken, of SpansAll
	SpansAll   int      `json:"spans_all"`
	// Of CheckLive: what could not be settled, as it kept changing or as its client is
	// in the midst of a call. That is no error.
	Moving   []string `json:"moving,omitempty"` // the first of many
	InMotion int      `json:"in_motion"`        // how many there were in all
	Passes   int      `json:"passes"`           // over the whole store
}

// OK reports whether nothing was broken.
func (r *Report) OK() bool { return r.Broken == 0 }

const maxErrors = 50

// Check walks every invariant of the store:
//
//   - a carved block is in exactly one place: an entry, a chain, a free list,
//     a magazine, or the histograms of a client;
//   - an entry names a block of its span's class, which is finished, fits, and
//     has the tag, the hash and the bucket of its key; a key is in its chain once;
//   - a latch is free; a record's lock is free, or its owner is attached and
//     has a cell for it;
//   - a slot that is nobody's holds nothing, and no journal is armed;
//   - a piece of a client of this node is in an index, and a live piece is in
//     its record, unless the record was lost.
//
// It takes no lock, so it speaks the truth only while nobody changes the
// store: records that are locked may stay so, but no call may be under way.
// CheckLive is for a store in use.
func (s *Store) Check(ctx context.Context) (*Report, error) {
	if ctx == nil {
		return nil, errNoContext
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.exit()
	k := newChecker(s)
	if err := k.pass(ctx); err != nil {
		return nil, err
	}
	k.r.Passes = 1
	return k.r, nil
}

func newChecker(s *Store) *checker {
	return &checker{s: s, r: &Report{SpansAll: len(s.spans)}, seen: map[uint32]string{}, tags: map[OPID]string{},
		words: map[OPID]string{}}
}

// pass looks at everything once.
func (k *checker) pass(ctx context.Context) error {
	k.hands()
	k.spans()
	k.classes()
	for i := range k.s.dbs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if k.s.dbs[i].ready.Load() != 0 {
			k.database(i)
		}
	}
	k.slots()
	k.orphans()
	k.pieces()
	k.hands()
	k.leaks()
	return ctx.Err()
}

type checker struct {
	s    *Store
	r    *Report
	seen map[uint32]string // block: where it is
	// Pieces of this node's clients: the record that has one, and the words of
	// the indexes that say so.
	tags, words map[OPID]string
	// Of CheckLive alone, nil else.
	live *livePass
}

// bad notes a broken invariant.
func (k *checker) bad(format string, args ...any) { k.doubt(0, evidence{}, format, args...) }

// doubt is bad where the words ev say whether it is the same the next time, and a call
// that is under way, by, would explain it (0: there is none).
func (k *checker) doubt(by motion, ev evidence, format string, args ...any) {
	if k.live != nil {
		k.live.doubt(by, ev, fmt.Sprintf(format, args...))
		return
	}
	k.r.Broken++
	if len(k.r.Errors) < maxErrors {
		k.r.Errors = append(k.r.Errors, fmt.Sprintf(format, args...))
	}
}

// visit notes that the block at ref is at a place, and returns it if it is a
// block of class c at all.
func (k *checker) visit(ref uint32, c int, where string) *block {
	b := k.s.freeBlockAt(ref, c)
	if b == nil {
		k.bad("%s: ref %d is no block of class %d", where, ref, c)
		return nil
	}
	if !k.s.isCarved(ref, c) {
		k.doubt(k.classMotion(c), evidence{}, "%s: block %d was never carved", where, ref)
		return nil
	}
	if other, twice := k.seen[ref]; twice {
		k.doubt(k.blockMotion(ref, c), evidence{b.seq.Load()}, "%s: block %d is in %s as well", where, ref, other)
		return nil
	}
	k.seen[ref] = where
	return b
}

func (k *checker) spans() {
	for i := range k.s.spans {
		w := k.s.spans[i].word.Load()
		if w == 0 {
			continue
		}
		k.r.Spans++
		if w&0xff == bucketSpan {
			if at := w >> 8; at >= uint64(len(k.s.dbs)) || k.s.dbs[at].ready.Load() == 0 {
				k.doubt(k.latchMotion(&k.s.dbHead.latch, tableLatch, 1), evidence{w},
					"span %d belongs to database line %d, which is not ready", i, at)
			} else if l := &k.s.dbs[at]; k.s.spanStart(i)-l.buckets.Load() >= l.count.Load()*bucketSize {
				k.doubt(k.latchMotion(&k.s.dbHead.latch, tableLatch, 1), evidence{w},
					"span %d belongs to database line %d, whose hash table lies elsewhere", i, at)
			}
			continue
		}
		c := spanClass(w)
		if c < 0 || c >= classes || spanCarved(w) > k.s.blocksPerSpan(c) {
			k.bad("span %d: word %#x is no state of a span", i, w)
		} else {
			k.r.Blocks += int(spanCarved(w))
			// A class carves one span to its end before it takes the next.
			if cur := k.s.classes[c].cur.Load(); cur != uint32(i+1) && spanCarved(w) < k.s.blocksPerSpan(c) {
				k.doubt(k.classMotion(c), evidence{w},
					"span %d of class %d has room for %d blocks more, and the class carves another", i, c,
					k.s.blocksPerSpan(c)-spanCarved(w))
			}
		}
		if k.s.spans[i].seqBase.Load()&1 != 0 {
			k.bad("span %d: seq base is odd", i)
		}
	}
}

func (k *checker) classes() {
	for c := range k.s.classes {
		cl := &k.s.classes[c]
		k.latch(&cl.latch, classLatch, uint64(c+1), func() string { return fmt.Sprintf("class %d", c) })
		where := fmt.Sprintf("free list of class %d", c)
		if k.live != nil {
			k.freeList(c, where)
		} else {
			k.r.Free += k.quietList(c, where)
		}
		if cur := int(cl.cur.Load()); cur > len(k.s.spans) || cur > 0 && spanClass(k.s.spans[cur-1].word.Load()) != c {
			k.doubt(k.classMotion(c), evidence{}, "class %d carves span %d, which is another's", c, cur-1)
		}
	}
	if ref, c, b := k.s.spareBlock(); b == nil {
		k.bad("the spare, block %d, is no carved block of class %d", ref, c)
	} else if k.visit(ref, c, "the spare") != nil {
		k.r.Spare++
	}
	sp := &k.s.node.spare
	if by := k.latchMotion(&sp.latch, spareLatch, 1); sp.entry.Load() != 0 && !k.passesBy(func() bool {
		return sp.entry.Load() == 0 || sp.latch.Owner() != 0 && by == 0
	}) {
		k.doubt(by, evidence{uint64(by), sp.entry.Load(), sp.home.Load()}, "a record is on its way through the spare")
	}
	k.latch(&sp.latch, spareLatch, 1, func() string { return "the spare" })
	k.latch(&k.s.dbHead.latch, tableLatch, 1, func() string { return "table of databases" })
}

// quietList walks a free list that nobody changes.
func (k *checker) quietList(c int, where string) (n int) {
	for ref := k.s.classes[c].head.Load(); ref != 0; n++ {
		b := k.visit(ref, c, where)
		if b == nil {
			break
		}
		ref = uint32(b.rsn.Load())
	}
	return n
}

// latch looks whether a latch is free. On a live store it may be held by whoever says
// in his journal that he wants it.
func (k *checker) latch(l *shm.Latch, what latchOf, n uint64, where func() string) {
	o := l.Owner()
	if o == 0 {
		return
	}
	by := motion(0)
	if k.live != nil {
		if by = k.latchMotion(l, what, n); by == 0 {
			if o = k.s.ownerless(l, 0, what, n); o == 0 {
				return
			}
		}
	}
	k.doubt(by, evidence{uint64(by)}, "%s: latch is held by handle %d.%d", where(), o.Slot(), o.Index())
}

func (k *checker) database(i int) {
	db, err := k.s.database(i)
	if err != nil {
		k.bad("%v", err)
		return
	}
	for n := range db.buckets {
		bk := &db.buckets[n]
		where := fmt.Sprintf("%q bucket %d", db.name, n)
		k.latch(&bk.latch, bucketLatch, shm.OffsetOf(k.s.r, bk), func() string { return where })
		keys := map[string]bool{}
		for chain := 0; ; chain++ {
			for j := range bk.entry {
				if e := bk.entry[j].Load(); e != 0 {
					k.steadyRecord(db, uint64(n), &bk.entry[j], e, keys, fmt.Sprintf("%s entry %d.%d", where, chain, j))
				}
			}
			ref := bk.overflow.Load()
			if ref == 0 {
				break
			}
			b := k.visit(ref, 0, where+" overflow")
			if b == nil {
				break
			}
			if metaFlags(b.meta.Load())&flagBucket == 0 {
				k.bad("%s: overflow block %d is no bucket", where, ref)
			}
			k.r.Chains++
			bk = k.s.bucketAt(ref)
		}
	}
}

// steadyRecord is record. On a live store it forgets what it has found if the record
// was changed meanwhile.
func (k *checker) steadyRecord(db *DB, n uint64, w *shm.Word64, e uint64, keys map[string]bool, where string) {
	if k.live == nil {
		k.record(db, n, w, e, keys, where)
		return
	}
	b := k.s.blockAt(entryRef(e), entryClass(e))
	seq := uint64(0)
	if b != nil {
		seq = b.seq.Load()
	}
	k.live.ev = evidence{e & identity, seq}
	found := len(k.live.found)
	k.record(db, n, w, e, keys, where)
	if (w.Load()^e)&identity != 0 || b != nil && b.seq.Load() != seq {
		k.live.found = k.live.found[:found]
	}
	k.live.ev = evidence{}
}

func (k *checker) record(db *DB, n uint64, w *shm.Word64, e uint64, keys map[string]bool, where string) {
	s := k.s
	c := entryClass(e)
	b := k.visit(entryRef(e), c, where)
	if b == nil {
		return
	}
	meta, size := b.meta.Load(), b.size.Load()
	klen, dlen := metaKeyLen(meta), int(uint32(size))
	if b.seq.Load()&1 != 0 {
		k.bad("%s: block %d is not finished", where, entryRef(e))
	}
	if metaClass(meta) != c || metaFlags(meta)&flagBucket != 0 {
		k.bad("%s: block says class %d, flags %#x", where, metaClass(meta), metaFlags(meta))
	}
	if klen < 1 || klen > maxKey || dlen > s.maxValue || blockSize(klen, dlen) > uint64(classSizes[c]) {
		k.bad("%s: key of %d and value of %d bytes in a block of %d", where, klen, dlen, classSizes[c])
		return
	}
	key := make([]byte, klen)
	s.r.CopyOut(key, refOffset(entryRef(e))+blockHeaderSize)
	hash := db.hash(key)
	if hash&db.mask != n || tagOf(hash) != e&tagMask || uint32(size>>32) != uint32(hash) {
		k.bad("%s: key %q does not belong there", where, key)
	}
	if keys[string(key)] {
		k.bad("%s: key %q is there twice", where, key)
	}
	keys[string(key)] = true
	k.recordTags(db, key, entryRef(e), c, meta, dlen, where)
	if metaFlags(meta)&flagEmpty != 0 {
		k.r.Empty++
	} else {
		k.r.Records++
	}
	switch owner := entryOwner(e); {
	case owner == 0:
	case owner == DispatcherSlot:
		if k.r.Locked++; !s.managed() {
			k.bad("%s: locked by the dispatcher, and there never was one", where)
		}
	case owner > s.seg.Slots() || s.seg.Slot(owner).Live.Load() == 0:
		if k.live == nil || w.Load() == e {
			k.bad("%s: locked by slot %d, which is nobody's", where, owner)
		}
	default:
		k.r.Locked++
		has := func() bool { return hasCell(s, owner, shm.OffsetOf(s.r, w)) || w.Load() != e }
		if !has() && !k.passesBy(has) {
			k.bad("%s: locked by slot %d, which has no cell for it", where, owner)
		}
	}
}

// hasCell reports whether a slot has a lock cell for the entry at off, also one that a
// repair has marked.
func hasCell(s *Store, slot uint32, off shm.Offset) bool {
	b := shm.At[body](s.r, s.seg.SlotBody(slot))
	for i := range b.cells {
		if b.cells[i].Load()&^cellGoing == off {
			return true
		}
	}
	return false
}

func (k *checker) slots() {
	for n := range k.s.seg.Slots() + 1 {
		i := n
		if n == 0 {
			i = DispatcherSlot
		}
		slot := k.s.seg.Slot(i)
		free, tenant, found := slot.Live.Load() == 0, slot.Generation.Load(), k.mark()
		b := shm.At[body](k.s.r, k.s.seg.SlotBody(i))
		for n := range b.handles {
			k.handle(fmt.Sprintf("handle %d.%d", i, n), &b.handles[n], free)
		}
		cells := 0
		for n := range b.cells {
			if b.cells[n].Load() != 0 {
				cells++
			}
		}
		if free && cells > 0 {
			k.bad("slot %d is nobody's and has %d lock cells", i, cells)
		}
		if free && (slot.Live.Load() != 0 || slot.Generation.Load() != tenant) {
			k.forget(found) // somebody came meanwhile
		}
		k.histograms(i, b)
		if b.pieces.Load() != 0 && free && (k.live == nil || slot.Live.Load() == 0) {
			k.bad("slot %d is nobody's and has an index of pieces", i)
		}
		k.index(fmt.Sprintf("index of slot %d", i), i, b.pieces.Load(), &k.r.Pieces)
		k.settled()
	}
}

func (k *checker) handle(where string, h *handle, free bool) {
	if h.jNew.Load() != 0 || h.jOld.Load() != 0 || h.bucketIntent.Load() != 0 || h.classIntent.Load() != 0 ||
		h.carveIntent.Load() != 0 || h.reclaimIntent.Load() != 0 || h.tableIntent.Load() != 0 ||
		h.orphanIntent.Load() != 0 || h.spareIntent.Load() != 0 || h.busy.Load() != 0 {
		if k.live == nil || free {
			k.bad("%s: journal is armed", where)
		}
	}
	each(h, func(w *shm.Word32, class int) {
		ref := w.Load()
		if ref == 0 {
			return
		}
		if class < 0 {
			class = k.s.classAt(ref)
		}
		if free {
			// What a held latch kept its last tenant from giving back, the next one gives back.
			k.doubt(nextTenant, evidence{}, "%s: nobody's, and keeps block %d", where, ref)
		}
		if class < 0 {
			k.bad("%s magazine: ref %d lies in no span of blocks", where, ref)
		} else if k.visit(ref, class, where+" magazine") != nil {
			k.r.AtHand++
		}
	})
}

// leaks looks for carved blocks that are nowhere.
func (k *checker) leaks() {
	s := k.s
	for i := range s.spans {
		w := s.spans[i].word.Load()
		c := spanClass(w)
		if c < 0 || c >= classes {
			continue
		}
		for n := range min(spanCarved(w), s.blocksPerSpan(c)) {
			ref := offsetRef(s.spanStart(i) + n*uint64(classSizes[c]))
			if _, ok := k.seen[ref]; ok {
				continue
			}
			if k.live == nil {
				k.bad("block %d of class %d is nowhere", ref, c)
			} else if by := k.classMotion(c); k.live.soft[ref] {
				k.live.lost(unsure, c, s.blockAt(ref, c).seq.Load(), ref)
			} else {
				k.live.lost(by, c, s.blockAt(ref, c).seq.Load(), ref)
			}
		}
	}
}
