package ltdb

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// What the bits of a lock word say, they say of somebody who may be gone. The word of a
// free record gets every combination of them here, with nobody asleep and nobody in
// line; and everybody who may come next takes the record at once.
func TestStaleBits(t *testing.T) {
	for _, bits := range []uint64{bitS, bitW, bitD, bitW | bitS, bitS | bitD, bitW | bitD, bitW | bitS | bitD} {
		for _, k := range []struct {
			name string
			do   func(n *node) error
		}{
			{"try", func(n *node) error {
				r, err := n.db.TryFetchLocked(bg, []byte("k"))
				if err != nil {
					return err
				}
				return r.StoreUnlock([]byte("w"))
			}},
			{"lock", func(n *node) error {
				r, err := n.db.FetchLocked(bg, []byte("k"))
				if err != nil {
					return err
				}
				return r.StoreUnlock([]byte("w"))
			}},
			{"store", func(n *node) error { return n.db.Store(bg, []byte("k"), []byte("w")) }},
			{"append", func(n *node) error { return n.db.Append(bg, []byte("k"), []byte("w")) }},
			{"delete and store", func(n *node) error {
				return errors.Join(n.db.Delete(bg, []byte("k")), n.db.Store(bg, []byte("k"), []byte("w")))
			}},
			{"touch", func(n *node) error {
				n.d.Touch(n.db.ID(), []byte("k"), 1, 1)
				return n.d.Err()
			}},
			{"dispatcher", func(n *node) error {
				// It leaves a record to a sleeper for one turn, and takes it at the next.
				if n.lock("k") != LockTaken {
					got := LockHeld
					n.d.Rung(func(uint32, []byte) { got = n.lock("k") })
					if got != LockTaken {
						return ErrLocked
					}
				}
				n.unlock("k")
				return n.d.Err()
			}},
			{"scan of a new dispatcher", func(n *node) error {
				n.d.ReleaseUnlisted(func(uint32, []byte) bool { return false })
				return n.d.Err()
			}},
		} {
			n := newNode(t, KV)
			wantErr(t, "store", n.db.Store(bg, []byte("k"), []byte("v")), nil)
			entry := n.entry("k")
			entry.Store(entry.Load() | bits)
			done := make(chan error, 1)
			go func() { done <- k.do(n) }()
			select {
			case err := <-done:
				wantErr(t, k.name, err, nil)
			case <-time.After(10 * time.Second):
				t.Fatalf("%s waits for nobody, with %#x", k.name, bits)
			}
			if e := n.entry("k").Load(); e&(ownerMask|bitS) != 0 && k.name != "scan of a new dispatcher" {
				t.Errorf("%s leaves %#x of %#x", k.name, e&lockBits, bits)
			}
		}
	}
}

func (n *node) entry(key string) *shm.Word64 {
	var at spot
	if ok, err := n.db.find(n.db.hash([]byte(key)), []byte(key), &at); !ok || err != nil {
		n.t.Fatal("no record ", key, err)
	}
	return at.entry
}

// TestStaleWaiters: a waiter that is cancelled, that dies or that comes late leaves a
// record that the next one can take at once.
func TestStaleWaiters(t *testing.T) {
	s, err := OpenHeap(Config{Size: 8 << 20, Slots: 8, MaxValue: 200})
	wantErr(t, "open", err, nil)
	defer s.Close()
	mine := sure(s.Database(bg, "db", KV, DatabaseOptions{}))
	key := []byte("k")
	wantErr(t, "store", mine.Store(bg, key, []byte("v")), nil)
	for _, way := range []string{"cancelled", "killed", "late"} {
		t.Run(way, func(t *testing.T) {
			other, err := s.Join(bg, way)
			wantErr(t, "join", err, nil)
			db := sure(other.Database(bg, "db", KV, DatabaseOptions{}))
			r, err := mine.FetchLocked(bg, key)
			wantErr(t, "lock", err, nil)
			ctx, cancel := context.WithCancel(bg)
			defer cancel()
			got := make(chan error, 1)
			go func() {
				r, err := db.FetchLocked(ctx, key)
				if err == nil {
					err = r.Unlock()
				}
				got <- err
			}()
			// It sleeps, and the process that has the record has had it for its share.
			// polls: the kernel puts it to sleep
			for end := time.Now().Add(10 * time.Second); r.l.at.entry.Load()&bitW == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("nobody sleeps")
				}
			}
			sh := &s.turns.shares[shm.OffsetOf(s.r, r.l.at.entry)/8%uint64(len(s.turns.shares))]
			sh.entry, sh.since = r.l.at.entry, time.Now().Add(-time.Second)
			switch way {
			case "cancelled":
				cancel()
				wantErr(t, "waiter", <-got, context.Canceled)
			case "killed":
				other.c.SimulateDeath()
			}
			wantErr(t, "unlock", r.Unlock(), nil)
			if way == "late" {
				wantErr(t, "waiter", <-got, nil)
			}
			rec, err := mine.TryFetchLocked(bg, key)
			wantErr(t, "try", err, nil)
			wantErr(t, "unlock", rec.Unlock(), nil)
			if way == "killed" {
				if _, err := s.Recover(bg); err != nil {
					t.Fatal(err)
				}
				cancel()
				<-got
			}
			if e := rec.l.at.entry.Load(); e&bitS != 0 {
				t.Errorf("S stays: %#x", e&lockBits)
			}
			if way != "killed" {
				wantErr(t, "close", other.Close(), nil)
			}
		})
	}
}

func sure[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
