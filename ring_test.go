package mainz

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// An append that waits ends as its context does, also if the dispatcher's clock
// is ahead of the context's.
func TestWaitEndsWithContext(t *testing.T) {
	both(t, func(t *testing.T, n *node, opts ...Option) {
		c := n.attach(opts...)
		for _, mode := range []Mode{KV, Pieces} {
			db := c.open(t, fmt.Sprint("db", mode), mode)
			key := []byte("k")
			_, err := db.ConditionalAppend(minute(t), IfAbsent, key, []byte("v"))
			want(t, err, nil)
			for range 5 {
				ctx, cancel := context.WithTimeout(minute(t), 3*time.Millisecond)
				_, err = db.ConditionalAppendWait(early{ctx}, IfAbsent, key, []byte("w"))
				cancel()
				want(t, err, context.DeadlineExceeded)
			}
		}
	})
}

// early says a deadline that comes before its end.
type early struct{ context.Context }

func (e early) Deadline() (time.Time, bool) {
	d, ok := e.Context.Deadline()
	return d.Add(-3 * time.Millisecond), ok
}

// A client that is gone is replaced in its slot before the dispatcher has looked:
// it has no connection to one that came later. Its pieces go all the same.
func TestSlotTakenOver(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	watcher := n.attach().open(t, "opens", Pieces)
	for i := range 5 {
		key := fmt.Append(nil, "file", i)
		c, err := Attach(ctx, n.dir)
		want(t, err, nil)
		_, err = c.open(t, "opens", Pieces).ConditionalAppend(ctx, Always, key, []byte("p"))
		want(t, err, nil)
		slot := c.store.Slot()
		n.end()
		n.start()
		// It looks for pieces of the dead once when it starts: that is over when
		// those of another client are gone.
		other := n.attach()
		_, err = other.open(t, "opens", Pieces).ConditionalAppend(ctx, Always, []byte("other"), []byte("p"))
		want(t, err, nil)
		want(t, other.Close(), nil)
		p, err := watcher.ConditionalAppendWait(ctx, IfAbsent, []byte("other"), []byte("w"))
		want(t, err, nil)
		want(t, watcher.RemoveAndTrigger(ctx, []byte("other"), p), nil)

		want(t, c.Close(), nil)
		next := n.attach()
		if next.store.Slot() != slot {
			t.Errorf("slot %d was not taken over, but %d: the test is none", slot, next.store.Slot())
		}
		p, err = watcher.ConditionalAppendWait(ctx, IfAbsent, key, []byte("w")) // as soon as it is gone
		want(t, err, nil)
		want(t, watcher.RemoveAndTrigger(ctx, key, p), nil)
		want(t, next.Close(), nil)
	}
}
