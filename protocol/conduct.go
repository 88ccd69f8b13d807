package protocol

import "github.com/mainzdb/mainz/protocol/wire"

// A member that stalls again and again, but never long enough to count as dead, would
// stop the cluster for a recovery each time, for ever. So whoever calls for a recovery
// says whom it blames, all members count, and a node that is blamed too often is left
// out of the map, for longer each time. Good conduct is forgotten about last.

// conduct is what a node thinks of another, or of itself.
type conduct struct {
	strikes  int     // recoveries that it is blamed for
	struckAt Instant // the last of them, or the end of the last hold-off
	outs     int     // how often it was left out
	outUntil Instant
}

// blame says who made a recovery necessary, and how.
type blame struct {
	who PNN
	why uint32 // wire.BlameStall and the like
}

var nobody = blame{who: wire.NoPNN}

// maxHold bounds the hold-off.
const maxHold = 10_000 * ms

// hold is how long a node stays out that was left out so often.
func (n *Node) hold(outs int) Instant {
	return min(n.cfg.JoinHold<<min(max(outs-1, 0), 20), maxHold)
}

// strike counts against the one who is blamed. A peer that gets PINGs and answers no
// DATA gets no second chance: it would take as long to find out again.
func (n *Node) strike(b blame) {
	if b.who >= wire.MaxNodes {
		return
	}
	c := &n.peers[b.who].conduct
	if n.now-c.struckAt > max(4*n.hold(c.outs), 2000*ms) {
		c.strikes, c.outs = 0, 0
	}
	c.struckAt = n.now
	if c.strikes++; b.why == wire.BlameMute {
		c.strikes = n.cfg.MaxStrikes
	}
}

// unruly are the nodes that are to be left out, now or still.
func (n *Node) unruly() (set wire.Set) {
	if n.plant == plantNoHoldOff {
		return 0
	}
	for i := range n.cfg.Nodes {
		if c := &n.peers[i].conduct; c.strikes >= n.cfg.MaxStrikes || n.now < c.outUntil {
			set |= 1 << i
		}
	}
	return set
}

// without the unruly, the highest first, as long as enough are left.
func (n *Node) without(all, full wire.Set) wire.Set {
	out := n.unruly() & all &^ (1 << n.cfg.Self)
	for i := n.cfg.Nodes - 1; i >= 0; i-- {
		rest := all &^ (1 << i)
		if !out.Has(PNN(i)) {
			continue
		}
		if normal, _ := n.enough(rest, full&rest); normal {
			all = rest
		}
	}
	return all
}

// leftOut begins the hold-off of those that a new map is without.
func (n *Node) leftOut(mp *Map) {
	for i := range n.cfg.Nodes {
		c := &n.peers[i].conduct
		if c.strikes < n.cfg.MaxStrikes || mp.set.Has(PNN(i)) {
			continue
		}
		c.outs++
		c.outUntil = n.now + n.hold(c.outs)
		c.strikes, c.struckAt = n.cfg.MaxStrikes-1, c.outUntil
	}
}

// Unanswered: the peer has not acknowledged a message of this epoch that went out then,
// though it is heard. That is the plan's first reason for a recovery. Datagrams of one
// size may get through and those of another not.
func (n *Node) Unanswered(now Instant, p PNN, since Instant) {
	n.begin(now)
	if n.state == stOpen && n.s.Map.member(p) != nil && n.now-since >= n.cfg.Unanswered && n.leaseLive() &&
		n.plant != plantWaitForEver {
		n.suspectOf(blame{p, wire.BlameMute})
	}
	n.finish()
}
