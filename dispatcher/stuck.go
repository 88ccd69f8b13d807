package dispatcher

import (
	"errors"
	"fmt"
	"time"

	"github.com/mainzdb/mainz/ltdb"
)

// DefaultStallLimit is for how long a client may be stopped in the middle of a call
// before it is evicted, if Options do not say.
const DefaultStallLimit = 10 * time.Second

// victims is who tells whether a client is stopped, and ends it: the kernel, but for
// tests.
type victims interface {
	Stopped(slot uint32) bool
	Evict(slot uint32, generation uint64) (bool, error)
}

// errStalled is why the segment's life ends.
var errStalled = errors.New("a client is stopped with a latch, and mainzd may not end it")

// evict ends clients that are stopped in the middle of a call for longer than the
// limit. Others wait for them, within their contexts; the loop never does. Slow is
// not stopped: the kernel has to say so. Where mainzd may not kill the client, the
// segment is of no use to anybody if it has a latch: then its life ends, with the
// remedy in the log, and clients attach to the next one.
func (d *Dispatcher) evict() {
	if d.opts.StallLimit < 0 {
		return
	}
	d.keeper.Stuck(d.opts.StallLimit, slice(), func(c ltdb.Stuck) {
		if !d.victims.Stopped(c.Slot) {
			return
		}
		name := d.seg.SlotName(c.Slot)
		ended, err := d.victims.Evict(c.Slot, c.Generation)
		switch {
		case ended:
			d.Stats.Evicted++
			d.log.Warn("a client that was stopped in the middle of a call is ended", "slot", c.Slot, "name", name,
				"latch", c.Latch, "for", c.For)
			d.scanAt = 0
		case err == nil: // it goes on
		case c.Latch:
			reason := fmt.Errorf("%w: process %d (%q in slot %d), for %v: %w; end that process, and start mainzd again, which makes a new segment", errStalled, d.seg.Slot(c.Slot).PID.Load(), name, c.Slot, c.For.Round(100*time.Millisecond), err)
			d.log.Error("the segment's life ends", "reason", reason)
			_ = d.seg.End(reason)
		case d.complained != c.Slot:
			d.complained = c.Slot
			d.log.Error("a client is stopped in the middle of a change of a record, and can't be ended; end it",
				"process", d.seg.Slot(c.Slot).PID.Load(), "slot", c.Slot, "name", name, "for", c.For, "error", err)
		}
	})
}
