package sim

import (
	"fmt"

	"github.com/mainzdb/mainz/protocol"
)

// Handling says how long a simulated dispatcher is busy with what it handles.
type Handling uint8

const (
	// NoHandling: nothing takes any time.
	NoHandling Handling = iota
	// ModelTime: by a model of what is touched, copied and sent. A run stays a pure
	// function of its seed.
	ModelTime
	// CPUTime: what Options.CPU says. No two runs are the same.
	CPUTime
)

// bill is what one step of a dispatcher touches.
type bill struct {
	calls  int // of the store
	walked int // records that walks of the store came by
	sent   int // datagrams
	bytes  int // of datagrams, in and out
}

// What the model charges, in nanoseconds. TestHandlingModel prints how it compares
// with the CPU that the same steps take.
const (
	costStep   = 700  // a datagram, a request or a tick
	costCall   = 120  // a call of the store
	costWalked = 60   // a record in a walk
	costTouch  = 90   // an entry of the core's tables
	costSent   = 450  // a datagram that goes out
	costByte   = 0.25 // copying and sums
)

// cost of a step by the model; touched is the core's count.
func (b *bill) cost(touched uint64) instant {
	return instant(costStep + costCall*float64(b.calls) + costWalked*float64(b.walked) + costTouch*float64(touched) +
		costSent*float64(b.sent) + costByte*float64(b.bytes))
}

// ticksFirst is how many datagrams and requests a busy dispatcher takes before it
// looks at its clock again.
const ticksFirst = 32

// maxInbox is how much waits for a dispatcher that stands still; datagrams beyond it
// are lost.
const maxInbox = 2000

// inbox is what has come to a dispatcher and waits for its next turn.
type inbox struct {
	all   []event
	head  int
	tick  bool // the timer has fired meanwhile
	since int  // events since the last tick
	until instant
	wake  bool // the next turn is scheduled
}

func (q *inbox) waiting() int { return len(q.all) - q.head }
func (q *inbox) empty() bool  { return !q.tick && q.waiting() == 0 }

// next thing to do.
func (q *inbox) next(host *host) (e event, ok bool) {
	switch {
	case q.tick && (q.waiting() == 0 || q.since >= ticksFirst):
		q.tick, q.since = false, 0
		return event{host: host}, true
	case q.waiting() > 0:
		e, q.all[q.head] = q.all[q.head], event{}
		q.since++
		if q.head++; q.head == len(q.all) {
			q.all, q.head = q.all[:0], 0
		}
		return e, true
	}
	return event{}, false
}

// Steps are what the dispatchers of a run took, with handling time.
type Steps struct {
	Count   uint64  `json:"steps"`
	Total   instant `json:"ns"`
	Longest instant `json:"longest_ns"`
	What    string  `json:"longest_what"` // what came in: a datagram, a call, the clock's tick, a start
	Model   instant `json:"model_ns"`     // what the model says to them all
}

func (s *Steps) String() string {
	return fmt.Sprintf("%d steps of %.1f ms CPU, the longest of %.3f ms (%s); by the model %.1f ms", s.Count,
		float64(s.Total)/1e6, float64(s.Longest)/1e6, s.What, float64(s.Model)/1e6)
}

// Add the steps of another run.
func (s *Steps) Add(o *Steps) {
	s.Count, s.Total, s.Model = s.Count+o.Count, s.Total+o.Total, s.Model+o.Model
	if o.Longest > s.Longest {
		s.Longest, s.What = o.Longest, o.What
	}
}

// feed the dispatcher: a datagram, its timer or a call. It does one thing in a turn, at
// once, unless it takes time for what it handles, or takes its time to come round: then
// it does what has come by then, up to so many things as are drawn, and flushes once.
func (h *host) feed(e *event) {
	c, q := h.c, &h.in
	switch {
	case !h.up || e.b == nil && e.start != h.start:
		c.giveBack(e)
	case !h.paused && (c.doing != nil || c.opt.Handling == NoHandling && c.mix.Turn <= 1 && q.empty()):
		if h.killAt != 0 {
			v := *e
			h.guard(func() { h.doOne(&v) })
			return
		}
		h.doOne(e)
	case e.b == nil && e.f == nil:
		q.tick = true
		h.come()
	case e.b != nil && q.waiting() >= maxInbox:
		c.giveBack(e)
	default:
		q.all = append(q.all, *e)
		h.come()
	}
}

// doOne thing, and what the core and the link want done then.
func (h *host) doOne(e *event) {
	h.do(e)
	if h.up {
		h.flush()
	}
}

func (c *Cluster) giveBack(e *event) {
	if e.b != nil {
		c.buffers = append(c.buffers, e.b)
	}
}

// come round to what waits: at once, or in a moment in which more may come.
func (h *host) come() {
	q, c := &h.in, h.c
	if c.mix.Turn > 1 && !q.wake && !h.paused && c.now >= q.until {
		q.until = c.now + c.between(0, 30*us)
		h.wakeUp()
		return
	}
	h.workOff()
}

// workOff does what waits, unless a step is under way.
func (h *host) workOff() {
	q, c := &h.in, h.c
	if c.doing != nil || q.wake || h.paused {
		return
	}
	for h.up && !h.paused && c.now >= q.until {
		e, ok := q.next(h)
		if !ok {
			return
		}
		h.step(kind(&e), func() { h.turn(&e) })
		if c.mix.Turn > 1 {
			q.until = max(q.until, c.now+c.between(0, 30*us))
		}
	}
	if h.up && !q.empty() && !h.paused {
		h.wakeUp()
	}
}

func kind(e *event) string {
	switch {
	case e.b != nil:
		return "datagram"
	case e.f != nil:
		return "call"
	}
	return "tick"
}

// wakeUp goes on when the next turn may begin.
func (h *host) wakeUp() {
	start := h.start
	h.in.wake = true
	h.c.after(h.in.until-h.c.now, func() {
		if h.start == start {
			h.in.wake = false
			h.workOff()
		}
	})
}

// turn of the dispatcher's loop: one thing, or several, then what the core and the
// link want done.
func (h *host) turn(first *event) {
	n, start := 1, h.start
	if h.c.mix.Turn > 1 {
		n = 1 + h.c.rng.IntN(h.c.mix.Turn)
	}
	for e, ok := *first, true; ok && n > 0 && h.start == start; n-- {
		h.do(&e)
		if n > 1 {
			e, ok = h.in.next(h)
		}
	}
	if h.up && h.start == start {
		h.flush()
	}
}

// step does f on the dispatcher's thread, which takes its time. What it sends leaves
// at the end of it.
func (h *host) step(what string, f func()) {
	c := h.c
	if c.opt.Handling == NoHandling || c.doing != nil {
		h.guard(f)
		return
	}
	c.doing, h.bill = h, bill{}
	var touched uint64
	if h.node != nil {
		touched = h.node.Node().Counters().Touched
	}
	node, start := h.node, c.cpu()
	h.guard(f)
	cost := c.cpu() - start
	if h.node != nil {
		if h.node != node {
			touched = 0
		}
		touched = h.node.Node().Counters().Touched - touched
	}
	model := h.bill.cost(touched)
	if c.opt.Handling == ModelTime {
		cost = model
	}
	c.doing = nil
	h.in.until = c.now + cost
	s := &c.tally
	s.Count++
	s.Total += cost
	s.Model += model
	if cost > s.Longest {
		s.Longest, s.What = cost, what
	}
	for i := range c.late {
		e := &c.late[i]
		if e.host == h && e.b == nil && e.f == nil {
			c.schedule(max(e.at, cost), *e) // a timer does not wait twice
		} else {
			c.schedule(e.at+cost, *e)
		}
		c.late[i] = event{}
	}
	c.late = c.late[:0]
}

// cpu is the reading of the thread's clock, 0 if it is not asked.
func (c *Cluster) cpu() instant {
	if c.opt.Handling != CPUTime {
		return 0
	}
	return protocol.Instant(c.opt.CPU())
}
