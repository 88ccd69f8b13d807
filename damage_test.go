package mainz

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/shm"
)

// word is the word at an offset of the client's segment.
func (c *Client) word(off shm.Offset) *shm.Word64 {
	return shm.At[shm.Word64](c.store.Segment().Region(), off)
}

// Damage of what the dispatcher walks is no reason for it to end: what is whole
// is served, and a restart succeeds.
func TestDamageIsServed(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	c := n.attach(ThroughRing())
	db := c.open(t, "db", KV)
	want(t, db.Store(ctx, []byte("k"), []byte("fine")), nil)
	classes, size := c.store.Segment().Area(shm.AreaClasses)
	for off := classes; off < classes+size; off += 64 {
		c.word(off).Store(c.word(off).Load() | 0xfffffff0<<32) // the head of the free list
	}
	for i := range 4 {
		for k := range 40 {
			_ = db.Store(ctx, []byte{byte(k)}, make([]byte, 1000*k)) // whatever it says
		}
		got, err := db.Fetch(ctx, []byte("k"))
		want(t, err, nil)
		if string(got) != "fine" {
			t.Errorf("fetched %q", got)
		}
		if i == 1 {
			n.end()
			n.start()
		}
	}
	if noted := c.store.Damage(); len(noted) == 0 || !strings.Contains(strings.Join(noted, " "), "free list") {
		t.Errorf("noted is %q", noted)
	}
}

// What the dispatcher alone stores, or has a copy of, it writes anew.
func TestDamageIsMended(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	c := n.attach(ThroughRing())
	db := c.open(t, "db", KV)
	want(t, db.Store(ctx, []byte("k"), []byte("fine")), nil)
	seg := c.store.Segment()
	tables, size := seg.Area(shm.AreaDatabases)
	spans, _ := seg.Area(shm.AreaSpans)
	words := map[string]shm.Offset{
		"lease": 4096 + 64, "lease's other word": 4096 + 72, "epoch": 4096 + 8,
		"database's place": tables + 64 + 16, "its name": tables + 64 + 32, "its state": tables + 64,
		"a condition": tables + size - 64*64, "a condition's name": tables + size - 63*64 + 16,
	}
	for off := spans; off < spans+16*8; off += 16 {
		if c.word(off).Load()&0xff == 0xff { // a span of a hash table
			words["its table's span"] = off
		}
	}
	if len(words) != 9 {
		t.Fatal("there is no hash table")
	}
	for name, off := range words {
		was := c.word(off).Load()
		for try := range 2 {
			c.word(off).Store(was ^ 0x5a<<(8*try))
			for c.word(off).Load() != was {
				if ctx.Err() != nil {
					t.Fatalf("%s was %#x and stays %#x", name, was, c.word(off).Load())
				}
				time.Sleep(time.Millisecond) // polls
			}
		}
	}
	got, err := n.attach().open(t, "db", KV).Fetch(ctx, []byte("k"))
	want(t, err, nil)
	if string(got) != "fine" {
		t.Errorf("fetched %q", got)
	}
	n.end()
	n.start()
	if noted := strings.Join(c.store.Damage(), " "); strings.Count(noted, "rewritten") < 4 {
		t.Errorf("noted is %q", noted)
	}
}

// A line of the table of databases is overwritten while no dispatcher runs, which would
// have a copy. The next one says so, and serves the others.
func TestDamageWithoutDispatcher(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	c := n.attach(ThroughRing())
	bad, good := c.open(t, "bad", KV), c.open(t, "good", KV)
	want(t, bad.Store(ctx, []byte("k"), []byte("v")), nil)
	want(t, good.Store(ctx, []byte("k"), []byte("v")), nil)
	tables, _ := c.store.Segment().Area(shm.AreaDatabases)
	n.end()
	c.word(tables + 64 + 32).Store(1) // the name of the first
	n.start()
	until(t, "it is said", func() bool {
		return strings.Contains(strings.Join(c.store.Damage(), "\n"), "line 0 of the table of databases was overwritten while")
	})
	other := n.attach(ThroughRing())
	_, err := other.open(t, "good", KV).Fetch(ctx, []byte("k"))
	want(t, err, nil)
	_, err = other.Open(ctx, "bad", KV)
	want(t, err, ErrCorrupt)
}

// Who attaches just when somebody has overwritten a condition's line waits until the
// dispatcher has put it right. A condition that is really another one is refused.
func TestDamagedConditionAttaches(t *testing.T) {
	holds := func(Snapshot, []byte) bool { return true }
	n := startNode(t, Condition{ID: 77, Version: 3, Name: "mine", Holds: holds})
	c := n.attach(WithCondition(Condition{ID: 77, Version: 3, Name: "mine", Holds: holds}))
	tables, size := c.store.Segment().Area(shm.AreaDatabases)
	w := c.word(tables + size - 64*64) // of a built-in one
	was := w.Load()
	for i := range 10 {
		w.Store(was ^ 0x100<<32)
		if i%2 == 0 {
			d, err := Attach(minute(t), n.dir, WithCondition(Condition{ID: 77, Version: 3, Name: "mine", Holds: holds}))
			want(t, err, nil)
			want(t, d.Close(), nil)
		}
		until(t, "it is mended", func() bool { return w.Load() == was })
	}
	_, err := Attach(minute(t), n.dir, WithCondition(Condition{ID: 77, Version: 4, Name: "mine", Holds: holds}))
	want(t, err, ErrIncompatible)
}

// The memory of the last dispatcher may be garbage when the next one comes.
func TestDamagedEpochs(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	c := n.attach(ThroughRing())
	db := c.open(t, "db", KV)
	want(t, db.Store(ctx, []byte("k"), []byte("fine")), nil)
	node, _, err := call.NodeOf(c.store.Segment())
	want(t, err, nil)
	for _, v := range []uint64{^uint64(0), 1 << 63, ^uint64(0xffff)} {
		n.end()
		for _, w := range []*shm.Word64{&node.Promised, &node.Taken, &node.Opened, &node.HighVNN, &node.OpCount} {
			w.Store(v)
		}
		n.start()
		got, err := db.Fetch(ctx, []byte("k"))
		want(t, err, nil)
		if string(got) != "fine" {
			t.Errorf("fetched %q", got)
		}
	}
}

// The gate's word and the header are what all go by: their damage ends the
// dispatcher, and the calls of all.
func TestDamageEnds(t *testing.T) {
	for name, damage := range map[string]func(c *Client){
		"gate":      func(c *Client) { g := &c.store.Segment().Gate().Gate; g.Store(g.Load() ^ 1<<20) },
		"dead gate": func(c *Client) { c.store.Segment().Gate().Gate.Store(0) },
		"header":    func(c *Client) { c.word(2048).Store(1) },
	} {
		t.Run(name, func(t *testing.T) {
			n := startNode(t)
			ctx := minute(t)
			c := n.attach()
			a := c.open(t, "db", KV)
			want(t, a.Store(ctx, []byte("k"), []byte("fine")), nil)
			damage(c)
			var err error
			select {
			case err = <-n.done:
				n.stop = nil
			case <-ctx.Done():
				t.Fatal("the dispatcher goes on")
			}
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrClosed) {
				t.Errorf("the dispatcher ended with %v", err)
			}
			want(t, a.Store(ctx, []byte("k"), []byte("x")), ErrClosed)
			_, err = a.Fetch(ctx, []byte("k"))
			want(t, err, ErrClosed)
			if name == "header" {
				n.opts.Store.Wipe = true // nobody knows what is in it
			}
			n.start()
			want(t, n.attach().open(t, "db", KV).Store(ctx, []byte("k"), []byte("x")), nil)
		})
	}
}
