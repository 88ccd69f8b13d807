package shm

import "context"

// The heap has no guardians, as there is no process to die: the liveness word
// is set and cleared by the client itself, and death is simulated.

// heapLive is the liveness word of every client in the heap: as if it had TID 1.
const heapLive = liveWaiters | 1

func (c *Client) takeHeapSlot(ctx context.Context) error {
	for {
		live, dead := 0, 0
		first, last := c.candidates()
		for i := first; i <= last; i++ {
			sl := c.seg.Slot(i)
			v := sl.Live.Load()
			switch {
			case v == 0 && sl.Live.CAS(0, heapLive):
				return c.became(i)
			case v&liveDied == 0:
				live++
			default:
				dead++
			}
		}
		for i := first; i <= last && dead > 0; i++ {
			if c.takeOverHeapSlot(i) {
				return c.inherit()
			}
		}
		if dead == 0 {
			return c.noSlot(live, dead)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		WaitAny(waitSlice)
	}
}

// takeOverHeapSlot makes the client the tenant of a dead slot, with all that
// the last one had begun: who has no slot can't claim one for recovery.
func (c *Client) takeOverHeapSlot(i uint32) bool {
	sl := c.seg.Slot(i)
	v := sl.Live.Load()
	if v&liveDied == 0 || !sl.Claim.CAS(0, heapLive) {
		return false
	}
	took := sl.Live.CAS(v, heapLive)
	if took {
		c.clearClaims(i)
		_ = c.became(i) // takes no file lock in the heap
	}
	sl.Claim.CAS(heapLive, 0)
	sl.Claim.Wake(All)
	return took
}

func (c *Client) giveHeapSlot(clean bool) {
	if clean {
		c.me.Live.Swap(0)
	} else {
		c.me.Live.Swap(liveWaiters | liveDied)
	}
	c.me.Live.Wake(All)
}
