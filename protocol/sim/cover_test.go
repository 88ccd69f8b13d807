package sim

import (
	"slices"
	"strings"
	"testing"
)

// TestCoverage: random runs meet every kind of message, fill every table and batch that
// has a limit, and give every checker something to judge. The seeds are always the
// same ones; the test ends when nothing is missing any more.
func TestCoverage(t *testing.T) {
	const first = 5_000_000
	most := uint64(600)
	// What 75 seeds may miss.
	rare := []string{"message VERDICT", "limit asks", "limit held", "limit offers", "limit through", "judged: " + judgedGivenUp}
	if testing.Short() {
		most = 75
	}
	met := NewCoverage()
	missing := met.Missing()
	for i := uint64(0); i < most && len(missing) > 0; i++ {
		r := Run(Options{Seed: first + i})
		for _, f := range r.Failures {
			t.Fatalf("seed %d: %v", r.Seed, f)
		}
		met.Add(r.Coverage)
		if missing = met.Missing(); i%25 == 24 {
			t.Logf("%d seeds, missing: %s", i+1, strings.Join(missing, ", "))
		}
	}
	if testing.Short() {
		missing = slices.DeleteFunc(missing, func(m string) bool { return slices.Contains(rare, m) })
	}
	if len(missing) > 0 {
		t.Errorf("%d seeds from %d have not met: %s", most, first, strings.Join(missing, ", "))
	}
}

// TestMissing: what was not met is named.
func TestMissing(t *testing.T) {
	v := NewCoverage()
	all := len(v.Missing())
	r := Run(Options{Seed: 1, Nodes: 2, Millis: 50, Quiet: true})
	v.Add(r.Coverage)
	if some := len(v.Missing()); some >= all || some == 0 {
		t.Errorf("%d things are missing before a short run, and %d after it", all, some)
	}
	if v.Messages["PING"].Sent == 0 || v.Messages["OFFER"].Sent != 0 {
		t.Errorf("%d PINGs and %d OFFERs in a short run without faults", v.Messages["PING"].Sent, v.Messages["OFFER"].Sent)
	}
	var b strings.Builder
	if v.Print(&b); !strings.Contains(b.String(), "REQUEST_DMASTER") || !strings.Contains(b.String(), "done-list") {
		t.Errorf("printed:\n%s", b.String())
	}
}
