package bench

import (
	"bytes"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files in testdata")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s (go test -run %s -rewrite):\n%s", path, t.Name(), got)
	}
}

func TestQuartiles(t *testing.T) {
	for _, c := range []struct {
		values         []float64
		q1, median, q3 float64
	}{
		{[]float64{7}, 7, 7, 7},
		{[]float64{2, 1}, 1.25, 1.5, 1.75},
		{[]float64{5, 1, 3, 2, 4}, 2, 3, 4},
		{[]float64{1, 1, 1, 100}, 1, 1, 25.75},
	} {
		if q1, median, q3 := quartiles(c.values); q1 != c.q1 || median != c.median || q3 != c.q3 {
			t.Errorf("quartiles of %v are %v %v %v", c.values, q1, median, q3)
		}
	}
	if _, median, _ := quartiles(nil); !math.IsNaN(median) {
		t.Errorf("the median of nothing is %v", median)
	}
}

func TestRatioIsTakenPairByPair(t *testing.T) {
	// The machine is three times slower in the second half: each pair still
	// says 4, while a ratio of the means would depend on who was hit how often.
	r, ok := newRatio("x", []float64{40, 44, 12, 16, 1}, []float64{10, 11, 3, 4, 0})
	if want := (Ratio{"x", 4, 4, 4, 4}); !ok || r != want {
		t.Errorf("ratio is %+v, not %+v", r, want)
	}
	if r, ok := newRatio("x", []float64{1}, nil); ok {
		t.Errorf("a ratio without a pair: %+v", r)
	}
}

func TestRound(t *testing.T) {
	for x, want := range map[float64]float64{0: 0, 1.23456: 1.235, 123456: 123500, 0.000123456: 0.0001235,
		-2.34567: -2.346} {
		if got := round(x); math.Abs(got-want) > math.Abs(want)*1e-12 {
			t.Errorf("%v is rounded to %v, not %v", x, got, want)
		}
	}
}

// sampleReport is a run with made-up figures, one slice of each kind slower.
func sampleReport() *Report {
	r := &runner{env: Environment{
		CPUModel: "Example CPU", CPUs: 2, Kernel: "6.1.0", Clocksource: "tsc", TimerStepNS: 10, LoadBefore: 0.25,
		PageSize:  4096,
		HugePages: "mount never, system never", GoVersion: "go1.26", Commit: "0123456789ab",
		Peers: []string{"tdb-mutex: libtdb 1.4.8"}, Quick: true, SliceMS: 20, Records: 100000,
		Warnings: []string{"load is 0.25 on 2 CPUs: wait until the machine is quiet"},
	}}
	made := func(peer string, mops, ns float64) *series {
		s := &series{peer: peer}
		for i := range 5 {
			slow := 1.0
			if i == 3 {
				slow = 2
			}
			s.mops = append(s.mops, mops/slow)
			s.p99 = append(s.p99, 2*ns*slow)
			for range 100 {
				s.hist.Add(uint64(ns * slow))
			}
		}
		return s
	}
	add := func(o op, f format, hot bool, procs int, all ...*series) {
		r.groups = append(r.groups, &group{o, f, hot, procs, all})
	}
	add(opAppend, growing, false, 1, made(ours, 3, 400), made("tdb-mutex", 0.1, 9000), made(floor, 15, 120))
	add(opNop, 64, false, 1, made(ours, 180, 20), made("tdb-mutex", 200, 20), made(floor, 200, 20))
	add(opFetch, 64, true, 1, made(ours, 45, 40), made("tdb-mutex", 10, 110), made(floor, 95, 30))
	add(opFetch, 64, true, 2, made(ours, 89, 40), made("tdb-mutex", 4, 300), made(floor, 187, 30))
	return r.report()
}

func TestReportJSON(t *testing.T) {
	var out bytes.Buffer
	if err := sampleReport().WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", out.Bytes())
}

func TestReportText(t *testing.T) {
	var out bytes.Buffer
	if err := sampleReport().WriteText(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.txt", out.Bytes())
}

// What a program that reads the report relies on, when nothing was compared.
func TestReportWithoutPeersHasEmptyLists(t *testing.T) {
	r := &runner{env: Environment{Peers: []string{}, Warnings: []string{}}}
	var out bytes.Buffer
	if err := r.report().WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"results": []`, `"ratios": []`, `"warnings": []`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in %s", want, out.String())
		}
	}
}
