package ltdb

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// BenchmarkPieces: a conditional append and its removal by bypass, of an entry
// of ShareModes (24 bytes), on one key and on 100,000, beside a lock and a
// store of a record of that size in mode kv.
func BenchmarkPieces(b *testing.B) {
	s, err := OpenHeap(Config{Size: 128 << 20, Slots: 8})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	const keys = 100_000
	db, err := s.Database(bg, "pieces", Pieces, DatabaseOptions{Records: keys})
	if err != nil {
		b.Fatal(err)
	}
	kv, err := s.Database(bg, "kv", KV, DatabaseOptions{Records: keys})
	if err != nil {
		b.Fatal(err)
	}
	h, err := db.Handle()
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	k, err := kv.Handle()
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	key, piece := make([]byte, 16), shared(1)
	for i := range uint64(keys) { // each record has a piece, and its append another
		binary.LittleEndian.PutUint64(key, i)
		if _, err := h.ConditionalAppend(bg, Always, key, piece); err != nil {
			b.Fatal(err)
		}
		if err := k.Store(bg, key, piece); err != nil {
			b.Fatal(err)
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	hot := func() { binary.LittleEndian.PutUint64(key, 7) }
	uniform := func() { binary.LittleEndian.PutUint64(key, rnd.Uint64N(keys)) }
	for _, c := range []struct {
		name string
		pick func()
	}{{"hot", hot}, {"uniform", uniform}} {
		b.Run("append and remove, "+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.pick()
				p, err := h.ConditionalAppend(bg, ShareModes, key, piece)
				if err == nil {
					err = h.RemoveAndTrigger(bg, key, p)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("refused append, "+c.name, func(b *testing.B) {
			b.ReportAllocs()
			no := exclusive(2)
			for b.Loop() {
				c.pick()
				if _, err := h.ConditionalAppend(bg, ShareModes, key, no); err != ErrCondition {
					b.Fatal(err)
				}
			}
		})
		b.Run("lock and store, "+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.pick()
				r, err := k.FetchLocked(bg, key)
				if err == nil {
					err = r.StoreUnlock(piece)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
