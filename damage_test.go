package mainz

import (
	"errors"
	"testing"

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
