package dispatcher

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/shm"
)

// Whoever is of the segment's group may write anything into it. The gate's word
// and the header are what all others go by: who damages these ends the segment's
// life. Any other damage is said in the log, and what is whole is served.

// complaints keeps what comes again and again from filling the log.
type complaints struct {
	said  map[string]protocol.Instant
	since protocol.Instant // of the running second
	n     int              // said in it
	left  int              // left out since the last line
}

const (
	sameComplaint = 60 * link.Second // between two lines that say the same
	newComplaints = 8                // in a second
	maxComplaints = 256              // that are remembered
)

// may reports whether a line with that text may go to the log now, and how many
// were left out before it.
func (c *complaints) may(now protocol.Instant, text string) (left int, ok bool) {
	if at, said := c.said[text]; said && now-at < sameComplaint {
		return 0, false
	}
	if now-c.since >= link.Second {
		c.since, c.n = now, 0
	}
	if c.n++; c.n > newComplaints {
		c.left++
		return 0, false
	}
	if c.said == nil || len(c.said) >= maxComplaints {
		c.said = map[string]protocol.Instant{}
	}
	c.said[text] = now
	left, c.left = c.left, 0
	return left, true
}

// complain says in the log what is wrong, once.
func (d *Dispatcher) complain(what string, err error) {
	left, ok := d.complaints.may(d.now, what+err.Error())
	switch {
	case !ok:
	case left > 0:
		d.log.Error(what, "error", err, "left_out", left)
	default:
		d.log.Error(what, "error", err)
	}
}

// guarded calls f, which looks at the segment, and makes an error of a fault: the
// pages of a file that somebody has truncated are gone, and an access to them is
// a SIGBUS. Any other panic goes on. The segment is of no use afterwards.
func (d *Dispatcher) guarded(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		fault, ok := p.(interface {
			error
			Addr() uintptr
		})
		if !ok {
			panic(p)
		}
		err = fmt.Errorf("dispatcher: %s: a page of the segment can't be had (%w): %w", d.opts.Dir, fault,
			shm.ErrCorrupt)
		if d.seg != nil {
			if why := d.seg.Look(); why != nil {
				err = fmt.Errorf("dispatcher: %s: %w", d.opts.Dir, why)
			}
		}
		d.log.Error("the node ends: its segment can't be used any more", "dir", d.opts.Dir, "error", err)
	}()
	return f()
}

// mend puts right what this dispatcher alone stores, and names in the log, once,
// what anybody has noted.
func (d *Dispatcher) mend() {
	d.keeper.Mend()
	n := d.node
	if n.Incarnation.Load() != d.incarnation {
		n.Incarnation.Store(d.incarnation)
	}
	if n.Magic.Load() != call.Magic {
		n.Magic.Store(call.Magic)
	}
	if v := uint32(os.Getpid()); n.PID.Load() != v {
		n.PID.Store(v)
	}
	if v := uint64(d.start.UnixNano()); n.Started.Load() != v {
		n.Started.Store(v)
	}
	for _, text := range d.keeper.Store().Damage() {
		if !d.noted[text] && len(d.noted) < maxComplaints {
			if d.noted == nil {
				d.noted = map[string]bool{}
			}
			d.noted[text] = true
			d.complain("damage", errors.New(text))
		}
	}
}

// headerEvery is how often the header is looked at: it is constant, and read by
// nobody who is attached.
const headerEvery = link.Second

// whole looks whether the segment is the node's still, and may be served. Its error
// ends the dispatcher; damage ends the segment's life, too.
func (d *Dispatcher) whole() error {
	err := d.ended()
	if err == nil {
		if err = d.keeper.Ended(); err == nil && d.now >= d.headerAt {
			d.headerAt = d.now + headerEvery
			err = d.keeper.HeaderWhole()
		}
		if err != nil {
			err = fmt.Errorf("dispatcher: %s: %w", d.opts.Dir, d.seg.End(err))
		}
	}
	if err != nil {
		d.log.Error("the node ends: its segment can't be used any more", "dir", d.opts.Dir, "error", err)
		return err
	}
	for _, err := range d.keeper.Trouble() {
		d.complain("damage", err)
	}
	return nil
}
