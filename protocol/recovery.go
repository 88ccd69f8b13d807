package protocol

import (
	"encoding/binary"
	"math/bits"

	"github.com/mainzdb/mainz/protocol/wire"
)

// leading is the leader's side of a recovery.
type leading struct {
	ballot  Epoch // 0: not leading
	phase   leadPhase
	began   Instant // of the phase
	nextAsk Instant
	seen    [wire.MaxNodes]uint64  // the members' progress
	seenAt  [wire.MaxNodes]Instant // when it grew last
	prom    [wire.MaxNodes]promise
	members Map
	done    wire.Set // who has finished the phase
	cold    bool     // the ballot is a cold start's
	byLock  bool     // the epoch stands by the arbiter's lock, or begins by it
}

type leadPhase uint8

const (
	gathering leadPhase = iota
	claiming
	settling
)

type promise struct {
	have    bool
	at      Instant
	taken   Epoch
	mp      Map
	memory  uint32
	life    uint64
	inc     uint64
	highVNN VNN
	clock   uint64 // its wall clock, milliseconds, when the promise came
	heard   wire.Set
	inUse   bool
	old     wire.Set // as in nodesFile
	since   [wire.MaxNodes]Instant
}

// recovery is the member's side.
type recovery struct {
	leader    PNN
	asked     Epoch // ballot of the PREPARE that waits for the pass
	heardSent wire.Set
	inFlight  int    // batches not acknowledged
	settling  bool   // SETTLE was taken
	settled   bool   // and all its batches are made
	progress  uint64 // what was done of it, in whatever units: it grows only with what need not be done again
	tookHere  Epoch  // NEW_MAP taken by this incarnation
	broken    bool   // a fault was met: this node does not go on
}

// controlToken marks tokens of CONTROL batches; the rest is the ballot they were
// sent under, so that a late ack counts for nothing.
const controlToken = 1 << 63

func (n *Node) batchToken() uint64 { return controlToken | uint64(n.s.Taken) }

// --- PING, PONG, leases

func (n *Node) ping() {
	n.nextPing = n.now + n.cfg.Heartbeat
	// As if this were a PING to itself: a record may come with done entries of ours.
	if n.plant != plantKeepOwnDone {
		n.peers[n.cfg.Self].life, n.peers[n.cfg.Self].floor = n.s.Life, n.floor()
	}
	for i := range n.cfg.Nodes {
		n.pingOne(PNN(i))
	}
	n.renewLease()
}

func (n *Node) pingOne(to PNN) {
	if to == n.cfg.Self {
		return
	}
	n.send(to, Beacon, n.s.Taken, &Message{Op: wire.Ping, T: int64(n.now), Epoch: n.s.Taken, Open: n.state == stOpen, Life: n.s.Life, Floor: n.floor(), Progress: n.progress()}, 0)
}

// progress of the recovery under way, as far as this node knows of it; 0: there is none.
func (n *Node) progress() uint64 {
	if n.state < stMapped || n.state == stOpen {
		return 0
	}
	sum := n.rv.progress
	if l := &n.lead; l.ballot != 0 && l.phase != gathering {
		for i, p := range l.seen {
			if PNN(i) != n.cfg.Self {
				sum += p
			}
		}
	}
	return sum
}

// progressed: a PING tells of more progress than the one before, in the same epoch. A
// leader waits on for its sender, whoever does not lead for whoever does.
func (n *Node) progressed(from PNN, m *Message) {
	q := &n.peers[from]
	grown := m.Progress > q.progress || m.Epoch > q.epoch && m.Progress > 0
	q.progress = m.Progress
	if !grown && n.plant != plantAnyProgress || m.Open {
		return
	}
	l := &n.lead
	switch {
	case l.ballot == 0 && m.Epoch >= n.s.Taken:
		n.leaderAt = n.now
	case l.ballot != 0 && l.phase != gathering && m.Epoch == l.ballot:
		l.seen[from], l.seenAt[from] = m.Progress, n.now
	}
}

// floor is the lowest OPID counter that may still be sent.
func (n *Node) floor() uint64 {
	for p := n.pendFirst; p != nil; p = p.later {
		if p.state != pendDone {
			return p.opid.Counter
		}
	}
	return n.s.OPIDs + 1
}

// heard is the set of nodes that both hear us and are heard.
func (n *Node) heard() wire.Set {
	s := wire.Set(1) << n.cfg.Self
	for i := range n.cfg.Nodes {
		if n.now-n.peers[i].heard < n.cfg.DeadAfter {
			s |= 1 << i
		}
	}
	return s & (n.s.File.Set | 1<<n.cfg.Self)
}

// granting: this node may promise another that no recovery ends without it.
func (n *Node) granting(p PNN, epoch Epoch) bool {
	if n.halfMap() && n.s.Taken.Leader() == n.cfg.Self && n.arb.until < n.now+n.cfg.Lease+n.cfg.Margin {
		return false // the lease must not outlive the lock
	}
	return n.s.Map.member(p) != nil && epoch == n.s.Taken && n.s.Taken != 0 && (n.s.Promised == n.s.Taken || n.plant == plantGrantAfterPromise) && n.state >= stMapped
}

func (n *Node) pinged(from PNN, m *Message) {
	n.progressed(from, m)
	q := &n.peers[from]
	q.epoch, q.open, q.life, q.floor = m.Epoch, m.Open, m.Life, m.Floor
	grant := n.granting(from, m.Epoch)
	if grant {
		q.granted = n.now
	}
	n.send(from, Beacon, n.s.Taken, &Message{Op: wire.Pong, T: m.T, Epoch: n.s.Taken, Open: n.state == stOpen, Grant: grant}, 0)
}

func (n *Node) ponged(from PNN, m *Message) {
	q := &n.peers[from]
	t := Instant(m.T)
	if t > n.now || t < n.started {
		return // not a clock reading of ours
	}
	q.epoch, q.open = m.Epoch, m.Open
	q.heard = max(q.heard, t)
	if m.Grant {
		q.grantT = max(q.grantT, t)
	}
	n.renewLease()
}

// renewLease: the newest reading such that a quorum, this node included, granted
// it or a later one, and the lease from there.
func (n *Node) renewLease() {
	if n.cfg.Nodes == 1 {
		n.lease = Never
		return
	}
	self := wire.Set(1) << n.cfg.Self
	best := Instant(-Never / 2)
	if n.leaseQuorum(self) {
		best = n.now
	}
	for i := range n.cfg.Nodes {
		if PNN(i) == n.cfg.Self || n.peers[i].grantT <= best {
			continue
		}
		t, by := n.peers[i].grantT, self
		for j := range n.cfg.Nodes {
			if PNN(j) != n.cfg.Self && n.peers[j].grantT >= t {
				by |= 1 << j
			}
		}
		if n.leaseQuorum(by) {
			best = t
		}
	}
	end := best + n.cfg.Lease
	if n.halfMap() && n.s.Taken.Leader() == n.cfg.Self && n.plant != plantLockForever {
		end = min(end, n.arb.until-n.cfg.Margin)
	}
	n.lease = max(n.lease, end)
}

// --- freezing

// startPass closes the gate and asks for a pass over the handles.
func (n *Node) startPass() {
	n.gate.State = GateFrozen
	n.passNum++
	n.passDone = false
	n.eff.Freeze, n.eff.PassNum = true, n.passNum
	if n.plant == plantNoPass {
		n.passDone = true
	}
}

// suspect closes the gate until a recovery opens it.
func (n *Node) suspect() { n.suspectOf(nobody) }

// suspectOf: the same, and who is to blame.
func (n *Node) suspectOf(b blame) {
	if n.state != stOpen {
		return
	}
	n.strike(b)
	n.blamed = b
	n.freeze()
	n.leaderAt, n.leadDelay = n.now, n.jitter(5*ms)
	n.wanted()
}

func (n *Node) freeze() {
	n.state = stFrozen
	n.startPass()
	n.leaderAt = n.now
	n.leadDelay = 2*n.cfg.StepLimit + n.cfg.Lease + n.jitter(50*ms)
}

func (n *Node) wanted() {
	n.wantedAt = n.now + 50*ms
	for i := range n.cfg.Nodes {
		if PNN(i) != n.cfg.Self {
			n.send(PNN(i), Beacon, n.s.Taken, &Message{Op: wire.RecoveryWanted, Epoch: n.s.Taken, Heard: n.heard(), Blame: n.blamed.who, Stall: n.blamed.why}, 0)
		}
	}
}

// sawEpoch: an epoch newer than ours exists, with us or without.
func (n *Node) sawEpoch(e Epoch) {
	n.counter = max(n.counter, e.Counter())
	if e > n.s.Taken && e > n.s.Promised {
		n.suspect()
	}
}

func (n *Node) wantedBy(from PNN, m *Message) {
	if n.state != stOpen {
		return
	}
	if m.Epoch > n.s.Taken {
		n.sawEpoch(m.Epoch)
		return
	}
	if n.s.Map.member(from) != nil && m.Epoch == n.s.Taken {
		n.suspectOf(blame{m.Blame, m.Stall})
		return
	}
	n.joinWish(from, m)
}

// joinWish: only the coordinator acts, and not again and again: a half-broken link
// must not stop the cluster.
func (n *Node) joinWish(from PNN, m *Message) {
	q := &n.peers[from]
	switch {
	case n.s.Map.coordinator() != n.cfg.Self, !n.heard().Has(from), n.s.Map.set&^m.Heard != 0, n.now-n.openedAt < 50*ms:
		return
	case q.letIn != 0 && n.now-q.letIn < max(q.hold, n.cfg.JoinHold), n.unruly().Has(from):
		n.reached(LimitHold)
		return
	}
	if q.letIn != 0 && n.now-q.letIn < 4*max(q.hold, n.cfg.JoinHold) {
		q.hold = min(2*max(q.hold, n.cfg.JoinHold), 10_000*ms) // it flaps
	} else {
		q.hold = n.cfg.JoinHold
	}
	q.letIn = n.now
	n.suspect()
}

// peerRestarted: whatever was under way with it is gone.
func (n *Node) peerRestarted(p PNN) {
	n.peers[p].epoch, n.peers[p].open = 0, false
	switch {
	case n.state == stOpen:
		if n.s.Map.member(p) != nil {
			n.suspect()
		}
	case n.lead.ballot != 0:
		if n.lead.phase != gathering && n.lead.members.member(p) != nil {
			n.startLeading()
		} else {
			n.lead.prom[p].have = false
		}
	}
}

// recoveryTick is the clock's part of a recovery.
func (n *Node) recoveryTick() {
	if n.state == stOpen {
		n.watchMembers()
		return
	}
	if n.leave.left {
		return
	}
	if n.state > stPromised && n.lead.ballot == 0 && n.now-n.leaderAt >= n.leadDelay {
		// Its leader is gone, and the others may be open without us by now: then
		// nobody would ever call. Seen as a member that waited for SETTLE for ever.
		n.state = stFrozen
	}
	if n.now >= n.wantedAt && n.state <= stPromised && n.lead.ballot == 0 {
		n.wanted()
	}
	if n.state == stPromised && n.heard() != n.rv.heardSent {
		n.sendPromise()
	}
	if n.lead.ballot != 0 {
		n.leadTick()
		return
	}
	n.mayLead()
}

// watchMembers freezes an open node that has lost a member or its lease.
func (n *Node) watchMembers() {
	lost := n.s.Map.set &^ n.heard()
	if lost != 0 && n.now-n.openedAt > n.cfg.DeadAfter {
		n.suspectOf(blame{PNN(bits.TrailingZeros64(uint64(lost))), wire.BlameSilent})
		return
	}
	if !n.leaseLive() && n.now-n.openedAt > n.cfg.Lease {
		b := nobody
		if n.now-n.stalledAt < n.cfg.Lease {
			b = blame{n.cfg.Self, wire.BlameStall}
		}
		n.suspectOf(b)
	}
}

// mayLead: the lowest PNN of those that hear each other leads at once, any other
// when no leader's word has come for a long time.
func (n *Node) mayLead() {
	if !n.passDone {
		return
	}
	h := n.heard()
	if !n.majority(h) && !n.half(h) {
		return
	}
	for i := range n.cfg.Nodes {
		q := &n.peers[i]
		if PNN(i) != n.cfg.Self && h.Has(PNN(i)) && q.open && q.epoch != n.s.Taken {
			return // there is a cluster: ask to join
		}
	}
	wait := n.leadDelay
	first := h &^ n.unruly()
	if first == 0 {
		first = h
	}
	if bits.TrailingZeros64(uint64(first)) == int(n.cfg.Self) && n.state == stFrozen {
		wait = min(wait, n.cfg.Gather)
	} else {
		wait = max(wait, 2*n.cfg.StepLimit+n.cfg.Lease)
	}
	if n.now-n.leaderAt >= wait {
		n.startLeading()
	}
}

// --- the leader

func (n *Node) startLeading() {
	c := max(n.counter, n.s.Promised.Counter(), n.s.Taken.Counter()) + 1
	if n.plant == plantOldBallot {
		c = n.s.Taken.Counter() + 1
	}
	if (n.s.Memory == wire.MemoryFresh || n.lead.cold) && n.plant != plantColdCounter {
		c = max(c, n.coldCounter())
	}
	cold := n.lead.cold
	n.lead = leading{ballot: wire.Ballot(c, n.cfg.Self), began: n.now, cold: cold}
	n.counter = max(n.counter, c)
	n.stats.Recoveries++
	if n.state == stOpen {
		n.freeze()
	}
	n.ask()
	n.prepared(n.cfg.Self, n.lead.ballot)
}

// coldAhead is how far a cold start's ballot is ahead of the clocks, so that the
// clocks that go on meanwhile do not ask for another.
const coldAhead = 1000

// wall is this node's clock now. It goes on from the reading at the node's start, so
// that whoever sets the clock back meanwhile sets no ballot back.
func (n *Node) wall() uint64 { return uint64(max(0, n.cfg.WallMS+int64((n.now-n.cfg.Start)/ms))) }

// coldCounter is the least counter of a cold start that begins now. Who takes part has
// forgotten the epochs that were, so the ballot is above all of them by the clock: an
// epoch takes longer than a millisecond. By the clocks of all promisers, as another of
// them may have led the last one.
func (n *Node) coldCounter() uint64 {
	c := n.wall()
	for i := range n.lead.prom {
		if p := &n.lead.prom[i]; p.have && n.plant != plantColdOwnClock {
			c = max(c, p.clock+uint64((n.now-p.at)/ms))
		}
	}
	return c + coldAhead
}

// coldBallot tells whether the ballot may be a cold start's: it is above all clocks.
func (n *Node) coldBallot() bool {
	if n.plant == plantColdStartClock {
		return n.lead.ballot.Counter() >= uint64(n.cfg.WallMS)
	}
	c := n.lead.ballot.Counter()
	ok := c >= n.wall()
	for i := range n.lead.prom {
		p := &n.lead.prom[i]
		ok = ok && (!p.have || c >= p.clock || n.plant == plantColdOwnClock)
	}
	return ok
}

func (n *Node) ask() {
	n.lead.nextAsk = n.now + 5*ms
	for i := range n.cfg.Nodes {
		if PNN(i) != n.cfg.Self && !n.lead.prom[i].have {
			n.send(PNN(i), Beacon, n.lead.ballot, &Message{Op: wire.Prepare, Promise: n.lead.ballot, Epoch: n.s.Taken, Nodes: n.s.File.Version}, 0)
		}
	}
}

func (n *Node) stopLeading() {
	n.lead = leading{}
	n.leaderAt, n.leadDelay = n.now, 20*ms+n.jitter(60*ms)
	if n.state == stPromised {
		n.state = stFrozen // nobody will use this promise, but it stays
	}
}

func (n *Node) leadTick() {
	l := &n.lead
	switch l.phase {
	case gathering:
		if n.now >= l.nextAsk {
			n.ask()
		}
		n.decide()
		if n.lead.ballot == l.ballot && n.lead.phase == gathering && n.now-l.began > n.cfg.Lease+n.cfg.Margin+2*n.cfg.StepLimit {
			n.stopLeading()
		}
	default:
		if n.stuck() {
			n.reached(LimitStep)
			n.startLeading()
		}
	}
}

// stuck: a member has not done with the phase, and nothing was heard of its progress for
// too long. How long all of it takes is no matter: that depends on the records.
func (n *Node) stuck() bool {
	l := &n.lead
	if self := n.cfg.Self; n.rv.progress > l.seen[self] {
		l.seen[self], l.seenAt[self] = n.rv.progress, n.now
	}
	left := l.members.set &^ l.done
	if left == 0 { // the arbiter's word is waited for
		return n.now-l.began > n.cfg.StepLimit
	}
	for i := range n.cfg.Nodes {
		if left.Has(PNN(i)) && n.now-max(l.began, l.seenAt[i]) > n.cfg.StepLimit {
			return true
		}
	}
	return false
}

func (n *Node) promised(from PNN, m *Message) {
	l := &n.lead
	if l.ballot == 0 || m.Promise != l.ballot || l.phase != gathering || m.Nodes != n.s.File.Version && n.plant != plantAnyFile || !n.s.File.Set.Has(from) {
		return
	}
	p := &l.prom[from]
	*p = promise{have: true, at: n.now, taken: m.Epoch, memory: m.Memory, life: m.Life, inc: m.Inc, highVNN: m.VNN, clock: m.Clock, heard: m.Heard, inUse: m.Open, old: m.Old}
	for rest := m.Members; len(rest) > 0; {
		var e wire.Member
		e, rest, _ = wire.NextMember(rest)
		p.mp.Members = append(p.mp.Members, e)
	}
	p.mp.index()
	for i := range p.since {
		p.since[i] = Never / 4
		if 4*i+4 <= len(m.Since) {
			if v := binary.LittleEndian.Uint32(m.Since[4*i:]); v != ^uint32(0) {
				p.since[i] = Instant(v) * ms
			}
		}
	}
	n.counter = max(n.counter, m.Epoch.Counter())
	n.decide()
}

// decide whether the promises are enough, and if so make the map.
func (n *Node) decide() {
	l := &n.lead
	all, full := n.promisers()
	if !all.Has(n.cfg.Self) {
		return
	}
	normal, cold := n.enough(all, full)
	if !normal && !cold {
		return
	}
	if n.heard()&^all != 0 && n.now-l.began < n.cfg.Gather {
		return
	}
	if !normal && cold && (!n.coldBallot() || l.ballot <= n.arb.found) && n.plant != plantColdCounter {
		l.cold = true
		n.startLeading()
		return
	}
	if !n.fenced(all) {
		return
	}
	members, ok := n.clique(all, full)
	if !ok {
		return
	}
	if normal, _ = n.enough(members, full&members); !normal {
		if _, cold = n.enough(members, full&members); !cold {
			return
		}
	}
	n.makeMap(members, !normal)
}

// promisers are those whose promise the leader has; full, those with memory.
func (n *Node) promisers() (all, full wire.Set) {
	for i := range n.cfg.Nodes {
		if p := &n.lead.prom[i]; p.have {
			all |= 1 << i
			if p.memory != wire.MemoryFresh || n.plant == plantFreshCounts {
				full |= 1 << i
			}
		}
	}
	return all, full
}

// enough: a quorum with memory; or, for a cold start, a quorum without, or all.
// Half of the nodes are none if all records would be lost with the other half. Where
// there is an arbiter a cold start takes its lock: a node without memory does
// not know an earlier nodes file, in which another is half.
func (n *Node) enough(all, full wire.Set) (normal, cold bool) {
	majority, half := n.quorum(full)
	half = half && n.anyKeeps(full)
	normal = majority || half && n.locked(full)
	if !normal && half && !n.staleHalf(full) {
		return false, false // it may become one with the lock
	}
	cold = !normal && n.nothingKnown(all, full) && (!n.cfg.Arbiter || n.lockLasts() || n.plant == plantColdNoLock)
	return normal, cold
}

// nothingKnown: too many are without memory to wait for those who have one.
func (n *Node) nothingKnown(all, full wire.Set) bool {
	return n.majority(all&^full) || all&n.s.File.Set == n.s.File.Set
}

// newest is the promise of one with memory that has taken the last epoch of all; nil:
// none has any.
func (n *Node) newest() (last *promise) {
	for i := range n.cfg.Nodes {
		if p := &n.lead.prom[i]; p.have && p.memory != wire.MemoryFresh && (last == nil || p.taken >= last.taken) {
			last = p
		}
	}
	return last
}

// keeps: a promiser has its records still in the next epoch. It has taken the last
// one of all, or kept them in its map.
func (n *Node) keeps(i PNN, newest *promise) bool {
	p := &n.lead.prom[i]
	if p.memory != wire.MemoryFull {
		return false
	}
	e := newest.mp.member(i)
	return p.taken == newest.taken || e != nil && !e.Joiner && e.Life == p.life
}

// anyKeeps: not all of these promisers with memory would begin anew.
func (n *Node) anyKeeps(full wire.Set) bool {
	newest := n.newest()
	for i := range n.cfg.Nodes {
		if full.Has(PNN(i)) && n.keeps(PNN(i), newest) {
			return true
		}
	}
	return false
}

// fenced: every lease granted to a node that has not promised is over, even by
// the slowest clock.
func (n *Node) fenced(all wire.Set) bool {
	if n.plant == plantNoFence {
		return true
	}
	margin := n.cfg.Margin
	if n.plant == plantNoMargin {
		margin = 0
	}
	for i := range n.cfg.Nodes {
		if all.Has(PNN(i)) {
			continue
		}
		for j := range n.cfg.Nodes {
			if p := &n.lead.prom[j]; p.have && n.now < p.at-p.since[i]+n.cfg.Lease+margin {
				return false
			}
		}
	}
	return true
}

// clique takes out nodes until all that are left hear each other; false: a link
// may only be young, or too few are left.
func (n *Node) clique(all, full wire.Set) (wire.Set, bool) {
	set := all &^ n.leavers(all)
	set = n.without(set, full&set)
	if n.plant == plantNoClique {
		return set, true
	}
	for {
		worst, most := -1, 0
		for i := range n.cfg.Nodes {
			if !set.Has(PNN(i)) {
				continue
			}
			missing := 0
			for j := range n.cfg.Nodes {
				if i != j && set.Has(PNN(j)) && (!n.lead.prom[i].heard.Has(PNN(j)) || !n.lead.prom[j].heard.Has(PNN(i))) {
					missing++
				}
			}
			if missing >= most && missing > 0 && PNN(i) != n.cfg.Self {
				worst, most = i, missing
			}
		}
		if most == 0 {
			break
		}
		if n.now-n.lead.began < 3*n.cfg.Heartbeat {
			return 0, false
		}
		set &^= 1 << worst
	}
	normal, cold := n.enough(set, full&set)
	return set, normal || cold
}

// makeMap decides who keeps its data and sends NEW_MAP.
func (n *Node) makeMap(members wire.Set, cold bool) {
	l := &n.lead
	l.byLock = n.half(members) || cold && n.cfg.Arbiter && n.plant != plantColdNoLock
	high := n.s.HighVNN
	for i := range n.cfg.Nodes {
		p := &l.prom[i]
		if !p.have {
			continue
		}
		high = max(high, p.highVNN)
		for k := range p.mp.Members {
			high = max(high, p.mp.Members[k].VNN)
		}
	}
	newest := n.newest()
	l.members = Map{}
	for i := range n.cfg.Nodes {
		if !members.Has(PNN(i)) {
			continue
		}
		p := &l.prom[i]
		keep := !cold && n.keeps(PNN(i), newest)
		if n.plant == plantStaleKeeps && p.memory == wire.MemoryFull {
			keep = true
		}
		high++
		vnn := high
		if n.plant == plantSameVNN {
			vnn = VNN(i + 1)
		}
		e := wire.Member{VNN: vnn, PNN: PNN(i), Joiner: !keep, Port: n.cfg.Port, Addr: n.cfg.Addr, Incarnation: p.inc, Life: p.life}
		if !keep {
			e.Life = uint64(l.ballot)
		}
		l.members.Members = append(l.members.Members, e)
	}
	l.members.index()
	l.phase, l.began, l.done = claiming, n.now, 0
	var rows []byte
	for i := range l.members.Members {
		rows = wire.AppendMember(rows, &l.members.Members[i])
	}
	m := Message{Op: wire.NewMap, Promise: l.ballot, Members: rows}
	for i := range l.members.Members {
		if to := l.members.Members[i].PNN; to != n.cfg.Self {
			n.send(to, Control, l.ballot, &m, 0)
		}
	}
	n.newMap(n.cfg.Self, &m)
}

// finished: a member has done with the leader's phase.
func (n *Node) finished(from PNN, phase leadPhase) {
	l := &n.lead
	if l.ballot == 0 || l.phase != phase {
		return
	}
	l.done |= 1 << from
	if l.members.set&^l.done == 0 {
		n.allDone(phase)
	}
}

// allDone: all members have done with the leader's phase.
func (n *Node) allDone(phase leadPhase) {
	l := &n.lead
	op, next := wire.Settle, settling
	if phase == settling {
		if l.byLock && n.arb.value != l.ballot && n.plant != plantLockForgets {
			n.eff.LockValue = l.ballot // whoever has the lock next must know of this epoch
			return
		}
		op, next = wire.Recovered, gathering
	}
	l.phase, l.began, l.done = next, n.now, 0
	ballot := l.ballot
	for i := range l.members.Members {
		if to := l.members.Members[i].PNN; to != n.cfg.Self {
			n.send(to, Control, ballot, &Message{Op: op}, 0)
		}
	}
	if op == wire.Recovered {
		n.lead = leading{}
		n.recovered()
	} else {
		n.settle()
	}
}

// --- beacons

func (n *Node) beacon(from PNN, epoch Epoch, m *Message) {
	switch m.Op {
	case wire.Ping:
		n.pinged(from, m)
		n.sawEpochOf(m.Epoch, m.Open)
	case wire.Pong:
		n.ponged(from, m)
		n.sawEpochOf(m.Epoch, m.Open)
	case wire.RecoveryWanted:
		n.wantedBy(from, m)
	case wire.Prepare:
		n.prepare(from, m)
	case wire.Promise:
		n.promised(from, m)
	case wire.Nack:
		n.nacked(m)
	case wire.ReplyError:
		if m.Status == wire.VNNMap {
			n.sawEpoch(m.Epoch)
		}
	}
}

// sawEpochOf: only an epoch that has opened says that we are left out; one that is
// taken may be a recovery that we are part of.
func (n *Node) sawEpochOf(e Epoch, open bool) {
	n.counter = max(n.counter, e.Counter())
	if open {
		n.sawEpoch(e)
		n.leave.left = n.leave.left || n.leave.done && e > n.s.Taken
	}
}

func (n *Node) prepare(from PNN, m *Message) {
	n.counter = max(n.counter, m.Promise.Counter(), m.Epoch.Counter())
	if m.Nodes != n.s.File.Version && n.plant != plantAnyFile || !n.s.File.Set.Has(from) {
		return
	}
	if m.Promise == n.s.Promised && n.state == stPromised && n.rv.leader == from {
		n.sendPromise()
		return
	}
	// A promise may be given again to whom it was given: a node that was restarted has it,
	// and no more knows to whom. Not once it has taken that map.
	again := m.Promise == n.s.Promised && m.Promise.Leader() == from && n.s.Taken < m.Promise && n.state == stFrozen
	if m.Promise <= n.s.Promised && !again || m.Promise <= n.rv.asked && n.rv.leader != from {
		n.send(from, Beacon, n.s.Taken, &Message{Op: wire.Nack, Epoch: m.Promise, Promise: max(n.s.Promised, n.rv.asked)}, 0)
		return
	}
	if n.state == stOpen && n.s.Map.member(from) == nil && m.Epoch <= n.s.Taken && n.plant != plantNoStickiness {
		n.send(from, Beacon, n.s.Taken, &Message{Op: wire.Nack, Epoch: m.Promise, Promise: n.s.Promised, Open: true}, 0)
		return
	}
	if n.lead.ballot != 0 && n.lead.ballot < m.Promise {
		n.lead = leading{}
	}
	n.prepared(from, m.Promise)
}

// prepared: promise this ballot, as soon as no client is inside any more.
func (n *Node) prepared(from PNN, ballot Epoch) {
	if n.state == stOpen {
		n.freeze()
	}
	n.rv.leader, n.rv.asked = from, ballot
	n.leaderAt = n.now
	n.leadDelay = 2*n.cfg.StepLimit + n.cfg.Lease + n.jitter(50*ms)
	if n.passDone {
		n.passOver()
	}
}

func (n *Node) passOver() {
	if n.rv.asked == 0 || n.rv.asked < n.s.Promised || n.rv.asked == n.s.Promised && (n.s.Taken >= n.rv.asked || n.state != stFrozen) {
		return
	}
	n.st.Promise(n.rv.asked)
	n.s.Promised = n.rv.asked
	n.remember()
	n.order(SendCancel, n.s.Promised)
	n.state = stPromised
	n.sendPromise()
}

func (n *Node) sendPromise() {
	if !n.remembered() {
		return // Saved sends it
	}
	n.rv.heardSent = n.heard()
	var members, since []byte
	for i := range n.s.Map.Members {
		members = wire.AppendMember(members, &n.s.Map.Members[i])
	}
	for i := range n.cfg.Nodes {
		ago := max(0, n.now-n.peers[i].granted) / ms
		since = binary.LittleEndian.AppendUint32(since, uint32(min(ago, 1<<31)))
	}
	memory := n.s.Memory
	if n.leave.done {
		memory = wire.MemoryLeft
	}
	m := Message{Op: wire.Promise, Promise: n.s.Promised, Epoch: n.s.Taken, Members: members, Memory: memory, Life: n.s.Life, VNN: n.s.HighVNN,
		Heard: n.rv.heardSent, Since: since, Nodes: n.s.File.Version, Inc: n.cfg.Incarnation, Open: n.s.File.InUse, Old: n.s.File.Old, Clock: n.wall()}
	if n.rv.leader == n.cfg.Self {
		n.promised(n.cfg.Self, &m)
	} else {
		n.send(n.rv.leader, Beacon, n.s.Promised, &m, 0)
	}
}

func (n *Node) nacked(m *Message) {
	n.counter = max(n.counter, m.Promise.Counter())
	if n.lead.ballot == 0 || m.Epoch != n.lead.ballot || n.lead.phase != gathering {
		return
	}
	if m.Open || m.Promise > n.lead.ballot {
		n.stopLeading()
	}
}

// --- CONTROL

func (n *Node) control(from PNN, ballot Epoch, m *Message) Verdict {
	n.counter = max(n.counter, ballot.Counter())
	if m.Op == wire.NewMap {
		n.leaderAt = n.now
		return n.newMap(from, m)
	}
	if m.Op == wire.ClaimsDone || m.Op == wire.Settled {
		if ballot != n.lead.ballot {
			return Refused
		}
		if m.Op == wire.ClaimsDone {
			n.finished(from, claiming)
		} else {
			n.finished(from, settling)
		}
		return Handled
	}
	switch {
	case ballot > n.s.Taken && ballot >= n.s.Promised:
		return NotYet // its NEW_MAP is on the way
	case ballot < n.s.Taken, n.plant != plantOldRecovered && (n.s.Promised > ballot || n.rv.tookHere != ballot && n.plant != plantOldIncarnation):
		return Refused
	case n.state == stOpen || n.s.Opened == ballot:
		return Handled
	}
	switch m.Op {
	case wire.Claims:
		n.claims(from, m.Rows)
	case wire.Settle:
		n.leaderAt = n.now
		n.settle()
	case wire.Verdicts:
		n.verdicts(m.Rows)
	case wire.Resupply:
		n.resupplied(m.Rows)
	case wire.DBTable:
		n.learn(m)
	case wire.Recovered:
		n.leaderAt = n.now
		n.recovered()
	}
	return Handled
}
