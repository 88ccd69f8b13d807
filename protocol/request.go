package protocol

import (
	"bytes"
	"errors"

	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/protocol/wire"
)

// ErrFull: the table of pending operations is full; ask again when some have ended. What
// gives a remote lock back is refused only at twice the limit.
var ErrFull = errors.New("too many operations are pending on this node")

// Submit takes a local client's request: m holds the operation, its key, data and
// REQTIMEOUT. Its Reply carries the cookie. The OPID is drawn here, in the step
// that makes the pending entry: one drawn earlier could lie below a floor that is
// on its way already, and its done entry would be forgotten.
//
// The client and the cookie name the call, over restarts of the dispatcher: who asks
// again after one meets the entry that is there, and keeps its OPID. Until then nothing
// that was pending is answered.
func (n *Node) Submit(now Instant, c ClientID, cookie uint64, m *Message) (OPID, error) {
	n.begin(now)
	if p := n.again[call{c, cookie}]; p != nil {
		o := p.opid
		n.askedAgain(p, m)
		n.finish()
		return o, nil
	}
	if n.pendN >= n.cfg.MaxPending {
		n.reached(LimitPending)
		if !endsLock(m) || n.pendN >= 2*n.cfg.MaxPending || n.plant == plantUnlockWaits {
			return OPID{}, ErrFull
		}
	}
	// The piece first: an append that is pending has one, or it was its client's.
	removes := false
	switch {
	case m.Op == wire.ReqConditionalAppend && m.Piece != (OPID{}):
		// The client has the piece in its journal already, under a name of its own.
	case m.Op == wire.ReqConditionalAppend && n.mode(m.DBID) == Pieces:
		if !n.st.PutPiece(n.nextOPID(), c, m.DBID, m.Key, m.Data) {
			return OPID{}, ErrFull
		}
	case m.Op == wire.ReqRemoveTrigger && n.st.Piece(m.Piece) != nil:
		n.st.SetPiece(m.Piece, PieceRemoving)
		removes = true
	}
	p := n.makePending(c, cookie, m, false, removes)
	if p == nil {
		n.st.ErasePiece(n.nextOPID())
		return OPID{}, ErrFull
	}
	o := p.opid
	n.start(p)
	n.finish()
	return o, nil
}

// endsLock: what gives a lock back that is held at another node. It has as much room again
// as all others: these may be the ones that wait for the lock.
func endsLock(m *Message) bool {
	return m.LockID != 0 && (m.Op == wire.ReqUnlock || m.Op == wire.ReqStoreUnlock)
}

// askedAgain: the client of an operation from before the restart is there, and waits.
// What has ended meanwhile is answered. One that was abandoned is waited for again: it
// goes on under its old name, for it may be in a done list.
func (n *Node) askedAgain(p *pending, m *Message) {
	delete(n.again, call{p.client, p.cookie})
	k := &p.kept
	switch {
	case p.state != pendDone:
		p.deadline = max(p.deadline, n.now+Instant(m.Timeout)*ms)
		if p.abandoned {
			p.abandoned = false
			n.save(p)
		}
		return
	case p.undone && (k.Status == wire.Timeout || k.Status == wire.OK) && p.m.Op == wire.ReqConditionalAppend && n.mode(p.m.DBID) == Pieces:
		n.reply(p, wire.Unknown, nil, 0, 0, 0) // its piece is out of the journal, or on its way out
	case p.undone && (k.Status == wire.Timeout || k.Status == wire.OK && p.m.Op == wire.ReqFetchLocked && k.LockID != 0):
		n.runAgain(p, m) // it has not run, or its lock is being given back
		return
	case p.data || p.m.Op != wire.ReqFetchLocked || k.Status != wire.OK:
		n.reply(p, k.Status, p.dbuf, k.RSN, k.LockID, k.Why)
	case k.LockID != 0: // the value went with the last dispatcher; who has the lock gives it again
		n.runAgain(p, m)
		return
	default: // the client's slot holds the record
		n.view = Record{}
		n.store.Look(p.m.DBID, p.m.Key, &n.view)
		n.reply(p, k.Status, n.view.Data, n.view.RSN, 0, 0)
	}
	n.ended = append(n.ended, endedCall{p, p.opid})
}

// runAgain has an operation run that has ended, under the same OPID.
func (n *Node) runAgain(p *pending, m *Message) {
	p.deadline = max(p.deadline, n.now+Instant(m.Timeout)*ms)
	p.state, p.data, p.abandoned, p.undone = pendNew, false, false, false
	p.kept.LockID, p.kept.Status = 0, wire.OK
	n.stage(p, StageOpen, 0)
	n.start(p)
}

// drop an ended operation that nobody will ask for: its effect is taken back.
func (n *Node) dropEnded(p *pending) {
	delete(n.again, call{p.client, p.cookie})
	if p.undone {
		n.ended = append(n.ended, endedCall{p, p.opid})
		return
	}
	n.complete(p, p.kept.Status, nil, p.kept.RSN, p.kept.LockID, 0)
}

// start a new pending operation if the gate lets it.
func (n *Node) start(p *pending) {
	if n.serving() {
		n.route(p)
	} else {
		n.backoff(p, ms) // looked at again by the clock; the opening of the gate comes first
		if n.state != stOpen {
			p.state = pendNew
		}
	}
}

func (n *Node) newPending(c ClientID, cookie uint64, m *Message) *pending {
	if n.pendN >= n.cfg.MaxPending {
		n.reached(LimitPending)
		return nil
	}
	return n.makePending(c, cookie, m, false, false)
}

func (n *Node) nextOPID() OPID {
	return OPID{PNN: n.cfg.Self, Life: n.s.Life, Counter: n.s.OPIDs + 1}
}

// makePending whatever the limit; nil: Stable has no line.
func (n *Node) makePending(c ClientID, cookie uint64, m *Message, undo, removes bool) *pending {
	var p *pending
	if k := len(n.freePend); k > 0 {
		p, n.freePend = n.freePend[k-1], n.freePend[:k-1]
	} else {
		p = &pending{slot: len(n.s.pend)}
		n.s.pend = append(n.s.pend, nil)
	}
	// In place: these structs are large, and a copy on the way would cost as much as the rest.
	slot, kbuf, dbuf := p.slot, append(p.kbuf[:0], m.Key...), append(p.dbuf[:0], m.Data...)
	*p = pending{}
	p.slot, p.kbuf, p.dbuf, p.opid, p.client, p.cookie, p.undo, p.removes = slot, kbuf, dbuf, n.nextOPID(), c, cookie, undo, removes
	p.deadline, p.state, p.to = n.now+Instant(m.Timeout)*ms, pendNew, wire.NoPNN
	p.m = *m
	if m.Op == wire.ReqFetchLocked && m.LockTimeout == 0 && n.plant != plantNoLockDefault {
		p.m.LockTimeout = uint32(n.cfg.LockTimeout / ms)
	}
	p.m.Conds = bytes.Clone(m.Conds)
	p.m.Key, p.m.Data, p.m.OPID, p.m.Via, p.m.Hops, p.m.ReqID = kbuf, dbuf, p.opid, 0, 0, 0
	p.kept.Client, p.kept.Undo, p.kept.Removes = c, undo, removes
	n.line.PendingState, n.line.Cookie, n.line.OPID, n.line.M = p.kept, cookie, p.opid, p.m
	if !n.st.PutPending(p.slot, &n.line) {
		n.freePend = append(n.freePend, p)
		return nil
	}
	n.s.OPIDs++
	n.pendN++
	n.s.pend[p.slot] = p
	n.list(p)
	return p
}

// list puts a new operation behind all that are pending.
func (n *Node) list(p *pending) {
	p.listed, p.earlier, p.later = true, n.pendLast, nil
	if n.pendLast != nil {
		n.pendLast.later = p
	} else {
		n.pendFirst = p
	}
	n.pendLast = p
}

func (n *Node) unlist(p *pending) {
	if !p.listed {
		return
	}
	p.listed = false
	if n.job.pend == p {
		n.job.pend = p.later
	}
	if p.earlier != nil {
		p.earlier.later = p.later
	} else {
		n.pendFirst = p.later
	}
	if p.later != nil {
		p.later.earlier = p.earlier
	} else {
		n.pendLast = p.earlier
	}
	p.earlier, p.later = nil, nil
}

func (n *Node) freePending(p *pending) {
	if p.reqid != 0 {
		n.dropReq(p)
	}
	n.st.ErasePending(p.slot)
	n.unlist(p)
	n.s.pend[p.slot] = nil
	if len(n.again) > 0 {
		delete(n.again, call{p.client, p.cookie})
	}
	p.state = 0
	n.freePend = append(n.freePend, p)
	n.pendN--
}

// newReq names one sending. All 32 bits advance; what is outstanding is skipped.
func (n *Node) newReq(p *pending) ReqID {
	for {
		n.s.ReqIDs++
		if _, taken := n.byReq[n.s.ReqIDs]; n.s.ReqIDs != 0 && !taken {
			break
		}
	}
	p.reqid = n.s.ReqIDs
	n.byReq[p.reqid] = p
	return p.reqid
}

// endReq: a reply, redirect, error or REPLY_DMASTER came for this sending. What is
// parked behind it is looked at anew.
func (n *Node) endReq(p *pending) {
	n.dropReq(p)
	n.save(p)
}

// dropReq is endReq but for Stable.
func (n *Node) dropReq(p *pending) {
	delete(n.byReq, p.reqid)
	if n.plant != plantKeepRoom {
		n.roomOut -= int64(p.room)
	}
	p.reqid, p.room = 0, 0
	n.rec(p.m.DBID, p.m.Key)
}

// route brings a pending operation to where its record should be.
func (n *Node) route(p *pending) {
	if p.reqid != 0 {
		n.endReq(p)
	}
	switch p.m.Op {
	case wire.OpenDB:
		n.routeOpen(p)
		return
	case wire.ReqTraverse:
		n.routeWalk(p)
		return
	}
	p.state = pendLocal
	n.serveLocal(p)
}

// serveLocal tries p here; it ends, is parked, or is sent out by elsewhere.
func (n *Node) serveLocal(p *pending) {
	r := n.s.recs.get(n.cfg.Hash(p.m.DBID, p.m.Key), p.m.DBID, p.m.Key)
	behind, stay := n.serve(r, &p.m, n.cfg.Self, p, p.deadline, nil)
	if !stay {
		n.touch(r)
		return
	}
	n.look(r)
	n.park(r, &p.m, n.cfg.Self, p, p.deadline, behind)
}

// dispatch sends a pending operation to the node that should have the record.
func (n *Node) dispatch(p *pending, to PNN, via ReqID) {
	if to == n.cfg.Self || n.s.Map.member(to) == nil {
		n.backoff(p, 0)
		return
	}
	p.state, p.to = pendOut, to
	p.m.ReqID, p.m.Via, p.m.Hops = n.newReq(p), via, 0
	if p.m.Op.IsRequest() {
		p.room = n.room()
	}
	n.save(p)
	n.roomOut += int64(p.room)
	p.m.Src, p.m.Room = n.ownVNN(), p.room
	p.m.Timeout = uint32(max(0, p.deadline-n.now) / ms)
	if n.plant == plantTimeoutEarly {
		p.m.Timeout /= 3
	}
	n.stats.Requests++
	n.data(to, &p.m, 0)
}

// room is what can be promised to a record that comes for one more request: of the
// store's reserve what is neither promised yet nor may be needed for a copy that
// comes back. So a record that was promised room finds it, whatever local clients
// write meanwhile.
func (n *Node) room() uint32 {
	if n.leave.on {
		return 0
	}
	free := int64(n.store.Room())
	if n.plant != plantPromiseTwice {
		free -= n.roomOut + n.copies
	}
	return uint32(max(0, min(free, int64(n.cfg.RoomShare))))
}

// backoff: nobody seems to know; ask the LMASTER again a little later.
func (n *Node) backoff(p *pending, least Instant) {
	if p.reqid != 0 {
		n.endReq(p)
	}
	n.stats.Backoffs++
	wait := min(300*link.Microsecond<<min(p.backoffs, 5), 5*ms)
	p.backoffs++
	p.state, p.hops = pendBackoff, 0
	p.until = n.now + max(least, wait/2+n.jitter(wait/2))
	if n.plant == plantLongBackoff {
		p.until += 150 * ms
	}
	n.hints.drop(n.rec(p.m.DBID, p.m.Key).hash)
	n.due(p.until)
}

// redirected: CTDB_REPLY_REDIRECT.
func (n *Node) redirected(m *Message) {
	p := n.byReq[m.ReqID]
	if p == nil {
		return
	}
	n.stats.Redirects++
	n.endReq(p)
	r := n.rec(p.m.DBID, p.m.Key)
	to, ok := n.s.Map.pnn(m.DMaster)
	if p.hops++; !ok || p.hops > n.cfg.MaxHops {
		if ok {
			n.reached(LimitRedirects)
		}
		n.backoff(p, 0)
		return
	}
	if to == n.s.Map.lmaster(r.hash) {
		n.hints.drop(r.hash)
	} else if to != n.cfg.Self {
		n.hint(r.hash, to)
	}
	p.state = pendLocal
	if to == n.cfg.Self {
		if m.Via != 0 && n.byReq[m.Via] != nil {
			n.park(r, &p.m, n.cfg.Self, p, p.deadline, m.Via)
		} else if n.mine(r) {
			n.serveLocal(p)
		} else {
			n.backoff(p, 0)
		}
		return
	}
	if n.mine(r) {
		n.serveLocal(p)
		return
	}
	hops := p.hops
	n.dispatch(p, to, m.Via)
	p.hops = hops
}

// mine: this node owns the record, or is its LMASTER and nobody else does.
func (n *Node) mine(r *rec) bool {
	if n.store.Look(r.db, r.key, &n.view) {
		return true
	}
	if n.s.Map.lmaster(r.hash) != n.cfg.Self {
		return false
	}
	_, away := n.place(r)
	return !away
}

// replied: a reply or an error.
func (n *Node) replied(from PNN, m *Message) {
	p := n.byReq[m.ReqID]
	if p == nil {
		return
	}
	if m.Op == wire.ReplyError {
		if m.Status == wire.VNNMap {
			n.backoff(p, 0)
			return
		}
		n.answered(p, from)
		n.complete(p, m.Status, nil, 0, 0, 0)
		return
	}
	if m.Op != p.m.Op.Reply() {
		return
	}
	lock := ReqID(0)
	if m.Op == wire.ReplyFetchLocked {
		lock = m.ReqID
	}
	n.answered(p, from)
	n.complete(p, wire.OK, m.Data, m.RSN, lock, m.Why)
}

// answered ends the sending and remembers who answered.
func (n *Node) answered(p *pending, from PNN) {
	n.endReq(p)
	r := n.rec(p.m.DBID, p.m.Key)
	if from != n.cfg.Self && from != n.s.Map.lmaster(r.hash) {
		n.hint(r.hash, from)
	} else {
		n.hints.drop(r.hash)
	}
}

// complete ends an operation of this node. For one that was abandoned and has had
// an effect the dispatcher takes the effect back.
func (n *Node) complete(p *pending, st wire.Status, data []byte, rsn uint64, lock ReqID, why uint32) {
	switch {
	case p.removes && (st == wire.Timeout || st == wire.NoMemory) && !(p.undo && n.plant == plantDeadGiveUp):
		// A removal is never taken back. A recovery may have left the piece out
		// already, as one under removal; if it were called live again it would be an
		// acknowledged piece that is in no record. So the client's waiting ends here,
		// and the dispatcher goes on until the piece is gone, however long it takes.
		if p.deadline = n.now + 1000*ms; !n.unasked(p) {
			if p.client != 0 && !p.abandoned && !p.heard {
				n.reply(p, st, nil, 0, 0, 0)
			}
			p.client = 0
			n.save(p)
		}
		n.backoff(p, 5*ms)
		return
	case p.undo && (st == wire.Timeout || st == wire.NoMemory) && n.plant != plantDeadGiveUp:
		p.deadline = n.now + 1000*ms
		n.backoff(p, 5*ms)
		return
	case p.m.Op == wire.ReqRemoveTrigger && st == wire.NotFound && n.st.Piece(p.m.Piece) != nil:
		st = wire.OK // it was lost with its record
	}
	n.remoteLocks(p, st, lock)
	n.noteEnd(p, st, rsn, lock, why)
	j := n.journal(p, st)
	switch {
	case p.abandoned && st == wire.OK && p.m.Op == wire.ReqFetchLocked && lock != 0 && n.plant != plantKeepGivenUp:
		n.undo(&Message{Op: wire.ReqUnlock, DBID: p.m.DBID, Key: p.m.Key, LockID: lock, Timeout: 1000}, false)
	case p.abandoned && st == wire.OK && p.m.Op == wire.ReqConditionalAppend && (j != nil || p.m.Piece != (OPID{})) && n.plant != plantDeadAppend:
		n.removePiece(&Piece{OPID: p.piece(), DB: p.m.DBID, Key: p.m.Key, Data: p.m.Data})
	}
	p.undone = p.abandoned
	waits := p.client != 0 && !p.abandoned && !p.heard
	switch {
	case p.client != 0 && n.unasked(p):
		// Kept until its client asks again: that may have read the answer of the last
		// dispatcher, and another one would be no answer to anything. Or it has given up,
		// and does not know whether the last dispatcher has heard so.
		p.data, p.dbuf = true, append(p.dbuf[:0], data...)
		p.state = pendDone
		return
	case waits:
		n.reply(p, st, data, rsn, lock, why)
		if !repeats(p.m.Op) { // until the answer is given
			p.state = pendDone
			n.ended = append(n.ended, endedCall{p, p.opid})
			return
		}
	case p.client != 0 && p.abandoned && !p.kept.Gone && !repeats(p.m.Op) && n.plant != plantAbandonedTwice: // until its client is told
		p.state = pendDone
		n.ended = append(n.ended, endedCall{p, p.opid})
		return
	}
	n.freePending(p)
}

// unasked: the operation is from before the restart, and its client has not asked again.
func (n *Node) unasked(p *pending) bool {
	return len(n.again) > 0 && p.client != 0 && !p.kept.Gone && n.again[call{p.client, p.cookie}] == p
}

// piece is the name of what an append adds: its client's, or the operation's.
func (p *pending) piece() OPID {
	if p.m.Op == wire.ReqConditionalAppend && p.m.Piece != (OPID{}) {
		return p.m.Piece
	}
	return p.opid
}

// reply to the local client that waits.
func (n *Node) reply(p *pending, st wire.Status, data []byte, rsn uint64, lock ReqID, why uint32) {
	from := len(n.eff.buf)
	n.eff.buf = append(n.eff.buf, data...)
	n.eff.Replies = append(n.eff.Replies, Reply{Client: p.client, Cookie: p.cookie, Op: p.m.Op, Status: st, RSN: rsn, OPID: p.piece(), LockID: lock, Why: why, at: [2]int{from, len(n.eff.buf)}})
}

// journal brings the client's journal up to date, before the reply is
// acknowledged: the client may be slow or dead.
func (n *Node) journal(p *pending, st wire.Status) *Piece {
	switch p.m.Op {
	case wire.ReqConditionalAppend:
		switch {
		case st != wire.OK:
			n.st.ErasePiece(p.piece())
		case n.plant != plantJournalLate:
			n.st.SetPiece(p.piece(), PieceLive)
			return n.st.Piece(p.piece())
		default:
			return n.st.Piece(p.opid)
		}
	case wire.ReqRemoveTrigger:
		switch st {
		case wire.OK:
			n.st.ErasePiece(p.m.Piece)
		case wire.Timeout, wire.NoMemory, wire.NotFound:
		default:
			n.st.SetPiece(p.m.Piece, PieceLive) // refused for good: it is still in the record
		}
	}
	return nil
}

// undo starts an operation of the dispatcher's own, whatever the limit: it stands for
// one that has ended, or for a piece.
func (n *Node) undo(m *Message, removes bool) {
	u := n.makePending(0, 0, m, true, removes)
	if u == nil {
		n.cfg.Fault("no line to take back an abandoned operation")
		return
	}
	if n.plant == plantUnlockLate && !removes || n.plant == plantDeadLater && removes {
		n.backoff(u, 300*ms)
		return
	}
	n.start(u)
}

// removePiece takes a piece out of its record, on the dispatcher's own account.
func (n *Node) removePiece(j *Piece) {
	n.st.SetPiece(j.OPID, PieceRemoving)
	n.undo(&Message{Op: wire.ReqRemoveTrigger, DBID: j.DB, Key: j.Key, Data: j.Data, Piece: j.OPID, Timeout: 1000}, true)
}

// Abandon: a local client waits no longer. The operation goes on.
func (n *Node) Abandon(now Instant, c ClientID, cookie uint64) {
	n.begin(now)
	for _, p := range n.s.pend {
		if p != nil && p.client == c && p.cookie == cookie {
			if p.state == pendDone && !n.unasked(p) {
				continue // the answer has crossed it
			}
			p.abandoned = true
			n.save(p)
			if p.state == pendDone {
				n.dropEnded(p)
				continue
			}
			n.leaves(p)
		}
	}
	n.finish()
}

// leaves has p, which nobody waits for any more, end now if it is parked here.
func (n *Node) leaves(p *pending) {
	r := n.s.recs.get(n.cfg.Hash(p.m.DBID, p.m.Key), p.m.DBID, p.m.Key)
	n.look(r)
	if p.parked != nil {
		n.tryNow(r, p.parked)
	}
}

// ClientGone: a client has died; its handles and locks are recovered already. Its
// pieces are removed, those under removal too; those with an append under way
// when that ends. Its locks at other nodes are let go.
func (n *Node) ClientGone(now Instant, c ClientID) {
	n.begin(now)
	appends := map[OPID]bool{}
	removes := map[OPID]bool{}
	var ended []*pending // and its client has not asked
	for _, p := range n.s.pend {
		if p != nil && p.removes {
			removes[p.m.Piece] = true // goes on by itself
		}
		if p == nil || p.client != c {
			continue
		}
		p.abandoned, p.kept.Gone = true, true
		n.save(p)
		if p.state == pendDone {
			appends[p.opid] = true // if it is one; its piece goes with it
			ended = append(ended, p)
			continue
		}
		n.leaves(p)
		if p.m.Op == wire.ReqConditionalAppend {
			appends[p.piece()] = true
		}
	}
	if n.plant != plantDeadKeepsLock {
		n.dropLocks(c)
	}
	one := false
	n.st.EachPiece(func(j *Piece) { // a removal that ends at once erases its entry
		switch {
		case j.Client != c || appends[j.OPID] || removes[j.OPID]:
		case n.plant == plantDeadFirst && one:
		case n.plant == plantDeadErase:
			n.st.ErasePiece(j.OPID)
		default:
			one = true
			n.removePiece(j)
		}
	})
	for _, p := range ended {
		n.dropEnded(p)
	}
	n.finish()
}
