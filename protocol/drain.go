package protocol

import "github.com/mainzdb/mainz/protocol/wire"

// leave is a node on its way out of the cluster.
type leave struct {
	on      bool
	done    bool // it has nothing any more, and asks for an epoch without it
	left    bool // that epoch is open
	offerAt Instant
}

// offersAtOnce is how many records a leaving node offers in one go.
const offersAtOnce = 32

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
	n.leave = leave{on: on, offerAt: n.now}
	n.finish()
}

// Left tells that the cluster is open without this node, which may stop now.
func (n *Node) Left() bool { return n.leave.left }

func (n *Node) drainTick() {
	if n.leave.done || !n.serving() || n.now < n.leave.offerAt {
		return
	}
	n.leave.offerAt = n.now + n.cfg.Heartbeat
	if !n.majority(n.s.Map.set &^ (1 << n.cfg.Self)) {
		return // the others could not open without us
	}
	if n.offer() > 0 || n.copies > 0 || n.pendN > 0 && n.plant != plantDrainFull {
		return
	}
	for r := n.s.recs.first; r != nil; r = r.next {
		if (len(r.carry) > 0 || len(r.parked) > 0) && n.plant != plantDrainFull {
			return
		}
	}
	n.leave.done = true
	n.suspect()
}

// offer some of the records that are here; it returns how many there are.
func (n *Node) offer() int {
	without := Map{}
	for _, e := range n.s.Map.Members {
		if e.PNN != n.cfg.Self {
			without.Members = append(without.Members, e)
		}
	}
	records := 0
	n.store.Each(func(db uint32, key []byte, _ uint64) {
		if records++; records == offersAtOnce+1 {
			n.reached(LimitOffers)
		}
		if records <= offersAtOnce {
			n.data(without.lmaster(n.cfg.Hash(db, key)), &Message{Op: wire.Offer, DBID: db, Src: n.ownVNN(), Key: key}, 0)
		}
	})
	if n.plant == plantDrainFull && records < 2 {
		return 0
	}
	return records
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
