package mainz

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
)

// Some work by bypass and some through the ring, on the same records: neither
// undoes what the other has done, and a trigger wakes both.
func TestMixed(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	rounds := 3000
	if testing.Short() {
		rounds = 300
	}
	var wg sync.WaitGroup
	for w := range 4 {
		var opts []Option
		if w%2 == 1 {
			opts = append(opts, ThroughRing())
		}
		c := n.attach(opts...)
		opens, log := c.open(t, "opens", Pieces), c.open(t, "log", KV)
		wg.Go(func() {
			mine := fmt.Appendf(nil, "<%d>", w)
			for i := range rounds {
				key := fmt.Append(nil, "file", i%2)
				cond := Always
				if i%3 == 0 {
					cond = IfAbsent
				}
				p, err := opens.ConditionalAppendWait(ctx, cond, key, mine)
				if err != nil {
					t.Errorf("worker %d: append %d: %v", w, i, err)
					return
				}
				if v, err := opens.Fetch(ctx, key); err != nil || bytes.Count(v, mine) != 1 {
					t.Errorf("worker %d: its piece %d is not there: %q, %v", w, i, v, err)
				}
				if err := opens.RemoveAndTrigger(ctx, key, p); err != nil {
					t.Errorf("worker %d: remove %d: %v", w, i, err)
				}
				if _, err := log.ConditionalAppend(ctx, Always, []byte("log"), fmt.Appendf(nil, "%d ", w)); err != nil {
					t.Errorf("worker %d: log %d: %v", w, i, err)
				}
			}
		})
	}
	wg.Wait()
	c := n.attach()
	v, err := c.open(t, "log", KV).Fetch(ctx, []byte("log"))
	want(t, err, nil)
	for w := range 4 {
		if got := bytes.Count(v, fmt.Appendf(nil, "%d ", w)); got != rounds {
			t.Errorf("of worker %d's %d lines %d are in the log", w, rounds, got)
		}
	}
	for k := range 2 {
		if v, err := c.open(t, "opens", Pieces).Fetch(ctx, fmt.Append(nil, "file", k)); !errors.Is(err, ErrNotFound) {
			t.Errorf("left in file %d: %q, %v", k, v, err)
		}
	}
}
