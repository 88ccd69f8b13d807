package trace

import (
	"cmp"
	"slices"
)

// Stats are the figures of a trace.
type Stats struct {
	Events     int
	Opens      int
	Closes     int
	Processes  int
	Threads    int
	Files      int
	DurationUS int64
	MaxOpen    int // most opens at one time

	// Conflicts counts the opens that conflict, when they happen, with an
	// open by another open that is not closed yet. All opens count as made:
	// the captured machine knew no share modes and refused none.
	Conflicts int

	// SameProcess and SameThread count those of Conflicts where all the open
	// ones in the way belong to the same process or thread. One goroutine
	// that replays this process or thread waits for itself there.
	SameProcess int
	SameThread  int

	// Refused counts the conflicts that are left when a conflicting open is
	// skipped together with its close, as a replay in trace order does it.
	Refused int

	Modes   []ModeCount  // opens by mode
	Classes []ClassCount // Conflicts by class
}

// ModeCount counts the opens of one mode.
type ModeCount struct {
	Mode  Mode
	Opens int
}

// ClassCount counts the conflicts of one class: the mode of the new open and
// that of the oldest one in its way.
type ClassCount struct {
	New, Held Mode
	Opens     int
}

// Stats counts through the whole trace.
func (t *Trace) Stats() Stats {
	s := Stats{
		Events: len(t.Events), Opens: t.Opens, Closes: len(t.Events) - t.Opens,
		Processes: t.Processes, Threads: t.Threads, Files: t.Files,
	}
	if len(t.Events) > 0 {
		s.DurationUS = t.Events[len(t.Events)-1].TimeUS
	}
	modes := map[Mode]int{}
	classes := map[[2]Mode]int{}
	all, admitted := make(table, t.Files), make(table, t.Files)
	open := 0
	for _, e := range t.Events {
		if e.Kind == Close {
			all.remove(e)
			admitted.remove(e)
			open--
			continue
		}
		open++
		s.MaxOpen = max(s.MaxOpen, open)
		modes[e.Mode]++
		if held := all.conflicting(e); len(held) > 0 {
			s.Conflicts++
			classes[[2]Mode{e.Mode, held[0].Mode}]++
			if !slices.ContainsFunc(held, func(h Event) bool { return h.Process != e.Process }) {
				s.SameProcess++
			}
			if !slices.ContainsFunc(held, func(h Event) bool { return h.Thread != e.Thread }) {
				s.SameThread++
			}
		}
		all[e.File] = append(all[e.File], e)
		if len(admitted.conflicting(e)) > 0 {
			s.Refused++
		} else {
			admitted[e.File] = append(admitted[e.File], e)
		}
	}
	for m, n := range modes {
		s.Modes = append(s.Modes, ModeCount{m, n})
	}
	slices.SortFunc(s.Modes, func(a, b ModeCount) int {
		return cmp.Or(cmp.Compare(b.Opens, a.Opens), cmp.Compare(a.Mode, b.Mode))
	})
	for c, n := range classes {
		s.Classes = append(s.Classes, ClassCount{c[0], c[1], n})
	}
	slices.SortFunc(s.Classes, func(a, b ClassCount) int {
		return cmp.Or(cmp.Compare(b.Opens, a.Opens), cmp.Compare(a.New, b.New), cmp.Compare(a.Held, b.Held))
	})
	return s
}

// table holds the opens of each file that are not closed, oldest first.
type table [][]Event

func (t table) conflicting(e Event) (held []Event) {
	for _, h := range t[e.File] {
		if Conflict(h.Mode, e.Mode) {
			held = append(held, h)
		}
	}
	return held
}

// remove takes the open out that e closes, if it is there.
func (t table) remove(e Event) {
	t[e.File] = slices.DeleteFunc(t[e.File], func(h Event) bool { return h.Open == e.Open })
}
