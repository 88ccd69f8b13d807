package ltdb

import (
	"cmp"
	"slices"

	"github.com/mainzdb/mainz/shm"
)

// What a recovery of the cluster needs of the store. All records are walked
// then; the gate is closed.

// Freeze closes the gate. A client that has not yet locked what it is about to change
// gives it back, and waits. The freeze is complete after a pass.
func (k *Keeper) Freeze() { k.setGate(shm.GateFrozen) }

// OpenProvisional makes the provisional records of the epoch that was taken normal
// ones. It is one store: a death leaves all of them as they were, or none.
func (k *Keeper) OpenProvisional() {
	epoch := k.s.gate.Epoch.Load()
	if k.mapped.epoch != 0 {
		epoch = k.mapped.epoch
	}
	k.mapped.opened = epoch
	k.s.gate.OpenedEpoch.Store(epoch)
}

// Open opens the gate for the epoch that was taken, after OpenProvisional. If the gate
// is open already it gets a new generation, so that nobody mistakes one epoch for the
// other.
func (k *Keeper) Open() {
	k.OpenProvisional()
	k.mapped.known = k.mapped.epoch != 0 && k.mapped.ticks != 0
	k.setGate(shm.GateOpen)
	k.s.gate.Gate.Lo().Wake(shm.All)
}

// Mapped notes the epoch that was taken, and this node's name and place in it.
//
// Preconditions: the gate is closed, or the node is alone and stays alone.
func (k *Keeper) Mapped(epoch uint64, vnn, members, place uint32) {
	m := &k.mapped
	m.epoch, m.vnn, m.members, m.place = epoch, vnn, members, place
	gate := k.s.gate
	gate.Epoch.Store(epoch)
	gate.VNN.Store(vnn)
	gate.MapLen.Store(members)
	gate.MapPlace.Store(place)
}

// Lease sets until when clients may trust this node's records: in ticks of package shm,
// and in nanoseconds of CLOCK_BOOTTIME. Both are shm.NoLease if there is no other node.
func (k *Keeper) Lease(ticks, boot uint64) {
	k.mapped.ticks, k.mapped.boot = ticks, boot
	k.s.leas.Boot.Store(boot)
	k.s.leas.Ticks.Store(ticks)
}

// Pass looks whether every client that began a change or an insert before the gate was
// closed has ended it. It returns the slots of the living clients that have not; nil:
// the pass is over. It recovers the dead.
//
// Each call goes on where the last one stopped. A handle that was seen at rest needs no
// second look, since whoever starts later sees the gate.
func (k *Keeper) Pass(p *Pass) (busy []uint32, err error) {
	s := k.s
	if !p.begun {
		p.begun = true
		for i := uint32(1); i <= s.seg.Slots(); i++ {
			for n := uint32(0); n < shm.HandlesPerSlot && s.seg.Slot(i).Live.Load() != 0; n++ {
				p.left = append(p.left, shm.HandleID(i*shm.HandlesPerSlot+n))
			}
		}
	}
	left := p.left[:0]
	for _, id := range p.left {
		i := id.Slot()
		if s.c.Dead(i) {
			// Who is dead and can't be recovered is in the middle of nothing.
			if _, err := s.c.Recover(i); err != nil {
				k.fail(err)
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

// Provisional adds a piece to a record that a recovery makes anew, in the order of
// OPIDs. It returns false if there is no room. It leaves a record alone that is there
// and not provisional: the piece is in it.
//
// Preconditions: the gate is closed; epoch is that of Mapped.
func (k *Keeper) Provisional(id uint32, key []byte, o OPID, piece []byte, epoch uint64) bool {
	db := k.db(id)
	if db == nil || db.mode != Pieces {
		return false
	}
	var at spot
	ok, err := db.find(db.hash(key), key, &at)
	k.fail(err)
	if err != nil {
		return false
	}
	if ok && !k.provisional(&at) && metaFlags(at.meta)&flagEmpty == 0 {
		return true
	}
	if !ok {
		if k.TryLock(id, key, true) != LockTaken || !k.findHeld(id, key, &at) {
			return false
		}
		defer k.Unlock(id, key)
	}
	if !k.a.copyRecord(len(key), &at) {
		k.fail(errBadBlock)
		return false
	}
	l := &k.a.look
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
	r := Held{RSN: 1, LAccessor: k.s.gate.VNN.Load(),
		Data: slices.Insert(slices.Clone(l.data), where, piece...),
		Tags: slices.Insert(slices.Clone(l.tags), i, appendTag(nil, o, len(piece))...)}
	return k.replace(id, key, &at, &r, true, flagOwn|flagProvisional|metaFlags(at.meta)&flagOwnerDied, epoch) == nil
}

func compareOPID(a, b OPID) int {
	return cmp.Or(cmp.Compare(a.PNN, b.PNN), cmp.Compare(a.Life, b.Life), cmp.Compare(a.Counter, b.Counter))
}

// provisional reports whether a record was made by a recovery that has not
// opened.
func (k *Keeper) provisional(at *spot) bool {
	return metaFlags(at.meta)&flagProvisional != 0 && at.b.epoch.Load() > k.s.gate.OpenedEpoch.Load()
}

// IsProvisional reports whether a record was made by a recovery that has not
// opened yet.
func (k *Keeper) IsProvisional(id uint32, key []byte) bool {
	db := k.db(id)
	if db == nil {
		return false
	}
	var at spot
	ok, err := db.find(db.hash(key), key, &at)
	k.fail(err)
	return ok && k.provisional(&at)
}

// Room returns how many bytes a record may have that moves here.
func (k *Keeper) Room() uint32 {
	for i := range k.s.spans {
		if k.s.spans[i].word.Load() == 0 {
			return uint32(k.s.maxValue)
		}
	}
	return 0
}
