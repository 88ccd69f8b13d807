//go:build shmsim

package ltdb

import (
	"errors"
	"fmt"
	"testing"
	"time"
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

// The dispatcher acts for a client that dies or leaves, another process recovers it,
// and a new client takes the slot, at every point in between. No piece stays without an
// owner, no lock with a slot that does not know of it, and nobody else's lock is taken.

// tenants makes a case of a client, who repairs it, a dispatcher that acts for it, and
// others. There is one slot more than clients that are attached at the beginning.
func tenants(name string, b bounds, a actorDef, d func(c *disp), after func(r *run, s *Store) error,
	others ...actorDef) *scenario {
	sc := dispatched(name, b, Pieces, one, nil, false, d)
	sc.cfg = tiny(24, 3+len(others))
	a.name, a.dies = "A", true
	bell := func(warm func(c *client)) func(c *client) {
		return func(c *client) {
			c.s.doorbell = ringBell(c.s.seg)
			warm(c)
		}
	}
	a.warm = bell(a.warm)
	repairs := actorDef{name: "R", do: (*client).recover, warm: bell(warmUp)}
	sc.clients = append(append([]actorDef{a, repairs}, others...), sc.clients...)
	sc.after = func(r *run, s *Store) error {
		if err := after(r, s); err != nil {
			return err
		}
		return successor(r, s, Pieces)
	}
	return sc
}

func generationOf(s *Store) uint32 { return uint32(s.seg.Slot(s.slot).Generation.Load()) }

// appendFor appends a prepared piece in the name of its client, as the daemon does.
func (c *disp) appendFor(p Piece, slot, generation uint32) (got LockResult) {
	c.until(func() bool {
		got = appendHere(c.d, c.id, p, slot, generation)
		return got != LockHeld
	})
	if err := c.d.Err(); err != nil {
		c.t.Failf("dispatcher: %v", err)
	}
	return got
}

func appendHere(d *Keeper, id uint32, p Piece, slot, generation uint32) LockResult {
	key := []byte("k")
	if got := d.TryLock(id, key, false); got != LockTaken {
		return got
	}
	var r Held
	d.Look(id, key, &r)
	r.Data, r.Tags = append(r.Data, letter("a")...), appendTag(r.Tags, p.opid, len(letter("a")))
	r.RSN++
	got := d.PublishFor(id, key, &r, slot, generation)
	d.Unlock(id, key)
	return got
}

// appended: A has asked the dispatcher for an append, and leaves or dies; the
// dispatcher removes orphans and appends.
func appended(b bounds) *scenario {
	var p Piece
	var slot, generation uint32
	return tenants("append for who leaves or dies", b,
		actorDef{warm: func(c *client) {
			p = must(pieces(c).pdb.PreparePiece([]byte("k"), letter("a")))
			slot, generation = c.s.slot, generationOf(c.s)
		}, do: func(c *client) {
			if err := errors.Join(c.s.abandon(), c.s.c.Leave()); err != nil {
				c.t.Failf("leave: %v", err)
			}
		}},
		func(c *disp) {
			c.d.RemoveOrphans(nil, nil)
			c.appendFor(p, slot, generation)
		},
		func(r *run, s *Store) error { return nil })
}

// noPieces is what has to hold behind a successor when all clients have gone.
func noPieces(sc *scenario) *scenario {
	after := sc.after
	sc.after = func(r *run, s *Store) error {
		if err := after(r, s); err != nil {
			return err
		}
		db := must(s.Database(bg, piecesWorldDB, Pieces, DatabaseOptions{MustExist: true}))
		if got, err := db.Fetch(bg, []byte("k")); !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("a piece stays without an owner: %q, %v", lettersOf(got), err)
		}
		return nil
	}
	return sc
}

// replyOf is a word of the dispatcher's own part, beside its bell.
func replyOf(seg *shm.Segment) *shm.Word32 {
	off, _ := seg.Area(shm.AreaNode)
	return shm.At[shm.Word32](seg.Region(), off+nodeCommon+64)
}

// givenLock: A has asked for a lock, and dies, or leaves if leaves says so; the dispatcher
// leaves it the lock; N takes the slot and wants the record, too.
func givenLock(b bounds, leaves bool) *scenario {
	var ann *Announced
	var slot, generation uint32
	gave := false
	a := actorDef{warm: func(c *client) {
		ann = must(c.h.Announce(bg, []byte("k")))
		slot, generation, gave = c.s.slot, generationOf(c.s), false
	}, do: func(c *client) {
		if leaves {
			if err := c.s.c.Leave(); err != nil {
				c.t.Failf("leave: %v", err)
			}
			return
		}
		// The dispatcher's reply, and what the client does then.
		w := replyOf(c.s.seg)
		for w.Load() == 0 {
			if err := c.s.c.WaitOwner(0, shm.Watch{W: w}, nil, time.Hour); err != nil {
				c.t.Failf("wait: %v", err)
			}
		}
		rec, err := ann.Record()
		if err == nil {
			err = rec.Unlock()
		}
		if err != nil {
			c.t.Failf("lock that was left to it: %v", err)
		}
	}}
	n := actorDef{name: "N", raw: true, do: func(c *client) {
		c.attach()
		c.s.doorbell = ringBell(c.s.seg)
		rec, err := c.h.FetchLocked(bg, []byte("k"))
		if err == nil {
			err = rec.Unlock()
		}
		if err != nil {
			c.t.Failf("lock: %v", err)
		}
	}}
	d := func(c *disp) {
		id, key := databaseID(worldDB), []byte("k")
		c.until(func() bool { return c.d.TryLock(id, key, false) == LockTaken })
		gave = c.d.UnlockTo(id, key, slot, generation)
		replyOf(c.s.seg).Swap(1)
		replyOf(c.s.seg).Wake(shm.All)
		c.until(func() bool { return len(c.d.book.of) == 0 })
		if err := c.d.Err(); err != nil {
			c.t.Failf("dispatcher: %v", err)
		}
	}
	others := []actorDef{}
	if !leaves {
		others = append(others, n)
	}
	return tenants("lock for who dies", b, a, d, func(r *run, s *Store) error {
		db := must(s.Database(bg, worldDB, KV, DatabaseOptions{MustExist: true}))
		owner := entryOwner(entryAtKey(db, "k").Load())
		switch {
		case !r.clients[0].p.Dead() && !leaves && !gave:
			return errors.New("the lock was not left to a client that lives")
		case owner != 0:
			return fmt.Errorf("record \"k\" is locked by slot %d, which does not know of it", owner)
		}
		return nil
	}, others...)
}

func TestExploreTenant(t *testing.T) {
	n, part := parts(t)
	cases := []func() *scenario{
		func() *scenario { return noPieces(appended(bounds{2, 0})) },
		func() *scenario { return noPieces(appended(bounds{1, 1})) },
		func() *scenario { return givenLock(bounds{2, 0}, true) },
		func() *scenario { return givenLock(bounds{1, 1}, false) },
		func() *scenario { return givenLock(bounds{2, 1}, false) },
	}
	for i, k := range cases {
		if n > 1 && i != part%len(cases) {
			continue
		}
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			sc := k()
			if !*exploreFull {
				sc.c.MaxRuns = 2000
				if i == 0 {
					sc.c.MaxRuns = 200 // the dispatcher tries again and again while A has a latch
				}
			} else {
				sc.c.MaxTime = *exploreTime
			}
			sound(t, sc.explore(t))
		})
	}
}

// Cases in which much has to happen at one point: whoever acts is stopped before each of
// its accesses in turn, and all others run there. Each is a function of directCases.

// interrupted counts the accesses of its owner to shared memory. Before those for which
// there is something others act, as if its process had been stopped there. A word that is
// 0 does not count: a repair looks at 5,000 of these, which nobody else has to do with.
type interrupted struct {
	n   int
	act map[int]func()
}

func (i *interrupted) Access(_ shm.Op, p unsafe.Pointer) {
	if *(*uint32)(p) == 0 {
		return
	}
	i.n++
	if f := i.act[i.n]; f != nil {
		shm.Sim = nil
		defer func() { shm.Sim = i }()
		f()
	}
}
func (i *interrupted) Spin()                              {}
func (i *interrupted) WaitAny([]shm.Watch) shm.WaitResult { panic("who may not wait waits") }
func (i *interrupted) Wake(unsafe.Pointer, int)           {}

// interrupt calls f, with what is to happen before its accesses, and returns how many
// f made. f may die at one by a panic with errDies.
func interrupt(f func(), act map[int]func()) (n int) {
	i := &interrupted{act: act}
	shm.Sim = i
	defer func() {
		shm.Sim = nil
		n = i.n
		if e := recover(); e != nil && e != any(errDies) {
			panic(e)
		}
	}()
	f()
	return i.n
}

var errDies = errors.New("dies here")

// tenancy is a segment with a client A, who repairs it, another one, and a dispatcher.
type tenancy struct {
	seg     *shm.Segment
	a, r, c *Store
	db      *DB // of c
	d       *Keeper
	key     []byte
	slot    uint32 // of a
	gen     uint32
}

func newTenancy(mode Mode, dispatched bool) *tenancy {
	c := must(OpenHeap(tiny(24, 4)))
	w := &tenancy{seg: c.seg, c: c, key: []byte("k")}
	w.a = must(join(bg, c.seg, Options{Name: "A"}))
	w.r = must(join(bg, c.seg, Options{Name: "R"}))
	w.slot, w.gen = w.a.slot, generationOf(w.a)
	w.db = must(c.Database(bg, "t", mode, DatabaseOptions{Records: 1}))
	if mode == KV {
		if err := w.db.Store(bg, w.key, []byte("v")); err != nil {
			panic(err)
		}
	}
	if dispatched {
		w.dispatch()
	}
	return w
}

func (w *tenancy) dispatch() {
	w.d = must(joinKeeper(bg, w.seg, Options{}))
	w.d.s.guest = true
}

func (w *tenancy) in(s *Store) *DB {
	return must(s.Database(bg, "t", w.db.mode, DatabaseOptions{MustExist: true}))
}

func (w *tenancy) entry() *shm.Word64 { return entryAtKey(w.db, "k") }

// aDies ends A, and R repairs it.
func (w *tenancy) aDies() {
	w.a.c.SimulateDeath()
	must(w.r.Recover(bg))
}

// over looks whether the record is free, or rec has it, when the dispatcher has had a
// turn.
func (w *tenancy) over(rec *Record) error {
	w.d.Rung(func(uint32, []byte) {})
	if rec != nil {
		if err := rec.Unlock(); err != nil {
			return fmt.Errorf("a lock that was held: %w", err)
		}
		w.d.Rung(func(uint32, []byte) {})
	}
	if owner := entryOwner(w.entry().Load()); owner != 0 {
		return fmt.Errorf("the record is locked by slot %d, which does not know of it", owner)
	}
	return w.d.Err()
}

// interruptedGive: while the dispatcher leaves A a lock, A dies and is repaired, and N
// takes its slot and announces the same record; later, or never, N takes that back and
// locks the record itself.
func interruptedGive(*testing.T) error {
	run := func(first, second int) (n int, err error) {
		w := newTenancy(KV, true)
		defer w.c.Close()
		must(w.in(w.a).Announce(bg, w.key))
		if w.d.TryLock(w.db.id, w.key, false) != LockTaken {
			return 0, errors.New("not locked")
		}
		var next *Store
		var ann *Announced
		var held *Record
		gave := false
		come := func() {
			w.aDies()
			next = must(join(bg, w.seg, Options{Name: "N"}))
			if next.slot != w.slot {
				panic("another slot")
			}
			ann = must(w.in(next).Announce(bg, w.key))
		}
		lock := func() {
			if err := w.in(next).Withdraw(ann, true); err != nil {
				panic(err)
			}
			if r, err := w.in(next).TryFetchLocked(bg, w.key); err == nil {
				held = &r
			}
		}
		act := map[int]func(){first: come}
		if second > first {
			act[second] = lock
		}
		if first == second {
			act[first] = func() { come(); lock() }
		}
		n = interrupt(func() { gave = w.d.UnlockTo(w.db.id, w.key, w.slot, w.gen) }, act)
		if next == nil {
			if !gave {
				return n, errors.New("the lock was not left to a client that lives")
			}
			come() // which finds a lock of its slot that is being released
		}
		return n, w.over(held)
	}
	for first, n := 1, 1; first <= n; first++ {
		for second := first - 1; second <= n; second++ { // first-1: never
			var err error
			if n, err = run(first, second); err != nil {
				return fmt.Errorf("interrupted at %d and %d: %w", first, second, err)
			}
		}
	}
	return nil
}

// interruptedRepair: A dies just after the dispatcher has left it a lock, before the
// second look. While R repairs it the dispatcher has that look, and C takes the lock.
func interruptedRepair(*testing.T) error {
	for at, n := 1, 1; at <= n; at++ {
		w := newTenancy(KV, true)
		must(w.in(w.a).Announce(bg, w.key))
		w.d.TryLock(w.db.id, w.key, false)
		e := w.entry()
		e.Store(e.Load()&identity | bitD | ownedBy(w.slot))
		w.a.c.SimulateDeath()
		var held *Record
		n = interrupt(func() { must(w.r.c.Recover(w.slot)) }, map[int]func(){at: func() {
			w.d.confirmGiven(w.db.id, w.key, e, w.slot, w.gen)
			if r, err := w.db.TryFetchLocked(bg, w.key); err == nil {
				held = &r
			}
		}})
		if held != nil {
			b := w.c.blockAt(entryRef(e.Load()), entryClass(e.Load()))
			if metaFlags(b.meta.Load())&flagOwnerDied != 0 && !held.OwnerDied() {
				return fmt.Errorf("interrupted at %d: the record was flagged under the lock of slot %d", at, w.c.slot)
			}
		}
		if err := w.over(held); err != nil {
			return fmt.Errorf("interrupted at %d: %w", at, err)
		}
		_ = w.c.Close()
	}
	return nil
}

// halfRepaired: the dispatcher waits for a lock of A, which dies; so does R, while it
// repairs A. Another one ends that, C locks the record, and only then the dispatcher
// has its turn. It must get the lock all the same.
func halfRepaired(*testing.T) error {
	for at, n := 1, 0; ; at++ {
		w := newTenancy(KV, true)
		if _, err := w.in(w.a).FetchLocked(bg, w.key); err != nil {
			return err
		}
		if w.d.TryLock(w.db.id, w.key, false) != LockHeld {
			return errors.New("the dispatcher does not wait")
		}
		w.a.c.SimulateDeath()
		n = interrupt(func() { must(w.r.c.Recover(w.slot)) }, map[int]func(){at: func() { panic(errDies) }})
		if n < at {
			return nil // R has come to its end
		}
		w.r.c.SimulateDeath()
		must(w.c.Recover(bg))
		rec, err := w.db.TryFetchLocked(bg, w.key)
		got := false
		turn := func() {
			w.d.Rung(func(id uint32, key []byte) { got = got || w.d.TryLock(id, key, false) == LockTaken })
		}
		turn()
		if err == nil {
			if err := rec.Unlock(); err != nil {
				return err
			}
			turn()
		}
		if !got {
			return fmt.Errorf("died at %d: the dispatcher waits for ever", at)
		}
		w.d.Unlock(w.db.id, w.key)
		if err := w.over(nil); err != nil {
			return fmt.Errorf("died at %d: %w", at, err)
		}
		_ = w.c.Close()
	}
}

// TestStoppedTidy: whoever removes pieces of the dead needs the record's lock for it.
func TestStoppedTidy(t *testing.T) {
	for _, latched := range []bool{true, false} {
		if err := stoppedTidy(latched)(t); err != nil {
			t.Errorf("with the latch %v: %v", latched, err)
		}
	}
}

// stoppedTidy: C has begun to remove pieces of the dead when there was no dispatcher.
// It goes on, with the latch or before it has it, while the dispatcher appends for A,
// which dies and is repaired first.
func stoppedTidy(latched bool) func(*testing.T) error {
	return func(t *testing.T) error {
		for at, n := 1, 1; at <= n; at++ {
			w := newTenancy(Pieces, false)
			p := must(w.in(w.a).PreparePiece(w.key, letter("a")))
			a := must(w.c.borrow(bg))
			release := func() {}
			if latched {
				release = hold(t, w.c, orphanLatch, 1, &w.c.node.orphanLatch)
			}
			w.dispatch()
			goesOn := func() {
				w.aDies()
				a.keep = 0
				if latched {
					_, _, _ = a.tidyChain(&orphanPlace{slot: int(w.slot)}, nil)
					release()
				} else if w.c.node.orphanLatch.Owner() == 0 { // else it waits for the dispatcher
					must(a.tidy())
				}
			}
			went := false
			n = interrupt(func() {
				appendHere(w.d, w.db.id, p, w.slot, w.gen)
			}, map[int]func(){at: func() { went = true; goesOn() }})
			if !went {
				goesOn()
			}
			w.c.giveBack(a)
			if _, left := w.d.RemoveOrphans(nil, nil); left != NoOrphans {
				return errors.New("orphans are left")
			}
			if got, err := w.db.Fetch(bg, w.key); !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("interrupted at %d: a piece stays without an owner: %q, %v", at, lettersOf(got), err)
			}
			if err := w.d.Err(); err != nil {
				return err
			}
			_ = w.c.Close()
		}
		return nil
	}
}
