package ltdb

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/mainzdb/mainz/internal/testenv"
)

// TestGuardedData: what an application guards by a record lock is no data race, over
// mapped memory too, which the race detector knows nothing of. With the detector off
// this is only a count.
func TestGuardedData(t *testing.T) {
	testenv.Need(t, testenv.Linux)
	s, err := Open(bg, filepath.Join(testenv.ShmDir(t), "cluster", "0", "v1"),
		Options{Create: true, Config: Config{Size: 16 << 20, Slots: 4}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db, err := s.Database(bg, "guards", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const goroutines, rounds = 4, 200
	guarded, errs := 0, make([]error, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() { errs[g] = guardedRounds(db, g, rounds, &guarded) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	if guarded != goroutines*rounds {
		t.Errorf("%d of %d additions", guarded, goroutines*rounds)
	}
}

// guardedRounds goes through a Handle if g is odd, and ends its locks in every way.
func guardedRounds(db *DB, g, rounds int, guarded *int) error {
	lock := func() (Record, error) { return db.FetchLocked(bg, []byte("key")) }
	if g%2 == 1 {
		h, err := db.Handle()
		if err != nil {
			return err
		}
		defer h.Close()
		lock = func() (Record, error) { return h.FetchLocked(bg, []byte("key")) }
	}
	for i := range rounds {
		r, err := lock()
		if err != nil {
			return err
		}
		*guarded++
		switch i % 3 {
		case 0:
			err = r.Unlock()
		case 1:
			err = r.StoreUnlock([]byte("value"))
		default:
			err = r.Delete()
		}
		if err != nil {
			return err
		}
	}
	return nil
}
