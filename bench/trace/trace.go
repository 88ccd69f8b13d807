package trace

import (
	"errors"
	"fmt"
)

// MaxEvents is the most events a trace may have. It bounds what a small but
// hostile file can make a reader allocate.
const MaxEvents = 1 << 22

// maxTimeUS bounds the length of a trace (almost 13 days), so that times can be
// added without a thought about overflow.
const maxTimeUS = 1 << 40

var (
	// ErrFormat says that a file is not a trace, or a damaged one.
	ErrFormat = errors.New("not a valid trace")

	// ErrOrder says that an event given to a Writer breaks a promise of the
	// format, for example a second close of the same open.
	ErrOrder = errors.New("event breaks the order of a trace")
)

// Kind tells opens and closes apart.
type Kind uint8

const (
	Open  Kind = 0
	Close Kind = 1

	end Kind = 2 // in files only
)

// Event is one open or close. For a close, all but TimeUS, Kind and Open are
// those of the open that it ends.
type Event struct {
	TimeUS  int64  // since the first event
	Open    uint32 // number of the open
	File    uint32
	Process uint32
	Thread  uint32
	Kind    Kind
	Mode    Mode
}

// Trace is a whole trace in memory. Opens, Files, Processes and Threads are
// counts; the numbers in Events lie below them.
type Trace struct {
	Events    []Event
	Opens     int
	Files     int
	Processes int
	Threads   int
}

// ByProcess returns the events of each process, index by process, in trace
// order: its opens and the closes of these.
func (t *Trace) ByProcess() [][]Event {
	return t.split(t.Processes, func(e *Event) uint32 { return e.Process })
}

// ByThread returns the events of each thread, as ByProcess does for processes.
// A process of many threads gives more actors that way; that its own threads
// can then conflict with each other is what happened on the captured machine.
func (t *Trace) ByThread() [][]Event {
	return t.split(t.Threads, func(e *Event) uint32 { return e.Thread })
}

func (t *Trace) split(n int, actor func(*Event) uint32) [][]Event {
	counts := make([]int, n)
	for i := range t.Events {
		counts[actor(&t.Events[i])]++
	}
	// One array for all: thousands of small growing slices would cost more
	// than a second pass over the events.
	all := make([]Event, 0, len(t.Events))
	actors := make([][]Event, n)
	for i, c := range counts {
		actors[i] = all[len(all) : len(all) : len(all)+c]
		all = all[:len(all)+c]
	}
	for i := range t.Events {
		a := actor(&t.Events[i])
		actors[a] = append(actors[a], t.Events[i])
	}
	return actors
}

// ledger knows what has happened so far in a trace and holds every event
// against the promises of the format. Reader and Writer share it, so that one
// cannot write what the other refuses.
type ledger struct {
	timeUS    int64
	events    int
	files     uint32
	processes uint32
	threads   []uint32 // process of each thread
	opens     []openEntry
	closes    int
}

type openEntry struct {
	file, thread uint32
	mode         Mode
	closed       bool
}

// apply checks e, takes it into account, and fills in what a close has from
// its open. After an error the ledger is as before.
func (l *ledger) apply(e *Event) error {
	switch {
	case l.events == MaxEvents:
		return fmt.Errorf("more than %d events", MaxEvents)
	case l.events == 0 && e.TimeUS != 0:
		return fmt.Errorf("the first event is at %d µs, not at 0", e.TimeUS)
	case e.TimeUS < l.timeUS:
		return fmt.Errorf("time goes back from %d to %d µs", l.timeUS, e.TimeUS)
	case e.TimeUS > maxTimeUS:
		return fmt.Errorf("time %d µs is beyond the limit of %d", e.TimeUS, int64(maxTimeUS))
	}
	var err error
	switch e.Kind {
	case Open:
		err = l.open(e)
	case Close:
		err = l.close(e)
	default:
		err = fmt.Errorf("unknown kind %d", e.Kind)
	}
	if err != nil {
		return err
	}
	l.timeUS = e.TimeUS
	l.events++
	return nil
}

func (l *ledger) open(e *Event) error {
	threads := uint32(len(l.threads))
	switch {
	case !e.Mode.Valid():
		return fmt.Errorf("open %d has %v", e.Open, e.Mode)
	case int(e.Open) != len(l.opens):
		return fmt.Errorf("open is numbered %d, the next is %d", e.Open, len(l.opens))
	case e.File > l.files:
		return fmt.Errorf("open %d names file %d, the next new one is %d", e.Open, e.File, l.files)
	case e.Thread > threads:
		return fmt.Errorf("open %d names thread %d, the next new one is %d", e.Open, e.Thread, threads)
	case e.Process > l.processes:
		return fmt.Errorf("open %d names process %d, the next new one is %d", e.Open, e.Process, l.processes)
	case e.Thread < threads && l.threads[e.Thread] != e.Process:
		return fmt.Errorf("open %d puts thread %d in process %d, it belongs to %d", e.Open, e.Thread, e.Process,
			l.threads[e.Thread])
	}
	if e.Thread == threads {
		l.threads = append(l.threads, e.Process)
		l.processes = max(l.processes, e.Process+1)
	}
	l.files = max(l.files, e.File+1)
	l.opens = append(l.opens, openEntry{file: e.File, thread: e.Thread, mode: e.Mode})
	return nil
}

func (l *ledger) close(e *Event) error {
	if int64(e.Open) >= int64(len(l.opens)) {
		return fmt.Errorf("close of open %d, which has not happened", e.Open)
	}
	o := &l.opens[e.Open]
	if o.closed {
		return fmt.Errorf("second close of open %d", e.Open)
	}
	o.closed = true
	l.closes++
	e.File, e.Thread, e.Process, e.Mode = o.file, o.thread, l.threads[o.thread], o.mode
	return nil
}

// finish checks what must hold at the end.
func (l *ledger) finish() error {
	if left := len(l.opens) - l.closes; left != 0 {
		return fmt.Errorf("the trace ends with %d opens not closed", left)
	}
	return nil
}
