//go:build !shmsim

package ltdb

import (
	"errors"
	"runtime"
	"testing"

	"github.com/mainzdb/mainz/shm"
)

// Record.Store whose commit happened and whose validation failed leaves l.at
// at the old block: the next StoreUnlock frees that twice.
func TestStoreOutsideTheLease(t *testing.T) {
	s := heap(t, small())
	db, err := s.Database(bg, "x", KV, DatabaseOptions{Records: 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Store(bg, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	r, err := db.FetchLocked(bg, []byte("k"))
	if err != nil {
		t.Fatal(err)
	}
	s.leas.Ticks.Store(1)
	if err := r.Store([]byte("w")); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("store outside the lease: %v", err)
	}
	s.leas.Ticks.Store(shm.NoLease)
	if err := r.StoreUnlock([]byte("u")); err != nil {
		t.Error(err)
	}
	mustCheck(t, s)
}

// Close gives the client's free blocks back, and waits for the latch that it
// needs for that, however long another client holds it.
func TestCloseWaitsForALatch(t *testing.T) {
	s := heap(t, small())
	db, err := s.Database(bg, "x", KV, DatabaseOptions{Records: 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Store(bg, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	b, err := s.Join(bg, "b")
	if err != nil {
		t.Fatal(err)
	}
	dbb, err := b.Database(bg, "x", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := dbb.Store(bg, []byte("j"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	latch := &s.classes[0].latch
	s.actors[0].h.classIntent.Store(1)
	if !latch.TryLock(s.c.HandleID(0)) {
		t.Fatal("the latch is taken")
	}
	slices := func() uint64 { return b.c.Slices().Ended }
	before, closed := slices(), make(chan error, 1)
	go func() { closed <- b.Close() }()
	for slices() == before { // it sleeps, and looks again
		select {
		case err := <-closed:
			t.Fatalf("Close did not wait: %v", err)
		default:
			runtime.Gosched()
		}
	}
	latch.Unlock(s.c.HandleID(0))
	s.actors[0].h.classIntent.Store(0)
	if err := <-closed; err != nil {
		t.Errorf("close: %v; %+v", err, s.Clients())
	}
}
