package protocol

import (
	"fmt"
	"math/bits"

	"github.com/mainzdb/mainz/protocol/wire"
)

// nodeState is where a node stands between two openings of its gate.
type nodeState uint8

const (
	stFrozen nodeState = iota
	stPromised
	stMapped
	stClaimed
	stSettled
	stOpen
)

// Node is the protocol's state machine for one node. All methods belong to one
// goroutine; each is one step. After a step the caller takes the effects.
type Node struct {
	cfg   Config
	st    Stable
	s     *mirror // of st
	store Store
	rng   uint64 // state of the generator of jitter
	plant plant
	now   Instant

	state    nodeState
	gate     Gate
	lease    Instant
	openedAt Instant
	started  Instant
	passNum  uint64 // of the pass over the handles that was asked for last
	passDone bool

	byReq     map[ReqID]*pending
	again     map[call]*pending // from before the start, until they end
	tokens    map[uint64]*rec   // of carried copies and done entries under way
	nextToken uint64
	places    *places // of the records of others, as their LMASTER
	own       marks   // in a recovery
	hints     hints   // of the records of other LMASTERs
	peers     [wire.MaxNodes]peer
	lead      leading
	rv        recovery
	counter   uint64 // highest ballot counter seen
	nextPing  Instant
	wantedAt  Instant
	blamed    blame   // for the gate's being closed
	stalledAt Instant // this node's own loop stood still until then
	leaderAt  Instant // a leader's word came last
	leadDelay Instant

	dirty      []*rec
	job        work
	working    bool
	unlocked   bool    // what the dispatcher before this one had locked for nobody is free
	keys       []*rec  // of which copies and REQIDs were claimed
	claimed    batches // of claims
	verdict    batches // of verdicts
	supply     batches // of pieces
	isAlive    func(o OPID) bool
	claimThis  func(db uint32, key []byte, rsn uint64, empty bool)
	offerThis  func(db uint32, key []byte, rsn uint64, empty bool)
	supplyThis func(p *Piece)
	pendFirst  *pending // by OPID
	pendLast   *pending
	unfinished []*rec // have parked requests that were to be tried, for which there was no time
	tries      int    // of parked requests, since the last Tick
	parkedN    int
	pendN      int
	freePend   []*pending
	freeParked []*parked
	timersAt   Instant // no deadline is earlier
	roomOut    int64   // bytes, to records that may come for outstanding requests
	copies     int64   // bytes of carried copies: they may come back
	carriedN   int     // carried copies
	through    int     // of them copies of records that only pass
	crowded    bool    // a record was not let through for want of room
	leave      leave
	asks       []ask
	ended      []endedCall // answered
	endedOut   int         // so many of them by the last Take
	saves      uint64      // Effects.Save
	saved      uint64      // so far
	telling    uint8       // Stable.Tell: 1 when the next Take is over, 2 when the last one is
	walks      []walk
	walkings   []walking
	walkCount  uint64
	batch      []byte
	arb        arbiter
	locks      []heldLock
	broken     string // Effects.Fault

	view    Record  // what Look answers
	put     Record  // what Publish is given; a local one would escape
	msg     Message // the packet in Step
	scratch []byte
	rows    []byte      // of dones
	line    PendingLine // these are what Stable is given; local ones would escape
	dline   DoneLine
	lline   LockLine
	cline   CarriedLine
	tagbuf  []byte

	eff   Effects
	stats Counters
}

// call names an operation of a local client.
type call struct {
	client ClientID
	cookie uint64
}

// peer is what a node knows of another.
type peer struct {
	heard   Instant // our clock's reading in the newest PING that was answered
	grantT  Instant // the same, for the newest that was granted
	granted Instant // when we granted it a lease
	epoch   Epoch
	open    bool
	met     Instant // its present incarnation
	life    uint64
	floor   uint64
	letIn   Instant // join hold-off
	hold    Instant
	conduct conduct
	// progress of the recovery that it is in, as of its last PING.
	progress uint64
}

// Counters since the node's start.
type Counters struct {
	Requests, Redirects, Forwards, Handovers, Recoveries, Backoffs, Executed uint64
	Touched                                                                  uint64 // entries of tables, looked up or walked by
	Reached                                                                  [Limits]uint64
}

// New starts a node over its memory. If that is not fresh this is a warm restart:
// the gate stays closed until a recovery is over.
func New(now Instant, cfg Config, st Stable, store Store) *Node {
	cfg.defaults()
	n := &Node{cfg: cfg, st: st, s: &mirror{}, store: store, now: now, started: now, rng: cfg.Seed ^ uint64(cfg.Self)<<32, plant: plantByName(cfg.Plant),
		byReq: map[ReqID]*pending{}, again: map[call]*pending{}, tokens: map[uint64]*rec{}, timersAt: Never,
		places: &places{}, hints: make(hints, cfg.Hints)}
	n.claimed.op, n.verdict.op, n.supply.op = wire.Claims, wire.Verdicts, wire.Resupply
	n.isAlive, n.claimThis, n.offerThis, n.supplyThis = n.alive, n.claimOwn, n.offer, n.resupply
	for i := range n.peers {
		// We may have granted anybody a lease just before we forgot it: count it.
		n.peers[i].granted = now
		if n.plant == plantForgetGrants {
			n.peers[i].granted = -Never / 2
		}
		n.peers[i].heard, n.peers[i].grantT = -Never/2, -Never/2
	}
	n.load()
	n.gate = Gate{State: GateFrozen, Epoch: n.s.Taken, Life: n.s.Life}
	n.counter = max(n.s.Promised.Counter(), n.s.Taken.Counter())
	n.leaderAt, n.leadDelay = now, n.jitter(5*ms)
	n.blamed, n.stalledAt = nobody, -Never/2
	n.startPass()
	n.ping()
	n.wanted()
	n.finish()
	return n
}

// jitter is up to d, by a splitmix64 generator: nothing here needs a better one,
// and its whole state is one word.
func (n *Node) jitter(d Instant) Instant {
	n.rng += 0x9E3779B97F4A7C15
	z := n.rng
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return Instant((z ^ z>>31) % uint64(d+1))
}

func (n *Node) token(r *rec) uint64 {
	n.nextToken++
	n.tokens[n.nextToken] = r
	return n.nextToken
}

// begin and finish stand around every step.
func (n *Node) begin(now Instant) {
	if now > n.now {
		if now-n.now > n.cfg.DeadAfter/4 {
			n.stalledAt = now // the clock is read each heartbeat, at least
		}
		n.now = now
	}
}

func (n *Node) finish() {
	for i := 0; i < len(n.dirty); i++ { // grows while it runs; each round ends requests
		r := n.dirty[i]
		r.dirty = false
		n.settleRec(r)
	}
	n.dirty = n.dirty[:0]
}

// touch looks at a record again before the step ends, and at all that waits for it.
func (n *Node) touch(r *rec) {
	r.again = true
	n.look(r)
}

// look is touch after which nothing but what is due is tried of what waits.
func (n *Node) look(r *rec) {
	if !r.dirty {
		r.dirty = true
		n.dirty = append(n.dirty, r)
	}
}

func (n *Node) rec(db uint32, key []byte) *rec {
	n.stats.Touched++
	r := n.s.recs.get(n.cfg.Hash(db, key), db, key)
	n.touch(r)
	return r
}

// place is where a record of another node is, if this node is its LMASTER.
func (n *Node) place(r *rec) (location, bool) { return n.places.get(r.hash, r.db, r.key) }

func (n *Node) setPlace(r *rec, l location) { n.places.set(r.hash, r.db, r.key, l) }

func (n *Node) noPlace(r *rec) {
	if n.plant != plantKeepPlace {
		n.places.remove(r.hash, r.db, r.key)
	}
}

// lmaster is the node that knows where a key is, in the map taken last.
func (n *Node) lmaster(db uint32, key []byte) PNN {
	return n.s.Map.lmaster(n.cfg.Hash(db, key))
}

func (m *Map) lmaster(hash uint64) PNN {
	if len(m.Members) == 0 {
		return wire.NoPNN
	}
	// Not hash mod len: the buckets of a store use the low bits, and a node's own
	// records would fill one in len of them.
	hi, _ := bits.Mul64(hash*0x9E3779B97F4A7C15, uint64(len(m.Members)))
	return m.Members[hi].PNN
}

func (n *Node) ownVNN() VNN { return n.s.Map.vnn(n.cfg.Self) }

// leaseLive: a quorum has promised not to go on without us.
func (n *Node) leaseLive() bool { return n.now < n.lease }

// serving: requests may be executed and answered.
func (n *Node) serving() bool {
	return n.state == stOpen && (n.leaseLive() || n.plant == plantServeNoLease)
}

// send encodes a message for the link.
func (n *Node) send(to PNN, ch Channel, epoch Epoch, m *Message, token uint64) {
	if to == n.cfg.Self {
		panic("protocol: a message to itself: " + m.Op.String())
	}
	from := len(n.eff.buf)
	n.eff.buf = wire.Append(n.eff.buf, m)
	n.eff.Sends = append(n.eff.Sends, Send{To: to, Ch: ch, Epoch: epoch, DBID: m.DBID, Token: token, at: [2]int{from, len(n.eff.buf)}})
}

// order tells the link that what is older than an epoch or a ballot is over.
func (n *Node) order(k SendKind, e Epoch) {
	n.eff.Sends = append(n.eff.Sends, Send{Kind: k, Epoch: e})
}

// data sends a DATA message to a member, both VNNs filled in.
func (n *Node) data(to PNN, m *Message, token uint64) {
	m.Dest = n.s.Map.vnn(to)
	n.send(to, Data, n.s.Taken, m, token)
}

// fault tells of a broken promise between nodes. In a recovery the node goes no
// further: it does not say that it is done, so no gate opens. The leader begins again and
// again, until the fault is gone: a node that has to be stopped was stopped, or there is
// room. An open node calls for a recovery, which looks at everything.
func (n *Node) fault(what string) {
	n.cfg.Fault(what)
	if n.state == stOpen {
		n.suspect()
		return
	}
	n.broken = what
	n.rv.broken = n.plant != plantFaultOpens
}

// what names a record in a fault.
func what(db uint32, key []byte) string { return fmt.Sprintf("%q of database %08x", key, db) }

// Take gives out the effects of all steps since the last Take. Nothing is lost by
// taking late, but what stands in package host must wait for it.
func (n *Node) Take(e *Effects) {
	n.given()
	n.eff.moveTo(e)
	for i := range e.Sends {
		s := &e.Sends[i]
		s.Packet = e.buf[s.at[0]:s.at[1]:s.at[1]]
	}
	for i := range e.Replies {
		r := &e.Replies[i]
		r.Data = e.buf[r.at[0]:r.at[1]:r.at[1]]
	}
	e.Gate, e.Lease, e.Next, e.WantLock, e.Fault = n.gate, n.lease, n.nextDeadline(), n.wantLock(), n.broken
}

// moveTo gives all to e but what Take fills in, and takes e's buffers for it. Field by
// field: to copy all of both costs more than many a step.
func (f *Effects) moveTo(e *Effects) {
	e.Sends, f.Sends = f.Sends, e.Sends[:0]
	e.Events, f.Events = f.Events, e.Events[:0]
	e.Replies, f.Replies = f.Replies, e.Replies[:0]
	e.buf, f.buf = f.buf, e.buf[:0]
	e.Freeze, f.Freeze = f.Freeze, false
	e.PassNum, f.PassNum = f.PassNum, 0
	e.Save, f.Save = f.Save, 0
	e.Retry, f.Retry = f.Retry, false
	e.DBs, f.DBs = f.DBs, false
	e.LockValue, f.LockValue = f.LockValue, 0
}

func (n *Node) nextDeadline() Instant {
	next := min(n.nextPing, n.timersAt)
	if n.state == stOpen {
		if n.lease > n.now && n.lease != Never {
			next = min(next, n.lease)
		}
	} else {
		next = min(next, n.now+2*ms)
	}
	if len(n.unfinished) > 0 && n.serving() || n.ready() || n.offering() {
		next = n.now
	}
	return max(next, n.now+1)
}

// Counters since the start.
func (n *Node) Counters() Counters { return n.stats }

// Step handles one packet; the link acknowledges by the verdict.
func (n *Node) Step(now Instant, from PNN, ch Channel, epoch Epoch, dbid uint32, packet []byte) Verdict {
	n.begin(now)
	m := &n.msg
	m.DBID = dbid
	if wire.Decode(packet, m) != nil {
		return Handled // counted by the caller; no peer of ours sends such
	}
	v := n.step(from, ch, epoch, m)
	n.finish()
	return v
}

func (n *Node) step(from PNN, ch Channel, epoch Epoch, m *Message) Verdict {
	switch ch {
	case Beacon:
		n.beacon(from, epoch, m)
		return Handled
	case Control:
		return n.control(from, epoch, m)
	}
	n.sawEpoch(epoch)
	if epoch < n.s.Taken && n.plant != plantNoEpochCheck {
		m := Message{Op: wire.ReplyError, Status: wire.VNNMap, Epoch: n.s.Taken}
		n.send(from, Beacon, n.s.Taken, &m, 0)
		if n.plant == plantAckRefused {
			return Handled
		}
		return Refused
	}
	if n.s.Map.member(from) == nil && n.plant != plantNoEpochCheck {
		return NotYet
	}
	if epoch > n.s.Taken || n.state != stOpen {
		if n.plant == plantAckFrozen && epoch == n.s.Taken {
			return Handled
		}
		if !(n.plant == plantNoEpochCheck && n.state == stOpen) {
			return NotYet
		}
	}
	if !n.leaseLive() && n.plant != plantHandleNoLease && n.plant != plantServeNoLease {
		return NotYet
	}
	if m.Op.IsRequest() || m.Op == wire.RequestDMaster || m.Op == wire.ReplyDMaster {
		if v, known := n.knowDB(from, m); !known {
			return v
		}
	}
	switch {
	case m.Op.IsRequest():
		return n.request(m)
	case m.Op == wire.RequestDMaster:
		return n.requestDMaster(from, m)
	case m.Op == wire.ReplyDMaster:
		return n.become(n.rec(m.DBID, m.Key), m)
	case m.Op == wire.ReqTraverse:
		n.traverse(from, m)
	case m.Op == wire.ReplyTraverse:
		n.traversed(m)
	case m.Op == wire.OpenDB:
		n.openDB(from, m)
	case m.Op == wire.DBInfo:
		n.answerDB(from, n.s.db(m.DBID), m)
	case m.Op == wire.ReplyDBInfo:
		n.learned(from, m)
	case m.Op == wire.Offer:
		n.offered(from, m)
	case m.Op == wire.ReplyRedirect:
		n.redirected(m)
	default:
		n.replied(from, m)
	}
	return Handled
}

// Peer tells of a peer's new incarnation.
func (n *Node) Peer(now Instant, p PNN, ev PeerEvent) {
	n.begin(now)
	n.peers[p].met = now
	n.pingOne(p)
	if ev == Restarted {
		n.peers[p].heard, n.peers[p].grantT = -Never/2, -Never/2
		n.peerRestarted(p)
	}
	n.finish()
}

// Acked: the peer has handled what was sent with this token.
func (n *Node) Acked(now Instant, token uint64) {
	n.begin(now)
	if token&controlToken != 0 {
		n.controlAcked(token)
	} else if r := n.tokens[token]; r != nil {
		delete(n.tokens, token)
		n.ackedData(r, token)
	}
	n.finish()
}

// ackedData frees a carried copy, or a done entry whose reply has arrived. If
// neither is there any more, r may be another key's entry by now: leave it alone.
func (n *Node) ackedData(r *rec, token uint64) {
	for i := range r.carry {
		if r.carry[i].token == token {
			n.dropCarry(r, i)
			n.touch(r)
			return
		}
	}
	for i := range r.dones {
		if r.dones[i].token == token {
			n.dropDone(r, i)
			n.touch(r)
			return
		}
	}
}

// dropCarry frees a copy.
func (n *Node) dropCarry(r *rec, i int) {
	n.st.EraseCarried(int(r.carry[i].at))
	if n.plant != plantKeepBytes {
		n.copies -= int64(r.carry[i].size)
	}
	n.carriedN--
	if r.carry[i].through {
		n.through--
	}
	if n.crowded {
		n.crowded, n.eff.Retry = false, true
	}
	last := len(r.carry) - 1
	r.carry[i], r.carry[last] = r.carry[last], r.carry[i]
	r.carry = r.carry[:last]
}

// Refused frees nothing: the sender's copy stays a copy until a recovery decides.
func (n *Node) Refused(now Instant, token uint64) {
	n.begin(now)
	if n.plant == plantAckRefused && token&controlToken == 0 {
		if r := n.tokens[token]; r != nil {
			n.ackedData(r, token)
		}
	}
	delete(n.tokens, token)
	n.finish()
}

// Released: a record that is waited for was handed to the dispatcher, or one that
// is attended has changed.
func (n *Node) Released(now Instant, db uint32, key []byte) {
	n.begin(now)
	r := n.s.recs.get(n.cfg.Hash(db, key), db, key)
	if n.plant == plantNoWake {
		n.look(r)
	} else {
		n.touch(r)
	}
	if n.store.Holder(db, key) == Dispatcher && !r.lock.held && n.plant != plantHeldForNobody {
		n.store.Unlock(db, key)
	}
	n.finish()
}

// Frozen: the pass over the handles of this number is over.
func (n *Node) Frozen(now Instant, pass uint64) {
	n.begin(now)
	if pass == n.passNum && !n.passDone {
		n.passDone = true
		n.passOver()
	}
	n.finish()
}

// Tick does what is due.
func (n *Node) Tick(now Instant) {
	n.begin(now)
	n.tries = 0
	if n.now >= n.nextPing {
		n.ping()
		n.s.recs.walk(walkPrune)
	}
	n.prune()
	n.renewLease()
	if n.now >= n.timersAt {
		n.timers()
	}
	n.recoveryTick()
	if n.leave.on {
		n.drainTick()
	}
	n.work()
	n.goOn()
	n.finish()
}

// Suspect is an administrator's wish for a recovery.
func (n *Node) Suspect(now Instant) {
	n.begin(now)
	n.suspect()
	n.finish()
}

// due makes sure that Tick comes by then.
func (n *Node) due(t Instant) { n.timersAt = min(n.timersAt, t) }

// timers: backoffs, deadlines of parked requests, lock timeouts.
func (n *Node) timers() {
	n.timersAt = Never
	if !n.serving() {
		n.due(n.now + 2*ms)
		return
	}
	for _, p := range n.s.pend {
		if p != nil && p.state == pendBackoff {
			if p.until <= n.now {
				n.route(p)
			} else {
				n.due(p.until)
			}
		}
	}
	n.stats.Touched += uint64(n.s.recs.n)
	for r := n.s.recs.first; r != nil; r = r.next {
		if r.lock.held {
			if r.lock.deadline <= n.now && n.store.Holder(r.db, r.key) == Dispatcher && n.plant != plantLockForeverHeld {
				n.endLock(r)
				n.store.Unlock(r.db, r.key)
				if n.plant == plantNoWakeExpiry {
					n.look(r)
				} else {
					n.touch(r)
				}
			} else {
				n.due(max(r.lock.deadline, n.now+ms))
			}
		}
		for _, pk := range r.parked {
			if pk.deadline <= n.now && (n.plant != plantTimeoutLate || pk.deadline <= n.now-200*ms) {
				n.tryNow(r, pk)
			} else {
				n.due(pk.deadline)
			}
		}
	}
}

// prune forgets done entries whose requesters can't ask again.
func (n *Node) prune() {
	for range n.cfg.Budget {
		r := n.s.recs.next(walkPrune)
		if r == nil {
			return
		}
		n.stats.Touched++
		if len(r.dones) > 0 && n.pruneRec(r) {
			n.touch(r)
		}
	}
}

func (n *Node) pruneRec(r *rec) (gone bool) {
	for i := len(r.dones) - 1; i >= 0; i-- {
		d := &r.dones[i]
		q := &n.peers[d.OPID.PNN]
		if q.life == d.OPID.Life && d.OPID.Counter < q.floor {
			if n.plant != plantKeepToken {
				delete(n.tokens, d.token)
			}
			n.dropDone(r, i)
			gone = true
		}
	}
	return gone
}
