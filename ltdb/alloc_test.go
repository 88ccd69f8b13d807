//go:build !race && !shmsim

// The checked copies of -race and shmsim allocate.

package ltdb

import (
	"bytes"
	"testing"
)

// TestNoAllocations: the hot path leaves the garbage collector alone.
func TestNoAllocations(t *testing.T) {
	s := heap(t, Config{Size: 16 << 20, Slots: 4})
	db, err := s.Database(bg, "test", KV, DatabaseOptions{Records: 1000})
	if err != nil {
		t.Fatal(err)
	}
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	key, dst, value := []byte("0123456789abcdef"), make([]byte, 0, 2048), bytes.Repeat([]byte("v"), 64)
	batch := Batch{Keys: [][]byte{key, key, key, key, key, key, key, key}}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for name, f := range map[string]func(){
		"Handle.AppendFetch": func() { _, err := h.AppendFetch(bg, dst, key); must(err) },
		"DB.AppendFetch":     func() { _, err := db.AppendFetch(bg, dst, key); must(err) },
		"Handle.FetchBatch":  func() { _, err := h.FetchBatch(bg, &batch); must(err) },
		"DB.FetchBatch":      func() { _, err := db.FetchBatch(bg, &batch); must(err) },
		"Handle.Store":       func() { must(h.Store(bg, key, value)) },
		"DB.Store":           func() { must(db.Store(bg, key, value)) },
		"Handle.Store large": func() { must(h.Store(bg, key, dst[:1500])) },
		"Handle.FetchLocked and StoreUnlock": func() {
			r, err := h.FetchLocked(bg, key)
			must(err)
			must(r.StoreUnlock(r.Data()))
		},
		"DB.FetchLocked and StoreUnlock": func() {
			r, err := db.FetchLocked(bg, key)
			must(err)
			must(r.StoreUnlock(r.Data()))
		},
		"TryFetchLocked, Store and Unlock": func() {
			r, err := h.TryFetchLocked(bg, key)
			must(err)
			must(r.Store(value))
			must(r.Unlock())
		},
		"Append": func() {
			if n++; n%16 == 0 {
				must(h.Store(bg, key, value))
			}
			must(h.Append(bg, key, value[:32]))
		},
		"Store and Delete": func() {
			must(h.Store(bg, key, value))
			must(h.Delete(bg, key))
		},
	} {
		must(h.Store(bg, key, value))
		for range 600 { // buffers reach their size, and the histograms are made
			f()
		}
		if n := testing.AllocsPerRun(2000, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
