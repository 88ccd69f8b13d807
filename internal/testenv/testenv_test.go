package testenv

import (
	"strings"
	"testing"
)

// TestGates shows what this machine has. A skip is expected if and only if it
// names a closed gate.
func TestGates(t *testing.T) {
	closed := strings.Join(Closed(), "\n")
	for _, g := range All() {
		why := g.Reason()
		t.Logf("%-9s %s", g, map[bool]string{true: "open", false: why}[why == ""])
		if open := !strings.Contains(closed, string(g)+": "); open != (why == "") {
			t.Errorf("gate %s: open %v, but its reason is %q", g, open, why)
		}
		if got := Expected(prefix + string(g) + ": " + why); got != (why != "") {
			t.Errorf("gate %s: a skip by it is expected: %v", g, got)
		}
	}
	if Expected("skipped as I felt like it") {
		t.Error("a skip without a gate is expected")
	}
	if Gate("fast disk").Reason() == "" {
		t.Error("an unknown gate is open")
	}
}
