package ltdb

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// The book against a list of what was asked for, on random calls.
func TestWatches(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var b watches
	db := &DB{id: 7}
	type naive struct {
		entry uint64 // 0: under no bit
		waits bool
		later bool
	}
	want := map[string]*naive{}
	for range 5000 {
		key := fmt.Sprint(rnd.IntN(20))
		n := want[key]
		switch rnd.IntN(5) {
		case 0: // wait for its lock, mostly where it stood before
			if n == nil {
				n = &naive{}
				want[key] = n
			}
			n.entry, n.waits = 8*uint64(1+rnd.IntN(8)+rnd.IntN(2)*rungBits), true
			b.at(db, []byte(key), n.entry).waits = true
		case 1:
			if n == nil {
				n = &naive{}
				want[key] = n
			}
			n.later = true
			b.tellLater(db, []byte(key))
		case 2: // the lock has come
			if n != nil {
				n.waits = false
				w := b.find(7, []byte(key))
				w.waits = false
				b.drop(w)
			}
		case 3: // a turn of Rung
			for _, w := range b.later {
				w.later = false
			}
			for _, w := range b.later {
				b.drop(w)
			}
			b.later = b.later[:0]
			for _, n := range want {
				n.later = false
			}
		case 4:
			if (b.find(8, []byte(key))) != nil {
				t.Fatalf("a watch of another database's record %q", key)
			}
		}
		for key, n := range want {
			if !n.waits && !n.later {
				delete(want, key)
			}
		}
		if len(b.of) != len(want) {
			t.Fatalf("%d watches, want %d", len(b.of), len(want))
		}
		listed := 0
		for key, n := range want {
			w := b.find(7, []byte(key))
			if w == nil || w.waits != n.waits || w.later != n.later {
				t.Fatalf("watch of %q is %+v, want %+v", key, w, n)
			}
			if n.entry != 0 {
				listed++
				if !slices.Contains(b.bits[rungBit(n.entry)], w) || n.waits && !b.waited(n.entry) {
					t.Fatalf("%q is not under the bit of its entry %d", key, n.entry)
				}
			}
		}
		for bit := range b.bits {
			listed -= len(b.bits[bit])
		}
		if listed != 0 {
			t.Fatalf("%d watches too many or too few under bits", -listed)
		}
	}
}

// The first look at a record in a turn counts.
func TestWatchesSee(t *testing.T) {
	var b watches
	b.note(seenAt{8, 1, 2})
	b.note(seenAt{8, 1, 4}) // it is not the first
	b.note(seenAt{16, 5, 2})
	for _, c := range []struct {
		now  seenAt
		want bool
	}{
		{seenAt{8, 1, 2}, false},
		{seenAt{8, 1, 4}, true},
		{seenAt{8, 2, 2}, true},
		{seenAt{16, 5, 2}, false},
		{seenAt{24, 1, 2}, false}, // not looked at
	} {
		if got := b.changed(c.now); got != c.want {
			t.Errorf("changed(%v) is %v, want %v", c.now, got, c.want)
		}
	}
}
