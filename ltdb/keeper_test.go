package ltdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// node is a store with a dispatcher, and how often the bell was rung.
type node struct {
	t    testing.TB
	s    *Store
	d    *Keeper
	db   *DB
	told []string
}

func newNode(t testing.TB, mode Mode) *node {
	n := &node{t: t, s: heap(t, small())}
	d, err := n.s.JoinKeeper(bg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	n.d = d
	t.Cleanup(func() {
		wantErr(t, "dispatcher", d.Err(), nil)
		wantErr(t, "close", d.Close(), nil)
	})
	if n.db, err = n.s.Database(bg, "db", mode, DatabaseOptions{Records: 10}); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) lock(key string) LockResult { return n.d.TryLock(n.db.ID(), []byte(key), false) }
func (n *node) unlock(key string)          { n.d.Unlock(n.db.ID(), []byte(key)) }
func (n *node) holder(key string) uint32   { return n.d.Holder(n.db.ID(), []byte(key)) }

func (n *node) wantLock(key string, want LockResult) {
	n.t.Helper()
	if got := n.lock(key); got != want {
		n.t.Errorf("TryLock of %q: %v, want %v", key, got, want)
	}
}

// rung returns what Rung tells.
func (n *node) rung() []string {
	n.told = n.told[:0]
	n.d.Rung(func(db uint32, key []byte) {
		if db != n.db.ID() {
			n.t.Errorf("database %d", db)
		}
		n.told = append(n.told, string(key))
	})
	slices.Sort(n.told)
	return n.told
}

func (n *node) wantRung(want ...string) {
	n.t.Helper()
	if got := n.rung(); !slices.Equal(got, want) {
		n.t.Errorf("told of %q, want %q", got, want)
	}
}

func TestDispatcherLocks(t *testing.T) {
	n := newNode(t, KV)
	db := n.db
	_, err := n.s.JoinKeeper(bg, Options{})
	wantErr(t, "second dispatcher", err, ErrInUse)
	// A record that is not there is made, and goes with the lock.
	n.wantLock("new", LockTaken)
	n.wantLock("new", LockTaken)
	if n.holder("new") != DispatcherSlot {
		t.Error("not the dispatcher's")
	}
	_, err = db.TryFetchLocked(bg, []byte("new"))
	wantErr(t, "lock", err, ErrLocked)
	n.unlock("new")
	if rep := mustCheck(t, n.s); rep.Empty != 0 || n.holder("new") != 0 {
		t.Errorf("%+v", rep)
	}
	// Held: handed over with the release, in all its forms.
	for what, release := range map[string]func(r Record) error{
		"unlock": Record.Unlock,
		"store":  func(r Record) error { return r.StoreUnlock([]byte("v")) },
	} {
		wantErr(t, "store", db.Store(bg, []byte("k"), []byte("old")), nil)
		r := lockedBy(t, db, "k")
		n.wantLock("k", LockHeld)
		n.wantLock("k", LockHeld)
		n.wantRung()
		wantErr(t, what, release(r), nil)
		if n.holder("k") != DispatcherSlot {
			t.Errorf("%s: not handed over", what)
		}
		n.wantRung("k")
		n.wantRung()
		n.wantLock("k", LockTaken)
		n.unlock("k")
	}
	// Deleted: told as well, and there is nothing to hand over.
	r := lockedBy(t, db, "k")
	n.wantLock("k", LockHeld)
	wantErr(t, "delete", r.Delete(), nil)
	n.wantRung("k")
	n.wantLock("k", LockTaken)
	n.unlock("k")
	// The holder dies.
	other, err := n.s.Join(bg, "other")
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "store", db.Store(bg, []byte("k"), []byte("v")), nil)
	lockedBy(t, database(t, other, "db", 10), "k")
	n.wantLock("k", LockHeld)
	other.c.SimulateDeath()
	gone := 0
	wantErr(t, "recover", recoverAll(n.d, func(uint32) { gone++ }), nil)
	if gone != 1 {
		t.Errorf("%d dead", gone)
	}
	n.wantRung("k")
	if n.holder("k") != DispatcherSlot {
		t.Error("not handed over")
	}
	n.unlock("k")
	// A waiting client gets it from the dispatcher.
	n.wantLock("k", LockTaken)
	got := make(chan error, 1)
	go func() {
		r, err := db.FetchLocked(bg, []byte("k"))
		if err == nil && !r.OwnerDied() {
			err = errors.New("the death is not told")
		}
		got <- errors.Join(err, r.Unlock())
	}()
	for !waits(n.s, n.s.slot) {
		time.Sleep(time.Millisecond) // a bounded poll: the test's own limit
	}
	n.unlock("k")
	wantErr(t, "lock", <-got, nil)
	// What is at another node, in no database, damaged: no lock.
	if n.d.TryLock(12345, []byte("k"), false) != LockNoSpace || n.d.Holder(12345, []byte("k")) != 0 {
		t.Error("unknown database")
	}
}

func TestDispatcherReadsAndWrites(t *testing.T) {
	n := newNode(t, KV)
	id, key := n.db.ID(), []byte("k")
	var v Held
	if n.d.Look(id, key, &v) {
		t.Error("there is no record")
	}
	n.wantLock("k", LockTaken)
	if n.d.Publish(id, key, &Held{RSN: 7, LAccessor: 3, LACount: 2, Data: []byte("value")}, false) != LockTaken {
		t.Error("no room")
	}
	if !n.d.Look(id, key, &v) || string(v.Data) != "value" || v.RSN != 7 || v.LAccessor != 3 || v.LACount != 2 ||
		len(v.Tags) != 0 {
		t.Errorf("%+v", v)
	}
	n.unlock("k")
	wantValue(t, n.db, "k", "value")
	n.d.Touch(id, key, 5, 9)
	if n.d.Look(id, key, &v); v.LAccessor != 5 || v.LACount != 9 || v.RSN != 7 {
		t.Errorf("%+v", v)
	}
	if n.wantLock("k", LockTaken); n.d.Publish(id, key, &Held{Data: make([]byte, n.s.MaxValue()+1)},
		false) == LockTaken ||
		n.d.Publish(id, key, &Held{Data: []byte("x"), Tags: appendTag(nil, OPID{}, 1)}, false) == LockTaken {
		t.Error("too much")
	}
	n.d.Remove(id, key)
	if n.d.Look(id, key, &v) || n.holder("k") != 0 {
		t.Error("it is still there")
	}
	if rep := mustCheck(t, n.s); rep.Records+rep.Empty != 0 {
		t.Errorf("%+v", rep)
	}
}

// TestDispatcherAttends: whoever commits a change to an attended record rings.
func TestDispatcherAttends(t *testing.T) {
	n := newNode(t, Pieces)
	id, key := n.db.ID(), []byte("k")
	p, err := n.db.ConditionalAppend(bg, Always, key, exclusive(1))
	wantErr(t, "append", err, nil)
	var v Held
	n.d.Look(id, key, &v)
	n.d.Attend(id, key, true)
	n.wantRung()
	q, err := n.db.ConditionalAppend(bg, Always, key, exclusive(2))
	wantErr(t, "append", err, nil)
	n.wantRung("k")
	n.wantRung()
	wantErr(t, "remove", n.db.RemoveAndTrigger(bg, key, p), nil)
	n.wantRung("k")
	// Emptied: it stays, and is told.
	wantErr(t, "remove", n.db.RemoveAndTrigger(bg, key, q), nil)
	n.wantRung("k")
	if rep := mustCheck(t, n.s); rep.Empty != 1 {
		t.Errorf("%+v", rep)
	}
	p, err = n.db.ConditionalAppend(bg, IfAbsent, key, exclusive(1))
	wantErr(t, "append", err, nil)
	n.wantRung("k")
	// Changed between the look and Attend: told at once.
	n.d.Attend(id, key, false)
	n.d.Look(id, key, &v)
	q, err = n.db.ConditionalAppend(bg, Always, key, exclusive(2))
	wantErr(t, "append", err, nil)
	n.d.Look(id, key, &v) // a second look does not make up for it
	n.d.Attend(id, key, true)
	n.wantRung("k")
	n.d.Attend(id, key, false)
	// Locked by a client: told when it is released.
	r := lockedBy(t, n.db, "k")
	n.d.Look(id, key, &v)
	n.d.Attend(id, key, true)
	n.wantRung()
	wantErr(t, "unlock", r.Unlock(), nil)
	n.wantRung("k")
	n.wantLock("k", LockTaken)
	n.unlock("k")
	n.d.Attend(id, key, false)
	for _, p := range []Piece{p, q} {
		wantErr(t, "remove", n.db.RemoveAndTrigger(bg, key, p), nil)
	}
	n.wantRung()
	if rep := mustCheck(t, n.s); rep.Empty != 0 || len(n.d.book.of) != 0 {
		t.Errorf("%+v, %d watches", rep, len(n.d.book.of))
	}
}

// TestDispatcherTurns: after some services in a row a sleeping client goes first.
func TestDispatcherTurns(t *testing.T) {
	n := newNode(t, KV)
	wantErr(t, "store", n.db.Store(bg, []byte("k"), []byte("v")), nil)
	n.wantLock("k", LockTaken)
	var at spot
	key := []byte("k")
	served := 0
	for {
		// A client that sleeps, as far as the entry tells.
		if !n.d.findHeld(n.db.ID(), key, &at) {
			t.Fatal("not held")
		}
		for e := at.entry.Load(); !at.entry.CAS(e, e|bitW); e = at.entry.Load() {
		}
		n.unlock("k")
		served++
		if at.entry.Load()&bitS != 0 {
			break
		}
		n.wantLock("k", LockTaken)
	}
	if served != localBurst {
		t.Errorf("served %d times", served)
	}
	// It leaves the record to the sleeper for one turn. None is there.
	n.wantLock("k", LockHeld)
	if !n.d.Again() {
		t.Error("there is nothing to do later")
	}
	n.d.Rung(func(uint32, []byte) { n.wantLock("k", LockTaken) })
	n.unlock("k")
}

// TestDispatcherLatched: an insert that meets a latched bucket is tried again.
func TestDispatcherLatched(t *testing.T) {
	n := newNode(t, KV)
	bk := &n.db.buckets[n.db.hash([]byte("k"))&n.db.mask]
	a := &n.s.actors[5]
	a.h.bucketIntent.Store(shm.OffsetOf(n.s.r, bk))
	bk.latch.TryLock(a.id)
	n.wantLock("k", LockHeld)
	n.wantRung("k")
	n.wantLock("k", LockHeld)
	bk.latch.Unlock(a.id)
	a.h.bucketIntent.Store(0)
	n.wantRung("k")
	n.wantLock("k", LockTaken)
	n.unlock("k")
}

// TestDispatcherReserve: what arrives finds room that others don't.
func TestDispatcherReserve(t *testing.T) {
	n := newNode(t, KV)
	n.fillUp()
	if n.s.reserve == 0 {
		t.Fatal("there is no reserve")
	}
	id, big := n.db.ID(), &Held{RSN: 1, Data: make([]byte, 2900)}
	n.wantLock("1", LockTaken)
	if n.d.Publish(id, []byte("1"), big, false) == LockTaken {
		t.Error("an ordinary record found room")
	}
	if n.d.Room() == 0 || n.d.Publish(id, []byte("1"), big, true) != LockTaken {
		t.Error("an arriving record found none")
	}
	n.unlock("1")
	wantErr(t, "dispatcher", n.d.Err(), nil)
}

func (n *node) fillUp() {
	for i := 0; ; i++ {
		if err := n.db.Store(bg, fmt.Appendf(nil, "%d", i), make([]byte, 1000)); err != nil {
			isFull(n.t, err)
			return
		}
	}
}

// generation is that of the node's client.
func (n *node) generation() uint32 {
	g, _ := n.s.Tenant(n.s.slot)
	return uint32(g)
}

func TestUnlockTo(t *testing.T) {
	n := newNode(t, KV)
	id := n.db.ID()
	h, err := n.db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, key := range []string{"old", "new"} {
		if key == "old" {
			wantErr(t, "store", n.db.Store(bg, []byte(key), []byte("v")), nil)
		}
		n.wantLock("never announced", LockTaken)
		if n.d.UnlockTo(id, []byte("never announced"), n.s.slot, n.generation()) || n.holder("never announced") != 0 {
			t.Error("the lock was left to nobody")
		}
		ann, err := h.Announce(bg, []byte(key))
		wantErr(t, "announce", err, nil)
		_, err = ann.Record()
		wantErr(t, "too early", err, ErrNotLocked)
		ann, err = h.Announce(bg, []byte(key))
		wantErr(t, "announce", err, nil)
		n.wantLock(key, LockTaken)
		if !n.d.UnlockTo(id, []byte(key), n.s.slot, n.generation()) || n.holder(key) != n.s.slot {
			t.Error("the lock was not left")
		}
		r, err := ann.Record()
		wantErr(t, "record", err, nil)
		wantErr(t, "store", r.StoreUnlock(append(r.Data(), '+')), nil)
		ann, err = h.Announce(bg, []byte(key))
		wantErr(t, "announce", err, nil)
		n.wantLock(key, LockTaken)
		n.d.UnlockTo(id, []byte(key), n.s.slot, n.generation())
		wantErr(t, "cancel", ann.Cancel(), nil)
		if n.holder(key) != 0 {
			t.Error("cancelled, and still held")
		}
	}
	wantValue(t, n.db, "old", "v+")
	wantValue(t, n.db, "new", "+")
}

// TestGave: a dispatcher has died when it left a lock to a client. The next one finds out
// whether it had: the client has the lock if it still wants it, and nobody else is
// kept from it.
func TestGave(t *testing.T) {
	n := newNode(t, KV)
	id := n.db.ID()
	h, err := n.db.Handle()
	wantErr(t, "handle", err, nil)
	defer h.Close()
	other, err := n.s.Join(bg, "other")
	wantErr(t, "join", err, nil)
	defer other.Close()
	for _, c := range []struct {
		what       string
		announced  bool
		given      bool // the dispatcher had got that far
		generation uint32
		want       bool
		holder     uint32
	}{
		{"given", true, true, 0, true, n.s.slot},
		{"not given yet", true, false, 0, false, DispatcherSlot},
		{"to who does not want it any more", false, true, 0, false, 0},
		{"to the tenant before", true, true, 1, false, 0},
	} {
		key := []byte(c.what)
		var ann *Announced
		if c.announced {
			ann, err = h.Announce(bg, key)
			wantErr(t, "announce", err, nil)
		}
		n.wantLock(c.what, LockTaken)
		var at spot
		if ok, err := n.db.find(n.db.hash(key), key, &at); !ok || err != nil {
			t.Fatalf("%s: found %v, %v", c.what, ok, err)
		}
		if c.given { // as UnlockTo does before its second look
			e := at.entry.Load()
			at.entry.Store(e&identity | bitD | ownedBy(n.s.slot))
		}
		if got := n.d.Gave(id, key, n.s.slot, n.generation()-c.generation); got != c.want || n.holder(c.what) != c.holder {
			t.Errorf("%s: gave %v, the holder is %d; want %v and %d", c.what, got, n.holder(c.what), c.want, c.holder)
		}
		if c.want && at.entry.Load()&bitD != 0 {
			t.Errorf("%s: the dispatcher's mark stays", c.what)
		}
		switch {
		case c.want:
			r, err := ann.Record()
			wantErr(t, "record", err, nil)
			wantErr(t, "store", r.StoreUnlock([]byte("v")), nil)
			wantValue(t, n.db, c.what, "v")
		case c.holder == DispatcherSlot:
			n.unlock(c.what)
			wantErr(t, "cancel", ann.Cancel(), nil)
		case ann != nil:
			wantErr(t, "cancel", ann.Cancel(), nil)
		}
	}
	// What another client has is his, and a record that is not there is nobody's.
	r := lockedBy(t, database(t, other, "db", 10), "theirs")
	for _, key := range []string{"theirs", "nothing"} {
		if n.d.Gave(id, []byte(key), n.s.slot, n.generation()) || n.d.Gave(id, []byte(key), DispatcherSlot, n.generation()) {
			t.Errorf("%s: was given", key)
		}
	}
	wantErr(t, "their store", r.StoreUnlock([]byte("v")), nil)
	mustCheck(t, n.s)
}

// TestRecoveryOfNode: freeze, pass, sweep, provisional records, opening.
func TestRecoveryOfNode(t *testing.T) {
	n := newNode(t, Pieces)
	id, key := n.db.ID(), []byte("k")
	mine, err := n.db.ConditionalAppend(bg, Always, key, []byte("mine"))
	wantErr(t, "append", err, nil)
	// Two pieces of other nodes, by the dispatcher.
	n.wantLock("k", LockTaken)
	var v Held
	n.d.Look(id, key, &v)
	v.Data, v.Tags = append(v.Data, "stayedgone"...), appendTag(appendTag(v.Tags, OPID{2, 3, 4}, 6), OPID{5, 6, 7}, 4)
	v.RSN++
	if n.d.Publish(id, key, &v, false) != LockTaken {
		t.Error("no room")
	}
	n.unlock("k")
	wantValue(t, n.db, "k", "minestayedgone")
	r := lockedBy(t, n.db, "k")
	n.d.Freeze()
	a := &n.s.actors[7]
	a.h.busy.Store(1)
	var p Pass
	busy, err := n.d.Pass(&p)
	if err != nil || !slices.Equal(busy, []uint32{n.s.slot}) {
		t.Errorf("pass: %v, %v", busy, err)
	}
	a.h.busy.Store(0)
	if busy, err = n.d.Pass(&p); busy != nil || err != nil {
		t.Errorf("pass: %v, %v", busy, err)
	}
	short, stop := context.WithTimeout(bg, 5*time.Millisecond)
	_, err = n.db.ConditionalAppend(short, Always, key, []byte("x"))
	wantErr(t, "append", err, context.DeadlineExceeded)
	stop()
	n.d.Mapped(9<<16, 4, 2, 1)
	n.d.Sweep(func(o OPID) bool { return o.PNN != 5 })
	for _, k := range []string{"lost", "never"} {
		for _, o := range []uint64{3, 1, 2, 2} {
			if !n.d.Provisional(id, []byte(k), OPID{1, 1, o}, fmt.Append(nil, o), 9<<16) {
				t.Error("no room")
			}
		}
		if !n.d.IsProvisional(id, []byte(k)) || n.d.IsProvisional(id, key) {
			t.Error("provisional")
		}
	}
	if !n.d.Provisional(id, key, OPID{1, 1, 1}, []byte("not here"), 9<<16) {
		t.Error("a record that is there")
	}
	var all []string
	n.d.Each(func(_ uint32, key []byte, rsn uint64) { all = append(all, fmt.Sprint(string(key), rsn)) })
	slices.Sort(all)
	if !slices.Equal(all, []string{"k3", "lost1", "never1"}) {
		t.Error(all)
	}
	n.d.DropProvisional()
	if n.d.Provisional(id, []byte("lost"), OPID{1, 1, 8}, []byte("again"), 9<<16); !n.d.IsProvisional(id,
		[]byte("lost")) {
		t.Error("provisional")
	}
	n.d.Open()
	if n.d.IsProvisional(id, []byte("lost")) {
		t.Error("still provisional")
	}
	wantValue(t, n.db, "lost", "again")
	wantValue(t, n.db, "never", "")
	wantValue(t, n.db, "k", "minestayed")
	// The client's lock has outlived the sweep.
	if n.holder("k") != n.s.slot {
		t.Error("the lock is lost")
	}
	wantErr(t, "unlock", r.Unlock(), nil)
	wantErr(t, "remove", n.db.RemoveAndTrigger(bg, key, mine), nil)
	wantValue(t, n.db, "k", "stayed")
	n.d.DropProvisional()
	wantValue(t, n.db, "lost", "again")
	mustCheck(t, n.s)
}

// TestDispatcherRestarts: what a dead dispatcher held is released by its
// successor, unless that knows what for; its own steps are finished by anybody.
func TestDispatcherRestarts(t *testing.T) {
	n := &node{t: t, s: heap(t, small())}
	d, err := n.s.JoinKeeper(bg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	n.d, n.db = d, database(t, n.s, "db", 10)
	for _, k := range []string{"held", "kept", "waited for"} {
		wantErr(t, "store", n.db.Store(bg, []byte(k), []byte(k)), nil)
	}
	n.wantLock("held", LockTaken)
	n.wantLock("kept", LockTaken)
	r := lockedBy(t, n.db, "waited for")
	n.wantLock("waited for", LockHeld)
	d.s.c.SimulateDeath()
	if got, err := n.s.Recover(bg); got != 1 || err != nil {
		t.Fatal(got, err)
	}
	mustCheck(t, n.s)
	// A lock that outlives its dispatcher is waited for, not damage.
	short, stop := context.WithTimeout(bg, 5*time.Millisecond)
	_, err = n.db.FetchLocked(short, []byte("held"))
	wantErr(t, "lock", err, context.DeadlineExceeded)
	stop()
	if n.d, err = n.s.JoinKeeper(bg, Options{}); err != nil {
		t.Fatal(err)
	}
	n.d.ReleaseUnlisted(func(_ uint32, key []byte) bool { return bytes.Equal(key, []byte("kept")) })
	if n.holder("held") != 0 || n.holder("kept") != DispatcherSlot {
		t.Error("held and kept")
	}
	wantErr(t, "unlock", r.Unlock(), nil)
	if n.holder("waited for") != 0 {
		t.Error("handed to a dispatcher that is dead")
	}
	n.unlock("kept")
	wantErr(t, "dispatcher", n.d.Err(), nil)
	wantErr(t, "close", n.d.Close(), nil)
}

// TestDispatcherOrphans: the dispatcher removes what the dead have left, and
// decides about what is not here.
func TestDispatcherOrphans(t *testing.T) {
	n := newNode(t, Pieces)
	other, err := n.s.Join(bg, "other")
	if err != nil {
		t.Fatal(err)
	}
	db := piecesDB(t, other, "db")
	for _, k := range []string{"here", "gone", "locked"} {
		_, err := db.ConditionalAppend(bg, Always, []byte(k), []byte(k))
		wantErr(t, "append", err, nil)
	}
	n.wantLock("gone", LockTaken) // the record moves to another node
	n.d.Remove(n.db.ID(), []byte("gone"))
	r := lockedBy(t, n.db, "locked")
	states := map[PieceState]int{}
	n.d.EachPiece(func(p *PieceEntry) bool {
		if p.Slot != other.slot || p.Orphan || p.DB != n.db.ID() || !bytes.Equal(p.Key, p.Data) ||
			slotOf(p.OPID.Counter) != other.slot {
			t.Errorf("%+v", p)
		}
		states[p.State]++
		if string(p.Key) == "gone" && (!n.d.SetPiece(p, PieceRemoving) || !n.d.SetPiece(p, PieceAbandoned)) {
			t.Error("state")
		}
		return true
	})
	if states[PieceLive] != 3 || len(states) != 1 {
		t.Error(states)
	}
	n.d.Look(n.db.ID(), []byte("here"), new(Held))
	n.d.Attend(n.db.ID(), []byte("here"), true)
	other.c.SimulateDeath()
	wantErr(t, "recover", recoverAll(n.d, func(uint32) {}), nil)
	asked := 0
	keep := func(p *PieceEntry) bool {
		asked++
		if string(p.Key) != "gone" || p.State != PieceAbandoned || !p.Orphan {
			t.Errorf("%+v", p)
		}
		return asked == 2
	}
	if changed, more := n.d.RemoveOrphans(keep, nil); changed != 1 || more != OrphansHeld || asked != 1 {
		t.Error(changed, more, asked)
	}
	n.wantRung("here")
	n.d.Attend(n.db.ID(), []byte("here"), false)
	wantValue(t, n.db, "here", "")
	wantValue(t, n.db, "locked", "locked")
	wantErr(t, "unlock", r.Unlock(), nil)
	if changed, more := n.d.RemoveOrphans(keep, nil); changed != 1 || more != NoOrphans || asked != 2 {
		t.Error(changed, more, asked)
	}
	wantValue(t, n.db, "locked", "")
}

// TestDispatcherScan: every record comes once, in whatever batches.
func TestDispatcherScan(t *testing.T) {
	for _, mode := range []Mode{KV, Pieces} {
		n := newNode(t, mode)
		want := map[string]string{}
		for i := range 700 { // with overflow buckets
			k, v := fmt.Sprint("key ", i), fmt.Sprint("value ", i)
			if mode == KV {
				wantErr(t, "store", n.db.Store(bg, []byte(k), []byte(v)), nil)
			} else {
				_, err := n.db.ConditionalAppend(bg, Always, []byte(k), []byte(v))
				wantErr(t, "append", err, nil)
			}
			want[k] = v
		}
		for _, batch := range []int{1, 7, 10_000} {
			got, calls := map[string]string{}, 0
			for cursor := uint64(0); ; {
				left := batch
				cursor = n.d.Scan(n.db.ID(), cursor, func(key []byte, r *Held) bool {
					if _, twice := got[string(key)]; twice {
						t.Errorf("%q comes twice", key)
					}
					got[string(key)] = string(r.Data)
					left--
					return left > 0
				})
				if calls++; cursor == 0 || calls > 2000 {
					break
				}
			}
			if !maps.Equal(got, want) {
				t.Errorf("batches of %d: %d records, want %d", batch, len(got), len(want))
			}
		}
		if n.d.Scan(4711, 0, nil) != 0 {
			t.Error("unknown database")
		}
	}
}

// TestDispatcherAllocates nothing while it serves records that are there.
func TestDispatcherAllocates(t *testing.T) {
	n := newNode(t, KV)
	wantErr(t, "store", n.db.Store(bg, []byte("k"), []byte("v")), nil)
	id, key, v := n.db.ID(), []byte("k"), new(Held)
	none := func(uint32, []byte) {}
	if got := testing.AllocsPerRun(200, func() {
		n.d.Look(id, key, v)
		n.d.TryLock(id, key, false)
		v.RSN++
		n.d.Publish(id, key, v, false)
		n.d.Unlock(id, key)
		n.d.Touch(id, key, 1, 1)
		n.d.Rung(none)
	}); got != 0 {
		t.Errorf("allocates %v times", got)
	}
}

// TestAnnounceWaitsForTheGate: what has to be made first waits for a closed gate,
// as long as its context allows, and no pass has to wait for it.
func TestAnnounceWaitsForTheGate(t *testing.T) {
	n := newNode(t, KV)
	key := []byte("new")
	n.d.Freeze()
	short, stop := context.WithTimeout(bg, 5*time.Millisecond)
	_, err := n.db.Announce(short, key)
	stop()
	wantErr(t, "announce", err, context.DeadlineExceeded)
	done := make(chan error, 1)
	go func() {
		ann, err := n.db.Announce(bg, key)
		if err == nil {
			err = n.db.Withdraw(ann, false)
		}
		done <- err
	}()
	var p Pass
	if busy, err := n.d.Pass(&p); busy != nil || err != nil {
		t.Errorf("pass: %v, %v", busy, err)
	}
	n.d.Mapped(9<<16, 4, 2, 1)
	n.d.OpenProvisional()
	n.d.Open()
	select {
	case err := <-done:
		wantErr(t, "announce", err, nil)
	case <-time.After(time.Minute):
		t.Fatal("it waits after the gate is open")
	}
	mustCheck(t, n.s)
}

// recoverAll recovers the dead without a limit.
func recoverAll(d *Keeper, f func(uint32)) error {
	_, err := d.RecoverDead(f, nil)
	return err
}
