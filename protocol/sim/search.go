package sim

import (
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
)

// verdict of a search.
type verdict uint8

const (
	legal verdict = iota
	illegal
	undecided
)

// moment is an operation with the bounds between which it took effect.
type moment struct {
	h         *histOp
	call, ret instant
	must      bool   // it is known to have taken effect
	read      bool   // it changes nothing
	after     string // values that it was put behind: an append
	unmet     bool   // nobody ever met what it brought
	mark      uint64 // of one that must be in
	option    int    // number of one that may
}

// choice is a set of operations that may have happened.
type choice [8]uint64

func (c *choice) add(i int) { c[i/64%len(c)] |= 1 << (i % 64) }

func (c *choice) within(d *choice) bool {
	for i := range c {
		if c[i]&^d[i] != 0 {
			return false
		}
	}
	return true
}

// search looks for an order of operations that explains a history: Wing and Gong's
// algorithm with Lowe's memory of where it has been, and what porcupine, which
// knows nothing about the model, can't do. An operation that changes nothing is put
// into the order as soon as it fits: any order that has it later holds with it
// there as well. One of unknown end is only tried where it changes something, and
// what failed with more of those left need not be tried with fewer. Pieces that
// nobody met have no order. TestSearch compares it with porcupine.
//
// The budget is a number of states and no time, so that the answer depends on the
// history alone.
type search struct {
	pieces     bool
	ops        []moment // by call
	next, prev []int32  // of those not in the order; the last is the list's head
	unmet      map[string]bool
	seen       map[[2]uint64][]choice
	used       choice
	budget     int
	seed       maphash.Seed
}

func newSearch(pieces bool, ops []moment, budget int) *search {
	slices.SortStableFunc(ops, func(a, b moment) int { return cmp.Compare(a.call, b.call) })
	s := &search{pieces: pieces, ops: ops, unmet: map[string]bool{}, seen: map[[2]uint64][]choice{}, budget: budget,
		seed: maphash.MakeSeed()}
	n := int32(len(ops))
	for i := range n + 1 {
		s.next, s.prev = append(s.next, (i+1)%(n+1)), append(s.prev, (i+n)%(n+1))
	}
	options := 0
	for i := range ops {
		if o := &ops[i]; o.h.kind == "append" && o.unmet {
			s.unmet[o.h.arg] = true
		}
		if !ops[i].must {
			ops[i].option, options = options, options+1
			continue
		}
		z := (uint64(i) + 1) * 0x9E3779B97F4A7C15
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		ops[i].mark = (z ^ z>>27) * 0x94D049BB133111EB
	}
	return s
}

func (s *search) take(i int32) { s.next[s.prev[i]], s.prev[s.next[i]] = s.next[i], s.prev[i] }

// back undoes the newest take.
func (s *search) back(i int32) { s.next[s.prev[i]], s.prev[s.next[i]] = i, i }

func (s *search) run() verdict { return s.from("", 0, 0) }

// from a state on: latest is the newest call in the order, marks tells what is.
func (s *search) from(state string, latest instant, marks uint64) verdict {
	var reads []int32
	defer func() {
		for k := len(reads) - 1; k >= 0; k-- {
			s.back(reads[k])
		}
	}()
	head := int32(len(s.ops))
	var until instant
	for more := true; more; {
		more = false
		until = endOfTime // the end of the first that must be in before anything later
		for i := s.next[head]; i != head && s.ops[i].call <= until; i = s.next[i] {
			if o := &s.ops[i]; o.must {
				until = min(until, o.ret)
			}
		}
		if until == endOfTime {
			return legal
		}
		for i := s.next[head]; i != head && s.ops[i].call <= until; i = s.next[i] {
			if o := &s.ops[i]; o.read && s.fits(state, o.h) {
				s.take(i)
				reads = append(reads, i)
				latest, marks, more = max(latest, o.call), marks^o.mark, true
			}
		}
	}
	// From here nothing was found with the same operations in the order and the same
	// or more of those left that may have happened: then nothing will be found now.
	key := [2]uint64{marks, maphash.String(s.seed, state)}
	for _, before := range s.seen[key] {
		if before.within(&s.used) {
			return illegal
		}
	}
	if list := s.seen[key]; len(list) < 8 {
		s.seen[key] = append(list, s.used)
	}
	if s.budget--; s.budget < 0 {
		return undecided
	}
	for _, must := range [2]bool{true, false} {
		for i := s.next[head]; i != head && s.ops[i].call <= until; i = s.next[i] {
			o := &s.ops[i]
			if o.read || o.must != must || o.ret < latest || !behind(state, o) {
				continue
			}
			for _, next := range step(s.pieces, state, o.h) {
				if o.h.ret == 0 && next == state {
					continue
				}
				was := s.used
				if !must {
					s.used.add(o.option)
				}
				s.take(i)
				v := s.from(s.normal(next.(string)), max(latest, o.call), marks^o.mark)
				s.back(i)
				s.used = was
				if v != illegal {
					return v
				}
			}
		}
	}
	return illegal
}

const endOfTime = instant(1 << 62)

// fits: an operation that changes nothing is explained by this state.
func (s *search) fits(state string, h *histOp) bool {
	if h.kind == "fetch" {
		return h.out == state
	}
	return s.pieces && !compatible(state, h.arg) // an append whose condition was false
}

// behind: an append finds everything in the record that was met before it there.
func behind(state string, o *moment) bool {
	ok := true
	if o.h.kind == "append" && o.after != "" {
		each(o.after, func(v string) { ok = ok && strings.Contains(state, v) })
	}
	return ok
}

// normal sorts the pieces that nobody ever met behind the others: where they stood
// nobody can tell, and so states that differ in nothing else are one.
func (s *search) normal(state string) string {
	if !s.pieces || len(s.unmet) == 0 {
		return state
	}
	var met, unmet []string
	each(state, func(v string) {
		if s.unmet[v] {
			unmet = append(unmet, v)
		} else {
			met = append(met, v)
		}
	})
	if len(unmet) == 0 {
		return state
	}
	slices.Sort(unmet)
	return strings.Join(append(met, unmet...), "")
}
