package protocol

import (
	"fmt"
	"slices"
)

// Limit is a bound of one of the node's tables, or of a message.
type Limit uint8

const (
	LimitPending     Limit = iota // Config.MaxPending: ErrFull
	LimitParked                   // Config.MaxParked: NO_MEMORY to another node
	LimitParkedLater              // the same, for a request behind one of ours: it comes again
	LimitDone                     // Config.MaxDone: a request waits
	LimitDBs                      // Config.MaxDBs
	LimitWalks                    // Config.MaxWalks
	LimitMoved                    // Config.MaxMoved: a traverse ends with NO_MEMORY
	LimitAsks                     // Config.MaxAsks: a message comes again
	LimitBatch                    // Config.ClaimBytes: a batch is full before its end
	LimitRedirects                // Config.MaxHops, of redirects: the request backs off
	LimitHops                     // the same, of forwards: the requester is redirected
	LimitRoom                     // a record does not move for want of room at its new node
	LimitThrough                  // a record is not let through for want of room here
	LimitOffers                   // records that a leaving node offers at once
	LimitStep                     // Config.StepLimit: a step of a recovery begins anew
	LimitHints                    // Config.Hints: a location is remembered in place of another
	LimitTries                    // Config.MaxTries: parked requests wait for the next Tick
	LimitHold                     // Config.JoinHold: a node that flaps waits
	Limits
)

var limitNames = [Limits]string{"pending", "parked", "parked-later", "done-list", "databases", "traverses", "moved", "asks", "batch", "redirects", "hops", "room", "through", "offers", "step", "hints", "tries", "join-hold"}

func (l Limit) String() string { return limitNames[l] }

// reached counts that a limit has had its effect.
func (n *Node) reached(l Limit) { n.stats.Reached[l]++ }

// Sizes of a node's tables, in entries unless said otherwise.
type Sizes struct {
	Pending   int   // operations of this node
	Requests  int   // outstanding REQIDs
	RoomOut   int64 // bytes that these have been promised
	Keys      int   // entries of the table of keys
	Parked    int   // requests that wait here
	Dones     int   // of all done lists
	MostDones int   // of one
	Copies    int   // carried
	CopyBytes int64
	Tokens    int
	Locks     int // for other nodes
	Locations int
	Cached    int
	Claims    int
	Pieces    int // journal entries
	DBs       int
	Asks      int
	Walks     int // traverses of other nodes and of ours that are open here
	Moved     int // bytes that they note
	Spare     int // bytes of buffers that nothing uses
}

// Sizes walks all tables: for tools and checkers.
func (n *Node) Sizes() (z Sizes) {
	z = Sizes{Pending: n.pendN, Requests: len(n.byReq), RoomOut: n.roomOut, Keys: n.s.recs.n, Parked: n.parkedN, CopyBytes: n.copies,
		Tokens: len(n.tokens), DBs: len(n.s.dbs), Asks: len(n.asks)}
	for r := n.s.recs.first; r != nil; r = r.next {
		z.Dones += len(r.dones)
		z.MostDones = max(z.MostDones, len(r.dones))
		z.Copies += len(r.carry)
		count(&z.Locks, r.lock.held)
		count(&z.Claims, r.claim != nil)
	}
	z.Locations = n.places.n
	for i := range n.hints {
		count(&z.Cached, n.hints[i].set)
	}
	for i := range n.walks {
		count(&z.Walks, n.walks[i].id != 0)
		z.Moved += len(n.walks[i].moved)
	}
	for i := range n.walkings {
		count(&z.Walks, n.walkings[i].id != 0)
	}
	for _, p := range n.freePend {
		z.Spare += cap(p.kbuf) + cap(p.dbuf)
	}
	for _, pk := range n.freeParked {
		z.Spare += cap(pk.kbuf) + cap(pk.dbuf)
	}
	n.st.EachPiece(func(*Piece) { z.Pieces++ })
	return z
}

func count(n *int, yes bool) {
	if yes {
		*n++
	}
}

// EachLocation calls f for every key that this node, as its LMASTER, knows to be
// elsewhere: for tools and checkers.
func (n *Node) EachLocation(f func(db uint32, key []byte, at PNN)) {
	n.places.each(func(_, db uint32, key []byte, l location) { f(db, key, l.pnn) })
}

// Check walks all tables between two steps and tells the first thing that does not
// agree with another; nil: they agree. For tests: it takes time with the tables.
func (n *Node) Check() error {
	if err := n.checkPending(); err != nil {
		return err
	}
	if err := n.checkKeys(); err != nil {
		return err
	}
	if err := n.checkKept(); err != nil {
		return err
	}
	if len(n.s.dbs) > n.cfg.MaxDBs || len(n.walks) > n.cfg.MaxWalks || len(n.walkings) > n.cfg.MaxWalks || len(n.asks) > n.cfg.MaxAsks {
		return fmt.Errorf("%d databases, %d and %d traverses, %d questions: above their limits", len(n.s.dbs), len(n.walks), len(n.walkings), len(n.asks))
	}
	places := 0
	n.places.each(func(uint32, uint32, []byte, location) { places++ })
	if places != n.places.n {
		return fmt.Errorf("the places of %d records are known, and %d are counted", places, n.places.n)
	}
	for i := range n.walks {
		if w := &n.walks[i]; len(w.moved) > n.cfg.MaxMoved+len(n.walks)*64 && w.id != 0 {
			return fmt.Errorf("a traverse notes %d bytes of records that moved, more than %d", len(w.moved), n.cfg.MaxMoved)
		}
	}
	return nil
}

func (n *Node) checkPending() error {
	pends, requests, local, room := 0, 0, 0, int64(0)
	for i, p := range n.s.pend {
		if p == nil {
			continue
		}
		pends++
		room += int64(p.room)
		count(&requests, p.reqid != 0)
		count(&local, p.state == pendLocal)
		switch {
		case p.slot != i:
			return fmt.Errorf("operation %d stands in slot %d and says %d", p.opid.Counter, i, p.slot)
		case p.reqid != 0 && n.byReq[p.reqid] != p:
			return fmt.Errorf("REQID %d of operation %d is not found", p.reqid, p.opid.Counter)
		case p.reqid == 0 && p.room != 0:
			return fmt.Errorf("operation %d has room promised and nothing outstanding", p.opid.Counter)
		case p.state == pendOut && p.reqid == 0:
			return fmt.Errorf("operation %d is out under no REQID", p.opid.Counter)
		case n.state == stOpen && p.state == pendNew && n.job.stage != workAgain:
			return fmt.Errorf("operation %d waits for a gate that is open", p.opid.Counter)
		case p.state == pendBackoff && n.nextDeadline() > max(p.until, n.now+2*ms):
			return fmt.Errorf("operation %d backs off until %d and no timer is set", p.opid.Counter, p.until)
		}
	}
	listed := 0
	var last *pending
	for p := n.pendFirst; p != nil; last, p = p, p.later {
		listed++
		switch {
		case !p.listed || p.earlier != last || n.s.pend[p.slot] != p:
			return fmt.Errorf("operation %d stands in the list, in which it should not be", p.opid.Counter)
		case last != nil && last.opid.Counter >= p.opid.Counter:
			return fmt.Errorf("operation %d stands behind %d", p.opid.Counter, last.opid.Counter)
		}
	}
	switch {
	case listed != pends || last != n.pendLast:
		return fmt.Errorf("%d of %d operations are listed", listed, pends)
	case pends != n.pendN:
		return fmt.Errorf("%d operations are pending and %d are counted", pends, n.pendN)
	case requests != len(n.byReq):
		return fmt.Errorf("%d REQIDs are outstanding and %d are known", requests, len(n.byReq))
	case room != n.roomOut:
		return fmt.Errorf("%d bytes of room are promised and %d are counted", room, n.roomOut)
	}
	parked, ours, unfinished := 0, 0, 0
	for r := n.s.recs.first; r != nil; r = r.next {
		parked += len(r.parked)
		count(&unfinished, r.listed)
		due := 0
		for _, pk := range r.parked {
			count(&ours, pk.p != nil)
			count(&due, pk.due)
			if pk.p != nil && pk.p.parked != pk {
				return fmt.Errorf("%q: operation %d is parked, and does not know where", r.key, pk.p.opid.Counter)
			}
			if pk.p != nil && n.s.pend[pk.p.slot] != pk.p {
				return fmt.Errorf("%q: a request is parked for an operation that has ended", r.key)
			}
			if n.serving() && pk.deadline > n.now && n.nextDeadline() > max(pk.deadline, n.now+2*ms) {
				return fmt.Errorf("%q: a request waits until %d and no timer is set", r.key, pk.deadline)
			}
			if n.serving() && !r.listed && pk.behind != 0 && n.byReq[pk.behind] == nil {
				return fmt.Errorf("%q: a request waits behind REQID %d, which has ended", r.key, pk.behind)
			}
		}
		if due != r.due || r.listed && !slices.Contains(n.unfinished, r) || !r.listed && n.serving() && (due > 0 || r.owed || r.again && len(r.parked) > 0) {
			return fmt.Errorf("%q: %d requests are to be tried, %d are counted, and it is listed: %v", r.key, due, r.due, r.listed)
		}
	}
	switch {
	case unfinished != len(n.unfinished):
		return fmt.Errorf("%d keys have requests that are to be tried, and %d are listed", unfinished, len(n.unfinished))
	case parked != n.parkedN:
		return fmt.Errorf("%d requests are parked and %d are counted", parked, n.parkedN)
	case n.state == stOpen && local != ours:
		return fmt.Errorf("%d operations wait for a record here, and %d are parked", local, ours)
	}
	return nil
}

func (n *Node) checkKeys() error {
	keys, carried, copies, through, tokens := 0, 0, int64(0), 0, 0
	for r := n.s.recs.first; r != nil; r = r.next {
		keys++
		switch {
		case n.s.recs.find(r.hash, r.db, r.key) != r:
			return fmt.Errorf("%q stands in the list of keys and is not found", r.key)
		case r.dirty:
			return fmt.Errorf("%q was touched and not looked at", r.key)
		case r.idle() && n.state >= stMapped && (n.job.stage == noWork || n.job.stage > workKept): // a restart leaves some, until it has a map
			return fmt.Errorf("nothing is known about %q, and its entry is kept", r.key)
		case len(r.dones) > n.cfg.MaxDone:
			return fmt.Errorf("%q: a done list of %d entries, more than %d", r.key, len(r.dones), n.cfg.MaxDone)
		case r.lock.held && n.store.Holder(r.db, r.key) != Dispatcher:
			return fmt.Errorf("%q is locked for operation %d of node %d, and the store knows nothing of it", r.key, r.lock.opid.Counter, r.lock.opid.PNN)
		case r.lock.held && n.serving() && n.nextDeadline() > max(r.lock.deadline, n.now+2*ms):
			return fmt.Errorf("%q is locked until %d and no timer is set", r.key, r.lock.deadline)
		}
		for i := range r.carry {
			carried++
			copies += int64(r.carry[i].size)
			count(&through, r.carry[i].through)
			count(&tokens, n.tokens[r.carry[i].token] == r)
		}
		for _, d := range r.dones {
			count(&tokens, d.token != 0 && n.tokens[d.token] == r)
		}
	}
	switch {
	case keys != n.s.recs.n:
		return fmt.Errorf("%d keys are known and %d are counted", keys, n.s.recs.n)
	case carried != n.carriedN:
		return fmt.Errorf("%d copies are carried and %d are counted", carried, n.carriedN)
	case copies != n.copies:
		return fmt.Errorf("%d bytes are carried and %d are counted", copies, n.copies)
	case through != n.through:
		return fmt.Errorf("%d records pass through and %d are counted", through, n.through)
	case tokens != len(n.tokens):
		return fmt.Errorf("%d copies and done entries wait for an ack, and %d tokens are known", tokens, len(n.tokens))
	}
	return nil
}

// checkKept compares what this incarnation knows with what the next one would find.
func (n *Node) checkKept() (err error) {
	fail := func(format string, args ...any) {
		if err == nil {
			err = fmt.Errorf(format, args...)
		}
	}
	waiting, dones, locks, copies := 0, 0, 0, 0
	n.st.PendingLines(func(at int, l *PendingLine) {
		waiting++
		var p *pending
		if at < len(n.s.pend) {
			p = n.s.pend[at]
		}
		switch {
		case p == nil || p.opid != l.OPID:
			fail("line %d holds operation %d, which is not pending there", at, l.OPID.Counter)
		case p.reqid != l.ReqID || p.room != l.Room || p.abandoned != l.Abandoned || p.client != l.Client || p.undo != l.Undo || p.removes != l.Removes || p.kept != l.PendingState:
			fail("line %d says %+v of operation %d, which is %+v under REQID %d", at, l.PendingState, l.OPID.Counter, p.kept, p.reqid)
		case l.Stage == StageIntent || l.Stage == StageIntentLock:
			fail("operation %d is about to run, between two steps", l.OPID.Counter)
		}
	})
	of := func(db uint32, key []byte) *rec {
		r := n.s.recs.find(n.cfg.Hash(db, key), db, key)
		if r == nil {
			fail("a line is about %q, of which nothing is known", key)
			r = &rec{}
		}
		return r
	}
	n.st.DoneLines(func(at int, l *DoneLine) {
		dones++
		if !slices.ContainsFunc(of(l.DB, l.Key).dones, func(d doneEntry) bool { return int(d.at) == at && d.Done == l.Done }) || l.Intent {
			fail("line %d of the done lists is %+v of %q, which has no such entry", at, l.Done, l.Key)
		}
	})
	n.st.LockLines(func(at int, l *LockLine) {
		locks++
		if k := of(l.DB, l.Key).lock; !k.held || int(k.at) != at || k.reqid != l.ReqID || k.opid != l.OPID {
			fail("line %d of the locks is of %q, which is not locked so", at, l.Key)
		}
	})
	n.st.CarriedLines(func(at int, l *CarriedLine) {
		copies++
		if !slices.ContainsFunc(of(l.DB, l.Key).carry, func(c carried) bool {
			return int(c.at) == at && c.bound == l.Bound && c.reqid == l.ReqID && c.rsn == l.RSN && c.size == len(l.Data)
		}) || l.Preparing {
			fail("line %d of the carried copies is of %q, which has no such copy", at, l.Key)
		}
	})
	for r := n.s.recs.first; r != nil; r = r.next {
		dones -= len(r.dones)
		copies -= len(r.carry)
		if r.lock.held {
			locks--
		}
	}
	w := n.st.Load()
	switch {
	case waiting != n.pendN || dones != 0 || locks != 0 || copies != 0:
		fail("%d pending operations are kept of %d; too many of others: %d done entries, %d locks, %d copies", waiting, n.pendN, dones, locks, copies)
	case w.Promised != n.s.Promised || w.Taken != n.s.Taken || w.Opened != n.s.Opened || w.Life != n.s.Life || w.HighVNN != n.s.HighVNN || w.OPIDs != n.s.OPIDs || w.File != n.s.File || w.Map.set != n.s.Map.set:
		fail("the words kept are %+v, not %+v", w, n.s.Words)
	}
	return err
}
