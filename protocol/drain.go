package protocol

import "github.com/mainzdb/mainz/protocol/wire"

// leave is a node on its way out of the cluster. It comes by its records again and again,
// until it meets none.
type leave struct {
	on      bool
	done    bool // it has nothing any more, and asks for an epoch without it
	left    bool // that epoch is open
	under   bool // a round is under way
	cursor  uint64
	walked  bool    // the round has met all records
	met     int     // records in it
	gone    int     // records that went since it began
	goneAt  Instant // when the last one went, or the round began
	came    bool    // records may have come behind the round's back
	roundAt Instant // the next one begins
	without Map     // who would be the LMASTERs
}

// Drain begins to leave the cluster, or, with on false, stays in it. The node's
// clients have to detach meanwhile. It offers its records to those who would be
// their LMASTERs without it, who fetch them: a record moves only for a request, so
// that a recovery can tell where it is. When it has nothing any more the others make
// an epoch without it, and Left tells that it is open.
func (n *Node) Drain(now Instant, on bool) {
	n.begin(now)
	if !on && n.leave.done {
		n.leaderAt = n.now // a node like any other, in whatever recovery comes
	}
	n.leave = leave{on: on, roundAt: n.now}
	n.finish()
}

// Left tells that the cluster is open without this node, which may stop now.
func (n *Node) Left() bool { return n.leave.left }

// offering: records can be offered now.
func (n *Node) offering() bool {
	l := &n.leave
	return l.on && !l.done && l.under && !l.walked && l.met-l.gone < n.cfg.MaxOffers && n.serving()
}

func (n *Node) drainTick() {
	l := &n.leave
	if l.done || !n.serving() || !n.majority(n.s.Map.set&^(1<<n.cfg.Self)) {
		return // without a majority the others could not open without us
	}
	if !l.under {
		if n.now < l.roundAt {
			return
		}
		l.begin(n)
	}
	for budget := n.cfg.Budget; budget > 0 && n.offering(); budget -= recordsAtOnce {
		l.cursor = n.store.Each(l.cursor, recordsAtOnce, n.offerThis)
		l.walked = l.cursor == 0
		if l.met-l.gone >= n.cfg.MaxOffers {
			n.reached(LimitOffers)
		}
	}
	// What is not asked for in a while is offered again: it was locked, or nobody had room.
	full := n.plant == plantDrainFull && l.walked && l.met < 2
	if n.now-l.goneAt < n.cfg.Heartbeat && !(l.walked && l.gone >= l.met) && !full {
		return
	}
	l.under, l.roundAt = false, n.now
	if l.gone == 0 {
		l.roundAt += n.cfg.Heartbeat
	}
	if !full && (!l.walked || l.met > 0 || l.came || n.carriedN+n.parkedN+n.pendN > 0) {
		return
	}
	l.done = true
	n.suspect()
}

// begin a round.
func (l *leave) begin(n *Node) {
	l.under, l.cursor, l.walked, l.met, l.gone, l.goneAt, l.came = true, 0, false, 0, 0, n.now, false
	l.without.Members = l.without.Members[:0]
	for _, e := range n.s.Map.Members {
		if e.PNN != n.cfg.Self {
			l.without.Members = append(l.without.Members, e)
		}
	}
}

// offer a record to the node that would be its LMASTER without this one.
func (n *Node) offer(db uint32, key []byte, _ uint64, _ bool) {
	n.leave.met++
	n.data(n.leave.without.lmaster(n.cfg.Hash(db, key)), &Message{Op: wire.Offer, DBID: db, Src: n.ownVNN(), Key: key}, 0)
}

// offered: a node that leaves has a record for us. If there is no room for it, or
// too much to do, it will ask again.
func (n *Node) offered(from PNN, m *Message) {
	r := n.rec(m.DBID, m.Key)
	if n.pendN >= n.cfg.MaxPending/2 || n.leave.on || n.mine(r) {
		return
	}
	p := n.newPending(0, 0, &Message{Op: wire.ReqFetch, DBID: m.DBID, Key: m.Key})
	n.dispatch(p, from, 0)
}

// leavers are the promisers that ask for an epoch without them. If too few would
// be left they have to stay.
func (n *Node) leavers(all wire.Set) wire.Set {
	var out wire.Set
	for i := range n.cfg.Nodes {
		if p := &n.lead.prom[i]; p.have && p.memory == wire.MemoryLeft {
			out |= 1 << i
		}
	}
	if !n.majority(all &^ out) {
		return 0
	}
	return out
}
