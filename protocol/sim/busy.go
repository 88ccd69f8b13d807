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
	return instant(costStep + costCall*float64(b.calls) + costWalked*float64(b.walked) + costTouch*float64(touched) + costSent*float64(b.sent) + costByte*float64(b.bytes))
}

// ticksFirst is how many datagrams and requests a busy dispatcher takes before it
// looks at its clock again.
const ticksFirst = 32

// inbox is what has come to a dispatcher while it was busy.
type inbox struct {
	all   []event
	head  int
	tick  bool // the timer has fired meanwhile
	since int  // events since the last tick
	until instant
	wake  bool // the end of the present step is scheduled
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
	return fmt.Sprintf("%d steps of %.1f ms CPU, the longest of %.3f ms (%s); by the model %.1f ms", s.Count, float64(s.Total)/1e6, float64(s.Longest)/1e6, s.What, float64(s.Model)/1e6)
}

// Add the steps of another run.
func (s *Steps) Add(o *Steps) {
	s.Count, s.Total, s.Model = s.Count+o.Count, s.Total+o.Total, s.Model+o.Model
	if o.Longest > s.Longest {
		s.Longest, s.What = o.Longest, o.What
	}
}

// arrives: a datagram, a timer or a call for a dispatcher that takes its time.
func (c *Cluster) arrives(e *event) {
	h := e.host
	switch {
	case !h.up || e.b == nil && e.start != h.start:
		c.giveBack(e)
		return
	case h.paused && e.f != nil:
		h.run(e.f)
		return
	case h.paused:
		v := *e
		h.run(func() { h.handle(&v) })
		return
	}
	if e.b == nil && e.f == nil {
		h.in.tick = true
	} else {
		h.in.all = append(h.in.all, *e)
	}
	h.workOff()
}

func (c *Cluster) giveBack(e *event) {
	if e.b != nil {
		c.buffers = append(c.buffers, e.b)
	}
}

// workOff handles what waits, unless a step is under way.
func (h *host) workOff() {
	q, c := &h.in, h.c
	if c.doing != nil || q.wake || h.paused {
		return
	}
	for h.up && !h.paused && c.now >= q.until {
		var e event
		waiting := len(q.all) - q.head
		switch {
		case q.tick && (waiting == 0 || q.since >= ticksFirst):
			q.tick, q.since = false, 0
			e = event{host: h}
		case waiting > 0:
			e, q.all[q.head] = q.all[q.head], event{}
			q.since++
			if q.head++; q.head == len(q.all) {
				q.all, q.head = q.all[:0], 0
			}
		default:
			return
		}
		h.step(kind(&e), func() { h.handle(&e) })
	}
	if h.up && (q.tick || len(q.all) > q.head) && !h.paused {
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

// wakeUp goes on at the end of the present step.
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

// handle one event, and what the core and the link want done then.
func (h *host) handle(e *event) {
	switch {
	case e.f != nil:
		e.f()
	case e.b != nil:
		h.bill.bytes += len(e.b)
		h.link.Receive(h.now(), e.b, handler{h})
		h.c.giveBack(e)
	default:
		h.tick()
	}
	if h.up {
		h.flush()
	}
}

// step does f on the dispatcher's thread, which takes its time. What it sends leaves
// at the end of it.
func (h *host) step(what string, f func()) {
	c := h.c
	if c.opt.Handling == NoHandling || c.doing != nil {
		f()
		return
	}
	c.doing, h.bill = h, bill{}
	var touched uint64
	if h.node != nil {
		touched = h.node.Counters().Touched
	}
	node, start := h.node, c.cpu()
	f()
	cost := c.cpu() - start
	if h.node != nil {
		if h.node != node {
			touched = 0
		}
		touched = h.node.Counters().Touched - touched
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
