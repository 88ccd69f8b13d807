//go:build shmsim

package ltdb

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/explore"
	"github.com/mainzdb/mainz/shm"
)

// Two or three clients work on the same record, bucket or class, in all
// orders that a few preemptions make, and some of them die on the way.

// raceCase is a set of clients to be interleaved.
type raceCase struct {
	name     string
	start    map[string]string
	keys     []string
	cfg      Config
	prep     func(h *Handle)
	cold     bool            // the magazines are empty
	blocks   int             // in the magazine of class 0; 0: some 8. With 1 a block is used again by the next store
	raw      bool            // they attach by themselves
	together bool            // they are goroutines of one client
	warmA    func(c *client) // besides, for the first
	woken    bool            // they die only where they have just been woken
	mortal   string          // who dies: names of clients, which are A, B and so on; "": all
	do       []func(c *client)
	after    func(r *run, s *Store) error
	bounds   []bounds // nil: the default ones
}

type bounds struct{ preemptions, deaths int }

func (k raceCase) scenario(b bounds) *scenario {
	sc := &scenario{
		name: fmt.Sprintf("%s, %d preemptions, %d deaths", k.name, b.preemptions, b.deaths), start: k.start,
		keys: k.keys, cfg: k.cfg,
		after: k.after, prepare: k.prep, c: explore.Case{Preemptions: b.preemptions, Deaths: b.deaths,
			DieWoken: k.woken},
	}
	if k.prep == nil {
		sc.prepare = preload(k.start)
	}
	for i, do := range k.do {
		def := actorDef{name: string(rune('A' + i)), do: do}
		def.dies = k.mortal == "" || strings.Contains(k.mortal, def.name)
		if !k.cold {
			def.warm = warmUp
			if k.blocks > 0 {
				def.warm = func(c *client) { warmUp(c); c.drain(k.blocks) }
			}
		}
		if k.warmA != nil && i == 0 {
			def.warm = k.warmA
		}
		def.raw = k.raw
		def.joins = k.together && i > 0
		sc.clients = append(sc.clients, def)
	}
	return sc
}

// drain stores records until n blocks are left in the magazine of class 0.
func (c *client) drain(n int) {
	for i := 0; c.h.a.mag[0].n > uint32(n); i++ {
		key := fmt.Sprint("x", c.name, i)
		if err := c.h.Store(bg, []byte(key), []byte("x")); err != nil {
			panic(err)
		}
		c.run.keys = append(c.run.keys, key)
		c.run.start[key] = "x"
	}
}

var raceCases = []raceCase{
	{name: "store, store", start: one, do: []func(*client){
		func(c *client) { c.store("k", "A1") },
		func(c *client) { c.store("k", "B1") },
	}},
	{name: "store twice, fetch twice", blocks: 1, start: map[string]string{"k": "old0old1old2"}, do: []func(*client){
		func(c *client) { c.store("k", "A0__A1__A2__"); c.store("k", "B0__B1__B2__") },
		func(c *client) { c.fetch("k"); c.fetch("k") },
	}},
	{name: "store with another class, fetch", blocks: 1, start: map[string]string{"k": "old"}, do: []func(*client){
		func(c *client) { c.store("k", class(1, "A")); c.store("k", "B") },
		func(c *client) { c.fetch("k") },
	}},
	{name: "add, add", start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.add("k", "a") },
		func(c *client) { c.add("k", "b") },
	}},
	{name: "add, add, add", start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.add("k", "a") },
		func(c *client) { c.add("k", "b") },
		func(c *client) { c.add("k", "c") },
	}},
	{name: "add, store, fetch", blocks: 1, start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.add("k", "a") },
		func(c *client) { c.store("k", "b") },
		func(c *client) { c.fetch("k") },
	}},
	{name: "add, delete", start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.add("k", "a") },
		func(c *client) { c.delete("k") },
	}},
	{name: "append, append", blocks: 1, start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.append("k", "a") },
		func(c *client) { c.append("k", "b") },
	}},
	{name: "lock and unlock, trylock", start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.unlock("k", c.lock("k")) },
		func(c *client) {
			if r, ok := c.tryLock("k"); ok {
				c.storeUnlock("k", r, "b")
			}
		},
	}},
	{name: "insert, insert of the same", keys: []string{"k"}, do: []func(*client){
		func(c *client) { c.store("k", "a") },
		func(c *client) { c.store("k", "b") },
	}},
	{name: "insert, insert in the same bucket", keys: sameBucket(2), do: []func(*client){
		func(c *client) { c.store(sameBucket(2)[0], "a") },
		func(c *client) { c.store(sameBucket(2)[1], "b") },
	}},
	{name: "insert by lock, insert by lock", keys: []string{"k"}, do: []func(*client){
		func(c *client) { c.add("k", "a") },
		func(c *client) { c.add("k", "b") },
	}},
	{name: "insert, fetch twice", keys: []string{"k"}, do: []func(*client){
		func(c *client) { c.store("k", "a") },
		func(c *client) { c.fetch("k"); c.fetch("k") },
	}},
	{name: "insert and delete, insert", keys: []string{"k"}, do: []func(*client){
		func(c *client) { c.store("k", "a"); c.delete("k") },
		func(c *client) { c.store("k", "b") },
	}},
	{name: "delete and insert, fetch", blocks: 2, start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.delete("k"); c.store("k", "a") },
		func(c *client) { c.fetch("k"); c.fetch("k") },
	}},
	// The block of one record becomes another's, in the same bucket, while a
	// reader and a locker compare keys.
	{name: "block goes to another record", blocks: 2, start: map[string]string{sameBucket(2)[0]: "0"},
		keys: sameBucket(2)[1:], do: []func(*client){
			func(c *client) {
				c.delete(sameBucket(2)[0])
				c.store(sameBucket(2)[1], "a")
				c.store(sameBucket(2)[0], "b")
			},
			func(c *client) { c.fetch(sameBucket(2)[0]) },
		}},
	{name: "block goes to another record, lock", blocks: 2, start: map[string]string{sameBucket(2)[0]: "0"},
		keys: sameBucket(2)[1:], do: []func(*client){
			func(c *client) {
				c.delete(sameBucket(2)[0])
				c.store(sameBucket(2)[1], "a")
			},
			func(c *client) { c.add(sameBucket(2)[0], "c") },
		}},
	{name: "waiter, record deleted", start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.storeUnlock("k", c.lock("k"), "") },
		func(c *client) { c.add("k", "b") },
		func(c *client) { c.add("k", "c") },
	}},
	// Who was woken finds no record: A has barged in again and deleted it. The
	// other sleeper must be woken all the same.
	{name: "waiter, record deleted by a barger", start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.add("k", "a"); c.delete("k") },
		func(c *client) { c.add("k", "b") },
		func(c *client) { c.add("k", "c") },
	}},
	// One may die just after another's release has woken it, and D recovers it.
	{name: "woken and dead", woken: true, start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.add("k", "a") },
		func(c *client) { c.add("k", "b") },
		func(c *client) { c.add("k", "c") },
		(*client).recover,
	}, bounds: []bounds{{1, 1}}},
	{name: "overflow, overflow", start: valuesOf(sameBucket(7)), keys: sameBucket(9)[7:], do: []func(*client){
		func(c *client) { c.store(sameBucket(9)[7], "a") },
		func(c *client) { c.store(sameBucket(9)[8], "b") },
	}},
	{name: "overflow, fetch", start: valuesOf(sameBucket(7)), keys: sameBucket(9)[7:], do: []func(*client){
		func(c *client) { c.store(sameBucket(9)[7], "a") },
		func(c *client) { c.fetch(sameBucket(9)[7]); c.fetch(sameBucket(7)[6]) },
	}},
	{name: "refill, refill", keys: []string{"k", "l"}, cold: true, do: []func(*client){
		func(c *client) { c.store("k", "a") },
		func(c *client) { c.store("l", "b") },
	}},
	{name: "refill from a list, refill", keys: []string{"k", "l"}, cold: true,
		prep: func(h *Handle) { fillLists(h, 3) }, do: []func(*client){
			func(c *client) { c.store("k", "a") },
			func(c *client) { c.store("l", "b") },
		}},
	{name: "refill three times", keys: []string{"k", "l", "m"}, cold: true, mortal: "A", do: []func(*client){
		func(c *client) { c.store("k", "a") },
		func(c *client) { c.store("l", "b") },
		func(c *client) { c.store("m", "c") },
	}},
	{name: "insert three times in the same bucket", keys: sameBucket(3), mortal: "A", do: []func(*client){
		func(c *client) { c.store(sameBucket(3)[0], "a") },
		func(c *client) { c.store(sameBucket(3)[1], "b") },
		func(c *client) { c.store(sameBucket(3)[2], "c") },
	}},
	{name: "flush, refill", start: valuesOf(otherBucket(7)), keys: []string{"k"}, cold: true, prep: func(h *Handle) {
		preload(valuesOf(otherBucket(7)))(h)
	}, warmA: func(c *client) {
		for c.h.a.mag[0].n < magazineSize {
			c.h.a.refill(0, magazineSize)
		}
	}, do: []func(*client){
		func(c *client) { c.delete(otherBucket(7)[0]) },
		func(c *client) { c.store("k", "b") },
	}},
	{name: "large store, large store", start: map[string]string{"k": strings.Repeat("o", 1030)}, cfg: largeValues(2),
		do: []func(*client){
			func(c *client) { c.store("k", strings.Repeat("a", 1025)) },
			func(c *client) { c.store("k", strings.Repeat("b", 1030)) },
		}, bounds: []bounds{{1, 0}, {0, 1}}},
	{name: "large insert, insert", keys: []string{"k"}, cfg: largeValues(2), do: []func(*client){
		func(c *client) { c.store("k", strings.Repeat("a", 1025)) },
		func(c *client) { c.store("k", "b") },
	}, bounds: []bounds{{1, 0}, {0, 1}}},
	// The span of the reader's block is cut anew for another class meanwhile.
	{name: "a span changes its class, fetch", start: map[string]string{"k": "0"}, keys: []string{"l"},
		cfg: tiny(6, 3), cold: true, prep: func(h *Handle) {
			fillUp(h, 0)
			preload(map[string]string{"k": "0"})(h)
		}, do: []func(*client){
			func(c *client) { c.delete("k"); c.store("l", class(1, "a")) },
			func(c *client) { c.fetch("k") },
		}, bounds: []bounds{{1, 0}, {0, 1}}},
	{name: "a span changes its class, lock", start: map[string]string{"k": "0"}, keys: []string{"l"}, cfg: tiny(6, 3),
		cold: true, prep: func(h *Handle) {
			fillUp(h, 0)
			preload(map[string]string{"k": "0"})(h)
		}, do: []func(*client){
			func(c *client) { c.delete("k"); c.store("l", class(1, "a")) },
			func(c *client) { c.unlock("k", c.lock("k")) },
		}, bounds: []bounds{{1, 0}, {0, 1}}},
	{name: "two want the last span", keys: []string{"k", "l"}, cfg: tiny(6, 3), cold: true,
		prep: func(h *Handle) { fillUp(h, 0) }, do: []func(*client){
			func(c *client) { c.tryStore("k", class(1, "a")) },
			func(c *client) { c.tryStore("l", "b") },
		}, bounds: []bounds{{1, 0}, {0, 1}}},
	// The reader and the next writer meet a record that is on its way through the spare.
	{name: "store over in a full store, fetch, store", start: oneMore, cold: true, prep: fillAll, do: []func(*client){
		func(c *client) { c.store("k", class(1, "a")) },
		func(c *client) { c.fetch("k") },
		func(c *client) { c.store("k", class(1, "b")) },
	}, after: noFillers, bounds: []bounds{{1, 0}, {0, 1}}},
	{name: "create two databases", cfg: threeDatabases(), cold: true, do: []func(*client){createOther, func(c *client) {
		if _, err := c.s.Database(bg, "third", KV, DatabaseOptions{Records: 1}); err != nil {
			c.t.Failf("database: %v", err)
		}
	}}, after: func(r *run, s *Store) error {
		for _, name := range []string{"other", "third"} {
			if _, err := s.Database(bg, name, KV, DatabaseOptions{Records: 1}); err != nil {
				return err
			}
		}
		return nil
	}},
	// The owner of the segment closes the gate and opens it again.
	{name: "gate, store", start: map[string]string{"k": "0"}, mortal: "B", do: []func(*client){
		func(c *client) {
			g := &c.s.gate.Gate
			v := g.Load()
			g.Swap(v&^3 + 4 | shm.GateFrozen)
			g.Swap(v + 8)
			g.Lo().Wake(shm.All)
		},
		func(c *client) { c.store("k", "b") },
	}},
	{name: "gate, fetch", start: map[string]string{"k": "0"}, mortal: "B", do: []func(*client){
		func(c *client) {
			g := &c.s.gate.Gate
			v := g.Load()
			g.Swap(v&^3 + 4 | shm.GateFrozen)
			g.Swap(v + 8)
			g.Lo().Wake(shm.All)
		},
		func(c *client) { c.fetch("k") },
	}},
	{name: "gate, add, insert", start: map[string]string{"k": "0"}, keys: []string{"l"}, mortal: "B",
		do: []func(*client){
			func(c *client) {
				g := &c.s.gate.Gate
				v := g.Load()
				g.Swap(v&^3 + 4 | shm.GateFrozen)
				g.Swap(v + 8)
				g.Lo().Wake(shm.All)
			},
			func(c *client) { c.add("k", "b"); c.store("l", "b") },
		}},
	// Two goroutines of one client.
	{name: "one client, add and add", start: map[string]string{"k": "0"}, together: true, do: []func(*client){
		func(c *client) { c.add("k", "a") },
		func(c *client) { c.add("k", "b") },
	}},
	{name: "one client, insert and delete", keys: []string{"k"}, together: true, do: []func(*client){
		func(c *client) { c.store("k", "a") },
		func(c *client) { c.delete("k") },
	}},
	{name: "one client, refill twice", keys: []string{"k", "l"}, cold: true, together: true, do: []func(*client){
		func(c *client) { c.store("k", "a") },
		func(c *client) { c.store("l", "b") },
	}},
	{name: "join, join", cold: true, raw: true, cfg: tiny(12, 4), start: map[string]string{"k": "0"},
		do: []func(*client){
			func(c *client) { c.attach(); c.store("k", "a") },
			func(c *client) { c.attach(); c.store("k", "b") },
		}},
	{name: "leave, add", start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) {
			c.lock("k")
			i := c.begin("k", "leave", func(v value) (value, bool) {
				return value{data: v.data, died: true}, v.holder == c.name
			})
			if err := c.s.c.Leave(); err != nil {
				c.t.Failf("leave: %v", err)
			}
			c.end(i, 0, nil)
		},
		func(c *client) { c.add("k", "b") },
	}, bounds: []bounds{{1, 0}, {0, 1}}},
	{name: "create a database twice", cold: true, do: []func(*client){createOther, createOther},
		after: func(r *run, s *Store) error {
			_, err := s.Database(bg, "other", KV, DatabaseOptions{Records: 1})
			return err
		}},
	{name: "recover, recover", start: map[string]string{"k": "0"}, do: []func(*client){
		func(c *client) { c.add("k", "a") },
		(*client).recover,
		(*client).recover,
	}, bounds: []bounds{{0, 1}, {0, 2}}},
	{name: "traverse, delete and insert", start: valuesOf(sameBucket(3)), do: []func(*client){
		func(c *client) { c.delete(sameBucket(3)[1]); c.store(sameBucket(3)[1], "a") },
		traverse,
	}},
}

func threeDatabases() Config {
	c := tiny(12, 3)
	c.Databases = 3
	return c
}

func createOther(c *client) {
	if _, err := c.s.Database(bg, "other", KV, DatabaseOptions{Records: 1}); err != nil {
		c.t.Failf("database: %v", err)
	}
}

// traverse has to see what is there all the time, once.
func traverse(c *client) {
	keep := []string{sameBucket(3)[0], sameBucket(3)[2]}
	seen := map[string]int{}
	for e, err := range c.db.Traverse(bg) {
		if err != nil {
			c.t.Failf("traverse: %v", err)
		}
		seen[string(e.Key)]++
		if k := string(e.Key); string(e.Data) != "of "+k && string(e.Data) != "a" {
			c.t.Failf("traverse: %q has %q", e.Key, e.Data)
		}
	}
	for _, k := range keep {
		if seen[k] != 1 {
			c.t.Failf("traverse: %q seen %d times", k, seen[k])
		}
	}
}

// TestExploreRaces: all orders with two preemptions, or with one death, of
// the smaller ones; some at random with more of both. In the long form all
// orders with any number of preemptions, and with deaths and preemptions
// together, as far as the time for each goes.
func TestExploreRaces(t *testing.T) {
	var sum tally
	n, part := parts(t)
	for i, k := range raceCases {
		if i%n != part {
			continue
		}
		bs, seed := k.bounds, uint64(1)
		if *exploreFull {
			bs = append(slices.Clone(bs), bounds{1, 1}, bounds{explore.Unbounded, 0}, bounds{0, 2}, bounds{2, 1},
				bounds{1, 2})
			seed = uint64(time.Now().UnixNano())
		} else if bs == nil {
			bs = []bounds{{2, 0}, {0, 1}}
		}
		t.Run(strings.ReplaceAll(k.name, " ", "_"), func(t *testing.T) {
			for _, b := range bs {
				sc := k.scenario(b)
				sc.c.MaxRuns = 6000
				if *exploreFull {
					sc.c.MaxRuns, sc.c.MaxTime = 0, *exploreTime
				}
				r := sound(t, sc.explore(t))
				if b.deaths > 0 && r.Deaths == 0 {
					t.Error("nobody died")
				}
				sum.add(r)
			}
			sc := k.scenario(bounds{4, 2})
			sc.c.MaxRuns = 100
			if *exploreFull {
				sc.c.MaxRuns, sc.c.MaxTime = 0, *exploreTime
			}
			sum.add(sound(t, sc.random(t, seed)))
		})
	}
	t.Log(sum)
}
