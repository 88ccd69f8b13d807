package main

import (
	"bytes"
	"strings"
	"testing"
)

// runSim calls the command and returns what it printed.
func runSim(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := simCommand()
	cmd.Flags().StringP("output", "o", outputTable, "")
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.Execute()
	return out.String(), err
}

func TestSim(t *testing.T) {
	out, err := runSim(t, "--seeds", "4", "--cores", "1", "--nodes", "2..3")
	if err != nil || !strings.Contains(out, "4 seeds") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err = runSim(t, "--plant", "list"); err != nil || !strings.Contains(out, "no-fence") {
		t.Errorf("%v: %s", err, out)
	}
	// same-vnn breaks every run that has a second recovery.
	if out, err = runSim(t, "--plant", "same-vnn", "--seeds", "20", "--cores", "1"); err == nil ||
		!strings.Contains(out, "made smaller") {
		t.Errorf("a planted bug went unseen: %v: %s", err, out)
	}
	for _, args := range [][]string{{"--plant", "nonsense"}, {"--trace"}, {"--nodes", "7..2"}, {"--seed", "x"},
		{"--cores", "0"}} {
		if out, err = runSim(t, args...); err == nil {
			t.Errorf("%v was taken: %s", args, out)
		}
	}
}
