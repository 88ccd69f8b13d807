package shm

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// stallLimit is how long a claimer may make no step before it is looked at: one
// that is stopped is evicted. Recovery takes micro- to milliseconds.
var stallLimit = 10 * time.Second

// stall is what a client last saw of a claim that is in its way.
type stall struct {
	claim, progress uint32
	gen             uint64 // of the claimer's slot; of a joiner's: of the claimed one
	since           time.Time
}

// errNotYet: the dead process may still run, or a living one is marked dead. Try
// again soon.
var errNotYet = errors.New("not stopped yet")

// Recover repairs the slot of a dead client and frees it. It reports whether
// it did: false without an error means that the slot's client is not dead, or
// that somebody else is recovering it.
func (c *Client) Recover(slot uint32) (bool, error) {
	if c.left.Load() {
		return false, errLeft
	}
	return c.recover(slot, 0)
}

func (c *Client) recover(slot uint32, depth uint32) (bool, error) {
	if depth > c.seg.Slots() {
		return false, errBadClaims
	}
	for range 2 * MaxSlots {
		did, claimer, err := c.recoverOnce(slot)
		if claimer == 0 {
			return did, err
		}
		// The claimer is dead, but its threads may still be running its repair.
		// Recovering it first stops them and clears all its claims. Slot must
		// not be busy meanwhile: the claimer's repair may have to wait for a
		// latch that slot holds, and then it is for us to recover slot.
		if did, err := c.recover(claimer, depth+1); err != nil || !did {
			return false, err
		}
	}
	return false, nil
}

// recoverOnce returns the slot that has to be recovered before, or 0.
func (c *Client) recoverOnce(slot uint32) (did bool, claimer uint32, err error) {
	sl := c.seg.Slot(slot)
	if sl == nil {
		return false, 0, errBadOwner
	}
	if slot == c.slot || sl.Live.Load()&liveDied == 0 || !c.begin(slot) {
		return false, 0, nil
	}
	defer c.end(slot)
	if ok, claimer := c.claim(slot, sl); !ok {
		return false, claimer, nil
	}
	did, err = c.repairClaimed(slot, sl)
	return did, 0, err
}

func (c *Client) repairClaimed(slot uint32, sl *Slot) (bool, error) {
	c.step(sl)
	err := c.repair(slot, sl)
	if err != nil {
		// Others may try as well; but first they shall see that nobody is at it.
		sl.Claim.CAS(c.slot, 0)
		sl.Claim.Wake(All)
		if err == errNotYet || err == ErrLater {
			return false, nil
		}
		return false, fmt.Errorf("shm: recover slot %d: %w", slot, err)
	}
	return true, nil
}

// begin and end keep two goroutines of this process from recovering one slot
// at the same time: the claim word can't, as it names the client. It is no
// lock, so that one goroutine can recover a second slot inside of a first.
func (c *Client) begin(slot uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.busy, slot) {
		return false
	}
	c.busy = append(c.busy, slot)
	return true
}

func (c *Client) end(slot uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = slices.DeleteFunc(c.busy, func(s uint32) bool { return s == slot })
	if len(c.busy) == 0 {
		c.idle.Broadcast()
	}
}

// claim makes the client the slot's recoverer, and reports whether it is. If
// not, claimer is a dead client that has the claim, 0 for none.
func (c *Client) claim(slot uint32, sl *Slot) (ok bool, claimer uint32) {
	for range 2 * MaxSlots {
		v := sl.Claim.Load()
		other := c.seg.Slot(v)
		switch {
		case v == 0, v == c.slot:
		case joining(v):
			// The kernel says so if it dies. One that is stopped, or was never
			// there, loses the claim; it looks at that before it is a tenant.
			if !c.stands(slot, v, sl.Progress.Load(), sl.Generation.Load()) {
				return false, 0
			}
		case other == nil || v == slot:
			// No program of ours claims like that. Void.
		default:
			gen := other.Generation.Load()
			switch live := other.Live.Load(); {
			case live&liveDied != 0:
				return false, v
			case live != 0:
				// Slow is not stopped: who runs is left alone, whatever is written.
				if sl.Claim.Load() == v && c.stands(slot, v, sl.Progress.Load(), gen) && c.Stopped(v) {
					_, _ = c.Evict(v, gen) // if not, we wait until it runs again
				}
				return false, 0
			case sl.Claim.Load() != v, other.Live.Load() != 0, other.Generation.Load() != gen:
				continue
			}
			// The claimer's slot was free all the while, and who frees one
			// clears its claims before: void.
		}
		if v != c.slot && !sl.Claim.CAS(v, c.slot) {
			continue
		}
		if sl.Live.Load()&liveDied != 0 {
			return true, 0
		}
		sl.Claim.CAS(c.slot, 0) // somebody else has just finished
		sl.Claim.Wake(All)
		return false, 0
	}
	return false, 0
}

// repair runs the steps of docs/memory.md, "When a client dies".
//
// Preconditions: the client holds the slot's claim.
func (c *Client) repair(slot uint32, sl *Slot) error {
	if err := c.fence(slot, sl); err != nil {
		return err
	}
	// It may have died while it repaired a third slot, in whose name it then
	// holds a latch that Repair has to wait for: that slot must be free to be
	// claimed before, not after.
	c.clearClaims(slot)
	c.step(sl)
	if c.opts.Repair != nil {
		if err := c.opts.Repair(c, slot); err != nil {
			return err
		}
	}
	c.step(sl)
	c.clearClaims(slot)
	sl.PID.Store(0)
	sl.Live.Swap(0)
	sl.Claim.CAS(c.slot, 0)
	sl.Live.Wake(All)
	sl.Claim.Wake(All)
	return nil
}

func (c *Client) step(sl *Slot) { sl.Progress.Store(sl.Progress.Load() + 1) }

// stepAll makes a step in every recovery under way: a claimer that waits for a
// living lock owner is not stopped.
func (c *Client) stepAll() {
	c.mu.Lock()
	var busy [4]uint32
	n := copy(busy[:], c.busy)
	c.mu.Unlock()
	for _, slot := range busy[:n] {
		if sl := c.seg.Slot(slot); sl.Claim.Load() == c.slot {
			c.step(sl)
		}
	}
}

// Progress tells those who wait for the recovery of slot that it goes on. A
// Repair that can take seconds calls it now and then.
func (c *Client) Progress(slot uint32) {
	if sl := c.seg.Slot(slot); sl != nil {
		c.step(sl)
	}
}

// clearClaims voids the claims that the tenant of slot had made, so that they
// can't be taken for its successor's.
func (c *Client) clearClaims(slot uint32) {
	c.seg.eachSlot(func(_ uint32, sl *Slot) {
		if sl.Claim.Load() == slot && sl.Claim.CAS(slot, 0) {
			sl.Claim.Wake(All)
		}
	})
}

// stands reports whether a claim has made no step for stallLimit, as far as this
// client has seen; and then again after another stallLimit.
func (c *Client) stands(slot, claim, progress uint32, gen uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stalled == nil {
		c.stalled = make(map[uint32]stall)
	}
	seen, ok := c.stalled[slot]
	if !ok || seen.claim != claim || seen.gen != gen || seen.progress != progress {
		c.stalled[slot] = stall{claim, progress, gen, time.Now()}
		return false
	}
	stands := time.Since(seen.since) > stallLimit
	if stands {
		delete(c.stalled, slot)
	}
	return stands
}

// started is where this process's times count from.
var started = time.Now()

// recoverSome is RecoverAll for who waits, at the end of each time slice. Many of a
// process may wait at a time, and one look serves them all: a thousand that each looked
// at all slots 50 times a second kept two CPUs busy, and contexts ended late.
func (c *Client) recoverSome() (int, error) {
	if !SimEnabled {
		last, now := c.lookedAt.Load(), int64(time.Since(started))
		if last != 0 && now-last < int64(waitSlice/2) || !c.lookedAt.CompareAndSwap(last, now) {
			return 0, nil
		}
	}
	return c.RecoverAll()
}

// RecoverAll recovers all dead slots and returns how many.
func (c *Client) RecoverAll() (int, error) {
	c.FindLost()
	n := 0
	var first error
	c.seg.eachSlot(func(i uint32, _ *Slot) {
		did, err := c.Recover(i)
		if did {
			n++
		}
		if first == nil {
			first = err
		}
	})
	return n, first
}
