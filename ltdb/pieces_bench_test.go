package ltdb

import (
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/shm"
)

// spread takes the times of a benchmark's turns, the last 65,536 of them.
type spread struct {
	ticks [1 << 16]uint32
	n     int
}

func (s *spread) add(since uint64) {
	s.ticks[s.n%len(s.ticks)] = uint32(shm.Ticks() - since)
	s.n++
}

func (s *spread) report(b *testing.B) {
	t := s.ticks[:min(s.n, len(s.ticks))]
	slices.Sort(t)
	ns := 1e9 / shm.TickRate()
	p50, p99 := float64(t[len(t)/2])*ns, float64(t[len(t)*99/100])*ns
	b.ReportMetric(p50, "p50-ns")
	b.ReportMetric(p99, "p99-ns")
	b.ReportMetric(p99/p50, "p99/p50")
}

// BenchmarkPieces: a conditional append and its removal by bypass, of an entry
// of ShareModes (24 bytes), on one key and on 100,000, beside a lock and a
// store of a record of that size in mode kv.
func BenchmarkPieces(b *testing.B) {
	testenv.Need(b, testenv.Linux)
	s, err := Open(bg, filepath.Join(testenv.ShmDir(b), "cluster", "0", "v1"),
		Options{Create: true, Config: Config{Size: 128 << 20, Slots: 8}})
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
			var times spread
			for b.Loop() {
				c.pick()
				start := shm.Ticks()
				p, err := h.ConditionalAppend(bg, ShareModes, key, piece)
				if err == nil {
					err = h.RemoveAndTrigger(bg, key, p)
				}
				times.add(start)
				if err != nil {
					b.Fatal(err)
				}
			}
			times.report(b)
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
			var times spread
			for b.Loop() {
				c.pick()
				start := shm.Ticks()
				r, err := k.FetchLocked(bg, key)
				if err == nil {
					err = r.StoreUnlock(piece)
				}
				times.add(start)
				if err != nil {
					b.Fatal(err)
				}
			}
			times.report(b)
		})
	}
}
