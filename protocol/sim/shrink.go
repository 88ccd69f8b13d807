package sim

// Shrink makes the mix of a failing run smaller for as long as the run fails by
// the same check: less time, fewer kinds of faults, clients, keys and nodes. It
// runs at most budget times, and returns the options of the smallest it found.
func Shrink(o Options, budget int) (Options, Result) {
	o.Trace = nil
	best := Run(o)
	if len(best.Failures) == 0 {
		return o, best
	}
	check := best.Failures[0].Check
	mix := best.Mix
	o.Mix = &mix
	try := func(edit func(m *Mix)) bool {
		m := mix
		if edit(&m); m == mix || budget <= 0 {
			return false
		}
		budget--
		t := o
		t.Mix = &m
		r := Run(t)
		if len(r.Failures) == 0 || r.Failures[0].Check != check {
			return false
		}
		mix, best = m, r
		return true
	}
	edits := []func(m *Mix){
		func(m *Mix) { m.Millis /= 2 },
		func(m *Mix) { m.Millis -= m.Millis / 8 },
		func(m *Mix) { m.Loss = 0 },
		func(m *Mix) { m.Repeat = 0 },
		func(m *Mix) { m.Tail = 0 },
		func(m *Mix) { m.Drift = 0 },
		func(m *Mix) { m.Crash = 0 },
		func(m *Mix) { m.Warm = 0 },
		func(m *Mix) { m.Pause = 0 },
		func(m *Mix) { m.Cut = 0 },
		func(m *Mix) { m.OneWay = 0 },
		func(m *Mix) { m.Kill = 0 },
		func(m *Mix) { m.Stall = 0 },
		func(m *Mix) { m.Full = 0 },
		func(m *Mix) { m.Cap = 0 },
		func(m *Mix) { m.Open = false },
		func(m *Mix) { m.Drain = 0 },
		func(m *Mix) { m.File = 0 },
		func(m *Mix) { m.Arbiter = false },
		func(m *Mix) { m.Keys = max(1, m.Keys-1) },
		func(m *Mix) { m.Clients = max(1, m.Clients-1) },
		func(m *Mix) { m.Nodes = max(2, m.Nodes-1) },
	}
	for again := true; again; {
		again = false
		for _, e := range edits {
			for try(e) {
				again = true
			}
		}
	}
	o.Mix = &mix
	return o, best
}
