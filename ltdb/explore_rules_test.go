//go:build shmsim

package ltdb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/shm"
)

// ruleCases are the rules of docs/memory.md, store by store: the mistake that
// breaks a rule, and the cases of which one has to find it. The table in that
// page names them; TestRulesAreDocumented compares the two.
var ruleCases = []struct {
	bug   string
	texts []string // one of them is in what the explorer finds
	in    func() []*scenario
}{
	// Blocks.
	{"mismatch", []string{"no order explains", "twice", "as well"},
		oneOf(race("block goes to another record", bounds{2, 0}), race("delete and insert, fetch", bounds{2, 0}),
			race("store twice, fetch twice", bounds{2, 0}))},
	{"nostill", []string{"no order explains", "as well", "does not belong"}, oneOf(sameTagLock(bounds{2, 0}))},
	{"oldflags", []string{"no order explains"},
		oneOf(race("recover, recover", bounds{2, 1}), race("leave, add", bounds{2, 0}))},

	// Commit.
	{"takefirst", []string{"nowhere"}, oneOf(kill("store over, same class", 1))},
	{"oldlate", []string{"as well", "nowhere"}, oneOf(kill("store over, same class", 1))},
	{"putlate", []string{"nowhere"}, oneOf(kill("store over, same class", 1))},
	{"dropfirst", []string{"nowhere"}, oneOf(kill("large value", 1))},
	{"celllate", []string{"locked by"}, oneOf(kill("lock and unlock", 1))},
	{"untold", []string{"everybody waits"}, oneOf(toldOfRemoval(bounds{1, 0}))},
	{"forgetfirst", []string{"everybody waits"}, oneOf(toldOfRemoval(bounds{2, 1}))},
	{"stale", []string{"no order explains"}, oneOf(piecesRace("append, append", bounds{2, 0}))},

	// Turns.
	{"nouse", []string{"as well", "nowhere", "locked by", "latch", "no order explains"},
		oneOf(twoOfOneDB(bounds{1, 0}))},

	// Insert.
	{"intentlate", []string{"latch"}, oneOf(kill("store new", 1))},
	{"intentfirst", []string{"latch"}, oneOf(kill("store new", 1))},
	{"insertcell", []string{"locked by"}, oneOf(kill("store new", 1))},
	{"twice", []string{"twice", "no order explains", "also", "as well"},
		oneOf(race("insert, insert of the same", bounds{2, 0}))},
	{"linklate", []string{"nowhere"}, oneOf(kill("overflow bucket", 1))},

	// Allocator.
	{"popfirst", []string{"nowhere"}, oneOf(kill("refill from a list", 1))},
	{"pushfirst", []string{"nowhere"}, oneOf(kill("flush of a full magazine", 1))},
	{"carvefirst", []string{"nowhere"}, oneOf(kill("store new, magazines empty", 1))},
	{"classintent", []string{"as well"}, oneOf(kill("refill from a list", 1))},
	{"nocarve", []string{"span"}, oneOf(kill("store new, magazines empty", 1), kill("a span changes its class", 1))},
	{"nocur", []string{"span"}, oneOf(kill("store new, magazines empty", 1), kill("a span changes its class", 1))},
	{"noreclaim", []string{"nowhere", "span", "as well", "free list"}, oneOf(kill("a span changes its class", 1))},

	// Pieces.
	{"pagelate", []string{"nowhere"}, oneOf(pieceKill("first append of a client", 1))},
	{"wordlate", []string{"nowhere"}, oneOf(pieceKill("append to nothing", 1))},
	{"wordfirst", []string{"nowhere"}, oneOf(pieceKill("append and remove", 1))},
	{"opidlate", []string{"no order explains", "two", "twice", "piece"}, oneOf(secondOfTwo(bounds{0, 1}))},
	{"nostamp", []string{"remove", "no order explains"}, oneOf(staleRemove(bounds{2, 0}))},

	// Dispatcher.
	{"noindex", []string{"without an owner"}, oneOf(noPieces(appended(bounds{0, 0})))},
	{"leaving", []string{"without an owner"}, oneOf(noPieces(appended(bounds{1, 0})))},
	{"nosecond", []string{"everybody waits", "does not know of it"}, oneOf(givenLock(bounds{1, 1}, false))},
	{"nogoing", []string{"does not know of it"}, oneOf(givenLock(bounds{2, 0}, true))},

	// Repair.
	{"cellsfirst", []string{"as well", "nowhere", "no order explains"}, oneOf(repairBeside(bounds{1, 1}))},
	{"journalsfirst", []string{"as well", "nowhere"}, oneOf(kill("store new", 1))},
	{"halfmade", []string{"database", "span"}, oneOf(kill("create a database", 1))},
	{"nodied", []string{"no order explains"}, oneOf(race("add, add", bounds{0, 1}))},
	{"putagain", []string{"as well"}, oneOf(kill("store over, same class", 2), kill("store new", 2))},
	{"givefirst", []string{"as well", "nowhere", "latch"},
		oneOf(kill("store over, same class", 2), kill("flush of a full magazine", 2),
			race("recover, recover", bounds{1, 1}))},
	{"repairforget", []string{"everybody waits"}, oneOf(forgottenByRepair())},
	{"nonews", []string{"everybody waits"}, oneOf(toldOfDeath(bounds{0, 1}))},
	{"forgetpages", []string{"is dead", "nowhere"}, oneOf(pieceKill("append to nothing", 2), pieceKill("leave", 2))},
	{"bothhave", []string{"as well", "nowhere", "no order explains"}, oneOf(tidyBeside())},
	{"nolast", []string{"as well", "nowhere", "is dead", "does not end", "livelock"}, oneOf(orphansBefore())},
}

func oneOf(scs ...*scenario) func() []*scenario { return func() []*scenario { return scs } }

// sameTag returns two keys that share their bucket and their tag.
func sameTag() [2]string {
	db := &DB{id: databaseID(worldDB), probe: probe{mask: 63}}
	seen := map[[2]uint64]string{}
	for i := 0; ; i++ {
		k := fmt.Sprint("t", i)
		h := db.hash([]byte(k))
		at := [2]uint64{h & db.mask, tagOf(h)}
		if other, ok := seen[at]; ok {
			return [2]string{other, k}
		}
		seen[at] = k
	}
}

// sameTagLock: between B's look at a record and its lock, A gives entry and
// block to another record with the same tag: B's CAS sees no difference.
func sameTagLock(b bounds) *scenario {
	keys := sameTag()
	k := raceCase{name: "entry and block go to another record, lock", blocks: 1,
		start: map[string]string{keys[0]: "0"}, keys: keys[1:], do: []func(*client){
			func(c *client) {
				c.delete(keys[0])
				c.store(keys[1], "a")
				c.store(keys[1], "aa")
			},
			func(c *client) { c.add(keys[0], "c") },
		}}
	return k.scenario(b)
}

// secondOfTwo: a client removes the second of its two pieces in one record.
func secondOfTwo(b bounds) *scenario {
	k := piecesCase{name: "remove the second of two", do: []func(c *pieceClient){func(c *pieceClient) {
		c.add("k", "a", false)
		p, _ := c.add("k", "b", false)
		c.remove("k", "b", p)
		c.see("k")
	}}}
	return k.scenario(b, true)
}

func pieceKill(name string, deaths int) *scenario {
	i := slices.IndexFunc(piecesKillCases, func(k piecesCase) bool { return k.name == name })
	return piecesKillCases[i].scenario(bounds{0, deaths}, true)
}

// toldOfRemoval: A removes the piece that B waits for, and may die on the way.
// C recovers the dead, so that B has no reason of its own to look again.
func toldOfRemoval(b bounds) *scenario {
	k := piecesCase{name: "removal, waiting append, recovery", mortal: "A",
		warm: []func(c *pieceClient){owns(0, "k", "A")}, do: []func(c *pieceClient){
			func(c *pieceClient) { c.remove("k", "A", held[0]) },
			func(c *pieceClient) { c.add("k", "b", true) },
			func(c *pieceClient) { c.recover() },
		}}
	return k.scenario(b, false)
}

// toldOfDeath: A dies with a piece that B waits for; C recovers, and dies on
// the way; D recovers.
func toldOfDeath(b bounds) *scenario {
	k := piecesCase{name: "death, waiting append, recoveries", mortal: "AC",
		warm: []func(c *pieceClient){owns(0, "k", "A")}, do: []func(c *pieceClient){
			func(c *pieceClient) { c.remove("k", "A", held[0]) },
			func(c *pieceClient) { c.add("k", "b", true) },
			func(c *pieceClient) { c.recover() },
			func(c *pieceClient) { c.recover() },
		}}
	return k.scenario(b, false)
}

// staleRemove: a client removes a piece by a name that it has used before,
// while the piece that has its word now is removed as well.
func staleRemove(b bounds) *scenario {
	var old, now Piece
	k := piecesCase{name: "a name used twice", warm: []func(c *pieceClient){func(c *pieceClient) {
		old = must(c.ph.ConditionalAppend(bg, ShareModes, []byte("k"), letter("x")))
		if err := c.ph.RemoveAndTrigger(bg, []byte("k"), old); err != nil {
			panic(err)
		}
		now = c.had("k", "a")
	}}, do: []func(c *pieceClient){
		func(c *pieceClient) {
			if now.word != old.word {
				c.t.Failf("the pieces have the words %d and %d", old.word, now.word)
			}
			c.remove("k", "a", now)
		},
	}}
	sc := k.scenario(b, false)
	sc.clients = append(sc.clients, actorDef{name: "B", joins: true, do: func(c *client) {
		pdb := must(c.s.Database(bg, piecesWorldDB, Pieces, DatabaseOptions{Records: 1}))
		if err := newHandle(pdb, c.h.a).RemoveAndTrigger(bg, []byte("k"), old); !errors.Is(err, ErrNotFound) {
			c.t.Failf("removal by a stale name: %v", err)
		}
	}})
	return sc
}

// twoOfOneDB: two goroutines of one client store through its DB.
func twoOfOneDB(b bounds) *scenario {
	store := func(key, data string) func(c *client) {
		return func(c *client) {
			i := c.begin(key, "store "+data, func(v value) (value, bool) { return value{data: data}, v.holder == "" })
			if err := c.db.Store(bg, []byte(key), []byte(data)); err != nil {
				c.t.Failf("store: %v", err)
			}
			c.end(i, 0, nil)
		}
	}
	k := raceCase{name: "two goroutines store by the DB", start: map[string]string{"k": "0", "l": "0"},
		keys: []string{"l"}, mortal: "-", together: true,
		do: []func(*client){store("k", "a"), store("l", "b")}}
	sc := k.scenario(b)
	sc.setup = func(r *run) {
		for i := range 2 {
			r.clients[0].s.actors[8+i].use.Store(actorIdle) // nobody has to wait for one
		}
	}
	return sc
}

// repairBeside: A dies in a store; B recovers it while C stores to the same
// record.
func repairBeside(b bounds) *scenario {
	k := raceCase{name: "store, recovery, store", start: one, mortal: "A", do: []func(*client){
		func(c *client) { c.store("k", "a") },
		(*client).recover,
		func(c *client) { c.store("k", "c"); c.store("k", "cc") },
	}}
	return k.scenario(b)
}

// forgottenByRepair is toldOfDeath with deaths where news and cells are written
// alone: A dies behind its commit, C in the middle of A's cell.
func forgottenByRepair() *scenario {
	sc := toldOfDeath(bounds{0, 2})
	sc.picky = true
	sc.setup = func(r *run) {
		a := r.clients[0].s
		cell, news := shm.OffsetOf(a.r, &a.body.cells[0]), shm.OffsetOf(a.r, &a.node.changes[0])
		sc.die = func(off uint64) bool {
			return off-cell < cellsPerSlot*8 || off-news < uint64(len(a.node.changes))*4
		}
	}
	return sc
}

// tidyBeside: A dies, B repairs its slot and dies on the way, C removes pieces
// of the dead before anybody has finished B's work.
func tidyBeside() *scenario {
	k := piecesCase{name: "repair, removal of the dead's pieces", mortal: "AB", cold: true, keys: []string{"k", "l"},
		warm: []func(c *pieceClient){func(c *pieceClient) {
			c.had("k", "a")
		}}, do: []func(c *pieceClient){
			func(c *pieceClient) { c.see("k"); c.add("k", "b", false) },
			func(c *pieceClient) { c.recover() },
			func(c *pieceClient) {
				if _, err := c.h.a.tidy(); err != nil { // the handle that appends then
					c.t.Failf("tidy: %v", err)
				}
				c.add("l", "c", false) // its first page may be one that it has freed
			},
		}}
	sc := k.scenario(bounds{0, 2}, false)
	sc.c.Sequential = true
	return sc
}

// orphansBefore: the slot of A has orphans of an earlier tenant, which nobody
// removes, as there was a dispatcher once. A dies, and so does who repairs it.
func orphansBefore() *scenario {
	k := piecesCase{name: "orphans of two tenants",
		warm: []func(c *pieceClient){func(c *pieceClient) { c.had("k", "a") }},
		do:   []func(c *pieceClient){func(c *pieceClient) { c.add("k", "b", false) }}}
	sc := k.scenario(bounds{0, 2}, true)
	prepare, after := sc.prepare, sc.after
	sc.prepare = func(h *Handle) {
		prepare(h)
		s := h.db.s
		s.seg.Slot(DispatcherSlot).Generation.Store(1)
		// This client leaves its slot to A, and its index to the orphans.
		db := must(s.Database(bg, piecesWorldDB, Pieces, DatabaseOptions{Records: 1}))
		must(db.ConditionalAppend(bg, Always, []byte("left"), letter("x")))
	}
	sc.after = func(r *run, s *Store) error {
		s.seg.Slot(DispatcherSlot).Generation.Store(0)
		return after(r, s)
	}
	return sc
}

// Without a planted bug two goroutines have a handle each.
func TestExploreTwoOfOneDB(t *testing.T) { twoOfOneDB(bounds{1, 0}).explore(t) }

func TestPlantedRules(t *testing.T) {
	for _, k := range ruleCases {
		t.Run(k.bug, func(t *testing.T) {
			caught(t, k.bug, k.texts, k.in()...)
		})
	}
}

// directCases are rules that a few calls in a row can break.
var directCases = []struct {
	bug string
	do  func(t *testing.T) error
}{
	{"seqbase", seqsOfNewSpan},
	{"believed", lengthUnderLock},
	{"endtwice", endedTwice},
	{"noseat", endedTwice},
	{"nolook", endedTwice},
	{"anytenant", interruptedGive},
	{"takeany", interruptedGive},
	{"withd", interruptedRepair},
	{"nottold", halfRepaired},
}

func TestPlantedDirect(t *testing.T) {
	for _, k := range directCases {
		t.Run(k.bug, func(t *testing.T) {
			if err := k.do(t); err != nil {
				t.Fatal(err)
			}
			planting(t, k.bug)
			if err := k.do(t); err == nil {
				t.Fatalf("the planted bug %q was not caught", k.bug)
			}
		})
	}
}

// endedTwice: two goroutines of one client end one Record, by each pair of calls. The
// second one does all that it does at each place where the first one has decided half
// of whose turn it is. One of them ends it, and the segment is whole.
func endedTwice(t *testing.T) error {
	s, err := OpenHeap(Config{Size: 16 << 20, Slots: 4, MaxValue: 3000, SpanSize: 16 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db := database(t, s, "test", 100)
	h := handleOf(t, db)
	defer func() { simBetween = [len(simBetween)]func(){} }()
	ends := map[string]func(Record) error{
		"Unlock":      Record.Unlock,
		"StoreUnlock": func(r Record) error { return r.StoreUnlock(make([]byte, 200)) },
		"Delete":      Record.Delete,
	}
	for way, lock := range map[string]func(context.Context, []byte) (Record, error){"DB": db.FetchLocked,
		"Handle": h.FetchLocked} {
		for first, end := range ends {
			for second, beside := range ends {
				for at := range simBetween {
					if err := db.Store(bg, []byte("key"), []byte("value")); err != nil {
						t.Fatal(err)
					}
					r, err := lock(bg, []byte("key"))
					if err != nil {
						t.Fatal(err)
					}
					ended, met := 0, false
					call := func(end func(Record) error) (failed error) {
						p := panics(func() {
							switch err := end(r); {
							case err == nil:
								ended++
							case err != ErrNotLocked:
								failed = err
							}
						})
						if p != "" && (way == "DB" || !strings.Contains(p, twoGoroutines)) {
							failed = errors.New(p)
						}
						return failed
					}
					var other error
					simBetween[at] = func() {
						met = true
						other = call(beside)
					}
					one := call(end)
					simBetween[at] = nil
					if met != (way == "Handle" || at == lookAndClaim) {
						t.Fatalf("%s: %s: it came by place %d: %v", way, first, at, met)
					}
					if !met {
						continue
					}
					if err := errors.Join(one, other); err != nil || ended != 1 {
						return fmt.Errorf("%s: %s, and %s at place %d: ended %d times, %v", way, first, second, at,
							ended, err)
					}
				}
			}
		}
	}
	rep, err := s.Check(bg)
	if err != nil {
		t.Fatal(err)
	}
	if !rep.OK() {
		return fmt.Errorf("%v", rep.Errors)
	}
	return nil
}

// seqsOfNewSpan: a span that changes its class begins with seqs above all that
// its blocks have had.
func seqsOfNewSpan(t *testing.T) error {
	s, err := OpenHeap(tiny(5, 2))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db := must(s.Database(bg, worldDB, KV, DatabaseOptions{Records: 1}))
	h := must(db.Handle())
	defer h.Close()
	fillUp(h, 0)
	top := make([]uint64, len(s.spans))
	for i := range s.spans {
		w := s.spans[i].word.Load()
		if spanClass(w) != 0 {
			continue
		}
		for n := range spanCarved(w) {
			top[i] = max(top[i], s.blockAt(offsetRef(s.spanStart(i)+n*uint64(classSizes[0])), 0).seq.Load())
		}
	}
	if err := h.Store(bg, []byte("k"), []byte(class(1, "v"))); err != nil {
		t.Fatal(err)
	}
	changed := false
	for i := range s.spans {
		if top[i] == 0 || spanClass(s.spans[i].word.Load()) == 0 {
			continue
		}
		changed = true
		if base := s.spans[i].seqBase.Load(); base <= top[i] {
			return fmt.Errorf("span %d starts anew at seq %d, and its blocks had %d", i, base, top[i])
		}
	}
	if !changed {
		t.Fatal("no span has changed its class")
	}
	return nil
}

// lengthUnderLock: a length that is too large for its block is damage, also
// under the record's lock.
func lengthUnderLock(t *testing.T) error {
	s, err := OpenHeap(tiny(12, 2))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db := must(s.Database(bg, worldDB, KV, DatabaseOptions{Records: 1}))
	if err := db.Store(bg, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	var at spot
	if ok, err := db.find(db.hash([]byte("k")), []byte("k"), &at); !ok || err != nil {
		t.Fatal(ok, err)
	}
	at.b.size.Store(at.b.size.Load()&^0xffffffff | uint64(classSizes[0]))
	r, err := db.FetchLocked(bg, []byte("k"))
	if !errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("a record with %d bytes in a block of %d: %v", len(r.Data()), classSizes[0], err)
	}
	return nil
}

// TestRulesAreDocumented: plant_sim.go, the tests and the table of
// docs/memory.md name the same planted bugs.
func TestRulesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/memory.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("plant_sim.go")
	if err != nil {
		t.Fatal(err)
	}
	tested := map[string]bool{}
	for _, k := range ruleCases {
		tested[k.bug] = true
	}
	for _, k := range directCases {
		tested[k.bug] = true
	}
	tests, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`(?:caught\(t, |planting\(t, )"(\w+)"`)
	for _, f := range tests {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(b), -1) {
			tested[m[1]] = true
		}
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^//\t(\\w+) ").FindAllStringSubmatch(string(source), -1) {
		named[m[1]] = true
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\|[^|\n]*\\|[^|\n]*\\| `(\\w+)` \\|").FindAllStringSubmatch(string(page), -1) {
		documented[m[1]] = true
	}
	for bug := range named {
		if !tested[bug] {
			t.Errorf("planted bug %q has no test", bug)
		}
		if !documented[bug] {
			t.Errorf("planted bug %q is not in the table of docs/memory.md", bug)
		}
	}
	for bug := range documented {
		if !named[bug] {
			t.Errorf("docs/memory.md names %q, which plant_sim.go does not", bug)
		}
	}
	for bug := range tested {
		if !named[bug] {
			t.Errorf("a test plants %q, which plant_sim.go does not name", bug)
		}
	}
}
