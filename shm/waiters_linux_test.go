//go:build !shmsim

package shm

import (
	"sync"
	"testing"
	"time"
)

// Many goroutines of a process wait for what somebody else holds. They look for the dead
// as often as one would, not each by itself.
func TestWaitersLookOnce(t *testing.T) {
	s := newSegment(t, mapped(t), testConfig(4))
	c := join(t, s, repairArea)
	bell, cancel := &areaOf(s).bell, new(Word32)
	const waiters, slices = 64, 10
	began, was := time.Now(), c.nextLost.Load()
	var all sync.WaitGroup
	for range waiters {
		all.Go(func() {
			if err := c.WaitOwner(0, Watch{bell, 0}, cancel, time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
	until(t, "the slices end", func() bool { return c.slices.ended.Load() >= waiters*slices })
	cancel.Raise()
	all.Wait()
	looks, most := c.nextLost.Load()-was, uint32(time.Since(began)/(waitSlice/2))+1
	if looks > most || looks == 0 {
		t.Errorf("%d looks, not 1 to %d", looks, most)
	}
}
