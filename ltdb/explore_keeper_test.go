//go:build shmsim

package ltdb

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/explore"
	"github.com/mainzdb/mainz/shm"
)

// The dispatcher under the explorer: it sleeps on a word of the segment until
// somebody rings, as the daemon does, and never wakes by its time slice: a
// hand-over or a change that nobody rings for is then a wait for ever.

// bellOf is the word that the dispatcher of the explorer sleeps on, in the part
// of the node's area that is the dispatcher's own.
func bellOf(seg *shm.Segment) *shm.Word32 {
	off, _ := seg.Area(shm.AreaNode)
	return shm.At[shm.Word32](seg.Region(), off+nodeCommon)
}

func ringBell(seg *shm.Segment) func() {
	w := bellOf(seg)
	return func() {
		for v := w.Load(); !w.CAS(v, v+1); v = w.Load() {
		}
		w.Wake(shm.All)
	}
}

// disp is the dispatcher in a case.
type disp struct {
	*client
	d  *Keeper
	id uint32
}

// dispatcherDef makes the dispatcher a client of the scenario.
func dispatcherDef(dies bool, mode Mode, do func(c *disp)) actorDef {
	var d *Keeper
	return actorDef{name: "D", dies: dies, do: func(c *client) {
		do(&disp{c, d, databaseID(map[Mode]string{KV: worldDB, Pieces: piecesWorldDB}[mode])})
	}, attach: func(c *client) {
		d = must(joinKeeper(bg, c.run.w.seg, Options{Name: "D"}))
		c.s = d.s
		c.s.histMu.Lock()
		d.db(databaseID(worldDB))
		d.db(databaseID(piecesWorldDB))
		d.a.h.busy.Store(0)
	}}
}

// sleep waits until somebody rings.
func (c *disp) sleep(seen uint32) {
	if err := c.s.c.WaitOwner(0, shm.Watch{W: bellOf(c.s.seg), Val: seen}, nil, time.Hour); err != nil {
		c.t.Failf("sleep: %v", err)
	}
}

// until looks and sleeps by turns.
func (c *disp) until(done func() bool) {
	for {
		seen := bellOf(c.s.seg).Load()
		if done() {
			return
		}
		if c.d.Again() {
			shm.Pause(1)
		} else {
			c.sleep(seen)
		}
		// Who has died is recovered by the end of a slice, or by a pidfd.
		c.d.RemoveOrphans(nil, nil)
		c.d.Rung(func(uint32, []byte) {})
	}
}

// take locks a record, whenever it can be had.
func (c *disp) take(key string) Record {
	i := c.begin(key, "dispatcher locks", func(v value) (value, bool) { return v, false })
	c.until(func() bool { return c.d.TryLock(c.id, []byte(key), false) == LockTaken })
	var r Held
	c.d.Look(c.id, []byte(key), &r)
	got := string(r.Data)
	c.run.calls[i].what += " → " + brief(got)
	c.end(i, hash64(got), func(v value) (value, bool) {
		return value{data: v.data, holder: c.name}, v.holder == "" && v.data == got
	})
	return Record{}
}

// put stores a value in a record that it holds, and releases it.
func (c *disp) put(key, data string) {
	i := c.begin(key, "dispatcher stores "+brief(data), func(v value) (value, bool) {
		return value{data: data, holder: v.holder}, v.holder == c.name
	})
	if c.d.Publish(c.id, []byte(key), &Held{Data: []byte(data)}, false) != LockTaken {
		c.t.Failf("publish")
	}
	c.end(i, 0, nil)
	c.free(key)
}

func (c *disp) free(key string) {
	i := c.begin(key, "dispatcher releases", func(v value) (value, bool) {
		return value{data: v.data}, v.holder == c.name
	})
	c.d.Unlock(c.id, []byte(key))
	if err := c.d.Err(); err != nil {
		c.t.Failf("dispatcher: %v", err)
	}
	c.end(i, 0, nil)
}

// dispatched makes a case of clients and a dispatcher, which is the last one.
func dispatched(name string, b bounds, mode Mode, start map[string]string, warm func(c *client), mortal bool,
	d func(c *disp), do ...func(c *client)) *scenario {
	sc := &scenario{
		name: fmt.Sprintf("%s, %d preemptions, %d deaths", name, b.preemptions, b.deaths), start: start,
		cfg: tiny(24, len(do)+3),
		c:   explore.Case{Preemptions: b.preemptions, Deaths: b.deaths},
		prepare: func(h *Handle) {
			preload(start)(h)
			must(h.db.s.Database(bg, piecesWorldDB, Pieces, DatabaseOptions{Records: 1}))
		},
		after: func(r *run, s *Store) error { return successor(r, s, mode) },
	}
	for i, f := range do {
		sc.clients = append(sc.clients, actorDef{name: string(rune('A' + i)), dies: true, do: f, warm: func(c *client) {
			c.s.doorbell = ringBell(c.s.seg)
			warmUp(c)
			if warm != nil && i == 0 {
				warm(c)
			}
		}})
	}
	sc.clients = append(sc.clients, dispatcherDef(mortal, mode, d))
	return sc
}

// successor does what the next dispatcher does: it takes over, releases what
// its forerunner held, and removes what the dead have left.
func successor(r *run, s *Store, mode Mode) error {
	for _, c := range r.clients {
		if c.s != nil && c.s.slot == DispatcherSlot && !c.p.Dead() {
			if err := c.s.c.Leave(); err != nil {
				return err
			}
			c.s = nil
		}
	}
	d, err := joinKeeper(bg, s.seg, Options{Name: "next"})
	if err != nil {
		return err
	}
	d.ReleaseUnlisted(func(uint32, []byte) bool { return false })
	if state, _ := d.s.gate.State(); state == shm.GateFrozen {
		d.DropProvisional()
		d.Open()
	}
	d.Sweep(func(o OPID) bool { return o.PNN == d.s.pnn }) // what other nodes' clients had
	if _, more := d.RemoveOrphans(nil, nil); more != NoOrphans {
		return errors.New("orphans are left")
	}
	if err := d.Err(); err != nil {
		return err
	}
	if mode == Pieces {
		for _, c := range r.clients {
			if !c.p.Dead() && c.s != nil {
				if err := c.s.abandon(); err != nil {
					return err
				}
			}
		}
		if _, more := d.RemoveOrphans(nil, nil); more != NoOrphans {
			return errors.New("orphans are left")
		}
	}
	return d.s.c.Leave()
}

func handOver(b bounds) *scenario {
	return dispatched("lock, hand-over", b, KV, one, nil, false,
		func(c *disp) { c.take("k"); c.put("k", class(0, "disp")) },
		func(c *client) { c.unlock("k", c.lock("k")) },
	)
}

// leaves prepares what a dispatcher has left that died: k locked, l waited for while
// nobody holds it, m attended, n empty and attended.
func leaves(h *Handle) {
	for _, k := range []string{"k", "l", "m"} {
		if err := h.Store(bg, []byte(k), []byte(class(0, "old"))); err != nil {
			panic(err)
		}
	}
	d := must(joinKeeper(bg, h.db.s.seg, Options{Name: "last"}))
	id := h.db.id
	lock := func(k string) {
		if d.TryLock(id, []byte(k), false) != LockTaken {
			panic(k)
		}
	}
	d.Attend(id, []byte("m"), true)
	lock("n")
	d.Attend(id, []byte("n"), true)
	d.Unlock(id, []byte("n"))
	lock("k")
	e := entryAtKey(h.db, "l")
	e.Store(e.Load() | bitD)
	if err := errors.Join(d.Err(), d.s.c.Leave()); err != nil {
		panic(err)
	}
}

func entryAtKey(db *DB, key string) *shm.Word64 {
	var at spot
	if ok, err := db.find(db.hash([]byte(key)), []byte(key), &at); !ok || err != nil {
		panic(key)
	}
	return at.entry
}

// takeOver is what a dispatcher does at its start, with the gate open.
func (c *disp) takeOver() {
	c.d.Mapped(7, 1, 1, 0)
	c.d.Open()
	var l Left
	for !c.d.ReleaseLeft(&l, nil, func() bool { return false }) {
		c.d.Rung(func(uint32, []byte) {})
	}
	if err := c.d.Err(); err != nil {
		c.t.Failf("dispatcher: %v", err)
	}
}

// inherits: a dispatcher starts while clients work on what its forerunner has left.
func inherits(b bounds) *scenario {
	start := map[string]string{"k": class(0, "old"), "l": class(0, "old"), "m": class(0, "old")}
	sc := dispatched("start beside clients", b, KV, start, nil, false,
		func(c *disp) {
			c.takeOver()
			c.until(func() bool { return len(c.d.book.of) == 0 })
		},
		func(c *client) { c.store("k", class(0, "A")) },
		func(c *client) {
			c.unlock("l", c.lock("l"))
			c.unlock("l", c.lock("l")) // nobody has asked for it in between
		},
	)
	sc.c.MaxRuns = 1000
	sc.prepare = func(h *Handle) {
		leaves(h)
		must(h.db.s.Database(bg, piecesWorldDB, Pieces, DatabaseOptions{Records: 1}))
	}
	sc.keys = []string{"n"}
	return sc
}

var dispatchCases = []func(b bounds) *scenario{
	handOver,
	func(b bounds) *scenario {
		return dispatched("store, hand-over", b, KV, one, nil, false,
			func(c *disp) { c.take("k"); c.put("k", class(0, "disp")) },
			func(c *client) { c.add("k", "+") },
			func(c *client) { c.store("k", class(0, "blind")) },
		)
	},
	func(b bounds) *scenario {
		return dispatched("delete, hand-over", b, KV, one, nil, false,
			func(c *disp) { c.take("k"); c.free("k") },
			func(c *client) { c.storeUnlock("k", c.lock("k"), "") },
		)
	},
	func(b bounds) *scenario {
		sc := dispatched("insert, insert", b, KV, map[string]string{}, nil, false,
			func(c *disp) { c.take("k"); c.put("k", class(0, "disp")) },
			func(c *client) { c.store("k", class(0, "client")) },
		)
		sc.keys = []string{"k"}
		return sc
	},
	attends,
	inherits,
}

// attends: the dispatcher does not like what it sees and wants to be told; the
// client changes it.
func attends(b bounds) *scenario {
	var p Piece
	return dispatched("attended, changed", b, Pieces, nil,
		func(c *client) {
			pc := pieces(c)
			p = must(pc.ph.ConditionalAppend(bg, Always, []byte("k"), exclusive('A')))
			must(pc.ph.ConditionalAppend(bg, Always, []byte("k"), shared('b')))
		}, false,
		func(c *disp) {
			c.until(func() bool {
				if c.d.Holder(c.id, []byte("k")) == DispatcherSlot { // handed over, for Attend
					c.d.Unlock(c.id, []byte("k"))
				}
				c.d.RemoveOrphans(nil, nil)
				var r Held
				c.d.Look(c.id, []byte("k"), &r)
				if lettersOf(r.Data) != "Ab" {
					return true
				}
				c.d.Attend(c.id, []byte("k"), true)
				return false
			})
			c.d.Attend(c.id, []byte("k"), false)
		},
		func(c *client) {
			if err := pieces(c).ph.RemoveAndTrigger(bg, []byte("k"), p); err != nil {
				c.t.Failf("remove: %v", err)
			}
		},
	)
}

func TestExploreDispatcher(t *testing.T) {
	var sum tally
	n, part := parts(t)
	for i, k := range dispatchCases {
		if n > 1 && i != part%len(dispatchCases) {
			continue
		}
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			bs := []bounds{{2, 0}, {1, 1}}
			if *exploreFull {
				bs = []bounds{{3, 0}, {2, 1}, {1, 2}}
			}
			for _, b := range bs {
				sc := k(b)
				if !*exploreFull {
					if sc.c.MaxRuns == 0 {
						sc.c.MaxRuns = 6000
					}
				} else {
					sc.c.MaxRuns = 0
					sc.c.MaxTime = *exploreTime
				}
				sum.add(sound(t, sc.explore(t)))
			}
		})
	}
	t.Log(sum)
}

// TestExploreDispatcherKill: the dispatcher dies before each of its accesses,
// and so does who repairs it; its successor takes over.
func TestExploreDispatcherKill(t *testing.T) {
	cases := map[string]struct {
		mode Mode
		do   func(c *disp)
	}{
		"lock, publish, unlock": {KV, func(c *disp) { c.take("k"); c.put("k", class(0, "disp")) }},
		"publish larger":        {KV, func(c *disp) { c.take("k"); c.put("k", class(1, "disp")) }},
		"make a record":         {KV, func(c *disp) { c.take("l"); c.put("l", class(0, "disp")) }},
		"make none":             {KV, func(c *disp) { c.take("l"); c.free("l") }},
		"remove": {KV, func(c *disp) {
			c.take("k")
			i := c.begin("k", "dispatcher removes", func(v value) (value, bool) { return value{}, v.holder == c.name })
			c.d.Remove(c.id, []byte("k"))
			c.end(i, 0, nil)
		}},
		"touch and attend": {KV, func(c *disp) {
			c.d.Touch(c.id, []byte("k"), 1, 2)
			c.d.Attend(c.id, []byte("k"), true)
			c.d.Attend(c.id, []byte("k"), false)
		}},
		"take over": {KV, func(c *disp) { c.takeOver() }},
		"provisional records": {Pieces, func(c *disp) {
			c.d.Freeze()
			c.d.Mapped(7, 1, 1, 0)
			c.d.Provisional(c.id, []byte("p"), OPID{1, 1, 2}, []byte("2"), 7)
			c.d.Provisional(c.id, []byte("p"), OPID{1, 1, 1}, []byte("1"), 7)
			c.d.Sweep(func(o OPID) bool { return o.Counter == 1 })
			c.d.DropProvisional()
			c.d.Open()
		}},
	}
	var sum tally
	n, part := parts(t)
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			for deaths := 1; deaths <= 2; deaths++ {
				k := cases[name]
				sc := dispatched(name, bounds{0, deaths}, KV, one, nil, true, k.do)
				sc.clients[0] = dispatcherDef(true, k.mode, k.do)
				sc.keys = []string{"l"}
				if name == "take over" {
					sc = inherits(bounds{0, deaths})
					sc.c.MaxRuns = 0
					sc.clients = []actorDef{dispatcherDef(true, k.mode, k.do)}
				}
				if deaths > 1 {
					sc.clients = append(sc.clients,
						actorDef{name: "repairer", dies: true, do: (*client).recover, warm: warmUp})
				}
				if sc.c.Sequential = true; deaths > 1 && !*exploreFull {
					sc.c.MaxRuns = piecesRuns / n
				}
				sc.c.Slices, sc.c.Slice = n, part
				r := sound(t, sc.explore(t))
				if r.Deaths == 0 && n == 1 || !r.Complete && sc.c.MaxRuns == 0 {
					t.Error("not complete, or nobody died")
				}
				sum.add(r)
			}
		})
	}
	t.Log(sum)
}

// freezes: an append against a freeze. After the pass nobody commits any more,
// and each live word has its piece in the record: else the record, if it is
// lost now, would be supplied anew with a piece that was never appended.
func freezes(b bounds) *scenario {
	return dispatched("append, freeze and re-supply", b, Pieces, nil,
		func(c *client) {
			pc := pieces(c)
			p := must(pc.ph.ConditionalAppend(bg, Always, []byte("warm"), []byte("w")))
			if err := pc.ph.RemoveAndTrigger(bg, []byte("warm"), p); err != nil {
				panic(err)
			}
			must(pc.ph.ConditionalAppend(bg, Always, []byte("k"), shared('a')))
		}, false,
		func(c *disp) {
			c.d.Freeze()
			var p Pass
			for {
				busy, err := c.d.Pass(&p)
				if err != nil {
					c.t.Failf("pass: %v", err)
				}
				if busy == nil {
					break
				}
				shm.Pause(1)
			}
			c.resupply("after the pass")
			// A sweep would move the record now.
			c.d.Sweep(func(OPID) bool { return true })
			c.resupply("before the opening")
			c.d.Open()
		},
		func(c *client) {
			if _, err := pieces(c).ph.ConditionalAppend(bg, Always, []byte("k"), shared('b')); err != nil {
				c.t.Failf("append: %v", err)
			}
		},
	)
}

func (c *disp) resupply(when string) {
	var r Held
	c.d.Look(c.id, []byte("k"), &r)
	n := fmt.Sprint(lettersOf(r.Data))
	live := ""
	c.d.EachPiece(func(p *PieceEntry) bool {
		if p.State == PieceLive && !p.Orphan { // the dead's are removed wherever they are
			live += lettersOf(p.Data)
		}
		return true
	})
	for _, l := range live {
		if strings.ContainsRune(n, l) {
			continue
		}
		c.t.Failf("%s the record has %q, and %q would be supplied anew", when, n, live)
	}
}

func TestExploreFreeze(t *testing.T) {
	n, _ := parts(t)
	for _, b := range []bounds{{2, 0}, {1, 1}} {
		sc := freezes(b)
		sc.c.MaxRuns = 20_000 / n
		sound(t, sc.explore(t))
	}
}

func TestPlantedNoRing(t *testing.T) {
	caught(t, "noring", []string{"everybody waits"}, handOver(bounds{2, 0}))
}

func TestPlantedLeftD(t *testing.T) {
	caught(t, "leftd", []string{"everybody waits"}, inherits(bounds{2, 0}))
}

func TestPlantedAttendLate(t *testing.T) {
	caught(t, "attendlate", []string{"everybody waits"}, attends(bounds{2, 0}))
}

func TestPlantedLiveFirst(t *testing.T) {
	caught(t, "livefirst", []string{"would be supplied anew"}, freezes(bounds{2, 0}))
}

func TestPlantedNoBusy(t *testing.T) {
	caught(t, "nobusy", []string{"would be supplied anew"}, freezes(bounds{2, 0}))
}

func TestPlantedNoPass(t *testing.T) {
	caught(t, "nopass", []string{"would be supplied anew"}, freezes(bounds{2, 0}))
}
