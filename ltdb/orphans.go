package ltdb

import (
	"context"
	"errors"

	"github.com/mainzdb/mainz/shm"
)

// Pieces of the dead. Repair moves the index of a dead client, as it is, to
// the orphans; what its pieces need, the lock of their records, a repair can't
// wait for. Who comes across them then removes them: who attaches, recovers or
// closes, and whose append is refused because of such a piece. With a
// dispatcher that is the dispatcher (EachOrphan).

// orphanLatch settles the latch of the orphan indexes. The journals are
// settled by now: while the latch was held, nobody else freed what the dead
// client was freeing.
func (p *repairer) orphanLatch(i int) {
	h := &p.body.handles[i]
	if h.orphanIntent.Load() == 0 {
		return
	}
	p.s.node.orphanLatch.Break(p.id(i))
	h.orphanIntent.Store(0)
}

// orphan puts the dead client's index before what earlier tenants of the slot
// have left. The last page stands in the slot, or is found before anything is
// linked to it: a repeat would run on into the others' pages. Until the slot has forgotten the index,
// nobody takes pages from it.
func (p *repairer) orphan() {
	s, b := p.s, p.body
	root := b.pieces.Load()
	if root != 0 {
		if planted("forgetpages") {
			b.pieces.Store(0)
		}
		if o := &s.node.orphan[p.slot]; o.Load() != root {
			p.chain(o, root)
		}
		b.pieces.Store(0)
	}
	if b.lastPage.Load() != 0 {
		b.lastPage.Store(0)
	}
}

func (p *repairer) chain(o *shm.Word32, root uint32) {
	s, b := p.s, p.body
	last := b.lastPage.Load()
	if planted("nolast") {
		last = 0
	}
	if page, _ := s.pageAt(last); page == nil {
		if last = s.lastOf(root); last == 0 {
			return // no page: there is nothing to keep
		}
		if !planted("nolast") {
			b.lastPage.Store(last)
		}
	}
	if page, _ := s.pageAt(last); page == nil {
		return
	}
	block := s.blockAt(last, pageClass)
	for range maxLooks {
		old := o.Load()
		block.rsn.Store(uint64(old))
		if o.CAS(old, root) {
			return
		}
	}
}

// lastOf returns the last page of a chain, 0 if there is none. Of a chain that
// comes back to itself it is the page that leads back: who links something to it
// cuts the ring open, and no page is lost.
func (s *Store) lastOf(first uint32) uint32 {
	last, root := uint32(0), first
	for chain := (walk{}); ; {
		page, next := s.pageAt(root)
		if page == nil {
			return last
		}
		if chain.again(root) {
			return s.lastOfRing(first, root, chain.n)
		}
		last, root = root, next
	}
}

// lastOfRing returns the page that leads back into a ring, which at is in and
// first leads to: who goes once around ahead of another from first on meets him
// where the ring begins. n bounds it if somebody changes the ring meanwhile.
func (s *Store) lastOfRing(first, at, n uint32) (last uint32) {
	next := func(ref uint32) uint32 {
		_, next := s.pageAt(ref)
		return next
	}
	around := uint32(1)
	for ref := next(at); ref != at && around < n; ref = next(ref) {
		around++
	}
	ahead, behind := first, first
	for range around {
		last, ahead = ahead, next(ahead)
	}
	for i := uint32(0); i < n && ahead != behind; i++ {
		last, ahead, behind = ahead, next(ahead), next(behind)
	}
	return last
}

// orphaned reports whether the index of somebody dead may have pieces.
func (s *Store) orphaned() bool {
	for i := range s.seg.Slots() + 1 {
		if s.node.orphan[i].Load() != 0 {
			return true
		}
	}
	return s.node.orphan[DispatcherSlot].Load() != 0
}

// tidy removes the pieces of the dead, but for those whose record is locked,
// and returns how many records it has changed.
func (s *Store) tidy(ctx context.Context) (int, error) {
	if s.managed() || !s.orphaned() {
		return 0, nil
	}
	a, err := s.borrow(ctx)
	if err != nil {
		return 0, err
	}
	defer s.giveBack(a)
	return a.tidy()
}

// tidy is Store.tidy.
func (a *actor) tidy() (changed int, err error) {
	changed, _, err = a.tidyOn(&orphanPlace{}, nil)
	return changed, err
}

// orphanPlace is a place in the orphans' indexes: where a clean-up goes on that
// was interrupted. Between two parts of one nobody else takes pages away; who has
// died meanwhile may have put more in front, and then that slot's chain begins anew.
type orphanPlace struct {
	slot         int
	head         uint32 // of the slot's chain; the others are of no use without it
	page, before uint32 // before: the page in front, 0 for the head
	word         int
}

// tidyStride is how many pieces are removed before goOn is asked again. One takes
// less than a microsecond, or as long as to write a large record anew.
const tidyStride = 4

// tidyOn is tidy from a place on, until goOn, which may be nil, returns false. It
// holds the orphan latch meanwhile, and waits for nothing but latches: of record
// locks it takes those that are free. over: it was not interrupted, and the place
// is the beginning again.
//
// Preconditions: the actor has no draft, and holds nothing.
func (a *actor) tidyOn(at *orphanPlace, goOn func() bool) (changed int, over bool, err error) {
	s := a.s
	a.h.orphanIntent.Store(1)
	if err := a.lockLatch(&s.node.orphanLatch, orphanLatch, 1); err != nil {
		a.h.orphanIntent.Store(0)
		return 0, true, err
	}
	over = true
	for ; over && at.slot < len(s.node.orphan); *at = (orphanPlace{slot: at.slot + 1}) {
		if uint32(at.slot) > s.seg.Slots() && at.slot != DispatcherSlot {
			continue
		}
		n, done, e := a.tidyChain(at, goOn)
		changed += n
		if err == nil {
			err = e
		}
		if over = done; !over {
			break
		}
	}
	if over {
		*at = orphanPlace{}
	}
	s.node.orphanLatch.Unlock(a.id)
	a.h.orphanIntent.Store(0)
	return changed, over, err
}

// tidyChain works through the orphans of one slot, and takes the pages away
// that are empty then. What can't be done stays; its first error is returned
// when all others are done.
func (a *actor) tidyChain(at *orphanPlace, goOn func() bool) (changed int, over bool, err error) {
	s := a.s
	head := &s.node.orphan[at.slot]
	root := head.Load()
	if root == 0 || shm.At[body](s.r, s.seg.SlotBody(uint32(at.slot))).pieces.Load() == root && !planted("bothhave") {
		return 0, true, nil
	}
	if at.page == 0 || at.head != root {
		at.head, at.page, at.before, at.word = root, root, 0, 0
	}
	done := 0
	for chain := (walk{}); at.page != 0; {
		var before *block // of the page in front, nil for the head
		if at.before != 0 {
			before = s.blockAt(at.before, pageClass)
		}
		page, next := s.pageAt(at.page)
		if page == nil || chain.again(at.page) {
			// What comes behind is nobody's any more, or was worked through.
			if before != nil {
				before.rsn.Store(0)
			} else {
				head.CAS(root, 0)
			}
			s.noteDamage(damagedPages, uint64(at.slot))
			return changed, true, errBadPages
		}
		for ; at.word < len(page.word); at.word++ {
			w := &page.word[at.word]
			v := w.Load()
			if v == 0 {
				continue
			}
			if done++; done%tidyStride == 0 && goOn != nil && !goOn() {
				return changed, false, err
			}
			_, did, e := a.tidyPiece(w, v)
			if did {
				changed++
			}
			if err == nil {
				err = e
			}
		}
		switch {
		case !page.empty() || !a.dropPage(head, before, at.page, next):
			at.before = at.page
		case before == nil:
			at.head, root = next, next
		}
		at.page, at.word = next, 0
	}
	return changed, true, err
}

func (p *indexPage) empty() bool {
	for i := range p.word {
		if p.word[i].Load() != 0 {
			return false
		}
	}
	return true
}

// dropPage takes an empty page out of a chain and frees it. It reports whether
// it did: somebody may have put more pages in front.
func (a *actor) dropPage(head *shm.Word32, before *block, ref, next uint32) bool {
	if a.makeRoom(pageClass, 1) != nil {
		return false
	}
	a.h.jNew.Store(ref)
	if before != nil {
		before.rsn.Store(uint64(next))
	} else if !head.CAS(ref, next) {
		a.h.jNew.Store(0)
		return false
	}
	// A damaged chain may lead to it once more: it is no page now.
	a.s.blockAt(ref, pageClass).meta.Store(0)
	a.put(ref, pageClass)
	a.h.jNew.Store(0)
	return true
}

// tidyPiece removes one orphan from its record and from its index. gone is
// false if the record is locked; changed says that the record was changed.
func (a *actor) tidyPiece(w *shm.Word64, v uint64) (gone, changed bool, err error) {
	s := a.s
	p, ok := s.pieceAt(v)
	if !ok {
		w.Store(0) // garbage
		return true, false, errBadBlock
	}
	if db := s.databaseOf(p.db); db != nil {
		key := make([]byte, p.klen)
		s.r.CopyOut(key, refOffset(p.ref)+blockHeaderSize)
		changed, err = a.cutPiece(db, key, db.hash(key), s.opid(p.counter), anybody)
		switch {
		case err == errHeld, err == errGate, errors.Is(err, errLatched):
			return false, false, nil
		case err != nil && err != ErrNotHere:
			return false, changed, err
		}
		if !changed && a.elsewhere != nil && (err == ErrNotHere || !a.look.found) {
			e := PieceEntry{Slot: slotOf(p.counter), Orphan: true, State: PieceState(v & stateMask >> stateShift),
				OPID: s.opid(p.counter),
				DB:   p.db, Key: key, Data: make([]byte, p.plen), w: w, v: v}
			s.r.CopyOut(e.Data, refOffset(p.ref)+dataOffset(p.klen))
			if !a.elsewhere(&e) {
				return false, false, nil
			}
			if w.Load() != e.v {
				return false, false, nil // the call has changed its state
			}
		}
	}
	if err := a.erasePiece(w); err != nil && !errors.Is(err, errLatched) {
		return true, changed, err
	} else if err != nil {
		return false, changed, nil
	}
	return true, changed, nil
}

// databaseOf returns the database with that number, nil if there is none.
func (s *Store) databaseOf(id uint32) *DB {
	for i := range s.dbs {
		if s.dbs[i].ready.Load() != 0 && s.dbs[i].id.Load() == id {
			if db, err := s.database(i); err == nil {
				return db
			}
		}
	}
	return nil
}

// foundDead reports whether a client whose piece is in the record has died: a
// condition that is false because of it may be true at once. tags are those of
// the record as it was seen. It recovers whom it finds dead.
func (s *Store) foundDead(tags []byte) (bool, error) {
	found := false
	for t := tags; len(t) >= tagSize; t = t[tagSize:] {
		o := tagOPID(t)
		slot := slotOf(o.Counter)
		if o.PNN != s.pnn || o.Life != s.life || slot == 0 || slot == s.slot || s.seg.Slot(slot) == nil {
			continue
		}
		if s.c.Dead(slot) {
			if _, err := s.c.Recover(slot); err != nil {
				return found, err
			}
			found = true
		}
		found = found || s.node.orphan[slot].Load() != 0
	}
	return found, nil
}

// abandon removes the pieces of a client that leaves: as after its death, but
// at once, if their records are not locked. All its actors are retired.
func (s *Store) abandon() error {
	if s.body.pieces.Load() == 0 {
		return nil
	}
	p := &repairer{s: s, c: s.c, slot: s.slot, body: s.body}
	p.orphan()
	if s.managed() {
		return nil
	}
	_, err := s.actors[0].tidy()
	if errors.Is(err, errLatched) {
		return nil // whoever comes next does it
	}
	return err
}
