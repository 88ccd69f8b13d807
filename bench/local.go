package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mainzdb/mainz/internal/histogram"
)

// Names of the contestants that the runner itself has to know.
const (
	ours  = "mainz"
	floor = "seqlock"
)

// ErrNoPeers: the program with the peers has not been built.
var ErrNoPeers = errors.New("the peers are not built: run `make bench-peers`, or leave them out with --no-peers")

// Options of [Local]. The zero value is the full run with all peers.
type Options struct {
	Quick   bool     // what the bar asks for, 64-byte values, within 40 s
	Dir     string   // where the stores are made; default /dev/shm
	NoPeers bool     // ours alone: results, but no ratios
	Peers   []string // default tdb-mutex and seqlock; also tdb-parse, tdb-fcntl
	Driver  string   // mainz-peers; default beside this program, then bin/
	Worker  []string // what starts a process of ours; default this program's "bench worker"

	Records int           // default 100,000
	Slice   time.Duration // default 80 ms; at most 100 ms
	Rounds  int           // slices of each kind; default 25, 8 if Quick
	Appends int           // of the append pattern, on each side; default 200,000

	Progress io.Writer // nil: silent
}

const (
	maxSliceLength = 100 * time.Millisecond
	maxRecords     = 1 << 17
	callsPerSlice  = 1000             // of the append pattern
	quickTime      = 35 * time.Second // of 40, for a quick run: the rest is for the stragglers
	fewestRounds   = 5
	spaceNeeded    = 1 << 30
)

// check defaults the options.
func (o Options) check() (Options, error) {
	if o.Dir == "" {
		o.Dir = "/dev/shm"
	}
	if o.Records == 0 {
		o.Records = 100_000
	}
	if o.Appends == 0 {
		o.Appends = 200_000
	}
	if o.Slice == 0 {
		// In 20 ms a contestant reads fewer records than there are, from caches that
		// the others have filled: that would measure the turns they take.
		o.Slice = 80 * time.Millisecond
	}
	if o.Rounds == 0 {
		if o.Rounds = 25; o.Quick {
			o.Rounds = 8
		}
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if len(o.Peers) == 0 && !o.NoPeers {
		o.Peers = []string{"tdb-mutex", floor}
	}
	switch {
	case o.Slice < time.Millisecond || o.Slice > maxSliceLength:
		return o, fmt.Errorf("a slice of %v: it lasts 1 to %v", o.Slice, maxSliceLength)
	case o.Records < 1 || o.Records > maxRecords:
		return o, fmt.Errorf("%d records: 1 to %d are measured", o.Records, maxRecords)
	case o.Rounds < 1 || o.Appends < 2:
		return o, fmt.Errorf("%d rounds, %d appends: at least 1 and 2", o.Rounds, o.Appends)
	case strings.ContainsAny(o.Dir, " \t\n"):
		return o, fmt.Errorf("directory %q: the workers take none with a space in its name", o.Dir)
	case o.NoPeers && len(o.Peers) > 0:
		return o, fmt.Errorf("peers %v are asked for and left out", o.Peers)
	}
	if len(o.Worker) == 0 {
		self, err := os.Executable()
		if err != nil {
			return o, err
		}
		o.Worker = []string{self, "bench", "worker"}
	}
	if o.NoPeers {
		return o, nil
	}
	var err error
	o.Driver, err = findDriver(o.Driver)
	return o, err
}

const driverName = "mainz-peers"

// findDriver looks for the program with the peers: named, beside this program,
// or where make puts it.
func findDriver(named string) (string, error) {
	places := []string{named}
	if named == "" {
		places[0] = filepath.Join("bin", driverName)
		if self, err := os.Executable(); err == nil {
			places = slices.Insert(places, 0, filepath.Join(filepath.Dir(self), driverName))
		}
	}
	for _, place := range places {
		if info, err := os.Stat(place); err == nil && info.Mode().IsRegular() {
			return filepath.Abs(place)
		}
	}
	return "", fmt.Errorf("no %s: %w", strings.Join(places, " or "), ErrNoPeers)
}

// cell is one thing that is measured; each number of processes gives a result
// of its own, from the same rounds.
type cell struct {
	op    op
	hot   bool
	procs []int
}

// suite is the cells that share one set of stores.
type suite struct {
	format format
	cells  []cell
}

var oneAndTwo = []int{1, 2}

func (o Options) suites() []suite {
	if o.Quick {
		return []suite{{64, []cell{
			{opNop, false, []int{1}},
			{opFetch, false, []int{1}},
			{opFetch, true, oneAndTwo},
			{opBatch8, false, []int{1}},
			{opRMW, false, []int{1}},
			{opRMW, true, oneAndTwo},
			{opStore, false, []int{1}},
		}}}
	}
	all := []cell{
		{opFetch, false, oneAndTwo},
		{opFetch, true, oneAndTwo},
		{opBatch8, false, oneAndTwo},
		{opRMW, false, oneAndTwo},
		{opRMW, true, oneAndTwo},
		{opStore, false, oneAndTwo},
		{opStore, true, oneAndTwo},
	}
	nop := cell{opNop, false, []int{1}}
	return []suite{{64, append([]cell{nop}, all...)}, {1024, all}}
}

// Local measures the store on one machine beside its peers.
func Local(ctx context.Context, opts Options) (*Report, error) {
	o, err := opts.check()
	if err != nil {
		return nil, err
	}
	r := &runner{Options: o, began: time.Now()}
	if r.cpus, err = allowedCPUs(); err != nil {
		return nil, err
	}
	if r.env, err = environment(o); err != nil {
		return nil, err
	}
	r.env.TimerStepNS = timerStep()
	if len(r.cpus) < 2 {
		r.warn("only one CPU may be used: nothing is measured with two processes")
	}
	if r.dir, err = os.MkdirTemp(o.Dir, "mainz-bench-"); err != nil {
		return nil, err
	}
	before := cpuTimes()
	err = errors.Join(r.run(ctx), os.RemoveAll(r.dir))
	if ctx.Err() != nil {
		// What the processes said when they were killed tells nothing.
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if stolen := cpuTimes().stolenSince(before); stolen > 0.02 {
		r.warn(fmt.Sprintf("the host took %.0f %% of the CPUs' time", 100*stolen))
	}
	if r.apart > 0 {
		r.warn(fmt.Sprintf("in %d slices the two processes did not start together: the machine is busy", r.apart))
	}
	return r.report(), nil
}

// runner is one run.
type runner struct {
	Options
	dir   string
	cpus  []int
	env   Environment
	began time.Time
	round uint64 // numbers the rounds of the whole run: seeds and order come from it

	contestants []*contestant // of the suite being measured
	stores      int           // made so far, for their names
	groups      []*group
	apart       int // slices whose processes did not start together
}

// contestant is a store and the processes that work on it, one for each CPU.
type contestant struct {
	name  string
	procs []*child
	ops   uint64 // records touched since the last sum
	sum   uint64
}

// group is the results that are compared with each other.
type group struct {
	op     op
	format format
	hot    bool
	procs  int
	series []*series // of the contestants, in their order
}

// series is one contestant's slices, by round.
type series struct {
	peer string
	mops []float64
	p99  []float64
	hist histogram.Histogram
}

func (r *runner) warn(text string) {
	r.env.Warnings = append(r.env.Warnings, text)
	fmt.Fprintln(r.Progress, "warning:", text)
}

func (r *runner) progress(format string, args ...any) {
	fmt.Fprintf(r.Progress, "%4.0f s  %s\n", time.Since(r.began).Seconds(), fmt.Sprintf(format, args...))
}

func (r *runner) run(ctx context.Context) error {
	// The pattern with the fixed number of calls comes first, so that a quick
	// run knows how much time is left for the others.
	if err := r.appends(ctx); err != nil {
		return err
	}
	for _, s := range r.suites() {
		if err := r.suite(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// maxProcs is how many processes work at a time.
func (r *runner) maxProcs() int { return min(2, len(r.cpus)) }

// suite makes fresh stores and measures all cells on them.
func (r *runner) suite(ctx context.Context, s suite) (err error) {
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.open(ctx, s.format, r.maxProcs()); err != nil {
		return err
	}
	weight := 0
	for _, c := range s.cells {
		weight += len(c.procs)
	}
	for _, c := range s.cells {
		until := time.Time{}
		if r.Quick {
			left := quickTime - time.Since(r.began)
			until = time.Now().Add(left * time.Duration(len(c.procs)) / time.Duration(weight))
		}
		weight -= len(c.procs)
		if err := r.cell(ctx, s.format, c, until); err != nil {
			return fmt.Errorf("%v, %v bytes, %s: %w", c.op, s.format, keysName(c.hot), err)
		}
	}
	return nil
}

// open starts every contestant with procs processes and a fresh store.
func (r *runner) open(ctx context.Context, f format, procs int) error {
	r.progress("%d records, format %v: preload", r.Records, f)
	for _, name := range append([]string{ours}, r.Peers...) {
		c := &contestant{name: name}
		r.contestants = append(r.contestants, c)
		argv := []string{r.Driver, name}
		if name == ours {
			argv = r.Worker
		}
		r.stores++
		path := filepath.Join(r.dir, fmt.Sprintf("%d-%s", r.stores, name))
		for i := range procs {
			p, err := startChild(ctx, name, argv)
			if err != nil {
				return err
			}
			c.procs = append(c.procs, p)
			if name != ours && p.version != "" && i == 0 {
				r.addPeer(name + ": " + p.version)
			}
			for _, cmd := range []command{
				pinCommand{r.cpus[i]},
				openCommand{create: i == 0, path: path, records: r.Records, format: f},
				sumCommand{}, // touches every record, as a process does that has run for a while
			} {
				a, err := p.ask(cmd)
				if err != nil {
					return fmt.Errorf("%v: %w", cmd, err)
				}
				if a.Bad > 0 {
					return fmt.Errorf("%s: %d of %d records are wrong after the preload", name, a.Bad, r.Records)
				}
				c.sum = a.Sum
			}
		}
	}
	return nil
}

func (r *runner) addPeer(text string) {
	if !slices.Contains(r.env.Peers, text) {
		r.env.Peers = append(r.env.Peers, text)
	}
}

// close ends the processes, those that joined first, and their stores.
func (r *runner) close() error {
	var errs []error
	for _, c := range r.contestants {
		for _, p := range slices.Backward(c.procs) {
			errs = append(errs, p.stop())
		}
	}
	r.contestants = nil
	entries, err := os.ReadDir(r.dir)
	errs = append(errs, err)
	for _, e := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(r.dir, e.Name())))
	}
	return errors.Join(errs...)
}

// newGroup begins the results of one operation with procs processes.
func (r *runner) newGroup(op op, f format, hot bool, procs int) *group {
	g := &group{op: op, format: f, hot: hot, procs: procs}
	for _, c := range r.contestants {
		g.series = append(g.series, &series{peer: c.name})
	}
	r.groups = append(r.groups, g)
	return g
}

// cell measures one cell in rounds, until there are enough or the time is up.
// The first round warms up and is not kept.
func (r *runner) cell(ctx context.Context, f format, c cell, until time.Time) error {
	var groups []*group
	for _, procs := range c.procs {
		if procs <= r.maxProcs() {
			groups = append(groups, r.newGroup(c.op, f, c.hot, procs))
		}
	}
	r.progress("%v, %v bytes, %s", c.op, f, keysName(c.hot))
	if err := r.startCounting(c.op); err != nil {
		return err
	}
	for n := -1; n < r.Rounds; n++ {
		if n >= fewestRounds && !until.IsZero() && time.Now().After(until) {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, g := range groups {
			for _, latency := range []bool{false, true} {
				if err := r.slices(g, runCommand{limit: r.Slice, latency: latency}, n >= 0); err != nil {
					return err
				}
			}
		}
	}
	return r.checkCount(c.op)
}

// slices runs one slice on each contestant, one after the other, each time
// beginning with another one.
func (r *runner) slices(g *group, cmd runCommand, keep bool) error {
	r.round++
	cmd.op, cmd.hot, cmd.seed = g.op, g.hot, mix(r.round)
	for i := range r.contestants {
		i = (i + int(r.round)) % len(r.contestants)
		mops, hist, err := r.slice(r.contestants[i], g.procs, cmd)
		if err != nil {
			return err
		}
		if !keep {
			continue
		}
		s := g.series[i]
		if cmd.latency {
			s.p99 = append(s.p99, hist.Quantile(0.99))
			err = s.hist.Merge(hist.Buckets(), hist.Max)
		} else {
			s.mops = append(s.mops, mops)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// startDelay is how far ahead the common start of two processes is set: they
// have to wake up for it.
const startDelay = 2 * time.Millisecond

// attempts is how often a slice is run until its processes start together.
const attempts = 5

// slice runs one slice on one contestant. A slice whose processes did not
// start together is repeated, if it is limited by time. On a machine so busy
// that they never do, the last attempt counts, and the report says so.
func (r *runner) slice(c *contestant, procs int, cmd runCommand) (mops float64, hist *histogram.Histogram, err error) {
	for range attempts {
		var late time.Duration
		mops, hist, late, err = r.trySlice(c, procs, cmd)
		if err != nil || cmd.limit == 0 || late < cmd.limit/10 {
			return mops, hist, err
		}
	}
	r.apart++
	return mops, hist, nil
}

func (r *runner) trySlice(c *contestant, procs int, cmd runCommand) (mops float64, hist *histogram.Histogram,
	late time.Duration, err error) {
	hist = &histogram.Histogram{}
	if procs > 1 {
		cmd.start = monotonicNS() + startDelay.Nanoseconds()
	}
	for i, p := range c.procs[:procs] {
		mine := cmd
		mine.seed += uint64(i)
		if err := p.send(mine); err != nil {
			return 0, nil, 0, err
		}
	}
	for _, p := range c.procs[:procs] {
		a, err := p.receive()
		if err != nil {
			return 0, nil, 0, err
		}
		if a.Errors > 0 {
			return 0, nil, 0, fmt.Errorf("%s: %d of %d operations went wrong: %s", c.name, a.Errors, a.AllOps, a.Why)
		}
		if a.Ops == 0 || a.NS == 0 {
			return 0, nil, 0, fmt.Errorf("%s: did %d operations in %d ns", c.name, a.Ops, a.NS)
		}
		c.ops += a.AllOps
		mops += float64(a.Ops) * 1000 / float64(a.NS)
		late = max(late, time.Duration(a.LateNS))
		if err := hist.Merge(a.Histogram, a.MaxNS); err != nil {
			return 0, nil, 0, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return mops, hist, late, nil
}

// startCounting notes the counters of all records, if the operation counts.
func (r *runner) startCounting(o op) error {
	if o != opRMW && o != opAppend {
		return nil
	}
	for _, c := range r.contestants {
		a, err := c.procs[0].ask(sumCommand{})
		if err != nil {
			return err
		}
		c.sum, c.ops = a.Sum, 0
	}
	return nil
}

// checkCount verifies every record, and that each update was counted once.
func (r *runner) checkCount(o op) error {
	for _, c := range r.contestants {
		a, err := c.procs[0].ask(sumCommand{})
		if err != nil {
			return err
		}
		if a.Bad > 0 {
			return fmt.Errorf("%s: %d of %d records are wrong afterwards", c.name, a.Bad, r.Records)
		}
		if grown := a.Sum - c.sum; (o == opRMW || o == opAppend) && grown != c.ops {
			return fmt.Errorf("%s: %d updates are in the store after %d were made", c.name, grown, c.ops)
		}
	}
	return nil
}

// appends measures the append pattern. It is limited by calls, not by time:
// the longer a tdb is appended to the slower it becomes, so both sides must
// have done equally many. Every second slice has the timers.
func (r *runner) appends(ctx context.Context) error {
	procs := []int{1}
	if !r.Quick {
		procs = oneAndTwo
	}
	for _, n := range procs {
		if n > r.maxProcs() {
			continue
		}
		if err := r.appendsBy(ctx, n); err != nil {
			return fmt.Errorf("append by %d processes: %w", n, err)
		}
	}
	return nil
}

func (r *runner) appendsBy(ctx context.Context, procs int) (err error) {
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.open(ctx, growing, procs); err != nil {
		return err
	}
	g := r.newGroup(opAppend, growing, false, procs)
	r.progress("append, uniform, %d appends by %d processes", r.Appends, procs)
	if err := r.startCounting(opAppend); err != nil {
		return err
	}
	left := r.Appends / procs
	for n := 0; left > 0; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		calls := min(left, callsPerSlice/procs)
		if err := r.slices(g, runCommand{calls: uint64(calls), latency: n%2 == 1}, true); err != nil {
			return err
		}
		left -= calls
	}
	if err := r.checkCount(opAppend); err != nil {
		return err
	}
	if r.Quick || procs == 1 && r.maxProcs() > 1 {
		return nil
	}
	// One record that all append to needs no free list, so time may limit it.
	all := cell{opAppend, true, oneAndTwo}
	return r.cell(ctx, growing, all, time.Time{})
}

// ---- results ----

func (r *runner) report() *Report {
	report := &Report{Environment: r.env, Results: []Result{}, Ratios: []Ratio{}}
	for _, g := range r.groups {
		for _, s := range g.series {
			report.Results = append(report.Results, s.result(g))
		}
		report.Ratios = append(report.Ratios, g.ratios()...)
		if one := r.findGroup(g, 1); g.op == opFetch && g.hot && g.procs == 2 && one != nil {
			report.Ratios = append(report.Ratios, scaling(one, g)...)
		}
	}
	return report
}

// findGroup is the group like g with another number of processes.
func (r *runner) findGroup(g *group, procs int) *group {
	for _, x := range r.groups {
		if x.op == g.op && x.format == g.format && x.hot == g.hot && x.procs == procs {
			return x
		}
	}
	return nil
}

func (s *series) result(g *group) Result {
	_, median, _ := quartiles(s.mops)
	return Result{
		Suite: "local", Op: g.op.String(), Peer: s.peer, ValueBytes: g.format.bytes(), Keys: keysName(g.hot),
		Procs: g.procs,
		Mops:  round(median), MopsMin: round(slices.Min(s.mops)), MopsMax: round(slices.Max(s.mops)),
		P50: s.hist.Quantile(0.5), P99: s.hist.Quantile(0.99), P999: s.hist.Quantile(0.999), Max: float64(s.hist.Max),
		Reps: len(s.mops),
	}
}

func (g *group) name() string {
	return fmt.Sprintf("local/%v/%d/%s/p%d", g.op, g.format.bytes(), keysName(g.hot), g.procs)
}

func (g *group) find(peer string) *series {
	for _, s := range g.series {
		if s.peer == peer {
			return s
		}
	}
	return nil
}

// ratios compares us with each peer: throughput, and the p99 of slice and
// slice. Merged histograms would not do for the latter: the slow seconds of a
// host fall on one side more than on the other, and the tail is what they are.
func (g *group) ratios() []Ratio {
	var ratios []Ratio
	our := g.find(ours)
	for _, s := range g.series {
		if s == our || g.op == opNop {
			continue
		}
		if x, ok := newRatio(g.name()+"/vs-"+s.peer, our.mops, s.mops); ok {
			ratios = append(ratios, x)
		}
		if x, ok := newRatio(g.name()+"/vs-"+s.peer+"/p99", s.p99, our.p99); ok {
			ratios = append(ratios, x)
		}
	}
	return ratios
}

// scaling is how we gain from a second process, over how the floor does.
func scaling(one, two *group) []Ratio {
	our1, our2, floor1, floor2 := one.find(ours), two.find(ours), one.find(floor), two.find(floor)
	if floor1 == nil || floor2 == nil {
		return nil
	}
	x, ok := newRatio(two.name()+"/scaling-vs-"+floor, gains(our1, our2), gains(floor1, floor2))
	if !ok {
		return nil
	}
	return []Ratio{x}
}

func gains(one, two *series) []float64 {
	var gains []float64
	for i := range min(len(one.mops), len(two.mops)) {
		gains = append(gains, two.mops[i]/one.mops[i])
	}
	return gains
}
