package ltdb

import (
	"time"

	"github.com/mainzdb/mainz/shm"
)

// Clients that are in the way. Between two calls a client has no latch, and no
// record that only a call of its own has locked; within a call it has them for less
// than a microsecond. One that is stopped there keeps others for as long as it is
// stopped. Who is slow moves: its journal, its counters or the lock change.

// Stuck is a client that others may wait for, in one of its calls.
type Stuck struct {
	Slot       uint32
	Generation uint64 // of the slot's tenants
	// Latch: it has a latch, which no context of its own ends, and which many may
	// need. Else it has the lock of a record.
	Latch bool
	For   time.Duration // since it was seen like that first
}

// stuckAt is a handle as it was seen first.
type stuckAt struct {
	mark  stuckMark
	since time.Time
}

// stuckMark is what changes if the client goes on.
type stuckMark struct {
	generation, bucket, entry, cell, ops     uint64
	fresh, old, class, table, orphan, busy32 uint32
}

// Stuck calls f for every client that was seen at one place of one call for limit or
// longer. Each call of Stuck looks at a part of the slots, until goOn returns false,
// and begins where the last one stopped. Call it every 100 ms or so.
func (k *Keeper) Stuck(limit time.Duration, goOn func() bool, f func(c Stuck)) {
	s := k.s
	if k.stuck == nil {
		k.stuck = map[shm.HandleID]stuckAt{}
	}
	now := time.Now()
	for n := uint32(0); n < s.seg.Slots(); n++ {
		slot := k.stuckSlot%s.seg.Slots() + 1
		k.stuckSlot = slot
		if s.seg.Slot(slot).Live.Load() == 0 {
			continue
		}
		b := shm.At[body](s.r, s.seg.SlotBody(slot))
		var worst Stuck
		for i := range b.handles {
			id := shm.HandleID(slot*shm.HandlesPerSlot + uint32(i))
			latch, lock := s.inTheWay(id, &b.handles[i], &b.cells[i])
			if !latch && !lock {
				if len(k.stuck) > 0 {
					delete(k.stuck, id)
				}
				continue
			}
			mark := markOf(s.seg.Slot(slot), &b.handles[i], &b.cells[i])
			seen, ok := k.stuck[id]
			if !ok || seen.mark != mark {
				k.stuck[id] = stuckAt{mark, now}
				continue
			}
			if t := now.Sub(seen.since); t >= limit && t >= worst.For {
				worst = Stuck{slot, mark.generation, latch || worst.Latch, t}
			}
		}
		if worst.For > 0 {
			f(worst)
		}
		if !goOn() {
			return
		}
	}
}

// inTheWay reports whether a handle has a latch, or its call a record's lock.
func (s *Store) inTheWay(id shm.HandleID, h *handle, cell *shm.Word64) (latch, lock bool) {
	if c := int(h.classIntent.Load()) - 1; c >= 0 && c < classes && s.classes[c].latch.Owner() == id {
		latch = true
	}
	if off := h.bucketIntent.Load(); off != 0 {
		if bk := s.bucketOf(off); bk != nil && bk.latch.Owner() == id {
			latch = true
		}
	}
	latch = latch || h.tableIntent.Load() != 0 && s.dbHead.latch.Owner() == id ||
		h.orphanIntent.Load() != 0 && s.node.orphanLatch.Owner() == id ||
		h.spareIntent.Load() != 0 && s.node.spare.latch.Owner() == id
	if off := cell.Load(); off != 0 {
		if w := s.entryAt(off); w != nil && entryOwner(w.Load()) == id.Slot() {
			lock = true
		}
	}
	return latch, lock || h.busy.Load() != 0
}

func markOf(sl *shm.Slot, h *handle, cell *shm.Word64) stuckMark {
	ops := uint64(0)
	for i := range h.counters {
		ops += h.counters[i].Load()
	}
	return stuckMark{sl.Generation.Load(), h.bucketIntent.Load(), h.jEntry.Load(), cell.Load(), ops,
		h.jNew.Load(), h.jOld.Load(), h.classIntent.Load(), h.tableIntent.Load(), h.orphanIntent.Load(), h.busy.Load()}
}

// Stopped reports whether the process of a client is stopped, as the kernel says.
func (k *Keeper) Stopped(slot uint32) bool { return k.s.c.Stopped(slot) }

// Evict kills a client that is stopped, if the kernel names its process for that slot.
// The client is recovered then like any dead one. ErrPermission: this process may not
// kill it.
func (k *Keeper) Evict(slot uint32, generation uint64) (bool, error) {
	return k.s.c.Evict(slot, generation)
}
