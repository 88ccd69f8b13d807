//go:build shmsim

package ltdb

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/internal/explore"
)

// Appends and removals of pieces under the explorer. The value of a record in
// the history is the list of its pieces, by name: a letter each. A client's
// death takes its pieces away, each at some time after it.

const piecesWorldDB = "p"

// pieceClient is a client of the database of pieces.
type pieceClient struct {
	*client
	pdb *DB
	ph  *Handle
}

func pieces(c *client) *pieceClient {
	pdb := must(c.s.Database(bg, piecesWorldDB, Pieces, DatabaseOptions{Records: 1}))
	return &pieceClient{c, pdb, newHandle(pdb, c.h.a)}
}

// one piece is one letter: upper case is exclusive, lower case lets others in.
func letter(l string) []byte {
	if strings.ToUpper(l) == l {
		return exclusive(l[0])
	}
	return shared(l[0])
}

func lettersOf(data []byte) string {
	var b strings.Builder
	for ; len(data) >= ShareModesEntry; data = data[ShareModesEntry:] {
		b.WriteByte(data[8])
	}
	return b.String()
}

func admits(there, l string) bool {
	return there == "" || strings.ToLower(l) == l && strings.ToLower(there) == there
}

func without(s, l string) string { return strings.Replace(s, l, "", 1) }

// add appends a piece if the share modes allow it.
func (c *pieceClient) add(key, l string, wait bool) (Piece, bool) {
	i := c.begin("p"+key, "append "+l, func(v value) (value, bool) {
		return value{data: v.data + l}, admits(v.data, l)
	})
	f := c.ph.ConditionalAppend
	if wait {
		f = c.ph.ConditionalAppendWait
	}
	p, err := f(bg, ShareModes, []byte(key), letter(l))
	switch {
	case err == nil:
		c.end(i, 0, nil)
	case errors.Is(err, ErrCondition):
		c.end(i, 1, func(v value) (value, bool) { return v, !admits(v.data, l) })
	default:
		c.t.Failf("append: %v", err)
	}
	return p, err == nil
}

func (c *pieceClient) remove(key, l string, p Piece) {
	i := c.begin("p"+key, "remove "+l, func(v value) (value, bool) {
		return value{data: without(v.data, l)}, strings.Contains(v.data, l)
	})
	if err := c.ph.RemoveAndTrigger(bg, []byte(key), p); err != nil {
		c.t.Failf("remove: %v", err)
	}
	c.end(i, 0, nil)
}

func (c *pieceClient) see(key string) {
	i := c.begin("p"+key, "fetch", func(v value) (value, bool) { return v, true })
	got, err := c.ph.Fetch(bg, []byte(key))
	if err != nil && !errors.Is(err, ErrNotFound) {
		c.t.Failf("fetch: %v", err)
	}
	c.saw(i, lettersOf(got))
}

// piecesAfter checks the records of pieces: those of the living are there, in
// an order that explains all that was seen, and those of the dead are not.
func piecesAfter(keys ...string) func(r *run, s *Store) error {
	return func(r *run, s *Store) error {
		if _, err := s.Recover(bg); err != nil {
			return err
		}
		db, err := s.Database(bg, piecesWorldDB, Pieces, DatabaseOptions{Records: 1})
		if err != nil {
			return err
		}
		for _, key := range keys {
			got, err := db.Fetch(bg, []byte(key))
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			if err := r.checkPieces("p"+key, lettersOf(got)); err != nil {
				return err
			}
		}
		// The living leave, and nothing is left.
		for _, c := range r.clients {
			if !c.p.Dead() && c.s != nil {
				if err := c.s.abandon(); err != nil {
					return err
				}
			}
		}
		for _, key := range keys {
			if got, err := db.Fetch(bg, []byte(key)); !errors.Is(err, ErrNotFound) {
				return fmt.Errorf("all have left, and %q has %q, %v", key, lettersOf(got), err)
			}
			// An empty record is there for one reason: its next holder is to be told
			// that somebody died with its lock.
			var at spot
			if ok, err := db.find(db.hash([]byte(key)), []byte(key), &at); err != nil || ok &&
				metaFlags(at.meta)&flagOwnerDied == 0 {
				return fmt.Errorf("all have left, and %q is there as an empty record: %v", key, err)
			}
			if err := db.Delete(bg, []byte(key)); err != ErrNotFound {
				return err
			}
		}
		return nil
	}
}

func (r *run) checkPieces(key, got string) error {
	var calls []explore.Call[value]
	for _, c := range r.calls {
		if c.key == key {
			calls = append(calls, explore.Call[value]{Begin: c.begin, End: c.end, Apply: c.apply})
		}
	}
	for _, c := range r.clients {
		for _, call := range r.calls {
			l, is := strings.CutPrefix(call.what, "append ")
			if !c.p.Dead() || !is || call.who != c.name || call.key != key {
				continue
			}
			if l = l[:1]; strings.Contains(got, l) {
				return fmt.Errorf("record %q is %q: %s is dead", key, got, c.name)
			}
			calls = append(calls, explore.Call[value]{Begin: 1, Apply: func(v value) (value, bool) {
				return value{data: without(v.data, l)}, strings.Contains(v.data, l)
			}})
		}
	}
	if !explore.Linearizable(value{}, calls, func(v value) bool { return v.data == got }) {
		return fmt.Errorf("record %q is %q now; no order explains that:\n%s", key, got, r.history(key))
	}
	return nil
}

// piecesCase is a set of clients of the database of pieces. The first one to
// be made makes the database.
type piecesCase struct {
	name   string
	do     []func(c *pieceClient)
	warm   []func(c *pieceClient) // before the exploration; nil: an append and a removal
	mortal string
	cold   bool
	keys   []string
}

func (k piecesCase) scenario(b bounds, sequential bool) *scenario {
	keys := k.keys
	if keys == nil {
		keys = []string{"k"}
	}
	sc := &scenario{
		name: fmt.Sprintf("%s, %d preemptions, %d deaths", k.name, b.preemptions, b.deaths),
		cfg:  tiny(24, len(k.do)+b.deaths+1), after: piecesAfter(keys...),
		c: explore.Case{Preemptions: b.preemptions, Deaths: b.deaths, Sequential: sequential},
		prepare: func(h *Handle) {
			must(h.db.s.Database(bg, piecesWorldDB, Pieces, DatabaseOptions{Records: 1}))
		},
	}
	for i, do := range k.do {
		def := actorDef{name: string(rune('A' + i)), do: func(c *client) { do(pieces(c)) }}
		def.dies = k.mortal == "" || strings.Contains(k.mortal, def.name)
		def.warm = func(c *client) {
			pc := pieces(c)
			if !k.cold {
				p := must(pc.ph.ConditionalAppend(bg, Always, []byte("warm"), []byte("w")))
				if err := pc.ph.RemoveAndTrigger(bg, []byte("warm"), p); err != nil {
					panic(err)
				}
			}
			if i < len(k.warm) && k.warm[i] != nil {
				k.warm[i](pc)
			}
		}
		sc.clients = append(sc.clients, def)
	}
	if sequential {
		for i := 1; i < b.deaths; i++ {
			sc.clients = append(sc.clients, actorDef{name: fmt.Sprint("repairer ", i), dies: true,
				do: (*client).recover, warm: warmUp})
		}
	}
	return sc
}

// had makes a piece before the exploration, and tells the history.
func (c *pieceClient) had(key, l string) Piece {
	p := must(c.ph.ConditionalAppend(bg, Always, []byte(key), letter(l)))
	r := c.run
	r.calls = append(r.calls, call{key: "p" + key, who: c.name, begin: 1, end: 1, what: "append " + l,
		apply: func(v value) (value, bool) { return value{data: v.data + l}, true }})
	return p
}

var held [8]Piece // by the place of the client: what warm appended

func owns(i int, key, l string) func(c *pieceClient) {
	return func(c *pieceClient) { held[i] = c.had(key, l) }
}

// piecesRuns bounds the searches with two deaths in the short form.
const piecesRuns = 1500

var piecesKillCases = []piecesCase{
	{name: "append to nothing", do: []func(c *pieceClient){func(c *pieceClient) { c.add("k", "a", false) }}},
	{name: "first append of a client", cold: true,
		do: []func(c *pieceClient){func(c *pieceClient) { c.add("k", "a", false) }}},
	{name: "append and remove", do: []func(c *pieceClient){func(c *pieceClient) {
		p, _ := c.add("k", "a", false)
		c.remove("k", "a", p)
	}}},
	{name: "append to a piece", warm: []func(c *pieceClient){owns(0, "k", "a")},
		do: []func(c *pieceClient){func(c *pieceClient) { c.add("k", "b", false) }}},
	{name: "remove one of two", warm: []func(c *pieceClient){func(c *pieceClient) {
		held[0] = c.had("k", "a")
		c.had("k", "b")
	}},
		do: []func(c *pieceClient){func(c *pieceClient) { c.remove("k", "a", held[0]) }}},
	{name: "refused", warm: []func(c *pieceClient){owns(0, "k", "A")},
		do: []func(c *pieceClient){func(c *pieceClient) { c.add("k", "b", false) }}},
	{name: "leave", warm: []func(c *pieceClient){func(c *pieceClient) { c.had("k", "a"); c.had("l", "b") }},
		keys: []string{"k", "l"},
		do: []func(c *pieceClient){func(c *pieceClient) {
			i, j := c.begin("pk", "leave", gone("a")), c.begin("pl", "leave", gone("b"))
			if err := errors.Join(c.s.abandon(), c.s.c.Leave()); err != nil {
				c.t.Failf("leave: %v", err)
			}
			c.end(i, 0, nil)
			c.end(j, 0, nil)
		}}},
}

func gone(l string) func(v value) (value, bool) {
	return func(v value) (value, bool) { return value{data: without(v.data, l)}, strings.Contains(v.data, l) }
}

// TestExplorePiecesKill: a client dies before each of its accesses, and so does
// who repairs it and removes its pieces.
func TestExplorePiecesKill(t *testing.T) {
	var sum tally
	n, part := parts(t)
	for _, k := range piecesKillCases {
		t.Run(strings.ReplaceAll(k.name, " ", "_"), func(t *testing.T) {
			for deaths := 1; deaths <= 2; deaths++ {
				sc := k.scenario(bounds{0, deaths}, true)
				sc.c.EveryAccess = *exploreFull
				if deaths == 2 && !*exploreFull {
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

var piecesRaceCases = []piecesCase{
	{name: "append, append", do: []func(c *pieceClient){
		func(c *pieceClient) { c.add("k", "a", false) },
		func(c *pieceClient) { c.add("k", "B", false) },
	}},
	{name: "remove, append", warm: []func(c *pieceClient){owns(0, "k", "A")}, do: []func(c *pieceClient){
		func(c *pieceClient) { c.remove("k", "A", held[0]) },
		func(c *pieceClient) { c.add("k", "b", false); c.see("k") },
	}},
	{name: "remove, waiting append", warm: []func(c *pieceClient){owns(0, "k", "A")}, do: []func(c *pieceClient){
		func(c *pieceClient) { c.remove("k", "A", held[0]) },
		func(c *pieceClient) { c.add("k", "B", true) },
	}},
	{name: "remove of what forbids, waiting append",
		warm: []func(c *pieceClient){func(c *pieceClient) { held[0] = c.had("k", "A"); c.had("k", "b") }},
		do: []func(c *pieceClient){
			func(c *pieceClient) { c.remove("k", "A", held[0]) },
			func(c *pieceClient) { c.add("k", "c", true) },
		}},
	{name: "remove of one, waiting append of two",
		warm: []func(c *pieceClient){func(c *pieceClient) { held[0] = c.had("k", "A"); held[1] = c.had("k", "b") }},
		do: []func(c *pieceClient){
			func(c *pieceClient) { c.remove("k", "A", held[0]); c.remove("k", "b", held[1]) },
			func(c *pieceClient) { c.add("k", "C", true) },
		}},
}

func TestExplorePiecesRace(t *testing.T) {
	var sum tally
	n, part := parts(t)
	for i, k := range piecesRaceCases {
		if n > 1 && i != part%len(piecesRaceCases) {
			continue
		}
		t.Run(strings.ReplaceAll(k.name, " ", "_"), func(t *testing.T) {
			bs := []bounds{{2, 0}, {1, 1}}
			if *exploreFull {
				bs = []bounds{{3, 0}, {2, 1}, {1, 2}}
			}
			for _, b := range bs {
				sc := k.scenario(b, false)
				if !*exploreFull {
					sc.c.MaxRuns = 6000
				} else {
					sc.c.MaxTime = *exploreTime
				}
				sum.add(sound(t, sc.explore(t)))
			}
		})
	}
	t.Log(sum)
}

// plain is a conditional append in mode kv.
func (c *client) plain(key string, cond ConditionID, data string) {
	i := c.begin(key, "append "+brief(data), func(v value) (value, bool) {
		return value{data: v.data + data}, v.holder == "" && (cond == Always || v.data == "")
	})
	switch _, err := c.h.ConditionalAppend(bg, cond, []byte(key), []byte(data)); {
	case err == nil:
		c.end(i, 0, nil)
	case errors.Is(err, ErrCondition):
		c.end(i, 1, func(v value) (value, bool) { return v, cond == IfAbsent && v.data != "" })
	default:
		c.t.Failf("append: %v", err)
	}
}

// unplain removes bytes in mode kv.
func (c *client) unplain(key, data string) {
	i := c.begin(key, "remove "+brief(data), func(v value) (value, bool) {
		return value{data: without(v.data, data)}, v.holder == "" && strings.Contains(v.data, data)
	})
	switch err := c.h.RemoveMatching(bg, Always, []byte(key), []byte(data)); {
	case err == nil:
		c.end(i, 0, nil)
	case errors.Is(err, ErrNotFound):
		c.end(i, 1, func(v value) (value, bool) { return v, !strings.Contains(v.data, data) })
	default:
		c.t.Failf("remove: %v", err)
	}
}

// TestExplorePlain: conditional appends and removals in mode kv.
func TestExplorePlain(t *testing.T) {
	kills := []killCase{
		{name: "plain append", start: one, warm: warmUp, do: func(c *client) { c.plain("k", Always, "x") }},
		{name: "plain append to nothing", keys: []string{"k"}, warm: warmUp,
			do: func(c *client) { c.plain("k", IfAbsent, "x") }},
		{name: "removal", start: map[string]string{"k": "abc"}, warm: warmUp,
			do: func(c *client) { c.unplain("k", "b") }},
		{name: "removal of all", start: map[string]string{"k": "b"}, warm: warmUp,
			do: func(c *client) { c.unplain("k", "b") }},
	}
	n, part := parts(t)
	for _, k := range kills {
		for deaths := 1; deaths <= 2; deaths++ {
			sc := k.scenario(deaths)
			if deaths == 2 && !*exploreFull {
				sc.c.MaxRuns = piecesRuns / n
			}
			sc.c.Slices, sc.c.Slice = n, part
			if r := sound(t, sc.explore(t)); !r.Complete && sc.c.MaxRuns == 0 || r.Deaths == 0 && n == 1 {
				t.Error("not complete, or nobody died")
			}
		}
	}
	races := []raceCase{
		{name: "if absent, if absent", keys: []string{"k"}, do: []func(c *client){
			func(c *client) { c.plain("k", IfAbsent, "a") }, func(c *client) { c.plain("k", IfAbsent, "b") }}},
		{name: "append, removal, store", start: map[string]string{"k": "ab"}, do: []func(c *client){
			func(c *client) { c.plain("k", Always, "c") }, func(c *client) { c.unplain("k", "b") },
			func(c *client) { c.store("k", "xbx") }}},
		{name: "append, lock and delete", start: map[string]string{"k": "ab"}, do: []func(c *client){
			func(c *client) { c.plain("k", IfAbsent, "c") }, func(c *client) { c.storeUnlock("k", c.lock("k"), "") }}},
	}
	for i, k := range races {
		if n > 1 && i != part%len(races) {
			continue
		}
		for _, b := range []bounds{{2, 0}, {1, 1}} {
			sc := k.scenario(b)
			sc.c.MaxRuns = 3000
			sound(t, sc.explore(t))
		}
	}
}

func piecesRace(name string, b bounds) *scenario {
	i := slices.IndexFunc(piecesRaceCases, func(k piecesCase) bool { return k.name == name })
	return piecesRaceCases[i].scenario(b, false)
}

func TestPlantedArmLate(t *testing.T) {
	caught(t, "armlate", []string{"everybody waits"},
		piecesRace("remove of what forbids, waiting append", bounds{2, 0}))
}
