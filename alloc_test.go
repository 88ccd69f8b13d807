package mainz

import (
	"testing"

	"github.com/mainzdb/mainz/internal/testenv"
)

// TestAllocations: what goes by bypass allocates nothing, through a Handle or the DB,
// and neither do calls through the ring that ask for nothing or fetch, also if they
// have to sleep.
func TestAllocations(t *testing.T) {
	if testenv.Race {
		t.Log("the detector allocates as well: nothing is counted")
	}
	n := startNode(t)
	ctx := t.Context()
	c, through := n.attach(), n.attach(ThroughRing())
	db, pieces, ring := c.open(t, "db", KV), c.open(t, "pieces", Pieces), through.open(t, "db", KV)
	key, value, buf := []byte("0123456789abcdef"), make([]byte, 64), make([]byte, 0, 64)
	batch := &Batch{Keys: [][]byte{key, []byte("another key"), key}}
	type ops struct{ kv, pieces Ops }
	both := map[string]ops{"DB": {db, pieces}}
	h, err := db.Handle()
	want(t, err, nil)
	defer h.Close()
	p, err := pieces.Handle()
	want(t, err, nil)
	defer p.Close()
	both["Handle"] = ops{h, p}
	calls := map[string]func() error{
		"Ping":             func() error { return through.Ping(ctx) },
		"ring AppendFetch": func() error { _, err := ring.AppendFetch(ctx, buf, key); return err },
	}
	for name, o := range both {
		calls[name+" AppendFetch"] = func() error { _, err := o.kv.AppendFetch(ctx, buf, key); return err }
		calls[name+" FetchBatch"] = func() error { _, err := o.kv.FetchBatch(ctx, batch); return err }
		calls[name+" Store"] = func() error { return o.kv.Store(ctx, key, value) }
		calls[name+" FetchLocked, StoreUnlock"] = func() error {
			r, err := o.kv.FetchLocked(ctx, key)
			if err != nil {
				return err
			}
			return r.StoreUnlock(value)
		}
		calls[name+" ConditionalAppend, RemoveAndTrigger"] = func() error {
			p, err := o.pieces.ConditionalAppend(ctx, Always, key, value)
			if err != nil {
				return err
			}
			return o.pieces.RemoveAndTrigger(ctx, key, p)
		}
	}
	want(t, db.Store(ctx, key, value), nil)
	for name, f := range calls {
		for range 100 {
			want(t, f(), nil)
		}
		if got := testing.AllocsPerRun(1000, func() { err = f() }); got != 0 && !testenv.Race {
			t.Errorf("%s: %g allocations", name, got)
		}
		want(t, err, nil)
	}
}
