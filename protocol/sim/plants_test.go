package sim

import (
	"math/rand/v2"
	"testing"

	"github.com/mainzdb/mainz/internal/testenv"
)

// quick are the planted bugs that break some run in a hundred or more often; the
// others are for mainz sim --plant.
var quick = []string{"ack-frozen", "no-fence", "same-vnn", "no-copy-claims", "no-epoch-check", "keep-rsn", "no-done-list", "forget-grants",
	"keep-dead-pieces", "move-locked", "journal-late", "stale-keeps", "store-without-lock"}

// TestPlants: the checkers see what they are there for.
func TestPlants(t *testing.T) {
	testenv.Need(t, testenv.Long) // runs some hundred clusters
	first := rand.Uint64() % 1e12
	for _, name := range quick {
		caught := false
		for i := range uint64(2000) {
			if r := Run(Options{Seed: first + i, Plant: name}); len(r.Failures) > 0 {
				t.Logf("%-20s seed %d, the %d.: %v", name, r.Seed, i+1, r.Failures[0])
				caught = true
				break
			}
		}
		if !caught {
			t.Errorf("%s: 2,000 seeds from %d and nothing seen", name, first)
		}
	}
}
