package link

import (
	"fmt"

	"github.com/mainzdb/mainz/protocol/wire"
)

// State of one channel to and from a peer: for tools and checkers.
type State struct {
	Next    uint64     // sequence of the next frame
	Acked   uint64     // all of 1..Acked are acknowledged, or will never be
	Flight  int        // frames on their way
	Waiting int        // frames that wait for room in the window
	Oldest  Instant    // when the first of those on their way went out; 0: none is
	Epoch   wire.Epoch // DATA: of what is received
	Base    uint64     // all of 1..Base were handled
	Holes   bool       // something above Base was handled, and something between was not
	Parts   int        // messages that are being put together, of the present epoch or ballot
}

// State tells how a channel stands.
func (l *Link) State(p wire.PNN, ch Channel) State {
	c := &l.peers[p].ch[ch]
	s := State{Next: c.next, Acked: c.acked, Flight: len(c.flight), Waiting: c.waiting.len(), Epoch: c.epoch, Base: c.base, Holes: c.bits != 0}
	for _, q := range c.parts {
		if ch == Data || q.epoch >= l.ballot { // of older ballots: they are dropped with the next fragment
			s.Parts++
		}
	}
	if len(c.flight) > 0 {
		s.Oldest = c.flight[0].first
	}
	return s
}

// Held is how many datagrams wait for Retry.
func (l *Link) Held() int { return len(l.held) }

// Spare is how many bytes of buffers nothing uses.
func (l *Link) Spare() (n int) {
	for _, f := range l.pool {
		n += cap(f.buf)
	}
	for _, q := range l.parts {
		n += cap(q.buf) + cap(q.last)
	}
	for _, b := range l.spare {
		n += cap(b)
	}
	return n
}

// Check tells the first thing about a channel that does not agree with another;
// nil: all agree. For tests.
func (l *Link) Check(now Instant) error {
	for i := range l.cfg.Nodes {
		p := &l.peers[i]
		for ch := range p.ch {
			if err := l.checkChannel(now, p, &p.ch[ch]); err != nil {
				return fmt.Errorf("node %d, channel %d: %w", i, ch, err)
			}
		}
	}
	if len(l.held) > l.cfg.MaxHeld {
		return fmt.Errorf("%d datagrams are held, more than %d", len(l.held), l.cfg.MaxHeld)
	}
	return nil
}

func (l *Link) checkChannel(now Instant, p *peer, c *channel) error {
	last := c.acked
	for _, f := range c.flight {
		switch {
		case f.seq <= last:
			return fmt.Errorf("frame %d is on its way behind %d", f.seq, last)
		case f.seq > c.acked+uint64(l.cfg.Window):
			return fmt.Errorf("frame %d is on its way, beyond the window from %d", f.seq, c.acked)
		case f.due > now+l.cfg.RetryMax:
			return fmt.Errorf("frame %d is repeated in %d µs only", f.seq, (f.due-now)/Microsecond)
		}
		last = f.seq
	}
	if w := c.waiting.frames(); len(w) > 0 {
		if p.inc != 0 && w[0].seq <= c.acked+uint64(l.cfg.Window) {
			return fmt.Errorf("frame %d waits with room in the window from %d", w[0].seq, c.acked)
		}
		for _, f := range w {
			if f.seq <= last {
				return fmt.Errorf("frame %d waits behind %d", f.seq, last)
			}
			last = f.seq
		}
	}
	switch {
	case last >= c.next:
		return fmt.Errorf("frame %d is there, and the next is %d", last, c.next)
	case len(c.flight)+c.waiting.len() == 0 && c.acked != c.next-1:
		return fmt.Errorf("nothing is under way, and %d of %d are acknowledged", c.acked, c.next-1)
	case c.ackNum > 0 && c.ackAt == 0:
		return fmt.Errorf("%d acknowledgements are owed and no timer is set", c.ackNum)
	case c.ackAt > now+l.cfg.AckDelay:
		return fmt.Errorf("an acknowledgement waits for %d µs", (c.ackAt-now)/Microsecond)
	case len(c.parts) >= Window:
		return fmt.Errorf("%d messages are being put together", len(c.parts))
	}
	return nil
}
