package ltdb

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// The check of a store in use. One pass over it sees each place at another time: a
// block that moves is met twice or nowhere, and a call that is under way leaves
// things half done for as long as its process does not run. So a pass only
// suspects. A suspicion has evidence, the words that made it, and maybe a motion, a
// call under way that would explain it. Passes are repeated, and what comes back
// with the same evidence each time is broken, as no seq repeats at an address,
// unless the same call was under way all the time: then its process stands still,
// and nobody can tell.

const (
	// liveProofs is in how many passes after the first a suspicion has to come back.
	liveProofs = 4
	// livePasses is after how many passes CheckLive gives up.
	livePasses = 40
	// liveLimit is for how long it begins new passes, but for the first liveProofs+1.
	liveLimit = 10 * time.Second
	// listTries is how often a pass tries to walk a free list that others change.
	listTries = 100
)

// evidence is the words that made a suspicion. Others make another one.
type evidence [3]uint64

// motion tells a call that is under way from others, 0: there is none.
type motion uint64

const (
	// nextTenant explains what the next tenant of a slot clears up.
	nextTenant motion = 1
	// repairs explains what the repair of a dead client clears up.
	repairs motion = 2
	// unsure: the pass can't say whether it is so.
	unsure motion = 3
)

// suspicion is what a pass has found.
type suspicion struct {
	text  string
	ev    evidence
	class int // it rests on the walk of this class's free list, -1: on none
}

// suspect is how far a suspicion has got.
type suspect struct {
	by     motion
	proofs int // passes that have found it again while nothing explained it
	again  int // that have found it again
}

// found is one suspicion of a pass.
type found struct {
	suspicion
	by motion
}

// livePass is what a pass over a store in use has beside the checker's.
type livePass struct {
	found []found
	// What the looks that are being made rest on.
	by motion
	ev evidence
	// Blocks that were in somebody's hands at some time in the pass.
	soft map[uint32]bool
	// Classes whose free list could not be walked.
	blind [classes]bool
}

func (p *livePass) doubt(by motion, ev evidence, text string) {
	if by == 0 {
		by = p.by
	}
	if ev == (evidence{}) {
		ev = p.ev
	}
	p.found = append(p.found, found{suspicion{text, ev, -1}, by})
}

// lost notes a block that is nowhere.
func (p *livePass) lost(by motion, c int, seq uint64, ref uint32) {
	if !p.blind[c] {
		p.found = append(p.found, found{suspicion{fmt.Sprintf("block %d of class %d is nowhere", ref, c),
			evidence{seq}, c}, by})
	}
}

// CheckLive is Check of a store that others may change meanwhile, and whose clients may
// die. Broken is what was proved. InMotion is what could not be settled, because the
// client that is in the midst of it does not get on, or died and was not cleaned up
// after yet: look again later. It looks at the store as often as it takes, 40 times at
// most, and for some 10 seconds, or until ctx ends; a store without a flaw is looked at
// as often as a phantom is met. What others break meanwhile it may miss.
func (s *Store) CheckLive(ctx context.Context) (*Report, error) {
	if ctx == nil {
		return nil, errNoContext
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.exit()
	open := map[suspicion]*suspect{}
	var seeded [classes]bool // its free list was walked once: what is nowhere is known
	began, pause := time.Now(), 2*time.Millisecond
	for n := 1; ; n++ {
		k := newChecker(s)
		k.live = &livePass{soft: map[uint32]bool{}}
		if err := k.pass(ctx); err != nil {
			return nil, err
		}
		k.r.Passes = n
		first := func(class int) bool { return n == 1 || class >= 0 && !seeded[class] }
		settle(open, k.live, first)
		all := true
		for c := range seeded {
			seeded[c] = seeded[c] || !k.live.blind[c]
			all = all && seeded[c]
		}
		over := all
		for _, it := range open {
			over = over && it.again >= liveProofs
		}
		if over || n >= livePasses || n > liveProofs && time.Since(began) > liveLimit {
			k.r.conclude(open, &seeded)
			return k.r, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// settle compares a pass with those before it.
func settle(open map[suspicion]*suspect, p *livePass, first func(class int) bool) {
	now := make(map[suspicion]motion, len(p.found))
	for _, f := range p.found {
		now[f.suspicion] = f.by
	}
	for it, had := range open {
		by, again := now[it]
		switch {
		case again && by == unsure:
		case again:
			had.again++
			if by == 0 || by > unsure && by != had.by {
				had.proofs++
			}
			had.by = by
		case it.class < 0 || !p.blind[it.class]:
			delete(open, it)
		}
	}
	for it, by := range now {
		if open[it] == nil && by != unsure && first(it.class) {
			open[it] = &suspect{by: by}
		}
	}
}

// conclude makes the report of the last pass that of all.
func (r *Report) conclude(open map[suspicion]*suspect, seeded *[classes]bool) {
	var broken, moving []string
	for it, had := range open {
		if had.proofs >= liveProofs {
			broken = append(broken, it.text)
		} else {
			moving = append(moving, it.text)
		}
	}
	for c, known := range seeded {
		if !known {
			moving = append(moving, fmt.Sprintf("free list of class %d: it changed too fast for a look", c))
		}
	}
	slices.Sort(broken)
	slices.Sort(moving)
	r.Broken, r.Errors = len(broken), broken[:min(len(broken), maxErrors)]
	r.InMotion, r.Moving = len(moving), moving[:min(len(moving), maxErrors)]
}

// mark and forget take back what a look has found that was overtaken.
func (k *checker) mark() int {
	if k.live == nil {
		return 0
	}
	return len(k.live.found)
}

func (k *checker) forget(mark int) {
	if k.live != nil {
		k.live.found = k.live.found[:mark]
	}
}

// settled ends the looks that rest on one motion.
func (k *checker) settled() {
	if k.live != nil {
		k.live.by, k.live.ev = 0, evidence{}
	}
}

// passesBy reports whether ok becomes true on a live store. What is false for all of
// the looks is no call that goes on.
func (k *checker) passesBy(ok func() bool) bool {
	if k.live == nil {
		return false
	}
	for range 64 {
		if ok() {
			return true
		}
		runtime.Gosched()
	}
	return false
}

// hands notes the blocks in journals: they are their handles', who may be on their way
// from one place to another with them.
func (k *checker) hands() {
	if k.live == nil {
		return
	}
	for i := range k.s.seg.Slots() + 1 {
		if i == 0 {
			i = DispatcherSlot
		}
		if k.s.seg.Slot(i).Live.Load() == 0 {
			continue
		}
		b := shm.At[body](k.s.r, k.s.seg.SlotBody(i))
		for n := range b.handles {
			h := &b.handles[n]
			k.live.soft[h.jNew.Load()] = true
			k.live.soft[h.jOld.Load()] = true
		}
	}
}

// at is the motion of a handle: it changes with each call.
func (h *handle) at(i int) motion {
	sum := h.opid.Load()
	for n := range h.counters {
		sum = sum*31 + h.counters[n].Load()
	}
	return motion(sum<<8|uint64(i)) | 1<<63
}

// latchMotion is who holds a latch and says so in his journal, 0: nobody.
func (k *checker) latchMotion(l *shm.Latch, what latchOf, n uint64) motion {
	if k.live == nil {
		return 0
	}
	o := l.Owner()
	if o == 0 || !k.s.mayHold(o, what, n) {
		return 0
	}
	if k.s.seg.Dead(o.Slot()) {
		return repairs
	}
	return shm.At[body](k.s.r, k.s.seg.SlotBody(o.Slot())).handles[o.Index()].at(int(o))
}

func (k *checker) classMotion(c int) motion {
	if k.live == nil {
		return 0
	}
	return k.latchMotion(&k.s.classes[c].latch, classLatch, uint64(c+1))
}

// blockMotion is who may be moving a block.
func (k *checker) blockMotion(ref uint32, c int) motion {
	if k.live == nil {
		return 0
	}
	if spare, _, _ := k.s.spareBlock(); ref == spare {
		return k.latchMotion(&k.s.node.spare.latch, spareLatch, 1)
	}
	return k.classMotion(c)
}

// pieceMotion is who of a slot may be changing a piece, or the clean-up of its pieces.
func (k *checker) pieceMotion(slot uint32) motion {
	if k.live == nil {
		return 0
	}
	if slot == 0 {
		slot = DispatcherSlot
	}
	for _, slot := range []uint32{slot, DispatcherSlot} {
		off := k.s.seg.SlotBody(slot)
		if off == 0 {
			continue
		}
		if k.s.seg.Dead(slot) {
			return repairs
		}
		if k.s.seg.Slot(slot).Live.Load() == 0 {
			continue
		}
		b := shm.At[body](k.s.r, off)
		for i := range b.handles {
			if h := &b.handles[i]; h.busy.Load() != 0 || h.jNew.Load() != 0 || h.jOld.Load() != 0 {
				return h.at(i)
			}
		}
	}
	return k.latchMotion(&k.s.node.orphanLatch, orphanLatch, 1)
}

// freeList walks a free list that others change. They do so at its head: so what the
// walk has passed is sure from where the head is afterwards on. Blocks in front of that
// were in the list or in somebody's hands.
func (k *checker) freeList(c int, where string) {
	head := &k.s.classes[c].head
	for range listTries {
		var list []uint32
		place := map[uint32]int{}
		end := k.follow(head.Load(), c, func(ref uint32) bool {
			if _, again := place[ref]; again {
				return false
			}
			place[ref] = len(list)
			list = append(list, ref)
			return true
		})
		// The head by now, and the way from there to what was passed.
		from, met := -1, false
		ahead := map[uint32]bool{}
		if now := head.Load(); now == 0 && len(list) == 0 {
			met = true
		} else if now == 0 && end == 0 {
			from, met = len(list), true
		} else {
			k.follow(now, c, func(ref uint32) bool {
				if at, ok := place[ref]; ok {
					from, met = at, true
					return false
				}
				if ahead[ref] {
					return false
				}
				ahead[ref] = true
				return true
			})
		}
		for i, ref := range list {
			if !met || i < from {
				k.live.soft[ref] = true
			}
		}
		for ref := range ahead {
			k.live.soft[ref] = true
		}
		if len(list) == 0 && end != 0 && !k.passesBy(func() bool {
			return head.Load() != end || k.s.freeBlockAt(end, c) != nil
		}) {
			k.doubt(k.classMotion(c), evidence{}, "%s: ref %d is no block of class %d", where, end, c)
			return
		}
		if !met || end != 0 && from >= len(list) {
			runtime.Gosched()
			continue
		}
		if end != 0 && !k.still(c, list[len(list)-1], end) {
			continue
		}
		for _, ref := range list[max(from, 0):] {
			if k.visit(ref, c, where) != nil {
				k.r.Free++
			}
		}
		k.r.Free += min(len(list), max(from, 0))
		if end != 0 {
			k.doubt(k.classMotion(c), evidence{},
				"%s: it leads from block %d to %d, which is no block of class %d or was passed before", where,
				list[len(list)-1], end, c)
		}
		return
	}
	k.live.blind[c] = true
}

// follow calls f with the blocks from ref on, until it returns false or no block
// follows. It returns where the list led then, 0 for its end.
func (k *checker) follow(ref uint32, c int, f func(ref uint32) bool) uint32 {
	for ref != 0 {
		b := k.s.freeBlockAt(ref, c)
		if b == nil || !f(ref) {
			return ref
		}
		ref = uint32(b.rsn.Load())
	}
	return 0
}

// still reports whether a block leads to another one, and does so while the list's head
// is the same: so neither is just being taken.
func (k *checker) still(c int, ref, next uint32) bool {
	b := k.s.freeBlockAt(ref, c)
	for range 64 {
		if b == nil || uint32(b.rsn.Load()) != next {
			return false
		}
		runtime.Gosched()
	}
	return true
}
