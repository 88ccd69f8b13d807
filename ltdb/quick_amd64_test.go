//go:build amd64 && !race && !shmsim

package ltdb

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/mainzdb/mainz/shm"
)

// TestQuick compares quick, which is in assembler where the CPU has vectors, with
// its twin in Go: on records of all sizes, and with everything changed, word by
// word, that either of them looks at.
func TestQuick(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seedOf(t), 1))
	s := heap(t, Config{Size: 8 << 20, Slots: 4, MaxValue: 3000, SpanSize: 4096})
	db, err := s.Database(bg, "test", KV, DatabaseOptions{Records: 100}) // few buckets: entries in every place
	if err != nil {
		t.Fatal(err)
	}
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	key := func(i int) []byte { return fmt.Appendf(nil, "%0*d", 8+i%9, i) }
	value := func(i int) []byte {
		v := make([]byte, 1+i*7%1500)
		for k := range v {
			v[k] = byte(i + k)
		}
		return v
	}
	const n = 500
	for i := range n {
		if err := db.Store(bg, key(i), value(i)); err != nil {
			t.Fatal(err)
		}
	}
	const whole = "as it is"
	both := func(what string, i, room int) bool {
		t.Helper()
		k, hash := key(i), db.hash(key(i))
		dst := func() []byte { return append(make([]byte, 0, 5+room), "so far"[:5]...) }
		a, okA := db.quick(dst(), k, hash)
		b, okB := db.quickGo(dst(), k, hash)
		if d := dst(); len(k) > 8 && vectors { // makes the hash itself
			n := quickFetch(h, &d, &k)
			if n == refused { // a call whose time is taken: not counted yet
				h.a.h.counters[countFetches].Inc()
				n = quickFetch(h, &d, &k)
			}
			if n >= 0 {
				d = d[:len(d)+n]
			}
			if (n >= 0) != okA || !bytes.Equal(d, a) {
				t.Fatalf("%s: record %d, room %d: with its own hash %d, %q, with the given one %v, %q", what, i, room,
					n, d, okA, a)
			}
		}
		if okA && okB && !bytes.Equal(a, b) {
			t.Fatalf("%s: record %d, room %d: %q and %q", what, i, room, a, b)
		}
		// quick may say no where the twin says yes: if the value is long or tiny, or
		// if something is broken.
		if got := len(b) - 5; okA && !okB || okB && !okA && what == whole && vectors && got >= 8 && got <= 1024 {
			t.Fatalf("%s: record %d of %d bytes, room %d: %v, its twin says %v", what, i, got, room, okA, okB)
		}
		if okA && (string(a[:5]) != "so fa" || len(a) != 5+len(b)-5) {
			t.Fatalf("%s: record %d: %q", what, i, a)
		}
		return okA
	}
	found := 0
	for i := range n + 50 { // the last ones are not there
		size := len(value(i))
		for _, room := range []int{0, size - 1, size, size + 1, 4096} {
			if both(whole, i, room) {
				found++
			}
		}
	}
	if found < n {
		t.Errorf("quick said yes %d times: the test hardly tests it", found)
	}
	for i := range n {
		quickOnGarbage(t, rnd, db, key(i), func(what string) { both(what, i, 4096) })
	}
}

// BenchmarkQuick: what a hot Fetch pays for being written in assembler or in Go.
func BenchmarkQuick(b *testing.B) {
	s, err := OpenHeap(Config{Size: 64 << 20, Slots: 4})
	if err != nil {
		b.Fatal(err)
	}
	db, err := s.Database(bg, "test", KV, DatabaseOptions{Records: 1000})
	if err != nil {
		b.Fatal(err)
	}
	var key [16]byte
	binary.LittleEndian.PutUint64(key[:], 77)
	if err := db.Store(bg, key[:], make([]byte, 64)); err != nil {
		b.Fatal(err)
	}
	hash, dst := db.hash(key[:]), make([]byte, 0, 64)
	b.Run("quick", func(b *testing.B) {
		for b.Loop() {
			db.quick(dst, key[:], hash)
		}
	})
	b.Run("twin", func(b *testing.B) {
		for b.Loop() {
			db.quickGo(dst, key[:], hash)
		}
	})
}

// quickOnGarbage changes each word that a look at a record goes by, and has both twins
// look then.
func quickOnGarbage(t *testing.T, rnd *rand.Rand, db *DB, key []byte, both func(what string)) {
	t.Helper()
	var at spot
	if ok, err := db.find(db.hash(key), key, &at); !ok || err != nil {
		t.Fatalf("%q: %v", key, err)
	}
	if got := (spot{}); db.seek(db.hash(key), key, &got) && got != at {
		t.Fatalf("record %q: seek found %+v, find %+v", key, got, at)
	}
	for what, w := range map[string]*shm.Word64{
		"entry": at.entry, "seq": &at.b.seq, "size": &at.b.size, "meta": &at.b.meta,
		"key": shm.At[shm.Word64](db.s.r, refOffset(entryRef(at.e))+blockHeaderSize), "gate": db.gate,
		"lease": db.lease,
	} {
		was := w.Load()
		for range 20 {
			x := was ^ 1<<rnd.IntN(64)
			switch rnd.IntN(4) {
			case 0:
				x = rnd.Uint64()
			case 1:
				x = was + uint64(rnd.IntN(3)) - 1
			}
			w.Store(x)
			both(what)
			var a, b spot
			if ok, err := db.find(db.hash(key), key, &b); db.seek(db.hash(key), key, &a) &&
				(!ok || err != nil || a != b) {
				t.Fatalf("%s %#x: record %q: seek found %+v, find %+v, %v, %v", what, x, key, a, b, ok, err)
			}
		}
		w.Store(was)
	}
}
