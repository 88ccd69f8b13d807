package protocol

import (
	"bytes"
	"fmt"

	"github.com/mainzdb/mainz/protocol/wire"
)

// request: a packet from another node.
func (n *Node) request(m *Message) Verdict {
	src, ok := n.s.Map.pnn(m.Src)
	if !ok || src == n.cfg.Self {
		return Handled
	}
	if m.Dest != n.ownVNN() {
		n.replyError(m, src, wire.VNNMap)
		return Handled
	}
	r := n.s.recs.get(n.cfg.Hash(m.DBID, m.Key), m.DBID, m.Key)
	deadline := n.now + Instant(m.Timeout)*ms
	behind, stay := n.serve(r, m, src, nil, deadline, nil)
	if stay {
		n.look(r)
		if n.parkedN >= n.cfg.MaxParked && behind != 0 && n.plant != plantParkedCut {
			n.reached(LimitParkedLater)
			return NotYet // it may have run already, so it can't be refused here
		}
		if n.parkedN >= n.cfg.MaxParked {
			n.reached(LimitParked)
			n.replyError(m, src, wire.NoMemory)
			return Handled
		}
		n.park(r, m, src, nil, deadline, behind)
		return Handled
	}
	n.touch(r)
	return Handled
}

// park keeps a request until its record is free, its condition true, or the
// record here.
func (n *Node) park(r *rec, m *Message, src PNN, p *pending, deadline Instant, behind ReqID) {
	var pk *parked
	if k := len(n.freeParked); k > 0 {
		pk, n.freeParked = n.freeParked[k-1], n.freeParked[:k-1]
	} else {
		pk = &parked{}
	}
	pk.m, pk.src, pk.p, pk.deadline, pk.behind = *m, src, p, deadline, behind
	if p == nil {
		pk.kbuf, pk.dbuf = append(pk.kbuf[:0], m.Key...), append(pk.dbuf[:0], m.Data...)
		pk.m.Key, pk.m.Data = pk.kbuf, pk.dbuf
	} else {
		p.state, p.parked = pendLocal, pk
	}
	r.parked = append(r.parked, pk)
	n.parkedN++
	if !n.serving() {
		r.again = true // it was not tried
	}
	n.due(deadline)
}

func (n *Node) unpark(pk *parked) {
	if pk.p != nil && pk.p.parked == pk {
		pk.p.parked = nil
	}
	pk.due = false
	pk.p, pk.m = nil, Message{}
	n.freeParked = append(n.freeParked, pk)
	if n.plant != plantKeepParked {
		n.parkedN--
	}
}

// settleRec looks at a record at the end of a step: at what waits for it, then
// whether anything keeps it here.
func (n *Node) settleRec(r *rec) {
	if n.serving() {
		n.drain(r)
		n.giveBack(r)
	}
	if r.idle() && n.plant != plantKeepIdle {
		n.s.recs.drop(r)
	}
}

// drain tries what is parked: what is due, and if the record may have changed all, in
// order. It stops after MaxTries between two Ticks, and the next one goes on: requests
// for other records come in between. A change meanwhile makes it begin anew when it is
// at the end, so everybody's turn comes.
func (n *Node) drain(r *rec) {
	emptied, gone := r.emptied, false
	try := func(i int) (more bool) {
		if n.tries >= n.cfg.MaxTries {
			n.reached(LimitTries)
			n.goOnWith(r)
			return false
		}
		n.tries++
		pk := r.parked[i]
		if pk.due {
			pk.due = false
			r.due--
		}
		if n.try(r, pk) {
			return true
		}
		if r.emptied != emptied { // a handover has emptied the queue
			n.unpark(pk)
			return false
		}
		r.parked[i], gone = nil, true
		n.unpark(pk)
		return n.plant != plantFirstWaiter
	}
	for i := 0; r.due > 0 && i < len(r.parked); i++ {
		if pk := r.parked[i]; pk != nil && pk.due && !try(i) {
			break
		}
	}
	for r.emptied == emptied && !r.listed {
		if !r.owed {
			if !r.again {
				break
			}
			r.owed, r.again, r.at = true, false, 0
		}
		for ; r.at < len(r.parked); r.at++ {
			if r.parked[r.at] != nil && !try(r.at) {
				break
			}
		}
		r.owed = r.at < len(r.parked)
	}
	if r.emptied != emptied {
		// What is there came after the handover, or waits for the record to come.
		if r.again || len(r.parked) > 0 {
			n.touch(r)
		}
		return
	}
	if gone {
		kept := r.parked[:0]
		at := r.at
		for i, pk := range r.parked {
			if pk != nil {
				kept = append(kept, pk)
			} else if i < at {
				r.at--
			}
		}
		clear(r.parked[len(kept):])
		r.parked = kept
	}
}

// try tries a request that is parked; false: it has ended, or is on its way elsewhere.
func (n *Node) try(r *rec, pk *parked) (stay bool) {
	if pk.behind != 0 && n.byReq[pk.behind] == nil {
		pk.behind = 0
		pk.m.Via = 0
	}
	// Whoever waits for the record waits till it comes, REQTIMEOUT or not: what is
	// sent again after a recovery may have run, and only the record's done list knows.
	if pk.behind != 0 && (pk.deadline > n.now || n.plant != plantTimeoutBehind) && !n.store.Look(r.db, r.key, &n.view) {
		return true
	}
	m := &pk.m
	if pk.p != nil {
		m = &pk.p.m
	}
	if pk.behind != 0 && pk.deadline <= n.now && !n.store.Look(r.db, r.key, &n.view) {
		n.answer(m, pk.src, pk.p, wire.Timeout, nil, 0, 0)
		return false
	}
	_, stay = n.serve(r, m, pk.src, pk.p, pk.deadline, pk)
	return stay
}

// tryNow has a parked request tried at the end of the step.
func (n *Node) tryNow(r *rec, pk *parked) {
	if !pk.due {
		pk.due = true
		r.due++
	}
	n.look(r)
}

// untry: nothing is parked any more.
func (r *rec) untry() { r.owed, r.again, r.at, r.due = false, false, 0, 0 }

// goOnWith has the rest of what is parked tried by a Tick.
func (n *Node) goOnWith(r *rec) {
	if !r.listed {
		r.listed = true
		n.unfinished = append(n.unfinished, r)
	}
}

// goOn tries what there was no time for.
func (n *Node) goOn() {
	if !n.serving() {
		return
	}
	for _, r := range n.unfinished {
		if r.listed = false; n.plant == plantTriesCut {
			r.untry()
		}
		n.look(r)
	}
	n.unfinished = n.unfinished[:0]
}

// giveBack: an empty record goes back to its LMASTER, but not before its done list
// is empty: an operation that is sent again must find it.
func (n *Node) giveBack(r *rec) {
	if !n.store.Look(r.db, r.key, &n.view) {
		return
	}
	n.store.Attend(r.db, r.key, len(r.parked) > 0 && n.plant != plantNoAttend)
	if !n.view.Empty() || len(r.parked) > 0 || r.lock.held {
		return
	}
	if len(r.dones) > 0 && n.plant != plantDeleteGivesBack {
		return
	}
	if n.store.Holder(r.db, r.key) != 0 || n.store.TryLock(r.db, r.key, false) != Locked {
		return
	}
	// A client may have filled it before it was locked.
	if !n.store.Look(r.db, r.key, &n.view) || !n.view.Empty() {
		n.store.Unlock(r.db, r.key)
		return
	}
	rsn := n.view.RSN
	n.store.Remove(r.db, r.key)
	n.dropDones(r)
	if l := n.s.Map.lmaster(r.hash); l != n.cfg.Self {
		n.data(l, &Message{Op: wire.RequestDMaster, DBID: r.db, Src: n.ownVNN(), DMaster: n.s.Map.vnn(l), Key: r.key, RSN: rsn + 1}, 0)
	}
}

// serve decides about one request at this node. stay: it is to wait here, behind
// one of our own REQIDs or, if that is 0, for its record. pk: it waits already.
func (n *Node) serve(r *rec, m *Message, src PNN, p *pending, deadline Instant, pk *parked) (behind ReqID, stay bool) {
	own := n.store.Look(r.db, r.key, &n.view)
	if !own {
		l := n.s.Map.lmaster(r.hash)
		if l != n.cfg.Self {
			return n.elsewhere(r, m, src, p, l, location{})
		}
		if at, away := n.place(r); away {
			return n.elsewhere(r, m, src, p, l, at)
		}
	}
	if !n.serving() {
		return 0, true
	}
	if !own {
		n.view = Record{LAccessor: wire.NoPNN}
	}
	gone := p != nil && p.abandoned && p.client != 0 && !p.removes
	// The done list first, also for one that nobody waits for: if it has run
	// elsewhere and the record is here now, it is to be taken back.
	if n.plant != plantNoDoneList && !(gone && n.plant == plantAbandonFirst) {
		for _, d := range r.dones {
			if d.OPID == m.OPID {
				n.answer(m, src, p, d.Status, nil, 0, 0)
				return 0, false
			}
		}
	}
	if gone {
		n.complete(p, wire.Timeout, nil, 0, 0, 0) // nobody waits, and it has not run
		return 0, false
	}
	return 0, !n.execute(r, m, src, p, deadline, pk)
}

// elsewhere: the record is not here. l is its LMASTER; if that is this node, the record
// is at at.
func (n *Node) elsewhere(r *rec, m *Message, src PNN, p *pending, l PNN, at location) (behind ReqID, stay bool) {
	if p != nil {
		switch {
		case l == n.cfg.Self:
			n.dispatch(p, at.pnn, at.reqid)
		default:
			to := n.hints.get(r.hash)
			if to == wire.NoPNN {
				to = l
			}
			n.dispatch(p, to, 0)
		}
		return 0, false
	}
	if n.plant == plantParkBehindAny {
		for _, q := range n.s.pend {
			if q != nil && q.reqid != 0 && q.m.DBID == r.db && bytes.Equal(q.m.Key, r.key) {
				return q.reqid, true
			}
		}
	} else if m.Via != 0 && n.byReq[m.Via] != nil {
		return m.Via, true // the record is on its way to us
	}
	if l != n.cfg.Self {
		n.redirect(m, src, l, 0)
		return 0, false
	}
	if at.pnn == src || m.Hops >= n.cfg.MaxHops {
		if at.pnn != src {
			n.reached(LimitHops)
		}
		n.redirect(m, src, at.pnn, at.reqid)
		return 0, false
	}
	n.stats.Forwards++
	f := *m
	f.Via, f.Hops = at.reqid, m.Hops+1
	n.data(at.pnn, &f, 0)
	return 0, false
}

func (n *Node) redirect(m *Message, src, to PNN, via ReqID) {
	n.data(src, &Message{Op: wire.ReplyRedirect, DBID: m.DBID, Src: n.ownVNN(), ReqID: m.ReqID, DMaster: n.s.Map.vnn(to), Via: via}, 0)
}

func (n *Node) replyError(m *Message, src PNN, st wire.Status) {
	n.data(src, &Message{Op: wire.ReplyError, DBID: m.DBID, Src: n.ownVNN(), ReqID: m.ReqID, Status: st, Epoch: n.s.Taken}, 0)
}

// answer ends a request, of another node or of a client here.
func (n *Node) answer(m *Message, src PNN, p *pending, st wire.Status, data []byte, rsn uint64, why uint32) {
	n.answerToken(m, src, p, st, data, rsn, why, 0)
}

func (n *Node) answerToken(m *Message, src PNN, p *pending, st wire.Status, data []byte, rsn uint64, why uint32, token uint64) {
	switch {
	case p != nil:
		n.complete(p, st, data, rsn, 0, why)
	case n.s.Map.member(src) == nil:
	case st != wire.OK:
		n.replyError(m, src, st)
	default:
		n.data(src, &Message{Op: m.Op.Reply(), DBID: m.DBID, Src: n.ownVNN(), ReqID: m.ReqID, Data: data, RSN: rsn, Why: why}, token)
	}
}

// wait: what can't be done now ends or stays.
func (n *Node) wait(m *Message, src PNN, p *pending, deadline Instant, st wire.Status) (ended bool) {
	if deadline > n.now {
		return false
	}
	n.answer(m, src, p, st, nil, 0, 0)
	return true
}

// execute runs a request at the DMASTER; false: it has to wait. n.view is the
// record as it stands.
func (n *Node) execute(r *rec, m *Message, src PNN, p *pending, deadline Instant, pk *parked) bool {
	n.stats.Executed++
	if p == nil && len(r.dones) >= n.cfg.MaxDone && !n.pruneRec(r) && n.plant != plantDoneCut {
		n.reached(LimitDone)
		return n.wait(m, src, p, deadline, wire.NoMemory)
	}
	mode := n.mode(r.db)
	switch {
	case mode == NoMode:
		n.answer(m, src, p, wire.NoDB, nil, 0, 0)
		return true
	case m.Op == wire.ReqFetch:
		if p == nil && n.store.Holder(r.db, r.key) == 0 && n.moves(r, m, src) {
			return n.handover(r, m, src, pk)
		}
		n.answer(m, src, p, wire.OK, n.view.Data, n.view.RSN, 0)
		return true
	case m.Op == wire.ReqWatch:
		if n.view.RSN != m.RSN {
			n.answer(m, src, p, wire.OK, nil, n.view.RSN, wire.WatchChanged)
			return true
		}
		if deadline > n.now {
			n.attend(r)
			return false
		}
		n.answer(m, src, p, wire.OK, nil, n.view.RSN, wire.WatchTimeout)
		return true
	case m.Op == wire.ReqUnlock || m.Op == wire.ReqStoreUnlock && m.LockID != 0:
		n.unlock(r, m, src, p, mode)
		return true
	case m.Op == wire.ReqFetchLocked && r.lock.held && (r.lock.opid == m.OPID || n.plant == plantLockTwice && r.lock.opid.PNN == src):
		if n.plant != plantLockOldReqid {
			n.st.SetLock(int(r.lock.at), m.ReqID)
			r.lock.reqid = m.ReqID // asked again after a recovery
		}
		n.answer(m, src, p, wire.OK, n.view.Data, n.view.RSN, 0)
		return true
	}
	st, data, tags := n.plan(r, m, src, mode)
	if st != wire.OK {
		return n.refused(r, m, src, p, deadline, pk, st)
	}
	if r.lock.held && n.plant != plantMoveLocked {
		return n.wait(m, src, p, deadline, wire.Timeout)
	}
	if n.plant == plantMoveLocked && r.lock.held && p == nil && n.moves(r, m, src) {
		n.endLock(r)
		return n.handover(r, m, src, pk)
	}
	switch n.store.TryLock(r.db, r.key, false) {
	case Held:
		return n.wait(m, src, p, deadline, wire.Timeout)
	case NoSpace:
		n.answer(m, src, p, wire.NoMemory, nil, 0, 0)
		return true
	}
	// Until it was locked, clients of this node changed it without asking: what
	// counts is the record as it is now. TryLock may have made it, too.
	if n.plant != plantOldLook {
		n.store.Look(r.db, r.key, &n.view)
		st, data, tags = n.plan(r, m, src, mode)
	}
	if st != wire.OK {
		n.store.Unlock(r.db, r.key)
		return n.refused(r, m, src, p, deadline, pk, st)
	}
	if p == nil && n.moves(r, m, src) {
		return n.handover(r, m, src, pk)
	}
	if m.Op == wire.ReqFetchLocked {
		n.lockFor(r, m, src, p)
		return true
	}
	return n.commit(r, m, src, p, data, tags) || n.wait(m, src, p, deadline, wire.Timeout)
}

// refused ends a request that its record does not allow; false: it waits until
// the condition may be true.
func (n *Node) refused(r *rec, m *Message, src PNN, p *pending, deadline Instant, pk *parked, st wire.Status) bool {
	if st != wire.Condition || deadline <= n.now {
		n.answer(m, src, p, st, nil, 0, 0)
		return true
	}
	if p == nil && n.plant == plantWaiterMoves && n.store.Holder(r.db, r.key) == 0 && n.cfg.Policy.Move(m.Op, src, src, 1<<20) {
		return n.handover(r, m, src, pk)
	}
	n.attend(r)
	return false
}

// attend a record on which a request waits for a change.
func (n *Node) attend(r *rec) {
	n.leave.came = true
	if !n.store.Look(r.db, r.key, &n.view) {
		if n.store.TryLock(r.db, r.key, false) != Locked {
			return
		}
		n.store.Unlock(r.db, r.key)
	}
	if n.plant != plantNoAttend {
		n.store.Attend(r.db, r.key, true)
	}
}

// lockFor gives the lock that the dispatcher holds to who asked.
func (n *Node) lockFor(r *rec, m *Message, src PNN, p *pending) {
	if p != nil {
		n.stage(p, StageIntentLock, 0)
		n.store.UnlockTo(r.db, r.key, p.client, p.cookie)
		n.stage(p, StageDone, n.view.RSN)
		n.complete(p, wire.OK, n.view.Data, n.view.RSN, 0, 0)
		return
	}
	until := n.now + Instant(m.LockTimeout)*ms
	if n.plant == plantLockShort {
		until = n.now + Instant(m.LockTimeout)*ms/4
	}
	n.lline = LockLine{OPID: m.OPID, ReqID: m.ReqID, Deadline: until, DB: r.db, Key: r.key}
	at := n.st.PutLock(&n.lline)
	if at < 0 {
		n.store.Unlock(r.db, r.key)
		n.answer(m, src, p, wire.NoMemory, nil, 0, 0)
		return
	}
	r.lock = remoteLock{at: int32(at), held: true, opid: m.OPID, reqid: m.ReqID, deadline: until}
	n.due(r.lock.deadline)
	n.answer(m, src, p, wire.OK, n.view.Data, n.view.RSN, 0)
}

// unlock: UNLOCK, and STORE_UNLOCK of a lock.
func (n *Node) unlock(r *rec, m *Message, src PNN, p *pending, mode Mode) {
	held := r.lock.held && (r.lock.reqid == m.LockID && r.lock.opid.PNN == src || n.plant == plantUnlockAny)
	if n.plant == plantStoreWithoutLock && m.Op == wire.ReqStoreUnlock && n.store.Holder(r.db, r.key) == 0 {
		held = n.store.TryLock(r.db, r.key, false) == Locked
	}
	switch {
	case !held:
		n.answer(m, src, p, wire.NotLocked, nil, 0, 0)
		return
	case m.Op == wire.ReqStoreUnlock && mode == Pieces && (len(m.Data) > 0 || !n.view.Empty()):
		n.answer(m, src, p, wire.Mode, nil, 0, 0)
		return
	}
	if m.Op == wire.ReqStoreUnlock {
		if !n.commit(r, m, src, p, m.Data, nil) {
			n.answer(m, src, p, wire.NoMemory, nil, 0, 0)
		}
		return
	}
	at := -1
	if p != nil {
		n.stage(p, StageDone, n.view.RSN)
	} else {
		n.dline = DoneLine{Done: wire.Done{OPID: m.OPID, Status: wire.OK}, Lock: m.LockID, DB: r.db, Key: r.key}
		if at = n.st.PutDone(&n.dline); at < 0 {
			n.answer(m, src, p, wire.NoMemory, nil, 0, 0)
			return
		}
	}
	n.endLock(r)
	n.store.Unlock(r.db, r.key)
	n.done(r, m, src, p, at)
}

// plan says what a request would make of the record in n.view, or why it can't.
func (n *Node) plan(r *rec, m *Message, src PNN, mode Mode) (st wire.Status, data, tags []byte) {
	switch m.Op {
	case wire.ReqFetchLocked:
		return wire.OK, nil, nil
	case wire.ReqStoreUnlock:
		if mode == Pieces && (len(m.Data) > 0 || !n.view.Empty()) {
			return wire.Mode, nil, nil
		}
		return wire.OK, m.Data, nil
	case wire.ReqDelete:
		if mode == Pieces && !n.view.Empty() {
			return wire.Mode, nil, nil
		}
		if n.view.Empty() {
			return wire.NotFound, nil, nil
		}
		return wire.OK, nil, nil
	case wire.ReqConditionalAppend:
		if mode == Pieces && m.Piece != (OPID{}) {
			if src != n.cfg.Self && (m.Piece.PNN != src || !n.s.Map.alive(m.Piece)) {
				return wire.Mode, nil, nil // somebody else's name: the piece would go with them
			}
			if hasPiece(n.view.Tags, m.Piece) { // asked again under another OPID: it has run
				return wire.OK, n.view.Data, n.view.Tags
			}
		}
		yes, known := n.cfg.Conditions.Check(m.Cond, n.view.Data, n.view.Tags, m.Data)
		if !known {
			return wire.NoCondition, nil, nil
		}
		if !yes {
			if n.cfg.Conditions.Malformed(m.Cond, n.view.Data, n.view.Tags, m.Data) {
				return wire.Malformed, nil, nil
			}
			return wire.Condition, nil, nil
		}
		if len(n.view.Data)+len(m.Data) > wire.MaxData {
			return wire.TooBig, nil, nil
		}
		n.scratch = append(append(n.scratch[:0], n.view.Data...), m.Data...)
		n.tagbuf = n.tagbuf[:0]
		if mode == Pieces {
			piece := m.OPID
			if m.Piece != (OPID{}) && n.plant != plantUnnamedPiece {
				piece = m.Piece
			}
			n.tagbuf = wire.AppendTag(append(n.tagbuf, n.view.Tags...), wire.Tag{OPID: piece, Len: uint32(len(m.Data))})
		}
		return wire.OK, n.scratch, n.tagbuf
	case wire.ReqRemoveTrigger:
		if mode == KV {
			i, k, known := n.cfg.Conditions.Find(m.Cond, n.view.Data, m.Data)
			switch {
			case !known:
				return wire.NoCondition, nil, nil
			case k < 1 || i < 0 || i > len(n.view.Data) || k > len(n.view.Data)-i:
				if n.cfg.Conditions.Malformed(m.Cond, nil, nil, m.Data) {
					return wire.Malformed, nil, nil
				}
				return wire.NotFound, nil, nil
			}
			n.scratch = append(append(n.scratch[:0], n.view.Data[:i]...), n.view.Data[i+k:]...)
			return wire.OK, n.scratch, nil
		}
		if m.Piece.PNN != src {
			return wire.Mode, nil, nil // only the owner's node
		}
		n.scratch, n.tagbuf = n.scratch[:0], n.tagbuf[:0]
		at, found := 0, false
		for rest := n.view.Tags; len(rest) > 0; {
			t, next, _ := wire.NextTag(rest)
			if t.OPID == m.Piece {
				found = true
			} else {
				n.scratch = append(n.scratch, n.view.Data[at:at+int(t.Len)]...)
				n.tagbuf = wire.AppendTag(n.tagbuf, t)
			}
			at += int(t.Len)
			rest = next
		}
		if !found {
			return wire.NotFound, nil, nil
		}
		return wire.OK, n.scratch, n.tagbuf
	}
	return wire.BadPacket, nil, nil
}

// hasPiece tells whether a piece is in a record of these tags.
func hasPiece(tags []byte, o OPID) bool {
	for len(tags) > 0 {
		t, rest, _ := wire.NextTag(tags)
		if t.OPID == o {
			return true
		}
		tags = rest
	}
	return false
}

// commit publishes a new value and releases the lock, one of another node's client as
// well; false: it can't yet, and nothing has changed. What is about to happen is noted
// before it does, and that it has before anybody else can lock the record.
func (n *Node) commit(r *rec, m *Message, src PNN, p *pending, data, tags []byte) (ended bool) {
	n.put = Record{RSN: n.view.RSN + 1, LAccessor: n.view.LAccessor, LACount: n.view.LACount, Data: data, Tags: tags}
	if p != nil {
		n.put.Cookie = p.cookie
	}
	n.leave.came = true
	at, published := n.intend(r, m, p, n.put.RSN), NoSpace
	if at >= 0 || p != nil {
		published = n.store.Publish(r.db, r.key, &n.put, false)
		n.ran(p, at, published == Locked)
	}
	if r.lock.held {
		n.endLock(r)
	}
	n.store.Unlock(r.db, r.key)
	switch published {
	case Held:
		return false
	case NoSpace:
		n.answer(m, src, p, wire.NoMemory, nil, 0, 0)
	default:
		n.done(r, m, src, p, at)
	}
	return true
}

// done answers a success, which stands in line at of the done lists if it was for another
// node.
func (n *Node) done(r *rec, m *Message, src PNN, p *pending, at int) {
	n.touch(r) // what waits may go on; it may be empty now
	if p != nil {
		n.complete(p, wire.OK, nil, 0, 0, 0)
		return
	}
	t := n.token(r)
	r.dones = append(r.dones, doneEntry{Done: wire.Done{OPID: m.OPID, Status: wire.OK}, at: int32(at), token: t})
	n.answerToken(m, src, p, wire.OK, nil, 0, 0, t)
}

// contended: others than this node wait for the record's lock. It stays while they do:
// their requests would have to follow it at each move, as many messages as there are who
// wait. Watchers and appends that wait for a condition do not count, as they may
// wait for ever.
func (n *Node) contended(r *rec, src PNN) bool {
	if n.plant == plantMoveContended {
		return false
	}
	left := 64 // to look at: a queue may be long
	for _, pk := range r.parked {
		if pk == nil {
			continue // it has ended in this very turn
		}
		if left--; left < 0 {
			break
		}
		op := pk.m.Op
		if pk.p != nil {
			op = pk.p.m.Op
		}
		if pk.src != src && pk.behind == 0 && (op == wire.ReqFetchLocked || op == wire.ReqStoreUnlock || op == wire.ReqDelete || op == wire.ReqRemoveTrigger) {
			return true
		}
	}
	return false
}

// moves counts the access and asks the policy.
func (n *Node) moves(r *rec, m *Message, src PNN) bool {
	acc, count := n.cfg.Policy.Count(src, n.view.LAccessor, n.view.LACount)
	n.store.Touch(r.db, r.key, acc, count)
	n.view.LAccessor, n.view.LACount = acc, count
	if !n.leave.on && (!n.cfg.Policy.Move(m.Op, src, acc, count) || n.contended(r, src)) || m.Op == wire.ReqFetch && n.view.Empty() {
		return false
	}
	if len(n.view.Data) > int(m.Room) {
		n.reached(LimitRoom)
		return false
	}
	return n.carriedN < n.cfg.MaxCarried
}

// handover passes the record on to the node that asked, through the LMASTER.
// Preconditions: the request could be completed now; nobody holds the record but
// the dispatcher.
func (n *Node) handover(r *rec, m *Message, to PNN, pk *parked) bool {
	switch n.store.TryLock(r.db, r.key, false) {
	case Held, NoSpace:
		return false
	}
	n.store.Look(r.db, r.key, &n.view)
	n.stats.Handovers++
	n.leave.gone, n.leave.goneAt = n.leave.gone+1, n.now
	n.note(r, n.view.RSN, n.view.Data)
	n.rows = n.rows[:0]
	for _, d := range r.dones {
		n.rows = wire.AppendDone(n.rows, d.Done)
	}
	c := n.carry(r, to, m.ReqID, &n.view, n.rows, false)
	n.store.Remove(r.db, r.key)
	n.st.SetCarried(int(c.at))
	n.dropDones(r)
	if l := n.s.Map.lmaster(r.hash); l == n.cfg.Self {
		n.setPlace(r, location{to, m.ReqID, c.rsn})
		n.sendRecord(wire.ReplyDMaster, to, r, c, to)
	} else {
		n.sendRecord(wire.RequestDMaster, l, r, c, to)
	}
	// The queue follows its record; redirecting it would let all who wait race
	// after the record, seven redirects an operation on a hot one.
	for _, q := range r.parked {
		if q == pk || q == nil { // nil: it has just ended
			continue
		}
		switch {
		case q.p != nil:
			n.dispatch(q.p, to, m.ReqID)
		case q.src == to:
			n.redirect(&q.m, q.src, to, m.ReqID)
		default:
			f := q.m
			f.Via, f.Timeout = m.ReqID, uint32(max(0, q.deadline-n.now)/ms)
			n.data(to, &f, 0)
		}
		n.unpark(q)
	}
	r.parked = r.parked[:0]
	r.untry()
	r.emptied++
	return true
}

// carry makes a carried copy of a record. One that passes through this node stands for it
// at once; the other when the record has left.
func (n *Node) carry(r *rec, bound PNN, reqid ReqID, v *Record, dones []byte, through bool) *carried {
	n.cline = CarriedLine{Preparing: !through, Through: through, Bound: bound, ReqID: reqid, RSN: v.RSN, LAccessor: v.LAccessor, LACount: v.LACount,
		DB: r.db, Key: r.key, Data: v.Data, Tags: v.Tags, Dones: dones}
	at := n.st.PutCarried(&n.cline)
	if at < 0 {
		panic("protocol: no line for a carried copy, though they were counted")
	}
	r.carry = append(r.carry, carried{at: int32(at), token: n.token(r), bound: bound, through: through, reqid: reqid, rsn: v.RSN, size: len(v.Data)})
	n.copies += int64(len(v.Data))
	n.carriedN++
	if through {
		n.through++
	}
	return &r.carry[len(r.carry)-1]
}

// sendRecord sends REQUEST_DMASTER or REPLY_DMASTER with a carried copy.
func (n *Node) sendRecord(op wire.Op, dest PNN, r *rec, c *carried, bound PNN) {
	l := n.st.Carried(int(c.at))
	n.data(dest, &Message{Op: op, DBID: r.db, Src: n.ownVNN(), ReqID: c.reqid, DMaster: n.s.Map.vnn(bound), Key: r.key, Data: l.Data, RSN: c.rsn,
		LAccessor: n.s.Map.vnn(l.LAccessor), LACount: l.LACount, Dones: l.Dones, Tags: l.Tags}, c.token)
}

// requestDMaster at the LMASTER: the record passes through, or stays.
func (n *Node) requestDMaster(from PNN, m *Message) Verdict {
	r := n.rec(m.DBID, m.Key)
	to, ok := n.s.Map.pnn(m.DMaster)
	at, away := n.place(r)
	if !ok || n.s.Map.lmaster(r.hash) != n.cfg.Self || !away || at.pnn != from || m.RSN < at.rsn && m.ReqID != 0 {
		n.fault(fmt.Sprintf("node %d passes on %s, and is not where that is", from, what(m.DBID, m.Key)))
		return NotYet // and then of an older epoch: its copy is claimed
	}
	for i := len(r.carry) - 1; i >= 0; i-- {
		if r.carry[i].bound == from { // it has arrived there, or it could not come from there
			delete(n.tokens, r.carry[i].token)
			n.dropCarry(r, i)
		}
	}
	if to != n.cfg.Self && n.carriedN >= n.cfg.MaxCarried || to != n.cfg.Self && n.through > 0 && int64(n.store.Room())-n.roomOut-n.copies < int64(len(m.Data)) && n.plant != plantCarryAll {
		// The copy may have to become the record here. One is always let through: its
		// receiver has promised room, so it does not stay. Copies of what left this
		// node are no reason to wait, as two nodes could wait for each other.
		n.crowded = true
		n.reached(LimitThrough)
		return NotYet
	}
	if m.ReqID == 0 && len(m.Data) == 0 { // given back, empty
		n.noPlace(r)
		return Handled
	}
	if to == n.cfg.Self {
		return n.become(r, m)
	}
	n.setPlace(r, location{to, m.ReqID, m.RSN})
	acc, _ := n.s.Map.pnn(m.LAccessor)
	c := n.carry(r, to, m.ReqID, &Record{RSN: m.RSN, LAccessor: acc, LACount: m.LACount, Data: m.Data, Tags: m.Tags}, m.Dones, true)
	n.note(r, m.RSN, m.Data)
	n.sendRecord(wire.ReplyDMaster, to, r, c, to)
	return Handled
}

// become the owner of a record that has arrived, even if nobody waits for it any
// more; then end the REQID by which it travelled and serve what waits behind it. What
// can't be taken is not acknowledged, so that its sender keeps the copy.
func (n *Node) become(r *rec, m *Message) Verdict {
	acc, _ := n.s.Map.pnn(m.LAccessor)
	rsn := m.RSN + 1
	if n.plant == plantKeepRSN {
		rsn = m.RSN
	}
	if n.store.Look(r.db, r.key, &n.view) {
		n.fault("a record arrives that is here already: " + what(r.db, r.key))
		return NotYet
	}
	// What has run on it comes before the record does: who asks again must find both.
	if !n.takeDones(r, m.Dones) {
		n.dropDones(r)
		return NotYet
	}
	n.put = Record{RSN: rsn, LAccessor: acc, LACount: m.LACount, Data: m.Data, Tags: m.Tags}
	switch n.arrive(r, &n.put) {
	case Held:
		n.dropDones(r)
		return NotYet
	case NoSpace:
		n.dropDones(r)
		// A promise of this node's own store. No recovery makes room; the record waits
		// with its carrier until there is some.
		n.cfg.Fault("no room for a record that was promised room: " + what(r.db, r.key))
		return NotYet
	}
	n.leave.came = true
	n.note(r, rsn, m.Data)
	n.hints.drop(r.hash)
	n.noPlace(r)
	n.store.Unlock(r.db, r.key)
	if p := n.byReq[m.ReqID]; p != nil {
		n.endReq(p)
		p.state = pendLocal
		n.serveLocal(p)
	}
	return Handled
}
