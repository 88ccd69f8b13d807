package mainz

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// epochs collects what a client is told.
type epochs struct {
	mu  sync.Mutex
	all []Epoch
}

func (e *epochs) tell(x Epoch) {
	e.mu.Lock()
	e.all = append(e.all, x)
	e.mu.Unlock()
}

func (e *epochs) told() []Epoch {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.all)
}

// A client is told of each recovery once, before a call returns that has seen it, by
// whichever way that goes, and also if it does not call.
func TestEvents(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	var e, other epochs
	c := n.attach(WithEvents(e.tell))
	ring := n.attach(WithEvents(other.tell), ThroughRing()).open(t, "db", KV)
	db := c.open(t, "db", KV)
	want(t, db.Store(ctx, []byte("k"), []byte("v")), nil)
	h, err := db.Handle()
	want(t, err, nil)
	defer h.Close()
	restarts := 0
	for range 5 {
		for _, call := range []func() error{
			func() error { _, err := db.Fetch(ctx, []byte("k")); return err },
			func() error { return h.Store(ctx, []byte("k"), []byte("w")) },
			func() error { return c.Ping(ctx) },
		} {
			n.end()
			n.start()
			restarts++
			want(t, call(), nil)
			if got := len(e.told()); got != restarts {
				t.Fatalf("told of %d of %d recoveries", got, restarts)
			}
			_, err := ring.Fetch(ctx, []byte("k"))
			want(t, err, nil)
			if got := len(other.told()); got != restarts {
				t.Fatalf("through the ring: told of %d of %d recoveries", got, restarts)
			}
		}
	}
	n.end()
	n.start()
	for len(e.told()) == restarts && ctx.Err() == nil {
		time.Sleep(time.Millisecond) // polls: it comes without a call
	}
	all := e.told()
	if len(all) != restarts+1 || len(other.told()) < restarts {
		t.Errorf("told of %d and %d recoveries", len(all), len(other.told()))
	}
	last := uint64(0)
	for _, x := range all {
		if x.Number <= last || !x.Kept || fmt.Sprint(x.Members, x.Joined, x.Left) != "{0} {} {}" {
			t.Errorf("%+v after epoch %d", x, last)
		}
		last = x.Number
	}
}

// A watch goes on over a recovery, and says so; what changes meanwhile is seen.
func TestWatchRecovered(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	db := n.attach().open(t, "db", KV)
	key := []byte("k")
	var seen []Event
	for ev, err := range db.Watch(ctx, key) {
		want(t, err, nil)
		seen = append(seen, ev)
		switch len(seen) {
		case 1:
			n.end()
			n.start()
		case 2:
			n.end()
			want(t, db.Store(ctx, key, []byte("v")), nil) // nobody is there to see it
			n.start()
		}
		if ev == Changed {
			break
		}
	}
	if len(seen) < 3 || seen[0] != Armed || seen[len(seen)-1] != Changed || slices.Contains(seen[1:], Armed) ||
		!slices.Contains(seen, Recovered) {
		t.Errorf("seen %v", seen)
	}
}
