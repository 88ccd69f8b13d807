package protocol

import "github.com/mainzdb/mainz/protocol/wire"

// Policy decides whether a record moves to the node that asks for it. It is asked
// only about requests that could be completed at once.
type Policy interface {
	// Move is told the record's last accessor and count with this access in them.
	Move(op wire.Op, from PNN, accessor PNN, count uint32) bool
	// Count says how an access changes accessor and count.
	Count(from PNN, accessor PNN, count uint32) (PNN, uint32)
}

// PolicyPlan is the 2006 plan's heuristic: the record moves when the same node
// has asked more than after times in a row.
type PolicyPlan uint32

func (p PolicyPlan) Move(_ wire.Op, _, _ PNN, count uint32) bool { return count > uint32(p) }

func (p PolicyPlan) Count(from, accessor PNN, count uint32) (PNN, uint32) {
	if from != accessor {
		return from, 1
	}
	return from, min(count+1, 1<<20)
}

// PolicyAlways moves a record for every request that locks or changes it.
type PolicyAlways struct{}

func (PolicyAlways) Move(op wire.Op, _, _ PNN, _ uint32) bool { return op != wire.ReqFetch }
func (PolicyAlways) Count(from, accessor PNN, count uint32) (PNN, uint32) {
	return PolicyPlan(0).Count(from, accessor, count)
}

// PolicyNever leaves records where they are.
type PolicyNever struct{}

func (PolicyNever) Move(wire.Op, PNN, PNN, uint32) bool { return false }
func (PolicyNever) Count(from, accessor PNN, count uint32) (PNN, uint32) {
	return accessor, count
}

// PolicyAdaptive keeps a balance: an access by the last accessor adds one, by
// another node takes two away, and the record moves at a balance of the given
// size. Two nodes that take turns never reach it, so the record stays and each
// pays a round trip instead of a handover per access.
type PolicyAdaptive uint32

func (p PolicyAdaptive) Move(op wire.Op, from, accessor PNN, count uint32) bool {
	return from == accessor && count >= uint32(p)
}

func (p PolicyAdaptive) Count(from, accessor PNN, count uint32) (PNN, uint32) {
	switch {
	case from == accessor:
		return from, min(count+1, 2*uint32(p))
	case count <= 2:
		return from, 1
	}
	return accessor, count - 2
}
