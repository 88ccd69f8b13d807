package protocol

import (
	"cmp"
	"slices"

	"github.com/mainzdb/mainz/protocol/wire"
)

// What the core writes into Stable, and how it takes it up again after a restart.

// endedCall is an operation whose reply was given out.
type endedCall struct {
	p    *pending
	opid OPID // p may be another's by then
}

// forget all of the old life.
func (s *mirror) forget(life uint64) {
	s.Life, s.OPIDs, s.Memory = life, 0, wire.MemoryFull
	s.pend, s.dbs, s.recs = nil, nil, recTable{}
}

// save what has changed of a pending operation.
func (n *Node) save(p *pending) {
	k := &p.kept
	k.Client, k.Abandoned, k.Undo, k.Removes, k.ReqID, k.Room = p.client, p.abandoned, p.undo, p.removes, p.reqid, p.room
	n.st.SetPending(p.slot, k)
}

// stage notes how far an operation has come here.
func (n *Node) stage(p *pending, s Stage, rsn uint64) {
	p.kept.Stage, p.kept.RSN = s, rsn
	if s == StageDone {
		p.kept.Status = wire.OK
	}
	n.save(p)
}

// repeats: an operation that may as well run again has no end to be kept.
func repeats(op wire.Op) bool {
	switch op {
	case wire.ReqFetch, wire.ReqWatch, wire.ReqTraverse, wire.OpenDB:
		return true
	}
	return false
}

// noteEnd: from here on the operation does not run again, however often it is asked for.
func (n *Node) noteEnd(p *pending, st wire.Status, rsn uint64, lock ReqID, why uint32) {
	k, sent, again := &p.kept, p.reqid != 0, repeats(p.m.Op)
	if sent {
		n.dropReq(p)
	}
	switch {
	case again && !n.unasked(p): // its line goes at once
		return
	case !again && !sent && k.Stage == StageDone && k.Status == st && k.LockID == lock:
		return
	case !again:
		k.Stage = StageDone
	}
	k.Status, k.RSN, k.LockID, k.Why = st, rsn, lock, why
	n.save(p)
}

// intend notes that a record is about to change for p or, if that is nil, for another
// node's operation, which gets a line in the done lists; -1: it has none.
func (n *Node) intend(r *rec, m *Message, p *pending, rsn uint64) (at int) {
	if p != nil {
		n.stage(p, StageIntent, rsn)
		return -1
	}
	n.dline = DoneLine{Done: wire.Done{OPID: m.OPID, Status: wire.OK}, Intent: true, RSN: rsn, DB: r.db, Key: r.key}
	if r.lock.held {
		n.dline.Lock = r.lock.reqid
	}
	return n.st.PutDone(&n.dline)
}

// ran notes whether it has changed.
func (n *Node) ran(p *pending, at int, yes bool) {
	switch {
	case p != nil && yes:
		n.stage(p, StageDone, p.kept.RSN)
	case p != nil:
		n.stage(p, StageOpen, 0)
	case yes:
		n.st.SetDone(at)
	default:
		n.st.EraseDone(at)
	}
}

// endLock ends the lock of another node's client. The record's own goes behind it.
func (n *Node) endLock(r *rec) {
	if r.lock.held {
		n.st.EraseLock(int(r.lock.at))
	}
	r.lock = remoteLock{}
}

func (n *Node) dropDone(r *rec, i int) {
	n.st.EraseDone(int(r.dones[i].at))
	r.dones = append(r.dones[:i], r.dones[i+1:]...)
}

// dropDones of a record that is not here any more.
func (n *Node) dropDones(r *rec) {
	for _, d := range r.dones {
		n.st.EraseDone(int(d.at))
		delete(n.tokens, d.token)
	}
	r.dones = r.dones[:0]
}

// takeDones makes a done list of what came with a record; false: there is no room.
func (n *Node) takeDones(r *rec, rows []byte) bool {
	n.dropDones(r)
	for len(rows) > 0 {
		var d wire.Done
		d, rows, _ = wire.NextDone(rows)
		n.dline = DoneLine{Done: d, DB: r.db, Key: r.key}
		at := n.st.PutDone(&n.dline)
		if at < 0 {
			return false
		}
		r.dones = append(r.dones, doneEntry{Done: d, at: int32(at)})
	}
	return true
}

// given: the effects of the last Take are carried out. What was answered then is over,
// and the clients know the epoch.
func (n *Node) given() {
	for _, e := range n.ended[:n.endedOut] {
		if e.p.state == pendDone && e.p.opid == e.opid {
			n.freePending(e.p)
		}
	}
	if len(n.ended) > 0 {
		k := copy(n.ended, n.ended[n.endedOut:])
		n.ended, n.endedOut = n.ended[:k], k
	}
	if n.telling == 2 {
		n.st.Tell(n.s.Told, n.s.ToldLife)
		n.telling = 0
	}
	if n.telling == 1 {
		n.telling = 2
	}
}

// load takes up what the dispatcher before this one has left, and decides what was under
// way when it died.
func (n *Node) load() {
	s := n.s
	s.Words = n.st.Load()
	s.Map.index()
	s.dbs = append(s.dbs, n.st.Databases()...)
	n.loadFile()
	if s.Memory == wire.MemoryFull && n.store.Life() != s.Life {
		n.store.Reset(s.Life) // it died between the two
	}
	if s.Taken != 0 && s.Opened == s.Taken {
		n.store.OpenProvisional()
	}
	of := func(db uint32, key []byte) *rec { return s.recs.get(n.cfg.Hash(db, key), db, key) }
	n.st.DoneLines(func(at int, l *DoneLine) {
		r := of(l.DB, l.Key)
		r.dones = append(r.dones, doneEntry{Done: l.Done, at: int32(at), intent: l.Intent, rsn: l.RSN, lock: l.Lock})
	})
	n.st.LockLines(func(at int, l *LockLine) {
		r := of(l.DB, l.Key)
		r.lock = remoteLock{at: int32(at), held: true, opid: l.OPID, reqid: l.ReqID, deadline: l.Deadline}
		if n.plant != plantRestartLocked {
			n.due(l.Deadline)
		}
	})
	n.st.CarriedLines(func(at int, l *CarriedLine) {
		r := of(l.DB, l.Key)
		r.carry = append(r.carry, carried{at: int32(at), token: n.token(r), bound: l.Bound, through: l.Through, preparing: l.Preparing, reqid: l.ReqID, rsn: l.RSN, size: len(l.Data)})
		n.copies += int64(len(l.Data))
		n.carriedN++
		if l.Through {
			n.through++
		}
	})
	for r := s.recs.first; r != nil; r = r.next {
		n.takeUp(r)
		n.touch(r)
	}
	n.loadPending()
}

// takeUp decides what was under way with one record. The dead dispatcher had it locked
// until that was noted as done.
func (n *Node) takeUp(r *rec) {
	here := n.store.Look(r.db, r.key, &n.view)
	held := n.store.Holder(r.db, r.key) == Dispatcher
	for i := len(r.carry) - 1; i >= 0; i-- {
		c := &r.carry[i]
		switch {
		case !c.preparing:
		case here && n.view.RSN == c.rsn: // it has not left
			delete(n.tokens, c.token)
			n.dropCarry(r, i)
		default:
			n.st.SetCarried(int(c.at))
			c.preparing = false
		}
	}
	if r.lock.held && !held {
		n.endLock(r)
	}
	for i := len(r.dones) - 1; i >= 0; i-- {
		d := &r.dones[i]
		if !here || d.intent && n.view.RSN < d.rsn {
			n.dropDone(r, i)
			continue
		}
		if d.intent {
			n.st.SetDone(int(d.at))
			d.intent = false
		}
		if d.lock != 0 && r.lock.held && r.lock.reqid == d.lock {
			n.endLock(r)
		}
	}
}

// loadPending takes up the operations of local clients and the dispatcher's own. The
// records that the dispatcher had locked are still so.
func (n *Node) loadPending() {
	s := n.s
	var over []*pending
	n.st.PendingLines(func(at int, l *PendingLine) {
		for len(s.pend) <= at {
			s.pend = append(s.pend, nil)
		}
		p := &pending{slot: at, opid: l.OPID, client: l.Client, cookie: l.Cookie, abandoned: l.Abandoned, undo: l.Undo, removes: l.Removes,
			reqid: l.ReqID, room: l.Room, kept: l.PendingState, state: pendNew, to: wire.NoPNN, deadline: n.now + Instant(l.M.Timeout)*ms}
		p.m = l.M
		p.kbuf, p.dbuf = append(p.kbuf, l.M.Key...), append(p.dbuf, l.M.Data...)
		p.m.Key, p.m.Data, p.m.Conds = p.kbuf, p.dbuf, append([]byte(nil), l.M.Conds...)
		s.pend[at] = p
		n.pendN++
	})
	live := slices.DeleteFunc(slices.Clone(s.pend), func(p *pending) bool { return p == nil })
	slices.SortFunc(live, func(a, b *pending) int { return cmp.Compare(a.opid.Counter, b.opid.Counter) })
	for _, p := range live {
		n.list(p)
	}
	for i, p := range s.pend {
		if p == nil {
			n.freePend = append(n.freePend, &pending{slot: i})
			continue
		}
		switch k := &p.kept; k.Stage {
		case StageIntent:
			if n.store.Look(p.m.DBID, p.m.Key, &n.view) && n.view.RSN >= k.RSN {
				n.stage(p, StageDone, k.RSN)
			} else {
				n.stage(p, StageOpen, 0)
			}
		case StageIntentLock:
			if n.store.Holder(p.m.DBID, p.m.Key) == p.client {
				n.stage(p, StageDone, k.RSN)
			} else {
				n.stage(p, StageOpen, 0)
			}
		}
		if p.kept.Stage == StageDone {
			p.state = pendDone
		}
		switch {
		case p.client == 0:
			if p.state == pendDone {
				over = append(over, p)
			}
		case p.kept.Gone || p.abandoned && n.plant == plantAbandonedTwice:
			if p.state == pendDone {
				over = append(over, p)
			}
		default:
			// Also if it was abandoned: the dispatcher that heard so may have died before
			// it said so, and then the client asks again.
			n.again[call{p.client, p.cookie}] = p
			switch {
			case p.state == pendDone && p.abandoned:
				over = append(over, p)
			case p.state == pendDone:
				n.journal(p, p.kept.Status)
			}
		}
		if p.reqid != 0 {
			n.byReq[p.reqid] = p
			n.roomOut += int64(p.room)
		}
	}
	// A piece that was prepared for an operation which was not pending yet.
	n.st.EachPiece(func(j *Piece) {
		if j.State == PiecePrepared && j.OPID.Counter&bypassOPID == 0 && !n.isPending(j.OPID) {
			n.st.ErasePiece(j.OPID)
		}
	})
	for _, p := range over {
		n.complete(p, p.kept.Status, nil, p.kept.RSN, p.kept.LockID, 0)
		p.data = false // the value went with the last dispatcher
	}
}

func (n *Node) isPending(o OPID) bool {
	for _, p := range n.s.pend {
		if p != nil && p.opid == o {
			return true
		}
	}
	return false
}

// remember what a promise file is for: what is promised and taken, and by which nodes
// file. What relies on it waits for Saved.
func (n *Node) remember() {
	if n.cfg.PromiseFile {
		n.saves++
		n.eff.Save = n.saves
	}
}

// remembered: all that was to be saved is.
func (n *Node) remembered() bool { return n.saved >= n.saves }

// Saved: the promise file holds what was to be saved under this number.
func (n *Node) Saved(now Instant, number uint64) {
	n.begin(now)
	n.saved = max(n.saved, number)
	if n.remembered() {
		if n.state == stPromised {
			n.sendPromise()
		}
		n.claimsAcked()
	}
	n.finish()
}

// AskedAll: a client has asked again all that it has no answer to. What is kept of others
// has reached it.
func (n *Node) AskedAll(now Instant, c ClientID) {
	n.begin(now)
	for i := 0; len(n.again) > 0 && i < len(n.s.pend); i++ {
		p := n.s.pend[i]
		if p == nil || p.client != c || !n.unasked(p) {
			continue
		}
		delete(n.again, call{p.client, p.cookie})
		if p.state == pendDone {
			n.freePending(p)
		} else {
			p.heard = true
		}
	}
	n.finish()
}
