package ltdb

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// crowd has clients of a store at work on two databases, with all operations; some of
// the clients die now and then.
type crowd struct {
	s    *Store
	stop context.CancelFunc
	wg   sync.WaitGroup
	ops  atomic.Int64
	dead atomic.Int64
}

func newCrowd(t *testing.T, clients int, deaths bool) *crowd {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s, err := OpenHeap(Config{Size: 8 << 20, Slots: 16, MaxValue: 8000})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(bg)
	c := &crowd{s: s, stop: stop}
	kvDB(t, s, "kv")
	piecesDB(t, s, "p")
	for i := range clients {
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			for ctx.Err() == nil {
				c.live(t, ctx, rnd, deaths && i%2 == 1)
			}
		}()
	}
	t.Cleanup(func() {
		stop()
		c.wg.Wait()
		s.Close()
	})
	return c
}

// live is the life of one client.
func (c *crowd) live(t *testing.T, ctx context.Context, rnd *rand.Rand, dies bool) {
	s, err := c.s.Join(ctx, "crowd")
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, ErrNoSlots) {
			t.Errorf("join: %v", err)
		}
		return
	}
	kv, err1 := s.Database(ctx, "kv", KV, DatabaseOptions{})
	pc, err2 := s.Database(ctx, "p", Pieces, DatabaseOptions{})
	if err1 != nil || err2 != nil {
		s.Close()
		return
	}
	type mine struct {
		key []byte
		p   Piece
	}
	var pieces []mine
	for n := 0; ctx.Err() == nil && (!dies || n < 3000); n++ {
		c.ops.Add(1)
		key := fmt.Appendf(nil, "key %d", rnd.IntN(200))
		switch op := rnd.IntN(20); {
		case op < 7:
			size := 1 + rnd.IntN(100)
			if rnd.IntN(10) == 0 {
				size = 1 + rnd.IntN(7000)
			}
			_ = kv.Store(ctx, key, make([]byte, size))
		case op < 9:
			_ = kv.Delete(ctx, key)
		case op < 13:
			if rec, err := kv.FetchLocked(ctx, key); err == nil {
				if op < 11 {
					_ = rec.Store([]byte("kept"))
				}
				_ = rec.Unlock()
			}
		case op < 17 && len(pieces) < 20:
			key := fmt.Appendf(nil, "piece %d", rnd.IntN(20))
			if p, err := pc.ConditionalAppend(ctx, Always, key, []byte("a piece of eight")); err == nil {
				pieces = append(pieces, mine{key, p})
			}
		case len(pieces) > 0:
			p := pieces[len(pieces)-1]
			pieces = pieces[:len(pieces)-1]
			_ = pc.RemoveAndTrigger(ctx, p.key, p.p)
		}
	}
	if dies {
		if rec, err := kv.TryFetchLocked(ctx, []byte("key 1")); err == nil && rec.Held() {
			c.ops.Add(1)
		}
		s.c.SimulateDeath()
		c.dead.Add(1)
		if _, err := c.s.Recover(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("recover: %v", err)
		}
		return
	}
	s.Close()
}

// grown waits until the crowd has done n calls more.
func (c *crowd) grown(t *testing.T, n int64) {
	t.Helper()
	want := c.ops.Load() + n
	for end := time.Now().Add(time.Minute); c.ops.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the clients don't get on")
		}
	}
}

// A store in use is sound, however often one looks.
func TestCheckLive(t *testing.T) {
	c := newCrowd(t, 6, true)
	c.grown(t, 5000)
	checks, passes, moving := 40, 0, 0
	if testing.Short() {
		checks = 6
	}
	for range checks {
		r, err := c.s.CheckLive(bg)
		if err != nil {
			t.Fatal(err)
		}
		if !r.OK() {
			t.Fatalf("a sound store: %d broken after %d passes: %q", r.Broken, r.Passes, r.Errors)
		}
		passes += r.Passes
		moving += r.InMotion
		if r.InMotion > 0 {
			t.Logf("in motion after %d passes: %q", r.Passes, r.Moving)
		}
	}
	t.Logf("%d checks, %d passes, %d in motion, %d calls, %d deaths", checks, passes, moving, c.ops.Load(),
		c.dead.Load())
}

// What is broken is found each time, while others are at work.
func TestCheckLiveFinds(t *testing.T) {
	for _, b := range []struct {
		name, want string
		do         func(t *testing.T, s *Store, db, pc *DB)
	}{
		{"lost block", "is nowhere", func(t *testing.T, s *Store, db, pc *DB) {
			l := entryOf(t, db, "still 1")
			l.Store(0)
		}},
		{"doubled block", "as well", func(t *testing.T, s *Store, db, pc *DB) {
			a, b := entryOf(t, db, "still 1"), entryOf(t, db, "still 2")
			b.Store(a.Load())
		}},
		{"latch that nobody holds", "latch is held", func(t *testing.T, s *Store, db, pc *DB) {
			bk := &db.buckets[0]
			if !bk.latch.TryLock(shm.HandleID(s.slot*shm.HandlesPerSlot + 15)) {
				t.Fatal("the latch is held")
			}
		}},
		{"latch of a free slot", "latch is held", func(t *testing.T, s *Store, db, pc *DB) {
			if !db.buckets[0].latch.TryLock(shm.HandleID(15 * shm.HandlesPerSlot)) {
				t.Fatal("the latch is held")
			}
		}},
		{"odd block", "not finished", func(t *testing.T, s *Store, db, pc *DB) {
			e := entryOf(t, db, "still 3").Load()
			b := s.blockAt(entryRef(e), entryClass(e))
			b.seq.Store(b.seq.Load() | 1)
		}},
		{"index word", "names no piece", func(t *testing.T, s *Store, db, pc *DB) {
			for i := range (*s.index.pages.Load())[0].word {
				if w := &(*s.index.pages.Load())[0].word[i]; w.Load() != 0 {
					w.Store(stateLive | 12345)
					return
				}
			}
			t.Fatal("no word")
		}},
		{"index word gone", "is in no index", func(t *testing.T, s *Store, db, pc *DB) {
			for i := range (*s.index.pages.Load())[0].word {
				if w := &(*s.index.pages.Load())[0].word[i]; w.Load() != 0 {
					w.Store(0)
					return
				}
			}
			t.Fatal("no word")
		}},
	} {
		t.Run(b.name, func(t *testing.T) {
			c := newCrowd(t, 2, false)
			db, pc := kvDB(t, c.s, "still"), piecesDB(t, c.s, "still pieces")
			for i := range 5 {
				wantErr(t, "store", db.Store(bg, fmt.Appendf(nil, "still %d", i), []byte("value")), nil)
			}
			_, err := pc.ConditionalAppend(bg, Always, []byte("k"), []byte("piece"))
			wantErr(t, "append", err, nil)
			c.grown(t, 2000)
			b.do(t, c.s, db, pc)
			checks := 3
			if testing.Short() {
				checks = 1
			}
			for range checks {
				r, err := c.s.CheckLive(bg)
				if err != nil {
					t.Fatal(err)
				}
				if r.OK() || !strings.Contains(strings.Join(r.Errors, "\n"), b.want) {
					t.Fatalf("after %d passes: broken %q, in motion %q", r.Passes, r.Errors, r.Moving)
				}
			}
		})
	}
}

// A call whose process stands still is in motion, and no error.
func TestCheckLiveStopped(t *testing.T) {
	s, err := OpenHeap(small())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	kvDB(t, s, "d")
	a := &s.actors[0]
	a.h.classIntent.Store(1)
	if !s.classes[0].latch.TryLock(a.id) {
		t.Fatal("the latch is held")
	}
	r, err := s.CheckLive(bg)
	if err != nil || !r.OK() || r.InMotion != 1 || !strings.Contains(r.Moving[0], "latch") {
		t.Errorf("a latch that its owner says to hold: %+v, %v", r, err)
	}
	if r, err := s.Check(bg); err != nil || r.OK() {
		t.Errorf("Check, of a store that nobody changes: %+v, %v", r, err)
	}
	s.classes[0].latch.Unlock(a.id)
	a.h.classIntent.Store(0)
	if r, err := s.CheckLive(bg); err != nil || !r.OK() || r.InMotion != 0 || r.Passes != 1 {
		t.Errorf("afterwards: %+v, %v", r, err)
	}
}

func entryOf(t *testing.T, db *DB, key string) *shm.Word64 {
	t.Helper()
	var at spot
	ok, err := db.find(db.hash([]byte(key)), []byte(key), &at)
	if !ok || err != nil {
		t.Fatalf("%s: %v, %v", key, ok, err)
	}
	return at.entry
}

func kvDB(t testing.TB, s *Store, name string) *DB {
	t.Helper()
	db, err := s.Database(bg, name, KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return db
}
