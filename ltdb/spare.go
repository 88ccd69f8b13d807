package ltdb

import "github.com/mainzdb/mainz/shm"

// The spare: how a full store is emptied. An update writes the next value into
// a free block, and in a full store there may be none, even for a value that
// is no longer than the present one. So each segment keeps one block of the
// largest class, the first of its first span, that nobody ever gets. Where no
// free block is to be had, and the next value fits the record's own block, the
// update goes through the spare, under a latch:
//
//  1. the next value is written into the spare;
//  2. home := the record's block, entry := its entry (the line spareLine);
//  3. CAS: the record's entry names the spare. This is the commit;
//  4. the value is copied into the record's own block, which nobody else has;
//  5. CAS: the entry names its own block again;
//  6. entry := 0, latch released.
//
// The caller has the record's lock all the while. Readers find a whole block
// at each step: the seqs of both tell who came in between. After a death the
// repair finishes 4 to 6 if the entry names the spare, while the dead client
// still has the record's lock; else the record has its own block, with the old
// value or with the new one, and nothing is to be done.

// spareBlock returns the spare's ref, class and block; nil if the span table is
// damaged.
func (s *Store) spareBlock() (ref uint32, c int, b *block) {
	ref, c = offsetRef(s.dataStart), s.topClass
	if b = s.freeBlockAt(ref, c); b == nil || !s.isCarved(ref, c) {
		return ref, c, nil
	}
	return ref, c, b
}

// carveSpare takes the spare out of a new segment's first span. The rest of the
// span serves blocks of its class.
func (s *Store) carveSpare() {
	s.spans[0].word.Store(uint64(s.topClass+1) | 1<<8)
	s.classes[s.topClass].cur.Store(1)
}

// draftFor gets a block of class c for the next value of the locked record at:
// the spare if there is no other and the value fits the record's own block.
//
// Preconditions: publish, or what does its work, comes next: it gives the spare
// back.
func (a *actor) draftFor(c int, at *spot) (draft, error) {
	if c < smallClasses && a.mag[c].n > 0 {
		return a.draft(c)
	}
	return a.draftForSlow(c, at)
}

func (a *actor) draftForSlow(c int, at *spot) (draft, error) {
	ok, err := a.gather(c, 1)
	if err == nil && !ok {
		if c <= entryClass(at.e) {
			return a.draftSpare()
		}
		err = a.reserve(c, 1)
	}
	if err != nil {
		return draft{}, err
	}
	return a.draft(c)
}

// draftSpare latches the spare as a draft.
func (a *actor) draftSpare() (draft, error) {
	s := a.s
	ref, c, b := s.spareBlock()
	if b == nil {
		return draft{}, errBadSpare
	}
	l := &s.node.spare.latch
	a.h.spareIntent.Store(1)
	if err := a.lockLatch(l, spareLatch, 1); err != nil {
		a.h.spareIntent.Store(0)
		return draft{}, err
	}
	s.settleSpare() // nobody leaves it so but who overwrites what is not his
	a.spare = true
	odd := b.seq.Load() | 1
	b.seq.Store(odd)
	shm.StoreBarrier()
	return draft{ref, c, b, odd}, nil
}

func (a *actor) leaveSpare() {
	a.s.node.spare.latch.Unlock(a.id)
	a.h.spareIntent.Store(0)
	a.spare = false
}

// publishSpare is publish of a draft that is the spare. The record has its new
// value in its own block afterwards.
func (a *actor) publishSpare(at *spot, cell *shm.Word64, id uint64, how release) error {
	s, first := a.s, how
	if how == andUnlock {
		first = andKeep // until the record has its own block again
	}
	if !a.carryHome(at, id, first) || how == andUnlock && !s.swapEntry(at.entry, s.me, at.e&identity) {
		return a.lost(cell)
	}
	if at.meta&(flagAttended<<24|metaWaited) != 0 {
		s.changed(at, how)
	}
	if how == andUnlock {
		cell.Store(0)
	}
	return nil
}

// carryHome makes the spare, whose identity is id, the record's block, copies it into
// the record's own block, and gives the spare back. false: the record isn't the
// caller's to change, and has not changed.
func (a *actor) carryHome(at *spot, id uint64, how release) bool {
	s, sp := a.s, &a.s.node.spare
	sp.home.Store(at.e & homeMask)
	sp.entry.Store(shm.OffsetOf(s.r, at.entry))
	ok := s.swapIdentity(at, id, how)
	if ok {
		s.settleSpare()
	} else {
		sp.entry.Store(0)
	}
	a.leaveSpare()
	return ok
}

// settleSpare brings a record home whose entry names the spare. It may be
// repeated after a death at any point. The words of the line are input.
//
// Preconditions: the latch is the caller's, or that of the dead client whose
// slot the caller repairs.
func (s *Store) settleSpare() {
	sp := &s.node.spare
	off := sp.entry.Load()
	if off == 0 {
		return
	}
	ref, c, from := s.spareBlock()
	home := sp.home.Load() & homeMask
	entry, to := s.entryAt(off), s.freeBlockAt(entryRef(home), entryClass(home))
	if from == nil || entry == nil || to == nil || to == from || entry.Load()&homeMask != makeID(ref, c) {
		sp.entry.Store(0)
		return
	}
	meta, size := from.meta.Load(), from.size.Load()
	klen, dlen := metaKeyLen(meta), int(uint32(size))
	n := blockSize(klen, dlen)
	if tags := metaTags(meta); tags > 0 {
		n = pieceSize(klen, dlen, tags)
	}
	if klen > maxKey || dlen > s.maxValue || n > uint64(classSizes[entryClass(home)]) {
		sp.entry.Store(0) // somebody has overwritten the spare: the record stays there, for Check to name
		return
	}
	odd := to.seq.Load() | 1
	to.seq.Store(odd)
	shm.StoreBarrier()
	at, body := refOffset(entryRef(home)), refOffset(ref)
	s.r.CopyUnchecked(at+blockHeaderSize, body+blockHeaderSize, int(n-blockHeaderSize))
	to.rsn.Store(from.rsn.Load())
	to.acc.Store(from.acc.Load())
	to.size.Store(size)
	to.meta.Store(meta&^(0xff<<16) | uint64(entryClass(home))<<16)
	to.epoch.Store(from.epoch.Load())
	to.seq.Store(odd + 1)
	for {
		e := entry.Load()
		if e&homeMask != makeID(ref, c) || entry.CAS(e, e&^homeMask|home) {
			break
		}
	}
	sp.entry.Store(0)
}

// spareLatch settles the spare. The dead client still has the lock of the
// record that is on its way.
func (p *repairer) spareLatch(i int) {
	h := &p.body.handles[i]
	if h.spareIntent.Load() == 0 {
		return
	}
	l := &p.s.node.spare.latch
	if l.Owner() == p.id(i) && !planted("spare") {
		p.s.settleSpare()
	}
	l.Break(p.id(i))
	h.spareIntent.Store(0)
}
