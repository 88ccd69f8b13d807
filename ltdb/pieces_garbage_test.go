package ltdb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// Garbage in what pieces and the dispatcher go by: index words and pages,
// pieces, tags, the orphans, the rung bits, the conditions. Afterwards clients
// and a dispatcher do all that they can do. Nothing may panic or hang, and every
// error is one of the list.

type wildPieces struct {
	t       testing.TB
	a, b    *Store
	da, db  *DB
	pa, pb  []Piece
	targets [][]shm.Offset // words of 8 bytes, by kind
	notes   []string
}

const (
	wildWord = iota
	wildPage
	wildPiece
	wildPieceRecord
	wildTags
	wildOrphan
	wildRung
	wildNode
	wildCondition
	wildPiecesKinds
)

func newWildPieces(t testing.TB) *wildPieces {
	w := &wildPieces{t: t, targets: make([][]shm.Offset, wildPiecesKinds)}
	var err error
	if w.a, err = OpenHeap(wildConfig()); err != nil {
		t.Fatal(err)
	}
	if w.b, err = w.a.Join(bg, "wild"); err != nil {
		t.Fatal(err)
	}
	dead, err := w.a.Join(bg, "dead")
	if err != nil {
		t.Fatal(err)
	}
	w.da, w.db = piecesDB(t, w.a, "p"), piecesDB(t, w.b, "p")
	dd := piecesDB(t, dead, "p")
	for i := range 60 {
		key := fmt.Appendf(nil, "key %d", i%7)
		for _, db := range []*DB{w.da, w.db, dd} {
			p, err := db.ConditionalAppend(bg, Always, key, shared(byte(i)))
			wantErr(t, "append", err, nil)
			if db == w.da {
				w.pa = append(w.pa, p)
			} else if db == w.db {
				w.pb = append(w.pb, p)
			}
		}
	}
	// The dead one's records are locked while its slot is repaired: so it leaves
	// orphans.
	var held []Record
	for i := range 7 {
		held = append(held, lockedBy(t, w.da, fmt.Sprint("key ", i)))
	}
	dead.c.SimulateDeath()
	if _, err := w.a.c.RecoverAll(); err != nil {
		t.Fatal(err)
	}
	for _, r := range held {
		wantErr(t, "unlock", r.Unlock(), nil)
	}
	w.collect()
	return w
}

func (w *wildPieces) collect() {
	s := w.a
	add := func(kind int, off shm.Offset, n int) {
		for i := range n {
			w.targets[kind] = append(w.targets[kind], off+shm.Offset(i*8))
		}
	}
	chain := func(root uint32) {
		for page, next := s.pageAt(root); page != nil; page, next = s.pageAt(next) {
			add(wildPage, refOffset(root), blockHeaderSize/8)
			for i := range page.word {
				if v := page.word[i].Load(); v != 0 {
					add(wildWord, shm.OffsetOf(s.r, &page.word[i]), 1)
					add(wildPiece, refOffset(entryRef(v)), 10)
				}
			}
			root = next
		}
	}
	for i := range uint32(4) {
		chain(shm.At[body](s.r, s.seg.SlotBody(i+1)).pieces.Load())
		chain(s.node.orphan[i+1].Load())
		// pieces and stats, lastPage
		add(wildNode, s.seg.SlotBody(i+1)+shm.Offset(shm.HandlesPerSlot*handleSize+cellsPerSlot*8), 2)
		add(wildOrphan, shm.OffsetOf(s.r, &s.node.orphan[0])&^7+shm.Offset(i/2*8), 1)
	}
	add(wildOrphan, shm.OffsetOf(s.r, &s.node.orphanLatch)&^7, 1)
	add(wildRung, shm.OffsetOf(s.r, &s.node.rung[0]), rungWords)
	add(wildCondition, shm.OffsetOf(s.r, &s.condLines[0]), 6*conditionLineSize/8)
	for n := range w.da.buckets {
		for i := range w.da.buckets[n].entry {
			if e := w.da.buckets[n].entry[i].Load(); e != 0 {
				off := refOffset(entryRef(e))
				b := s.blockAt(entryRef(e), entryClass(e))
				add(wildPieceRecord, off, blockHeaderSize/8)
				klen, dlen := metaKeyLen(b.meta.Load()), int(uint32(b.size.Load()))
				add(wildTags, off+tagsOffset(klen, dlen), metaTags(b.meta.Load())*tagSize/8)
			}
		}
	}
}

func (w *wildPieces) garble(kind int, at uint16, choice byte, v uint64) {
	words := w.targets[kind]
	off := words[int(at)%len(words)]
	word := shm.At[shm.Word64](w.a.r, off)
	old := word.Load()
	switch choice % 5 {
	case 0:
		v = old ^ 1<<(v%64)
	case 1:
		v = old + v%16 - 8
	case 2: // another word of its kind
		v = shm.At[shm.Word64](w.a.r, words[int(v%uint64(len(words)))]).Load()
	case 3:
		v = 0
	}
	w.notes = append(w.notes, fmt.Sprintf("%d at %#x: %#x → %#x", kind, off, old, v))
	word.Store(v)
}

func (w *wildPieces) expect(err error, what string) {
	for _, kind := range []error{ErrCondition, ErrNoCondition, ErrIncompatible, ErrInUse} {
		if errors.Is(err, kind) {
			return
		}
	}
	if !typed(err) {
		w.t.Errorf("%s: %v\n%q", what, err, w.notes)
	}
}

func (w *wildPieces) use(ctx context.Context, db *DB, pieces []Piece) {
	for i := range 21 {
		key := fmt.Appendf(nil, "key %d", i%9)
		_, err := db.Fetch(ctx, key)
		w.expect(err, "fetch")
		p, err := db.ConditionalAppend(ctx, []ConditionID{Always, IfAbsent, ShareModes}[i%3], key, exclusive(byte(i)))
		w.expect(err, "append")
		if err == nil {
			w.expect(db.RemoveAndTrigger(ctx, key, p), "remove")
		}
		if i < len(pieces) {
			w.expect(db.RemoveAndTrigger(ctx, fmt.Appendf(nil, "key %d", i%7), pieces[i]), "remove")
		}
		if i%7 == 0 {
			short, stop := context.WithTimeout(ctx, time.Millisecond)
			_, err = db.ConditionalAppendWait(short, ShareModes, key, exclusive(byte(i)))
			w.expect(err, "wait")
			stop()
		}
	}
	_, err := db.s.Recover(ctx)
	w.expect(err, "recover")
	_, err = db.s.Conditions()
	w.expect(err, "conditions")
}

func (w *wildPieces) dispatch(ctx context.Context) {
	d, err := w.a.JoinKeeper(ctx, Options{})
	w.expect(err, "dispatcher")
	if err != nil {
		return
	}
	id, v := w.da.ID(), new(Held)
	d.Freeze()
	var p Pass
	_, err = d.Pass(&p)
	w.expect(err, "pass")
	d.ReleaseUnlisted(func(uint32, []byte) bool { return false })
	d.Each(func(uint32, []byte, uint64) {})
	d.EachPiece(func(p *PieceEntry) bool { return true })
	d.Sweep(func(o OPID) bool { return o.Counter%3 != 0 })
	d.Provisional(id, []byte("key 1"), OPID{1, 2, 3}, []byte("p"), 5)
	d.DropProvisional()
	d.Open()
	for i := range 9 {
		key := fmt.Appendf(nil, "key %d", i)
		d.Look(id, key, v)
		d.Attend(id, key, i%2 == 0)
		if d.TryLock(id, key, false) == LockTaken {
			d.Publish(id, key, v, true)
			if i%3 == 0 {
				d.Remove(id, key)
			} else {
				d.Unlock(id, key)
			}
		}
		d.Touch(id, key, 1, 2)
		d.Rung(func(uint32, []byte) {})
	}
	d.RemoveOrphans(nil, nil)
	w.expect(recoverAll(d, func(uint32) {}), "recover")
	w.expect(d.Err(), "dispatcher")
	w.expect(d.Close(), "close of the dispatcher")
}

func runWildPieces(t testing.TB, data []byte) {
	w := newWildPieces(t)
	flags := byte(0)
	if len(data) > 0 {
		flags, data = data[0], data[1:]
	}
	for n := 0; len(data) >= 12 && n < 8; n, data = n+1, data[12:] {
		w.garble(int(data[0])%wildPiecesKinds, binary.LittleEndian.Uint16(data[1:]), data[3],
			binary.LittleEndian.Uint64(data[4:]))
	}
	within(t, fmt.Sprintf("%q", w.notes), func() {
		defer func() {
			if p := recover(); p != nil {
				buf := make([]byte, 1<<16)
				t.Errorf("panic: %v\n%q\n%s", p, w.notes, buf[:runtime.Stack(buf, false)])
			}
		}()
		ctx, stop := context.WithTimeout(bg, 100*time.Millisecond)
		defer stop()
		_, err := w.a.Check(ctx)
		w.expect(err, "check")
		w.use(ctx, w.da, w.pa)
		if flags&1 != 0 {
			w.b.c.SimulateDeath()
			_, err := w.a.Recover(ctx)
			w.expect(err, "recover")
		} else {
			w.use(ctx, w.db, w.pb)
			w.expect(w.b.Close(), "close")
		}
		if flags&2 != 0 {
			w.dispatch(ctx)
		}
		late, err := w.a.Join(ctx, "late", own(16, "x", 1))
		w.expect(err, "join")
		if err == nil {
			db, err := late.Database(ctx, "p", Pieces, DatabaseOptions{})
			w.expect(err, "database")
			if err == nil {
				w.use(ctx, db, nil)
			}
			w.expect(late.Close(), "close")
		}
		_, err = w.a.Check(ctx)
		w.expect(err, "check")
		w.expect(w.a.Close(), "close")
	})
	if t.Failed() {
		t.Fatalf("the case is %q", w.notes)
	}
}

func randomWildPieces(rnd *rand.Rand, kind int) []byte {
	data := []byte{byte(rnd.Uint32())}
	for range 1 + rnd.IntN(4) {
		k := kind
		if rnd.IntN(3) == 0 {
			k = rnd.IntN(wildPiecesKinds)
		}
		data = append(data, byte(k))
		data = binary.LittleEndian.AppendUint16(data, uint16(rnd.Uint32()))
		data = append(data, byte(rnd.Uint32()))
		data = binary.LittleEndian.AppendUint64(data, rnd.Uint64())
	}
	return data
}

func TestPiecesGarbage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seedOf(t), 0))
	rounds := 16
	if testing.Short() {
		rounds = 4
	}
	if v := os.Getenv("MAINZ_ROUNDS"); v != "" {
		rounds, _ = strconv.Atoi(v)
	}
	for kind := range wildPiecesKinds {
		for range rounds {
			if data := randomWildPieces(rnd, kind); !t.Run(fmt.Sprint(kind),
				func(t *testing.T) { runWildPieces(t, data) }) {
				t.Fatalf("%x", data)
			}
		}
	}
}

// FuzzPiecesGarbage lets the fuzzer choose which words are garbage.
func FuzzPiecesGarbage(f *testing.F) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for kind := range wildPiecesKinds {
		f.Add(randomWildPieces(rnd, kind))
	}
	f.Fuzz(func(t *testing.T, data []byte) { runWildPieces(t, data) })
}
