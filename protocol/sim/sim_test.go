package sim

import (
	"flag"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

var (
	seeds = flag.Int("seeds", 3000, "how many seeds, at most")
	limit = flag.Duration("for", 100*time.Second, "no new seed after this time; a tenth of it with -short")
	from  = flag.Uint64("from", 0, "the first seed; 0: a fresh one")
	plant = flag.String("plant", "", "planted bug")
	nodes = flag.Int("nodes", 0, "nodes; 0: drawn")
	stop  = flag.Int("stop", 3, "give up after so many failing seeds")
	aim   = flag.Bool("aim", false, "more of the faults that the planted bug needs")
	trace = flag.Bool("trace", false, "print the trace of the first seed")
)

// firstSeed is a fresh one, or what MAINZ_SIM_FROM says, where a merge must not
// fail by a seed that nobody has met before.
func firstSeed(t *testing.T) uint64 {
	v := os.Getenv("MAINZ_SIM_FROM")
	if v == "" {
		return rand.Uint64() % 1e12
	}
	first, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("MAINZ_SIM_FROM: %v", err)
	}
	return first
}

// seedCount is -seeds, or MAINZ_SIM_SEEDS, where how many seeds run must not depend on
// how fast the machine is.
func seedCount(t *testing.T) uint64 {
	v := os.Getenv("MAINZ_SIM_SEEDS")
	if v == "" {
		return uint64(*seeds)
	}
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil {
		t.Fatalf("MAINZ_SIM_SEEDS: %v", err)
	}
	return n
}

// TestSeeds runs fresh seeds of mixed faults.
func TestSeeds(t *testing.T) {
	first := *from
	if first == 0 {
		first = firstSeed(t)
	}
	count := seedCount(t)
	t.Logf("seeds %d to %d", first, first+count-1)
	stopAt := *limit
	if testing.Short() {
		stopAt /= 10
	}
	start, acked, recovered, undecided, failed := time.Now(), 0, 0, 0, 0
	ran := 0
	for i := range count {
		if time.Since(start) > stopAt {
			break
		}
		ran++
		o := Options{Seed: first + i, Plant: *plant, Nodes: *nodes, Aim: *aim}
		if *trace {
			o.Trace = func(line string) { t.Log(line) }
		}
		r := Run(o)
		if i%500 == 499 {
			t.Logf("%d seeds, %d failing, %d operations, %d recoveries", i+1, failed, acked, recovered)
		}
		acked, recovered, undecided = acked+r.Acked, recovered+r.Recovered, undecided+r.Undecided
		if len(r.Failures) > 0 {
			failed++
			t.Errorf("seed %d (%v)", r.Seed, r.Mix)
			for _, f := range r.Failures {
				t.Errorf("   %v", f)
			}
			if failed >= *stop {
				break
			}
		}
	}
	t.Logf("%d seeds, %d failing, %d operations acknowledged, %d recoveries, %d histories undecided, %v", ran, failed,
		acked, recovered, undecided, time.Since(start).Round(time.Millisecond))
}

// TestSame: a run is a pure function of its seed, also with the model's handling time.
func TestSame(t *testing.T) {
	seed := rand.Uint64() % 1e12
	for _, handling := range []Handling{NoHandling, ModelTime} {
		a, b := Run(Options{Seed: seed, Handling: handling}), Run(Options{Seed: seed, Handling: handling})
		if a.Hash != b.Hash || a.Steps != b.Steps || a.Acked != b.Acked {
			t.Errorf("seed %d, handling %d: hash %x after %d steps, then %x after %d", seed, handling, a.Hash,
				a.Steps, b.Hash, b.Steps)
		}
		if handling != NoHandling && (a.Handled.Count == 0 || a.Handled.Total != a.Handled.Model) {
			t.Errorf("seed %d: %v", seed, a.Handled)
		}
		for _, f := range a.Failures {
			t.Errorf("seed %d, handling %d: %v", seed, handling, f)
		}
	}
}

// TestBusy: a dispatcher that is busy handles nothing more before its step is over, and
// what a step sends leaves at its end.
func TestBusy(t *testing.T) {
	c := loaded(t, 2, 0, "never").c
	c.opt.Handling = ModelTime
	h := c.hosts[0]
	began := c.now
	var at []instant
	for range 3 {
		h.run(func() {
			at = append(at, c.now)
			h.bill.walked += 100_000 // a long step
			c.after(ms, func() { at = append(at, c.now) })
		})
	}
	const long = 100_000 * costWalked
	c.until(c.now + 10*long)
	for i, want := range []instant{0, long, long + ms, 2 * long, 2*long + ms, 3*long + ms} {
		if i >= len(at) || at[i]-began < want || at[i]-began > want+ms/2 {
			t.Fatalf("it happened %v after the start; want the %d. at %v", at, i+1, want)
		}
	}
}
