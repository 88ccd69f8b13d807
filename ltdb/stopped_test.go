package ltdb

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// hold takes a latch as a client does that is stopped then: its journal says so, and
// it lives. It returns what takes the latch off again.
func hold(t *testing.T, s *Store, what latchOf, n uint64, l *shm.Latch) (release func()) {
	t.Helper()
	a, err := s.borrow(bg)
	if err != nil {
		t.Fatal(err)
	}
	intend := func(n uint64) {
		switch what {
		case classLatch:
			a.h.classIntent.Store(uint32(n))
		case bucketLatch:
			a.h.bucketIntent.Store(n)
		case tableLatch:
			a.h.tableIntent.Store(uint32(n))
		case orphanLatch:
			a.h.orphanIntent.Store(uint32(n))
		}
	}
	intend(n)
	if !l.TryLock(a.id) {
		t.Fatal("the latch is held")
	}
	return func() {
		l.Unlock(a.id)
		intend(0)
		s.giveBack(a)
	}
}

func holdClass(t *testing.T, s *Store, c int) func() {
	return hold(t, s, classLatch, uint64(c+1), &s.classes[c].latch)
}

// endsSoon fails the test if f does not end: what it is about waits without limit
// where it is wrong.
func endsSoon(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		panic(what + " does not end")
	}
}

// TestStoppedDispatcherWaitsForNoLatch: a client is stopped with each kind of latch.
// What the dispatcher has to do with it is put aside, and done as soon as it can be.
func TestStoppedDispatcherWaitsForNoLatch(t *testing.T) {
	t.Run("class, clean-up", func(t *testing.T) {
		n := newNode(t, KV)
		stopped, err := n.s.Join(bg, "stopped")
		wantErr(t, "join", err, nil)
		dead, err := n.s.Join(bg, "dead")
		wantErr(t, "join", err, nil)
		db := database(t, dead, "db", 10)
		wantErr(t, "store", db.Store(bg, []byte("k"), []byte("v")), nil)
		lockedBy(t, db, "k")
		slot := dead.slot
		dead.c.SimulateDeath()
		release := holdClass(t, stopped, 0)
		endsSoon(t, "the clean-up", func() {
			for range 3 {
				wantErr(t, "recover", recoverAll(n.d, func(uint32) { t.Error("recovered") }), nil)
			}
		})
		// Nobody is kept: the lock is free, though the slot is not.
		if n.holder("k") != 0 || !n.d.s.c.Dead(slot) {
			t.Errorf("holder %d, dead %v", n.holder("k"), n.d.s.c.Dead(slot))
		}
		release()
		gone := 0
		wantErr(t, "recover", recoverAll(n.d, func(uint32) { gone++ }), nil)
		if gone != 1 || n.d.s.c.Dead(slot) {
			t.Errorf("%d recovered", gone)
		}
		wantErr(t, "close", stopped.Close(), nil)
		mustCheck(t, n.s)
	})
	t.Run("class, changes", func(t *testing.T) {
		n := newNode(t, KV)
		stopped, err := n.s.Join(bg, "stopped")
		wantErr(t, "join", err, nil)
		id := n.db.ID()
		for c, size := range map[int]int{2: 300, smallClasses - 1 + 0: 3000} {
			key := fmt.Append(nil, c)
			release := holdClass(t, stopped, classOf(blockSize(len(key), size)))
			endsSoon(t, "a change", func() {
				if n.d.TryLock(id, key, false) != LockTaken {
					t.Fatal("not locked")
				}
				r := Held{RSN: 1, Data: make([]byte, size)}
				if got := n.d.Publish(id, key, &r, false); got != LockHeld {
					t.Errorf("publish: %v", got)
				}
				n.d.Unlock(id, key)
				n.wantRung(string(key))
				release()
				n.wantLock(string(key), LockTaken)
				if got := n.d.Publish(id, key, &r, false); got != LockTaken {
					t.Errorf("publish: %v", got)
				}
				n.d.Unlock(id, key)
			})
		}
		wantErr(t, "close", stopped.Close(), nil)
		mustCheck(t, n.s)
	})
	t.Run("class, large records", func(t *testing.T) {
		// What a call can't give back stays in the handle, and is not lost.
		n := newNode(t, KV)
		n.s = heap(t, Config{Size: 16 << 20, Slots: 4, MaxValue: 1 << 16})
		d, err := n.s.JoinKeeper(bg, Options{})
		wantErr(t, "join", err, nil)
		db := database(t, n.s, "db", 10)
		stopped, err := n.s.Join(bg, "stopped")
		wantErr(t, "join", err, nil)
		c := classOf(blockSize(1, 30000))
		for i := range 2 * bigSlots {
			wantErr(t, "store", db.Store(bg, fmt.Append(nil, i), make([]byte, 30000)), nil)
		}
		release := holdClass(t, stopped, c)
		endsSoon(t, "the removals", func() {
			for i := range 2 * bigSlots {
				key := fmt.Append(nil, i)
				if d.TryLock(db.ID(), key, false) != LockTaken {
					t.Fatal("not locked")
				}
				d.Remove(db.ID(), key)
			}
		})
		if len(d.book.undone) == 0 || !d.Again() {
			t.Error("there was room for all")
		}
		release()
		d.Rung(func(uint32, []byte) {})
		if len(d.book.undone) != 0 {
			t.Error(d.book.undone)
		}
		wantErr(t, "close", errorsOf(d.Err(), d.Close(), stopped.Close()), nil)
		if rep := mustCheck(t, n.s); rep.Records != 0 {
			t.Errorf("%+v", rep)
		}
	})
	t.Run("orphans", func(t *testing.T) {
		n := newNode(t, Pieces)
		stopped, err := n.s.Join(bg, "stopped")
		wantErr(t, "join", err, nil)
		dead, err := n.s.Join(bg, "dead")
		wantErr(t, "join", err, nil)
		db, err := dead.Database(bg, "db", Pieces, DatabaseOptions{})
		wantErr(t, "open", err, nil)
		_, err = db.ConditionalAppend(bg, Always, []byte("k"), []byte("piece"))
		wantErr(t, "append", err, nil)
		dead.c.SimulateDeath()
		wantErr(t, "recover", recoverAll(n.d, func(uint32) {}), nil)
		release := hold(t, stopped, orphanLatch, 1, &n.s.node.orphanLatch)
		endsSoon(t, "the clean-up", func() {
			if _, left := n.d.RemoveOrphans(nil, nil); left != OrphansHeld {
				t.Error(left)
			}
		})
		release()
		if changed, left := n.d.RemoveOrphans(nil, nil); changed != 1 || left != NoOrphans {
			t.Error(changed, left)
		}
		wantErr(t, "close", stopped.Close(), nil)
		mustCheck(t, n.s)
	})
	t.Run("class, start", func(t *testing.T) {
		// A dispatcher died with free memory in its magazines; the next one starts though
		// somebody is stopped with the latch of its list.
		n := newNode(t, KV)
		n.s = heap(t, small())
		d, err := n.s.JoinKeeper(bg, Options{})
		wantErr(t, "join", err, nil)
		db := database(t, n.s, "db", 10)
		if d.TryLock(db.ID(), []byte("k"), false) != LockTaken ||
			d.Publish(db.ID(), []byte("k"), &Held{Data: []byte("v")}, false) != LockTaken {
			t.Fatal("publish")
		}
		d.s.c.SimulateDeath()
		stopped, err := n.s.Join(bg, "stopped")
		if err != nil {
			t.Fatal(err)
		}
		release := holdClass(t, stopped, 0)
		endsSoon(t, "the start", func() {
			d, err = n.s.JoinKeeper(bg, Options{})
			wantErr(t, "join", err, nil)
			d.ReleaseUnlisted(nil)
		})
		if d.Holder(db.ID(), []byte("k")) != 0 {
			t.Error("locked")
		}
		release()
		wantErr(t, "recover", recoverAll(d, func(uint32) {}), nil)
		wantErr(t, "close", errorsOf(d.Err(), d.Close(), stopped.Close()), nil)
		mustCheck(t, n.s)
	})
}

// TestDispatcherWaitsForNoGate: somebody overwrites the gate's word while the dispatcher
// changes a record. Nobody but itself would open the gate again: it does not wait, and
// what it has changed counts.
func TestDispatcherWaitsForNoGate(t *testing.T) {
	n := newNode(t, KV)
	gate := &n.d.s.gate.Gate
	was := gate.Load()
	gate.Store(was&^3 | shm.GateFrozen)
	wantErr(t, "a change", n.d.s.validate(), nil)
	gate.Store(was&^3 | shm.GateDead)
	wantErr(t, "a change of what has ended", n.d.s.validate(), ErrClosed)
	gate.Store(was)
}

func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestStoppedContext: whoever is stopped with whatever latch, a call ends with its
// context, and nothing has happened.
func TestStoppedContext(t *testing.T) {
	s := heap(t, Config{Size: 16 << 20, Slots: 4, MaxValue: 1 << 16})
	kv := database(t, s, "kv", 10)
	pieces, err := s.Database(bg, "pieces", Pieces, DatabaseOptions{Records: 10})
	wantErr(t, "open", err, nil)
	wantErr(t, "store", kv.Store(bg, []byte("there"), []byte("v")), nil)
	stopped, err := s.Join(bg, "stopped")
	wantErr(t, "join", err, nil)
	bucketOfKey := func(db *DB, key string) *bucket { return &db.buckets[db.hash([]byte(key))&db.mask] }
	large := make([]byte, 20000)
	mid := make([]byte, 2000)
	handle, err := kv.Handle()
	wantErr(t, "handle", err, nil)
	for _, c := range []struct {
		name string
		hold func() func()
		call func(ctx context.Context) error
	}{
		{"store, class", func() func() { return holdClass(t, stopped, classOf(blockSize(3, len(mid)))) },
			func(ctx context.Context) error { return kv.Store(ctx, []byte("new"), mid) }},
		{"store through a handle, class", func() func() {
			return holdClass(t, stopped, classOf(blockSize(3, len(mid))))
		},
			func(ctx context.Context) error { return handle.Store(ctx, []byte("new"), mid) }},
		{"store, large class", func() func() { return holdClass(t, stopped, classOf(blockSize(3, len(large)))) },
			func(ctx context.Context) error { return kv.Store(ctx, []byte("new"), large) }},
		{"store of a new record, bucket", func() func() {
			bk := bucketOfKey(kv, "new")
			return hold(t, stopped, bucketLatch, shm.OffsetOf(s.r, bk), &bk.latch)
		}, func(ctx context.Context) error { return kv.Store(ctx, []byte("new"), []byte("v")) }},
		{"lock of a new record, bucket", func() func() {
			bk := bucketOfKey(kv, "new")
			return hold(t, stopped, bucketLatch, shm.OffsetOf(s.r, bk), &bk.latch)
		}, func(ctx context.Context) error {
			_, err := kv.FetchLocked(ctx, []byte("new"))
			return err
		}},
		{"append, class", func() func() { return holdClass(t, stopped, classOf(blockSize(5, len(mid)))) },
			func(ctx context.Context) error { return kv.Append(ctx, []byte("there"), mid) }},
		{"conditional append, class", func() func() { return holdClass(t, stopped, classOf(blockSize(3, len(mid)))) },
			func(ctx context.Context) error {
				_, err := pieces.ConditionalAppend(ctx, Always, []byte("new"), mid)
				return err
			}},
		{"conditional append, bucket", func() func() {
			bk := bucketOfKey(pieces, "new")
			return hold(t, stopped, bucketLatch, shm.OffsetOf(s.r, bk), &bk.latch)
		}, func(ctx context.Context) error {
			_, err := pieces.ConditionalAppend(ctx, Always, []byte("new"), []byte("p"))
			return err
		}},
		{"new database, table", func() func() { return hold(t, stopped, tableLatch, 1, &s.dbHead.latch) },
			func(ctx context.Context) error {
				_, err := s.Database(ctx, "new", KV, DatabaseOptions{Records: 10})
				return err
			}},
		{"new condition, table", func() func() { return hold(t, stopped, tableLatch, 1, &s.dbHead.latch) },
			func(ctx context.Context) error {
				_, err := s.Join(ctx, "program",
					Condition{ID: 77, Name: "new", Holds: func(Snapshot, []byte) bool { return true }})
				return err
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			release := c.hold()
			endsSoon(t, c.name, func() {
				ctx, stop := context.WithTimeout(bg, 20*time.Millisecond)
				defer stop()
				err := c.call(ctx)
				wantErr(t, "call", err, context.DeadlineExceeded)
				if !strings.Contains(err.Error(),
					fmt.Sprintf(`process %d ("stopped" in slot %d`, os.Getpid(), stopped.slot)) {
					t.Errorf("the error does not say who has the latch: %v", err)
				}
			})
			release()
			for _, db := range []*DB{kv, pieces} {
				_, err := db.Fetch(bg, []byte("new"))
				wantErr(t, "fetch", err, ErrNotFound)
			}
			got, err := kv.Fetch(bg, []byte("there"))
			if wantErr(t, "fetch", err, nil); string(got) != "v" {
				t.Errorf("%q", got)
			}
		})
	}
	t.Run("pieces of the dead, whose latch is held, keep nobody out", func(t *testing.T) {
		dead, err := s.Join(bg, "dead")
		wantErr(t, "join", err, nil)
		db, err := dead.Database(bg, "pieces", Pieces, DatabaseOptions{})
		wantErr(t, "open", err, nil)
		_, err = db.ConditionalAppend(bg, Always, []byte("orphan"), []byte("p"))
		wantErr(t, "append", err, nil)
		dead.c.SimulateDeath()
		release := hold(t, stopped, orphanLatch, 1, &s.node.orphanLatch)
		endsSoon(t, "the join", func() {
			comes, err := s.Join(bg, "comes")
			wantErr(t, "join", err, nil)
			wantErr(t, "close", comes.Close(), nil)
		})
		release()
		_, err = s.Recover(bg)
		wantErr(t, "recover", err, nil)
		_, err = pieces.Fetch(bg, []byte("orphan"))
		wantErr(t, "fetch", err, ErrNotFound)
	})
	t.Run("recovery of another one", func(t *testing.T) {
		dead, err := s.Join(bg, "dead")
		wantErr(t, "join", err, nil)
		db := database(t, dead, "kv", 10)
		wantErr(t, "store", db.Store(bg, []byte("k"), []byte("v")), nil)
		lockedBy(t, db, "k")
		dead.c.SimulateDeath()
		release := holdClass(t, stopped, 0)
		endsSoon(t, "the lock of the dead", func() {
			r, err := kv.FetchLocked(bg, []byte("k"))
			if wantErr(t, "lock", err, nil); !r.OwnerDied() {
				t.Error("the death is not told")
			}
			wantErr(t, "unlock", r.Unlock(), nil)
		})
		release()
		_, err = s.Recover(bg)
		wantErr(t, "recover", err, nil)
	})
	wantErr(t, "close", errorsOf(handle.Close(), stopped.Close()), nil)
	mustCheck(t, s)
}

// TestOrphansInParts: a clean-up that is interrupted after each few pieces removes
// all of them, with deaths in between.
func TestOrphansInParts(t *testing.T) {
	n := newNode(t, Pieces)
	die := func(name string, pieces int) {
		s, err := n.s.Join(bg, name)
		wantErr(t, "join", err, nil)
		db, err := s.Database(bg, "db", Pieces, DatabaseOptions{})
		wantErr(t, "open", err, nil)
		for i := range pieces {
			if _, err := db.ConditionalAppend(bg, Always, fmt.Append(nil, name, i), []byte("piece")); err != nil {
				t.Fatal(err)
			}
		}
		s.c.SimulateDeath()
		wantErr(t, "recover", recoverAll(n.d, func(uint32) {}), nil)
	}
	die("a", 3*pageWords)
	parts, changed := 0, 0
	for left := OrphansLeft; left == OrphansLeft; parts++ {
		if parts == 5 {
			die("b", pageWords+1) // the slot's next tenant
		}
		var did int
		did, left = n.d.RemoveOrphans(nil, func() bool { return false })
		if changed += did; did > tidyStride {
			t.Fatalf("%d pieces in one part", did)
		}
		if left == OrphansHeld || parts > 4*pageWords {
			t.Fatalf("part %d: %v", parts, left)
		}
	}
	if want := 4*pageWords + 1; changed != want {
		t.Errorf("%d records changed in %d parts, want %d", changed, parts, want)
	}
	if rep := mustCheck(t, n.s); rep.Records != 0 || rep.Pieces != 0 {
		t.Errorf("%+v", rep)
	}
}
