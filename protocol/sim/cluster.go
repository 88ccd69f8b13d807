package sim

import (
	"encoding/binary"
	"fmt"
	"hash"
	"math/rand/v2"

	"github.com/mainzdb/mainz/protocol"
	drive "github.com/mainzdb/mainz/protocol/host"
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
	Limits  int     `json:"limits"`    // which limits are small: see limits; 0: none
	Large   bool    `json:"large"`     // values of several fragments
	Mute    float64 `json:"mute"`      // one way for DATA alone
	Stalls  float64 `json:"stalls"`    // in rows
	Promise bool    `json:"promise"`   // each node has a promise file, and a clock that is set anew at each start
	Axe     float64 `json:"axe"`       // dispatchers that die in the middle of a step
	Turn    int     `json:"turn"`      // a dispatcher's turn is up to so many calls; 1: each by itself, at once
}

func (m Mix) String() string {
	return fmt.Sprintf("nodes %d clients %d ms %d loss %.2f repeat %.2f delay %dus tail %dus drift %.3f crash %.1f warm %.1f pause %.1f cut %.1f oneway %.1f kill %.1f full %.1f stall %.2f policy %s keys %d cap %d open %v drain %.1f file %.1f arbiter %v mute %.1f stalls %.1f promise %v axe %.1f turn %d limits %d large %v",
		m.Nodes, m.Clients, m.Millis, m.Loss, m.Repeat, m.Delay/us, m.Tail/us, m.Drift, m.Crash, m.Warm, m.Pause, m.Cut, m.OneWay, m.Kill, m.Full, m.Stall, m.Policy, m.Keys, m.Cap, m.Open, m.Drain, m.File, m.Arbiter, m.Mute, m.Stalls, m.Promise, m.Axe, m.Turn, m.Limits, m.Large)
}

// Cluster is one run.
type Cluster struct {
	opt      Options
	mix      Mix
	rng      *rand.Rand
	now      instant // real time, which no node sees
	events   events
	buffers  [][]byte // of datagrams that have arrived
	seq      uint64
	hosts    []*host
	cutTo    [wire.MaxNodes]wire.Set // from → to whom nothing gets through
	muteTo   [wire.MaxNodes]wire.Set // from → to whom no DATA gets through
	check    *checker
	cover    *cover
	faults   bool
	aside    bool // inside a step of a dispatcher
	hash     hash.Hash64
	steps    uint64
	cmsgs    uint64 // DATA messages
	conf     conditions
	rules    []rule
	fixed    bool                    // every datagram takes mix.Delay
	hot      bool                    // all clients lock and store one record
	figures  bool                    // for measuring, not for checking
	control  map[wire.Op]int         // messages of recoveries, if it is not nil
	ballots  map[protocol.Epoch]bool // of PREPAREs, counted with them
	claimed  [wire.MaxNodes]int      // claims sent to each node, counted with them
	files    []wire.Set              // unused lines by version of the nodes file
	lock     arbiterLock
	parts    bool    // a recovery's steps and messages are as small as can be
	doing    *host   // whose step is under way, with handling time
	late     []event // what it sends, at delays from its end
	tally    Steps
	cut      int  // dispatchers that died in the middle of a step
	quitting bool // clients give up and die, though nothing else goes wrong
	faulty   bool // a script breaks promises between nodes on purpose
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
	c        *Cluster
	pnn      protocol.PNN
	rate     float64
	offset   instant
	up       bool // the dispatcher runs
	paused   bool
	node     *drive.Host
	stable   *protocol.Memory
	seg      *segment
	clients  []*client
	nextID   protocol.ClientID
	start    int // how often it was started
	tickAt   instant
	room     uint32
	inc      uint64
	took     protocol.Epoch // the last that the checker has seen it take
	told     protocol.Epoch // of the newest event
	file     uint32
	drains   bool
	noLock   instant         // until then the arbiter is out of reach
	brim     bool            // not even the reserve has room: a fault
	wall     instant         // by which its wall clock is ahead
	promised protocol.Words  // in the promise file
	writing  *protocol.Words // on its way there
	claims   claimed
	points   int   // stores of its dispatchers
	killAt   int   // its dispatcher dies before that one; 0: not so
	in       inbox // what waits for the dispatcher's next turn
	bill     bill
}

// clock is the host's own reading of real time t.
func (h *host) clock(t instant) instant { return h.offset + instant(float64(t)*h.rate) }

func (h *host) now() instant { return h.clock(h.c.now) }

// run does f on the dispatcher's thread, in its next turn; never, if the dispatcher
// is restarted before that.
func (h *host) run(f func()) { h.feed(&event{host: h, start: h.start, f: f}) }

// do one thing on the dispatcher's thread.
func (h *host) do(e *event) {
	switch {
	case e.f != nil:
		e.f()
	case e.b != nil:
		h.bill.bytes += len(e.b)
		h.node.Receive(h.now(), e.b)
		h.c.giveBack(e)
	default:
		h.tick()
	}
	h.looked()
}

// looked at the host behind one call: an epoch that it takes is seen before it sends.
func (h *host) looked() {
	if e := h.stable.Taken; e != h.took {
		h.took = e
		h.c.check.took(h, e)
	}
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
	h.up, h.paused, h.in = true, false, inbox{}
	h.inc = h.c.rng.Uint64() | 1
	for _, r := range h.seg.waited {
		r.waits = false
	}
	h.seg.waited = h.seg.waited[:0]
	if h.c.mix.Promise && !h.c.fixed {
		h.wall = h.c.between(-3600*sec, 3600*sec)
	}
	plant, linkPlant := h.c.opt.Plant, ""
	if isLinkPlant(plant) {
		linkPlant = plant
	}
	if !isCorePlant(plant) {
		plant = ""
	}
	small := h.c.mix.limits()
	if h.c.parts {
		small.budget, small.claims, small.batch = 1, 1, 1
	}
	cfg := drive.Config{
		Node: protocol.Config{Self: h.pnn, Nodes: len(h.c.hosts), Incarnation: h.inc, Seed: h.c.rng.Uint64(), WallMS: int64(1_699_999_999_000 + (h.c.now+h.wall)/ms), Start: h.now(),
			Hash: hashKey, Mode: h.c.mode(), NodesFile: h.file, Unused: h.c.files[h.file], Arbiter: h.c.mix.Arbiter, PromiseFile: h.c.mix.Promise, RoomShare: h.c.mix.share(), Hints: [...]int{64, 8, 1}[h.c.opt.Seed%3], MaxOffers: small.offers, Budget: small.budget, ClaimWindow: small.claims, Conditions: h.c.conf, Policy: policyByName(h.c.mix.Policy), Plant: plant, MaxTries: h.c.tries(),
			MaxPending: small.pending, MaxParked: small.parked, MaxDone: small.dones, MaxDBs: small.dbs, MaxWalks: small.walks, MaxMoved: small.moved, MaxAsks: small.asks, MaxHops: small.hops, ClaimBytes: small.batch,
			Fault: func(what string) {
				if !h.c.faulty {
					h.c.check.fail("fault", "node %d: %s", h.pnn, what)
				}
				h.c.trace("node %d fault: %s", h.pnn, what)
			}},
		Link:    &link.Config{Self: h.pnn, Nodes: len(h.c.hosts), Incarnation: h.inc, Cluster: 0x6d7a, MTU: h.c.mtu(), Window: small.window, MaxHeld: small.held, Plant: linkPlant},
		Sent:    h.sent,
		Stepped: h.stepped,
	}
	h.took = h.stable.Taken
	var err error
	if h.node, err = drive.New(h.now(), cfg, mortal{h.stable, h}, hostStore{h}, h.seg.gate, shell{h}); err != nil {
		panic(err)
	}
	h.tickAt, h.drains = 0, false
	h.flush()
	for _, cl := range h.clients {
		cl.again()
	}
}

// tries is how many parked requests a node tries at a time: half of the seeds interrupt
// it after one or two.
func (c *Cluster) tries() int {
	if c.figures || c.fixed {
		return 0
	}
	return []int{1, 2, 0, 0}[c.opt.Seed%4]
}

// save the promise file: it takes its time, and the dispatcher goes on.
func (h *host) save(number uint64, w protocol.Words) {
	c := h.c
	h.writing = &w
	d := instant(0)
	if !c.fixed {
		d = c.between(0, ms)
		if c.faults && c.chance(0.2) {
			d = c.between(0, 80*ms)
		}
	}
	start := h.start
	c.after(d, func() {
		if h.start != start || h.writing != &w {
			return // a newer one is on its way, which says it for both
		}
		h.promised, h.writing = w, nil
		h.run(func() { h.node.Saved(h.now(), number) })
	})
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
	return m.limits().room
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

// flush ends a turn: the node's effects, then its timer.
func (h *host) flush() {
	h.node.Flush(h.now())
	next := h.node.Next()
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
	h.node.Tick(h.now())
	if h.tickAt <= h.c.now {
		h.tickAt = 0
	}
}

// sent looks at a message on its way to the link.
func (h *host) sent(s *protocol.Send) {
	if h.c.opt.Trace != nil {
		h.c.traceSend(h, s)
	}
	h.c.cover.send(s)
	h.claiming(s)
	h.c.check.leaves(h, s)
	if s.Ch == protocol.Data {
		h.c.cmsgs++
	} else if h.c.control != nil {
		h.c.countControl(s)
	}
}

// claiming: under one ballot a record is claimed once.
func (h *host) claiming(s *protocol.Send) {
	var m wire.Message
	if h.c.figures || s.Kind != protocol.SendMessage || s.Ch != protocol.Control || wire.Decode(s.Packet, &m) != nil || m.Op != wire.Claims {
		return
	}
	if s.Epoch != h.claims.epoch || h.start != h.claims.start {
		h.claims = claimed{s.Epoch, h.start, map[string]bool{}}
	}
	for rest := m.Rows; len(rest) > 0; {
		var k wire.Claim
		k, rest, _ = wire.NextClaim(rest)
		if n := name(k.DBID, k.Key); k.Kind == wire.ClaimOwner {
			if h.claims.keys[n] {
				h.c.check.fail("claims", "node %d claims %q again under ballot %x", h.pnn, k.Key, s.Epoch)
			}
			h.claims.keys[n] = true
		}
	}
}

// claimed are the records that a node says it owns, under one ballot and in one start.
type claimed struct {
	epoch protocol.Epoch
	start int
	keys  map[string]bool
}

// stepped looks at a packet that the node has answered.
func (h *host) stepped(from protocol.PNN, ch protocol.Channel, packet []byte, v protocol.Verdict) {
	h.c.cover.step(packet, v)
	h.c.traceStep(h, from, ch, packet, v)
	h.c.check.arrives(ch, packet, v)
	h.looked()
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

// shell is the simulated machine as its node's host sees it.
type shell struct{ h *host }

func (sh shell) Gate(g protocol.Gate) {
	sh.h.point()
	h, s := sh.h, sh.h.seg
	was := s.gate.State
	s.gate = g
	s.word++
	if g.State == protocol.GateOpen && was != protocol.GateOpen {
		h.c.trace("node %d OPEN epoch %x", h.pnn, g.Epoch)
		h.c.check.gateOpens(h)
	} else if was != g.State {
		h.c.trace("node %d gate %d epoch %x", h.pnn, g.State, g.Epoch)
	}
}

func (sh shell) Lease(until protocol.Instant) { sh.h.point(); sh.h.seg.lease = until }
func (sh shell) Pass(number uint64)           { sh.h.pass(number) }
func (sh shell) Save(number uint64, w *protocol.Words) {
	sh.h.point()
	sh.h.save(number, *w)
}

func (sh shell) Databases()              {}
func (sh shell) Event(e *protocol.Event) { sh.h.point(); sh.h.c.check.event(sh.h, e) }

func (sh shell) Reply(r *protocol.Reply) {
	sh.h.point()
	h := sh.h
	if g := h.seg.gate; g.State == protocol.GateOpen && h.told != g.Epoch {
		h.c.check.fail("event", "node %d answers in epoch %x and its clients know of %x", h.pnn, g.Epoch, h.told)
	}
	v := *r
	v.Data = append([]byte(nil), r.Data...)
	h.reply(v)
}

func (sh shell) Doorbell() {}

func (sh shell) Lock(_ bool, value protocol.Epoch) {
	if value != 0 {
		sh.h.c.store(sh.h, value)
	}
}

// Datagram puts one on the wire.
func (sh shell) Datagram(to protocol.PNN, b []byte) {
	sh.h.point()
	h, c := sh.h, sh.h.c
	if !c.figures {
		c.hash.Write(b[:64])
	}
	h.bill.sent++
	h.bill.bytes += len(b)
	if b[3]&wire.FlagFrag != 0 {
		c.cover.frags++
	}
	for n := 1; n > 0; n-- {
		if c.faults && c.chance(c.mix.Repeat) {
			n++
		}
		if c.cutTo[h.pnn].Has(to) || c.muteTo[h.pnn].Has(to) && b[3]&wire.FlagData != 0 || c.faults && c.chance(c.mix.Loss) {
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
		c.schedule(delay, event{host: c.hosts[to], b: c.buffer(b)})
	}
}

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
	h.c.cover.ends(h)
	h.up, h.node, h.in = false, nil, inbox{}
	h.start++
	if w := h.writing; w != nil && h.c.chance(0.5) {
		h.promised = *w // it has come so far, and nobody was told
	}
	h.writing = nil
	if cold {
		for _, cl := range h.clients {
			cl.die("crash")
		}
		h.seg.gate.State = protocol.GateDead
		h.seg.word++
		h.c.check.lifeEnds(h)
		h.seg = newSegment(h, 0)
		if h.c.mix.Promise {
			h.stable = protocol.WithWords(h.promised, protocol.Lines{})
			return
		}
		h.stable = protocol.NewMemory(protocol.Lines{})
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
	h.paused = false
	if !h.up {
		return // it has crashed meanwhile
	}
	h.c.trace("node %d resumes", h.pnn)
	h.tickAt = 0
	h.step("resume", h.flush)
	h.workOff()
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
