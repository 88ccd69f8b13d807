package ltdb

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// The next who gets a record in hands hears that its last holder died with it,
// whether it has a value or not, and whatever came in between.

// diedWith leaves a record whose holder has died with the lock.
func diedWith(t *testing.T, s *Store, mode Mode, key string, value bool) {
	t.Helper()
	dead, err := s.Join(bg, "dead")
	if err != nil {
		t.Fatal(err)
	}
	db, err := dead.Database(bg, mode.String(), mode, DatabaseOptions{Records: 100})
	if err != nil {
		t.Fatal(err)
	}
	if value {
		mine, err := s.Database(bg, mode.String(), mode, DatabaseOptions{Records: 100})
		if err == nil {
			err = mine.append(Always, []byte(key), []byte("value"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.FetchLocked(bg, []byte(key)); err != nil {
		t.Fatal(err)
	}
	dead.c.SimulateDeath()
}

func TestOwnerDied(t *testing.T) {
	key := []byte("key")
	dispatcher := func(t *testing.T, s *Store) *Keeper {
		d, err := s.JoinKeeper(bg, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	ways := []struct {
		name string
		do   func(t *testing.T, db *DB)
	}{
		{"the waiter repairs", func(*testing.T, *DB) {}},
		{"somebody recovers", func(t *testing.T, db *DB) {
			if n, err := db.s.Recover(bg); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		}},
		{"the slot has a new tenant", func(t *testing.T, db *DB) {
			for range 3 { // the last of them finds no free slot but the dead one's
				if _, err := db.s.Join(bg, "new"); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"a dispatcher starts", func(t *testing.T, db *DB) {
			d := dispatcher(t, db.s)
			d.ReleaseUnlisted(func(uint32, []byte) bool { return false })
			d.Rung(func(uint32, []byte) {})
			d.Close()
		}},
		{"a dispatcher starts after the repair", func(t *testing.T, db *DB) {
			if _, err := db.s.Recover(bg); err != nil {
				t.Fatal(err)
			}
			d := dispatcher(t, db.s)
			d.ReleaseUnlisted(func(uint32, []byte) bool { return false })
			d.Close()
		}},
		{"the dispatcher gets it first", func(t *testing.T, db *DB) {
			d := dispatcher(t, db.s)
			if r := d.TryLock(db.id, key, false); r == LockHeld {
				if _, err := db.s.Recover(bg); err != nil {
					t.Fatal(err)
				}
				if d.TryLock(db.id, key, false) != LockTaken {
					t.Fatal("D got nothing")
				}
			}
			d.Unlock(db.id, key)
			d.Close()
		}},
		{"the dispatcher changes it", func(t *testing.T, db *DB) {
			d := dispatcher(t, db.s)
			if _, err := db.s.Recover(bg); err != nil || d.TryLock(db.id, key, false) != LockTaken {
				t.Fatal(err)
			}
			var h Held
			if !d.Look(db.id, key, &h) || d.Publish(db.id, key, &h, false) != LockTaken {
				t.Fatal("no change")
			}
			d.Unlock(db.id, key)
			d.Close()
		}},
		{"the dispatcher attends it", func(t *testing.T, db *DB) {
			d := dispatcher(t, db.s)
			if _, err := db.s.Recover(bg); err != nil {
				t.Fatal(err)
			}
			d.Attend(db.id, key, true)
			d.Attend(db.id, key, false)
			d.Close()
		}},
		{"it is read, and waited for", func(t *testing.T, db *DB) {
			if _, err := db.Fetch(bg, key); err != nil && !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
			ctx, stop := context.WithTimeout(bg, 30*time.Millisecond)
			defer stop()
			_, err := db.ConditionalAppendWait(ctx, 20, key, []byte("x"))
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
		}},
		{"others append and remove", func(t *testing.T, db *DB) {
			p, err := db.ConditionalAppend(bg, Always, key, []byte("new"))
			if err == nil && db.mode == KV {
				err = db.RemoveMatching(bg, Always, key, []byte("new"))
			} else if err == nil {
				err = db.RemoveAndTrigger(bg, key, p)
			}
			if err != nil {
				t.Fatal(err)
			}
		}},
		{"others store", func(t *testing.T, db *DB) {
			if db.mode != KV {
				return
			}
			if err := errors.Join(db.Append(bg, key, []byte("more"))); err != nil {
				t.Fatal(err)
			}
			if err := db.Store(bg, key, make([]byte, 2000)); err != nil {
				t.Fatal(err)
			}
		}},
	}
	never := Condition{ID: 20, Name: "never", Version: 1, Holds: func(Snapshot, []byte) bool { return false }}
	for _, mode := range []Mode{KV, Pieces} {
		for _, value := range []bool{true, false} {
			for _, way := range ways {
				t.Run(fmt.Sprintf("%v/%v/%s", mode, value, way.name), func(t *testing.T) {
					cfg := small()
					s, err := OpenHeap(cfg, never)
					if err != nil {
						t.Fatal(err)
					}
					defer s.Close()
					diedWith(t, s, mode, "key", value)
					db, err := s.Database(bg, mode.String(), mode, DatabaseOptions{Records: 100})
					if err != nil {
						t.Fatal(err)
					}
					way.do(t, db)
					for again := range 2 {
						r, err := db.FetchLocked(bg, key)
						if err != nil {
							t.Fatal(err)
						}
						if r.OwnerDied() != (again == 0) {
							t.Errorf("the %d. who locks it: OwnerDied is %v", again+1, r.OwnerDied())
						}
						if err := r.Unlock(); err != nil {
							t.Fatal(err)
						}
					}
					if r := mustCheck(t, s); r.Empty != 0 {
						t.Errorf("%d empty records are left", r.Empty)
					}
				})
			}
		}
	}
}

// A Delete ends a record with all that is known of it, and a call that dies
// while it makes a record leaves nothing to be told.
func TestOwnerDiedEnds(t *testing.T) {
	s := heap(t, small())
	for _, value := range []bool{true, false} {
		diedWith(t, s, KV, "key", value)
		db, err := s.Database(bg, "kv", KV, DatabaseOptions{Records: 100})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Delete(bg, []byte("key")); err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if r := mustCheck(t, s); r.Empty+r.Records != 0 {
			t.Fatalf("%+v", r)
		}
	}
}
