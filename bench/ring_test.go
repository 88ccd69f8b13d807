package bench

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
)

// ringWorkerMain makes the test program one end of a ring: its arguments are
// those of `mainz bench ring-worker`.
func ringWorkerMain(args []string) error {
	if len(args) == 0 || args[0] != "ring-worker" {
		return errors.New("not a ring worker")
	}
	var o RingWorkerOptions
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	f.StringVar(&o.Idle, "idle", "", "")
	f.StringVar(&o.Call, "call", "", "")
	f.BoolVar(&o.Server, "server", false, "")
	f.StringVar(&o.Dir, "dir", "", "")
	f.IntVar(&o.CPU, "cpu", 0, "")
	f.DurationVar(&o.Slice, "slice", 0, "")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	return RingWorker(context.Background(), o, os.Stdin, os.Stdout)
}

// A whole run, small: that everybody's figures are there and make sense.
func TestRingMeasuresEverybody(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.Ramdisk, testenv.TwoCPUs, testenv.NoRace)
	var progress []string
	dir := testenv.ShmDir(t)
	report, err := Ring(t.Context(), RingOptions{Dir: dir, Rounds: 1, Slice: 2 * time.Millisecond,
		Progress: func(where string) { progress = append(progress, where) }})
	if err != nil {
		t.Fatalf("%v\n%q", err, progress)
	}
	peers := ringPeers
	if _, err := exec.LookPath("cc"); err != nil {
		peers = slices.DeleteFunc(slices.Clone(peers), ofC)
	}
	c := 0
	for _, p := range peers {
		if ofC(p) {
			c++
		}
	}
	if len(progress) != len(peers) {
		t.Errorf("progress of %d contestants: %q", len(peers), progress)
	}
	if len(report.Results) != len(peers) {
		t.Errorf("%d results of %d contestants", len(report.Results), len(peers))
	}
	for i, x := range report.Results {
		if x.Peer != peers[i] || x.Suite != "ring" || x.Reps != 1 ||
			!(x.MopsMin > 0 && x.MopsMin <= x.Mops && x.Mops <= x.MopsMax) ||
			!(x.P50 > 0 && x.P50 <= x.P99 && x.P99 <= 1.01*x.Max) {
			t.Errorf("impossible: %+v", x)
		}
	}
	if want := 2 * c * (len(peers) - c); len(report.Ratios) != want {
		t.Errorf("%d ratios, want %d", len(report.Ratios), want)
	}
	for _, x := range report.Ratios {
		if !strings.HasPrefix(x.Name, "rtt") || !(x.Q1 > 0 && x.Q1 <= x.Value && x.Value <= x.Q3) {
			t.Errorf("impossible: %+v", x)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRingWorkerRefuses(t *testing.T) {
	if err := RingWorker(context.Background(), RingWorkerOptions{Idle: "lazy"}, os.Stdin, os.Stdout); err == nil {
		t.Error("an unknown strategy")
	}
	if err := RingWorker(context.Background(), RingWorkerOptions{Idle: "busy", Dir: t.TempDir()}, os.Stdin,
		os.Stdout); err == nil {
		t.Error("a client without a server")
	}
}
