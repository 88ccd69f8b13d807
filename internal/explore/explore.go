//go:build shmsim

package explore

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Result says what was tried.
type Result struct {
	Complete  bool // all schedules within the bounds were tried, or are equivalent to one that was
	Bound     int  // preemptions: the last bound that was completed, Unbounded, or -2 for none
	Random    bool // schedules were drawn, not searched
	Runs      int
	Pruned    int // of these: ended early in a state known already
	States    int // in which there was a choice
	Accesses  int
	Deepest   int // accesses of the longest run
	Deaths    int
	Slices    int    // waits that ended by their slice
	Excused   int    // of these: lost wake-ups that a death explains
	Shared    int    // words at which a switch was tried
	Diverged  int    // runs that did not repeat: the case is not deterministic
	How       string // the last of these did not
	Took      time.Duration
	Violation *Violation
}

// Violation is a run that went wrong.
type Violation struct {
	Err      error
	Schedule string // for Replay
	Trace    string
}

func (v *Violation) Error() string {
	return fmt.Sprintf("%v\nschedule: %s\n%s", v.Err, v.Schedule, v.Trace)
}

func (r Result) String() string {
	s := "complete"
	if r.Random {
		s = "random"
	} else if !r.Complete {
		s = "not complete"
	}
	if r.Violation != nil {
		s = "VIOLATION"
	}
	bound := fmt.Sprint(r.Bound)
	switch r.Bound {
	case Unbounded:
		bound = "any"
	case noBound:
		bound = "none"
	}
	s = fmt.Sprintf("%s: preemptions %s, %d runs (%d pruned), %d states, %d accesses, deepest %d, %d deaths, %d slices (%d excused), %d shared words, %v",
		s, bound, r.Runs, r.Pruned, r.States, r.Accesses, r.Deepest, r.Deaths, r.Slices, r.Excused, r.Shared,
		r.Took.Round(time.Millisecond))
	if r.Diverged > 0 {
		s += fmt.Sprintf(", %d DIVERGED: %s", r.Diverged, r.How)
	}
	return s
}

const noBound = -2

// explorer is what stays from run to run.
type explorer struct {
	c       *Case
	run     Run
	workers []*worker
	bound   int
	res     Result
	gen     uint32
	touched []touch // by granule
	sizes   []uint64
	at      []uintptr // memory of MemoryFrom
	dirty   []bool    // pages written since they were filled
	ignored []uint64  // bit by granule
	ends    map[uint64]struct{}
	shared  []uint64 // bit by granule: those at which a switch is tried
	found   []uint64 // those at which it should be
	grew    bool     // found did
	all     bool     // all are shared
	alive   atomic.Int64
	late    atomic.Bool
}

// touch is who has accessed a granule in the run gen.
type touch struct {
	gen              uint32
	readers, writers uint32
}

// claim gives out the granules of a memory.
func (x *explorer) claim(i int, size uint64) uint64 {
	if i == len(x.sizes) {
		x.sizes = append(x.sizes, size)
		n := 1 + len(x.sizes)
		for _, s := range x.sizes {
			n += int(s+7) >> 3
		}
		x.touched = append(x.touched, make([]touch, n-len(x.touched))...)
		x.shared = append(x.shared, make([]uint64, n/64+1-len(x.shared))...)
		x.found = append(x.found, make([]uint64, n/64+1-len(x.found))...)
		x.ignored = append(x.ignored, make([]uint64, n/64+1-len(x.ignored))...)
		x.dirty = append(x.dirty, make([]bool, n>>pageShift+1-len(x.dirty))...)
	}
	if x.sizes[i] != size {
		panic("explore: a memory has another size than in the run before")
	}
	at := uint64(1)
	for _, s := range x.sizes[:i] {
		at += (s + 7) >> 3
	}
	return at
}

func (x *explorer) isShared(g uint64) bool { return x.all || x.shared[g>>6]>>(g&63)&1 != 0 }

func (x *explorer) isIgnored(g uint64) bool { return x.ignored[g>>6]>>(g&63)&1 != 0 }

// share notes a shared word. It counts as one only in the next search: a
// search that has begun must find its choices where it left them.
func (x *explorer) share(g uint64) {
	if x.found[g>>6]>>(g&63)&1 == 0 {
		x.found[g>>6] |= 1 << (g & 63)
		x.grew = true
		x.res.Shared++
	}
}

func (x *explorer) worker(i int) *worker {
	if i == len(x.workers) {
		x.workers = append(x.workers, newWorker())
	}
	return x.workers[i]
}

// account adds a run to the result, and reports whether to go on.
func (x *explorer) account(r *Run) bool {
	x.res.Runs++
	x.res.Accesses += r.steps
	x.res.Deepest = max(x.res.Deepest, r.steps)
	x.res.Slices += r.slices
	x.res.Excused += r.excused
	if r.bad != nil {
		x.res.Violation = x.explain(r)
		return false
	}
	return true
}

func (x *explorer) spent() bool {
	return x.late.Load() || x.c.MaxRuns > 0 && x.res.Runs >= x.c.MaxRuns
}

// in runs f in a bubble of fake time, so that what a case does can't depend
// on the clock.
func in(t *testing.T, c *Case, f func(x *explorer)) Result {
	t.Helper()
	if c.MaxSteps == 0 {
		c.MaxSteps = 1_000_000
	}
	if c.Slices > 1 && (!c.Sequential || c.Slice < 0 || c.Slice >= c.Slices) {
		panic(fmt.Sprintf("explore: part %d of %d: a part from 0 on, of a Sequential case", c.Slice, c.Slices))
	}
	x := &explorer{c: c, ends: map[uint64]struct{}{}}
	x.res.Bound = noBound
	start := time.Now()
	if c.MaxTime > 0 {
		defer time.AfterFunc(c.MaxTime, func() { x.late.Store(true) }).Stop()
	}
	defer watch(c.Name, &x.alive)()
	synctest.Test(t, func(*testing.T) {
		f(x)
		for _, w := range x.workers {
			w.end()
		}
	})
	x.res.Took = time.Since(start)
	return x.res
}

// watch ends the program if a run does not end: a task has blocked on
// something that is not shared memory.
func watch(name string, alive *atomic.Int64) (stop func()) {
	const patience = 60 * time.Second
	last := int64(-1)
	var t *time.Timer
	t = time.AfterFunc(patience, func() {
		now := alive.Load()
		if now == last {
			panic("explore: " + name + ": a run does not end: a task blocks outside of shared memory")
		}
		last = now
		t.Reset(patience)
	})
	return func() { t.Stop() }
}

// Exhaust tries all schedules of the case, within its bounds.
func Exhaust(t *testing.T, c Case) Result {
	t.Helper()
	return in(t, &c, (*explorer).exhaust)
}

func (x *explorer) exhaust() {
	last := x.c.Preemptions
	if x.c.Sequential {
		last = 0
	} else if !x.c.EveryAccess {
		if found := x.warmUp(); found != nil {
			// The search finds one with fewer preemptions, if there is one.
			defer func() {
				if x.res.Violation == nil {
					x.res.Violation = found
				}
			}()
		}
	}
	for b := 0; ; b++ {
		x.bound = b
		if last == Unbounded && b > 1 {
			x.bound = Unbounded
		}
		// A word that turns out to be shared on the way has to be treated so
		// from the beginning.
		for {
			x.grew = false
			copy(x.shared, x.found)
			d := &dfs{seen: map[uint64]uint32{}}
			done := x.depthFirst(d)
			x.res.States = max(x.res.States, len(d.seen))
			if !done {
				return
			}
			if !x.grew || x.c.Sequential {
				break
			}
		}
		x.res.Bound = x.bound
		if x.bound == last {
			x.res.Complete = x.res.Diverged == 0
			return
		}
	}
}

// depthFirst reports whether the search came to its end.
func (x *explorer) depthFirst(d *dfs) bool {
	for {
		if x.spent() {
			return false
		}
		d.pos = 0
		d.diverged = false
		r := x.execute(d, nil)
		if d.diverged {
			x.res.Diverged++
			x.res.How = d.how
			if x.res.Diverged > 100 {
				x.res.Violation = &Violation{Err: fmt.Errorf("the case is not deterministic: %s", d.how)}
				return false
			}
			// The rest of this branch is lost.
			d.path = d.path[:d.pos]
		}
		if !x.account(r) {
			return false
		}
		if !d.advance() {
			return true
		}
	}
}

// warmUp makes some random runs to find shared words.
func (x *explorer) warmUp() *Violation {
	x.bound, x.all = Unbounded, true
	defer func() { x.all = false }()
	for seed := uint64(0); seed < 64 && !x.spent(); seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		if !x.account(x.execute(newWalk(rng, x.c, x.res.Deepest), nil)) {
			found := x.res.Violation
			x.res.Violation = nil
			return found
		}
	}
	return nil
}

// dfs is the depth-first search: the path of choices that leads to the
// present run.
type dfs struct {
	path     []node
	pos      int
	seen     map[uint64]uint32 // state: preemptions left when it was met, plus 1
	diverged bool
	how      string
}

type node struct {
	print uint64
	n, i  uint8
}

func (d *dfs) choose(r *Run, opts []option, print uint64) int {
	if d.pos < len(d.path) {
		n := &d.path[d.pos]
		if p := mix(print, uint64(r.steps)); n.print != p || int(n.n) != len(opts) {
			d.diverged = true
			d.how = fmt.Sprintf("choice %d of %d, access %d: %d options, %d before, %s", d.pos, len(d.path), r.steps,
				len(opts), n.n, r.whereAll())
			return -1
		}
		d.pos++
		return int(n.i)
	}
	key := r.state(print)
	left := uint32(r.preempts) + 1
	if d.seen[key] >= left {
		r.x.res.Pruned++
		return -1
	}
	d.seen[key] = left
	d.path = append(d.path, node{mix(print, uint64(r.steps)), uint8(len(opts)), 0})
	d.pos++
	return 0
}

// advance goes to the next path.
func (d *dfs) advance() bool {
	for len(d.path) > 0 {
		n := &d.path[len(d.path)-1]
		if n.i++; n.i < n.n {
			return true
		}
		d.path = d.path[:len(d.path)-1]
	}
	return false
}

// Random makes runs with random schedules until c.MaxRuns or c.MaxTime. Each
// has at most c.Preemptions preemptions and c.Deaths deaths at places drawn
// beforehand. The same seed makes the same runs.
func Random(t *testing.T, c Case, seed uint64) Result {
	t.Helper()
	if c.MaxRuns == 0 && c.MaxTime == 0 {
		c.MaxRuns = 1000
	}
	c.EveryAccess = true
	return in(t, &c, func(x *explorer) {
		x.bound, x.res.Random = Unbounded, true
		for n := uint64(0); !x.spent(); n++ {
			rng := rand.New(rand.NewPCG(seed, n))
			if !x.account(x.execute(newWalk(rng, x.c, x.res.Deepest), nil)) {
				return
			}
		}
	})
}

// walk makes random choices: tasks have priorities, the highest that can runs,
// and at some places drawn beforehand the running task's becomes the lowest.
type walk struct {
	rng     *rand.Rand
	first   [maxTasks]int // priorities; higher runs first
	lowest  int
	preempt []int // steps
	die     []int
}

func newWalk(rng *rand.Rand, c *Case, deepest int) *walk {
	w := &walk{rng: rng}
	for i, p := range rng.Perm(maxTasks) {
		w.first[i] = p
	}
	n := max(deepest, 50)
	switches := c.Preemptions
	if switches < 0 {
		switches = 1 + rng.IntN(10)
	}
	for range switches {
		w.preempt = append(w.preempt, w.place(n))
	}
	for range c.Deaths {
		w.die = append(w.die, w.place(n))
	}
	return w
}

// place draws a step of a run of n: runs of shared memory are short, and
// their repairs long, so half of the places are early ones.
func (w *walk) place(n int) int {
	if w.rng.IntN(2) == 0 {
		n = min(n, 400)
	}
	return w.rng.IntN(n)
}

func (w *walk) choose(r *Run, opts []option, _ uint64) int {
	var some []int
	for i, o := range opts {
		switch o.kind {
		case dies:
			for k, at := range w.die {
				if r.steps >= at {
					w.die = append(w.die[:k], w.die[k+1:]...)
					return i
				}
			}
		case told:
			if w.rng.IntN(8) == 0 || opts[0].kind == told && w.rng.IntN(2) == 0 {
				return i
			}
		case sliceOver, wakes:
			some = append(some, i)
		}
	}
	if len(some) == len(opts) || len(some) > 0 && w.rng.IntN(50) == 0 {
		return some[w.rng.IntN(len(some))]
	}
	best := -1
	if opts[0].kind == goOn {
		best = 0
		for k, at := range w.preempt {
			if r.steps >= at {
				w.preempt = append(w.preempt[:k], w.preempt[k+1:]...)
				w.lowest--
				w.first[opts[0].task] = w.lowest
				break
			}
		}
	}
	for i, o := range opts {
		if o.kind == runs && (best < 0 || w.first[o.task] > w.first[opts[best].task]) {
			best = i
		}
	}
	return max(best, 0)
}

// Replay runs one schedule of the case, as a Violation gives it, and returns
// what went wrong, nil if nothing did.
func Replay(t *testing.T, c Case, schedule string) *Violation {
	t.Helper()
	return in(t, &c, func(x *explorer) {
		p, err := parse(schedule)
		if err != nil {
			x.res.Violation = &Violation{Err: err}
			return
		}
		x.replay(p)
	}).Violation
}

func (x *explorer) replay(p *playback) *Run {
	c := *x.c
	// Offer more than was offered: what is not in the schedule is not done.
	c.EveryAccess, c.DieWoken, c.FewBytes, c.DieAt = true, false, false, nil
	c.Deaths, c.EarlySlices = maxTasks, 1<<20
	c.Slices = 0
	own := x.c
	x.c, x.bound = &c, Unbounded
	log := &tracer{}
	r := x.execute(p, log)
	x.c = own
	x.res.Runs++
	if r.bad != nil {
		x.res.Violation = &Violation{r.bad, p.String(), log.text(r)}
	}
	return r
}

// explain runs the schedule of a bad run again, to write down what happens.
func (x *explorer) explain(r *Run) *Violation {
	p := &playback{all: append([]decision(nil), r.made...)}
	v := &Violation{Err: r.bad, Schedule: p.String()}
	bound, res := x.bound, x.res
	again := x.replay(p)
	x.res, x.bound = res, bound
	if again.bad == nil {
		v.Trace = "the schedule alone does not repeat it: the case depends on something else"
	} else {
		v.Trace = x.run.log.text(&x.run)
	}
	return v
}

// playback follows a schedule.
type playback struct {
	all []decision
	at  int
}

func (p *playback) choose(r *Run, opts []option, _ uint64) int {
	if p.at < len(p.all) && p.all[p.at].step == r.steps {
		for i, o := range opts {
			if o == p.all[p.at].option {
				p.at++
				return i
			}
		}
	}
	return 0
}

func (p *playback) String() string {
	var b strings.Builder
	for i, d := range p.all {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(d.String())
	}
	return b.String()
}

func parse(schedule string) (*playback, error) {
	p := &playback{}
	for _, f := range strings.Fields(schedule) {
		i := strings.IndexAny(f, kindLetters)
		var d decision
		if i < 0 {
			return nil, fmt.Errorf("explore: schedule: %q has no kind of decision", f)
		}
		if _, err := fmt.Sscanf(f[:i]+" "+f[i+1:], "%d %d", &d.step, &d.task); err != nil {
			return nil, fmt.Errorf("explore: schedule: %q: %w", f, err)
		}
		d.kind = kind(strings.IndexByte(kindLetters, f[i]))
		p.all = append(p.all, d)
	}
	return p, nil
}
