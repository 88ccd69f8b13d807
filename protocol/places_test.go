package protocol

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"testing"
)

// TestPlaces compares the table with a map on random input: few keys and shards, so that
// chains, removals in them and compaction happen; then many.
func TestPlaces(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	type key struct {
		db uint32
		k  string
	}
	for _, size := range []int{3, 40, 5000} {
		var table places
		twin := map[key]location{}
		hash := func(k key) uint64 { // few tags and shards: others' chains are met
			h := uint64(k.db)
			for _, b := range []byte(k.k) {
				h = (h ^ uint64(b)) * 1099511628211
			}
			h ^= h >> 32
			return h<<56 | h>>8%uint64(size)
		}
		for i := range 60_000 {
			k := key{uint32(rng.IntN(2)), fmt.Sprintf("%0*d", 1+rng.IntN(3)*8, rng.IntN(size))}
			switch rng.IntN(5) {
			case 0, 1:
				l := location{PNN(rng.IntN(64)), ReqID(rng.Uint32()), rng.Uint64()}
				table.set(hash(k), k.db, []byte(k.k), l)
				twin[k] = l
			case 2, 3:
				table.remove(hash(k), k.db, []byte(k.k))
				delete(twin, k)
			}
			if i%20_000 == 19_999 {
				table.reset()
				clear(twin)
			}
			got, ok := table.get(hash(k), k.db, []byte(k.k))
			if want, there := twin[k]; ok != there || ok && got != want || table.n != len(twin) {
				t.Fatalf("seed %d, size %d, step %d: %v is %v (%v), want %v (%v); %d entries, want %d", seed, size, i,
					k, got, ok, want, there, table.n, len(twin))
			}
		}
		for k, want := range twin {
			if got, ok := table.get(hash(k), k.db, []byte(k.k)); !ok || got != want {
				t.Fatalf("seed %d, size %d: %v is %v (%v), want %v", seed, size, k, got, ok, want)
			}
		}
	}
}

// TestPlacesMemory: a million records of other nodes take at most 128 bytes each at their
// LMASTER, and the collector walks none of them.
func TestPlacesMemory(t *testing.T) {
	records := 1_000_000
	if testing.Short() {
		records = 200_000
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	heap := func() (m runtime.MemStats) {
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m
	}
	before := heap()
	table := &places{}
	key := make([]byte, 16)
	fill := func() {
		for i := range records {
			h := (uint64(i) + 1) * 0x9E3779B97F4A7C15
			h = (h ^ h>>30) * 0xBF58476D1CE4E5B9
			le.PutUint64(key, uint64(i))
			le.PutUint64(key[8:], h)
			table.set(h^h>>27, 1, key, location{PNN(i % 64), ReqID(i), uint64(i)})
		}
	}
	fill()
	after := heap()
	bytes := float64(after.HeapAlloc-before.HeapAlloc) / float64(records)
	objects := int64(after.HeapObjects) - int64(before.HeapObjects)
	t.Logf("%d records: %.1f bytes each, %d objects on the heap", records, bytes, objects)
	if bytes > 128 || objects > 3*placeShards {
		t.Errorf("%.1f bytes a record, at most 128; %d objects, at most %d", bytes, objects, 3*placeShards)
	}
	// The next epoch uses the same memory again.
	table.reset()
	if n := testing.AllocsPerRun(1, func() { table.reset(); fill() }); n > 0 {
		t.Errorf("%v allocations to fill the table once more", n)
	}
	runtime.KeepAlive(table)
}

// TestPlacesSteady: records that go and come allocate nothing.
func TestPlacesSteady(t *testing.T) {
	var table places
	key := []byte("sixteen bytes ok")
	i := uint64(0)
	f := func() {
		for range 1000 {
			i++
			le.PutUint64(key, i%8)
			h := (i%8 + 1) * 0x9E3779B97F4A7C15
			if i/8%2 == 0 {
				table.set(h, 1, key, location{pnn: 1})
			} else {
				table.remove(h, 1, key)
			}
		}
	}
	f()
	if n := testing.AllocsPerRun(5, f); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
