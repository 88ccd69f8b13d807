package dispatcher

import (
	"errors"
	"fmt"
	"time"

	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
)

// undead is a slot that is marked dead and stays so.
type undead struct {
	generation uint64
	since      protocol.Instant
	at         uint64 // the same, in seconds since 1970
	said       bool
}

// unprovenAfter is for how long a slot may be marked dead before it is named. Mostly
// a death is proven within a millisecond, and within the tear-down of the process's
// memory at the latest. A variable for tests.
var unprovenAfter = protocol.Instant(5 * link.Second)

// unproven names the slots that are marked dead for long and can't be recovered, as
// nothing says that their processes run no more: in the log once, and for mainz status
// as long as it is so. What such a client holds is locked for all others.
func (d *Dispatcher) unproven() {
	var words [call.MaxUnproven]uint64
	n := 0
	for slot := uint32(1); slot <= d.seg.Slots(); slot++ {
		if !d.seg.Dead(slot) {
			delete(d.undead, slot)
			continue
		}
		generation := d.seg.Slot(slot).Generation.Load()
		u := d.undead[slot]
		if u == nil || u.generation != generation {
			if d.undead == nil {
				d.undead = map[uint32]*undead{}
			}
			d.undead[slot] = &undead{generation: generation, since: d.now, at: uint64(time.Now().Unix())}
			continue
		}
		if n == len(words) || d.now-u.since < unprovenAfter || !d.keeper.Unproven(slot) {
			continue
		}
		words[n] = uint64(slot)<<40 | u.at&(1<<40-1)
		n++
		if !u.said {
			u.said = true
			pid := d.seg.Slot(slot).PID.Load()
			d.complain("a client is marked dead, and nothing proves that its process is gone: what it holds stays locked",
				errors.New(Unproven(slot, d.seg.SlotName(slot), pid, d.seg.LockPlace(slot))))
		}
	}
	for i, v := range words {
		if w := &d.node.Unproven[i]; w.Load() != v {
			w.Store(v)
		}
	}
}

// Unproven says what to do about a slot that is marked dead and can't be recovered.
func Unproven(slot uint32, name string, pid uint32, lock int64) string {
	return fmt.Sprintf("slot %d (%q, process %d): end that process if it is a client of this node, or let it go on if it is stopped; "+
		"else end the one that has the slot's lock: grep -l 'OFDLCK.* %d ' /proc/[0-9]*/fdinfo/*", slot, name, pid,
		lock)
}
