package link

import (
	"slices"

	"github.com/mainzdb/mainz/protocol/wire"
)

// part is a message that is being put together. Its sender splits it into
// fragments of one size, the stride, of which only the last may be shorter.
type part struct {
	id     uint32
	epoch  wire.Epoch
	count  uint16
	have   int
	stride int      // 0: no fragment but the last has come
	seen   []uint64 // bit i: fragment i is here
	buf    []byte   // fragment i at i*stride
	last   []byte   // the last fragment
}

// begin a message, from any of its fragments.
func (q *part) begin(hd *wire.Header) {
	q.id, q.epoch, q.count, q.have, q.stride = hd.MsgID, hd.Epoch, hd.Count, 0, 0
	words := (int(hd.Count) + 63) / 64
	if cap(q.seen) < words {
		q.seen = make([]uint64, words)
	}
	q.seen = q.seen[:words]
	clear(q.seen)
	q.buf, q.last = q.buf[:0], q.last[:0]
}

func (q *part) has(i uint16) bool { return q.seen[i/64]>>(i%64)&1 != 0 }

// without takes a fragment out again.
func (q *part) without(i uint16) {
	q.seen[i/64] &^= 1 << (i % 64)
	q.have--
}

// part finds or begins the message of a fragment; nil: it is of no use.
func (l *Link) part(c *channel, hd *wire.Header) *part {
	kept := c.parts[:0]
	var found *part
	stale := false
	for _, q := range c.parts {
		switch {
		case q.epoch < hd.Epoch: // its sender has cancelled it: the rest never comes
			l.parts = append(l.parts, q)
			continue
		case q.epoch > hd.Epoch:
			stale = true // the reverse
		case q.id == hd.MsgID:
			found = q
		}
		kept = append(kept, q)
	}
	c.parts = kept
	switch {
	case found != nil && found.count == hd.Count:
		return found
	case found != nil || len(c.parts) >= Window:
		l.drop(wire.ErrEnvelope) // no link of ours sends such
		return nil
	case stale:
		l.count.Stale++
		return nil
	}
	if n := len(l.parts); n > 0 {
		found, l.parts = l.parts[n-1], l.parts[:n-1]
	} else {
		found = &part{}
	}
	found.begin(hd)
	c.parts = append(c.parts, found)
	return found
}

// assemble adds a fragment and returns the message if that makes it whole. It lasts
// until the part is used again. A fragment that does not fit the others is dropped.
func (l *Link) assemble(q *part, hd *wire.Header, payload []byte) (whole []byte) {
	if q.has(hd.Index) {
		return nil
	}
	end := hd.Index == hd.Count-1
	switch {
	case end:
		q.last = append(q.last[:0], payload...)
	case q.stride == 0:
		q.stride = len(payload)
	}
	if !end && len(payload) != q.stride || q.stride > 0 && (int(hd.Count)-1)*q.stride+len(q.last) > MaxMessage ||
		q.stride > 0 && len(q.last) > q.stride {
		l.drop(wire.ErrEnvelope)
		return nil
	}
	if !end {
		at := int(hd.Index) * q.stride
		if n := at + q.stride - len(q.buf); n > 0 {
			q.buf = slices.Grow(q.buf, n)[:at+q.stride]
		}
		copy(q.buf[at:], payload)
	}
	q.seen[hd.Index/64] |= 1 << (hd.Index % 64)
	if q.have++; q.have < int(q.count) {
		return nil
	}
	// A last fragment that is taken out again, and comes again, finds the rest here.
	q.buf = append(q.buf[:(int(hd.Count)-1)*q.stride], q.last...)
	return q.buf
}

// forget a message that is done with; nil: it was no fragment's.
func (l *Link) forget(c *channel, q *part) {
	for i := range c.parts {
		if c.parts[i] == q {
			c.parts = append(c.parts[:i], c.parts[i+1:]...)
			l.parts = append(l.parts, q)
			return
		}
	}
}
