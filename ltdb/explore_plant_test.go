//go:build shmsim

package ltdb

import (
	"strings"
	"testing"

	"github.com/mainzdb/mainz/internal/explore"
)

// Each mistake that the code must not make is made on purpose (plant_sim.go),
// and has to be found: else the explorer would say little by finding nothing.

func planting(t *testing.T, bug string) {
	t.Helper()
	Plant = bug
	t.Cleanup(func() { Plant = "" })
}

// caught expects that one of the scenarios fails with one of the texts.
func caught(t *testing.T, bug string, texts []string, scs ...*scenario) {
	t.Helper()
	planting(t, bug)
	for _, sc := range scs {
		if sc.c.MaxRuns == 0 {
			sc.c.MaxRuns = 50_000
		}
		c := sc.makeCase(t)
		r := explore.Exhaust(t, c)
		if r.Violation == nil {
			t.Logf("%s: not caught: %v", sc.name, r)
			continue
		}
		for _, text := range texts {
			if strings.Contains(r.Violation.Err.Error(), text) {
				t.Logf("%s: caught in run %d: %v", sc.name, r.Runs, r.Violation.Err)
				again := explore.Replay(t, c, r.Violation.Schedule)
				if again == nil || again.Err.Error() != r.Violation.Err.Error() {
					t.Errorf("the schedule %q does not repeat it: %v", r.Violation.Schedule, again)
				}
				// The same schedule without the mistake.
				Plant = ""
				if v := explore.Replay(t, sc.makeCase(t), r.Violation.Schedule); v != nil {
					t.Errorf("without the mistake: %v", v)
				}
				return
			}
		}
		t.Fatalf("%s: found something else: %v", sc.name, r.Violation)
	}
	t.Fatalf("the planted bug %q was not caught", bug)
}

func race(name string, b bounds) *scenario {
	for _, k := range raceCases {
		if k.name == name {
			return k.scenario(b)
		}
	}
	panic("no case " + name)
}

func kill(name string, deaths int) *scenario {
	for _, k := range killCases {
		if k.name == name {
			return k.scenario(deaths)
		}
	}
	panic("no case " + name)
}

func TestPlantedSeqlock(t *testing.T) {
	caught(t, "seqlock", []string{"no order explains"}, race("store twice, fetch twice", bounds{2, 0}))
}

func TestPlantedPublish(t *testing.T) {
	caught(t, "publish", []string{"no order explains", "does not belong there"}, kill("store over, same class", 1),
		race("store twice, fetch twice", bounds{1, 0}))
}

func TestPlantedLatch(t *testing.T) {
	caught(t, "latch", []string{"as well"}, kill("store new", 1))
}

func TestPlantedJournal(t *testing.T) {
	caught(t, "journal", []string{"as well"}, kill("store over, same class", 1))
}

func TestPlantedAllocator(t *testing.T) {
	caught(t, "allocator", []string{"as well", "never carved"}, kill("refill from a list", 1))
}

func TestPlantedWaiter(t *testing.T) {
	caught(t, "waiter", []string{"everybody waits"}, race("add, add, add", bounds{2, 0}))
}

func TestPlantedUnlocked(t *testing.T) {
	caught(t, "unlocked", []string{"lock was lost", "no order explains", "as well"},
		race("insert by lock, insert by lock", bounds{2, 0}))
}

func TestPlantedCell(t *testing.T) {
	caught(t, "cell", []string{"locked by"}, kill("lock and unlock", 1))
}

func TestPlantedWakeAll(t *testing.T) {
	caught(t, "wakeall", []string{"everybody waits"}, race("woken and dead", bounds{1, 1}))
}

func TestPlantedPass(t *testing.T) {
	caught(t, "pass", []string{"everybody waits"}, race("waiter, record deleted by a barger", bounds{1, 0}))
}

func TestPlantedUnlatchFirst(t *testing.T) {
	caught(t, "unlatchfirst", []string{"as well", "nowhere"}, kill("store new", 1),
		race("insert and delete, insert", bounds{1, 1}))
}

func TestPlantedSpare(t *testing.T) {
	caught(t, "spare", []string{"on its way"}, kill("store over in a full store", 1))
}
