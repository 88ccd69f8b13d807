package explore

// Call is one call on a thing of which S is the state.
type Call[S comparable] struct {
	// Begin and End are when it began and returned, on one clock; End 0 means
	// that it never returned: then it may have happened at any time after
	// Begin, or not at all.
	Begin, End int
	// Apply is what the call does to a thing in state s, taking all at once.
	// ok is false if a call in that state can't return what this one did.
	Apply func(s S) (next S, ok bool)
	// What names the call in messages.
	What string
}

// maxCalls is how many calls Linearizable looks at.
const maxCalls = 64

// Linearizable reports whether the calls could have happened one by one, each
// at an instant between its begin and its end, from the state s; and then, in
// that order, left a state that final accepts (nil: any).
func Linearizable[S comparable](s S, calls []Call[S], final func(S) bool) bool {
	if len(calls) > maxCalls {
		panic("explore: too many calls for Linearizable")
	}
	type place struct {
		done uint64
		s    S
	}
	tried := map[place]bool{}
	var from func(p place) bool
	from = func(p place) bool {
		if tried[p] {
			return false
		}
		tried[p] = true
		rest := false    // a call that returned is not in order yet
		first := 1 << 62 // the earliest end of those
		for i, c := range calls {
			if p.done>>i&1 == 0 && c.End != 0 {
				rest = true
				first = min(first, c.End)
			}
		}
		if !rest && (final == nil || final(p.s)) {
			return true
		}
		for i, c := range calls {
			if p.done>>i&1 != 0 || c.Begin > first {
				continue
			}
			if next, ok := c.Apply(p.s); ok && from(place{p.done | 1<<i, next}) {
				return true
			}
		}
		return false
	}
	return from(place{s: s})
}
