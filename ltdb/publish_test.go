package ltdb

import (
	"testing"

	"github.com/mainzdb/mainz/shm"
)

// A commit does with the record's lock what it was told to, and with nothing else.
func TestPublishReleases(t *testing.T) {
	const asked = bitW | bitD // somebody sleeps for it, and the dispatcher wants it
	for _, c := range []struct {
		name  string
		how   release
		owner func(n *node) uint64 // of the record, before the commit
		gone  bool                 // the commit takes the record away
		want  func(n *node) uint64 // of the entry's lock bits, after it
		rings bool
	}{
		{"unlock", andUnlock, dispatcherOwner, false, func(*node) uint64 { return ownedBy(DispatcherSlot) | bitW },
			true},
		{"keep", andKeep, dispatcherOwner, false, func(n *node) uint64 { return n.d.s.me | asked }, true},
		{"beneath", beneath, clientOwner, false, func(n *node) uint64 { return n.s.me | asked }, false},
		{"remove", andUnlock, dispatcherOwner, true, func(*node) uint64 { return 0 }, true},
		{"remove beneath", beneath, clientOwner, true, func(*node) uint64 { return 0 }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t, KV)
			key := []byte("k")
			wantErr(t, "store", n.db.Store(bg, key, []byte("old")), nil)
			var at spot
			if ok, err := n.db.find(n.db.hash(key), key, &at); !ok || err != nil {
				t.Fatal(ok, err)
			}
			at.entry.Store(at.entry.Load() | c.owner(n) | asked)
			at.b.meta.Store(at.b.meta.Load() | flagAttended<<24 | metaWaited)
			at.e, at.meta = at.entry.Load(), at.b.meta.Load()

			a := n.d.a
			change := n.s.changeOf(shm.OffsetOf(n.s.r, at.entry))
			before := change.Load()
			a.keep = 0
			id := uint64(0)
			if !c.gone {
				wantErr(t, "room", a.reserve(classOf(blockSize(len(key), 3)), 1), nil)
				dr, err := a.prepare(len(key), []byte("new"), &at)
				wantErr(t, "prepare", err, nil)
				dr.seal(len(key), 3, n.db.hash(key), 2, 0, flagOwn)
				id = at.e&tagMask | makeID(dr.ref, dr.c)
			} else {
				wantErr(t, "room", a.makeRoom(entryClass(at.e), 1), nil)
			}
			wantErr(t, "publish", a.publish(&at, a.cell, id, c.how), nil)

			e := at.entry.Load()
			if e&lockBits != c.want(n) || e&identity != id {
				t.Errorf("entry %#x: identity %#x, lock %#x; want %#x, %#x", e, e&identity, e&lockBits, id, c.want(n))
			}
			if got := change.Load(); got != before+1 {
				t.Errorf("change word went from %d to %d: who waits was not told once", before, got)
			}
			bit := rungBit(shm.OffsetOf(n.s.r, at.entry))
			if rung := n.s.node.rung[bit/64].Load()>>(bit%64)&1 != 0; rung != c.rings {
				t.Errorf("the dispatcher's bit is %v, want %v", rung, c.rings)
			}
			if a.h.jOld.Load() != 0 || a.h.jNew.Load() != 0 {
				t.Errorf("the journal still has %d and %d", a.h.jOld.Load(), a.h.jNew.Load())
			}
			at.entry.Store(e &^ lockBits)
		})
	}
}

func dispatcherOwner(n *node) uint64 { return n.d.s.me }
func clientOwner(n *node) uint64     { return n.s.me }
