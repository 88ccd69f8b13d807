package bench

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/histogram"
	"github.com/mainzdb/mainz/internal/testenv"
)

// The test program can be started as a process of a contestant: its first
// argument says which one.
func TestMain(m *testing.M) {
	flag.Parse()
	greet := func() { fmt.Printf(`{"protocol":%d,"peer":"mainz"}`+"\n", protocolVersion) }
	switch flag.Arg(0) {
	case "worker":
		if err := Worker(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "bench":
		if err := ringWorkerMain(flag.Args()[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "of another version":
		fmt.Println(`{"protocol":0,"peer":"mainz"}`)
		io.Copy(io.Discard, os.Stdin)
	case "that dies":
		greet()
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(3)
	case "that babbles":
		greet()
		fmt.Println("Lorem ipsum")
		io.Copy(io.Discard, os.Stdin)
	default:
		os.Exit(m.Run())
	}
}

func self(t *testing.T, as string) []string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{program, as}
}

// driver is the program with the peers; tests that need it are skipped without.
func driver(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "bin", driverName))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip("testenv: peers: they are not built: make bench-peers")
	}
	return path
}

// Both sides must do the same work, to the byte.
func TestPeersMakeTheSameWorkload(t *testing.T) {
	c, err := startChild(t.Context(), floor, []string{driver(t), floor})
	if err != nil {
		t.Fatal(err)
	}
	r := newRand(t)
	for range 200 {
		cmd := sampleCommand{seed: r.Uint64(), index: r.Uint64(), format: []format{64, 1024, 4096, growing}[r.IntN(4)]}
		got, err := c.ask(cmd)
		if err != nil {
			t.Fatal(err)
		}
		if want := sample(cmd); !reflect.DeepEqual(got, want) {
			t.Fatalf("%v:\nC  %+v\nGo %+v", cmd, got, want)
		}
	}
	if err := c.stop(); err != nil {
		t.Error(err)
	}
}

// A slice that is refused says why and leaves the process usable.
func TestPeersRefuse(t *testing.T) {
	for _, peer := range []string{"tdb-mutex", "tdb-parse", "tdb-fcntl", floor} {
		c, err := startChild(t.Context(), peer, []string{driver(t), peer})
		if err != nil {
			t.Fatal(err)
		}
		run := runCommand{op: opFetch, calls: 10, latency: true, seed: 1}
		if _, err := c.ask(run); err == nil {
			t.Errorf("%s fetches from no store", peer)
		}
		path := filepath.Join(testenv.ShmDir(t), "store")
		if _, err := c.ask(openCommand{create: true, path: path, records: 100, format: 64}); err != nil {
			t.Errorf("%s: %v", peer, err)
		}
		if _, err := c.ask(runCommand{op: opAppend, calls: 10, seed: 1}); err == nil {
			t.Errorf("%s appends to values of one size", peer)
		}
		if a, err := c.ask(run); err != nil || a.Ops != 10 || a.Errors > 0 {
			t.Errorf("%s: %+v, %v", peer, a, err)
		}
		if err := c.stop(); err != nil {
			t.Error(err)
		}
	}
}

func TestBadContestantsAreNamed(t *testing.T) {
	for as, want := range map[string]string{
		"of another version": "make bench-peers",
		"that dies":          "last words",
		"that babbles":       "Lorem ipsum",
	} {
		c, err := startChild(t.Context(), ours, self(t, as))
		if err == nil {
			_, err = c.ask(sumCommand{})
			c.stop()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a process %s: %v", as, err)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, o := range []Options{{}, {Driver: "nowhere"}} {
		if _, err := Local(t.Context(), o); !errors.Is(err, ErrNoPeers) {
			t.Errorf("driver %q: %v", o.Driver, err)
		}
	}
	for _, o := range []Options{
		{Slice: time.Second}, {Slice: 1}, {Records: -1}, {Records: maxRecords + 1}, {Rounds: -1}, {Appends: 1},
		{Dir: "/dev/shm/my documents"}, {Peers: []string{"seqlock"}},
	} {
		o.NoPeers = true
		if _, err := o.check(); err == nil {
			t.Errorf("taken: %+v", o)
		}
	}
}

// The order of the contestants changes from round to round, and all see the
// same random sequence in a round.
func TestRoundsAreFair(t *testing.T) {
	var asked []string
	r := &runner{Options: Options{Progress: io.Discard}, cpus: []int{0}}
	for _, name := range []string{"a", "b", "c"} {
		p := puppet(t, name, func(line string) answer {
			asked = append(asked, name+" "+line)
			return answer{Ops: 1, AllOps: 1, NS: 1000}
		})
		r.contestants = append(r.contestants, &contestant{name: name, procs: []*child{p}})
	}
	g := r.newGroup(opFetch, 64, false, 1)
	for range 3 {
		if err := r.slices(g, runCommand{calls: 1}, true); err != nil {
			t.Fatal(err)
		}
	}
	if len(asked) != 9 {
		t.Fatalf("asked %q", asked)
	}
	var firsts []string
	for round := range 3 {
		var peers, commands []string
		for _, line := range asked[3*round : 3*round+3] {
			peer, cmd, _ := strings.Cut(line, " ")
			peers, commands = append(peers, peer), append(commands, cmd)
		}
		firsts = append(firsts, peers[0])
		if slices.Sort(peers); strings.Join(peers, "") != "abc" || len(slices.Compact(commands)) != 1 {
			t.Errorf("round %d: %q do %q", round, peers, commands)
		}
	}
	if slices.Sort(firsts); strings.Join(firsts, "") != "abc" {
		t.Errorf("%q began the three rounds", firsts)
	}
	for _, s := range g.series {
		if len(s.mops) != 3 {
			t.Errorf("%s has %d of 3 slices", s.peer, len(s.mops))
		}
	}
}

// A contestant that does wrong work has no figures: the run ends.
func TestWrongWorkEndsTheRun(t *testing.T) {
	for name, c := range map[string]struct {
		run  answer
		sums []answer // before and after
		want string
	}{
		"right": {answer{Ops: 10, AllOps: 10, NS: 1000}, []answer{{Sum: 5}, {Sum: 15}}, ""},
		"wrong value": {answer{Ops: 10, AllOps: 10, NS: 1000, Errors: 1, Why: "value is torn"}, []answer{{}, {}},
			"value is torn"},
		"lost update": {answer{Ops: 10, AllOps: 10, NS: 1000}, []answer{{Sum: 5}, {Sum: 14}},
			"9 updates are in the store after 10"},
		"lost record": {answer{Ops: 10, AllOps: 10, NS: 1000}, []answer{{}, {Sum: 10, Bad: 1}},
			"1 of 0 records are wrong"},
		"no work": {answer{NS: 1000}, []answer{{}, {}}, "did 0 operations"},
		"no time": {answer{Ops: 10, AllOps: 10}, []answer{{}, {}}, "in 0 ns"},
		"bad histogram": {answer{Ops: 10, AllOps: 10, NS: 1000, Histogram: histogram.Buckets{{histogram.Size, 1}}},
			[]answer{{}, {}}, "histogram"},
		"refusal": {answer{Error: "no"}, []answer{{}, {}}, "no"},
	} {
		r := &runner{Options: Options{Progress: io.Discard}, cpus: []int{0}}
		p := puppet(t, "puppet", func(line string) answer {
			if line == "sum" {
				a := c.sums[0]
				c.sums = c.sums[1:]
				return a
			}
			return c.run
		})
		r.contestants = []*contestant{{name: "puppet", procs: []*child{p}}}
		g := r.newGroup(opRMW, 64, false, 1)
		err := r.startCounting(opRMW)
		if err == nil {
			err = r.slices(g, runCommand{calls: 10}, true)
		}
		if err == nil {
			err = r.checkCount(opRMW)
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// puppet is a child without a process behind it, that answers as it is told.
func puppet(t *testing.T, name string, reply func(line string) answer) *child {
	t.Helper()
	in, toPuppet, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fromPuppet, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		lines, answers := newLines(in), json.NewEncoder(out)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			answers.Encode(reply(strings.TrimSpace(line)))
		}
	}()
	t.Cleanup(func() {
		toPuppet.Close()
		<-done
		in.Close()
		out.Close()
		fromPuppet.Close()
	})
	return &child{peer: name, in: toPuppet, out: fromPuppet, lines: newLines(fromPuppet)}
}
