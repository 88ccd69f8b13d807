package ltdb

import (
	"context"
	"fmt"
	"testing"
)

// Scan gives out each record once, however it is cut.
func TestScan(t *testing.T) {
	ctx := context.Background()
	s, err := OpenHeap(Config{Size: 32 << 20, Slots: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db, err := s.Database(ctx, "db", KV, DatabaseOptions{Records: 8}) // so that there are chains
	if err != nil {
		t.Fatal(err)
	}
	const n = 500
	for i := range n {
		if err := db.Store(ctx, fmt.Append(nil, "key", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	d, err := s.JoinKeeper(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, batch := range []int{1, 7, n + 1} {
		seen := map[string]int{}
		for cursor, turns := uint64(0), 0; ; turns++ {
			if turns > 2*n {
				t.Fatal("it does not end")
			}
			left := batch
			cursor = d.Scan(db.ID(), cursor, func(key []byte, r *Held) bool {
				seen[string(key)]++
				left--
				return left > 0
			})
			if cursor == 0 {
				break
			}
		}
		for key, times := range seen {
			if times != 1 {
				t.Errorf("batches of %d: %s came %d times", batch, key, times)
			}
		}
		if len(seen) != n {
			t.Errorf("batches of %d: %d records of %d", batch, len(seen), n)
		}
	}
}

// An announcement that is withdrawn leaves a lock alone that another goroutine
// of the client holds.
func TestWithdrawLeavesOthersLocks(t *testing.T) {
	ctx := context.Background()
	s, err := OpenHeap(Config{Size: 32 << 20, Slots: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db, err := s.Database(ctx, "db", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	key := []byte("k")
	r, err := db.FetchLocked(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	n, err := db.Announce(bg, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Withdraw(n, false); err != nil {
		t.Fatal(err)
	}
	if _, err := db.TryFetchLocked(ctx, key); err != ErrLocked {
		t.Errorf("the record is not locked any more: %v", err)
	}
	if err := r.StoreUnlock([]byte("v")); err != nil {
		t.Error(err)
	}
	if locked, err := s.Locked(ctx); err != nil || len(locked) != 0 {
		t.Errorf("locked: %v, %v", locked, err)
	}
}
