package ltdb

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkHerd has 1,000 goroutines of one process add 1 to one record, again and again:
// ours as they come, mutex with a sync.Mutex of the application in front. All of them
// wait when it begins. max/mean is the longest wait of all over the mean, both counted in
// turns that others had between a call and its return.
func BenchmarkHerd(b *testing.B) {
	const herd = 1000
	s := heap(b, Config{Size: 64 << 20, Slots: 8})
	db, err := s.Database(bg, "herd", KV, DatabaseOptions{})
	if err != nil {
		b.Fatal(err)
	}
	for _, procs := range []int{1, 2, 16} {
		for _, way := range []string{"ours", "mutex"} {
			b.Run(fmt.Sprintf("procs=%d/%s", procs, way), func(b *testing.B) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
				var mu sync.Mutex
				var turns, left atomic.Int64
				var wg sync.WaitGroup
				most, sum := make([]int64, herd), make([]int64, herd)
				left.Store(int64(b.N))
				var begun sync.WaitGroup
				begun.Add(herd)
				held, err := db.FetchLocked(bg, []byte("herd"))
				if err != nil {
					b.Fatal(err)
				}
				mu.Lock()
				for i := range herd {
					wg.Go(func() {
						begun.Done()
						for left.Add(-1) >= 0 {
							called := turns.Load()
							if way == "mutex" {
								mu.Lock()
							}
							r, err := db.FetchLocked(bg, []byte("herd"))
							if err != nil {
								b.Error(err)
								return
							}
							n := turns.Add(1) - called
							most[i], sum[i] = max(most[i], n), sum[i]+n
							d := make([]byte, 8)
							copy(d, r.Data())
							binary.LittleEndian.PutUint64(d, binary.LittleEndian.Uint64(d)+1)
							if err := r.StoreUnlock(d); err != nil {
								b.Error(err)
								return
							}
							if way == "mutex" {
								mu.Unlock()
							}
						}
					})
				}
				begun.Wait()
				runtime.Gosched() // all of them wait
				b.ResetTimer()
				if err := held.StoreUnlock(make([]byte, 8)); err != nil {
					b.Fatal(err)
				}
				mu.Unlock()
				wg.Wait()
				b.StopTimer()
				m, t := int64(0), int64(0)
				for i := range herd {
					m, t = max(m, most[i]), t+sum[i]
				}
				b.ReportMetric(float64(m)*float64(b.N)/float64(max(t, 1)), "max/mean")
			})
		}
	}
}

// TestOvertaken: who has a record again and again, and never gives up his processor,
// overtakes a waiter of his process no more than patience times.
func TestOvertaken(t *testing.T) {
	s := heap(t, Config{Size: 16 << 20, Slots: 4})
	db, err := s.Database(bg, "db", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	key := []byte("key")
	r, err := db.FetchLocked(bg, key)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		r, err := db.FetchLocked(bg, key)
		if err == nil {
			err = r.Unlock()
		}
		done <- err
	}()
	entry := r.l.at.entry
	for end := time.Now().Add(time.Minute); entry.Load()&bitS == 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("nobody stands in line")
		}
	}
	for n := 0; ; n++ {
		if err := r.StoreUnlock(key); err != nil {
			t.Fatal(err)
		}
		if r, err = db.TryFetchLocked(bg, key); err == ErrLocked {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if n == patience {
			t.Errorf("a waiter was overtaken %d times", n+1)
			if err := r.Unlock(); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestLeftToWhoIsUp: the first of a line that looks for itself, and has lost its
// processor, is overtaken by its process as often as one that is parked, and no more:
// then the free word says that it is left to somebody.
func TestLeftToWhoIsUp(t *testing.T) {
	s := heap(t, Config{Size: 16 << 20, Slots: 4})
	db, err := s.Database(bg, "db", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	key := []byte("key")
	r, err := db.FetchLocked(bg, key)
	if err != nil {
		t.Fatal(err)
	}
	entry := r.l.at.entry
	w := s.turns.join(db.hash(key))
	s.turns.park(w, entry)
	if !s.turns.unparked(w) {
		t.Fatal("it is not up")
	}
	overtook := 0
	for ; ; overtook++ {
		if err := r.StoreUnlock(key); err != nil {
			t.Fatal(err)
		}
		if e := entry.Load(); e&newcomer == bitS {
			break
		} else if e&newcomer != 0 || overtook > patience {
			t.Fatalf("the word is %#x after %d turns", e, overtook+1)
		}
		if r, err = db.TryFetchLocked(bg, key); err != nil {
			t.Fatal(err)
		}
	}
	if overtook != patience {
		t.Errorf("it was overtaken %d times; want %d", overtook, patience)
	}
	s.turns.leave(w) // it comes no more
	s.turns.done(w)
	if r, err = db.FetchLocked(bg, key); err != nil {
		t.Fatal(err)
	}
	if err := r.Unlock(); err != nil {
		t.Fatal(err)
	}
	if e, called := entry.Load(), s.turns.called.Load(); e&^identity != 0 || called != 0 {
		t.Errorf("at the end the word is %#x, and %d are called", e, called)
	}
}
