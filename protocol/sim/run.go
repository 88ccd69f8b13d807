package sim

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

// Result of a run.
type Result struct {
	Seed      uint64        `json:"seed"`
	Mix       Mix           `json:"mix"`
	Failures  []Failure     `json:"failures"`
	Hash      uint64        `json:"trace_hash"`              // of every datagram sent: the same for the same seed and code
	Acked     int           `json:"operations_acknowledged"` // operations that returned success
	Recovered int           `json:"recoveries"`              // epochs opened
	Undecided int           `json:"histories_undecided"`     // histories that took too long to check
	Steps     uint64        `json:"steps"`
	Virtual   time.Duration `json:"virtual_ns"`
	Histories int           `json:"histories"`          // of keys, checked
	Handled   *Steps        `json:"handling,omitempty"` // with handling time
	Coverage  *Coverage     `json:"coverage,omitempty"`
}

func (h *histOp) line() string {
	end := "?"
	if h.ret != 0 {
		end = fmt.Sprintf("%.3f", float64(h.ret)/1e6)
	}
	s := fmt.Sprintf("%10.3f %10s %s %q", float64(h.call)/1e6, end, h.kind, h.arg)
	if h.expect != "" {
		s += fmt.Sprintf(" expect %q", h.expect)
	}
	if h.out != "" {
		s += fmt.Sprintf(" = %q", h.out)
	}
	if h.no {
		s += " no"
	}
	if h.void {
		s += " (nothing)"
	}
	for _, o := range h.ops {
		s += " of " + o.line()
		return s
	}
	return s + "\n"
}

// draw the mix of faults from the seed.
func draw(o Options, rng *rand.Rand) Mix {
	pick := func(p, most float64) float64 {
		if rng.Float64() > p {
			return 0
		}
		return rng.Float64() * most
	}
	m := Mix{Nodes: o.Nodes, Millis: o.Millis}
	if m.Nodes == 0 {
		m.Nodes = []int{2, 3, 3, 3, 4, 5, 5, 7}[rng.IntN(8)]
	}
	if m.Millis == 0 {
		m.Millis = 300 + rng.IntN(1700)
	}
	m.Clients = 1 + rng.IntN(3)
	m.Loss, m.Repeat = pick(0.5, 0.1), pick(0.5, 0.1)
	m.Delay, m.Tail = instant(20+rng.IntN(200))*us, instant(rng.IntN(30))*ms
	m.Drift = pick(0.4, 0.02)
	m.Crash, m.Warm, m.Pause = pick(0.6, 3), pick(0.6, 3), pick(0.6, 3)
	m.Cut, m.OneWay = pick(0.4, 2), pick(0.3, 1.5)
	m.Kill, m.Stall = pick(0.5, 5), pick(0.4, 0.02)
	m.Full = pick(0.3, 3)
	m.Policy = []string{"plan", "always", "never", "adaptive", "always"}[rng.IntN(5)]
	m.Keys = 1 + rng.IntN(4)
	if rng.IntN(4) == 0 {
		m.Cap = 40 + rng.IntN(400)
	}
	m.Open = rng.IntN(2) == 0
	m.Drain, m.File = pick(0.25, 2), pick(0.15, 2)
	m.Arbiter = m.Nodes%2 == 0 && rng.IntN(3) > 0
	m.Promise = rng.IntN(3) == 0
	m.Mute, m.Stalls = pick(0.15, 1.5), pick(0.15, 1)
	m.Axe = pick(0.5, 8)
	m.Turn = 1
	if rng.IntN(2) == 0 {
		m.Turn = 1 << rng.IntN(7)
	}
	m.fill(rand.New(rand.NewPCG(o.Seed, 0x66696c6c)))
	return m
}

// fill draws what makes tables, batches and windows full: by numbers of its own, so
// that the other mishaps of a seed are what they would be without.
func (m *Mix) fill(rng *rand.Rand) {
	if rng.IntN(10) < 3 {
		m.Limits = 1 + rng.IntN(1<<30)
	}
	m.Large = rng.IntN(10) < 2 && m.Cap == 0
	if rng.IntN(10) == 0 {
		m.Keys = 50 + rng.IntN(300)
		m.Drain = max(m.Drain, 2*rng.Float64()) // so that many records move at once
	}
}

// Run simulates one seed.
func Run(o Options) (res Result) {
	rng := rand.New(rand.NewPCG(o.Seed, 0x6d61696e7a))
	c := &Cluster{opt: o, cover: newCover(), rng: rng, faults: !o.Quiet, hash: fnv.New64a(), files: []wire.Set{0}}
	c.mix = draw(o, rng)
	if aim := aims[o.Plant]; o.Aim && aim != nil {
		aim(&c.mix)
	}
	if o.Mix != nil {
		c.mix = *o.Mix
	}
	c.check = newChecker(c)
	res.Seed, res.Mix = o.Seed, c.mix
	c.trace("seed %d: %v", o.Seed, c.mix)
	defer func() {
		if r := recover(); r != nil && o.Trace == nil {
			c.check.fail("panic", "%v", r)
			res.Failures = c.check.failures
		} else if r != nil {
			panic(r)
		}
	}()
	if o.Handling == CPUTime {
		runtime.LockOSThread() // it is the thread's clock
		defer runtime.UnlockOSThread()
	}
	for i := range c.mix.Nodes {
		rate := 1.0
		if c.faults {
			rate += (2*rng.Float64() - 1) * c.mix.Drift
		}
		h := &host{c: c, pnn: protocol.PNN(i), rate: rate, offset: instant(1+rng.IntN(1000)) * sec, stable: protocol.NewMemory(protocol.Lines{}), room: 1 << 20}
		h.seg = newSegment(h, 0)
		c.hosts = append(c.hosts, h)
	}
	for _, h := range c.hosts {
		c.after(c.between(0, 5*ms), h.boot)
	}
	for _, h := range c.hosts {
		for range c.mix.Clients {
			h.attach()
		}
	}
	if c.faults {
		c.plan()
	}
	c.after(0, c.audit)
	if c.mix.Arbiter {
		c.arbitrate()
	}
	c.until(instant(c.mix.Millis) * ms)
	c.heal()
	c.check.settle()
	res.Undecided = c.check.linearizable()
	res.Failures, res.Hash, res.Acked, res.Recovered, res.Steps = c.check.failures, c.hash.Sum64(), c.check.acked, c.check.recovs, c.steps
	res.Virtual = time.Duration(c.now)
	res.Histories = len(c.check.keys)
	if o.Handling != NoHandling {
		res.Handled = &c.tally
	}
	for _, h := range c.hosts {
		c.cover.ends(h)
	}
	res.Coverage = c.cover.result()
	return res
}

// until runs all events up to t.
func (c *Cluster) until(t instant) {
	for len(c.events) > 0 && c.events[0].at <= t {
		e := c.events.pop()
		c.now = e.at
		c.steps++
		c.happen(&e)
		if len(c.check.failures) > 0 && c.opt.Trace == nil {
			return
		}
		if c.steps > 20_000_000 {
			c.check.fail("endless", "20 million events")
			return
		}
	}
	c.now = t
}

// plan the faults: each kind is a Poisson process of its own.
func (c *Cluster) plan() {
	every := func(perSecond float64, f func()) {
		if perSecond == 0 {
			return
		}
		var next func()
		next = func() {
			if !c.faults {
				return
			}
			f()
			c.after(instant(c.rng.ExpFloat64()*float64(sec)/perSecond), next)
		}
		c.after(instant(c.rng.ExpFloat64()*float64(sec)/perSecond)+20*ms, next)
	}
	any := func() *host { return c.hosts[c.rng.IntN(len(c.hosts))] }
	m := &c.mix
	every(m.Crash, func() { c.restart(any(), true) })
	every(m.Warm, func() {
		if c.chance(0.1) { // all dispatchers at once
			for _, h := range c.hosts {
				c.restart(h, false)
			}
			return
		}
		c.restart(any(), false)
	})
	every(m.Pause, func() { any().pause(c.between(ms, 500*ms)) })
	every(m.Cut, c.partition)
	every(m.OneWay, func() {
		a, b := any(), any()
		if a == b {
			return
		}
		c.trace("cut %d > %d", a.pnn, b.pnn)
		c.cutTo[a.pnn] |= 1 << b.pnn
		c.after(c.between(10*ms, 600*ms), func() { c.cutTo[a.pnn] &^= 1 << b.pnn })
	})
	every(m.Mute, func() {
		a, b := any(), any()
		if a == b {
			return
		}
		c.trace("mute %d > %d", a.pnn, b.pnn)
		c.muteTo[a.pnn] |= 1 << b.pnn
		c.after(c.between(10*ms, 2000*ms), func() { c.muteTo[a.pnn] &^= 1 << b.pnn })
	})
	every(m.Stalls, func() { c.stalls(any(), c.between(60*ms, 190*ms), 3+c.rng.IntN(10)) })
	every(m.Full, func() {
		h := any()
		c.trace("node %d is full", h.pnn)
		h.room = 0
		c.after(c.between(ms, 300*ms), func() { h.room = 1 << 20 })
	})
	every(m.Axe, func() {
		h := any()
		h.killAt = h.points + 1 + c.rng.IntN(30)
	})
	every(m.Drain, func() { c.leave(any()) })
	every(m.File, func() { c.newFile(false) })
	if m.Arbiter {
		every(1, func() { any().noLock = c.now + c.between(0, 600*ms) })
	}
	every(m.Kill, c.kill)
}

// kill a client, and let another come.
func (c *Cluster) kill() {
	h := c.hosts[c.rng.IntN(len(c.hosts))]
	if len(h.clients) == 0 {
		return
	}
	h.clients[c.rng.IntN(len(h.clients))].die("kill -9")
	if c.check.working && !h.drains {
		h.attach()
	}
}

// restart a node: cold, it comes back with nothing and with new clients.
func (c *Cluster) restart(h *host, cold bool) {
	if !h.up {
		return
	}
	h.crash(cold)
	d := c.between(0, 30*ms)
	if c.chance(0.3) {
		d = c.between(0, 500*ms)
	}
	start := h.start
	c.after(d, func() {
		if h.start != start {
			return
		}
		lost := h.drains // a node that was about to leave has no clients any more
		h.boot()
		for i := 0; (cold || lost) && i < c.mix.Clients; i++ {
			h.attach()
		}
	})
}

// stalls of a dispatcher, again and again, never long enough for its death.
func (c *Cluster) stalls(h *host, d instant, times int) {
	if times > 0 && c.faults {
		h.pause(d)
		c.after(d+c.between(10*ms, 40*ms), func() { c.stalls(h, d, times-1) })
	}
}

// partition the cluster in two for a while.
func (c *Cluster) partition() {
	side := wire.Set(c.rng.Uint64()) & (1<<len(c.hosts) - 1)
	c.trace("partition %b", side)
	for i := range c.hosts {
		for j := range c.hosts {
			if side.Has(protocol.PNN(i)) != side.Has(protocol.PNN(j)) {
				c.cutTo[i] |= 1 << j
			}
		}
	}
	c.after(c.between(10*ms, 600*ms), func() {
		c.trace("partition heals")
		c.cutTo = [wire.MaxNodes]wire.Set{}
	})
}

// heal ends all faults; from now on everything has to finish.
func (c *Cluster) heal() {
	c.trace("HEAL")
	c.faults = false
	c.cutTo, c.muteTo = [wire.MaxNodes]wire.Set{}, [wire.MaxNodes]wire.Set{}
	c.newFile(true)
	for _, h := range c.hosts {
		h.room, h.noLock, h.killAt = 1<<20, 0, 0
		h.resume()
		if !h.up {
			h.start++ // no other start
			h.boot()
		}
	}
	c.calm()
	c.check.working = false
	c.check.draining = true
}

// calm: clients go on, die and give up, and all that waits has to be woken in time.
func (c *Cluster) calm() {
	limit := c.now + 2*sec
	for c.restless() != "" && c.now < limit && len(c.check.failures) == 0 {
		c.until(c.now + 20*ms)
	}
	c.quitting = !c.fixed
	for end := c.now + calmAfter + 250*ms; c.now < end && len(c.check.failures) == 0; {
		c.until(c.now + c.between(ms, 50*ms))
		if c.mix.Kill > 0 && c.check.working && c.quitting && c.chance(0.3) {
			c.kill()
		}
	}
	c.quitting = false
}

// settle: S7, S8, S4.
func (k *checker) settle() {
	c := k.c
	busy := "?"
	for range 400 {
		if len(k.failures) > 0 && c.opt.Trace == nil {
			return
		}
		c.until(c.now + 50*ms)
		if busy = k.quiet(); busy == "" {
			break
		}
	}
	if busy != "" {
		k.fail("S7", "20 s after the last fault: %s", busy)
		return
	}
	// S8: every key can be had from every node.
	done := 0
	want := 0
	for _, h := range c.hosts {
		if !c.openAll(h) {
			return
		}
		cl := &client{h: h, id: 3000 + protocol.ClientID(h.pnn), seg: h.seg, alive: true, idle: true}
		h.clients = append(h.clients, cl)
		for i, key := range k.keys {
			if len(k.keys) > 40 && i%(len(k.keys)/20) != int(h.pnn) {
				continue // of hundreds a few at each node
			}
			want++
			o := &operation{cl: cl, db: uint32(key[0]), key: key[1:], m: wire.Message{Op: wire.ReqFetch, DBID: uint32(key[0]), Key: []byte(key[1:]), Timeout: 1000}}
			cl.idle = false
			o.call, o.life = c.now, h.seg.life
			o.hist = k.invoke(o)
			cl.wait = o
			o.submit()
			for i := 0; i < 400 && !o.ended; i++ {
				c.until(c.now + 5*ms)
			}
			if !o.ended {
				k.fail("S8", "%q can't be fetched from node %d", key[1:], h.pnn)
				return
			}
			done++
		}
	}
	c.until(c.now + 100*ms) // PINGs tell that nothing is pending
	k.final()
	k.floors()
}

// openAll opens the databases at a node, as a client of it does first.
func (c *Cluster) openAll(h *host) bool {
	if !c.mix.Open {
		return true
	}
	for _, db := range [2]uint32{dbKV, dbPieces} {
		cl := &client{h: h, id: 3500 + protocol.ClientID(100*db) + protocol.ClientID(h.pnn), seg: h.seg, alive: true, manual: true}
		h.clients = append(h.clients, cl)
		o := cl.opening(db, modeOf(db))
		o.start()
		for i := 0; i < 400 && !o.ended; i++ {
			c.until(c.now + 5*ms)
		}
		if !o.ended {
			c.check.fail("S8", "database %d can't be opened at node %d", db, h.pnn)
			return false
		}
	}
	return true
}
