//go:build shmsim

package ltdb

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/internal/explore"
)

// One client works alone and dies before each of its accesses in turn; a
// second one repairs it and dies before each of its own; a third one repairs
// both. (In the long form a fourth, after the third has died as well.)

func keysIn(db *DB, bucket uint64, n int) []string {
	var keys []string
	for i := 0; len(keys) < n; i++ {
		if k := fmt.Sprint("k", i); db.hash([]byte(k))&db.mask == bucket {
			keys = append(keys, k)
		}
	}
	return keys
}

// sameBucket returns n keys of one bucket of the tiny world.
func sameBucket(n int) []string {
	return keysIn(&DB{id: databaseID(worldDB), probe: probe{mask: 63}}, 5, n)
}

// otherBucket returns n keys of another one.
func otherBucket(n int) []string {
	return keysIn(&DB{id: databaseID(worldDB), probe: probe{mask: 63}}, 6, n)
}

// Values by the class of their block, for keys of 2 or 3 bytes: 56 bytes are
// header and key.
func class(c int, mark string) string {
	return mark + strings.Repeat(".", 128*c+60-len(mark))
}

func preload(m map[string]string) func(*Handle) {
	return func(h *Handle) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			v := m[k]
			if err := h.Store(bg, []byte(k), []byte(v)); err != nil {
				panic(err)
			}
		}
	}
}

// killCase is an operation to be killed in.
type killCase struct {
	name  string
	start map[string]string
	keys  []string
	cfg   Config
	warm  func(c *client)
	do    func(c *client)
	raw   bool
	prep  func(h *Handle) // nil: stores start
	after func(r *run, s *Store) error
	long  bool // only in the long form
}

func (k killCase) scenario(deaths int) *scenario {
	sc := &scenario{
		name: k.name, start: k.start, keys: k.keys, cfg: k.cfg, after: k.after, prepare: k.prep,
		clients: []actorDef{{name: "victim", dies: true, do: k.do, warm: k.warm, raw: k.raw}},
		c:       explore.Case{Sequential: true, Deaths: deaths},
	}
	if k.prep == nil {
		sc.prepare = preload(k.start)
	}
	for i := 1; i < deaths; i++ {
		sc.clients = append(sc.clients, actorDef{name: fmt.Sprint("repairer ", i), dies: true, do: (*client).recover,
			// With blocks in its magazines, its own repair needs class latches.
			warm: func(c *client) {
				if err := c.h.a.refill(0, 1); err != nil {
					panic(err)
				}
			}})
	}
	return sc
}

// warmUp fills the magazines of the two smallest classes.
func warmUp(c *client) {
	for cl := range 2 {
		v := []byte(class(cl, "w"))
		for _, k := range []string{"warm1", "warm2"} {
			if err := c.h.Store(bg, []byte(k), v); err != nil {
				panic(err)
			}
		}
		for _, k := range []string{"warm1", "warm2"} {
			if err := c.h.Delete(bg, []byte(k)); err != nil {
				panic(err)
			}
		}
	}
}

var one = map[string]string{"k": class(0, "old")}

var killCases = []killCase{
	{name: "store new", keys: []string{"k"}, warm: warmUp, do: func(c *client) { c.store("k", "v1") }},
	{name: "store new, magazines empty", keys: []string{"k"}, do: func(c *client) { c.store("k", "v1") }},
	{name: "store over, same class", start: one, warm: warmUp, do: func(c *client) { c.store("k", class(0, "new")) }},
	{name: "store over, other class", start: one, warm: warmUp, do: func(c *client) { c.store("k", class(1, "new")) }},
	{name: "store over, twice", start: one, warm: warmUp,
		do: func(c *client) { c.store("k", class(1, "new")); c.store("k", class(0, "newer")) }},
	{name: "delete", start: one, warm: warmUp, do: func(c *client) { c.delete("k") }},
	{name: "delete absent", keys: []string{"k"}, warm: warmUp, do: func(c *client) { c.delete("k") }},
	{name: "append", start: one, warm: warmUp, do: func(c *client) { c.append("k", "more") }},
	{name: "append to another class", start: one, warm: warmUp,
		do: func(c *client) { c.append("k", class(0, "more")) }},
	{name: "append new", keys: []string{"k"}, warm: warmUp, do: func(c *client) { c.append("k", "first") }},
	{name: "fetch", start: one, do: func(c *client) { c.fetch("k"); c.fetch("none") }},
	{name: "batch", start: one, do: func(c *client) { c.fetchBatch("k", "none") }},
	{name: "lock, store and unlock", start: one, warm: warmUp, do: func(c *client) { c.add("k", "+") }},
	{name: "lock, store, store and unlock", start: one, warm: warmUp, do: func(c *client) {
		r := c.lock("k")
		c.storeLocked("k", r, class(1, "mid"))
		c.storeUnlock("k", r, class(0, "end"))
	}},
	{name: "lock and unlock", start: one, warm: warmUp, do: func(c *client) { c.unlock("k", c.lock("k")) }},
	{name: "lock and delete", start: one, warm: warmUp, do: func(c *client) { c.storeUnlock("k", c.lock("k"), "") }},
	{name: "lock, store nothing and unlock", start: one, warm: warmUp, do: func(c *client) {
		r := c.lock("k")
		c.storeLocked("k", r, "")
		c.unlock("k", r)
	}},
	{name: "try lock, store and unlock", start: one, warm: warmUp, do: func(c *client) {
		if r, ok := c.tryLock("k"); ok {
			c.storeUnlock("k", r, "+")
		}
	}},
	{name: "lock new, store and unlock", keys: []string{"k"}, warm: warmUp, do: func(c *client) { c.add("k", "+") }},
	{name: "lock new and unlock", keys: []string{"k"}, warm: warmUp,
		do: func(c *client) { c.unlock("k", c.lock("k")) }},
	{name: "two locks", start: one, keys: []string{"l"}, warm: warmUp, do: func(c *client) {
		r := c.lock("k")
		s, ok := c.tryLock("l")
		if !ok {
			c.t.Failf("second lock")
		}
		c.storeUnlock("k", r, "1")
		c.storeUnlock("l", s, "2")
	}},

	// The allocator.
	{name: "refill from a list", keys: []string{"k"}, prep: func(h *Handle) { fillLists(h, 5) },
		do: func(c *client) { c.store("k", "v1") }},
	// Eight were carved at once; the list has what is left of them.
	{name: "refill from a list and carve", start: valuesOf(otherBucket(5)), keys: []string{"k"},
		do: func(c *client) { c.store("k", "v1") }},
	{name: "flush of a full magazine", start: one, prep: func(h *Handle) {
		preload(one)(h)
		for i := range magazineSize {
			preload(map[string]string{fmt.Sprint("x", i): "x"})(h)
		}
	}, warm: func(c *client) {
		for i := range magazineSize {
			if err := c.h.Delete(bg, fmt.Append(nil, "x", i)); err != nil {
				panic(err)
			}
		}
	}, do: func(c *client) { c.delete("k") }},
	{name: "large value", keys: []string{"k"}, cfg: largeValues(2),
		do: func(c *client) { c.store("k", strings.Repeat("v", 1100)) }},
	{name: "large value over a small one", start: one, cfg: largeValues(2), warm: warmUp,
		do: func(c *client) { c.store("k", strings.Repeat("v", 1100)) }},
	{name: "small value over a large one", start: map[string]string{"k": strings.Repeat("o", 1100)},
		cfg: largeValues(2), warm: warmUp, do: func(c *client) { c.store("k", "v") }},
	{name: "huge value", keys: []string{"k"}, cfg: hugeValues(2),
		do: func(c *client) { c.store("k", strings.Repeat("v", 4200)) }, long: true},
	{name: "huge value over a huge one", start: map[string]string{"k": strings.Repeat("o", 4200)}, cfg: hugeValues(2),
		warm: warmUp, do: func(c *client) { c.store("k", strings.Repeat("v", 4300)) }, long: true},
	{name: "delete of a huge one", start: map[string]string{"k": strings.Repeat("o", 4200)}, cfg: hugeValues(2),
		warm: warmUp, do: func(c *client) { c.delete("k") }},
	// The store is full of free blocks of class 0, and class 1 wants a span.
	{name: "a span changes its class", keys: []string{"k"}, cfg: tiny(6, 3), prep: func(h *Handle) { fillUp(h, 0) },
		do: func(c *client) { c.store("k", class(1, "v")) }},
	{name: "store is full", start: map[string]string{"k": "old"}, cfg: tiny(6, 3), prep: func(h *Handle) {
		preload(map[string]string{"k": "old"})(h)
		for i := 0; h.Store(bg, fmt.Append(nil, "f", i), []byte(class(1, "f"))) == nil; i++ {
		}
	}, do: func(c *client) {
		if c.tryStore("k", class(1, "new")) {
			c.t.Failf("there was room")
		}
	}, after: noFillers},
	// Nothing is left but the spare.
	{name: "store over in a full store", start: oneMore, prep: fillAll,
		do: func(c *client) { c.store("k", class(1, "new")) }, after: noFillers},
	{name: "lock, store and unlock in a full store", start: oneMore, prep: fillAll, do: func(c *client) {
		r := c.lock("k")
		c.storeLocked("k", r, class(1, "mid"))
		c.storeUnlock("k", r, class(1, "end"))
	}, after: noFillers},
	{name: "histograms", do: func(c *client) {
		c.s.histMu.Unlock()
		if c.s.histograms(c.h.a) == nil {
			c.t.Failf("no room")
		}
	}},

	// The hash table.
	{name: "overflow bucket", start: valuesOf(sameBucket(7)), keys: sameBucket(8)[7:], warm: warmUp,
		do: func(c *client) { c.store(sameBucket(8)[7], "v") }},
	{name: "store in an overflow bucket", start: valuesOf(sameBucket(8)), keys: sameBucket(9)[8:], warm: warmUp,
		do: func(c *client) { c.store(sameBucket(9)[8], "v") }},
	{name: "second overflow bucket", start: valuesOf(sameBucket(14)), keys: sameBucket(15)[14:], warm: warmUp,
		do: func(c *client) { c.store(sameBucket(15)[14], "v") }},

	{name: "delete in an overflow bucket", start: valuesOf(sameBucket(8)), warm: warmUp,
		do: func(c *client) { c.delete(sameBucket(8)[7]) }},
	{name: "append in an overflow bucket", start: valuesOf(sameBucket(8)), warm: warmUp,
		do: func(c *client) { c.append(sameBucket(8)[7], class(0, "+")) }},
	{name: "lock and store in an overflow bucket", start: valuesOf(sameBucket(8)), warm: warmUp,
		do: func(c *client) { c.add(sameBucket(8)[7], "+") }},
	{name: "traverse", start: valuesOf(sameBucket(8)), do: traverse},

	// The segment.
	{name: "create a database", do: func(c *client) {
		db, err := c.s.Database(bg, "other", Pieces, DatabaseOptions{Records: 1})
		if err != nil || db.Mode() != Pieces {
			c.t.Failf("database: %v", err)
		}
	}, after: func(r *run, s *Store) error {
		db, err := s.Database(bg, "other", Pieces, DatabaseOptions{Records: 1})
		if err == nil && db.Mode() != Pieces {
			err = fmt.Errorf("mode is %v", db.Mode())
		}
		return err
	}},
	{name: "leave", start: one, warm: warmUp, do: func(c *client) {
		c.store("k", "v")
		if err := c.s.c.Leave(); err != nil {
			c.t.Failf("leave: %v", err)
		}
	}},
	{name: "leave with a lock", start: one, warm: warmUp, do: func(c *client) {
		r := c.lock("k")
		i := c.begin("k", "leave", func(v value) (value, bool) {
			return value{data: v.data, died: true}, v.holder == c.name
		})
		if err := c.s.c.Leave(); err != nil {
			c.t.Failf("leave: %v", err)
		}
		c.end(i, 0, nil)
		_ = r
	}},
	{name: "join", start: one, raw: true, do: func(c *client) { c.attach(); c.store("k", "v") }},
}

// noFillers makes room: what the others test needs it, and no records of other names.
func noFillers(r *run, s *Store) error {
	db := must(s.Database(bg, worldDB, KV, DatabaseOptions{}))
	for i := 0; ; i++ {
		if err := db.Delete(bg, fmt.Append(nil, "f", i)); err == ErrNotFound {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// oneMore is a record of class 1, for fillAll.
var oneMore = map[string]string{"k": class(1, "old")}

// fillAll stores oneMore and leaves no free block of class 1, and no span. A
// record may be replaced by one of its own size all the same.
func fillAll(h *Handle) {
	preload(oneMore)(h)
	s := h.db.s
	for i := range s.spans {
		s.spans[i].word.CAS(0, classes) // of the largest class, of which no block fits: nothing is missing
	}
	for i := 0; h.Store(bg, fmt.Append(nil, "f", i), []byte(class(1, "f"))) == nil; i++ {
	}
}

func valuesOf(keys []string) map[string]string {
	m := map[string]string{}
	for _, k := range keys {
		m[k] = "of " + k
	}
	return m
}

// fillLists leaves n blocks on the free list of class 0.
func fillLists(h *Handle, n int) {
	var keys []string
	for i := range n {
		keys = append(keys, fmt.Sprint("x", i))
	}
	preload(valuesOf(keys))(h)
	for _, k := range keys {
		if err := h.Delete(bg, []byte(k)); err != nil {
			panic(err)
		}
	}
}

// fillUp stores records of class c until the store is full, and deletes them.
func fillUp(h *Handle, c int) {
	n := 0
	for h.Store(bg, fmt.Append(nil, "f", n), []byte(class(c, "f"))) == nil {
		n++
	}
	for i := range n {
		if err := h.Delete(bg, fmt.Append(nil, "f", i)); err != nil {
			panic(err)
		}
	}
}

func largeValues(clients int) Config {
	c := tiny(12, clients+1)
	c.MaxValue = 1200
	return c
}

func hugeValues(clients int) Config {
	return Config{Slots: clients + 1, MaxValue: 5000, SpanSize: 8192, Databases: 2, Size: 1 << 20}
}

// TestExploreKill: one death before each access of any kind, and then a second
// one, of the repairer. For two, the short form leaves out what can't matter: a
// death before a load leaves the same memory as one before the next store, and of
// bytes written one behind the other only the first counts, as they lie in a
// block that nobody else knows. The long form tries all the same.
func TestExploreKill(t *testing.T) {
	var sum tally
	n, part := parts(t)
	for _, k := range killCases {
		if k.long && !*exploreFull {
			continue
		}
		t.Run(strings.ReplaceAll(k.name, " ", "_"), func(t *testing.T) {
			sc := k.scenario(2)
			sc.c.EveryAccess = *exploreFull
			alone := k.scenario(1)
			alone.c.EveryAccess = true
			all := []*scenario{alone, sc}
			if *exploreFull {
				three := k.scenario(3)
				three.c.MaxTime = *exploreTime
				all = append(all, three)
			}
			for _, sc := range all {
				sc.c.Slices, sc.c.Slice = n, part
				r := sound(t, sc.explore(t))
				if !r.Complete && sc.c.MaxTime == 0 || r.Deaths == 0 && n == 1 {
					t.Error("not complete, or nobody died")
				}
				sum.add(r)
			}
		})
	}
	t.Log(sum)
}
