package protocol

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/mainzdb/mainz/protocol/wire"
)

// claim is what an LMASTER has heard of one key in a recovery.
type claim struct {
	owner  PNN
	rsn    uint64
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
	n.order(SendEpoch, ballot)
	n.order(SendCancel, ballot)
	n.rv = recovery{leader: leader, asked: ballot, tookHere: ballot, claimsIn: true}
	n.state = stMapped
	n.leaderAt = n.now
	n.asks, n.walks, n.walkings = n.asks[:0], n.walks[:0], n.walkings[:0]
	n.places.reset()
	clear(n.hints)
	clear(n.tokens) // acks of older epochs free nothing: the copies are claimed
	if self.Joiner {
		n.newLife(self.Life)
	} else {
		n.keepLife(neverOpened)
	}
	n.gate = Gate{State: GateFrozen, Epoch: ballot, Life: n.s.Life, VNN: self.VNN}
	n.ping() // leases of the new epoch, before it opens
	n.claimAll()
	n.claimsAcked()
	n.eff.Retry = true
}

// unknown is how what the clients had open ends, when their segment does.
func (n *Node) unknown() {
	for _, p := range n.s.pend {
		if p != nil && p.client != 0 && !p.abandoned && (p.state != pendDone || n.unasked(p)) {
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
	clear(n.byReq)
	clear(n.again)
	n.freePend, n.pendN, n.parkedN, n.roomOut, n.copies, n.carriedN, n.through = nil, 0, 0, 0, 0, 0, 0
	n.dirty, n.unfinished = n.dirty[:0], n.unfinished[:0]
}

// keepLife: what is volatile goes, and what belongs to nodes that are gone.
func (n *Node) keepLife(neverOpened bool) {
	if neverOpened && n.plant != plantKeepProvisional {
		n.store.DropProvisional()
	}
	for r := n.s.recs.first; r != nil; r = r.next {
		r.claim = nil
		for _, pk := range r.parked {
			n.unpark(pk)
		}
		r.parked = r.parked[:0]
		r.untry()
		for i := len(r.dones) - 1; i >= 0; i-- {
			if r.dones[i].token = 0; !n.alive(r.dones[i].OPID) {
				n.dropDone(r, i)
			}
		}
		if r.lock.held && !n.alive(r.lock.opid) {
			n.endLock(r)
			n.store.Unlock(r.db, r.key)
		}
		for i := range r.carry {
			n.sweepCopy(&r.carry[i])
			r.carry[i].token = n.token(r)
		}
		n.touch(r)
	}
	for _, p := range n.s.pend {
		if p != nil && p.state != pendDone {
			p.state, p.hops = pendNew, 0
		}
	}
	n.store.Sweep(n.alive)
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

// batches fills messages of rows per member and sends them when they are full.
type batches struct {
	n    *Node
	op   wire.Op
	rows [wire.MaxNodes][]byte
}

func (b *batches) add(to PNN, row func(rows []byte) []byte) {
	b.rows[to] = row(b.rows[to])
	if len(b.rows[to]) >= b.n.cfg.ClaimBytes {
		b.n.reached(LimitBatch)
		b.flush(to)
	}
}

func (b *batches) flush(to PNN) {
	if len(b.rows[to]) == 0 {
		return
	}
	n := b.n
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

func (b *batches) done() {
	for i := range b.rows {
		b.flush(PNN(i))
	}
}

// claimAll tells the new LMASTERs what this node has and what it waits for.
func (n *Node) claimAll() {
	b := batches{n: n, op: wire.Claims}
	n.stats.Touched += uint64(n.s.recs.n)
	n.store.Each(func(db uint32, key []byte, rsn uint64) {
		c := wire.Claim{Kind: wire.ClaimOwner, DBID: db, RSN: rsn, Bound: n.cfg.Self, Key: key}
		b.add(n.lmaster(db, key), func(rows []byte) []byte { return wire.AppendClaim(rows, &c) })
	})
	if n.plant != plantNoCopyClaims {
		for r := n.s.recs.first; r != nil; r = r.next {
			for i := range r.carry {
				k := &r.carry[i]
				c := wire.Claim{Kind: wire.ClaimCarried, DBID: r.db, RSN: k.rsn, Bound: k.bound, ReqID: k.reqid, Token: k.token, Key: r.key}
				b.add(n.lmaster(r.db, r.key), func(rows []byte) []byte { return wire.AppendClaim(rows, &c) })
			}
		}
	}
	for _, p := range n.s.pend {
		if p != nil && p.reqid != 0 && p.m.Op.IsRequest() {
			c := wire.Claim{Kind: wire.ClaimWant, DBID: p.m.DBID, Bound: n.cfg.Self, ReqID: p.reqid, Key: p.m.Key}
			b.add(n.lmaster(p.m.DBID, p.m.Key), func(rows []byte) []byte { return wire.AppendClaim(rows, &c) })
		}
	}
	b.done()
	n.sendTable()
}

// controlAcked: a batch of this epoch was handled.
func (n *Node) controlAcked(token uint64) {
	if token != n.batchToken() || n.rv.inFlight == 0 {
		return
	}
	n.rv.inFlight--
	n.claimsAcked()
	n.maybeSettled()
}

// claimsAcked: only when all CLAIMs are handled, as CLAIMS_DONE could overtake
// those on other links.
func (n *Node) claimsAcked() {
	if n.state != stMapped || n.rv.inFlight > 0 || n.rv.broken {
		return
	}
	n.state = stClaimed
	if n.rv.leader == n.cfg.Self {
		n.finished(n.cfg.Self, claiming)
	} else {
		n.send(n.rv.leader, Control, n.s.Taken, &Message{Op: wire.ClaimsDone}, 0)
	}
}

// claims at the LMASTER: noted, decided at SETTLE.
func (n *Node) claims(from PNN, rows []byte) {
	for len(rows) > 0 {
		var c wire.Claim
		c, rows, _ = wire.NextClaim(rows)
		r := n.rec(c.DBID, c.Key)
		if r.claim == nil {
			r.claim = &claim{owner: wire.NoPNN}
		}
		k := r.claim
		switch c.Kind {
		case wire.ClaimOwner:
			if k.owner != wire.NoPNN && k.owner != from {
				n.fault(fmt.Sprintf("nodes %d and %d both claim to own %s, at RSN %d and %d: stop one of them, whose records are lost then", k.owner, from, what(c.DBID, c.Key), k.rsn, c.RSN))
			}
			k.owner, k.rsn = from, c.RSN
		case wire.ClaimCarried:
			k.copies = append(k.copies, copyClaim{from, c.Bound, c.ReqID, c.Token, c.RSN})
		case wire.ClaimWant:
			k.wants = append(k.wants, wantClaim{from, c.ReqID})
		}
	}
}

// settle: SETTLE, all claims of all members are in.
func (n *Node) settle() {
	if n.rv.settling || n.state != stClaimed {
		return
	}
	n.rv.settling = true
	n.settleClaims()
	n.resupply()
	n.rv.settled = true // not earlier: own verdicts come while the batches are made
	n.maybeSettled()
}

// settleClaims decides every key this node is LMASTER of.
func (n *Node) settleClaims() {
	if !n.rv.claimsIn {
		return
	}
	n.rv.claimsIn = false
	n.stats.Touched += uint64(n.s.recs.n)
	b := batches{n: n, op: wire.Verdicts}
	for r := n.s.recs.first; r != nil; r = r.next {
		k := r.claim
		if k == nil {
			continue
		}
		keep := -1
		if k.owner == wire.NoPNN {
			keep = n.validCopy(k)
		}
		switch {
		case k.owner != wire.NoPNN && k.owner != n.cfg.Self:
			n.setPlace(r, location{k.owner, 0, k.rsn})
		case keep >= 0 && k.copies[keep].carrier != n.cfg.Self:
			n.setPlace(r, location{k.copies[keep].carrier, 0, k.copies[keep].rsn})
		}
		for i, c := range k.copies {
			v := wire.Verdict{Token: c.token, Keep: i == keep}
			b.add(c.carrier, func(rows []byte) []byte { return wire.AppendVerdict(rows, v) })
		}
		r.claim = nil
		n.touch(r)
	}
	b.done()
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
	for len(rows) > 0 {
		var v wire.Verdict
		v, rows, _ = wire.NextVerdict(rows)
		r := n.tokens[v.Token]
		if r == nil {
			continue
		}
		delete(n.tokens, v.Token)
		for i := range r.carry {
			if r.carry[i].token != v.Token {
				continue
			}
			if v.Keep && !n.keepCopy(r, &r.carry[i]) {
				break // the next recovery asks again
			}
			n.dropCarry(r, i)
			n.touch(r)
			break
		}
	}
	n.maybeSettled()
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

// resupply sends this node's live pieces in records it does not own to their
// LMASTERs, in case the record is lost.
func (n *Node) resupply() {
	b := batches{n: n, op: wire.Resupply}
	n.st.EachPiece(func(j *Piece) {
		live := j.State == PieceLive || j.State == PieceRemoving && n.plant == plantResupplyRemoving
		if !live || n.store.Look(j.DB, j.Key, &n.view) && !n.store.IsProvisional(j.DB, j.Key) {
			return
		}
		p := wire.Piece{DBID: j.DB, OPID: j.OPID, Key: j.Key, Data: j.Data}
		b.add(n.lmaster(j.DB, j.Key), func(rows []byte) []byte { return wire.AppendPiece(rows, &p) })
	})
	b.done()
}

// resupplied at the LMASTER: a key with an owner or a kept copy has the piece
// already; else a provisional record grows.
func (n *Node) resupplied(rows []byte) {
	for len(rows) > 0 {
		var p wire.Piece
		p, rows, _ = wire.NextPiece(rows)
		r := n.rec(p.DBID, p.Key)
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
	for r := n.s.recs.first; r != nil; r = r.next {
		if len(r.carry) > 0 {
			if n.plant == plantNoCopyClaims {
				for len(r.carry) > 0 {
					n.dropCarry(r, 0)
				}
				continue
			}
			return
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
	var again []*pending
	for _, p := range n.s.pend {
		if p != nil {
			again = append(again, p)
		}
	}
	slices.SortFunc(again, func(a, b *pending) int { return cmp.Compare(a.opid.Counter, b.opid.Counter) })
	for _, p := range again {
		switch {
		case p.state == 0, p.state == pendDone:
		case n.serving():
			n.route(p)
		default:
			n.backoff(p, ms)
		}
	}
	n.stats.Touched += uint64(n.s.recs.n)
	for r := n.s.recs.first; r != nil; r = r.next {
		n.touch(r)
	}
}
