package ltdb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

var bg = context.Background()

func heap(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := OpenHeap(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mustCheck(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustCheck(t testing.TB, s *Store) *Report {
	t.Helper()
	r, err := s.Check(bg)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range r.Errors {
		t.Error("check: ", e)
	}
	return r
}

func small() Config { return Config{Size: 4 << 20, Slots: 4, MaxValue: 3000, SpanSize: 4096} }

func TestBasics(t *testing.T) {
	s := heap(t, Config{Size: 32 << 20, Slots: 8})
	db, err := s.Database(bg, "test", KV, DatabaseOptions{Records: 1000})
	if err != nil {
		t.Fatal(err)
	}
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for i := range 3000 {
		k := fmt.Appendf(nil, "key %d", i)
		v := bytes.Repeat([]byte{byte(i)}, i%900+1)
		if err := h.Store(bg, k, v); err != nil {
			t.Fatal(i, err)
		}
	}
	mustCheck(t, s)
	for i := range 3000 {
		k := fmt.Appendf(nil, "key %d", i)
		v := bytes.Repeat([]byte{byte(i)}, i%900+1)
		got, err := h.Fetch(bg, k)
		if err != nil || !bytes.Equal(got, v) {
			t.Fatal(i, err, len(got))
		}
		if i%3 == 0 {
			if err := h.Delete(bg, k); err != nil {
				t.Fatal(err)
			}
			if _, err := h.Fetch(bg, k); !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
		}
	}
	r, err := h.FetchLocked(bg, []byte("new"))
	if err != nil || r.Data() != nil {
		t.Fatal(err)
	}
	if err := r.StoreUnlock([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := r.Unlock(); err != ErrNotLocked {
		t.Fatal(err)
	}
	if err := h.Append(bg, []byte("new"), []byte(" world")); err != nil {
		t.Fatal(err)
	}
	got, err := db.Fetch(bg, []byte("new"))
	if string(got) != "hello world" || err != nil {
		t.Fatal(string(got), err)
	}
	big := bytes.Repeat([]byte("x"), 1<<20)
	if err := h.Store(bg, []byte("big"), big); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Fetch(bg, []byte("big")); err != nil || !bytes.Equal(got, big) {
		t.Fatal(err)
	}
	t.Logf("%+v", mustCheck(t, s))
}

func BenchmarkLocal(b *testing.B) {
	s, err := OpenHeap(Config{Size: 128 << 20, Slots: 8})
	if err != nil {
		b.Fatal(err)
	}
	db, err := s.Database(bg, "test", KV, DatabaseOptions{Records: 100000})
	if err != nil {
		b.Fatal(err)
	}
	h, err := db.Handle()
	if err != nil {
		b.Fatal(err)
	}
	// Keys are made on the fly: to read them from memory would cost as many
	// cache misses as the store does.
	const n = 100000
	val := make([]byte, 64)
	var key [16]byte
	set := func(dst []byte, i uint64) {
		binary.LittleEndian.PutUint64(dst, i*0x9E3779B97F4A7C15)
		binary.LittleEndian.PutUint64(dst[8:], i)
	}
	for i := range uint64(n) {
		set(key[:], i)
		if err := h.Store(bg, key[:], val); err != nil {
			b.Fatal(err)
		}
	}
	next := func(x uint64) uint64 { x ^= x << 13; x ^= x >> 7; x ^= x << 17; return x }
	for _, hot := range []bool{true, false} {
		name := "uniform"
		if hot {
			name = "hot"
		}
		pick := func(x uint64) []byte {
			if hot {
				set(key[:], 77)
			} else {
				set(key[:], x%n)
			}
			return key[:]
		}
		b.Run("fetch/"+name, func(b *testing.B) {
			x := uint64(88172645463325252)
			dst := make([]byte, 0, 64)
			for b.Loop() {
				x = next(x)
				if _, err := h.AppendFetch(bg, dst, pick(x)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("rmw/"+name, func(b *testing.B) {
			x := uint64(88172645463325252)
			for b.Loop() {
				x = next(x)
				r, err := h.FetchLocked(bg, pick(x))
				if err != nil {
					b.Fatal(err)
				}
				d := r.Data()
				d[3]++
				if err := r.StoreUnlock(d); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("store/"+name, func(b *testing.B) {
			x := uint64(88172645463325252)
			for b.Loop() {
				x = next(x)
				if err := h.Store(bg, pick(x), val); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("batch8/"+name, func(b *testing.B) {
			x := uint64(88172645463325252)
			bt := Batch{Keys: make([][]byte, 8)}
			for i := range bt.Keys {
				bt.Keys[i] = make([]byte, 16)
			}
			for b.Loop() {
				for i := range bt.Keys {
					x = next(x)
					copy(bt.Keys[i], pick(x))
				}
				if n, err := h.FetchBatch(bg, &bt); err != nil || n != 8 {
					b.Fatal(err, n)
				}
			}
		})
	}
}
