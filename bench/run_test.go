package bench

// Whole runs, with processes that share memory.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
)

// tiny is a run that is over in a second or two.
func tiny(t *testing.T) Options {
	testenv.Need(t, testenv.Linux, testenv.Ramdisk, testenv.NoRace)
	return Options{
		Dir: testenv.ShmDir(t), Worker: self(t, "worker"),
		Records: 2000, Slice: time.Millisecond, Rounds: 2, Appends: 3000,
	}
}

// A whole run with the real peers, small. The figures mean nothing here; that
// each is there, and that no value was wrong, does.
func TestLocalMeasuresEverybody(t *testing.T) {
	o := tiny(t)
	o.Driver = driver(t)
	var progress bytes.Buffer
	o.Progress = &progress
	report, err := Local(t.Context(), o)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	results := make(map[string]Result)
	for _, x := range report.Results {
		results[fmt.Sprintf("%s/%d/%s/p%d/%s", x.Op, x.ValueBytes, x.Keys, x.Procs, x.Peer)] = x
		if !(x.MopsMin > 0 && x.MopsMin <= x.Mops && x.Mops <= x.MopsMax) ||
			!(x.P50 <= x.P99 && x.P99 <= x.P999 && x.P999 <= x.Max && x.Max > 0) || x.Reps < 2 {
			t.Errorf("impossible: %+v", x)
		}
	}
	ratios := make(map[string]Ratio)
	for _, x := range report.Ratios {
		ratios[x.Name] = x
		if !(x.Q1 > 0 && x.Q1 <= x.Value && x.Value <= x.Q3) || x.Pairs < 1 {
			t.Errorf("impossible: %+v", x)
		}
	}
	procs := []int{1}
	if report.Environment.CPUs > 1 {
		procs = oneAndTwo
	}
	for _, p := range procs {
		for _, bytes := range []int{64, 1024} {
			for _, op := range []string{"fetch/%d/uniform", "fetch/%d/hot", "batch8/%d/uniform", "rmw/%d/uniform",
				"rmw/%d/hot", "store/%d/uniform", "store/%d/hot"} {
				expect(t, results, ratios, fmt.Sprintf(op, bytes), p)
			}
		}
		expect(t, results, ratios, "append/512/uniform", p)
		expect(t, results, ratios, "append/512/hot", p)
	}
	if len(procs) > 1 {
		if _, ok := ratios["local/fetch/64/hot/p2/scaling-vs-seqlock"]; !ok {
			t.Error("no ratio for the scaling")
		}
	}
	if want := 3000 / 1000; results["append/512/uniform/p1/mainz"].Reps != want-1 {
		t.Errorf("%d slices of appends without a timer, not %d", results["append/512/uniform/p1/mainz"].Reps, want-1)
	}
	if e := report.Environment; len(e.Peers) == 0 || !strings.HasPrefix(e.Peers[0], "tdb-mutex: libtdb ") {
		t.Errorf("versions of the peers: %q", e.Peers)
	}
}

func expect(t *testing.T, results map[string]Result, ratios map[string]Ratio, what string, procs int) {
	t.Helper()
	for _, peer := range []string{ours, "tdb-mutex", floor} {
		name := fmt.Sprintf("%s/p%d/%s", what, procs, peer)
		if _, ok := results[name]; !ok {
			t.Errorf("no result %s", name)
		}
		if peer == ours {
			continue
		}
		for _, kind := range []string{"", "/p99"} {
			name := fmt.Sprintf("local/%s/p%d/vs-%s%s", what, procs, peer, kind)
			if _, ok := ratios[name]; !ok {
				t.Errorf("no ratio %s", name)
			}
		}
	}
}

func TestLocalWithoutPeers(t *testing.T) {
	o := tiny(t)
	o.NoPeers, o.Quick = true, true
	report, err := Local(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Ratios) != 0 || len(report.Results) < 7 {
		t.Errorf("%d ratios, %d results", len(report.Ratios), len(report.Results))
	}
	if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestCancelledRunCleansUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	o := tiny(t)
	o.NoPeers = true
	o.Progress = writerFunc(func(text []byte) (int, error) {
		if bytes.Contains(text, []byte("rmw")) {
			cancel()
		}
		return len(text), nil
	})
	if _, err := Local(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled run: %v", err)
	}
	if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
