package ltdb

import (
	"sync"
	"sync/atomic"

	"github.com/mainzdb/mainz/shm"
)

// The piece index. A client's slot has a chain of pages of words, one word for
// each piece that the client has appended, or is about to. The word names a
// block with the piece, its key and its OPID: what is needed to append it
// anew when its record was lost, and to remove it when its client has died.
//
//	63       40 39   37 36    32 31          0
//	| stamp 24 | state 3 | class 5 | block ref 32 |
//
// A change of state is one store. stamp is part of the OPID's counter. Words change only
// by CAS; the stamp stops a stale Piece from matching a word that was used again.
//
// Words and their blocks are changed by the client alone, and after its death
// by the holder of the orphan latch; but prepared becomes live or abandoned
// by the dispatcher, if the append went through it.
const (
	stateShift = classShift + classBits
	stateMask  = uint64(7) << stateShift
	stampShift = stateShift + 3

	statePrepared  = uint64(1) << stateShift // submitted, or the record is about to be locked
	stateLive      = uint64(2) << stateShift // in its record, or about to be
	stateRemoving  = uint64(3) << stateShift // about to be removed
	stateAbandoned = uint64(4) << stateShift // nobody waits for it any more: the dispatcher removes it
)

// Flags of blocks that are no records and no buckets: pages of an index and
// the pieces that it names.
const flagIndex = flagBucket | flagAway

// OPID counters of bypass appends: the top bit, the slot, the handle, and what
// the handle counts.
const (
	opidBypass      = uint64(1) << 63
	opidSlotShift   = 48
	opidHandleShift = 44
	opidRunning     = uint64(1)<<opidHandleShift - 1
)

// nextCounter draws an OPID's counter. It is raised before it is used, and
// never reset: a slot's next tenant goes on with it.
func (a *actor) nextCounter() uint64 {
	n := a.h.opid.Load() + 1
	if !planted("opidlate") {
		a.h.opid.Store(n)
	}
	return opidBypass | uint64(a.id.Slot())<<opidSlotShift | uint64(a.id.Index())<<opidHandleShift | n&opidRunning
}

// stampOf is the part of a counter that stands in the index word. It differs
// between any two of a slot's pieces that are not 2^20 of a handle's apart.
func stampOf(counter uint64) uint64 {
	if planted("nostamp") {
		return 0
	}
	return (counter<<4 | counter>>opidHandleShift&15) << stampShift
}

// slotOf is the slot whose client drew the counter, 0 if it was the
// dispatcher's.
func slotOf(counter uint64) uint32 {
	if counter&opidBypass == 0 {
		return 0
	}
	return uint32(counter >> opidSlotShift & 0x7fff)
}

// pieceIndex is this process's side of its index.
type pieceIndex struct {
	pages atomic.Pointer[[]*indexPage] // in the order they were made
	mu    sync.Mutex
	free  []uint32 // numbers of words that are in no piece's use and with no actor
}

// word returns the word with that number, nil if there is none.
func (x *pieceIndex) word(n uint32) *shm.Word64 {
	pages := x.pages.Load()
	if pages == nil || n/pageWords >= uint32(len(*pages)) {
		return nil
	}
	return &(*pages)[n/pageWords].word[n%pageWords]
}

// wordsAtHand is how many free words an actor keeps to itself.
const wordsAtHand = 8

// wordSlots is an actor's free words.
type wordSlots struct {
	n    int
	word [wordsAtHand]uint32
}

// takeWord gets a free word of the index. Every word comes from takeWord and
// is 0.
func (a *actor) takeWord() (uint32, error) {
	if a.words.n == 0 {
		if err := a.moreWords(); err != nil {
			return 0, err
		}
	}
	a.words.n--
	return a.words.word[a.words.n], nil
}

func (a *actor) freeWord(n uint32) {
	if a.words.n == wordsAtHand {
		x := &a.s.index
		x.mu.Lock()
		x.free = append(x.free, a.words.word[wordsAtHand/2:]...)
		x.mu.Unlock()
		a.words.n = wordsAtHand / 2
	}
	a.words.word[a.words.n] = n
	a.words.n++
}

// moreWords fills half of the actor's room for words, from the process's free
// ones or from a new page.
func (a *actor) moreWords() error {
	x := &a.s.index
	if a.someWords(x) {
		return nil
	}
	if err := a.newPage(x); err != nil {
		return err
	}
	a.someWords(x)
	return nil
}

func (a *actor) someWords(x *pieceIndex) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for a.words.n < wordsAtHand/2 && len(x.free) > 0 {
		a.words.word[a.words.n] = x.free[len(x.free)-1]
		a.words.n++
		x.free = x.free[:len(x.free)-1]
	}
	return a.words.n > 0
}

// newPage puts a page at the head of the slot's chain.
func (a *actor) newPage(x *pieceIndex) error {
	s := a.s
	if err := a.reserve(pageClass, 1); err != nil {
		return err
	}
	d, err := a.draft(pageClass)
	if err != nil {
		return err
	}
	page := shm.At[indexPage](s.r, refOffset(d.ref)+blockHeaderSize)
	for i := range page.word {
		page.word[i].Store(0)
	}
	d.seal(0, 0, 0, 0, 0, flagIndex)
	if planted("pagelate") {
		a.h.jNew.Store(0)
	}
	for {
		root := s.body.pieces.Load()
		d.b.rsn.Store(uint64(root))
		if s.body.pieces.CAS(root, d.ref) { // another actor may be at it
			if root == 0 {
				s.body.lastPage.Store(d.ref) // and stays it
			}
			break
		}
	}
	a.h.jNew.Store(0)

	x.mu.Lock()
	defer x.mu.Unlock()
	var pages []*indexPage
	if old := x.pages.Load(); old != nil {
		pages = *old
	}
	first := uint32(len(pages)) * pageWords
	pages = append(pages[:len(pages):len(pages)], page)
	x.pages.Store(&pages)
	for i := range uint32(pageWords) {
		x.free = append(x.free, first+pageWords-1-i)
	}
	return nil
}

// pageAt returns the page in the block at ref, and the ref of the next one;
// nil if there is none. It believes nothing about ref.
func (s *Store) pageAt(ref uint32) (*indexPage, uint32) {
	if ref == 0 {
		return nil, 0
	}
	b := s.freeBlockAt(ref, pageClass)
	if b == nil || metaFlags(b.meta.Load()) != flagIndex {
		return nil, 0
	}
	return shm.At[indexPage](s.r, refOffset(ref)+blockHeaderSize), uint32(b.rsn.Load())
}

// eachWord calls f for every word of a chain of pages that is not 0, until it
// returns false. The chain is input: it ends where it comes back to itself.
func (s *Store) eachWord(root uint32, f func(w *shm.Word64, v uint64) bool) {
	for chain := (walk{}); ; {
		page, next := s.pageAt(root)
		if page == nil || chain.again(root) {
			return
		}
		for i := range page.word {
			if v := page.word[i].Load(); v != 0 && !f(&page.word[i], v) {
				return
			}
		}
		root = next
	}
}

// pieceBlock is a piece as its index knows it.
type pieceBlock struct {
	ref        uint32
	c          int
	klen, plen int
	db         uint32
	counter    uint64
}

// pieceAt reads the block that an index word names, as input; false if there
// is no piece.
func (s *Store) pieceAt(v uint64) (p pieceBlock, ok bool) {
	ref, c := entryRef(v), entryClass(v)
	b := s.freeBlockAt(ref, c)
	if b == nil {
		return p, false
	}
	meta := b.meta.Load()
	p = pieceBlock{ref: ref, c: c, klen: metaKeyLen(meta), plen: int(uint32(b.size.Load())), db: uint32(b.acc.Load()),
		counter: b.rsn.Load()}
	ok = metaFlags(meta) == flagIndex && p.klen >= 1 && p.klen <= maxKey && p.plen >= 1 && p.plen <= s.maxValue &&
		blockSize(p.klen, p.plen) <= uint64(classSizes[c])
	return p, ok
}

// preparePiece puts a piece into the index, as prepared. While that word, which
// j.entry names, and j.new both name the block it is the index's: repair looks
// there.
func (a *actor) preparePiece(db *DB, key, piece []byte, hash uint64) (n uint32, counter uint64, err error) {
	c := classOf(blockSize(len(key), len(piece)))
	if err := a.reserve(c, 1); err != nil {
		return 0, 0, err
	}
	if n, err = a.takeWord(); err != nil {
		return 0, 0, err
	}
	if err = a.reserve(c, 1); err == nil { // the page may have been of that class
		counter = a.nextCounter()
		var d draft
		if d, err = a.draft(c); err == nil {
			a.writeNew(d, key, piece)
			d.seal(len(key), len(piece), hash, counter, uint64(db.id), flagIndex)
			if planted("wordlate") {
				a.h.jNew.Store(0)
			}
			w := a.s.index.word(n)
			a.h.jEntry.Store(shm.OffsetOf(a.s.r, w))
			w.Store(makeID(d.ref, d.c) | statePrepared | stampOf(counter))
			a.h.jNew.Store(0)
			return n, counter, nil
		}
	}
	a.freeWord(n)
	return 0, 0, err
}

// erasePiece takes a piece out of the index. The journal has the block until a
// magazine has it.
//
// Preconditions: nobody else changes the word w any more.
func (a *actor) erasePiece(w *shm.Word64) error {
	v := w.Load()
	ref, c := entryRef(v), entryClass(v)
	b := a.s.freeBlockAt(ref, c)
	if b == nil {
		w.Store(0)
		return errBadBlock
	}
	if err := a.makeRoom(c, 1); err != nil {
		return err
	}
	a.h.jEntry.Store(shm.OffsetOf(a.s.r, w))
	if planted("wordfirst") {
		w.Store(0)
	}
	a.h.jNew.Store(ref)
	w.Store(0)
	// A second word that names the block, which only damage makes, must not free
	// it again: it is no piece now.
	b.meta.Store(0)
	a.put(ref, c)
	a.h.jNew.Store(0)
	if c >= smallClasses {
		return a.flushBig()
	}
	return nil
}

// inIndex reports whether the block at ref is in an index, as a page or as a piece:
// in the dead client's, or in an orphan's, if its handle i was at work on those. The
// journal names the word of a piece, so that no index is walked for it; only for a
// page that was just being linked or taken out.
func (p *repairer) inIndex(i int, ref uint32) bool {
	s := p.s
	if w := s.indexWordAt(p.body.handles[i].jEntry.Load()); w != nil && entryRef(w.Load()) == ref {
		return true
	}
	if page, _ := s.pageAt(ref); page == nil {
		return false
	}
	if s.inChainOfPages(p.body.pieces.Load(), ref) {
		return true
	}
	if s.node.orphanLatch.Owner() != p.id(i) {
		return false
	}
	for k := range s.node.orphan {
		if s.inChainOfPages(s.node.orphan[k].Load(), ref) {
			return true
		}
	}
	return false
}

// indexWordAt returns the word of an index at off, which came from a journal; nil
// if it is none's.
func (s *Store) indexWordAt(off shm.Offset) *shm.Word64 {
	i, sp := s.spanOf(off)
	if off < s.dataStart || off%8 != 0 || sp == nil {
		return nil
	}
	size := uint64(classSizes[pageClass])
	at := (off - s.spanStart(i)) / size * size
	page, _ := s.pageAt(offsetRef(s.spanStart(i) + at))
	n := off - s.spanStart(i) - at
	if page == nil || n < blockHeaderSize || (n-blockHeaderSize)/8 >= pageWords {
		return nil
	}
	return &page.word[(n-blockHeaderSize)/8]
}

func (s *Store) inChainOfPages(root, ref uint32) bool {
	for chain := (walk{}); ; {
		page, next := s.pageAt(root)
		if page == nil || chain.again(root) {
			return false
		}
		if root == ref {
			return true
		}
		root = next
	}
}
