package ltdb

import (
	"slices"
	"strings"
	"testing"
)

// A slot is taken over whatever its last tenant has left: here free blocks in
// each of its handles, of a class whose latch a client holds that does not run.
func TestTakeOverWithoutLists(t *testing.T) {
	s, err := OpenHeap(Config{Slots: 2, Size: 8 << 20, MaxValue: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dead, err := s.Join(bg, "dead")
	if err != nil {
		t.Fatal(err)
	}
	for i := range dead.actors {
		if err := dead.actors[i].refill(0, 2); err != nil {
			t.Fatal(err)
		}
	}
	dead.c.SimulateDeath()
	// The client of s is stopped with the latch.
	s.actors[0].h.classIntent.Store(1)
	if !s.classes[0].latch.TryLock(s.actors[0].id) {
		t.Fatal("the latch is not free")
	}
	next, err := s.Join(bg, "next")
	if err != nil {
		t.Fatal(err)
	}
	if next.slot != dead.slot {
		t.Fatalf("the next client has slot %d, not %d", next.slot, dead.slot)
	}
	idle := 0
	for i := range next.actors {
		if next.actors[i].use.Load() == actorIdle {
			idle++
		}
	}
	if idle != pooled {
		t.Errorf("%d actors can be used, want %d: the others keep their blocks", idle, pooled)
	}
	if all := next.Damage(); !slices.ContainsFunc(all,
		func(d string) bool { return strings.Contains(d, "was given up") }) {
		t.Errorf("the damage noted is %q", all)
	}
	s.classes[0].latch.Unlock(s.actors[0].id)
	s.actors[0].h.classIntent.Store(0)
	db, err := next.Database(bg, "db", KV, DatabaseOptions{Records: 10})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Store(bg, []byte("k"), []byte("v")); err != nil {
		t.Error(err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}
