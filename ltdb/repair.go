package ltdb

import (
	"fmt"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// repair finishes or takes back what a dead client was about to do, and
// frees what it held. shm calls it with the slot claimed and the client
// fenced; Close calls it for the own slot. It may be killed at any point and
// is then repeated by somebody else, so every step either does nothing the
// second time or leaves the journal standing until it is done.
//
// The order of the steps is part of the design: each is done for all handles
// before the next begins. What a record lock or a bucket latch covers is
// settled while the dead client still holds it; only then is it released.
func (s *Store) repair(c *shm.Client, slot uint32) error {
	if s.seg.SlotBody(slot) == 0 {
		return damage(fmt.Sprintf("slot %d to repair", slot))
	}
	p := &repairer{s: s, c: c, slot: slot, body: shm.At[body](s.r, s.seg.SlotBody(slot))}
	if planted("cellsfirst") {
		for i := range p.body.cells {
			p.cell(&p.body.cells[i], i >= shm.HandlesPerSlot)
		}
	}
	for i := range p.body.handles {
		p.classLatch(i)
	}
	for i := range p.body.handles {
		p.tableLatch(i)
	}
	if planted("journalsfirst") {
		for i := range p.body.handles {
			p.journal(i)
		}
	}
	for i := range p.body.handles {
		p.bucketLatch(i)
	}
	for i := range p.body.handles {
		p.journal(i)
	}
	for i := range p.body.handles {
		p.orphanLatch(i)
	}
	for i := range p.body.handles {
		p.spareLatch(i)
	}
	for i := range p.body.cells {
		p.cell(&p.body.cells[i], i >= shm.HandlesPerSlot)
	}
	p.orphan()
	if err := p.stats(); err != nil {
		return err
	}
	for i := range p.body.handles {
		if err := p.magazines(i); err != nil {
			return err
		}
	}
	if p.latched == 0 {
		return nil
	}
	if slot == c.Slot() && p.s.c == nil {
		return nil // it inherits the slot: see keepUsable
	}
	return shm.ErrLater
}

// repairer works in the name of the dead slot's handles: a latch that it
// takes stands under their ids, so that whoever repairs the slot after the
// repairer's own death finds it in their journals.
type repairer struct {
	s    *Store
	c    *shm.Client
	slot uint32
	body *body
	// latched has a bit for each class whose latch somebody alive holds.
	latched uint32
}

func (p *repairer) id(i int) shm.HandleID {
	return shm.HandleID(p.slot*shm.HandlesPerSlot + uint32(i))
}

// classLatch settles a class latch: a block that was on its way between list
// and magazine stands in both, as the list's head or just not yet carved.
// It belongs to the list.
func (p *repairer) classLatch(i int) {
	h := &p.body.handles[i]
	c := int(h.classIntent.Load()) - 1
	if c < 0 || c >= classes {
		h.classIntent.Store(0)
		h.carveIntent.Store(0)
		h.reclaimIntent.Store(0)
		return
	}
	cl := &p.s.classes[c]
	if cl.latch.Owner() == p.id(i) {
		p.settleClass(h, c, cl)
	}
	h.carveIntent.Store(0)
	h.reclaimIntent.Store(0)
	cl.latch.Break(p.id(i))
	h.classIntent.Store(0)
}

func (p *repairer) settleClass(h *handle, c int, cl *classLine) {
	s := p.s
	if n := h.carveIntent.Load(); n != 0 && int(n) <= len(s.spans) {
		if spanClass(s.spans[n-1].word.Load()) == c && !planted("nocur") {
			cl.cur.Store(n)
		}
	}
	head := cl.head.Load()
	if !planted("allocator") {
		each(h, func(w *shm.Word32, class int) {
			ref := w.Load()
			if class >= 0 && class != c || ref == 0 {
				return
			}
			if ref == head || s.freeBlockAt(ref, c) != nil && !s.isCarved(ref, c) {
				w.Store(0)
			}
		})
	}
	if n := h.reclaimIntent.Load(); n != 0 && int(n) <= len(s.spans) {
		// Begun and perhaps not finished. An error is damage that Check names;
		// the latch must be freed all the same.
		if sp := &s.spans[n-1]; spanClass(sp.word.Load()) == c {
			_ = s.dropSpan(c, cl, int(n-1))
		}
	}
}

// each calls f with every word in which a handle keeps free blocks, and the
// class it is for, -1 for any of the large ones.
func each(h *handle, f func(w *shm.Word32, class int)) {
	for c := range h.magazine {
		for k := range h.magazine[c] {
			f(&h.magazine[c][k], c)
		}
	}
	for k := range h.big {
		f(&h.big[k], -1)
	}
}

// tableLatch settles the latch of the table of databases.
func (p *repairer) tableLatch(i int) {
	h := &p.body.handles[i]
	if h.tableIntent.Load() == 0 {
		return
	}
	l := &p.s.dbHead.latch
	if l.Owner() == p.id(i) && !planted("halfmade") {
		p.s.dropHalfMade()
	}
	l.Break(p.id(i))
	h.tableIntent.Store(0)
}

// bucketLatch settles a bucket latch: a new block that is in the chain was
// published, any other is still ours.
func (p *repairer) bucketLatch(i int) {
	h := &p.body.handles[i]
	off := h.bucketIntent.Load()
	if off == 0 {
		return
	}
	bk := p.s.bucketOf(off)
	if bk == nil {
		h.bucketIntent.Store(0)
		return
	}
	if bk.latch.Owner() == p.id(i) && !planted("latch") {
		if ref := h.jNew.Load(); ref != 0 {
			if !p.s.inChain(bk, ref) {
				p.put(h, ref)
			}
			h.jNew.Store(0)
		}
	}
	bk.latch.Break(p.id(i))
	h.bucketIntent.Store(0)
}

// bucketOf returns the bucket at off, nil if off is none's: it came from a
// journal, and what stands there may be changed.
func (s *Store) bucketOf(off shm.Offset) *bucket {
	i, sp := s.spanOf(off)
	if off < s.dataStart || off%bucketSize != 0 || sp == nil {
		return nil
	}
	w := sp.word.Load()
	if w&0xff != bucketSpan {
		at := s.spanStart(i) + (off-s.spanStart(i))/uint64(classSizes[0])*uint64(classSizes[0])
		if spanClass(w) != 0 || off != at+overflowBucketAt || !s.isBucket(offsetRef(at)) {
			return nil
		}
	}
	return shm.At[bucket](s.r, off)
}

// inChain reports whether ref is an entry's or an overflow's in the chain.
func (s *Store) inChain(bk *bucket, ref uint32) bool {
	c := s.chainOf(bk)
	for ; c.bk != nil; c.next() {
		if c.ref == ref {
			return true
		}
		for i := range c.bk.entry {
			if entryRef(c.bk.entry[i].Load()) == ref {
				return true
			}
		}
	}
	return c.ref == ref // an overflow that is no bucket is in the chain all the same
}

// journal decides whether a commit happened. While the entry still has j.old
// it did not, and the new block is free; else it did, and the old one is.
// Nobody else can have put j.old there again, since it was never free.
func (p *repairer) journal(i int) {
	h := &p.body.handles[i]
	fresh, old := h.jNew.Load(), h.jOld.Load()
	switch {
	case old != 0:
		entry := p.s.entryAt(h.jEntry.Load())
		if entry == nil {
			break // not ours to know; Check will say that blocks are missing
		}
		if entryRef(entry.Load()) == old {
			if fresh != 0 {
				p.put(h, fresh)
			}
		} else {
			p.put(h, old)
		}
	case fresh != 0 && !p.inStats(fresh) && !p.inIndex(i, fresh):
		p.put(h, fresh)
	}
	if planted("journal") {
		h.jOld.Store(0)
		h.jNew.Store(0)
	} else {
		h.jNew.Store(0)
		h.jOld.Store(0)
	}
	h.busy.Store(0)
}

// entryAt returns the entry at off, nil if off is none's.
func (s *Store) entryAt(off shm.Offset) *shm.Word64 {
	bk := s.bucketOf(off &^ (bucketSize - 1))
	if bk == nil || off%bucketSize == 0 || off%8 != 0 {
		return nil
	}
	return &bk.entry[off%bucketSize/8-1]
}

// put lays a free block into one of the dead handle's magazines, unless it
// lies in one already: it may have been on its way there, or the last
// repairer has put it there. It reports whether the block is there now.
func (p *repairer) put(h *handle, ref uint32) bool {
	s := p.s
	c := s.classAt(ref)
	if c < 0 || s.freeBlockAt(ref, c) == nil {
		return true // no block: nothing to keep
	}
	there := false
	var empty *shm.Word32
	each(h, func(w *shm.Word32, class int) {
		switch v := w.Load(); {
		case v == ref:
			there = true
		case v == 0 && empty == nil && (class == c || class < 0 && c >= smallClasses):
			empty = w
		}
	})
	if (!there || planted("putagain")) && empty != nil {
		empty.Store(ref)
	}
	return there || empty != nil
}

// cellGoing marks a cell whose slot is being repaired. Who leaves a lock to the slot
// looks at the cell behind that (Keeper.confirmGiven).
const cellGoing = 1

// cell releases a record lock that the dead client held, and wakes all who
// wait for the record in any case: it may have died just after it was woken,
// and then the wake-up was lost with it. given: the lock may have been a
// caller's. One of a single call guards nothing but the value, and that is whole.
func (p *repairer) cell(cell *shm.Word64, given bool) {
	off := cell.Load() &^ cellGoing
	if off == 0 {
		return
	}
	s := p.s
	if entry := s.entryAt(off); entry != nil {
		if !planted("nogoing") {
			cell.Swap(off | cellGoing) // not a plain store: the look at the entry must not pass it
		}
		// What the dispatcher has locked its successor finds.
		if held, asked := p.holds(entry); held {
			e := entry.Load()
			if b := s.blockAt(entryRef(e), entryClass(e)); b != nil && given && !planted("nodied") {
				b.meta.Store(b.meta.Load() | flagOwnerDied<<24)
			}
			for {
				e := entry.Load()
				if e&ownerMask != ownedBy(p.slot) {
					break
				}
				if entry.CAS(e, released(e|asked, e&identity)) {
					if (e|asked)&bitD != 0 {
						s.ring(entry)
					}
					break
				}
			}
		}
		if planted("repairforget") {
			cell.Store(0)
		}
		if !planted("wakeall") {
			entry.Hi().Wake(shm.All)
		}
		// It may have died between a commit and the news of it.
		if !planted("nonews") {
			s.bump(off)
		}
		if s.served() {
			s.rung(entry)
		}
	}
	cell.Store(0)
}

// holds reports whether the dead client has the lock, and takes D off, which it
// returns: the release hands the record over all the same. While D stands the dispatcher
// may take the lock back (Keeper.confirmGiven); without, the block is nobody else's until
// the release. Who repairs after a death in between knows of no D: the dispatcher is
// rung, and asks again.
func (p *repairer) holds(entry *shm.Word64) (held bool, asked uint64) {
	if p.slot == DispatcherSlot {
		return false, 0
	}
	for {
		e := entry.Load()
		switch {
		case e&ownerMask != ownedBy(p.slot):
			return false, 0
		case e&bitD == 0 || planted("withd"):
			return true, 0
		case entry.CAS(e, e&^bitD):
			return true, bitD
		}
	}
}

// magazines gives the dead handle's free blocks back to their lists.
func (p *repairer) magazines(i int) error {
	h := &p.body.handles[i]
	var err error
	each(h, func(w *shm.Word32, class int) {
		ref := w.Load()
		if ref == 0 || err != nil {
			return
		}
		if class < 0 {
			class = p.s.classAt(ref)
		}
		if class < 0 || p.s.freeBlockAt(ref, class) == nil {
			w.Store(0)
			return
		}
		if p.latched&(1<<class) != 0 {
			return
		}
		switch err = p.give(i, h, class, w); err {
		case errLatched:
			p.latched |= 1 << class
			err = nil
		case errLatch:
			// Nobody will ever get at that list. The block is lost, as Check
			// will say, but the slot and its locks are not.
			w.Store(0)
			err = nil
		}
	})
	return err
}

// empty reports whether a handle keeps no free blocks.
func (h *handle) empty() bool {
	is := true
	each(h, func(w *shm.Word32, _ int) { is = is && w.Load() == 0 })
	return is
}

// keepUsable takes those actors out of use whose magazines have blocks of a slot's
// last tenant that could not be given back: a client that is stopped holds the latch
// of their class. If too few actors are left, it gives blocks up: a slot must be
// taken over whoever is stopped, and whatever a slot's words say.
func (s *Store) keepUsable() {
	n := 0
	for i := range s.actors {
		if s.actors[i].h.empty() {
			n++
		} else {
			s.actors[i].use.Store(actorRetired)
		}
	}
	for i := 0; n < pooled; i++ {
		a := &s.actors[i]
		if a.use.Load() != actorRetired {
			continue
		}
		each(a.h, func(w *shm.Word32, _ int) { w.Store(0) })
		s.noteDamage(lostBlocks, uint64(s.slot))
		a.use.Store(actorIdle)
		n++
	}
}

// giveRest gives back what keepUsable has found.
func (s *Store) giveRest() error {
	p := &repairer{s: s, c: s.c, slot: s.slot, body: s.body}
	for i := range s.actors {
		a := &s.actors[i]
		if a.use.Load() != actorRetired {
			continue
		}
		if err := p.magazines(i); err != nil {
			return err
		}
		if a.h.empty() {
			a.use.Store(actorIdle)
		}
	}
	return nil
}

// lockLatch takes a class latch. It does not wait for a latch that somebody alive
// holds, who may be stopped: errLatched. What is not given back by then lies in the
// dead handle's magazines for whoever tries again; locks, pieces and journals are
// settled already, so nobody is kept. Who repairs itself, as it leaves, waits a
// little, so that a slot is mostly free afterwards.
func (p *repairer) lockLatch(l *shm.Latch, id shm.HandleID, n uint64) error {
	s := p.s
	if l.TryLock(id) {
		return nil
	}
	if o := s.ownerless(l, id, classLatch, n); o != 0 && l.TakeFrom(o, id) {
		s.noteDamage(damagedLatch, uint64(classLatch)<<48|n)
		return nil
	}
	err := s.spinLatch(p.c, l, id)
	if err != errLatched || p.slot != p.c.Slot() || p.slot == DispatcherSlot {
		return err
	}
	began := time.Now()
	if ok, err := l.LockUntil(p.c, id, nil, func() bool { return time.Since(began) < leaveLimit }); ok || err != nil {
		return err
	}
	return errLatched
}

// classAt returns the class of the span that ref lies in, -1 if none.
func (s *Store) classAt(ref uint32) int {
	_, sp := s.spanOf(refOffset(ref))
	if sp == nil {
		return -1
	}
	if c := spanClass(sp.word.Load()); c < classes {
		return c
	}
	return -1
}

// give pushes one block, under the class's latch, in the dead handle's name.
func (p *repairer) give(i int, h *handle, c int, w *shm.Word32) error {
	s := p.s
	cl := &s.classes[c]
	h.classIntent.Store(uint32(c + 1))
	if o := cl.latch.Owner(); o.Slot() == p.slot {
		// What the dead client really held is settled. Nobody else frees this.
		cl.latch.Break(o)
	}
	if err := p.lockLatch(&cl.latch, p.id(i), uint64(c+1)); err != nil {
		h.classIntent.Store(0)
		return err
	}
	b := s.freeBlockAt(w.Load(), c)
	b.rsn.Store(uint64(cl.head.Load()))
	cl.head.Store(w.Load())
	if !planted("givefirst") {
		w.Store(0)
	}
	cl.latch.Unlock(p.id(i))
	h.classIntent.Store(0)
	if planted("givefirst") {
		w.Store(0)
	}
	return nil
}
