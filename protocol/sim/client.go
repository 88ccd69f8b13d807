package sim

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

// client is one process attached to a node's segment: one operation at a time, by
// bypass if the record is here and the dice say so, else through the dispatcher.
type client struct {
	h      *host
	id     protocol.ClientID
	seg    *segment
	alive  bool
	busy   bool // inside an update
	locked *record
	cookie uint64
	wait   *operation // submitted, not answered
	opid   uint64     // own counter for bypass appends
	pieces []mine
	idle   bool    // between operations
	manual bool    // a script says what it does next
	slow   instant // what a step takes, if a script says so
	lock   *operation
	update *operation // by bypass, last begun
	soon   func()     // its next step
	told   instant    // its dispatcher knows that it is dead
	opened wire.Set   // databases
}

// mine is a piece this client has put into the cluster.
type mine struct {
	key  string
	opid protocol.OPID
	data string
}

func (h *host) attach() *client {
	h.nextID++
	cl := &client{h: h, id: h.nextID, seg: h.seg, alive: true}
	h.clients = append(h.clients, cl)
	cl.next(h.c.between(0, 20*ms))
	return cl
}

// step does f after a client's usual time for a few instructions, or a long one.
func (cl *client) step(f func()) {
	c := cl.h.c
	d := c.between(us/2, 3*us)
	if c.faults && c.chance(c.mix.Stall) {
		d = c.between(ms, 90*ms)
	}
	if cl.slow > 0 {
		d = cl.slow
	}
	taken := false
	cl.soon = func() {
		if cl.alive && !taken {
			taken = true
			f()
		}
	}
	c.after(d, cl.soon)
}

// aside: while the dispatcher is between two looks at a record, clients of its node
// may go on with their updates of it.
func (h *host) aside(db uint32, key []byte) {
	c := h.c
	c.aside = true
	for _, cl := range h.clients {
		if !cl.busy || cl.seg != h.seg || cl.update.db != db || cl.update.key != string(key) || !c.chance(0.5) {
			continue
		}
		for range 1 + c.rng.IntN(3) { // lock it, look, commit
			if cl.busy {
				cl.soon()
			}
		}
	}
	c.aside = false
}

func (cl *client) next(d instant) {
	cl.idle = true
	if cl.manual {
		return
	}
	cl.h.c.after(d, func() {
		if cl.alive {
			cl.idle = false
			cl.begin()
		}
	})
}

// die: killed, wherever it is. What it was doing is not known to have happened.
func (cl *client) die(why string) {
	if !cl.alive {
		return
	}
	c := cl.h.c
	c.trace("client %d.%d dies: %s", cl.h.pnn, cl.id, why)
	cl.alive = false
	if o := cl.wait; o != nil {
		o.unknown()
		if o.m.Op == wire.ReqConditionalAppend && o.db == dbPieces {
			c.check.mayRemove(mine{o.key, o.opid, string(o.m.Data)}) // if it succeeds
		}
	}
	if cl.busy {
		cl.busy = false
		cl.seg.busy--
	}
	if cl.seg != cl.h.seg {
		return
	}
	for _, r := range cl.seg.sorted() {
		if r.holder == cl.id {
			cl.seg.release(r, true)
		}
	}
	for _, m := range cl.pieces {
		c.check.mayRemove(m)
	}
	// The dispatcher notices by itself, after a while; or finds it at its start.
	seg, told := cl.seg, false
	var tell func()
	tell = func() {
		switch {
		case seg != cl.h.seg || told:
		case !cl.h.up || cl.h.paused:
			c.after(2*ms, tell)
		default:
			c.after(2*ms, tell) // if it dies before its next turn
			cl.h.run(func() {
				if told {
					return
				}
				for _, r := range seg.sorted() { // what it was given after its death
					if r.holder == cl.id {
						seg.release(r, true)
					}
				}
				cl.h.node.ClientGone(cl.h.now(), cl.id)
				told, cl.told = true, c.now
			})
		}
	}
	c.after(c.between(50*us, 2*ms), tell)
}

// release a record lock: to the dispatcher if that waits; tell it of a change.
func (s *segment) release(r *record, changed bool) {
	r.holder = 0
	if s.h.c.opt.Plant == plantNoRing {
		r.waits = false
		return
	}
	tell := r.attended && changed
	if r.waits {
		r.waits, r.holder, tell = false, protocol.Dispatcher, true
	}
	if !tell {
		return
	}
	h, db, key := s.h, r.db, []byte(r.key)
	ring := func() {
		if s != h.seg || !h.up {
			return // a restart looks at all records
		}
		h.run(func() {
			if s == h.seg {
				h.node.Released(h.now(), db, key)
			}
		})
	}
	h.c.after(h.c.between(us, 20*us), ring)
}

// look at gate and lease as a local client does.
func (s *segment) live() bool {
	return s.gate.State == protocol.GateOpen && s.h.now() < s.lease
}

// begin the next operation.
func (cl *client) begin() {
	c := cl.h.c
	if !c.check.working {
		cl.idle = true
		return
	}
	if cl.seg != cl.h.seg || cl.seg.gate.State == protocol.GateDead {
		cl.seg, cl.pieces, cl.locked, cl.opened = cl.h.seg, nil, nil, 0 // attaches anew
	}
	if c.hot {
		o := &operation{cl: cl, db: dbKV, key: "hot", m: wire.Message{Op: wire.ReqFetchLocked, DBID: dbKV, Key: []byte("hot"), Timeout: 20_000, LockTimeout: 5000}}
		o.start()
		return
	}
	db := uint32(dbKV)
	if c.rng.IntN(100) < 45 {
		db = dbPieces
	}
	switch {
	case c.mix.Open && c.chance(0.03) && cl.opened.Has(dbKV) && cl.opened.Has(dbPieces): // one that others call something else
		db = 10 + uint32(c.rng.IntN(6))
		cl.opening(db, protocol.Mode(1+c.rng.IntN(2))).start()
	case c.chance(0.02) || c.mix.Limits > 0 && c.chance(0.05):
		cl.traverse(db)
	case c.mix.Open && !cl.opened.Has(protocol.PNN(db)):
		cl.opening(db, modeOf(db)).start()
	case db == dbPieces:
		cl.pieceOp()
	default:
		cl.kvOp()
	}
}

// traverse a database.
func (cl *client) traverse(db uint32) {
	o := &operation{cl: cl, db: db, m: wire.Message{Op: wire.ReqTraverse, DBID: db, Timeout: 1000}, met: map[string]bool{}}
	o.began = cl.h.c.now
	o.start()
}

// batch of a traverse: the next, or the end.
func (o *operation) batch(r *protocol.Reply) {
	cl := o.cl
	for rest := r.Data; len(rest) > 0; {
		var e wire.Entry
		e, rest, _ = wire.NextEntry(rest)
		o.met[string(e.Key)] = true
	}
	o.done(r.Status, nil)
	if r.Status == wire.OK && r.RSN != 0 {
		next := &operation{cl: cl, db: o.db, m: o.m, met: o.met, began: o.began}
		next.m.Cursor = r.RSN
		cl.h.c.after(cl.h.c.between(us, ms), func() {
			if cl.alive && cl.seg == cl.h.seg {
				next.start()
			} else if cl.alive {
				cl.next(ms)
			}
		})
		return
	}
	if r.Status == wire.OK {
		cl.h.c.check.traversed(o)
	}
	cl.next(cl.think())
}

// opening of a database.
func (cl *client) opening(db uint32, mode protocol.Mode) *operation {
	return &operation{cl: cl, db: db, m: wire.Message{Op: wire.OpenDB, DBID: db, Mode: uint32(mode), Data: fmt.Appendf(nil, "db%d", db), Timeout: 1000}}
}

func (cl *client) timeout() uint32 {
	if cl.h.c.chance(0.3) {
		return 0
	}
	return uint32(cl.h.c.rng.IntN(300))
}

func (cl *client) kvOp() {
	c := cl.h.c
	key := fmt.Sprintf("k%d", c.rng.IntN(c.mix.Keys))
	o := &operation{cl: cl, db: dbKV, key: key, m: wire.Message{DBID: dbKV, Key: []byte(key), Timeout: cl.timeout()}}
	switch r := c.rng.IntN(100); {
	case r < 30:
		o.m.Op = wire.ReqFetch
	case r < 45:
		o.m.Op = wire.ReqStoreUnlock
		o.m.Data = c.check.value()
	case r < 55:
		o.m.Op = wire.ReqDelete
	case r < 70:
		o.m.Op, o.m.Cond = wire.ReqConditionalAppend, condAlways
		o.m.Data = c.check.value()
	default:
		o.m.Op, o.m.LockTimeout = wire.ReqFetchLocked, uint32(20+c.rng.IntN(200))
	}
	o.start()
}

func (cl *client) pieceOp() {
	c := cl.h.c
	key := fmt.Sprintf("p%d", c.rng.IntN(c.mix.Keys))
	o := &operation{cl: cl, db: dbPieces, key: key, m: wire.Message{DBID: dbPieces, Key: []byte(key), Timeout: cl.timeout()}}
	switch r := c.rng.IntN(100); {
	case r < 25:
		o.m.Op = wire.ReqFetch
	case r < 30:
		o.m.Op, o.m.LockTimeout = wire.ReqFetchLocked, uint32(20+c.rng.IntN(200))
	case r < 35:
		o.m.Op, o.m.RSN = wire.ReqWatch, uint64(c.rng.IntN(20))
	case r < 65 && len(cl.pieces) < 4 || len(cl.pieces) == 0:
		o.m.Op, o.m.Cond = wire.ReqConditionalAppend, condShare
		o.m.Data = c.check.piece(c.chance(0.4))
	default:
		i := c.rng.IntN(len(cl.pieces))
		p := cl.pieces[i]
		o.key, o.m.Key = p.key, []byte(p.key)
		o.m.Op, o.m.Piece, o.m.Data = wire.ReqRemoveTrigger, p.opid, []byte(p.data)
	}
	o.start()
}

// operation is one call of a client, by whichever way.
type operation struct {
	cl     *client
	db     uint32
	key    string
	m      wire.Message
	call   instant
	lockID protocol.ReqID // of a remote lock
	read   []byte         // what FETCH_LOCKED returned
	cookie uint64
	opid   protocol.OPID
	asked  protocol.OPID // the dispatcher's
	ended  bool
	named  bool // a script wants the client to name the piece
	hist   *histOp
	met    map[string]bool // keys: TRAVERSE
	began  instant

	life       uint64  // of its client's segment
	submitted  instant // 0: not yet
	blockedAt  instant // what it waits for was not there then
	wasBlocked bool
	reqid      protocol.ReqID // its last sending by its own node
	left       instant        // when that, or who passed it on, went out; 0: it was taken
	onWay      instant        // how long it was on the way, all in all, before all was calm
	replied    bool           // its answer is on the way to the client
	gaveUp     instant
	patient    bool  // it is known how long its client waits
	hold       *hold // that it got, or lets go of
}

func (o *operation) start() {
	c := o.cl.h.c
	o.call, o.life = c.now, o.cl.seg.life
	o.hist = c.check.invoke(o)
	o.cl.wait = o
	r := o.cl.seg.recs[name(o.db, []byte(o.key))]
	if r != nil && o.m.Op.IsRequest() && c.chance(0.7) && o.m.Op != wire.ReqWatch {
		if o.m.Op == wire.ReqFetch {
			o.bypassRead()
		} else {
			o.bypassUpdate()
		}
		return
	}
	o.submit()
}

// submit goes through the dispatcher. A dispatcher that is down, or a segment
// whose life has ended, is waited for as the client's library does.
func (o *operation) submit() {
	cl := o.cl
	h, c := cl.h, cl.h.c
	if o.ended {
		return
	}
	if cl.seg != h.seg {
		o.unknown()
		cl.next(ms)
		return
	}
	if !h.up || h.paused || c.aside { // the submission stays in its ring
		c.after(2*ms, func() {
			if cl.alive {
				o.submit()
			}
		})
		return
	}
	cl.cookie++
	o.cookie = cl.cookie
	o.ask()
	if o.patient {
		return
	}
	o.patient = true
	// A client that has waited long enough gives up; the operation goes on.
	patience := c.between(sec, 3*sec)
	if cl.manual || c.hot {
		patience = 30 * sec
	}
	if (c.faults || c.quitting) && c.chance(0.05) {
		patience = c.between(us, 50*ms)
	}
	c.after(patience, func() {
		if !cl.alive || o.ended {
			return
		}
		if c.check.draining && cl.seg == h.seg && h.up {
			return // in the end everything must be answered
		}
		o.giveUp()
	})
}

// ask the dispatcher, or ask it again after a restart, under the same name: then it
// meets what the one before it has left of the call.
func (o *operation) ask() {
	cl := o.cl
	h, c := cl.h, cl.h.c
	h.run(func() {
		if o.ended || cl.seg != h.seg || !cl.alive {
			if cl.alive && !o.ended {
				o.unknown()
				cl.next(ms)
			}
			if cl.seg == h.seg && o.asked == (protocol.OPID{}) && o.m.Op == wire.ReqConditionalAppend {
				h.stable.ErasePiece(o.m.Piece) // it never went out
			}
			return
		}
		if o.m.Op == wire.ReqConditionalAppend && o.db == dbPieces && o.asked == (protocol.OPID{}) && o.m.Piece == (protocol.OPID{}) && (o.named || !cl.manual && c.chance(0.5)) {
			o.prepare()
		}
		opid, err := h.node.Submit(h.now(), cl.id, o.cookie, &o.m)
		if errors.Is(err, protocol.ErrFull) && c.mix.limits().pending < 4096 { // asks again
			c.after(ms, o.ask)
			return
		}
		if err != nil {
			c.check.fail("table", "node %d: %v", h.pnn, err)
			return
		}
		if o.asked != (protocol.OPID{}) && o.asked != opid && !o.repeats() {
			c.check.fail("again", "%s of %q by client %d.%d is asked again and gets another OPID: %v after %v, cookie %d", o.m.Op, o.key, h.pnn, cl.id, opid, o.asked, o.cookie)
		}
		if o.asked = opid; o.m.Op != wire.ReqConditionalAppend || o.m.Piece == (protocol.OPID{}) {
			o.opid = opid
			c.check.piecesOwner(o, opid)
		}
		o.submitted = c.now
		c.check.byOp[opid], c.check.byOp[o.opid] = o, o // the second: a piece's own name
	})
}

// repeats: it may run twice, and so nobody keeps its OPID.
func (o *operation) repeats() bool {
	switch o.m.Op {
	case wire.ReqFetch, wire.ReqWatch, wire.ReqTraverse, wire.OpenDB:
		return true
	}
	return false
}

// again: there is a new dispatcher. What it has not been asked, or what has had no
// answer when all that the old one gave has arrived, it is asked again.
func (cl *client) again() {
	if !cl.alive || cl.seg != cl.h.seg {
		return
	}
	h, o := cl.h, cl.wait
	start, asked := h.start, o != nil && o.cookie != 0
	h.c.after(h.c.between(20*us, ms), func() {
		if !cl.alive || h.start != start || cl.seg != h.seg {
			return
		}
		if asked && !o.ended {
			o.ask()
		}
		h.run(func() { h.node.AskedAll(h.now(), cl.id) })
	})
}

// giveUp waiting, unless the answer comes first. The operation goes on.
func (o *operation) giveUp() {
	cl := o.cl
	h, c := cl.h, cl.h.c
	if o.m.Op == wire.ReqConditionalAppend && o.m.Piece != (protocol.OPID{}) && o.asked == (protocol.OPID{}) && cl.seg == h.seg {
		h.stable.ErasePiece(o.m.Piece) // it never went out
	}
	told := false
	var tell func() // again, if the dispatcher is not there, or dies before its next turn
	tell = func() {
		switch {
		case told || !cl.alive || o.ended || o.replied:
			return
		case cl.seg != h.seg:
			o.gone()
			return
		}
		h.run(func() {
			if told || cl.seg != h.seg {
				return
			}
			h.node.Flush(h.now()) // it may have been answered in this turn
			if cl.alive && !o.ended && !o.replied {
				h.node.Abandon(h.now(), cl.id, o.cookie)
				o.gone()
			}
			told = true
		})
		if !told {
			c.after(2*ms, tell)
		}
	}
	tell()
}

// gone: nobody waits for it any more.
func (o *operation) gone() {
	cl := o.cl
	c := cl.h.c
	o.gaveUp = c.now
	o.unknown()
	if o.m.Op == wire.ReqConditionalAppend && o.db == dbPieces {
		c.check.mayRemove(mine{o.key, o.opid, string(o.m.Data)})
	}
	cl.next(c.between(0, 5*ms))
}

// reply brings a dispatcher's answer to the client that waits for it.
func (h *host) reply(r protocol.Reply) {
	seg := h.seg
	for _, cl := range h.clients {
		if cl.id != r.Client || !cl.alive {
			continue
		}
		if o := cl.wait; o != nil && o.cookie == r.Cookie {
			o.replied = true
		}
		h.c.after(h.c.between(us, 10*us), func() {
			o := cl.wait
			if !cl.alive || o == nil || o.ended || o.cookie != r.Cookie {
				if cl.alive && r.Op == wire.ReqFetchLocked && r.Status == wire.OK && r.LockID == 0 && seg == h.seg {
					// The answer to a call that was given up: the library lets go of the lock.
					for _, x := range seg.sorted() {
						if x.holder == cl.id && cl.locked != x {
							seg.release(x, false)
						}
					}
				}
				return
			}
			o.answered(r)
		})
		return
	}
}

// answered by the dispatcher.
func (o *operation) answered(r protocol.Reply) {
	cl := o.cl
	c := cl.h.c
	if r.Status == wire.Unknown {
		o.unknown()
		if o.m.Op == wire.ReqConditionalAppend && o.db == dbPieces && cl.seg == cl.h.seg {
			c.check.mayRemove(mine{o.key, o.opid, string(o.m.Data)})
		}
		cl.next(c.between(0, 5*ms))
		return
	}
	if o.m.Op == wire.ReqTraverse {
		o.batch(&r)
		return
	}
	if o.m.Op == wire.ReqFetchLocked && r.Status == wire.OK {
		o.lockID, o.read = r.LockID, r.Data
		o.done(wire.OK, r.Data)
		var rec *record
		if r.LockID == 0 {
			rec = cl.seg.recs[name(o.db, []byte(o.key))]
			cl.locked = rec
		}
		cl.hold(o, rec)
		return
	}
	if o.m.Op == wire.ReqConditionalAppend && o.db == dbPieces && r.Status == wire.OK {
		cl.pieces = append(cl.pieces, mine{o.key, r.OPID, string(o.m.Data)})
	}
	o.finishRemove(r.Status)
	o.done(r.Status, r.Data)
	if o.m.Op == wire.OpenDB {
		if r.Status == wire.OK {
			cl.opened |= 1 << o.db
		}
		c.check.databases()
	}
	cl.next(cl.think())
}

func (cl *client) think() instant {
	c := cl.h.c
	if c.chance(0.2) {
		return c.between(0, 30*ms)
	}
	return c.between(0, ms)
}

// finishRemove: the piece is no longer this client's.
func (o *operation) finishRemove(st wire.Status) {
	if o.m.Op != wire.ReqRemoveTrigger || st == wire.Condition {
		return
	}
	ps := o.cl.pieces
	for i := range ps {
		if ps[i].opid == o.m.Piece {
			o.cl.pieces = append(ps[:i:i], ps[i+1:]...)
			return
		}
	}
}

// hold a lock for a while, then store, delete or unlock.
func (cl *client) hold(o *operation, rec *record) {
	c := cl.h.c
	if cl.manual {
		cl.lock, cl.idle = o, true
		return
	}
	d := c.between(10*us, 2*ms)
	if (c.faults || c.quitting) && c.chance(0.05) {
		d = c.between(0, 250*ms)
	}
	c.after(d, func() {
		if !cl.alive {
			return
		}
		u := &operation{cl: cl, db: o.db, key: o.key, m: wire.Message{Op: wire.ReqUnlock, DBID: o.db, Key: []byte(o.key), LockID: o.lockID}}
		u.read, u.hold = o.read, o.hold
		if u.hold != nil {
			u.hold.leaving = true
		}
		if o.db == dbKV && c.chance(0.7) {
			u.m.Op = wire.ReqStoreUnlock
			if c.chance(0.8) {
				u.m.Data = c.check.value()
			}
		}
		u.call, u.life = c.now, cl.seg.life
		u.hist = c.check.invoke(u)
		cl.wait = u
		if rec == nil {
			u.submit()
			return
		}
		cl.locked = nil
		u.unlockHere(rec)
	})
}

// unlockHere commits under the client's own lock. Not busy: a locked record does
// not move, and the claimed RSN is a lower bound.
func (o *operation) unlockHere(r *record) {
	cl := o.cl
	if cl.seg.gate.State == protocol.GateDead || r.holder != cl.id {
		if cl.seg.gate.State != protocol.GateDead {
			cl.h.c.check.fail("S2", "client %d.%d holds the lock of %q no more, in the same life", cl.h.pnn, cl.id, o.key)
		}
		o.unknown()
		cl.next(ms)
		return
	}
	if o.m.Op == wire.ReqStoreUnlock && cl.h.refuses(len(o.m.Data)-len(r.data)) {
		cl.seg.release(r, false)
		o.done(wire.NoMemory, nil)
		cl.next(cl.think())
		return
	}
	if o.m.Op == wire.ReqStoreUnlock {
		r.set(o.m.Data, nil, r.rsn+1)
		cl.h.c.check.published(cl.h, r)
	}
	cl.seg.release(r, o.m.Op == wire.ReqStoreUnlock)
	cl.step(func() { o.validate(0) })
}

// bypassRead: gate, lease, own; snapshot; the same gate, lease.
func (o *operation) bypassRead() {
	cl := o.cl
	s := cl.seg
	r := s.recs[name(o.db, []byte(o.key))]
	if !s.live() || r == nil || r.prov != 0 || r.arriving {
		o.submit()
		return
	}
	word, data := s.word, r.data
	cl.step(func() {
		switch {
		case cl.h.c.opt.Plant == plantNoValidateRead:
			// With validation it does not matter that the copy is made at the moment of
			// the check; without it, it is made when a client makes it: later.
			if r = s.recs[name(o.db, []byte(o.key))]; r == nil {
				o.submit()
				return
			}
			data = r.data
		case s.word != word || !s.live():
			o.submit()
			return
		}
		o.done(wire.OK, data)
		cl.next(cl.think())
	})
}

// bypassUpdate: journal prepared; busy; lock; gate, lease, own; journal live;
// commit and release; not busy; validate.
func (o *operation) bypassUpdate() {
	cl := o.cl
	s, c := cl.seg, cl.h.c
	var j *protocol.Piece
	if o.m.Op == wire.ReqConditionalAppend && o.db == dbPieces {
		j = o.prepare()
	}
	slow := func() {
		if j != nil && cl.seg == cl.h.seg && c.chance(0.5) {
			cl.h.stable.ErasePiece(o.opid) // and the dispatcher names the piece
			o.m.Piece = protocol.OPID{}
		}
		o.submit()
	}
	cl.update = o
	cl.setBusy(c.opt.Plant != plantNoBusy)
	cl.step(func() {
		r := s.recs[name(o.db, []byte(o.key))]
		if r == nil || r.holder != 0 || r.prov != 0 {
			cl.setBusy(false)
			slow()
			return
		}
		r.holder = cl.id
		cl.step(func() {
			if s.recs[name(o.db, []byte(o.key))] != r || !s.live() {
				cl.letGo(r)
				slow()
				return
			}
			st, data, tags := o.outcome(r)
			if st == wire.OK && cl.h.refuses(len(data)-len(r.data)) {
				st = wire.NoMemory
			}
			if st != wire.OK {
				cl.letGo(r)
				if st == wire.Condition && o.m.Timeout > 0 {
					slow()
					return
				}
				if j != nil {
					cl.h.stable.ErasePiece(o.opid)
				}
				o.finishRemove(st)
				o.done(st, nil)
				cl.next(cl.think())
				return
			}
			if o.m.Op == wire.ReqFetchLocked {
				o.read = r.data
				cl.setBusy(false)
				o.done(wire.OK, r.data)
				cl.locked = r
				cl.hold(o, r)
				return
			}
			if j != nil && c.opt.Plant != plantLiveLate {
				j.State = protocol.PieceLive
			}
			var rm *protocol.Piece
			if o.m.Op == wire.ReqRemoveTrigger && o.db == dbPieces {
				if rm = cl.h.stable.Piece(o.m.Piece); rm != nil {
					rm.State = protocol.PieceRemoving
				}
			}
			cl.step(func() {
				r.set(data, tags, r.rsn+1)
				c.check.published(cl.h, r)
				s.release(r, true)
				if c.opt.Plant == plantLiveLate && j != nil {
					cl.setBusy(false)
					cl.step(func() {
						j.State = protocol.PieceLive
						o.validate(0)
					})
					return
				}
				if rm != nil {
					cl.h.stable.ErasePiece(o.m.Piece)
				}
				cl.setBusy(false)
				cl.step(func() { o.validate(0) })
			})
		})
	})
}

// prepare names the piece that an append brings, and notes it in the journal.
func (o *operation) prepare() *protocol.Piece {
	cl := o.cl
	cl.opid++
	o.opid = protocol.OPID{PNN: cl.h.pnn, Life: cl.seg.life, Counter: 1<<63 | uint64(cl.id)<<40 | cl.opid}
	o.m.Piece = o.opid
	cl.h.c.check.piecesOwner(o, o.opid)
	cl.h.stable.PutPiece(o.opid, cl.id, o.db, []byte(o.key), o.m.Data)
	return cl.h.stable.Piece(o.opid)
}

func (cl *client) setBusy(on bool) {
	if cl.busy == on {
		return
	}
	cl.busy = on
	if on {
		cl.seg.busy++
	} else {
		cl.seg.busy--
	}
}

func (cl *client) letGo(r *record) {
	if r.holder == cl.id {
		cl.seg.release(r, false)
	}
	cl.setBusy(false)
}

// outcome of an update by bypass: what the dispatcher would do.
func (o *operation) outcome(r *record) (st wire.Status, data, tags []byte) {
	switch o.m.Op {
	case wire.ReqStoreUnlock:
		return wire.OK, o.m.Data, nil
	case wire.ReqConditionalAppend:
		yes, _ := o.cl.h.c.conf.Check(o.m.Cond, r.data, r.tags, o.m.Data)
		if !yes {
			return wire.Condition, nil, nil
		}
		data = append(bytes.Clone(r.data), o.m.Data...)
		if o.db == dbPieces {
			tags = wire.AppendTag(bytes.Clone(r.tags), wire.Tag{OPID: o.opid, Len: uint32(len(o.m.Data))})
		}
		return wire.OK, data, tags
	case wire.ReqRemoveTrigger:
		at, found := 0, false
		for rest := r.tags; len(rest) > 0; {
			t, next, _ := wire.NextTag(rest)
			if t.OPID == o.m.Piece {
				found = true
			} else {
				data, tags = append(data, r.data[at:at+int(t.Len)]...), wire.AppendTag(tags, t)
			}
			at += int(t.Len)
			rest = next
		}
		if !found {
			return wire.OK, r.data, r.tags
		}
		return wire.OK, data, tags
	}
	return wire.OK, nil, nil // DELETE; FETCH_LOCKED
}

// validate an update by bypass: it counts if the life goes on and the lease was
// live after it, or the gate opens again in the same life.
func (o *operation) validate(waited instant) {
	cl := o.cl
	s, c := cl.seg, cl.h.c
	if c.opt.Plant == plantNoValidate {
		waited = -1
	}
	switch {
	case waited == -1 || s.gate.State == protocol.GateOpen && s.live():
		c.check.bypassSuccess(cl.h, s)
		if o.m.Op == wire.ReqConditionalAppend && o.db == dbPieces {
			cl.pieces = append(cl.pieces, mine{o.key, o.opid, string(o.m.Data)})
		}
		o.finishRemove(wire.OK)
		o.done(wire.OK, nil)
		cl.next(cl.think())
	case s.gate.State == protocol.GateDead || s != cl.h.seg || waited > 4*sec:
		o.unknown()
		if o.m.Op == wire.ReqConditionalAppend && o.db == dbPieces && s == cl.h.seg {
			cl.pieces = append(cl.pieces, mine{o.key, o.opid, string(o.m.Data)})
		}
		cl.next(ms)
	default:
		c.after(ms, func() {
			if cl.alive {
				o.validate(waited + ms)
			}
		})
	}
}

// done: the client knows how it ended.
func (o *operation) done(st wire.Status, data []byte) {
	if o.ended {
		panic("sim: an operation ends twice")
	}
	o.ended = true
	o.cl.wait = nil
	o.cl.h.c.check.returned(o, st, data)
}

// unknown: it may have happened or not, now or later.
func (o *operation) unknown() {
	if !o.ended {
		if o.hold != nil {
			o.hold.over = true
		}
		o.ended = true
		o.cl.wait = nil
		o.finishRemove(wire.OK) // the journal knows whether the piece is there
	}
}

// conditions are the two functions the simulated clients use.
type conditions struct{}

const (
	condAlways = 1
	condShare  = 2 // an exclusive piece ('X') stands alone
)

// Malformed: every piece is well formed.
func (conditions) Malformed(uint32, []byte, []byte, []byte) bool { return false }

func (conditions) Check(id uint32, data, tags, piece []byte) (yes, known bool) {
	switch id {
	case condAlways:
		return true, true
	case condShare:
		return compatible(fold(data), fold(piece)), true
	}
	return false, false
}

func (conditions) Find(_ uint32, data, what []byte) (off, n int, known bool) {
	return bytes.Index(data, what), len(what), true
}

// pieceLen: a letter for the mode and seven of the running number.
const pieceLen = 8

func compatible(data, piece string) bool {
	if piece[0] == 'X' || piece[0] == largeExclusive {
		return len(data) == 0
	}
	for i := 0; i < len(data); i += pieceLen {
		if data[i] == 'X' || data[i] == largeExclusive {
			return false
		}
	}
	return true
}
