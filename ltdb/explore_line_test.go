//go:build shmsim

package ltdb

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/explore"
)

// The lock's line and its share, on the real code: goroutines of one process that wait
// for the record together, another process that sleeps for it, waiters that are
// cancelled, that die or come late, and callers that only try. After each run the next
// client tries to lock the record, and has to succeed (checkKey).

// simContext is a context that a task ends. What waits for it is told at once, in that
// task, not in a goroutine of its own.
type simContext struct {
	context.Context
	done chan struct{}
	err  error
	told []func()
}

func newSimContext() *simContext {
	return &simContext{Context: bg, done: make(chan struct{})}
}

func (c *simContext) Done() <-chan struct{} { return c.done }
func (c *simContext) Err() error            { return c.err }

// AfterFunc is what package context looks for in a context that is not its own.
func (c *simContext) AfterFunc(f func()) func() bool {
	if c.err != nil {
		f()
		return func() bool { return false }
	}
	i := len(c.told)
	c.told = append(c.told, f)
	return func() bool {
		had := c.told[i] != nil
		c.told[i] = nil
		return had
	}
}

func (c *simContext) end() {
	c.err = context.Canceled
	close(c.done)
	for i, f := range c.told {
		if f != nil {
			c.told[i] = nil
			f()
		}
	}
}

// lockUntil is FetchLocked with a context that may end.
func (c *client) lockUntil(ctx context.Context, key string) (Record, bool) {
	i := c.begin(key, "lock until", func(v value) (value, bool) { return v, true })
	rec, err := c.h.FetchLocked(ctx, []byte(key))
	if errors.Is(err, context.Canceled) {
		c.end(i, 3, nil)
		return rec, false
	}
	if err != nil {
		c.t.Failf("lock: %v", err)
	}
	c.locked(i, rec)
	return rec, true
}

type lineCase struct {
	name   string
	line   int    // how many of the first are goroutines of one client
	mortal string // as in raceCase; "": nobody
	ctx    bool   // the last of the line ends the context of the first
	do     []func(c *client, ctx *simContext)
}

func addOne(data string) func(*client, *simContext) {
	return func(c *client, _ *simContext) { c.add("k", data) }
}

func tryOne(data string) func(*client, *simContext) {
	return func(c *client, _ *simContext) {
		if r, ok := c.tryLock("k"); ok {
			c.storeUnlock("k", r, string(r.Data())+data)
		}
	}
}

func addUntil(data string) func(*client, *simContext) {
	return func(c *client, ctx *simContext) {
		if r, ok := c.lockUntil(ctx, "k"); ok {
			c.storeUnlock("k", r, string(r.Data())+data)
		}
	}
}

func endIt(c *client, ctx *simContext) {
	c.t.Event(77)
	ctx.end()
	c.t.Event(78)
}

func deleteIt(c *client, _ *simContext) { c.delete("k") }

func unlockIt(c *client, _ *simContext) { c.unlock("k", c.lock("k")) }

var lineCases = []lineCase{
	{name: "two of one process", line: 2, do: []func(*client, *simContext){addOne("a"), addOne("b")}},
	{name: "two of one, one of another", line: 2, mortal: "AC",
		do: []func(*client, *simContext){addOne("a"), addOne("b"), addOne("c")}},
	{name: "three of one process", line: 3, do: []func(*client, *simContext){addOne("a"), addOne("b"), unlockIt}},
	{name: "two of one, the record is deleted", line: 2, mortal: "C",
		do: []func(*client, *simContext){addOne("a"), addOne("b"), deleteIt}},
	{name: "two of one delete and add", line: 2, mortal: "C",
		do: []func(*client, *simContext){deleteIt, addOne("b"), addOne("c")}},
	{name: "two of one, another tries", line: 2, mortal: "A",
		do: []func(*client, *simContext){addOne("a"), addOne("b"), tryOne("c")}},
	{name: "a waiter is cancelled", line: 2, ctx: true, mortal: "C",
		do: []func(*client, *simContext){addUntil("a"), endIt, addOne("c")}},
	{name: "one of two waiters is cancelled", line: 3, ctx: true,
		do: []func(*client, *simContext){addUntil("a"), addOne("b"), endIt, unlockIt}},
	{name: "a waiter dies, others try", mortal: "B",
		do: []func(*client, *simContext){addOne("a"), addOne("b"), tryOne("c")}},
}

func (k lineCase) scenario(b bounds) *scenario {
	sc := &scenario{name: fmt.Sprintf("%s, %d preemptions, %d deaths", k.name, b.preemptions, b.deaths),
		start: map[string]string{"k": "0"}, c: explore.Case{Preemptions: b.preemptions, Deaths: b.deaths}}
	sc.prepare = preload(sc.start)
	var ctx *simContext
	sc.setup = func(*run) { ctx = newSimContext() }
	for i, do := range k.do {
		def := actorDef{name: string(rune('A' + i)), warm: warmUp, joins: i > 0 && i < k.line}
		def.do = func(c *client) { do(c, ctx) }
		for _, m := range k.mortal {
			def.dies = def.dies || string(m) == def.name
		}
		sc.clients = append(sc.clients, def)
	}
	return sc
}

// modes runs f for every way in which the clock can decide, the share being over or not,
// and for lines that let nobody, one and everybody overtake them.
func modes(t *testing.T, f func(t *testing.T)) {
	defer func() { simPatience, simShareOver = 0, false }()
	for _, simPatience = range []int{0, 1, 1 << 30} {
		for _, simShareOver = range []bool{false, true} {
			t.Run(fmt.Sprintf("patience %d, share over %v", simPatience, simShareOver), f)
		}
	}
}

func TestExploreLine(t *testing.T) {
	modes(t, func(t *testing.T) {
		var sum tally
		for _, k := range lineCases {
			b := bounds{1, 1}
			if k.mortal == "" {
				b = bounds{2, 0}
			}
			sc := k.scenario(b)
			sc.c.MaxRuns = 600
			if *exploreFull {
				sc.c.MaxRuns, sc.c.MaxTime = 0, *exploreTime
			}
			sum.add(sound(t, sc.explore(t)))
		}
		t.Log(sum)
	})
}

// TestExploreLineRandom goes where the searches don't come to an end: more goroutines,
// more deaths, more switches.
func TestExploreLineRandom(t *testing.T) {
	modes(t, func(t *testing.T) {
		for _, k := range lineCases {
			sc := k.scenario(bounds{-1, 2})
			sc.c.MaxRuns = 60
			if *exploreFull {
				sc.c.MaxRuns = 20_000
			}
			sound(t, sc.random(t, uint64(time.Now().UnixNano())))
		}
	})
}

func inLine(name string, b bounds) *scenario {
	for _, k := range lineCases {
		if k.name == name {
			return k.scenario(b)
		}
	}
	panic("no case " + name)
}

// Mistakes of the line, and a try that obeys S.

func TestPlantedNoProd(t *testing.T) {
	simShareOver = true
	defer func() { simShareOver = false }()
	caught(t, "noprod", []string{"everybody waits"}, inLine("two of one, one of another", bounds{2, 0}))
}

func TestPlantedNoMark(t *testing.T) {
	caught(t, "nomark", []string{"everybody waits"}, inLine("three of one process", bounds{2, 0}))
}

func TestPlantedTrySteps(t *testing.T) {
	simShareOver = true
	defer func() { simShareOver = false }()
	caught(t, "trysteps", []string{"is locked"}, inLine("a waiter dies, others try", bounds{1, 1}))
}
