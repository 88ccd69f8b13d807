package protocol

import (
	"errors"
	"math/bits"

	"github.com/mainzdb/mainz/protocol/wire"
)

// next is the file that follows. The one that it follows may be in use if an epoch
// was taken under it: others may have opened that.
func (f *NodesFile) next(version uint32, set wire.Set, w *Words) NodesFile {
	old := f.Old
	if old == 0 || w.Taken > f.Since {
		old = f.Set
	}
	return NodesFile{Version: version, Set: set, Old: old, Since: w.Promised}
}

// ErrNodesFile: a nodes file that can't follow the one that is in use.
var ErrNodesFile = errors.New("the nodes file must be the next version and differ by one node")

func fileLines(nodes int, unused wire.Set) wire.Set { return (1<<nodes - 1) &^ unused }

// loadFile at the start: the file that the configuration names, joint with the one
// before it if this node has not opened an epoch under it yet.
func (n *Node) loadFile() {
	f := &n.s.File
	set := fileLines(n.cfg.Nodes, n.cfg.Unused)
	switch {
	case f.Set == 0:
		n.setFile(NodesFile{Version: n.cfg.NodesFile, Set: set})
	case n.cfg.NodesFile > f.Version:
		n.setFile(f.next(n.cfg.NodesFile, set, &n.s.Words))
	}
}

func (n *Node) setFile(f NodesFile) {
	n.st.SetFile(f)
	n.s.File = f
	n.remember()
}

// Reconfigure to the next nodes file. One node is added or taken out at a time, so
// that a quorum of either file has a node of any quorum of the other; and until an
// epoch has opened under the new one a quorum of both is needed. The node asks for a
// recovery, which those take part in that have the same version.
func (n *Node) Reconfigure(now Instant, version uint32, unused wire.Set) error {
	n.begin(now)
	defer n.finish()
	f := &n.s.File
	set := fileLines(n.cfg.Nodes, unused)
	if version != f.Version+1 || bits.OnesCount64(uint64(set^f.Set)) != 1 {
		return ErrNodesFile
	}
	n.setFile(f.next(version, set, &n.s.Words))
	if n.lead.ballot != 0 {
		n.stopLeading()
	}
	n.suspect()
	return nil
}

// majority of the configured nodes; of both files while a new one comes in.
func (n *Node) majority(s wire.Set) bool {
	return most(s, n.s.File.Set) && (n.s.File.Old == 0 || most(s, n.s.File.Old))
}

func most(s, of wire.Set) bool {
	return 2*bits.OnesCount64(uint64(s&of)) > bits.OnesCount64(uint64(of))
}

// half of the nodes, which the arbiter's lock makes a quorum if the file is in use.
func (n *Node) half(s wire.Set) bool {
	return n.cfg.Arbiter && 2*bits.OnesCount64(uint64(s&n.s.File.Set)) == bits.OnesCount64(uint64(n.s.File.Set))
}

// quorum: whether these promisers with memory are a majority, or half. A leader that
// has lost its memory, or was away, may not know that its nodes file is not in use yet,
// or which one was the last that was. So it goes by the old files that they tell,
// unless one of them has seen an epoch open under the new one.
func (n *Node) quorum(full wire.Set) (majority, half bool) {
	if n.plant == plantLeaderFile {
		return n.majority(full), n.half(full) && n.s.File.Old == 0
	}
	majority, half = most(full, n.s.File.Set), n.half(full)
	inUse, short := false, false
	for i := range n.cfg.Nodes {
		if p := &n.lead.prom[i]; full.Has(PNN(i)) {
			inUse = inUse || p.inUse
			short = short || p.old != 0 && !most(full, p.old)
		}
	}
	return majority && (inUse || !short), half && inUse
}

// arbiter is how its lock stands, as far as this node knows.
type arbiter struct {
	held  bool
	until Instant // it is ours until then, by our clock
	value Epoch   // the last epoch that was opened by the lock
	found Epoch   // the same, when we got it
}

// Arbiter tells how the arbiter's lock stands: held until, by this node's clock,
// and the epoch that is stored with it. Call it when that changes.
func (n *Node) Arbiter(now Instant, held bool, until Instant, value Epoch) {
	n.begin(now)
	if held && (!n.arb.held || n.now >= n.arb.until) {
		n.arb.found = value
		n.counter = max(n.counter, value.Counter())
	}
	n.arb.held, n.arb.until, n.arb.value = held, until, value
	if !held {
		n.arb.until = -Never / 2
	}
	n.renewLease()
	if n.lead.ballot != 0 {
		switch n.lead.phase {
		case gathering:
			n.decide()
		case settling:
			if n.arb.value == n.lead.ballot && n.lead.members.set&^n.lead.done == 0 {
				n.allDone(settling)
			}
		}
	}
	n.finish()
}

// locked: the lock lasts, and one of these promisers has taken the last epoch that
// was opened by it.
func (n *Node) locked(full wire.Set) bool { return n.lockLasts() && !n.staleHalf(full) }

// lockLasts: the lock is ours for long enough to run a recovery under it.
func (n *Node) lockLasts() bool { return n.arb.held && n.arb.until > n.now+n.cfg.Lease }

// staleHalf: an epoch has opened by the lock that none of these promisers has taken.
// Their records may be old; the other half has to come back.
func (n *Node) staleHalf(full wire.Set) bool {
	if !n.arb.held || n.plant == plantLockForgets {
		return false
	}
	var newest Epoch
	for i := range n.lead.prom {
		if full.Has(PNN(i)) {
			newest = max(newest, n.lead.prom[i].taken)
		}
	}
	return n.arb.found > newest
}

// wantLock: to lead half of the nodes, and for as long as their epoch lasts; and for
// a cold start.
func (n *Node) wantLock() bool {
	if !n.cfg.Arbiter {
		return false
	}
	if n.lead.ballot != 0 {
		all, full := n.promisers()
		if majority, half := n.quorum(full); half || !majority && n.nothingKnown(all, full) {
			return true
		}
	}
	return n.halfMap() && n.s.Taken.Leader() == n.cfg.Self && n.state >= stMapped
}

// halfMap: the epoch taken last stands by the lock.
func (n *Node) halfMap() bool { return n.half(n.s.Map.set) && n.s.Taken > n.s.File.Since }

// leaseQuorum: with these grants, its own among them, the node has a lease. In an
// epoch that stands by the lock the leader's must be among them, who grants only
// while the lock is good.
func (n *Node) leaseQuorum(by wire.Set) bool {
	if n.majority(by) {
		return true
	}
	return n.half(by) && n.halfMap() && by.Has(n.s.Taken.Leader()) && (n.s.Taken.Leader() != n.cfg.Self || n.arb.held)
}
