//go:build shmsim

package explore

import (
	"fmt"
	"time"
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

// Case is something to explore. Setup is required; the zero value of the rest
// means no preemption, no death, no limit.
type Case struct {
	Name string

	// Setup builds one run: fresh memory, tasks, checks. What it does itself
	// is not part of any schedule.
	Setup func(r *Run)

	// Preemptions is how often a task that could go on is made to wait, at
	// most; Unbounded for any number. Exhaust goes up to it step by step, so
	// that what it finds has few.
	Preemptions int
	// Deaths is how many processes die at most.
	Deaths int
	// EarlySlices is how many waits end by their time slice although others
	// could run. (If none can, slices end anyway.)
	EarlySlices int

	// Sequential runs the tasks one after another, each from the end of the
	// last one, be it its return or its death.
	Sequential bool
	// EveryAccess takes no shortcut: a switch and a death are tried before
	// each access of any kind.
	EveryAccess bool

	// FewBytes tries a death only before the first of the accesses that write
	// bytes one behind the other, not before each.
	FewBytes bool
	// DieAt, if set, limits deaths to those before an access of an offset for
	// which it says yes: for a case in which several have to die at certain stores.
	DieAt func(off uint64) bool
	// DieWoken lets a process die only where it has just been woken, which
	// is where a wake-up that was meant for one of many is lost.
	DieWoken bool
	// Forget says that the checks look at the memory, at who has died, and at
	// what the events tell, and at nothing else that tasks have seen. Then two
	// states that differ only in what tasks had seen that have ended are one.
	Forget bool

	// Slices cuts the search of a Sequential case into that many parts, of which
	// this one is number Slice, from 0. A part tries the first death only before
	// each Slices-th access; all parts together try what the whole search tries.
	// 0 and 1 mean the whole.
	Slices, Slice int

	MaxRuns  int
	MaxTime  time.Duration // of the real clock
	MaxSteps int           // accesses of one run, more is a livelock; 0: 1,000,000

	// NamePlace names an offset in the memory for traces, and says whether the
	// word there has 4 or 8 bytes; nil: as a number.
	NamePlace func(off uint64) (name string, bytes int)
}

// Unbounded lifts a limit.
const Unbounded = -1

// Run is one execution of a case.
type Run struct {
	x     *explorer
	c     *Case
	pick  chooser
	phase phase

	mem                    []memory
	base                   []uint64 // first granule of each memory
	procs                  []*Process
	tasks                  []*Task
	checks                 []func() error
	allowSlices, allowLost func() bool

	cur      *Task    // runs, or is to run
	kernel   *Process // whose death is being told, nil for none
	preempts int      // left
	early    int      // slices left to end early
	deaths   int      // left
	steps    int      // accesses so far
	changed  int      // step of the last change of any word
	hash     uint64   // of all changes of memory
	events   uint64   // of the events in their order
	nevents  int
	slices   int // waits that ended by their slice
	excused  int // of these: the word had changed, and a death explains it
	direct   int // waits in a check
	outside  int // accesses of setup and checks

	pend     *uint64 // word that the last access may have changed
	pendOld  uint64
	pendAt   uint64
	deadMask uint32
	opts     []option
	made     []decision // so far, for Replay
	log      *tracer    // nil: none
	bad      error
	stop     bool     // the rest of the run is not of interest
	froze    *Process // just now
}

type phase uint8

const (
	phaseSetup phase = iota
	phaseRun
	phaseCheck
)

type memory struct {
	p    uintptr
	size uint64
}

// Process is what dies as one: it has one or more tasks.
type Process struct {
	r     *Run
	id    int
	name  string
	died  func()
	state procState
	tasks []*Task
	hist  uint64 // of all it has seen
}

type procState uint8

const (
	alive  procState = iota
	frozen           // makes no access any more, but nobody was told
	dead             // the kernel has told
)

// Task is one goroutine of a process.
type Task struct {
	r       *Run
	id      int
	name    string
	proc    *Process
	body    func(*Task)
	w       *worker
	state   taskState
	ws      [4]shm.Watch // sleeps on
	nws     int
	result  shm.WaitResult
	turn    int    // step at which its present turn of a spin loop began
	slept   int    // step at which its last slice ended, -1: none in this sleep
	onStack bool   // the body has begun and has not returned
	last    uint64 // granule of its last access
	wrote   uint64 // granule, if its last access wrote bytes
	unwind  bool   // it leaves its stack, or has left it
}

type taskState uint8

const (
	ready taskState = iota
	blocked
	spinning
	finished
	gone // its process is frozen or dead
)

// Memory tells the run which memory the tasks share. It must have the same
// size in each run; offsets in traces count from its start.
func (r *Run) Memory(p unsafe.Pointer, size uint64) {
	if uintptr(p)&7 != 0 {
		panic("explore: memory must be aligned to 8 bytes")
	}
	r.base = append(r.base, r.x.claim(len(r.mem), size))
	r.mem = append(r.mem, memory{uintptr(p), size})
}

// MemoryFrom is Memory, filled with a copy of image first. Of memory that was
// used in earlier runs only the pages are copied that they have written, by
// way of package shm: who writes in another way must not use it.
func (r *Run) MemoryFrom(p unsafe.Pointer, image []byte) {
	n := len(r.mem)
	r.Memory(p, uint64(len(image)))
	mem := unsafe.Slice((*byte)(p), len(image))
	x := r.x
	if n == len(x.at) {
		x.at = append(x.at, 0)
	}
	if x.at[n] != uintptr(p) { // not the memory of the run before
		x.at[n] = uintptr(p)
		copy(mem, image)
		return
	}
	for page := r.base[n] >> pageShift; page<<pageShift < r.base[n]+uint64(len(image))>>3; page++ {
		if !x.dirty[page] {
			continue
		}
		x.dirty[page] = false
		from, to := max(page<<pageShift, r.base[n])-r.base[n], (page+1)<<pageShift-r.base[n]
		copy(mem[from<<3:], image[from<<3:min(to<<3, uint64(len(image)))])
	}
}

// Ignore excludes the 8 bytes around p: accesses to them are none. It is for
// words that no task decides by.
func (r *Run) Ignore(p unsafe.Pointer) {
	g := r.granule(p)
	r.x.ignored[g>>6] |= 1 << (g & 63)
}

// pageShift is of a page in granules: 4 KiB.
const pageShift = 9

// Process adds a process. died is what the kernel does at its death; nil
// means that it does not die.
func (r *Run) Process(name string, died func()) *Process {
	p := &Process{r: r, id: len(r.procs), name: name, died: died, hist: uint64(len(r.procs))}
	r.procs = append(r.procs, p)
	return p
}

// Go adds a task to the process. Tasks of one process must not block on each
// other but through package shm.
func (p *Process) Go(body func(*Task)) {
	r := p.r
	if len(r.tasks) == maxTasks {
		panic("explore: too many tasks")
	}
	t := &Task{r: r, id: len(r.tasks), name: p.name, proc: p, body: body, slept: -1}
	if len(p.tasks) > 0 {
		t.name = fmt.Sprintf("%s.%d", p.name, len(p.tasks))
	}
	p.tasks = append(p.tasks, t)
	r.tasks = append(r.tasks, t)
}

// maxTasks is half of a mask: the other half is the kernel's, one bit for
// each process.
const maxTasks = 16

// Go adds a process of one task, which does not die.
func (r *Run) Go(name string, body func(*Task)) { r.Process(name, nil).Go(body) }

// Check adds a check of the outcome. It runs when all tasks have ended; it
// may use the memory freely, but a wait in it is an error if nothing ends it.
func (r *Run) Check(f func() error) { r.checks = append(r.checks, f) }

// AllowSlices says when waits may end by their time slice because everybody
// sleeps, which is a violation otherwise. Waits are short of a wake-up when
// the process that owes it has died, and nobody has recovered it yet.
func (r *Run) AllowSlices(f func() bool) { r.allowSlices = f }

// AllowLostWakes says when such a wait may end with the word already changed:
// somebody had changed it and had not woken the sleeper. A violation
// otherwise.
func (r *Run) AllowLostWakes(f func() bool) { r.allowLost = f }

// Died returns the names of the processes that have died.
func (r *Run) Died() (names []string) {
	for _, p := range r.procs {
		if p.state != alive {
			names = append(names, p.name)
		}
	}
	return names
}

// Dead reports whether the process has died.
func (p *Process) Dead() bool { return p.state != alive }

// Name returns the process's name.
func (p *Process) Name() string { return p.name }

// Failf ends the run with a violation.
func (t *Task) Failf(format string, args ...any) {
	if t.unwind {
		panic(unwound)
	}
	t.r.fail(fmt.Errorf("%s: %s", t.name, fmt.Sprintf(format, args...)))
	t.leave()
}

// Event tells the run that something happened outside of shared memory whose
// order among all events matters, such as the begin or end of a call. It
// returns the event's number, from 1. v distinguishes what happened.
func (t *Task) Event(v uint64) int {
	r := t.r
	if t.unwind {
		panic(unwound)
	}
	r.settle()
	r.point(t, opEvent, eventGranule)
	r.nevents++
	r.events = mix(r.events, uint64(t.id)<<56^v)
	r.record(t, opEvent, eventGranule, nil)
	return r.nevents
}
