package ltdb

import (
	"cmp"
	"errors"
	"slices"

	"github.com/mainzdb/mainz/shm"
)

// What a recovery of the cluster needs of the store. All records are walked
// then; the gate is closed.

// Freeze closes the gate: who has not yet locked what it is about to change
// gives it back, and waits. The freeze is complete after a pass.
func (d *Dispatcher) Freeze() { d.setGate(shm.GateFrozen) }

// OpenProvisional makes the provisional records of the epoch taken normal, in
// one store: a death leaves all of them as they were, or none.
func (d *Dispatcher) OpenProvisional() {
	epoch := d.s.gate.Epoch.Load()
	if d.mapped.epoch != 0 {
		epoch = d.mapped.epoch
	}
	d.mapped.opened = epoch
	d.s.gate.OpenedEpoch.Store(epoch)
}

// Open opens the gate for the epoch taken, after OpenProvisional. A gate that is
// open gets a new generation, so that nobody takes one epoch for the other.
func (d *Dispatcher) Open() {
	d.OpenProvisional()
	d.mapped.known = d.mapped.epoch != 0 && d.mapped.ticks != 0
	d.setGate(shm.GateOpen)
	d.s.gate.Gate.Lo().Wake(shm.All)
}

// Mapped notes the epoch that was taken, and this node's name and place in it.
//
// Preconditions: the gate is closed, or the node is alone and stays what it was.
func (d *Dispatcher) Mapped(epoch uint64, vnn, members, place uint32) {
	m := &d.mapped
	m.epoch, m.vnn, m.members, m.place = epoch, vnn, members, place
	gate := d.s.gate
	gate.Epoch.Store(epoch)
	gate.VNN.Store(vnn)
	gate.MapLen.Store(members)
	gate.MapPlace.Store(place)
}

// Lease sets until when clients may trust this node's records: in the ticks of
// package shm, and in nanoseconds of CLOCK_BOOTTIME. shm.NoLease for both: no
// other node is there.
func (d *Dispatcher) Lease(ticks, boot uint64) {
	d.mapped.ticks, d.mapped.boot = ticks, boot
	d.s.leas.Boot.Store(boot)
	d.s.leas.Ticks.Store(ticks)
}

// Pass looks whether everybody who began before the gate was closed is done:
// nobody is in the middle of a change or an insert. It returns the slots of
// the living clients who are, nil when the pass is over. It recovers the dead.
// Each call goes on where the last one stopped: what it has seen at rest needs
// no second look, since whoever starts later sees the gate.
func (d *Dispatcher) Pass(p *Pass) (busy []uint32, err error) {
	s := d.s
	if !p.begun {
		p.begun = true
		for i := uint32(1); i <= s.seg.Slots(); i++ {
			for k := uint32(0); k < shm.HandlesPerSlot && s.seg.Slot(i).Live.Load() != 0; k++ {
				p.left = append(p.left, shm.HandleID(i*shm.HandlesPerSlot+k))
			}
		}
	}
	left := p.left[:0]
	for _, id := range p.left {
		i := id.Slot()
		if s.c.Dead(i) {
			// Who is dead and can't be recovered is in the middle of nothing.
			if _, err := s.c.Recover(i); err != nil {
				d.fail(err)
				continue
			}
		}
		h := &shm.At[body](s.r, s.seg.SlotBody(i)).handles[id.Index()]
		if !planted("nopass") && (h.busy.Load() != 0 || h.bucketIntent.Load() != 0) {
			left = append(left, id)
			if len(busy) == 0 || busy[len(busy)-1] != i {
				busy = append(busy, i)
			}
		}
	}
	p.left = left
	return busy, nil
}

// Pass is one pass over the handles. The zero Pass is ready.
type Pass struct {
	begun bool
	left  []shm.HandleID // not yet seen at rest
}

// eachEntry calls f for every record's entry of all databases, or of those of
// one mode, in the order in which they stand.
func (d *Dispatcher) eachEntry(mode Mode, f func(db *DB, w *shm.Word64)) {
	s := d.s
	for i := range s.dbs {
		if s.dbs[i].ready.Load() == 0 {
			continue
		}
		db := d.db(s.dbs[i].id.Load())
		if db == nil || mode != 0 && db.mode != mode {
			continue
		}
		for n := range db.buckets {
			c := s.chainOf(&db.buckets[n])
			for ; c.bk != nil; c.next() {
				for k := range c.bk.entry {
					if c.bk.entry[k].Load() != 0 {
						f(db, &c.bk.entry[k])
					}
				}
			}
			d.fail(c.err)
		}
	}
}

// spotAt reads an entry whose record nobody changes; false if it is empty or
// damaged. key is appended to.
func (d *Dispatcher) spotAt(w *shm.Word64, key []byte) (at spot, k []byte, ok bool) {
	s := d.s
	e := w.Load()
	if e == 0 {
		return at, key, false
	}
	b := s.blockAt(entryRef(e), entryClass(e))
	if b == nil {
		d.fail(errBadBlock)
		return at, key, false
	}
	at = spot{entry: w, e: e, b: b, seq: b.seq.Load(), meta: b.meta.Load()}
	n := metaKeyLen(at.meta)
	if n < 1 || n > maxKey || blockHeaderSize+uint64(n) > uint64(classSizes[entryClass(e)]) || at.seq&1 != 0 {
		d.fail(errBadBlock)
		return at, key, false
	}
	k = room(key[:0], n)
	s.r.CopyOut(k, refOffset(entryRef(e))+blockHeaderSize)
	return at, k, true
}

// Each calls f for every record that this node owns, empty ones too, in a
// fixed order. The key is valid during the call, which must not insert.
//
// Preconditions: the pass is over.
func (d *Dispatcher) Each(f func(db uint32, key []byte, rsn uint64)) {
	var buf []byte
	d.eachEntry(0, func(db *DB, w *shm.Word64) {
		at, key, ok := d.spotAt(w, buf)
		buf = key
		if ok && metaFlags(at.meta)&flagOwn != 0 {
			f(db.id, key, at.b.rsn.Load())
		}
	})
}

// Sweep calls keep for the piece of every tag and takes out the pieces that it
// does not keep. Records that a client has locked are swept as well, and stay
// locked: it can't commit before the gate is open.
//
// Preconditions: the pass is over.
func (d *Dispatcher) Sweep(keep func(o OPID) bool) {
	var buf []byte
	d.eachEntry(Pieces, func(db *DB, w *shm.Word64) {
		at, key, ok := d.spotAt(w, buf)
		buf = key
		if !ok || !d.a.copyRecord(len(key), &at) {
			return
		}
		l := &d.a.look
		n := len(l.tags)
		for i := 0; i < len(l.tags); {
			if o := tagOPID(l.tags[i:]); keep(o) {
				i += tagSize
			} else {
				l.cut(o)
			}
		}
		if len(l.tags) == n {
			return
		}
		if len(l.tags) == 0 && at.e&ownerMask == 0 && metaFlags(at.meta)&keptFlags == 0 {
			d.erase(&at)
			return
		}
		acc := at.b.acc.Load()
		r := Held{at.b.rsn.Load() + 1, uint32(acc), uint32(acc >> 32), l.data, l.tags}
		flags := metaFlags(at.meta) &^ flagEmpty
		if err := d.replace(db.id, key, &at, &r, true, flags, at.b.epoch.Load()); err != nil {
			d.fail(err)
		}
	})
}

// Provisional adds a piece to a record that a recovery makes anew, ordered by
// OPID; false: no room. A record that is there otherwise is left alone: the
// piece is in it.
//
// Preconditions: the gate is closed; epoch is that of Mapped.
func (d *Dispatcher) Provisional(id uint32, key []byte, o OPID, piece []byte, epoch uint64) bool {
	db := d.db(id)
	if db == nil || db.mode != Pieces {
		return false
	}
	var at spot
	ok, err := db.find(db.hash(key), key, &at)
	d.fail(err)
	if err != nil {
		return false
	}
	if ok && !d.provisional(&at) && metaFlags(at.meta)&flagEmpty == 0 {
		return true
	}
	if !ok {
		if d.TryLock(id, key, true) != LockTaken || !d.held(id, key, &at) {
			return false
		}
		defer d.Unlock(id, key)
	}
	if !d.a.copyRecord(len(key), &at) {
		d.fail(errBadBlock)
		return false
	}
	l := &d.a.look
	where, i := 0, 0
	for ; i < len(l.tags); i += tagSize {
		t := tagOPID(l.tags[i:])
		if t == o {
			return true
		}
		if compareOPID(t, o) > 0 {
			break
		}
		where += int(tagLen(l.tags[i:]))
	}
	r := Held{RSN: 1, LAccessor: d.s.gate.VNN.Load(),
		Data: slices.Insert(slices.Clone(l.data), where, piece...), Tags: slices.Insert(slices.Clone(l.tags), i, appendTag(nil, o, len(piece))...)}
	return d.replace(id, key, &at, &r, true, flagOwn|flagProvisional|metaFlags(at.meta)&flagOwnerDied, epoch) == nil
}

func compareOPID(a, b OPID) int {
	return cmp.Or(cmp.Compare(a.PNN, b.PNN), cmp.Compare(a.Life, b.Life), cmp.Compare(a.Counter, b.Counter))
}

// provisional reports whether a record was made by a recovery that has not
// opened.
func (d *Dispatcher) provisional(at *spot) bool {
	return metaFlags(at.meta)&flagProvisional != 0 && at.b.epoch.Load() > d.s.gate.OpenedEpoch.Load()
}

// IsProvisional reports whether a record was made by a recovery that has not
// opened yet.
func (d *Dispatcher) IsProvisional(id uint32, key []byte) bool {
	db := d.db(id)
	if db == nil {
		return false
	}
	var at spot
	ok, err := db.find(db.hash(key), key, &at)
	d.fail(err)
	return ok && d.provisional(&at)
}

// DropProvisional drops the records that recoveries have made which never
// opened.
func (d *Dispatcher) DropProvisional() {
	var buf []byte
	d.eachEntry(Pieces, func(_ *DB, w *shm.Word64) {
		at, key, ok := d.spotAt(w, buf)
		buf = key
		if ok && d.provisional(&at) {
			d.erase(&at)
		}
	})
}

// Room returns how many bytes a record may have that moves here.
func (d *Dispatcher) Room() uint32 {
	for i := range d.s.spans {
		if d.s.spans[i].word.Load() == 0 {
			return uint32(d.s.maxValue)
		}
	}
	return 0
}

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

// EachPiece calls f for every piece of this node's clients, the dead ones
// included, until it returns false. The entry's slices are valid during the
// call. Words that a living client changes meanwhile may be missed.
func (d *Dispatcher) EachPiece(f func(p *PieceEntry) bool) {
	s := d.s
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

// SetPiece changes a piece's state if it is still that of the entry: prepared
// becomes live before the reply is acked, or abandoned when nobody waits.
func (d *Dispatcher) SetPiece(p *PieceEntry, to PieceState) bool {
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

// RemoveOrphans removes the pieces of dead clients from this node's records,
// and from the indexes, and tells who waits. elsewhere is asked about each
// whose record is not here: true says that the piece is done with, false that
// it stays for another call. nil: a record that is not here was lost. It goes on
// where the last call stopped, until goOn returns false, which it asks after some
// microseconds each; nil: to the end. It returns how many records it has changed.
func (d *Dispatcher) RemoveOrphans(elsewhere func(p *PieceEntry) bool, goOn func() bool) (changed int, left OrphanState) {
	if !d.s.orphaned() {
		d.orphans = orphanPlace{}
		return 0, NoOrphans
	}
	d.a.elsewhere = elsewhere
	d.a.keep = 0
	changed, over, err := d.a.tidyOn(&d.orphans, goOn)
	d.a.elsewhere = nil
	if !errors.Is(err, ErrNoSpace) && !errors.Is(err, errLatched) {
		d.fail(err)
	}
	switch {
	case !over:
		return changed, OrphansLeft
	case d.s.orphaned():
		return changed, OrphansHeld
	}
	return changed, NoOrphans
}

// Unproven reports whether a slot is marked dead and can't be recovered, as nothing
// says that its process runs no more.
func (d *Dispatcher) Unproven(slot uint32) bool { return d.s.c.Unproven(slot) }

// RecoverDead recovers the clients that have died and calls f for each, until
// goOn returns false; nil: all of them. It reports whether it was interrupted. A
// client whose memory can't be given back, as somebody holds a latch, stays dead for
// another call. Damage of one keeps no other from it: the error is that of the
// first.
func (d *Dispatcher) RecoverDead(f func(slot uint32), goOn func() bool) (more bool, first error) {
	d.s.c.FindLost()
	first = d.s.giveRest()
	for i := uint32(1); i <= d.s.seg.Slots(); i++ {
		if !d.s.c.Dead(i) {
			continue
		}
		did, err := d.s.c.Recover(i)
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
