//go:build shmsim

package explore

import (
	"fmt"
	"strings"
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

// tracer writes down what happens in a run.
type tracer struct {
	lines []line
	open  bool                // the last line's access is not settled
	part  func(uint64) uint64 // of the 8 bytes around its word, the word
}

type line struct {
	step int
	who  string
	what string
	more int    // accesses that move bytes, behind the first
	at   uint64 // granule of the last of these
	idle uint64 // granule, if it is a load or a store that changes nothing
}

// maxLines of a trace are printed: half from its start, half from its end.
const maxLines = 240

func (l *tracer) add(r *Run, who, what string) *line {
	l.lines = append(l.lines, line{step: r.steps, who: who, what: what})
	return &l.lines[len(l.lines)-1]
}

func (l *tracer) decided(r *Run, o option) {
	switch o.kind {
	case runs:
		l.add(r, r.tasks[o.task].name, "runs")
	case dies:
		l.add(r, r.procs[o.task].name, "DIES")
	case told:
		l.add(r, "kernel", "tells the death of "+r.procs[o.task].name)
	case wakes:
		l.add(r, r.tasks[o.task].name, "is woken")
	case sliceOver:
		l.add(r, r.tasks[o.task].name, "sleeps to the end of its slice")
	}
}

func (l *tracer) access(r *Run, t *Task, op shm.Op, g uint64, p unsafe.Pointer, v uint64) {
	who := "kernel"
	if t != nil {
		who = t.name
	}
	if op == opEvent {
		l.add(r, who, fmt.Sprintf("event %d", r.nevents))
		return
	}
	if op == shm.OpWrite || op == shm.OpRead {
		// Bytes one behind the other are one line.
		if n := len(l.lines); n > 0 && l.lines[n-1].at != 0 && g-l.lines[n-1].at <= 1 && l.lines[n-1].who == who &&
			strings.HasPrefix(l.lines[n-1].what, op.String()) {
			l.lines[n-1].more++
			l.lines[n-1].at = g
			l.open = false
			return
		}
	}
	shift := 8 * (uintptr(p) & 7)
	name, bytes := r.place(p)
	l.part = func(v uint64) uint64 { return v >> shift & (1<<(8*bytes) - 1) }
	what := fmt.Sprintf("%-5s %-30s %#x", opName(op), name, l.part(v))
	n := l.add(r, who, what)
	if !writes(op) && op != opWait {
		n.idle = g
	}
	if op == shm.OpWrite || op == shm.OpRead {
		n.at = g
	}
	l.open = writes(op) && op != opWake
}

func (l *tracer) settled(r *Run, now uint64) {
	if !l.open || len(l.lines) == 0 {
		return
	}
	l.open = false
	last := &l.lines[len(l.lines)-1]
	if now != r.pendOld {
		last.what += fmt.Sprintf(" → %#x", l.part(now))
	} else {
		last.what += " (no change)"
		last.idle = r.pendAt
	}
}

func opName(op shm.Op) string {
	switch op {
	case opWait:
		return "wait"
	case opWake:
		return "wake"
	case opEvent:
		return "event"
	}
	return op.String()
}

// text prints the trace: what matters to others, and a count of the rest.
func (l *tracer) text(r *Run) string {
	var out []string
	quiet, who := 0, ""
	flush := func() {
		if quiet > 0 {
			out = append(out, fmt.Sprintf("       %-12s … %d accesses", who, quiet))
		}
		quiet = 0
	}
	for _, n := range l.lines {
		// Of no interest: what nobody else has touched, and stays as it is.
		if u := r.x.touched[n.idle]; n.idle != 0 && (u.readers|u.writers)&(u.readers|u.writers-1) == 0 {
			if n.who != who {
				flush()
			}
			quiet++
			who = n.who
			continue
		}
		flush()
		who = n.who
		if n.more > 0 {
			n.what += fmt.Sprintf(", and %d more", n.more)
		}
		out = append(out, fmt.Sprintf("%6d %-12s %s", n.step, n.who, n.what))
	}
	flush()
	if skip := len(out) - maxLines; skip > 0 {
		out = append(append(out[:maxLines/2:maxLines/2], fmt.Sprintf("       … %d lines …", skip)),
			out[len(out)-maxLines/2:]...)
	}
	return strings.Join(out, "\n")
}
