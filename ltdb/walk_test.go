package ltdb

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/shm"
)

// A chain that comes back to itself is noticed after a small multiple of its
// links, and one that ends is walked to its end.
func TestWalk(t *testing.T) {
	for lead := range uint32(70) {
		for ring := range uint32(70) {
			next := func(ref uint32) uint32 { // 1, 2, …, lead+ring, lead+1, …; without a ring: 0
				if ref == lead+ring {
					if ring == 0 {
						return 0
					}
					return lead + 1
				}
				return ref + 1
			}
			var w walk
			steps, ref := uint32(0), min(1, lead+ring)
			for ; ref != 0 && !w.again(ref); ref = next(ref) {
				if steps++; steps > 3*(lead+ring)+3 {
					t.Fatalf("%d refs and a ring of %d: %d steps", lead, ring, steps)
				}
			}
			if (ref != 0) != (ring > 0) {
				t.Fatalf("%d refs and a ring of %d: ended at %d", lead, ring, ref)
			}
		}
	}
}

// The index of a dead client whose pages lead back to one of them: all its pieces
// go, and no page is lost or freed twice.
func TestIndexRing(t *testing.T) {
	for pages := 1; pages <= 5; pages++ {
		for back := range pages {
			t.Run(fmt.Sprintf("%d of %d", back, pages), func(t *testing.T) {
				s := heap(t, small())
				piecesDB(t, s, "p")
				dead, err := s.Join(bg, "dead")
				wantErr(t, "join", err, nil)
				db := piecesDB(t, dead, "p")
				for i := range pages*pageWords - 3 {
					_, err := db.ConditionalAppend(bg, Always, fmt.Appendf(nil, "key %d", i%50), shared(byte(i)))
					wantErr(t, "append", err, nil)
				}
				var refs []uint32
				for ref := dead.body.pieces.Load(); ref != 0; _, ref = s.pageAt(ref) {
					refs = append(refs, ref)
				}
				if len(refs) != pages {
					t.Fatalf("%d pages, not %d", len(refs), pages)
				}
				s.blockAt(refs[pages-1], pageClass).rsn.Store(uint64(refs[back]))
				dead.c.SimulateDeath()
				within(t, "the clean-up", func() {
					_, err := s.Recover(bg)
					wantErr(t, "recover", err, nil)
				})
				for i := range 50 {
					wantValue(t, piecesDB(t, s, "p"), fmt.Sprint("key ", i), "")
				}
				if r := mustCheck(t, s); r.Orphans != 0 || r.Pages != 0 {
					t.Errorf("%d orphans on %d pages are left", r.Orphans, r.Pages)
				}
			})
		}
	}
}

// Orphans whose pages lead back, or whose words name one piece twice: nothing is
// freed twice, and what is sound is done.
func TestOrphanRing(t *testing.T) {
	for _, kind := range []string{"page", "first page", "garbage", "piece twice"} {
		t.Run(kind, func(t *testing.T) {
			s, err := OpenHeap(small()) // not checked at its end: it is damaged
			wantErr(t, "open", err, nil)
			db := piecesDB(t, s, "p")
			dead, err := s.Join(bg, "dead")
			wantErr(t, "join", err, nil)
			slot, theirs := dead.slot, piecesDB(t, dead, "p")
			var held []Record
			for i := range 3 * pageWords {
				_, err := theirs.ConditionalAppend(bg, Always, fmt.Appendf(nil, "key %d", i%183), shared(byte(i)))
				wantErr(t, "append", err, nil)
			}
			for i := range 183 { // so that the pieces stay
				held = append(held, lockedBy(t, db, fmt.Sprint("key ", i)))
			}
			dead.c.SimulateDeath()
			_, err = s.Recover(bg)
			wantErr(t, "recover", err, nil)
			root := s.node.orphan[slot].Load()
			page, second := s.pageAt(root)
			switch last := s.blockAt(s.lastOf(root), pageClass); kind {
			case "page":
				last.rsn.Store(uint64(second))
			case "first page":
				last.rsn.Store(uint64(root))
			case "garbage":
				last.rsn.Store(5)
			case "piece twice":
				for i := range page.word {
					page.word[i].Store(page.word[0].Load())
				}
			}
			for _, r := range held {
				wantErr(t, "unlock", r.Unlock(), nil)
			}
			within(t, "the clean-up", func() {
				for range 3 { // each does what it can
					_, err = s.tidy(bg)
				}
			})
			wantErr(t, "at last", err, nil)
			if s.orphaned() {
				t.Error("there are orphans still")
			}
			seen := map[uint32]bool{}
			for i := range s.actors {
				each(s.actors[i].h, func(w *shm.Word32, _ int) {
					if ref := w.Load(); ref != 0 && seen[ref] {
						t.Errorf("block %d was freed twice", ref)
					} else {
						seen[ref] = true
					}
				})
			}
			r, err := s.Check(bg)
			wantErr(t, "check", err, nil)
			for _, e := range r.Errors {
				if kind != "piece twice" || strings.Contains(e, "as well") { // pieces without a word are left
					t.Error("check: ", e)
				}
			}
		})
	}
}
