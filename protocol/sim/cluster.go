package sim

import (
	"encoding/binary"
	"fmt"
	"hash"
	"math/rand/v2"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/protocol/wire"
)

type instant = protocol.Instant

const (
	us  = link.Microsecond
	ms  = link.Millisecond
	sec = link.Second
)

// Options of a run. Zero values are drawn from the seed.
type Options struct {
	Seed  uint64
	Nodes int    // 2 to 64; 0: drawn, 2 to 7
	Plant string // a planted bug, of protocol.Plants or of Plants here
	Quiet bool   // no faults
	Trace func(line string)
	// Millis of virtual time with faults; 0: drawn.
	Millis int
	// Aim draws more of the faults that the planted bug needs.
	Aim bool
	// Mix, if not nil, is used instead of one that is drawn.
	Mix *Mix
	// Handling: how long dispatchers are busy. CPU is the clock of the thread's CPU in
	// nanoseconds, for CPUTime.
	Handling Handling
	CPU      func() int64
}

// Mix is what was drawn: printed with the seed.
type Mix struct {
	Nodes   int     `json:"nodes"`
	Clients int     `json:"clients"`
	Millis  int     `json:"ms"`
	Loss    float64 `json:"loss"`
	Repeat  float64 `json:"repeat"`
	Delay   instant `json:"delay_ns"`
	Tail    instant `json:"tail_ns"`
	Drift   float64 `json:"drift"` // rates within 1 ± Drift
	Crash   float64 `json:"crash"` // events per second of the cluster
	Warm    float64 `json:"warm"`  // events per second of the cluster
	Pause   float64 `json:"pause"` // events per second of the cluster
	Cut     float64 `json:"cut"`
	OneWay  float64 `json:"one_way"`
	Kill    float64 `json:"kill"`
	Full    float64 `json:"full"`  // stores without room
	Stall   float64 `json:"stall"` // chance that a client is slow inside an operation
	Policy  string  `json:"policy"`
	Keys    int     `json:"keys"`
	Cap     int     `json:"cap_bytes"` // bytes of a store, a third of them in reserve; 0: no bound
	Open    bool    `json:"open"`      // databases are opened by those who use them
	Drain   float64 `json:"drain"`     // nodes that leave on purpose
	File    float64 `json:"file"`      // changes of the nodes file
	Arbiter bool    `json:"arbiter"`   // half of the nodes go on with its lock
	Promise bool    `json:"promise"`   // each node has a promise file, and a clock that is set anew at each start
}

func (m Mix) String() string {
	return fmt.Sprintf("nodes %d clients %d ms %d loss %.2f repeat %.2f delay %dus tail %dus drift %.3f crash %.1f warm %.1f pause %.1f cut %.1f oneway %.1f kill %.1f full %.1f stall %.2f policy %s keys %d cap %d open %v drain %.1f file %.1f arbiter %v promise %v",
		m.Nodes, m.Clients, m.Millis, m.Loss, m.Repeat, m.Delay/us, m.Tail/us, m.Drift, m.Crash, m.Warm, m.Pause, m.Cut, m.OneWay, m.Kill, m.Full, m.Stall, m.Policy, m.Keys, m.Cap, m.Open, m.Drain, m.File, m.Arbiter, m.Promise)
}

// Cluster is one run.
type Cluster struct {
	opt     Options
	mix     Mix
	rng     *rand.Rand
	now     instant // real time, which no node sees
	events  events
	buffers [][]byte // of datagrams that have arrived
	seq     uint64
	hosts   []*host
	cutTo   [wire.MaxNodes]wire.Set // from → to whom nothing gets through
	check   *checker
	faults  bool
	aside   bool // inside a step of a dispatcher
	hash    hash.Hash64
	steps   uint64
	cmsgs   uint64 // DATA messages
	conf    conditions
	rules   []rule
	fixed   bool                    // every datagram takes mix.Delay
	hot     bool                    // all clients lock and store one record
	figures bool                    // for measuring, not for checking
	control map[wire.Op]int         // messages of recoveries, if it is not nil
	ballots map[protocol.Epoch]bool // of PREPAREs, counted with them
	claimed [wire.MaxNodes]int      // claims sent to each node, counted with them
	files   []wire.Set              // unused lines by version of the nodes file
	lock    arbiterLock
	doing   *host   // whose step is under way, with handling time
	late    []event // what it sends, at delays from its end
	tally   Steps
	faulty  bool // a script breaks promises between nodes on purpose
}

func (c *Cluster) trace(format string, args ...any) {
	if c.opt.Trace != nil {
		c.opt.Trace(fmt.Sprintf("%10.3f  ", float64(c.now)/1e6) + fmt.Sprintf(format, args...))
	}
}

func (c *Cluster) chance(p float64) bool { return c.rng.Float64() < p }

func (c *Cluster) between(a, b instant) instant { return a + instant(c.rng.Int64N(int64(b-a)+1)) }

// host is one node's machine.
type host struct {
	c       *Cluster
	pnn     protocol.PNN
	rate    float64
	offset  instant
	up      bool // the dispatcher runs
	paused  bool
	backlog []func()
	node    *protocol.Node
	link    *link.Link
	stable  *protocol.Stable
	seg     *segment
	eff     protocol.Effects
	clients []*client
	nextID  protocol.ClientID
	start   int // how often it was started
	tickAt  instant
	room    uint32
	inc     uint64
	told    protocol.Epoch // of the newest event
	file    uint32
	drains  bool
	noLock  instant // until then the arbiter is out of reach
	brim    bool    // not even the reserve has room: a fault
	wall    instant // by which its wall clock is ahead
	in      inbox
	bill    bill
}

// clock is the host's own reading of real time t.
func (h *host) clock(t instant) instant { return h.offset + instant(float64(t)*h.rate) }

func (h *host) now() instant { return h.clock(h.c.now) }

// run does f on the dispatcher's thread: later, if that stands still; never, if
// the dispatcher was restarted meanwhile.
func (h *host) run(f func()) {
	if !h.up {
		return
	}
	if h.paused {
		if len(h.backlog) < 2000 {
			h.backlog = append(h.backlog, f)
		}
		return
	}
	if h.c.opt.Handling != NoHandling && h.c.doing == nil {
		h.in.all = append(h.in.all, event{host: h, start: h.start, f: f})
		h.workOff()
		return
	}
	f()
	h.flush()
}

// later is run after d of real time, by this incarnation.
func (h *host) later(d instant, f func()) {
	start := h.start
	h.c.after(d, func() {
		if h.start == start {
			h.run(f)
		}
	})
}

// boot starts the dispatcher over whatever memory there is.
func (h *host) boot() { h.step("start", h.begin) }

func (h *host) begin() {
	h.start++
	h.up, h.paused, h.backlog, h.in = true, false, nil, inbox{}
	h.inc = h.c.rng.Uint64() | 1
	l, err := link.New(link.Config{Self: h.pnn, Nodes: len(h.c.hosts), Incarnation: h.inc, Cluster: 0x6d7a, MTU: h.c.mtu()})
	if err != nil {
		panic(err)
	}
	h.link = l
	h.link.SetEpoch(h.stable.Taken)
	for _, r := range h.seg.recs {
		r.waits = false
	}
	h.eff = protocol.Effects{}
	if h.c.mix.Promise && !h.c.fixed {
		h.wall = h.c.between(-3600*sec, 3600*sec)
	}
	plant := h.c.opt.Plant
	if !isCorePlant(plant) {
		plant = ""
	}
	h.node = protocol.New(h.now(), protocol.Config{Self: h.pnn, Nodes: len(h.c.hosts), Incarnation: h.inc, Seed: h.c.rng.Uint64(), WallMS: int64(1_699_999_999_000 + (h.c.now+h.wall)/ms), Start: h.now(),
		Hash: hashKey, Mode: h.c.mode(), NodesFile: h.file, Unused: h.c.files[h.file], Arbiter: h.c.mix.Arbiter, RoomShare: h.c.mix.share(), Conditions: h.c.conf, Policy: policyByName(h.c.mix.Policy), Plant: plant, MaxPending: 4096, MaxParked: 4096,
		Fault: func(what string) {
			if !h.c.faulty {
				h.c.check.fail("fault", "node %d: %s", h.pnn, what)
			}
			h.c.trace("node %d fault: %s", h.pnn, what)
		}}, h.stable, hostStore{h})
	h.tickAt, h.drains = 0, false
	h.flush()
}

// mode is the fixed table of databases, if they are not opened.
func (c *Cluster) mode() func(db uint32) protocol.Mode {
	if c.mix.Open {
		return nil
	}
	return modeOf
}

func (m *Mix) share() int {
	if m.Cap > 0 {
		return 64
	}
	return 0
}

// hashKey is FNV-1a with a finish that the high bits need.
func hashKey(db uint32, key []byte) uint64 {
	v := uint64(14695981039346656037)
	for i := range 4 {
		v = (v ^ uint64(byte(db>>(8*i)))) * 1099511628211
	}
	for _, b := range key {
		v = (v ^ uint64(b)) * 1099511628211
	}
	v ^= v >> 29
	return v * 0xbf58476d1ce4e5b9
}

const (
	dbKV     = 1
	dbPieces = 2
)

func modeOf(db uint32) protocol.Mode {
	switch db {
	case dbKV:
		return protocol.KV
	case dbPieces:
		return protocol.Pieces
	}
	return protocol.NoMode
}

func policyByName(s string) protocol.Policy {
	switch s {
	case "always":
		return protocol.PolicyAlways{}
	case "never":
		return protocol.PolicyNever{}
	case "adaptive":
		return protocol.PolicyAdaptive(3)
	}
	return protocol.PolicyPlan(2)
}

// flush carries out what the node and the link want done.
func (h *host) flush() {
	for range 100 {
		h.node.Take(&h.eff)
		e := &h.eff
		if e.SetEpoch != 0 {
			h.link.SetEpoch(e.SetEpoch)
			h.c.check.took(h, e.SetEpoch)
		}
		if e.Cancel != 0 {
			h.link.Cancel(h.now(), e.Cancel)
		}
		for i := range e.Sends {
			s := &e.Sends[i]
			if h.c.opt.Trace != nil {
				h.c.traceSend(h, s)
			}
			if s.Ch == protocol.Data {
				h.c.cmsgs++
			} else if h.c.control != nil {
				h.c.countControl(s)
			}
			h.link.Send(h.now(), s.To, s.Ch, s.Epoch, s.DBID, s.Packet, s.Token)
		}
		if e.Event.Epoch != 0 {
			h.c.check.event(h, &e.Event)
		}
		if e.LockValue != 0 {
			h.c.store(h, e.LockValue)
		}
		if len(e.Replies) > 0 && e.Gate.State == protocol.GateOpen && h.told != e.Gate.Epoch {
			h.c.check.fail("event", "node %d answers in epoch %x and its clients know of %x", h.pnn, e.Gate.Epoch, h.told)
		}
		for i := range e.Replies {
			r := e.Replies[i]
			r.Data = append([]byte(nil), r.Data...)
			h.reply(r)
		}
		h.setGate(e)
		if e.Freeze {
			h.pass(e.PassNum)
		}
		h.transmit()
		if !e.Retry || !h.link.Holding() {
			break
		}
		h.link.Retry(h.now(), handler{h})
	}
	next := min(h.eff.Next, h.link.Next())
	at := instant(float64(next-h.offset)/h.rate) + 1
	if next == protocol.Never {
		at = h.c.now + sec
	}
	at = max(at, h.c.now+us)
	if h.tickAt == 0 || at < h.tickAt || h.tickAt <= h.c.now {
		h.tickAt = at
		h.c.schedule(at-h.c.now, event{host: h, start: h.start})
	}
}

// tick is the dispatcher's timer.
func (h *host) tick() {
	h.link.Tick(h.now())
	h.node.Tick(h.now())
	if h.tickAt <= h.c.now {
		h.tickAt = 0
	}
}

// countControl counts a message of a recovery, and the claims in it.
func (c *Cluster) countControl(s *protocol.Send) {
	var m wire.Message
	if err := wire.Decode(s.Packet, &m); err != nil {
		panic(err)
	}
	c.control[m.Op]++
	if m.Op == wire.Prepare && c.ballots != nil {
		c.ballots[m.Promise] = true
	}
	if m.Op == wire.Claims {
		for rest := m.Rows; len(rest) > 0; {
			_, rest, _ = wire.NextClaim(rest)
			c.claimed[s.To]++
		}
	}
}

func (h *host) setGate(e *protocol.Effects) {
	s := h.seg
	if s.gate != e.Gate {
		was := s.gate.State
		s.gate = e.Gate
		s.word++
		if e.Gate.State == protocol.GateOpen && was != protocol.GateOpen {
			h.c.trace("node %d OPEN epoch %x", h.pnn, e.Gate.Epoch)
			h.c.check.gateOpens(h)
		} else if was != e.Gate.State {
			h.c.trace("node %d gate %d epoch %x", h.pnn, e.Gate.State, e.Gate.Epoch)
		}
	}
	s.lease = e.Lease
}

// transmit puts the link's datagrams on the wire.
func (h *host) transmit() {
	c := h.c
	for _, d := range h.link.Take() {
		to := c.hosts[d.To]
		b := d.Bytes
		if !c.figures {
			c.hash.Write(b[:64])
		}
		h.bill.sent++
		h.bill.bytes += len(b)
		for n := 1; n > 0; n-- {
			if c.faults && c.chance(c.mix.Repeat) {
				n++
			}
			if c.cutTo[h.pnn].Has(d.To) || c.faults && c.chance(c.mix.Loss) {
				continue
			}
			delay := c.between(c.mix.Delay/2, c.mix.Delay)
			if c.fixed {
				delay = c.mix.Delay
			}
			if lost, more := c.apply(b, &delay); lost {
				continue
			} else {
				n += more
			}
			if c.faults && c.chance(0.02) {
				delay += c.between(0, c.mix.Tail)
			}
			c.schedule(delay, event{host: to, b: c.buffer(b)})
		}
	}
}

// handler is the host as its link sees it.
type handler struct{ *host }

func (h handler) Step(now instant, from wire.PNN, ch link.Channel, epoch wire.Epoch, dbid uint32, p []byte) link.Verdict {
	v := h.node.Step(now, from, ch, epoch, dbid, p)
	h.c.traceStep(h.host, from, ch, p, v)
	return v
}
func (h handler) Acked(now instant, token uint64)                     { h.node.Acked(now, token) }
func (h handler) Refused(now instant, token uint64)                   { h.node.Refused(now, token) }
func (h handler) Peer(now instant, p wire.PNN, ev protocol.PeerEvent) { h.node.Peer(now, p, ev) }

func (c *Cluster) traceSend(h *host, s *protocol.Send) {
	var m wire.Message
	m.DBID = s.DBID
	if wire.Decode(s.Packet, &m) != nil || m.Op == wire.Ping || m.Op == wire.Pong {
		return
	}
	c.trace("%d > %d  %s", h.pnn, s.To, describe(&m, s.Epoch))
}

func (c *Cluster) traceStep(h *host, from wire.PNN, ch link.Channel, p []byte, v link.Verdict) {
	if c.opt.Trace == nil || v == link.Handled {
		return
	}
	var m wire.Message
	if wire.Decode(p, &m) == nil {
		c.trace("%d < %d  %s: %s", h.pnn, from, m.Op, [...]string{"handled", "not yet", "refused"}[v])
	}
}

func describe(m *wire.Message, epoch wire.Epoch) string {
	s := m.Op.String()
	if len(m.Key) > 0 {
		s += fmt.Sprintf(" %q", m.Key)
	}
	if m.ReqID != 0 {
		s += fmt.Sprintf(" reqid %d", m.ReqID)
	}
	if m.Via != 0 {
		s += fmt.Sprintf(" via %d", m.Via)
	}
	switch m.Op {
	case wire.RequestDMaster, wire.ReplyDMaster:
		s += fmt.Sprintf(" rsn %d to VNN %d data %q", m.RSN, m.DMaster, m.Data)
	case wire.ReplyError:
		s += " " + m.Status.String()
	case wire.ReqWatch:
		s += fmt.Sprintf(" rsn %d", m.RSN)
	case wire.ReplyWatch:
		s += fmt.Sprintf(" rsn %d why %d", m.RSN, m.Why)
	case wire.ReplyRedirect:
		s += fmt.Sprintf(" to VNN %d", m.DMaster)
	case wire.Prepare, wire.Promise, wire.NewMap:
		s += fmt.Sprintf(" ballot %x", m.Promise)
	default:
		if len(m.Data) > 0 {
			s += fmt.Sprintf(" data %q", m.Data)
		}
	}
	if m.Op.IsRequest() {
		s += fmt.Sprintf(" op %d.%d", m.OPID.PNN, m.OPID.Counter)
	}
	return s + fmt.Sprintf(" (epoch %x)", epoch)
}

// pass looks at the handles until each was seen outside. A client that stays
// inside for too long is killed.
func (h *host) pass(num uint64) {
	seg := h.seg
	limit := h.c.now + 60*ms
	var look func()
	look = func() {
		if seg != h.seg {
			return
		}
		if seg.busy > 0 && h.c.now > limit {
			for _, cl := range h.clients {
				if cl.alive && cl.busy && cl.seg == seg {
					cl.die("evicted")
				}
			}
		}
		if seg.busy > 0 {
			h.later(200*us, look)
			return
		}
		h.node.Frozen(h.now(), num)
	}
	h.later(h.c.between(5*us, 50*us), look)
}

// newLife: the node is a joiner and starts an empty segment.
func (h *host) newLife(life uint64) {
	h.seg.gate.State = protocol.GateDead
	h.seg.word++
	h.c.check.lifeEnds(h)
	h.seg = newSegment(h, life)
	h.c.trace("node %d new life %x", h.pnn, life)
}

// crash ends the dispatcher; cold: the memory goes with it, and the clients.
func (h *host) crash(cold bool) {
	if !h.up {
		return
	}
	h.c.trace("node %d crash cold=%v", h.pnn, cold)
	h.up, h.node, h.link, h.backlog, h.in = false, nil, nil, nil, inbox{}
	h.start++
	if cold {
		for _, cl := range h.clients {
			cl.die("crash")
		}
		h.seg.gate.State = protocol.GateDead
		h.seg.word++
		h.c.check.lifeEnds(h)
		h.seg = newSegment(h, 0)
		if h.c.mix.Promise {
			h.stable = h.stable.Wiped()
			return
		}
		h.stable = protocol.NewStable()
		h.file = uint32(len(h.c.files) - 1)
	}
}

func (h *host) pause(d instant) {
	if !h.up || h.paused {
		return
	}
	h.c.trace("node %d pause %dms", h.pnn, d/ms)
	h.paused = true
	start := h.start
	h.c.after(d, func() {
		if h.start == start {
			h.resume()
		}
	})
}

func (h *host) resume() {
	if !h.paused {
		return
	}
	h.c.trace("node %d resumes", h.pnn)
	h.paused = false
	work := h.backlog
	h.backlog = nil
	start := h.start
	for _, f := range work {
		if h.start != start {
			return
		}
		h.run(f)
	}
	if h.up {
		h.tickAt = 0
		h.step("resume", h.flush)
		h.workOff()
	}
}

// rule is one mishap that a script asks for: to the next datagram that carries
// a message of this opcode.
type rule struct {
	op    wire.Op
	verb  string // lose, repeat, late, when
	delay instant
	crash *host // when: who crashes, and whether it forgets
	cold  bool
}

// apply the first rule that fits a datagram, once.
func (c *Cluster) apply(b []byte, delay *instant) (lost bool, more int) {
	if len(c.rules) == 0 {
		return false, 0
	}
	var h wire.Header
	payload, err := wire.DecodeHeader(b, 0x6d7a, &h)
	if err != nil || len(payload) < 4 {
		return false, 0
	}
	op := wire.Op(binary.LittleEndian.Uint32(payload))
	for i, r := range c.rules {
		if r.op != op {
			continue
		}
		c.rules = append(c.rules[:i:i], c.rules[i+1:]...)
		c.trace("    (%s: %s %d > %d)", r.verb, op, h.Src, h.Dst)
		switch r.verb {
		case "lose":
			return true, 0
		case "repeat":
			return false, 1
		case "when":
			c.after(0, func() { r.crash.crash(r.cold) })
			return false, 0
		}
		*delay += r.delay
		return false, 0
	}
	return false, 0
}
