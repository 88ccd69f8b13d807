//go:build shmsim

package ltdb

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/explore"
)

// mixed is a scenario of three clients that do random things to few records,
// some of which share a bucket, with few blocks at hand.
func mixed(seed uint64) *scenario {
	rng := rand.New(rand.NewPCG(seed, 3))
	keys := append(sameBucket(2), "k")
	sc := &scenario{name: fmt.Sprint("mixed, seed ", seed), start: map[string]string{}}
	for _, k := range keys {
		if rng.IntN(3) > 0 {
			sc.start[k] = "0"
		} else {
			sc.keys = append(sc.keys, k)
		}
	}
	sc.prepare = preload(sc.start)
	if rng.IntN(3) == 0 {
		sc.start[sameBucket(1)[0]] = class(1, "0")
		for i, k := range sc.keys {
			if k == sameBucket(1)[0] {
				sc.keys = append(sc.keys[:i], sc.keys[i+1:]...)
				break
			}
		}
	}
	for i := range 3 {
		name := string(rune('A' + i))
		var steps []func(c *client)
		for n := range 1 + rng.IntN(3) {
			steps = append(steps, mixedStep(rng, keys[rng.IntN(len(keys))], fmt.Sprint(name, n)))
		}
		def := actorDef{name: name, dies: true, do: func(c *client) {
			for _, f := range steps {
				f(c)
			}
		}}
		if blocks := rng.IntN(4); blocks > 0 {
			def.warm = func(c *client) { warmUp(c); c.drain(blocks) }
		}
		sc.clients = append(sc.clients, def)
	}
	sc.c = explore.Case{Preemptions: 1 + rng.IntN(6), Deaths: rng.IntN(3)}
	return sc
}

func mixedStep(rng *rand.Rand, key, mark string) func(c *client) {
	switch rng.IntN(12) {
	case 0:
		return func(c *client) { c.store(key, mark) }
	case 1:
		return func(c *client) { c.store(key, class(1, mark)) }
	case 2, 3:
		return func(c *client) { c.delete(key) }
	case 4, 5:
		return func(c *client) { c.append(key, mark) }
	case 6:
		return func(c *client) { c.fetch(key) }
	case 7:
		return func(c *client) { c.fetchBatch(append(sameBucket(2), "k")...) }
	case 8:
		return func(c *client) { c.unlock(key, c.lock(key)) }
	case 9:
		return func(c *client) {
			if r, ok := c.tryLock(key); ok {
				c.storeLocked(key, r, class(1, mark))
				c.storeUnlock(key, r, mark)
			}
		}
	case 10:
		return func(c *client) { c.recover() }
	}
	return func(c *client) { c.add(key, mark) }
}

// TestExploreMixed runs random programs under random schedules.
func TestExploreMixed(t *testing.T) {
	first, programs, runs := uint64(1), uint64(60), 60
	if *exploreFull {
		first, programs, runs = uint64(time.Now().UnixNano()), 20_000, 500
	}
	if n, part := parts(t); n > 1 {
		programs = (programs + uint64(n) - 1) / uint64(n)
		first += uint64(part) * programs
	}
	t.Logf("seeds from %d", first)
	var sum tally
	start := time.Now()
	for seed := first; seed < first+programs; seed++ {
		if *exploreFull && time.Since(start) > 5**exploreTime {
			break
		}
		sc := mixed(seed)
		sc.c.MaxRuns = runs
		r := explore.Random(t, sc.makeCase(t), seed)
		if r.Violation != nil {
			t.Fatalf("seed %d: %v", seed, r.Violation)
		}
		sum.add(r)
	}
	t.Log(sum)
}
