package ltdb

import (
	"errors"

	"github.com/mainzdb/mainz/shm"
)

// What the Keeper does about clients that have died: it recovers them, and removes their
// pieces. Pieces of the living are here as well, as their indexes have them.

// PieceState is where a piece stands.
type PieceState uint8

// States of a piece in its client's index.
const (
	PiecePrepared  = PieceState(statePrepared >> stateShift)  // submitted
	PieceLive      = PieceState(stateLive >> stateShift)      // in its record
	PieceRemoving  = PieceState(stateRemoving >> stateShift)  // about to be removed
	PieceAbandoned = PieceState(stateAbandoned >> stateShift) // nobody waits for it: to be removed by the dispatcher
)

// PieceEntry is a piece as its client's index has it.
type PieceEntry struct {
	Slot   uint32 // of the client
	Orphan bool   // which is dead, or has left
	State  PieceState
	OPID   OPID
	DB     uint32
	Key    []byte
	Data   []byte

	w *shm.Word64
	v uint64
}

// EachPiece calls f for every piece of this node's clients, dead ones included, until f
// returns false. The entry's slices are valid during the call. It may miss words that a
// living client changes meanwhile.
func (k *Keeper) EachPiece(f func(p *PieceEntry) bool) {
	s := k.s
	var p PieceEntry
	each := func(root uint32) bool {
		goOn := true
		s.eachWord(root, func(w *shm.Word64, v uint64) bool {
			b, ok := s.pieceAt(v)
			if !ok {
				return true
			}
			p.State, p.OPID, p.DB, p.w, p.v = PieceState(v&stateMask>>stateShift), s.opid(b.counter), b.db, w, v
			p.Key, p.Data = room(p.Key, b.klen), room(p.Data, b.plen)
			s.r.CopyOut(p.Key, refOffset(b.ref)+blockHeaderSize)
			s.r.CopyOut(p.Data, refOffset(b.ref)+dataOffset(b.klen))
			if w.Load() == v {
				goOn = f(&p)
			}
			return goOn
		})
		return goOn
	}
	for i := uint32(1); i <= s.seg.Slots(); i++ {
		p.Slot, p.Orphan = i, false
		if !each(shm.At[body](s.r, s.seg.SlotBody(i)).pieces.Load()) {
			return
		}
		if p.Orphan = true; !each(s.node.orphan[i].Load()) {
			return
		}
	}
}

// SetPiece changes a piece's state if it is still that of the entry: from prepared to
// live before the reply is acknowledged, or to abandoned when nobody waits for it.
func (k *Keeper) SetPiece(p *PieceEntry, to PieceState) bool {
	v := p.v&^stateMask | uint64(to)<<stateShift
	if !p.w.CAS(p.v, v) {
		return false
	}
	p.State, p.v = to, v
	return true
}

// OrphanState is what RemoveOrphans leaves.
type OrphanState uint8

// What RemoveOrphans leaves: nothing; pieces whose record, or a latch that it takes,
// is somebody's: try again after a while; pieces that there was no time for.
const (
	NoOrphans OrphanState = iota
	OrphansHeld
	OrphansLeft
)

// RemoveOrphans removes the pieces of dead clients from this node's records and from
// the indexes, and wakes those who wait for these records. It asks elsewhere about each
// piece whose record is not here: true says that the piece is done with, false keeps it
// for another call. If elsewhere is nil, a record that is not here counts as lost.
//
// Each call goes on where the last one stopped, until goOn returns false; a nil goOn
// lets it go on to the end. It asks goOn after some microseconds each. changed is how
// many records it has changed.
func (k *Keeper) RemoveOrphans(elsewhere func(p *PieceEntry) bool, goOn func() bool) (changed int, left OrphanState) {
	if !k.s.orphaned() {
		k.orphans = orphanPlace{}
		return 0, NoOrphans
	}
	k.a.elsewhere = elsewhere
	k.a.keep = 0
	changed, over, err := k.a.tidyOn(&k.orphans, goOn)
	k.a.elsewhere = nil
	if !errors.Is(err, ErrNoSpace) && !errors.Is(err, errLatched) {
		k.fail(err)
	}
	switch {
	case !over:
		return changed, OrphansLeft
	case k.s.orphaned():
		return changed, OrphansHeld
	}
	return changed, NoOrphans
}

// Orphaned reports whether the dead may have left pieces. It looks at one word of each
// slot. Any client recovers a dead one that it meets, and the Keeper is not told.
func (k *Keeper) Orphaned() bool { return k.s.orphaned() }

// Unproven reports whether a slot is marked dead and can't be recovered, because
// nothing proves that its process runs no more.
func (k *Keeper) Unproven(slot uint32) bool { return k.s.c.Unproven(slot) }

// RecoverDead recovers the clients that have died, and calls f for each, until goOn
// returns false; a nil goOn lets it recover all. more reports whether it was
// interrupted. A client whose memory can't be given back, because somebody holds a
// latch, stays dead for another call. Damage that one client has left does not keep
// others from being recovered: first is the error of the first.
func (k *Keeper) RecoverDead(f func(slot uint32), goOn func() bool) (more bool, first error) {
	k.s.c.FindLost()
	first = k.s.giveRest()
	for i := uint32(1); i <= k.s.seg.Slots(); i++ {
		if !k.s.c.Dead(i) {
			continue
		}
		did, err := k.s.c.Recover(i)
		if err != nil && first == nil {
			first = err
		}
		if did {
			f(i)
		}
		if goOn != nil && !goOn() {
			return true, nil
		}
	}
	return false, first
}
