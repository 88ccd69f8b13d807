package protocol

import (
	"fmt"

	"github.com/mainzdb/mainz/protocol/wire"
)

// A recovery has to come by all records, pieces and pending operations of a node. No
// step does that in one go: it would keep PINGs and grants, and with them the leases of
// the others. So it is work, done in the order of these stages, a bounded part in each
// tick; Effects.Next asks for the next one at once.
type stage uint8

const (
	noWork     stage = iota
	workDrop         // mapped: provisional records of epochs that never opened go
	workSweep        // pieces of the dead go
	workOwn          // records that are here are claimed
	workKept         // what is known of keys is kept or dropped, copies are claimed
	workWants        // REQIDs that are outstanding are claimed
	workTable        // databases are told
	workDecide       // claimed, SETTLE: the keys with copies are decided
	workPieces       // pieces are re-supplied
	workAgain        // open: pending operations are sent anew
	workLook         // keys with something waiting are looked at
)

// work is where the node stands in them. A new epoch begins it anew, and within one
// nothing is done twice.
type work struct {
	stage  stage
	cursor uint64 // of the store
	at     int    // in a slice
	pend   *pending
	old    uint64 // planted bug: where an older ballot's claims came to
}

// recordsAtOnce is how many records of the store one call of it may come by.
const recordsAtOnce = 64

// in is the node's state that a stage belongs to.
func (s stage) in() nodeState {
	switch {
	case s <= workTable:
		return stMapped
	case s <= workPieces:
		return stClaimed
	}
	return stOpen
}

// begins a chain of stages.
func (n *Node) begins(s stage) {
	old := n.job
	n.job = work{stage: s, pend: n.pendFirst, old: old.old}
	if old.stage == workOwn && n.plant == plantOldCursor {
		n.job.old = old.cursor
	}
	n.s.recs.walk(walkWork)
	n.work()
}

// next stage.
func (n *Node) nextStage() {
	s := n.job.stage + 1
	if s == workDecide || s > workLook || s == workAgain {
		s = noWork
	}
	n.job = work{stage: s, pend: n.pendFirst, old: n.job.old}
	if s == workOwn {
		n.job.cursor, n.job.old = n.job.old, 0
	}
	n.s.recs.walk(walkWork)
}

// ready: there is work that can be done now.
func (n *Node) ready() bool {
	return n.job.stage != noWork && !n.windowFull()
}

// windowFull: so many batches are on their way that more would only wait in the link.
func (n *Node) windowFull() bool {
	return n.job.stage <= workPieces && n.rv.inFlight >= n.cfg.ClaimWindow*max(1, len(n.s.Map.Members)-1)
}

// work a bounded part.
func (n *Node) work() {
	if n.working {
		return // the loop below is about it
	}
	n.working = true
	defer func() { n.working = false }()
	for budget := n.cfg.Budget; budget > 0 && n.ready(); {
		if n.state != n.job.stage.in() {
			n.job = work{} // of an older ballot
			return
		}
		done := n.part(budget)
		budget -= done
		n.rv.progress += uint64(done)
		n.stats.Touched += uint64(done)
	}
}

// part does one part of a stage; it tells how much that was, at least 1.
func (n *Node) part(budget int) int {
	j := &n.job
	k := min(budget, recordsAtOnce)
	switch j.stage {
	case workDrop:
		j.cursor = n.store.DropProvisional(j.cursor, k)
		n.storeWalked(j.cursor)
		return k
	case workSweep:
		j.cursor = n.store.Sweep(j.cursor, k, n.isAlive)
		n.storeWalked(j.cursor)
		return k
	case workOwn:
		j.cursor = n.store.Each(j.cursor, k, n.claimThis)
		if n.plant == plantSkipRecord && j.cursor != 0 {
			j.cursor++
		}
		if n.plant == plantClaimAnew && j.cursor == 0 && j.at == 0 {
			j.at = 1
			return k
		}
		if j.cursor == 0 {
			n.unlocked = true
		}
		n.storeWalked(j.cursor)
		return k
	case workKept:
		if r := n.s.recs.next(walkWork); r != nil {
			n.keepRec(r)
			return 1 + len(r.carry)
		}
	case workWants:
		if p := j.pend; p != nil {
			j.pend = p.later
			n.keepPending(p)
			return 1
		}
	case workTable:
		if j.at < len(n.s.dbs) {
			n.tellTable(&n.s.dbs[j.at])
			j.at++
			return len(n.s.Map.Members)
		}
		n.claimed.done(n)
		n.nextStage()
		n.claimsAcked()
		return 1
	case workDecide:
		if k := len(n.keys); k > 0 {
			r := n.keys[k-1]
			n.keys = n.keys[:k-1]
			n.decideKey(r)
			return 1
		}
		n.verdict.done(n)
	case workPieces:
		if j.at = n.st.SomePieces(j.at, k, n.supplyThis); j.at != 0 {
			return k
		}
		n.supply.done(n)
		n.rv.settled = true // not earlier: own verdicts come while the batches are made
		n.nextStage()
		n.maybeSettled()
		return 1
	case workAgain:
		if p := j.pend; p != nil {
			j.pend = p.later
			if n.plant != plantNewWaits || p.opid.Counter%2 != 0 {
				n.sendAgain(p)
			}
			return 1
		}
	case workLook:
		if r := n.s.recs.next(walkWork); r != nil {
			r.empty = false
			n.touch(r)
			return 1
		}
	}
	n.nextStage()
	return 1
}

// storeWalked: a walk of the store is over if its cursor is 0.
func (n *Node) storeWalked(cursor uint64) {
	if cursor == 0 {
		n.nextStage()
	}
}

// claimOwn claims a record that is here. What this node is the LMASTER of it need not
// tell itself. A lock that the dispatcher holds for nobody was handed to the one before
// it just before that died.
func (n *Node) claimOwn(db uint32, key []byte, rsn uint64, empty bool) {
	h := n.cfg.Hash(db, key)
	if !n.unlocked && n.store.Holder(db, key) == Dispatcher {
		if r := n.s.recs.find(h, db, key); r == nil || !r.lock.held {
			n.store.Unlock(db, key)
		}
	}
	l := n.s.Map.lmaster(h)
	if empty {
		n.rec(db, key).empty = true // it is given back when the gate is open
	}
	if l != n.cfg.Self {
		c := wire.Claim{Kind: wire.ClaimOwner, DBID: db, RSN: rsn, Bound: n.cfg.Self, Key: key}
		n.claim(l, &c)
		return
	}
	n.own.add(h)
	if at, away := n.places.get(h, db, key); away { // its claim was here first
		n.fault(fmt.Sprintf("nodes %d and %d both claim to own %s, at RSN %d and %d: stop one of them, whose records are lost then", at.pnn, l, what(db, key), at.rsn, rsn))
	}
}

func (n *Node) claim(l PNN, c *wire.Claim) {
	had := len(n.claimed.rows[l])
	n.claimed.rows[l] = wire.AppendClaim(n.claimed.rows[l], c)
	if n.plant == plantBatchCut && had > 0 && len(n.claimed.rows[l]) >= n.cfg.ClaimBytes {
		n.claimed.rows[l] = n.claimed.rows[l][:had]
	}
	n.claimed.full(n, l)
}

// keepRec: what is volatile goes, and what belongs to nodes that are gone; the copies
// that stay are claimed.
func (n *Node) keepRec(r *rec) {
	for i := len(r.dones) - 1; i >= 0; i-- {
		if r.dones[i].token = 0; !n.alive(r.dones[i].OPID) {
			n.dropDone(r, i)
		}
	}
	if r.lock.held && (!n.alive(r.lock.opid) || n.plant == plantForgetLocks) {
		n.endLock(r)
		n.store.Unlock(r.db, r.key)
	}
	for i := range r.carry {
		k := &r.carry[i]
		n.sweepCopy(k)
		k.token = n.token(r)
		if n.plant == plantNoCopyClaims {
			continue
		}
		c := wire.Claim{Kind: wire.ClaimCarried, DBID: r.db, RSN: k.rsn, Bound: k.bound, ReqID: k.reqid, Token: k.token, Key: r.key}
		n.claim(n.s.Map.lmaster(r.hash), &c)
	}
	for _, pk := range r.parked {
		n.unpark(pk)
	}
	r.parked = r.parked[:0]
	r.untry()
	n.touch(r)
}

// keepPending: what is pending is sent anew when the gate is open. What is outstanding is
// claimed, as a copy that it waits for may be the record.
func (n *Node) keepPending(p *pending) {
	if p.state != pendDone {
		p.state, p.hops = pendNew, 0
	}
	if p.reqid != 0 && p.m.Op.IsRequest() {
		c := wire.Claim{Kind: wire.ClaimWant, DBID: p.m.DBID, Bound: n.cfg.Self, ReqID: p.reqid, Key: p.m.Key}
		n.claim(n.lmaster(p.m.DBID, p.m.Key), &c)
	}
}

// sendAgain, behind the opened gate.
func (n *Node) sendAgain(p *pending) {
	switch {
	case p.state != pendNew: // it has come here since
	case n.serving():
		n.route(p)
	default:
		n.backoff(p, ms)
	}
}
