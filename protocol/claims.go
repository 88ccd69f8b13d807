package protocol

import (
	"fmt"
	"slices"

	"github.com/mainzdb/mainz/protocol/wire"
)

// claim is what an LMASTER has heard of one key in a recovery besides its owner.
type claim struct {
	copies []copyClaim
	wants  []wantClaim
}

type copyClaim struct {
	carrier PNN
	bound   PNN
	reqid   ReqID
	token   uint64
	rsn     uint64
}

type wantClaim struct {
	pnn   PNN
	reqid ReqID
}

// newMap: NEW_MAP. The map is taken, or refused for a promise that is higher.
func (n *Node) newMap(from PNN, m *Message) Verdict {
	ballot := m.Promise
	if ballot < n.s.Promised || ballot < n.s.Taken || ballot == n.s.Taken && n.rv.tookHere != ballot {
		return Refused
	}
	if ballot == n.s.Taken {
		return Handled
	}
	var mp Map
	for rest := m.Members; len(rest) > 0; {
		var e wire.Member
		e, rest, _ = wire.NextMember(rest)
		mp.Members = append(mp.Members, e)
	}
	mp.index()
	self := mp.member(n.cfg.Self)
	if self == nil || self.Incarnation != n.cfg.Incarnation || !n.passDone {
		return Refused
	}
	if !self.Joiner && n.s.Memory != wire.MemoryFull {
		n.fault("the map of a new epoch says that this node keeps its data, and it has none")
		return Refused
	}
	n.takeMap(from, ballot, mp, *self)
	return Handled
}

func (n *Node) takeMap(leader PNN, ballot Epoch, mp Map, self wire.Member) {
	neverOpened := n.s.Opened != n.s.Taken
	n.leftOut(&mp)
	high := n.s.HighVNN
	for i := range mp.Members {
		high = max(high, mp.Members[i].VNN)
	}
	if self.Joiner {
		n.unknown()
		n.st.NewLife(ballot, mp.Members, high, self.Life)
	} else {
		n.st.TakeMap(ballot, mp.Members, high)
	}
	n.s.Promised, n.s.Taken, n.s.Map, n.s.HighVNN = ballot, ballot, mp, high
	n.remember()
	n.order(SendEpoch, ballot)
	n.order(SendCancel, ballot)
	n.rv = recovery{leader: leader, asked: ballot, tookHere: ballot}
	n.state = stMapped
	n.leaderAt = n.now
	n.asks, n.walks, n.walkings = n.asks[:0], n.walks[:0], n.walkings[:0]
	n.places.reset()
	clear(n.hints)
	clear(n.tokens) // acks of older epochs free nothing: the copies are claimed
	for _, r := range n.keys {
		r.claim = nil
	}
	n.keys = n.keys[:0]
	n.own = marks{}
	n.claimed.reset()
	n.verdict.reset()
	n.supply.reset()
	first := workSweep
	switch {
	case self.Joiner:
		n.newLife(self.Life)
		first = workOwn
	case neverOpened && n.plant != plantKeepProvisional:
		first = workDrop
	}
	n.gate = Gate{State: GateFrozen, Epoch: ballot, Life: n.s.Life, VNN: self.VNN}
	n.ping() // leases of the new epoch, before it opens
	n.begins(first)
	n.eff.Retry = true
}

// unknown is how what the clients had open ends, when their segment does.
func (n *Node) unknown() {
	for _, p := range n.s.pend {
		if p != nil && p.client != 0 && (!p.abandoned && p.state != pendDone || n.unasked(p)) {
			n.eff.Replies = append(n.eff.Replies, Reply{Client: p.client, Cookie: p.cookie, Op: p.m.Op, Status: wire.Unknown, OPID: p.opid})
		}
	}
}

// newLife: a joiner starts an empty segment. Its new life stands in Stable already: if it
// dies between the two, it finds a store of another life, and starts that anew.
func (n *Node) newLife(life uint64) {
	n.s.forget(life)
	n.store.Reset(life)
	n.ended, n.endedOut = n.ended[:0], 0
	n.locks = nil
	clear(n.byReq)
	clear(n.again)
	n.freePend, n.pendN, n.parkedN, n.roomOut, n.copies, n.carriedN, n.through = nil, 0, 0, 0, 0, 0, 0
	n.pendFirst, n.pendLast = nil, nil
	n.dirty, n.unfinished = n.dirty[:0], n.unfinished[:0]
}

// alive: by the life, not by the node. One that crashed and joined again in an
// epoch that never opened is a member once more, but not the one whose pieces
// these are.
func (n *Node) alive(o OPID) bool {
	if n.plant == plantKeepDeadPieces {
		return true
	}
	if n.plant == plantAliveByPNN {
		return n.s.Map.member(o.PNN) != nil
	}
	return n.s.Map.alive(o)
}

// sweepCopy takes dead nodes' pieces and done entries out of a carried copy.
func (n *Node) sweepCopy(c *carried) {
	l := n.st.Carried(int(c.at))
	var data, tags, dones []byte
	at := 0
	for rest := l.Tags; len(rest) > 0; {
		t, next, _ := wire.NextTag(rest)
		if n.alive(t.OPID) {
			data = append(data, l.Data[at:at+int(t.Len)]...)
			tags = wire.AppendTag(tags, t)
		}
		at += int(t.Len)
		rest = next
	}
	if len(l.Tags) == 0 {
		data = l.Data
	}
	for rest := l.Dones; len(rest) > 0; {
		d, next, _ := wire.NextDone(rest)
		if n.alive(d.OPID) {
			dones = wire.AppendDone(dones, d)
		}
		rest = next
	}
	if len(data) != len(l.Data) || len(tags) != len(l.Tags) || len(dones) != len(l.Dones) {
		n.copies -= int64(c.size - len(data))
		c.size = len(data)
		n.st.TrimCarried(int(c.at), data, tags, dones)
	}
}

// batches are rows for each member, which go out in messages when there are enough.
type batches struct {
	op   wire.Op
	rows [wire.MaxNodes][]byte
}

func (b *batches) reset() {
	for i := range b.rows {
		b.rows[i] = b.rows[i][:0]
	}
}

// full: what is full goes out.
func (b *batches) full(n *Node, to PNN) {
	if len(b.rows[to]) >= n.cfg.ClaimBytes {
		n.reached(LimitBatch)
		b.flush(n, to)
	}
}

func (b *batches) flush(n *Node, to PNN) {
	if len(b.rows[to]) == 0 {
		return
	}
	if to == n.cfg.Self {
		switch b.op {
		case wire.Claims:
			n.claims(to, b.rows[to])
		case wire.Verdicts:
			n.verdicts(b.rows[to])
		default:
			n.resupplied(b.rows[to])
		}
	} else {
		n.rv.inFlight++
		n.send(to, Control, n.s.Taken, &Message{Op: b.op, Rows: b.rows[to]}, n.batchToken())
	}
	b.rows[to] = b.rows[to][:0]
}

// done: the rest goes out.
func (b *batches) done(n *Node) {
	for i := range b.rows {
		b.flush(n, PNN(i))
	}
}

// controlAcked: a batch of this epoch was handled.
func (n *Node) controlAcked(token uint64) {
	if token != n.batchToken() || n.rv.inFlight == 0 {
		return
	}
	n.rv.inFlight--
	n.rv.progress++
	n.claimsAcked()
	n.maybeSettled()
}

// claimsAcked: only when all CLAIMs are handled, as CLAIMS_DONE could overtake
// those on other links.
func (n *Node) claimsAcked() {
	if n.state != stMapped || n.rv.inFlight > 0 && n.plant != plantBatchEarly || n.rv.broken || !n.remembered() || n.job.stage != noWork && n.plant != plantClaimsEarly {
		return
	}
	n.state = stClaimed
	if n.rv.leader == n.cfg.Self {
		n.finished(n.cfg.Self, claiming)
	} else {
		n.send(n.rv.leader, Control, n.s.Taken, &Message{Op: wire.ClaimsDone}, 0)
	}
}

// claims at the LMASTER: where records are is noted, what is to be kept of copies is
// decided at SETTLE.
func (n *Node) claims(from PNN, rows []byte) {
	n.rv.progress++
	for len(rows) > 0 {
		var c wire.Claim
		c, rows, _ = wire.NextClaim(rows)
		n.stats.Touched++
		if c.Kind == wire.ClaimOwner {
			n.claimedBy(from, &c)
			continue
		}
		r := n.rec(c.DBID, c.Key)
		if r.claim == nil {
			r.claim = &claim{}
			n.keys = append(n.keys, r)
		}
		k := r.claim
		if c.Kind == wire.ClaimCarried {
			k.copies = append(k.copies, copyClaim{from, c.Bound, c.ReqID, c.Token, c.RSN})
		} else {
			k.wants = append(k.wants, wantClaim{from, c.ReqID})
		}
	}
}

// claimedBy: another node owns a record.
func (n *Node) claimedBy(from PNN, c *wire.Claim) {
	h := n.cfg.Hash(c.DBID, c.Key)
	at := n.places.swap(h, c.DBID, c.Key, location{from, 0, c.RSN})
	if at.pnn == wire.NoPNN && n.own.has(h) && n.store.Look(c.DBID, c.Key, &n.view) {
		at = location{n.cfg.Self, 0, n.view.RSN}
	}
	if at.pnn != wire.NoPNN && at.pnn != from {
		n.fault(fmt.Sprintf("nodes %d and %d both claim to own %s, at RSN %d and %d: stop one of them, whose records are lost then", at.pnn, from, what(c.DBID, c.Key), at.rsn, c.RSN))
	}
}

// settle: SETTLE, all claims of all members are in.
func (n *Node) settle() {
	if n.rv.settling || n.state != stClaimed {
		return
	}
	n.rv.settling = true
	n.own = marks{}
	n.begins(workDecide)
}

// decideKey decides which of the copies of a key is the record, if any.
func (n *Node) decideKey(r *rec) {
	k := r.claim
	if k == nil {
		return // it was decided as its pieces came
	}
	r.claim = nil
	keep := -1
	if _, away := n.place(r); !away && (!n.store.Look(r.db, r.key, &n.view) || n.store.IsProvisional(r.db, r.key)) {
		keep = n.validCopy(k)
	}
	if keep >= 0 && k.copies[keep].carrier != n.cfg.Self {
		n.setPlace(r, location{k.copies[keep].carrier, 0, k.copies[keep].rsn})
	}
	for i, c := range k.copies {
		v := wire.Verdict{Token: c.token, Keep: i == keep}
		if c.carrier == n.cfg.Self {
			n.verdictOn(v) // before any piece of the key is looked at
			continue
		}
		n.verdict.rows[c.carrier] = wire.AppendVerdict(n.verdict.rows[c.carrier], v)
		n.verdict.full(n, c.carrier)
	}
	n.touch(r)
}

// validCopy: one whose receiver takes part with its data and still waits under
// that very REQID. Then it never got the record. An older copy must not win over
// a receiver that had it, changed it, and died.
func (n *Node) validCopy(k *claim) int {
	keep := -1
	for i, c := range k.copies {
		e := n.s.Map.member(c.bound)
		valid := e != nil && !e.Joiner && slices.Contains(k.wants, wantClaim{c.bound, c.reqid})
		if n.plant == plantCopyWithoutWant {
			valid = true
		}
		if !valid {
			continue
		}
		if keep >= 0 && k.copies[keep].reqid != c.reqid && n.plant != plantCopyWithoutWant {
			n.fault(fmt.Sprintf("nodes %d and %d carry copies of one record for different sendings, both of which are waited for", k.copies[keep].carrier, c.carrier))
		}
		if keep < 0 || c.rsn > k.copies[keep].rsn {
			keep = i
		}
	}
	return keep
}

// verdicts at the carriers.
func (n *Node) verdicts(rows []byte) {
	n.rv.progress++
	for len(rows) > 0 {
		var v wire.Verdict
		v, rows, _ = wire.NextVerdict(rows)
		n.verdictOn(v)
	}
	n.maybeSettled()
}

func (n *Node) verdictOn(v wire.Verdict) {
	r := n.tokens[v.Token]
	if r == nil {
		return
	}
	delete(n.tokens, v.Token)
	for i := range r.carry {
		if r.carry[i].token != v.Token {
			continue
		}
		if v.Keep && !n.keepCopy(r, &r.carry[i]) {
			return // the next recovery asks again
		}
		n.dropCarry(r, i)
		n.touch(r)
		return
	}
}

// keepCopy makes a carried copy the record again; false: a fault, it stays a copy.
func (n *Node) keepCopy(r *rec, c *carried) bool {
	if n.store.Look(r.db, r.key, &n.view) {
		n.fault("told to keep the copy of a record that is here: " + what(r.db, r.key))
		return false
	}
	l := n.st.Carried(int(c.at))
	if !n.takeDones(r, l.Dones) || n.arrive(r, &Record{RSN: c.rsn + 1, LAccessor: l.LAccessor, LACount: l.LACount, Data: l.Data, Tags: l.Tags}) != Locked {
		n.dropDones(r)
		n.fault("no room for a record that was under way and stays here: " + what(r.db, r.key))
		return false
	}
	n.store.Unlock(r.db, r.key)
	return true
}

// arrive puts a record into the store that was not there, locked. If it can't, nothing
// is left of it: an empty one in its place would be taken for the record.
func (n *Node) arrive(r *rec, v *Record) LockResult {
	got := n.store.TryLock(r.db, r.key, true)
	if got != Locked {
		return got
	}
	if got = n.store.Publish(r.db, r.key, v, true); got != Locked {
		n.store.Remove(r.db, r.key)
	}
	return got
}

// resupply sends a live piece of this node's to the record's LMASTER, in case the record
// is lost; if it is here, it is not.
func (n *Node) resupply(j *Piece) {
	live := j.State == PieceLive || j.State == PieceRemoving && n.plant == plantResupplyRemoving
	if !live || n.store.Look(j.DB, j.Key, &n.view) && !n.store.IsProvisional(j.DB, j.Key) {
		return
	}
	p := wire.Piece{DBID: j.DB, OPID: j.OPID, Key: j.Key, Data: j.Data}
	l := n.lmaster(j.DB, j.Key)
	n.supply.rows[l] = wire.AppendPiece(n.supply.rows[l], &p)
	n.supply.full(n, l)
}

// resupplied at the LMASTER: a key with an owner or a kept copy has the piece
// already; else a provisional record grows.
func (n *Node) resupplied(rows []byte) {
	for len(rows) > 0 {
		var p wire.Piece
		p, rows, _ = wire.NextPiece(rows)
		r := n.rec(p.DBID, p.Key)
		n.decideKey(r) // its turn may not have come
		if _, away := n.place(r); away {
			continue
		}
		if n.store.Look(p.DBID, p.Key, &n.view) && !n.store.IsProvisional(p.DBID, p.Key) {
			continue
		}
		if !n.store.Provisional(p.DBID, p.Key, p.OPID, p.Data, n.s.Taken) {
			n.fault("no room for a piece of a record that was lost: " + what(p.DBID, p.Key))
		}
	}
}

// maybeSettled: verdicts for all own copies are in, own batches handled.
func (n *Node) maybeSettled() {
	if n.state != stClaimed || !n.rv.settled || n.rv.inFlight > 0 || n.rv.broken {
		return
	}
	if n.carriedN > 0 {
		if n.plant != plantNoCopyClaims {
			return
		}
		for r := n.s.recs.first; r != nil; r = r.next {
			for len(r.carry) > 0 {
				n.dropCarry(r, 0)
			}
		}
	}
	n.state = stSettled
	if n.rv.leader == n.cfg.Self {
		n.finished(n.cfg.Self, settling)
	} else {
		n.send(n.rv.leader, Control, n.s.Taken, &Message{Op: wire.Settled}, 0)
	}
}

// recovered: RECOVERED. One store of the opened epoch makes what was provisional
// normal; then the gate opens and everything pending is sent anew.
func (n *Node) recovered() {
	if n.state != stSettled && n.plant != plantOldRecovered && n.plant != plantOldIncarnation {
		return
	}
	n.st.Open(n.s.Taken)
	n.s.Opened = n.s.Taken
	n.store.OpenProvisional()
	n.state, n.openedAt = stOpen, n.now
	n.gate.State, n.gate.Epoch = GateOpen, n.s.Taken
	n.rv.asked, n.broken, n.blamed = 0, "", nobody
	n.eff.Retry = true
	if set := n.s.Map.set; n.plant != plantNoEvent || n.s.Told != set {
		n.eff.Events = append(n.eff.Events, Event{Epoch: n.s.Taken, Members: set, Joined: set &^ n.s.Told, Left: n.s.Told &^ set, Kept: n.s.ToldLife == n.s.Life})
	}
	if n.leave.done = false; n.s.Taken > n.s.File.Since {
		f := n.s.File
		if f.InUse, f.Old = true, 0; f != n.s.File {
			n.setFile(f)
		}
	}
	n.s.Told, n.s.ToldLife, n.telling = n.s.Map.set, n.s.Life, 1
	n.ping()
	if n.plant != plantRestartLocked {
		n.due(n.now) // locks that were kept have their deadlines
	}
	n.begins(workAgain)
}
