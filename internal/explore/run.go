//go:build shmsim

package explore

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

// Kinds of access beside those of package shm.
const (
	opWait shm.Op = 100 + iota
	opWake
	opSpin
	opEvent
	opEnd
)

func writes(op shm.Op) bool {
	switch op {
	case shm.OpLoad, shm.OpRead, opWait, opSpin:
		return false
	}
	return true
}

// eventGranule stands for the order of events. It is no memory.
const eventGranule = 0

// A decision is what the scheduler chose, with the step at which it did.
type decision struct {
	step int
	option
}

type option struct {
	kind kind
	task uint8 // or process
}

type kind uint8

const (
	goOn      kind = iota // the current task makes its access
	runs                  // the task goes on, which another one could have done
	dies                  // the current task's process makes no access any more
	told                  // the kernel tells that the process has died
	wakes                 // of those who sleep on the word, the task is woken
	sliceOver             // the task's wait ends by its slice
)

const kindLetters = "grdtws"

func (d decision) String() string { return fmt.Sprintf("%d%c%d", d.step, kindLetters[d.kind], d.task) }

// chooser decides between options. It returns -1 to end the run. print
// identifies the place.
type chooser interface {
	choose(r *Run, opts []option, print uint64) int
}

// execute makes one run of the case.
func (x *explorer) execute(pick chooser, log *tracer) *Run {
	c := x.c
	r := &x.run
	*r = Run{x: x, c: c, pick: pick, log: log, opts: r.opts[:0], made: r.made[:0],
		mem: r.mem[:0], base: r.base[:0], deaths: c.Deaths, early: c.EarlySlices, preempts: x.bound}
	if r.preempts < 0 {
		r.preempts = 1 << 30
	}
	x.gen++
	x.alive.Add(1)
	shm.Sim = r
	c.Setup(r)
	if r.bad == nil {
		for i, t := range r.tasks {
			t.w = x.worker(i)
			t.w.t = t
		}
		r.phase = phaseRun
		r.loop()
		for _, p := range r.procs {
			r.unwindAll(p)
		}
	}
	if r.bad == nil && !r.stop && c.Forget && log == nil {
		r.settle()
		end := r.state(0)
		if _, known := x.ends[end]; known {
			r.stop = true
		}
		x.ends[end] = struct{}{}
	}
	if r.bad == nil && !r.stop {
		r.phase = phaseCheck
		for _, f := range r.checks {
			if err := r.try(f); err != nil {
				r.fail(fmt.Errorf("check: %w", err))
				break
			}
		}
	}
	shm.Sim = nil
	return r
}

func (r *Run) try(f func() error) (err error) {
	defer func() {
		if e := recover(); e != nil {
			err = fmt.Errorf("panic: %v\n%s", e, debug.Stack())
		}
	}()
	return f()
}

func (r *Run) fail(err error) {
	if r.bad == nil {
		r.bad = err
	}
	r.stop = true
}

// loop runs tasks until all have ended.
func (r *Run) loop() {
	for !r.stop {
		if r.cur == nil || r.cur.state != ready {
			r.settle()
			if !r.next() {
				return
			}
		}
		r.cur.w.next()
		if p := r.froze; p != nil {
			r.froze = nil
			r.unwindAll(p)
		}
	}
}

// unwindAll makes the process's tasks leave their stacks.
func (r *Run) unwindAll(p *Process) {
	for _, t := range p.tasks {
		t.unwind = true
		if t.onStack {
			r.cur = t
			t.w.next()
		}
	}
	r.cur = nil
}

// next finds a task to go on with, when the current one can't. It returns
// false when the run is over.
func (r *Run) next() bool {
	for {
		r.cur = nil
		r.opts = r.opts[:0]
		for _, p := range r.procs {
			if p.state == frozen {
				r.opts = append(r.opts, option{told, uint8(p.id)})
			}
		}
		if r.c.Sequential {
			if len(r.opts) == 0 {
				for _, t := range r.tasks {
					if t.state == finished || t.state == gone {
						continue
					}
					if t.runnable() {
						r.opts = append(r.opts, option{runs, uint8(t.id)})
					}
					break
				}
			}
		} else {
			for _, t := range r.tasks {
				if t.runnable() {
					r.opts = append(r.opts, option{runs, uint8(t.id)})
				}
			}
		}
		if len(r.opts) == 0 && !r.endSlice() {
			return false
		}
		o, ok := r.choose(opEvent, eventGranule)
		if !ok {
			return false
		}
		switch o.kind {
		case told:
			r.tell(r.procs[o.task])
			if r.stop {
				return false
			}
		case sliceOver:
			r.sliceEnds(r.tasks[o.task])
			if r.stop {
				return false
			}
		case runs:
			r.resume(r.tasks[o.task])
			return true
		}
	}
}

func (t *Task) runnable() bool {
	return t.state == ready || t.state == spinning && t.r.changed >= t.turn || t.released()
}

// released reports whether the task's wait has ended by a word of private memory.
func (t *Task) released() bool {
	if t.state != blocked {
		return false
	}
	for _, w := range t.ws[:t.nws] {
		if t.r.granule(unsafe.Pointer(w.W)) == private && t.r.peek32(w.W) != w.Val {
			return true
		}
	}
	return false
}

// resume makes the task the one that runs.
func (r *Run) resume(t *Task) {
	if t.state == blocked {
		r.wakeUp(t, shm.Woken)
	}
	t.state = ready
	r.cur = t
}

// endSlice offers the waits that a slice may end, when nobody can run.
func (r *Run) endSlice() bool {
	stuck := false
	for _, t := range r.tasks {
		switch t.state {
		case blocked:
			stuck = true
			if t.slept < r.changed {
				r.opts = append(r.opts, option{sliceOver, uint8(t.id)})
			}
		case spinning:
			stuck = true
		}
		if r.c.Sequential && stuck {
			break
		}
	}
	if !stuck {
		return false
	}
	if len(r.opts) == 0 || r.allowSlices == nil || !r.allowSlices() {
		r.fail(errors.New("everybody waits: " + r.whoWaits()))
		return false
	}
	return true
}

// whereAll says where the tasks are.
func (r *Run) whereAll() string {
	var all []string
	for _, t := range r.tasks {
		all = append(all, fmt.Sprintf("%s in state %d after its access of %s", t.name, t.state, r.granuleName(t.last)))
	}
	return strings.Join(all, "; ")
}

func (r *Run) granuleName(g uint64) string {
	if g == eventGranule {
		return "nothing"
	}
	s, _ := r.nameOffset((g - 1) << 3)
	return s
}

func (r *Run) whoWaits() string {
	var all []string
	for _, t := range r.tasks {
		switch t.state {
		case spinning:
			all = append(all, t.name+" spins")
		case blocked:
			s := t.name + " sleeps on"
			for _, w := range t.ws[:t.nws] {
				s += fmt.Sprintf(" %s (now %#x, was %#x)", r.name(unsafe.Pointer(w.W)), r.peek32(w.W), w.Val)
			}
			all = append(all, s)
		}
	}
	return strings.Join(all, "; ")
}

// sliceEnds ends a wait by its time slice.
func (r *Run) sliceEnds(t *Task) {
	r.slices++
	for _, w := range t.ws[:t.nws] {
		if r.peek32(w.W) == w.Val {
			continue
		}
		if r.othersRun() {
			break // a wake-up may still come
		}
		if r.allowLost != nil && r.allowLost() {
			r.excused++
			break
		}
		r.fail(fmt.Errorf("lost wake-up: %s", r.whoWaits()))
		return
	}
	r.wakeUp(t, shm.TimedOut)
}

func (r *Run) othersRun() bool {
	for _, t := range r.tasks {
		if t.runnable() {
			return true
		}
	}
	return false
}

func (r *Run) wakeUp(t *Task, why shm.WaitResult) {
	t.state = ready
	t.result = why
	t.slept = -1
	if why == shm.TimedOut {
		t.slept = r.changed
	}
}

// choose asks the chooser which of r.opts it shall be. ok is false if the run
// ends here.
func (r *Run) choose(op shm.Op, granule uint64) (o option, ok bool) {
	i := 0
	// Where a task starts or goes on, the state may be a known one even if
	// there is no choice.
	if len(r.opts) > 1 || r.opts[0].kind == runs {
		who := uint64(0xff)
		if r.cur != nil {
			who = uint64(r.cur.id)
		}
		print := mix(uint64(op)<<48^who<<32^uint64(len(r.opts))<<16^uint64(r.opts[0].kind), granule)
		if i = r.pick.choose(r, r.opts, print); i < 0 {
			r.stop = true
			return option{}, false
		}
		o = r.opts[i]
		if o.kind != goOn && len(r.opts) > 1 {
			r.made = append(r.made, decision{r.steps, o})
		}
	} else {
		o = r.opts[0]
	}
	if r.log != nil {
		r.log.decided(r, o)
	}
	return o, true
}

// Access implements shm.Scheduler.
func (r *Run) Access(op shm.Op, p unsafe.Pointer) {
	g := r.granule(p)
	if g == private {
		return
	}
	if r.phase != phaseRun {
		if r.outside++; r.outside > outsideLimit {
			panic("explore: setup or check does not end")
		}
		if writes(op) {
			r.x.dirty[g>>pageShift] = true
		}
		return
	}
	if r.x.isIgnored(g) {
		if r.cur != nil && r.cur.unwind {
			panic(unwound)
		}
		r.x.dirty[g>>pageShift] = true
		return
	}
	if r.kernel != nil {
		r.settle()
		r.record(nil, op, g, p)
		return
	}
	t := r.cur
	if t == nil || t.unwind {
		panic(unwound)
	}
	r.settle()
	r.point(t, op, g)
	r.record(t, op, g, p)
}

// point is where a task is about to make an access. It returns when the task
// is to make it.
func (r *Run) point(t *Task, op shm.Op, g uint64) {
	x := r.x
	shared := !r.c.Sequential && (r.c.EveryAccess || x.isShared(g) || len(t.proc.tasks) > 1)
	mayDie := r.mayDie(t) && !r.c.DieWoken && (r.c.EveryAccess || writes(op) || op == opWait)
	if r.c.FewBytes {
		if op == shm.OpWrite && g-t.wrote <= 1 {
			mayDie = false
		}
		t.wrote = 0
		if op == shm.OpWrite {
			t.wrote = g
		}
	}
	if r.c.DieAt != nil && (g == eventGranule || !r.c.DieAt((g-1)<<3)) {
		mayDie = false
	}
	if !shared && !mayDie {
		return
	}
	for {
		r.opts = append(r.opts[:0], option{goOn, uint8(t.id)})
		if mayDie {
			r.opts = append(r.opts, option{dies, uint8(t.proc.id)})
		}
		if shared {
			for _, p := range r.procs {
				if p.state == frozen {
					r.opts = append(r.opts, option{told, uint8(p.id)})
				}
			}
			for _, o := range r.tasks {
				switch {
				case o != t && r.preempts > 0 && o.runnable():
					r.opts = append(r.opts, option{runs, uint8(o.id)})
				case r.early > 0 && o.state == blocked && o.slept < r.changed:
					r.opts = append(r.opts, option{sliceOver, uint8(o.id)})
				}
			}
		}
		o, ok := r.choose(op, g)
		if !ok {
			t.leave()
		}
		switch o.kind {
		case goOn:
			return
		case dies:
			r.freeze(t)
		case told:
			r.tell(r.procs[o.task])
			if r.stop {
				t.leave()
			}
		case sliceOver:
			r.early--
			r.sliceEnds(r.tasks[o.task])
			if r.stop {
				t.leave()
			}
		case runs:
			r.preempts--
			r.resume(r.tasks[o.task])
			t.yield()
			return
		}
	}
}

func (r *Run) mayDie(t *Task) bool {
	return r.deaths > 0 && t.proc.died != nil &&
		(r.deaths < r.c.Deaths || r.c.Slices <= 1 || r.steps%r.c.Slices == r.c.Slice)
}

// freeze stops the process of the running task for good. The task does not
// return from it.
func (r *Run) freeze(t *Task) {
	r.deaths--
	p := t.proc
	p.state = frozen
	p.hist = deadHist
	for _, o := range p.tasks {
		o.state = gone
		o.unwind = true
	}
	r.froze = p
	r.x.res.Deaths++
	t.leave()
}

// What a process has seen does not matter any more when it has died, or when
// its tasks have returned (Case.Forget).
const (
	deadHist     = 0xdead
	finishedHist = 0xf191
)

// tell lets the kernel tell that a frozen process has died.
func (r *Run) tell(p *Process) {
	p.state = dead
	for _, t := range p.tasks {
		r.deadMask |= 1 << t.id
	}
	r.kernel = p
	p.died()
	r.kernel = nil
	r.settle()
}

// Spin implements shm.Scheduler. The task can go on when a word has changed
// since it began this turn of its loop: another turn would see the same.
func (r *Run) Spin() {
	switch {
	case r.phase == phaseCheck:
		r.waitsInCheck("spins")
		return
	case r.phase != phaseRun || r.kernel != nil:
		return
	}
	t := r.cur
	if t == nil || t.unwind {
		panic(unwound)
	}
	r.settle()
	t.state = spinning
	r.hist(t, mix(uint64(opSpin), 0))
	t.yield()
	t.turn = r.steps + 1
}

// outsideLimit bounds the accesses of setup and checks.
const outsideLimit = 100_000_000

// WaitAny implements shm.Scheduler.
func (r *Run) WaitAny(ws []shm.Watch) shm.WaitResult {
	if r.phase != phaseRun || r.kernel != nil {
		for _, w := range ws {
			if w.W != nil && r.peek32(w.W) != w.Val {
				return shm.Changed
			}
		}
		r.waitsInCheck("sleeps")
		return shm.TimedOut
	}
	t := r.cur
	if t == nil || t.unwind {
		panic(unwound)
	}
	r.settle()
	t.nws = 0
	for _, w := range ws {
		if w.W != nil {
			t.ws[t.nws] = w
			t.nws++
		}
	}
	g := uint64(eventGranule)
	for _, w := range t.ws[:t.nws] { // switch if any of the words is shared
		h := r.granule(unsafe.Pointer(w.W))
		if h == private {
			continue
		}
		if g == eventGranule {
			g = h
		}
		if r.x.isShared(h) {
			g = h
			break
		}
	}
	r.point(t, opWait, g)
	same := true
	for _, w := range t.ws[:t.nws] {
		if h := r.granule(unsafe.Pointer(w.W)); h != private {
			r.record(t, opWait, h, unsafe.Pointer(w.W))
		}
		same = same && r.peek32(w.W) == w.Val
	}
	if !same {
		return shm.Changed
	}
	t.state = blocked
	t.yield()
	r.hist(t, mix(uint64(opWait), uint64(t.result)))
	if t.result == shm.Woken {
		r.deathPoint(t, opWait)
	}
	return t.result
}

// deathPoint is where a task may die without being about to make an access.
func (r *Run) deathPoint(t *Task, op shm.Op) {
	if !r.mayDie(t) || r.c.DieAt != nil || r.c.DieWoken && op != opWait {
		return
	}
	r.settle()
	r.opts = append(r.opts[:0], option{goOn, uint8(t.id)}, option{dies, uint8(t.proc.id)})
	o, ok := r.choose(op, eventGranule)
	if !ok {
		t.leave()
	}
	if o.kind == dies {
		r.freeze(t)
	}
}

func (r *Run) waitsInCheck(how string) {
	if r.phase == phaseCheck {
		if r.direct++; r.direct > 1000 {
			panic("explore: a check " + how + " for ever")
		}
	}
}

// Wake implements shm.Scheduler.
func (r *Run) Wake(p unsafe.Pointer, n int) {
	g := r.granule(p)
	if r.phase != phaseRun || g == private {
		return
	}
	t := r.cur
	if r.kernel == nil {
		if t == nil || t.unwind {
			panic(unwound)
		}
		r.settle()
		r.point(t, opWake, g)
	} else {
		t = nil
		r.settle()
	}
	r.record(t, opWake, g, p)
	for ; n > 0; n-- {
		r.opts = r.opts[:0]
		for _, o := range r.tasks {
			if o.state == blocked && o.sleepsOn(p) {
				r.opts = append(r.opts, option{wakes, uint8(o.id)})
			}
		}
		if len(r.opts) == 0 {
			return
		}
		if n >= len(r.opts) {
			for _, o := range r.opts {
				r.wakeUp(r.tasks[o.task], shm.Woken)
			}
			return
		}
		o, ok := r.choose(opWake, g)
		if !ok {
			if t == nil {
				return
			}
			t.leave()
		}
		r.wakeUp(r.tasks[o.task], shm.Woken)
	}
}

func (t *Task) sleepsOn(p unsafe.Pointer) bool {
	for _, w := range t.ws[:t.nws] {
		if unsafe.Pointer(w.W) == p {
			return true
		}
	}
	return false
}

// granule returns the number of the 8 bytes that p points into, which count
// as one: a word of 32 bits may be half of one of 64. 0 is the events'.
func (r *Run) granule(p unsafe.Pointer) uint64 {
	for i := range r.mem {
		if off := uint64(uintptr(p) - r.mem[i].p); off < r.mem[i].size {
			return r.base[i] + off>>3
		}
	}
	return private
}

// private is memory that the processes do not share. A wait may watch a word
// there: one that ends it when its context ends, or that another goroutine of
// the process sets. The wait can go on as soon as that word has changed.
const private = ^uint64(0)

// offset returns where in the run's memories p points: they count as if they
// lay one behind the other.
func (r *Run) offset(p unsafe.Pointer) uint64 {
	return (r.granule(p)-1)<<3 | uint64(uintptr(p)&7)
}

func (r *Run) name(p unsafe.Pointer) string {
	s, _ := r.place(p)
	return s
}

func (r *Run) place(p unsafe.Pointer) (name string, bytes int) { return r.nameOffset(r.offset(p)) }

func (r *Run) nameOffset(off uint64) (name string, bytes int) {
	if r.c.NamePlace == nil {
		return fmt.Sprintf("%#x", off), 8
	}
	sim := shm.Sim
	shm.Sim = nil // what it looks at is no access of a task
	defer func() { shm.Sim = sim }()
	return r.c.NamePlace(off)
}

func (r *Run) peek32(w *shm.Word32) uint32 { return *(*uint32)(unsafe.Pointer(w)) }

func around(p unsafe.Pointer) *uint64 { return (*uint64)(unsafe.Add(p, -int(uintptr(p)&7))) }

// settle looks at what the last access has changed.
func (r *Run) settle() {
	if r.pend == nil {
		return
	}
	if now := *r.pend; now != r.pendOld {
		r.hash ^= mix(r.pendAt, r.pendOld) ^ mix(r.pendAt, now)
		r.changed = r.steps
	}
	if r.log != nil {
		r.log.settled(r, *r.pend)
	}
	r.pend = nil
}

// record notes an access that is about to happen. t is nil for the kernel.
func (r *Run) record(t *Task, op shm.Op, g uint64, p unsafe.Pointer) {
	x := r.x
	r.steps++
	if r.steps > r.c.MaxSteps {
		r.fail(fmt.Errorf("livelock: no end after %d accesses", r.steps))
		if t != nil {
			t.leave()
		}
		return
	}
	v := uint64(0)
	if p != nil {
		v = *around(p)
	}
	bit := uint32(0)
	if t != nil {
		bit = 1 << t.id
		t.last = g
		r.hist(t, mix(g<<8|uint64(op), v))
	} else {
		bit = 1 << (maxTasks + r.kernel.id)
	}
	u := &x.touched[g]
	if u.gen != x.gen {
		*u = touch{gen: x.gen}
	}
	if writes(op) {
		if (u.readers|u.writers)&^(bit|r.deadMask) != 0 {
			x.share(g)
		}
		u.writers |= bit
		if p != nil && op != opWake {
			x.dirty[g>>pageShift] = true
			r.pend, r.pendOld, r.pendAt = around(p), v, g
		}
	} else {
		if u.writers&^(bit|r.deadMask) != 0 {
			x.share(g)
		}
		u.readers |= bit
	}
	if r.log != nil {
		r.log.access(r, t, op, g, p, v)
	}
}

// hist adds to what the task's process has seen. Tasks of one process may
// share memory of their own, so their order counts as well.
func (r *Run) hist(t *Task, v uint64) {
	t.proc.hist = mix(t.proc.hist, v^uint64(t.id)<<60)
}

// state is a hash of all that determines how the run goes on.
func (r *Run) state(print uint64) uint64 {
	h := mix(r.hash, r.events) ^ mix(print, uint64(r.early))
	for i, p := range r.procs {
		h = mix(h, p.hist+uint64(i)<<8+uint64(p.state))
	}
	for i, t := range r.tasks {
		s := uint64(t.state)
		switch t.state {
		case spinning:
			if t.runnable() {
				s = 16
			}
		case blocked:
			if t.released() {
				s = 18
			} else if t.slept >= r.changed {
				s = 17
			}
		case ready:
			s |= uint64(t.result) << 8
		}
		h = mix(h, s<<4|uint64(i))
	}
	if r.x.bound >= 0 && r.cur != nil {
		h = mix(h, uint64(r.cur.id))
	}
	return h
}

// mix hashes two words into one.
func mix(a, b uint64) uint64 {
	x := (a ^ b*0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd
	x ^= x >> 32
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 29
	x = (x + b) * 0x9e3779b97f4a7c15
	return x ^ x>>31
}
