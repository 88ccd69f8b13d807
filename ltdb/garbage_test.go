package ltdb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// Bytes that another process wrote are input. Here one process has gone wild:
// words of every kind of block and table are overwritten in a store that was
// sound, and then another client does all that a client can do. Nothing may
// panic or hang, every error is one of the list, and whatever the garbage did
// not touch reads as before.

// seedOf returns the seed of a random test: MAINZ_SEED, or a new one. It is
// printed, so that a failure can be repeated.
func seedOf(t testing.TB) uint64 {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("MAINZ_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 0, 64)
		if err != nil {
			t.Fatalf("MAINZ_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("MAINZ_SEED=%d", seed)
	return seed
}

// within fails with all stacks if f hangs: a wait that nothing would ever end.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	watchdog := time.NewTimer(time.Minute)
	defer watchdog.Stop()
	select {
	case <-done:
	case <-watchdog.C:
		buf := make([]byte, 1<<20)
		t.Fatalf("%s hangs\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

// typed reports whether an error is one that the caller was promised.
func typed(err error) bool {
	for _, kind := range []error{
		nil, ErrNotFound, ErrLocked, ErrCorrupt, ErrFull, ErrNotHere, ErrMode, ErrNoDatabase, ErrNoSpace, ErrNoSlots,
		ErrTooManyLocks, ErrTooBig, context.DeadlineExceeded,
	} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// wild is a store to write garbage into, and what it held.
type wild struct {
	t    testing.TB
	a, b *Store // who looks, and whose slot goes wild
	dbs  []*DB  // a's
	held []Record
	all  []wildRecord
	// targets are the offsets of all words of a kind.
	targets [wildKinds][]shm.Offset
	wrote   map[shm.Offset]uint64 // word: what it was
	notes   []string
	// alias: the garbage says that memory in use is free. Nobody can tell it
	// from the truth without walking the store, so others may be hurt.
	alias bool
}

type wildRecord struct {
	db         *DB
	key, value []byte
	entry      shm.Offset
	e          uint64
	chain      []shm.Offset // buckets up to the entry's
	rest       []shm.Offset // and behind it
}

const (
	wildEntry = iota
	wildBucket
	wildBlock
	wildKey
	wildValue
	wildClass
	wildLink
	wildSpan
	wildTable
	wildJournal
	wildMagazine
	wildCell
	wildHead
	wildOwn
	wildStats
	wildKinds
)

var wildNames = [wildKinds]string{"entry", "bucket head", "block header", "key", "value", "class line",
	"free block's link",
	"span line", "table of databases", "journal", "magazine", "cell", "slot head", "own handle", "statistics ref"}

func wildConfig() Config { return Config{Size: 3 << 20, Slots: 4, MaxValue: 3000, SpanSize: 16 << 10} }

// newWild fills a store: two databases, values of many sizes, long chains,
// free blocks, and a second client with locks and magazines.
func newWild(t testing.TB, open func() (*Store, *Store)) *wild {
	w := &wild{t: t, wrote: map[shm.Offset]uint64{}}
	w.a, w.b = open()
	rnd := rand.New(rand.NewPCG(1, 2)) // always the same store
	for _, name := range []string{"first", "second"} {
		db, err := w.a.Database(bg, name, KV, DatabaseOptions{Records: 10})
		if err != nil {
			t.Fatal(err)
		}
		w.dbs = append(w.dbs, db)
	}
	bdb, err := w.b.Database(bg, "first", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i, crowded := 0, 0; len(w.all) < 150; i++ {
		db := w.dbs[i%2]
		key := fmt.Appendf(nil, "key %d %s", i, strings.Repeat("k", i%40))
		if db.hash(key)&db.mask < 2 {
			crowded++
		} else if len(w.all)-crowded >= 100 {
			continue // the rest goes into the first two buckets, for long chains
		}
		value := make([]byte, 1+rnd.IntN(120))
		if i%9 == 0 {
			value = make([]byte, 1+rnd.IntN(3000))
		}
		for k := range value {
			value[k] = byte(rnd.Uint32())
		}
		if err := db.Store(bg, key, value); err != nil {
			t.Fatal(err)
		}
		w.all = append(w.all, wildRecord{db: db, key: key, value: value})
	}
	// Free blocks of several classes, on lists and in b's magazines.
	for i := range 200 {
		key := fmt.Appendf(nil, "gone %d", i)
		for _, db := range []*DB{bdb, w.dbs[1]} {
			if err := db.Store(bg, key, make([]byte, 1+i*i%1500)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 200 {
		key := fmt.Appendf(nil, "gone %d", i)
		for _, db := range []*DB{bdb, w.dbs[1]} {
			if err := db.Delete(bg, key); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := 0; i < 8; i += 2 {
		r, err := bdb.FetchLocked(bg, w.all[i].key)
		if err != nil {
			t.Fatal(err)
		}
		w.held = append(w.held, r)
	}
	mustCheck(t, w.a)
	w.locate()
	w.collect()
	for kind, list := range w.targets {
		if len(list) == 0 && (kind != wildHead || w.a.r.InHeap()) {
			t.Fatalf("no %s to write garbage into", wildNames[kind])
		}
	}
	return w
}

// locate finds each record's words.
func (w *wild) locate() {
	r := w.a.r
	for i := range w.all {
		rec := &w.all[i]
		var at spot
		if ok, err := rec.db.find(rec.db.hash(rec.key), rec.key, &at); !ok || err != nil {
			w.t.Fatal(ok, err)
		}
		rec.entry, rec.e = shm.OffsetOf(r, at.entry), at.e
		before := true
		for bk := &rec.db.buckets[rec.db.hash(rec.key)&rec.db.mask]; bk != nil; {
			off := shm.OffsetOf(r, bk)
			if before {
				rec.chain = append(rec.chain, off)
			} else {
				rec.rest = append(rec.rest, off)
			}
			before = before && rec.entry&^63 != off
			next := bk.overflow.Load()
			if bk = nil; next != 0 {
				bk = w.a.bucketAt(next)
			}
		}
	}
}

// collect lists the words of each kind.
func (w *wild) collect() {
	s := w.a
	add := func(kind int, off shm.Offset, bytes uint64) {
		for end := off + bytes; off < end; off += 8 {
			w.targets[kind] = append(w.targets[kind], off)
		}
	}
	seen := map[shm.Offset]bool{}
	for _, rec := range w.all {
		for _, off := range append(rec.chain, rec.rest...) {
			if !seen[off] {
				seen[off] = true
				add(wildBucket, off, 8)
				add(wildEntry, off+8, 56)
			}
		}
		block := refOffset(entryRef(rec.e))
		add(wildBlock, block, blockHeaderSize)
		add(wildKey, block+blockHeaderSize, 8)
		add(wildValue, block+dataOffset(len(rec.key)), 8)
	}
	for c := range s.classes {
		cl := &s.classes[c]
		add(wildClass, shm.OffsetOf(s.r, cl), 16)
		for ref := cl.head.Load(); ref != 0; {
			b := s.freeBlockAt(ref, c)
			add(wildLink, refOffset(ref)+8, 8)
			ref = uint32(b.rsn.Load())
		}
	}
	for i := range s.spans {
		if i < 24 || i%8 == 0 {
			add(wildSpan, shm.OffsetOf(s.r, &s.spans[i]), spanLineSize)
		}
	}
	add(wildTable, shm.OffsetOf(s.r, s.dbHead), 8)
	for i := range 3 {
		add(wildTable, shm.OffsetOf(s.r, &s.dbs[i]), 48)
	}
	theirs := shm.At[body](s.r, s.seg.SlotBody(w.b.slot))
	for i := range theirs.handles {
		off := shm.OffsetOf(s.r, &theirs.handles[i])
		add(wildJournal, off, 80) // with the large blocks on their way
		add(wildMagazine, shm.OffsetOf(s.r, &theirs.handles[i].magazine[0][0]), smallClasses*magazineSize*4)
		off = shm.OffsetOf(s.r, &s.body.handles[i])
		add(wildOwn, off, 80)
		add(wildOwn, shm.OffsetOf(s.r, &s.body.handles[i].magazine[0][0]), 3*magazineSize*4)
	}
	add(wildCell, shm.OffsetOf(s.r, &theirs.cells[0]), 40*8)
	add(wildStats, shm.OffsetOf(s.r, &theirs.pieces), 8)
	if s.r.InHeap() {
		// On a ramdisk a slot that is marked dead makes others kill whom it
		// names, which is this process. Package shm tests that.
		add(wildHead, s.seg.SlotBody(w.b.slot)-shm.SlotHeadSize, 16)
	}
}

// garble writes one word. The bytes decide where and what: they may come from
// a random source or from the fuzzer.
func (w *wild) garble(kind int, at uint16, choice byte, v uint64) {
	list := w.targets[kind]
	if len(list) == 0 {
		return
	}
	s := w.a
	off := list[int(at)%len(list)]
	word := shm.At[shm.Word64](s.r, off)
	old := word.Load()
	rec := w.all[v%uint64(len(w.all))]
	switch choice % 12 {
	case 0:
		v = 0
	case 1:
		v = ^uint64(0)
	case 2: // v itself
	case 3, 4:
		v = old ^ 1<<(v%64)
	case 5: // a small number in one of the halves
		v = old&^(0xffffffff<<(v>>32&1*32)) | v&31<<(v>>32&1*32)
	case 6: // another word of any kind
		other := w.targets[v%wildKinds]
		if len(other) > 0 {
			v = shm.At[shm.Word64](s.r, other[(v>>8)%uint64(len(other))]).Load()
		}
	case 7: // a record's block, in one of the halves
		shift := v >> 32 & 1 * 32
		v = old&^(0xffffffff<<shift) | uint64(entryRef(rec.e))<<shift
	case 8:
		v = rec.entry
	case 9: // a latch: a handle of b, of a, or of nobody
		v = old&^0xffffffff | v&0x8000ffff
	case 10:
		v = old&^0xffffffff | uint64([]uint32{w.a.slot, w.b.slot, 0, 3}[v&3])<<4 | v>>8&15
	case 11: // an entry's owner and bits
		v = old&identity | v&lockBits
	}
	if kind == wildHead {
		// A living claimer that never gets on is killed after 10 s: nothing to
		// wait for here.
		if claim := uint32(v >> 32); off == list[0] && claim != w.a.slot && s.seg.Slot(claim) != nil {
			v = v & 0xffffffff
		}
		if claim := uint32(v >> 32); off == list[0] && claim == 1<<16 {
			v = v & 0xffffffff
		}
	}
	if _, again := w.wrote[off]; !again {
		w.wrote[off] = old
	}
	word.Store(v)
	w.notes = append(w.notes, fmt.Sprintf("%s at %d: %#x → %#x", wildNames[kind], off, old, v))
	// What the garbage calls free, or a second record's, while it is in use.
	switch kind {
	case wildSpan:
		w.alias = true
	case wildTable:
		w.alias = w.alias || uint32(old) != uint32(v)
	case wildEntry:
		w.alias = w.alias || s.freeBlockAt(entryRef(v), entryClass(v)) != nil
	case wildBlock, wildKey:
		// The record is there no more, or is another; its block may be freed by
		// a delete. That is its own memory.
	case wildBucket, wildValue, wildCell, wildHead:
	default:
		for _, ref := range []uint32{uint32(v), uint32(v >> 32)} {
			if c := s.classAt(ref); c >= 0 && s.freeBlockAt(ref, c) != nil {
				w.alias = true
			}
		}
	}
}

// touched reports whether garbage lies where a reader of the record looks.
func (w *wild) touched(rec *wildRecord) bool {
	hit := func(off shm.Offset) bool { _, ok := w.wrote[off]; return ok }
	for _, bk := range rec.chain {
		if hit(bk) {
			return true // the way there
		}
		for i := range uint64(entriesPerBucket) {
			off := bk + 8 + 8*i
			if hit(off) && (off == rec.entry || (shm.At[shm.Word64](w.a.r, off).Load()^rec.e)&tagMask == 0) {
				return true // itself, or what looks like it at first
			}
		}
	}
	block := refOffset(entryRef(rec.e))
	for off := block; off < block+blockSize(len(rec.key), len(rec.value)); off += 8 {
		if hit(off) {
			return true
		}
	}
	return false
}

func (w *wild) errorf(format string, args ...any) {
	w.t.Helper()
	w.t.Errorf("%s\nafter %s", fmt.Sprintf(format, args...), strings.Join(w.notes, "\n      "))
}

func (w *wild) expect(err error, what string, args ...any) {
	w.t.Helper()
	if !typed(err) {
		w.errorf("%s: %v", fmt.Sprintf(what, args...), err)
	}
}

// readAll fetches every record in each way. Those that the garbage did not
// touch must be right if strict.
func (w *wild) readAll(ctx context.Context, strict bool, when string) {
	w.t.Helper()
	for i := range w.all {
		rec := &w.all[i]
		v, err := rec.db.Fetch(ctx, rec.key)
		w.expect(err, "%s: fetch %q", when, rec.key)
		if strict && !w.touched(rec) && (err != nil || !bytes.Equal(v, rec.value)) {
			w.errorf("%s: record %q of %s, which was not touched: %d bytes of %d, %v", when, rec.key, rec.db.name,
				len(v), len(rec.value), err)
		}
	}
	for _, db := range w.dbs {
		var b Batch
		for i := range w.all {
			b.Keys = append(b.Keys, w.all[i].key)
		}
		if _, err := db.FetchBatch(ctx, &b); err != nil {
			w.expect(err, "%s: batch", when)
		}
		for _, err := range b.Err {
			w.expect(err, "%s: batch", when)
		}
		for _, err := range db.Traverse(ctx) {
			w.expect(err, "%s: traverse", when)
		}
		_, err := db.Usage(ctx)
		w.expect(err, "%s: usage", when)
	}
}

func (w *wild) check(s *Store) *Report {
	w.t.Helper()
	r, err := s.Check(bg)
	if err != nil {
		w.errorf("check: %v", err)
		return &Report{}
	}
	if (r.Broken > 0) != (len(r.Errors) > 0) {
		w.errorf("check: %d broken, %d named", r.Broken, len(r.Errors))
	}
	return r
}

// use does what clients do, on records in the garbage's way and on new ones.
func (w *wild) use(ctx context.Context, s *Store, dbs []*DB) {
	big := bytes.Repeat([]byte("b"), 2500)
	change := func(db *DB, key []byte, i int) {
		switch i % 6 {
		case 0:
			w.expect(db.Store(ctx, key, big[:100+i]), "store %q", key)
		case 1:
			w.expect(db.Append(ctx, key, big[:i%50]), "append %q", key)
		case 2:
			w.expect(db.Delete(ctx, key), "delete %q", key)
		case 3:
			r, err := db.FetchLocked(ctx, key)
			w.expect(err, "lock %q", key)
			if err == nil {
				r.Header()
				r.OwnerDied()
				w.expect(r.Store(big[:i]), "record's store %q", key)
				w.expect(r.StoreUnlock(r.Data()), "store and unlock %q", key)
			}
		case 4:
			r, err := db.TryFetchLocked(ctx, key)
			w.expect(err, "try %q", key)
			if err == nil {
				w.expect(r.Unlock(), "unlock %q", key)
			}
		case 5:
			h, err := db.Handle()
			if err != nil {
				w.expect(err, "handle")
				return
			}
			w.expect(h.Store(ctx, key, big), "handle's store %q", key)
			_, err = h.Fetch(ctx, key)
			w.expect(err, "handle's fetch %q", key)
			w.expect(h.Delete(ctx, key), "handle's delete %q", key)
			w.expect(h.Close(), "handle's close")
		}
	}
	n := 0
	for i := range w.all {
		if rec := &w.all[i]; w.touched(rec) {
			for _, db := range dbs {
				if db.name == rec.db.name {
					change(db, rec.key, n)
					n++
				}
			}
		}
	}
	for i := range 60 {
		if len(dbs) > 0 {
			change(dbs[i%len(dbs)], fmt.Appendf(nil, "gone %d", i/6), i)
		}
	}
	_, err := s.Database(ctx, "third", KV, DatabaseOptions{Records: 10})
	w.expect(err, "create")
	_, err = s.Databases()
	w.expect(err, "databases")
	s.Clients()
	s.Stats()
	s.Latencies()
}

// garbageCase runs one case: flags, then 12 bytes for each word.
func garbageCase(w *wild, data []byte) {
	flags := byte(0)
	if len(data) > 0 {
		flags, data = data[0], data[1:]
	}
	for n := 0; len(data) >= 12 && n < 8; n, data = n+1, data[12:] {
		w.garble(int(data[0])%wildKinds, binary.LittleEndian.Uint16(data[1:]), data[3],
			binary.LittleEndian.Uint64(data[4:]))
	}
	ctx, stop := context.WithTimeout(bg, 30*time.Millisecond)
	defer stop()
	w.check(w.a)
	w.readAll(ctx, true, "before any change")
	died := flags&1 != 0 && w.a.r.InHeap()
	if died {
		w.b.c.SimulateDeath()
		_, err := w.a.Recover(ctx)
		w.expect(err, "recover")
		w.readAll(ctx, !w.alias, "after the repair")
	}
	w.use(ctx, w.a, w.dbs)
	w.readAll(ctx, !w.alias, "after changes")
	if w.a.r.InHeap() {
		d, err := w.a.Join(ctx, "late")
		w.expect(err, "join")
		if err == nil {
			var dbs []*DB
			for _, name := range []string{"first", "second"} {
				db, err := d.Database(ctx, name, KV, DatabaseOptions{MustExist: true})
				w.expect(err, "open %s", name)
				if err == nil {
					dbs = append(dbs, db)
				}
			}
			w.use(ctx, d, dbs)
			w.expect(d.Close(), "close of who came late")
		}
	}
	if !died {
		for _, r := range w.held {
			w.expect(r.StoreUnlock(r.Data()), "unlock of the other client")
		}
		w.expect(w.b.Close(), "close of the other client")
	}
	w.readAll(ctx, !w.alias, "at the end")
	w.check(w.a)
	w.expect(w.a.Close(), "close")
}

func heapPair(t testing.TB) func() (*Store, *Store) {
	return func() (*Store, *Store) {
		a, err := OpenHeap(wildConfig())
		if err != nil {
			t.Fatal(err)
		}
		b, err := a.Join(bg, "wild")
		if err != nil {
			t.Fatal(err)
		}
		return a, b
	}
}

// runGarbage runs a case under the watchdog, and turns a panic into a failure
// that names the garbage.
func runGarbage(t testing.TB, open func() (*Store, *Store), data []byte) {
	w := newWild(t, open)
	within(t, fmt.Sprintf("%x", data), func() {
		defer func() {
			if p := recover(); p != nil {
				buf := make([]byte, 1<<16)
				w.errorf("panic: %v\n%s", p, buf[:runtime.Stack(buf, false)])
			}
		}()
		garbageCase(w, data)
	})
	if t.Failed() {
		t.Fatalf("the case is %x", data)
	}
}

func randomCase(rnd *rand.Rand, kind int) []byte {
	data := []byte{byte(rnd.Uint32())}
	for range 1 + rnd.IntN(4) {
		k := kind
		if rnd.IntN(3) == 0 {
			k = rnd.IntN(wildKinds)
		}
		data = append(data, byte(k))
		data = binary.LittleEndian.AppendUint16(data, uint16(rnd.Uint32()))
		data = append(data, byte(rnd.Uint32()))
		data = binary.LittleEndian.AppendUint64(data, rnd.Uint64())
	}
	return data
}

// TestGarbage writes garbage of every kind into a store in the heap.
func TestGarbage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seedOf(t), 0))
	rounds := 16
	if testing.Short() {
		rounds = 4
	}
	if v := os.Getenv("MAINZ_ROUNDS"); v != "" {
		rounds, _ = strconv.Atoi(v)
	}
	for kind, name := range wildNames {
		cases := make([][]byte, rounds)
		for i := range cases {
			cases[i] = randomCase(rnd, kind)
		}
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			for _, data := range cases {
				runGarbage(t, heapPair(t), data)
			}
		})
	}
}

// TestGarbageShared does it in a mapped segment, where a wild access would be
// a fault.
func TestGarbageShared(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seedOf(t), 1))
	dir := ramdisk(t)
	for i := range 2 * wildKinds {
		runGarbage(t, func() (*Store, *Store) {
			opts := Options{Wipe: true, Config: wildConfig()}
			a, err := Open(bg, dir, opts)
			if err != nil {
				t.Fatal(err)
			}
			b, err := Open(bg, dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			return a, b
		}, randomCase(rnd, i%wildKinds))
	}
}

// damaged is a store with one record in the garbage's way.
type damaged struct {
	*wild
	db  *DB
	rec *wildRecord // free, alone in its bucket
	bk  *bucket
	w   *shm.Word64 // its entry
	b   *block
}

func (w *damaged) setLatch(l *shm.Latch, v uint32) {
	shm.At[shm.Word32](w.a.r, shm.OffsetOf(w.a.r, l)).Store(v)
}

func (w *damaged) eachClass(f func(*classLine)) {
	for c := range w.a.classes {
		f(&w.a.classes[c])
	}
}

// key returns the nth key that belongs into the record's bucket.
func (w *damaged) key(n int) []byte {
	for i := 0; ; i++ {
		key := fmt.Appendf(nil, "other %d", i)
		if (w.db.hash(key)^w.db.hash(w.rec.key))&w.db.mask == 0 {
			if n--; n < 0 {
				return key
			}
		}
	}
}

// absent returns a key of the bucket that nobody stores.
func (w *damaged) absent() []byte { return w.key(20) }

// byHandles stores and deletes a record through each handle there is.
func (w *damaged) byHandles() error {
	var all error
	var handles []*Handle
	for range shm.HandlesPerSlot - pooled {
		h, err := w.db.Handle()
		if err != nil {
			return err
		}
		handles = append(handles, h)
		if err := h.Store(bg, w.absent(), []byte("x")); err != nil {
			all = errors.Join(all, err)
		} else {
			all = errors.Join(all, h.Delete(bg, w.absent()))
		}
	}
	for _, h := range handles {
		all = errors.Join(all, h.Close())
	}
	return all
}

// fillBucket stores ten more records into the record's bucket.
func (w *damaged) fillBucket() error {
	for i := range 10 {
		if err := w.db.Store(bg, w.key(i), []byte("x")); err != nil {
			return err
		}
	}
	return nil
}

// TestDamage has one case for each weak point that is known: what a call
// without a deadline returns there, and that Check names it.
func TestDamage(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(w *damaged)
		use    func(w *damaged) error
		want   error  // of use
		check  string // in the report
		noted  string // in Damage: it was put right
	}{
		"entry outside of the segment": {
			damage: func(w *damaged) { w.w.Store(w.w.Load() | 0xffffffff) },
			use:    func(w *damaged) error { _, err := w.db.Fetch(bg, w.rec.key); return err },
			want:   ErrCorrupt, check: "is no block",
		},
		"entry in front of the data": {
			damage: func(w *damaged) { w.w.Store(w.w.Load()&^0xffffffff | 1) },
			use:    func(w *damaged) error { return w.db.Store(bg, w.rec.key, []byte("x")) },
			want:   ErrCorrupt, check: "is no block",
		},
		"entry of another class": {
			damage: func(w *damaged) { w.w.Store(w.w.Load() ^ 1<<classShift) },
			use:    func(w *damaged) error { return w.db.Delete(bg, w.rec.key) },
			want:   ErrCorrupt, check: "is no block of class",
		},
		"odd seq for ever": {
			damage: func(w *damaged) { w.b.seq.Store(w.b.seq.Load() | 1) },
			use:    func(w *damaged) error { _, err := w.db.FetchLocked(bg, w.rec.key); return err },
			want:   ErrCorrupt, check: "is not finished",
		},
		"odd seq, traversed": {
			damage: func(w *damaged) { w.b.seq.Store(w.b.seq.Load() | 1) },
			use:    func(w *damaged) error { return traverseErr(w.db) },
			want:   ErrCorrupt, check: "is not finished",
		},
		"value longer than the block": {
			damage: func(w *damaged) { w.b.size.Store(w.b.size.Load() | 0xfff) },
			use:    func(w *damaged) error { _, err := w.db.FetchLocked(bg, w.rec.key); return err },
			want:   ErrCorrupt, check: "bytes in a block of",
		},
		"value of 4 GiB": {
			damage: func(w *damaged) { w.b.size.Store(w.b.size.Load() | 0xffffffff) },
			use:    func(w *damaged) error { _, err := w.db.Fetch(bg, w.rec.key); return err },
			want:   ErrCorrupt, check: "bytes in a block of",
		},
		"a store mends a value's length": {
			damage: func(w *damaged) { w.b.size.Store(w.b.size.Load() | 0xffffffff) },
			use:    func(w *damaged) error { return w.db.Store(bg, w.rec.key, w.rec.value) },
		},
		"key longer than the class": {
			damage: func(w *damaged) { w.b.meta.Store(w.b.meta.Load() | 0xffff) },
			use:    func(w *damaged) error { return traverseErr(w.db) },
			want:   ErrCorrupt, check: "key of 65535",
		},
		"key of another record": {
			damage: func(w *damaged) { w.a.r.CopyIn(shm.OffsetOf(w.a.r, w.b)+blockHeaderSize, []byte("?")) },
			use:    func(w *damaged) error { _, err := w.db.Fetch(bg, w.rec.key); return err },
			want:   ErrNotFound, check: "does not belong there",
		},
		"the record twice": {
			damage: func(w *damaged) { w.bk.entry[6].Store(w.w.Load()) },
			use:    func(w *damaged) error { _, err := w.db.Fetch(bg, w.rec.key); return err },
			check:  "as well",
		},
		"owner is a slot that does not exist": {
			damage: func(w *damaged) { w.w.Store(w.w.Load() | ownedBy(4000)) },
			use:    func(w *damaged) error { return w.db.Store(bg, w.rec.key, []byte("x")) },
			want:   ErrCorrupt, check: "which is nobody's",
		},
		"owner is a free slot": {
			damage: func(w *damaged) { w.w.Store(w.w.Load() | ownedBy(4)) },
			use:    func(w *damaged) error { return w.db.Delete(bg, w.rec.key) },
			want:   ErrCorrupt, check: "which is nobody's",
		},
		"owner is a client that has no cell": {
			damage: func(w *damaged) { w.w.Store(w.w.Load() | ownedBy(w.wild.b.slot)) },
			use:    func(w *damaged) error { _, err := w.db.FetchLocked(bg, w.rec.key); return err },
			want:   ErrCorrupt, check: "no cell",
		},
		"owner is the client itself": {
			damage: func(w *damaged) { w.w.Store(w.w.Load() | w.a.me) },
			use:    func(w *damaged) error { return w.db.Append(bg, w.rec.key, []byte("x")) },
			want:   ErrCorrupt, check: "no cell",
		},
		"owner is a dispatcher, and there is none": {
			damage: func(w *damaged) { w.w.Store(w.w.Load() | ownedBy(DispatcherSlot)) },
			use:    func(w *damaged) error { return w.db.Store(bg, w.rec.key, []byte("x")) },
			want:   ErrCorrupt, check: "dispatcher",
		},
		"waiters' bits, and nobody waits": {
			damage: func(w *damaged) { w.w.Store(w.w.Load() | bitW | bitS | bitD) },
			use:    func(w *damaged) error { return w.db.Store(bg, w.rec.key, w.rec.value) },
		},
		"overflow outside": {
			damage: func(w *damaged) { w.bk.overflow.Store(0xfffffff0) },
			use:    func(w *damaged) error { _, err := w.db.Fetch(bg, w.absent()); return err },
			want:   ErrCorrupt, check: "overflow",
		},
		"overflow is a record": {
			damage: func(w *damaged) { w.bk.overflow.Store(entryRef(w.all[99].e)) },
			use:    func(w *damaged) error { return w.fillBucket() },
			want:   ErrCorrupt, check: "overflow",
		},
		"overflow is a record of zeros": {
			damage: func(w *damaged) {
				zeros := []byte("zeros")
				if err := w.db.Store(bg, zeros, make([]byte, 60)); err != nil {
					t.Error(err)
				}
				var at spot
				if ok, err := w.db.find(w.db.hash(zeros), zeros, &at); !ok || err != nil {
					t.Error(ok, err)
				}
				w.bk.overflow.Store(entryRef(at.e))
			},
			use: func(w *damaged) error {
				err := w.fillBucket()
				if v, e := w.db.Fetch(bg, []byte("zeros")); e != nil || !bytes.Equal(v, make([]byte, 60)) {
					t.Errorf("an entry was put into a value: %x %v", v, e)
				}
				return err
			},
			want: ErrCorrupt, check: "overflow",
		},
		"cyclic chain": {
			damage: func(w *damaged) {
				if err := w.fillBucket(); err != nil {
					t.Error(err)
				}
				w.a.bucketAt(w.bk.overflow.Load()).overflow.Store(w.bk.overflow.Load())
			},
			use:  func(w *damaged) error { _, err := w.db.Fetch(bg, w.absent()); return err },
			want: ErrCorrupt, check: "as well",
		},
		"cyclic chain, inserted into": {
			damage: func(w *damaged) {
				if err := w.fillBucket(); err != nil {
					t.Error(err)
				}
				w.a.bucketAt(w.bk.overflow.Load()).overflow.Store(w.bk.overflow.Load())
			},
			use:  func(w *damaged) error { return w.db.Store(bg, w.absent(), []byte("x")) },
			want: ErrCorrupt, check: "as well",
		},
		"bucket latch of nobody": {
			damage: func(w *damaged) { w.setLatch(&w.bk.latch, 3) },
			use:    func(w *damaged) error { return w.db.Store(bg, w.absent(), []byte("x")) },
			check:  "latch is held", noted: "bucket",
		},
		"bucket latch of a slot that does not exist": {
			damage: func(w *damaged) { w.setLatch(&w.bk.latch, 0x7fffffff) },
			use:    func(w *damaged) error { return w.db.Store(bg, w.absent(), []byte("x")) },
			check:  "latch is held", noted: "bucket",
		},
		"bucket latch of a free slot": {
			damage: func(w *damaged) { w.setLatch(&w.bk.latch, 4<<4|5) },
			use:    func(w *damaged) error { _, err := w.db.FetchLocked(bg, w.absent()); return err },
			check:  "latch is held", noted: "bucket",
		},
		"bucket latch of a client that does not know": {
			damage: func(w *damaged) { w.setLatch(&w.bk.latch, w.wild.b.slot<<4) },
			use:    func(w *damaged) error { _, err := w.db.FetchLocked(bg, w.absent()); return err },
			check:  "latch is held", noted: "bucket",
		},
		"bucket latch with sleepers only": {
			damage: func(w *damaged) { w.setLatch(&w.bk.latch, 1<<31) },
			use:    func(w *damaged) error { return w.db.Store(bg, w.absent(), []byte("x")) },
		},
		"table latch of nobody": {
			damage: func(w *damaged) { w.setLatch(&w.a.dbHead.latch, 4<<4) },
			use: func(w *damaged) error {
				_, err := w.a.Database(bg, "new", KV, DatabaseOptions{Records: 10})
				return err
			},
			check: "table of databases", noted: "table of databases",
		},
		"class latches of nobody": {
			damage: func(w *damaged) {
				for c := range w.a.classes {
					w.setLatch(&w.a.classes[c].latch, 4<<4)
				}
			},
			use: func(w *damaged) error { return w.db.Store(bg, []byte("large"), make([]byte, 3000)) },
			// The class of that size has no block at hand.
			check: "latch is held", noted: "latch of class",
		},
		"class latches of a dead client that does not know": {
			damage: func(w *damaged) {
				for c := range w.a.classes {
					w.setLatch(&w.a.classes[c].latch, w.wild.b.slot<<4)
				}
				w.wild.b.c.SimulateDeath()
				if n, err := w.a.Recover(bg); n != 1 || err != nil {
					t.Error(n, err)
				}
			},
			use: func(w *damaged) error {
				for range 3 * magazineSize { // until all of the magazine was used
					if err := w.db.Store(bg, w.absent(), []byte("x")); err != nil {
						return err
					}
				}
				return nil
			},
			// Those whose blocks it had were needed, and freed, by its repair.
			check: "latch is held",
		},
		"free list outside": {
			damage: func(w *damaged) { w.eachClass(func(cl *classLine) { cl.head.Store(0xfffffff0) }) },
			use:    func(w *damaged) error { return w.db.Store(bg, []byte("large"), make([]byte, 3000)) },
			check:  "free list", noted: "free list",
		},
		"cyclic free list": {
			damage: func(w *damaged) {
				w.eachClass(func(cl *classLine) {
					if ref := cl.head.Load(); ref != 0 {
						shm.At[block](w.a.r, refOffset(ref)).rsn.Store(uint64(ref))
					}
				})
			},
			use: func(w *damaged) error {
				a, err := w.a.borrow(bg)
				if err != nil {
					return err
				}
				defer w.a.giveBack(a)
				return a.reclaimSpans()
			},
			check: "as well", noted: "free list",
		},
		"carved span is another's": {
			damage: func(w *damaged) { w.eachClass(func(cl *classLine) { cl.head.Store(0); cl.cur.Store(1) }) },
			use:    func(w *damaged) error { return w.db.Store(bg, []byte("large"), make([]byte, 3000)) },
			check:  "carves span", noted: "carved a span",
		},
		"span of no class": {
			damage: func(w *damaged) {
				_, sp := w.a.spanOf(shm.OffsetOf(w.a.r, w.b))
				sp.word.Store(0x7700)
			},
			use:   func(w *damaged) error { _, err := w.db.Fetch(bg, w.rec.key); return err },
			check: "no state of a span",
		},
		"another database's line": {
			damage: func(w *damaged) { w.a.dbs[1].buckets.Store(w.a.dbs[0].buckets.Load()) },
			use: func(w *damaged) error {
				late, err := w.a.Join(bg, "late")
				if err != nil {
					return err
				}
				defer late.Close()
				if _, err := late.Database(bg, "first", KV, DatabaseOptions{MustExist: true}); err != nil {
					t.Errorf("a database whose line is sound: %v", err)
				}
				_, err = late.Database(bg, "second", KV, DatabaseOptions{})
				return err
			},
			want: ErrCorrupt, check: "table of databases",
		},
		"gate of a state that there is not": {
			damage: func(w *damaged) { w.a.gate.Gate.Store(w.a.gate.Gate.Load() | 3) },
			use: func(w *damaged) error {
				_, err := w.db.Fetch(bg, w.rec.key)
				wantErr(t, "store", w.db.Store(bg, w.rec.key, []byte("x")), ErrClosed)
				return err
			},
			want: ErrClosed,
		},
		"gate frozen, and nobody opens it": {
			damage: func(w *damaged) { w.a.gate.Gate.Store(w.a.gate.Gate.Load()&^3 | shm.GateFrozen) },
			use: func(w *damaged) error {
				ctx, stop := context.WithTimeout(bg, 30*time.Millisecond)
				defer stop()
				_, err := w.db.Fetch(ctx, w.rec.key)
				wantErr(t, "store", w.db.Store(ctx, w.rec.key, []byte("x")), context.DeadlineExceeded)
				return err
			},
			want: context.DeadlineExceeded,
		},
		"lease that was over long ago": {
			damage: func(w *damaged) { w.a.leas.Ticks.Store(1) },
			use: func(w *damaged) error {
				_, err := w.db.Fetch(bg, w.rec.key)
				wantErr(t, "store", w.db.Store(bg, w.rec.key, []byte("x")), ErrLeaseLost)
				return err
			},
			want: ErrLeaseLost,
		},
		"magazine of another class": {
			damage: func(w *damaged) {
				if err := w.byHandles(); err != nil { // now all have some
					t.Error(err)
				}
				for i := range w.a.body.handles {
					for k := range magazineSize {
						w.a.body.handles[i].magazine[0][k].Store(entryRef(w.all[0].e)) // 1 KiB and more
					}
				}
			},
			use:  (*damaged).byHandles,
			want: ErrCorrupt, check: "magazine",
		},
		"cells and journal of the dead point into values": {
			damage: func(w *damaged) {
				body := shm.At[body](w.a.r, w.a.seg.SlotBody(w.wild.b.slot))
				at := shm.OffsetOf(w.a.r, w.b) + dataOffset(len(w.rec.key))
				shm.At[shm.Word64](w.a.r, at).Store(ownedBy(w.wild.b.slot) | 77) // looks like a lock of it
				w.rec.value = bytes.Clone(w.rec.value)
				binary.LittleEndian.PutUint64(w.rec.value, ownedBy(w.wild.b.slot)|77)
				body.cells[100].Store(at)
				body.handles[3].jEntry.Store(at)
				body.handles[3].jOld.Store(entryRef(w.rec.e))
				body.handles[4].bucketIntent.Store(at &^ 63)
				w.wild.b.c.SimulateDeath()
			},
			use: func(w *damaged) error {
				if n, err := w.a.Recover(bg); n != 1 || err != nil {
					t.Error(n, err)
				}
				v, err := w.db.Fetch(bg, w.rec.key)
				if !bytes.Equal(v, w.rec.value) {
					t.Errorf("value is %x, was %x", v, w.rec.value)
				}
				return err
			},
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			w := &damaged{wild: newWild(t, heapPair(t))}
			defer w.a.Close()
			for i := range w.all {
				rec := &w.all[i]
				bk := shm.At[bucket](w.a.r, rec.chain[0])
				if len(rec.chain) == 1 && len(rec.rest) == 0 && entryOwner(rec.e) == 0 && len(rec.value) > 40 &&
					len(rec.value) < 60 &&
					bk.entry[0].Load() == rec.e && bk.entry[1].Load() == 0 {
					w.rec, w.bk, w.db = rec, bk, rec.db
				}
			}
			if w.rec == nil {
				t.Fatal("no record is alone in its bucket")
			}
			w.w = &w.bk.entry[0]
			w.b = w.a.blockAt(entryRef(w.rec.e), entryClass(w.rec.e))
			c.damage(w)
			within(t, name, func() {
				r := w.check(w.a)
				if !strings.Contains(strings.Join(r.Errors, "\n"), c.check) {
					t.Errorf("check does not say %q: %q", c.check, r.Errors)
				}
				if err := c.use(w); !errors.Is(err, c.want) {
					t.Errorf("%v, want %v", err, c.want)
				} else if err != nil && errors.Is(err, ErrCorrupt) && !strings.Contains(err.Error(), "check") {
					t.Errorf("no next step in %q", err)
				}
				if noted := strings.Join(w.a.Damage(), "\n"); !strings.Contains(noted, c.noted) || noted != "" &&
					c.noted == "" && c.want == nil {
					t.Errorf("noted is %q, not %q", noted, c.noted)
				}
				w.check(w.a)
			})
		})
	}
}
