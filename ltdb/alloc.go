package ltdb

import (
	"errors"

	"github.com/mainzdb/mainz/shm"
)

// The allocator. Memory is cut into spans, each of one class of blocks. A
// class has a free list, under its latch, and a span that new blocks are
// carved from. Actors keep magazines, small queues of free blocks, so that
// the latch is rare.
//
// A block moves between list and magazine by two stores, of which a death can
// leave one: then the block stands in both places. Both moves, either way,
// pass through the head of the list, so one rule repairs them: a magazine's
// ref that is the list's head, or that lies behind what the span has carved,
// is dropped from the magazine. (repair.go, classLatch.)

// blockAt returns the block at ref if one of class c may be there, else nil.
// It believes nothing about ref.
func (s *Store) blockAt(ref uint32, c int) *block {
	off := refOffset(ref)
	if off < s.dataStart {
		return nil
	}
	return shm.Window[block](s.r, off, uint64(classSizes[c]))
}

// spanOf returns the number and line of the span that off lies in, nil if it
// lies in none.
func (s *Store) spanOf(off shm.Offset) (int, *spanLine) {
	i := (off - s.dataStart) >> s.spanShift
	if i >= uint64(len(s.spans)) {
		return 0, nil
	}
	return int(i), &s.spans[i]
}

// freeBlockAt is blockAt for a ref that came from a free list: it must stand
// at a block's place in a span of the class.
func (s *Store) freeBlockAt(ref uint32, c int) *block {
	b := s.blockAt(ref, c)
	if b == nil {
		return nil
	}
	off := refOffset(ref)
	i, sp := s.spanOf(off)
	if sp == nil {
		return nil
	}
	w := sp.word.Load()
	at := (off - s.spanStart(i)) / uint64(classSizes[c])
	if spanClass(w) != c || (off-s.spanStart(i))%uint64(classSizes[c]) != 0 || at >= s.blocksPerSpan(c) {
		return nil
	}
	return b
}

func (s *Store) spanStart(i int) shm.Offset { return s.dataStart + uint64(i)<<s.spanShift }
func (s *Store) blocksPerSpan(c int) uint64 { return (1 << s.spanShift) / uint64(classSizes[c]) }

// isCarved reports whether the block at ref lies in front of where its span is carved.
func (s *Store) isCarved(ref uint32, c int) bool {
	off := refOffset(ref)
	i, sp := s.spanOf(off)
	return (off-s.spanStart(i))/uint64(classSizes[c]) < spanCarved(sp.word.Load())
}

// magazine is the actor's own view of one magazine in its handle: a queue, so
// that a block rests as long as it can before it is written again and readers
// of a large hot record get to the end of their copy.
type magazine struct {
	first, n uint32
}

// take gets a block of class c and journals it as j.new. It believes what the
// magazine says; draft looks at it.
//
// Preconditions: reserve(c) said yes since the last take of that class; no
// other block is journalled as new.
func (a *actor) take(c int) uint32 {
	if c >= smallClasses {
		return a.takeBig(c)
	}
	m := &a.mag[c]
	w := &a.h.magazine[c][m.first%magazineSize]
	ref := w.Load()
	if planted("takefirst") {
		w.Store(0)
	}
	a.h.jNew.Store(ref)
	w.Store(0)
	m.first++
	m.n--
	return ref
}

func (a *actor) takeBig(c int) uint32 {
	for i := range a.h.big {
		if ref := a.h.big[i].Load(); ref != 0 && a.bigClass[i] == uint8(c) {
			a.h.jNew.Store(ref)
			a.h.big[i].Store(0)
			return ref
		}
	}
	return 0 // it was there when reserve looked: somebody has overwritten it
}

// put lays a free block of class c into the actor's magazine. The caller
// clears the journal afterwards.
//
// Preconditions: makeRoom(c) said yes since the last put of that class.
func (a *actor) put(ref uint32, c int) {
	if c >= smallClasses {
		a.putBig(ref, c)
		return
	}
	m := &a.mag[c]
	a.h.magazine[c][(m.first+m.n)%magazineSize].Store(ref)
	m.n++
}

func (a *actor) putBig(ref uint32, c int) {
	for i := range a.h.big {
		if a.h.big[i].Load() == 0 {
			a.bigClass[i] = uint8(c)
			a.h.big[i].Store(ref)
			return
		}
	}
	// No call frees so many: somebody has overwritten the others. The block is
	// lost until the segment is made anew; Check names it.
}

// mostReserved is the largest n that reserve is called with.
const mostReserved = 2

// reserve sees to it that n blocks of class c lie ready for take.
func (a *actor) reserve(c, n int) error {
	if c < smallClasses && a.mag[c].n >= uint32(n) {
		return nil
	}
	return a.reserveSlow(c, n)
}

func (a *actor) reserveSlow(c, n int) error {
	for try := 0; ; try++ {
		if ok, err := a.gather(c, n); ok || err != nil {
			return err
		}
		switch try {
		case 0: // before anything fails, take back what the dead hold
			if _, err := a.s.c.RecoverAll(); err != nil && !errors.Is(err, ErrCorrupt) {
				return err
			}
		case 1:
			a.s.flushIdle(a.ctx)
			if err := a.reclaimSpans(); err != nil {
				return err
			}
		default:
			return ErrFull
		}
	}
}

// gather is reserve that takes what lies at hand: ok is false if there are not
// n blocks. It recovers nobody and gives no span back.
func (a *actor) gather(c, n int) (ok bool, err error) {
	if c >= smallClasses && a.keep>>smallClasses == 0 {
		if err := a.bigRoom(); err != nil {
			return false, err
		}
	}
	a.keep |= 1 << c
	if a.have(c) >= n {
		return true, nil
	}
	want := n
	if c < smallClasses {
		want = max(n, magazineSize/2)
	}
	if a.have(c) == 0 && a.s.scarce() {
		a.s.flushIdle(a.ctx)
		if err := a.flushRest(); err != nil {
			return false, err
		}
	}
	err = a.refill(c, want)
	return err == nil && a.have(c) >= n, err
}

// scarce reports whether most spans are taken. Blocks in magazines keep theirs from
// other classes, and what lies in another client's nobody can take: so then each
// client keeps none that it does not need.
func (s *Store) scarce() bool {
	free := 0
	for i := range s.spans {
		if s.spans[i].word.Load() == 0 {
			if free++; free > s.reserve+len(s.spans)/4 {
				return false
			}
		}
	}
	return true
}

// flushRest empties the actor's magazines of what the running call has not reserved.
func (a *actor) flushRest() error {
	for c := range smallClasses {
		if a.mag[c].n > 0 && a.keep&(1<<c) == 0 {
			if err := a.flush(c, magazineSize); err != nil && err != errLatched {
				return err
			}
		}
	}
	return nil
}

// have counts the actor's free blocks of class c.
func (a *actor) have(c int) int {
	if c < smallClasses {
		return int(a.mag[c].n)
	}
	n := 0
	for i := range a.h.big {
		if a.h.big[i].Load() != 0 && a.bigClass[i] == uint8(c) {
			n++
		}
	}
	return n
}

// makeRoom sees to it that put has room for n blocks of class c.
func (a *actor) makeRoom(c, n int) error {
	if c < smallClasses {
		if a.mag[c].n+uint32(n) > magazineSize {
			return a.flush(c, magazineSize/2)
		}
		return nil
	}
	// Large blocks go back to their list at the end of each call, but for those
	// whose latch was held. What the running call has reserved stays.
	if a.keep>>smallClasses == 0 {
		return a.bigRoom()
	}
	return nil
}

// bigRoom sees to it that half of the places for large blocks are free: one for
// what a call reserves, one for what it frees.
func (a *actor) bigRoom() error {
	n := 0
	for i := range a.h.big {
		if a.h.big[i].Load() != 0 {
			n++
		}
	}
	if n <= bigSlots/2 {
		return nil
	}
	return a.flushBig()
}

// refill moves blocks of class c from the list, or freshly carved, into the
// actor's keeping until it has n, or until there are no more.
func (a *actor) refill(c, n int) error {
	s := a.s
	cl := &s.classes[c]
	if !planted("classintent") {
		a.h.classIntent.Store(uint32(c + 1))
	}
	if err := a.lockLatch(&cl.latch, classLatch, uint64(c+1)); err != nil {
		a.h.classIntent.Store(0)
		return err
	}
	ok, err := true, error(nil)
	for ok && err == nil && a.have(c) < n {
		ok, err = a.refillOne(c, cl)
	}
	cl.latch.Unlock(a.id)
	a.h.classIntent.Store(0)
	return err
}

// refillOne moves one block. It holds the class's latch.
func (a *actor) refillOne(c int, cl *classLine) (bool, error) {
	s := a.s
	w := a.emptySlot(c)
	if w == nil {
		return false, nil
	}
	if head := cl.head.Load(); head != 0 {
		b := s.freeBlockAt(head, c)
		next := uint32(0)
		if b != nil {
			next = uint32(b.rsn.Load())
		}
		if b == nil || next == head || next != 0 && s.freeBlockAt(next, c) == nil {
			s.dropList(c, cl)
			return a.carve(c, cl, w)
		}
		if planted("popfirst") {
			cl.head.Store(next)
		}
		w.Store(head)
		cl.head.Store(next)
		a.filled(c)
		return true, nil
	}
	return a.carve(c, cl, w)
}

// carve makes a block of class c that nobody has had yet, in w. It holds the
// class's latch.
func (a *actor) carve(c int, cl *classLine, w *shm.Word32) (bool, error) {
	s := a.s
	for {
		i := int(cl.cur.Load()) - 1
		if i >= 0 && (i >= len(s.spans) || spanClass(s.spans[i].word.Load()) != c) {
			s.noteDamage(damagedCarve, uint64(c))
			cl.cur.Store(0)
			i = -1
		}
		if i >= 0 {
			sp := &s.spans[i]
			word := sp.word.Load()
			if at := spanCarved(word); at < s.blocksPerSpan(c) {
				ref := offsetRef(s.spanStart(i) + at*uint64(classSizes[c]))
				b := s.blockAt(ref, c)
				if b == nil {
					return false, errBadBlock
				}
				b.seq.Store(sp.seqBase.Load())
				if planted("carvefirst") {
					sp.word.Store(uint64(c+1) | (at+1)<<8)
				}
				w.Store(ref)
				sp.word.Store(uint64(c+1) | (at+1)<<8)
				a.filled(c)
				return true, nil
			}
		}
		if !a.newSpan(c, cl) {
			return false, nil
		}
	}
}

// emptySlot returns the word for the next block of class c, nil if there is
// no room.
func (a *actor) emptySlot(c int) *shm.Word32 {
	if c < smallClasses {
		m := &a.mag[c]
		if m.n == magazineSize {
			return nil
		}
		return &a.h.magazine[c][(m.first+m.n)%magazineSize]
	}
	for i := range a.h.big {
		if a.h.big[i].Load() == 0 {
			a.bigClass[i] = uint8(c)
			return &a.h.big[i]
		}
	}
	return nil
}

// filled counts the block that went to emptySlot's word.
func (a *actor) filled(c int) {
	if c < smallClasses {
		a.mag[c].n++
	}
}

// newSpan takes a free span for class c and makes it the one to carve. It
// holds the class's latch. The last spans are kept for records that arrive
// from other nodes.
func (a *actor) newSpan(c int, cl *classLine) bool {
	s := a.s
	free, first := 0, -1
	reserve := s.reserve
	if a.arriving {
		reserve = 0
	}
	for i := range s.spans {
		if s.spans[i].word.Load() == 0 {
			if first < 0 {
				first = i
			}
			if free++; free > reserve {
				break
			}
		}
	}
	if free <= reserve {
		return false
	}
	for i := first; i < len(s.spans); i++ {
		sp := &s.spans[i]
		if sp.word.Load() != 0 {
			continue
		}
		if !planted("nocarve") {
			a.h.carveIntent.Store(uint32(i + 1))
		}
		if sp.word.CAS(0, uint64(c+1)) {
			cl.cur.Store(uint32(i + 1))
			a.h.carveIntent.Store(0)
			return true
		}
		a.h.carveIntent.Store(0)
	}
	return false
}

// flush moves n blocks of class c from the actor's magazine to the list.
func (a *actor) flush(c, n int) error {
	s := a.s
	cl := &s.classes[c]
	a.h.classIntent.Store(uint32(c + 1))
	if err := a.lockLatch(&cl.latch, classLatch, uint64(c+1)); err != nil {
		a.h.classIntent.Store(0)
		return err
	}
	err := error(nil)
	if c < smallClasses {
		m := &a.mag[c]
		for ; n > 0 && m.n > 0 && err == nil; n-- {
			err = a.flushOne(c, cl, &a.h.magazine[c][m.first%magazineSize])
			m.first++
			m.n--
		}
	} else {
		for i := range a.h.big {
			if a.h.big[i].Load() != 0 && a.bigClass[i] == uint8(c) && err == nil {
				err = a.flushOne(c, cl, &a.h.big[i])
			}
		}
	}
	cl.latch.Unlock(a.id)
	a.h.classIntent.Store(0)
	return err
}

// flushOne moves the block in w to the list. It holds the class's latch.
func (a *actor) flushOne(c int, cl *classLine, w *shm.Word32) error {
	ref := w.Load()
	b := a.s.freeBlockAt(ref, c)
	if b == nil {
		w.Store(0)
		return errBadBlock
	}
	if planted("pushfirst") {
		w.Store(0)
	}
	b.rsn.Store(uint64(cl.head.Load()))
	cl.head.Store(ref)
	w.Store(0)
	return nil
}

// flushBig gives the large blocks back that a call has freed. Their lists are
// shared at once: a magazine of megabytes would starve the others.
func (a *actor) flushBig() error {
	for i := range a.h.big {
		if a.h.big[i].Load() != 0 {
			if err := a.flush(int(a.bigClass[i]), bigSlots); err != nil {
				return err
			}
		}
	}
	return nil
}

// reclaimSpans gives spans back whose blocks are all on the free list, so
// that another class can have them. It is slow, and called only when memory
// has run out.
func (a *actor) reclaimSpans() error {
	var latched error
	for c := range classes {
		switch err := a.reclaimClass(c); err {
		case nil:
		case errLatched:
			latched = err
		default:
			return err
		}
	}
	return latched
}

func (a *actor) reclaimClass(c int) error {
	s := a.s
	cl := &s.classes[c]
	if c < smallClasses {
		n := int(a.mag[c].n)
		if a.keep&(1<<c) != 0 {
			n -= mostReserved // what lies ready for the running call stays
		}
		if n > 0 {
			if err := a.flush(c, n); err != nil {
				return err
			}
		}
	}
	a.h.classIntent.Store(uint32(c + 1))
	if err := a.lockLatch(&cl.latch, classLatch, uint64(c+1)); err != nil {
		a.h.classIntent.Store(0)
		return err
	}
	free, err := s.countFree(c, cl)
	if err != nil {
		s.dropList(c, cl)
		free, err = nil, nil
	}
	for i := range s.spans { // not over the map: the explorer repeats what it has seen
		if n := free[i]; err == nil && n > 0 && n == spanCarved(s.spans[i].word.Load()) {
			if !planted("noreclaim") {
				a.h.reclaimIntent.Store(uint32(i + 1))
			}
			err = s.dropSpan(c, cl, i)
			a.h.reclaimIntent.Store(0)
		}
	}
	cl.latch.Unlock(a.id)
	a.h.classIntent.Store(0)
	return err
}

// countFree counts the free blocks of class c by span. The class's latch is
// held.
func (s *Store) countFree(c int, cl *classLine) (map[int]uint64, error) {
	free := map[int]uint64{}
	for list, ref := (walk{}), cl.head.Load(); ref != 0; {
		b := s.freeBlockAt(ref, c)
		if b == nil {
			return nil, errBadBlock
		}
		if list.again(ref) {
			return nil, errBadLink
		}
		i, _ := s.spanOf(refOffset(ref))
		free[i]++
		ref = uint32(b.rsn.Load())
	}
	return free, nil
}

// dropSpan takes all blocks of span i off the list of class c and makes the
// span free. The class's latch is held and the intent stands; all of it can
// be repeated after a death at any point.
func (s *Store) dropSpan(c int, cl *classLine, i int) error {
	sp := &s.spans[i]
	start, end := s.spanStart(i), s.spanStart(i+1)
	in := func(ref uint32) bool { off := refOffset(ref); return off >= start && off < end }
	link := func(ref uint32) (uint32, error) {
		b := s.freeBlockAt(ref, c)
		if b == nil {
			return 0, errBadBlock
		}
		return uint32(b.rsn.Load()), nil
	}
	// skip returns the first ref from ref on that lies outside the span.
	var list walk
	skip := func(ref uint32) (uint32, error) {
		var err error
		for ref != 0 && in(ref) && err == nil {
			if list.again(ref) {
				return 0, errBadLink
			}
			ref, err = link(ref)
		}
		return ref, err
	}
	ref, err := skip(cl.head.Load())
	if err != nil {
		return err
	}
	if ref != cl.head.Load() {
		cl.head.Store(ref)
	}
	for ref != 0 {
		if list.again(ref) {
			return errBadLink
		}
		next, err := link(ref)
		if err != nil {
			return err
		}
		to, err := skip(next)
		if err != nil {
			return err
		}
		if to != next {
			s.blockAt(ref, c).rsn.Store(uint64(to))
		}
		ref = to
	}
	if cl.cur.Load() == uint32(i+1) {
		cl.cur.Store(0)
	}
	// A reader may still hold an old entry of a block here: a seq must not
	// come again at any address in this span, whatever its next class is.
	top := sp.seqBase.Load()
	size := uint64(classSizes[c])
	for n := range min(spanCarved(sp.word.Load()), s.blocksPerSpan(c)) {
		top = max(top, shm.At[block](s.r, start+n*size).seq.Load())
	}
	if !planted("seqbase") {
		sp.seqBase.Store((top | 1) + 1)
	}
	sp.word.Store(0)
	return nil
}
