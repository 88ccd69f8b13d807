package ltdb

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
)

// counterValue is a value that shows whether it was torn: a count, filled up
// with words made of it to a length that depends on it.
func counterValue(dst []byte, n uint64) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, n)
	for i := range n % 23 {
		dst = binary.LittleEndian.AppendUint64(dst, n*0x9E3779B97F4A7C15+i)
	}
	return dst
}

func readCounter(t testing.TB, v []byte) uint64 {
	if len(v) < 8 {
		t.Errorf("value of %d bytes", len(v))
		return 0
	}
	n := binary.LittleEndian.Uint64(v)
	if uint64(len(v)) != 8+n%23*8 {
		t.Errorf("torn: count %d in %d bytes", n, len(v))
	}
	for i := range uint64(len(v)/8 - 1) {
		if w := binary.LittleEndian.Uint64(v[8+8*i:]); w != n*0x9E3779B97F4A7C15+i {
			t.Errorf("torn: count %d, word %d is %#x", n, i, w)
		}
	}
	return n
}

// TestManyClients lets goroutines of several clients count in a few records,
// by Handle and by DB, with readers beside them.
func TestManyClients(t *testing.T) {
	first := heap(t, Config{Size: 8 << 20, Slots: 6, MaxValue: 4000})
	const clients, goroutines, rounds, keys = 3, 3, 300, 4
	var wg sync.WaitGroup
	var mu sync.Mutex
	want := map[byte]uint64{}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for c := range clients {
		s, err := first.Join(bg, "client")
		if err != nil {
			t.Fatal(err)
		}
		db, err := s.Database(bg, "counters", KV, DatabaseOptions{Records: 100})
		if err != nil {
			t.Fatal(err)
		}
		var mine sync.WaitGroup
		for g := range goroutines {
			wg.Add(1)
			mine.Add(1)
			go func() {
				defer wg.Done()
				defer mine.Done()
				rnd := rand.New(rand.NewPCG(seed, uint64(c*100+g)))
				for range rounds {
					key := []byte{byte('a' + rnd.IntN(keys))}
					switch rnd.IntN(4) {
					case 0, 1:
						r, err := db.FetchLocked(bg, key)
						if err != nil {
							t.Error(err)
							return
						}
						n := uint64(0)
						if d := r.Data(); d != nil {
							n = readCounter(t, d)
						}
						if rnd.IntN(8) == 0 {
							runtime.Gosched()
						}
						if err := r.StoreUnlock(counterValue(nil, n+1)); err != nil {
							t.Error(err)
						}
						mu.Lock()
						want[key[0]]++
						mu.Unlock()
					case 2:
						v, err := db.Fetch(bg, key)
						if err == nil {
							readCounter(t, v)
						} else if !errors.Is(err, ErrNotFound) {
							t.Error(err)
						}
					case 3:
						other := []byte{'x', byte(rnd.IntN(5))}
						if rnd.IntN(2) == 0 {
							if err := db.Store(bg, other, counterValue(nil, rnd.Uint64N(1000))); err != nil {
								t.Error(err)
							}
						} else if err := db.Delete(bg, other); err != nil && !errors.Is(err, ErrNotFound) {
							t.Error(err)
						}
					}
				}
			}()
		}
		go func() { mine.Wait() }()
		t.Cleanup(func() { s.Close() })
	}
	wg.Wait()
	db, err := first.Database(bg, "counters", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for k, n := range want {
		v, err := db.Fetch(bg, []byte{k})
		if err != nil {
			t.Fatal(err)
		}
		if got := readCounter(t, v); got != n {
			t.Errorf("record %c: %d updates, counted %d", k, n, got)
		}
	}
	t.Logf("%+v", mustCheck(t, first))
}
