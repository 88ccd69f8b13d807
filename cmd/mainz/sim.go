package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz/protocol/sim"
)

// simResult is what mainz sim found.
type simResult struct {
	First     uint64        `json:"first_seed"`
	Seeds     uint64        `json:"seeds"`
	Failing   []uint64      `json:"failing_seeds"`
	Acked     uint64        `json:"operations_acknowledged"`
	Recovered uint64        `json:"recoveries"`
	Undecided uint64        `json:"histories_undecided"`
	Histories uint64        `json:"histories"`
	Seconds   float64       `json:"seconds"`
	Handled   *sim.Steps    `json:"handling,omitempty"`
	Coverage  *sim.Coverage `json:"coverage,omitempty"`
}

type simOptions struct {
	seeds, from uint64
	seed        string
	nodes       string
	minutes     float64
	cores       int
	plant       string
	trace       bool
	aim         bool
	coverage    bool
	handling    string
	min, max    int
}

func simCommand() *cobra.Command {
	var o simOptions
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Simulate clusters under faults and check what must hold",
		Long: `sim runs whole clusters of the protocol's state machine over a simulated
network, one for each seed: datagrams lost, repeated, late and out of order,
partitions, crashes, warm restarts, pauses, slow and dying clients, drifting
clocks, full stores, nodes that leave or are taken out of the nodes file, and half
of the nodes with an arbiter's lock. It checks that no record has two owners, that
every key's history is linearizable, that no acknowledged piece is lost, and that
everything ends once the faults stop.

With --handling model a dispatcher is busy for a time that a model of what it touches,
copies and sends gives; with cpu, for the CPU time that its handlers take here, and
then no two runs are the same.

A seed and the version of this program decide a run completely. A failing seed is
made smaller and its end is shown; --seed with --trace replays one.

The exit code is 0 only if every invariant held in every run, else 7.`,
		Example: `  mainz sim --seeds 1000
  mainz sim --minutes 10 --nodes 3..5
  mainz sim --seed 4711 --trace
  mainz sim --plant list
  mainz sim --plant no-fence --seeds 500`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.Uint64Var(&o.seeds, "seeds", 200, "how many seeds")
	f.Uint64Var(&o.from, "from", 0, "the first `seed`; 0: a fresh one")
	f.StringVar(&o.seed, "seed", "", "run this one `seed`")
	f.StringVar(&o.nodes, "nodes", "", "nodes of each cluster, as in 3 or 2..7; drawn from the seed by default")
	f.Float64Var(&o.minutes, "minutes", 0, "stop after so many minutes, whatever --seeds says")
	f.IntVar(&o.cores, "cores", runtime.GOMAXPROCS(0), "runs at a time")
	f.StringVar(&o.plant, "plant", "", "turn a planted bug on by `name`; list lists them")
	f.BoolVar(&o.aim, "aim", false, "with --plant: more of the faults that this bug needs")
	f.StringVar(&o.handling, "handling", "none",
		"how long dispatchers are busy with what they handle: none, model or cpu")
	f.BoolVar(&o.coverage, "coverage", false,
		"print what the runs have met: messages, limits that had their effect, how full tables were")
	f.BoolVar(&o.trace, "trace", false, "with --seed: print every message and every change of state")
	return cmd
}

func (o *simOptions) run(cmd *cobra.Command) error {
	if o.plant == "list" {
		return listPlants(cmd.OutOrStdout(), jsonOutput(cmd))
	}
	if err := o.check(); err != nil {
		return &problem{kind: usage, err: err, hint: "see mainz sim --help"}
	}
	if o.seed != "" {
		return o.one(cmd)
	}
	return o.many(cmd)
}

func (o *simOptions) check() error {
	known := o.plant == ""
	for _, p := range sim.AllPlants() {
		known = known || p.Name == o.plant
	}
	switch {
	case !known:
		return fmt.Errorf("--plant %s: no such bug; --plant list lists them", o.plant)
	case o.trace && o.seed == "":
		return fmt.Errorf("--trace: say which run, with --seed")
	case o.handling != "none" && o.handling != "model" && o.handling != "cpu":
		return fmt.Errorf("--handling %s: none, model or cpu", o.handling)
	case o.handling == "cpu" && threadCPU == nil:
		return fmt.Errorf("--handling cpu: the CPU time of a thread is read on Linux only")
	case o.cores < 1:
		return fmt.Errorf("--cores %d: at least one run at a time", o.cores)
	}
	if o.nodes == "" {
		return nil
	}
	low, high, isRange := strings.Cut(o.nodes, "..")
	if !isRange {
		high = low
	}
	var err1, err2 error
	o.min, err1 = strconv.Atoi(low)
	o.max, err2 = strconv.Atoi(high)
	if err1 != nil || err2 != nil || o.min < 2 || o.max < o.min || o.max > 64 {
		return fmt.Errorf("--nodes %s: want a number or a range from 2 to 64, as in 2..7", o.nodes)
	}
	return nil
}

// options of one run.
func (o *simOptions) options(seed uint64) sim.Options {
	so := sim.Options{Seed: seed, Plant: o.plant, Aim: o.aim}
	switch o.handling {
	case "model":
		so.Handling = sim.ModelTime
	case "cpu":
		so.Handling, so.CPU = sim.CPUTime, threadCPU
	}
	if o.min > 0 {
		so.Nodes = o.min + int(seed%uint64(o.max-o.min+1))
	}
	return so
}

func listPlants(w io.Writer, asJSON bool) error {
	if asJSON {
		return newEncoder(w).Encode(sim.AllPlants())
	}
	for _, p := range sim.AllPlants() {
		fmt.Fprintf(w, "%-24s left out: %s\n", p.Name, p.Rule)
	}
	return nil
}

// one run, with its trace if that is wanted.
func (o *simOptions) one(cmd *cobra.Command) error {
	seed, err := strconv.ParseUint(o.seed, 10, 64)
	if err != nil {
		return &problem{kind: usage, err: fmt.Errorf("--seed %s: want a number", o.seed), hint: "see mainz sim --help"}
	}
	so := o.options(seed)
	out := cmd.OutOrStdout()
	if o.trace {
		so.Trace = func(line string) { fmt.Fprintln(out, line) }
	}
	r := sim.Run(so)
	if !o.coverage {
		r.Coverage = nil
	}
	if jsonOutput(cmd) {
		if err := newEncoder(out).Encode(r); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(out, "seed %d: %v\n%d operations acknowledged, %d recoveries, trace hash %x\n", seed, r.Mix,
			r.Acked, r.Recovered, r.Hash)
		if r.Handled != nil {
			fmt.Fprintln(out, r.Handled)
		}
		for _, f := range r.Failures {
			fmt.Fprintln(out, "FAILED", f)
		}
		if o.coverage {
			r.Coverage.Print(out)
		}
	}
	return o.failed(len(r.Failures))
}

func (o *simOptions) failed(n int) error {
	if n == 0 {
		return nil
	}
	nodes := ""
	if o.nodes != "" { // a seed draws another run without it
		nodes = " --nodes " + o.nodes
	}
	return &problem{kind: degraded, err: fmt.Errorf("%d failures: an invariant did not hold", n), hint: "mainz sim" +
		nodes + " --seed N --trace shows the run"}
}

// many runs on all cores.
func (o *simOptions) many(cmd *cobra.Command) error {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	if o.minutes > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, time.Duration(o.minutes*float64(time.Minute)))
		defer stop()
		if !cmd.Flags().Changed("seeds") {
			o.seeds = 1 << 40
		}
	}
	res := simResult{First: o.from}
	if res.First == 0 {
		res.First = rand.Uint64() % 1e12
	}
	if o.coverage {
		res.Coverage = sim.NewCoverage()
	}
	debug.SetGCPercent(400) // many short lives, and memory enough
	errOut := cmd.ErrOrStderr()
	fmt.Fprintf(errOut, "seeds from %d\n", res.First)
	var next atomic.Uint64
	var mu sync.Mutex // res and the output
	var wg sync.WaitGroup
	start, told := time.Now(), time.Now()
	for range o.cores {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := next.Add(1) - 1
				if i >= o.seeds {
					return
				}
				r := sim.Run(o.options(res.First + i))
				mu.Lock()
				res.Seeds++
				res.Acked += uint64(r.Acked)
				res.Recovered += uint64(r.Recovered)
				res.Undecided += uint64(r.Undecided)
				res.Histories += uint64(r.Histories)
				if o.coverage {
					res.Coverage.Add(r.Coverage)
				}
				if r.Handled != nil {
					if res.Handled == nil {
						res.Handled = &sim.Steps{}
					}
					res.Handled.Add(r.Handled)
				}
				if len(r.Failures) > 0 {
					res.Failing = append(res.Failing, r.Seed)
					fmt.Fprintf(errOut, "seed %d failed (%v)\n", r.Seed, r.Mix)
					for _, f := range r.Failures {
						fmt.Fprintf(errOut, "  %v\n", f)
					}
				}
				if time.Since(told) > 5*time.Second {
					told = time.Now()
					fmt.Fprintf(errOut, "%d seeds, %d failing, %d operations, %d recoveries\n", res.Seeds,
						len(res.Failing), res.Acked, res.Recovered)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	res.Seconds = time.Since(start).Seconds()
	if len(res.Failing) > 0 {
		o.shrink(errOut, res.Failing[0])
	}
	if jsonOutput(cmd) {
		if err := newEncoder(cmd.OutOrStdout()).Encode(res); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(cmd.OutOrStdout(), "%d seeds from %d, %d failing, %d operations acknowledged, %d recoveries, %d of %d histories undecided, %.0f s\n",
			res.Seeds, res.First, len(res.Failing), res.Acked, res.Recovered, res.Undecided, res.Histories, res.Seconds)
		if res.Handled != nil {
			fmt.Fprintln(cmd.OutOrStdout(), res.Handled)
		}
		if res.Coverage != nil {
			res.Coverage.Print(cmd.OutOrStdout())
		}
	}
	return o.failed(len(res.Failing))
}

// shrink the first failing run and show its end.
func (o *simOptions) shrink(w io.Writer, seed uint64) {
	so, r := sim.Shrink(o.options(seed), 300)
	if len(r.Failures) == 0 {
		fmt.Fprintf(w, "seed %d does not fail when it is run again: please report it\n", seed)
		return
	}
	const tail = 60
	lines, done := make([]string, 0, 1024), false
	so.Trace = func(line string) {
		if !done {
			lines = append(lines, line)
			done = strings.Contains(line, "FAIL ")
		}
	}
	sim.Run(so)
	fmt.Fprintf(w, "seed %d made smaller: %v\nthe last of %d lines:\n", seed, r.Mix, len(lines))
	for _, l := range lines[max(0, len(lines)-tail):] {
		fmt.Fprintln(w, l)
	}
}
