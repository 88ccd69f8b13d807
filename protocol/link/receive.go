package link

import "github.com/mainzdb/mainz/protocol/wire"

// Receive takes one datagram off the network and hands what is new in it to h.
func (l *Link) Receive(now Instant, datagram []byte, h Handler) {
	var hd wire.Header
	payload, err := wire.DecodeHeader(datagram, l.cfg.Cluster, &hd)
	if err != nil || hd.Dst != l.cfg.Self || hd.Src == l.cfg.Self || int(hd.Src) >= l.cfg.Nodes {
		l.count.Dropped++
		return
	}
	p := &l.peers[hd.Src]
	if hd.DstInc != 0 && hd.DstInc != l.cfg.Incarnation || hd.DstInc == 0 && hd.Flags&(wire.FlagPing|wire.FlagPong) == 0 {
		l.count.Stale++ // for who was here before us
		return
	}
	if hd.SrcInc != p.inc && !l.newIncarnation(now, hd.Src, hd.SrcInc, h) {
		l.count.Stale++
		return
	}
	l.count.Received++
	switch {
	case hd.Flags&(wire.FlagPing|wire.FlagPong) != 0:
		h.Step(now, hd.Src, Beacon, hd.Epoch, hd.DBID, payload)
	case hd.Flags&wire.FlagData != 0:
		l.receive(now, &hd, Data, payload, datagram, h)
	default:
		l.receive(now, &hd, Control, payload, datagram, h)
	}
}

// newIncarnation starts anew with a peer that was restarted; false: this is the
// voice of one that is gone.
func (l *Link) newIncarnation(now Instant, from wire.PNN, inc uint64, h Handler) bool {
	p := &l.peers[from]
	for _, d := range p.dead {
		if d == inc {
			return false
		}
	}
	first := p.inc == 0
	if !first {
		p.dead[p.nth%len(p.dead)] = p.inc
		p.nth++
		for ch := range p.ch {
			c := &p.ch[ch]
			l.dropSending(c)
			l.resetReceiving(c, 0)
		}
		p.srtt = 0
	}
	p.inc = inc
	if first { // what was queued for whoever would answer first
		l.pump(now, from, Data)
		l.pump(now, from, Control)
		h.Peer(now, from, Met)
		return true
	}
	h.Peer(now, from, Restarted)
	return true
}

// receive takes a datagram of one of the two channels: its acks, then its payload.
func (l *Link) receive(now Instant, hd *wire.Header, ch Channel, payload, datagram []byte, h Handler) {
	p := &l.peers[hd.Src]
	c := &p.ch[ch]
	l.takeAcks(now, hd, ch, h)
	if hd.Flags&(wire.FlagAck|wire.FlagRefused) != 0 || hd.Seq == 0 {
		return
	}
	if ch == Data && hd.Epoch != c.epoch {
		if hd.Epoch < c.epoch {
			// The peer itself has gone on since, or we have: its older messages can't
			// be handled any more. The core says whether the sender is to be told.
			if hd.Flags&wire.FlagFrag != 0 || h.Step(now, hd.Src, ch, hd.Epoch, hd.DBID, payload) == Refused {
				l.refuse(hd, ch)
			}
			return
		}
		l.resetReceiving(c, hd.Epoch)
	}
	if hd.Seq <= c.base || hd.Seq > c.base+1 && hd.Seq <= c.base+Window && c.bits>>(hd.Seq-c.base-2)&1 != 0 {
		l.count.Duplicates++
		l.owe(now, hd.Src, ch)
		return
	}
	if hd.Seq > c.base+Window {
		l.count.Dropped++
		return
	}
	whole, last := payload, true
	if hd.Flags&wire.FlagFrag != 0 {
		if whole, last = l.assemble(c, hd, payload); whole == nil && last {
			return // no room: the sender will repeat it
		}
	}
	verdict := Handled
	if last && len(whole) > 0 {
		verdict = h.Step(now, hd.Src, ch, hd.Epoch, hd.DBID, whole)
	}
	switch verdict {
	case Handled:
		if last && hd.Flags&wire.FlagFrag != 0 {
			c.forget(hd.MsgID)
		}
		c.mark(hd.Seq)
		l.owe(now, hd.Src, ch)
	case NotYet:
		if hd.Flags&wire.FlagFrag != 0 {
			c.unassemble(hd)
		}
		l.hold(datagram)
	case Refused:
		if hd.Flags&wire.FlagFrag != 0 {
			c.forget(hd.MsgID)
		}
		l.refuse(hd, ch)
		if ch == Control {
			// CONTROL's sequence goes on over ballots, so the hole must close. If the
			// refusal is lost, a repeat is acknowledged like any other duplicate: of no
			// harm, as who refuses a ballot never helps to finish it.
			c.mark(hd.Seq)
		}
	}
}

// mark remembers that seq was handled.
// Preconditions: seq is in (base, base+Window] and not marked.
func (c *channel) mark(seq uint64) {
	if seq > c.base+1 {
		c.bits |= 1 << (seq - c.base - 2)
		return
	}
	c.base++
	for c.bits&1 != 0 {
		c.base++
		c.bits >>= 1
	}
	c.bits >>= 1 // bit 0 was for base+2, which is base+1 now
}

// owe an acknowledgement: soon, or now if it is owed for many.
func (l *Link) owe(now Instant, to wire.PNN, ch Channel) {
	c := &l.peers[to].ch[ch]
	if c.ackNum++; c.ackNum >= l.cfg.AckEvery {
		l.sendAck(to, ch)
	} else if c.ackAt == 0 {
		c.ackAt = now + l.cfg.AckDelay
	}
}

func (l *Link) refuse(hd *wire.Header, ch Channel) {
	flags := uint8(wire.FlagRefused | wire.FlagData)
	if ch == Control {
		flags = wire.FlagRefused | wire.FlagControl
	}
	l.emit(hd.Src, &wire.Header{Flags: flags, Epoch: hd.Epoch, Ack: hd.Seq}, nil)
	l.count.Acks++
}

// takeAcks frees what the peer has handled, or will never handle.
func (l *Link) takeAcks(now Instant, hd *wire.Header, ch Channel, h Handler) {
	p := &l.peers[hd.Src]
	c := &p.ch[ch]
	if ch == Data && hd.Epoch != l.epoch {
		return // an ack that comes after the epoch frees nothing: the copy is claimed
	}
	if hd.Flags&wire.FlagRefused != 0 {
		l.takeRefusal(now, c, hd.Ack, h)
		l.pump(now, hd.Src, ch)
		return
	}
	kept := c.flight[:0]
	for i, f := range c.flight {
		if f.seq > hd.Ack && (f.seq < hd.Ack+2 || f.seq > hd.Ack+Window || hd.AckBits>>(f.seq-hd.Ack-2)&1 == 0) {
			kept = append(kept, c.flight[i])
			continue
		}
		if f.tries == 1 {
			if rtt := now - f.first; p.srtt == 0 {
				p.srtt = rtt
			} else {
				p.srtt += (rtt - p.srtt) / 8
			}
		}
		if token, done := l.freeFrame(f, false); done && token != 0 {
			h.Acked(now, token)
		}
	}
	c.flight = kept
	if c.settle() {
		l.pump(now, hd.Src, ch)
	}
}

// settle moves acked up to the first frame still out; true: the window moved.
func (c *channel) settle() bool {
	low := c.next - 1
	if len(c.flight) > 0 {
		low = c.flight[0].seq - 1
	} else if len(c.waiting) > 0 {
		low = c.waiting[0].seq - 1
	}
	moved := low > c.acked
	c.acked = max(c.acked, low)
	return moved
}

// takeRefusal takes the whole message of a refused sequence out of the window.
func (l *Link) takeRefusal(now Instant, c *channel, seq uint64, h Handler) {
	var m *message
	for _, f := range c.flight {
		if f.seq == seq {
			m = f.msg
		}
	}
	if m == nil {
		return
	}
	token := m.token
	for _, fs := range [2]*[]*frame{&c.flight, &c.waiting} {
		kept := (*fs)[:0]
		for _, f := range *fs {
			if f.msg == m {
				l.freeFrame(f, true)
			} else {
				kept = append(kept, f)
			}
		}
		*fs = kept
	}
	if token != 0 {
		h.Refused(now, token)
	}
}

// hold keeps a datagram that could not be handled yet. If there is no room it is
// dropped; its sender repeats it.
func (l *Link) hold(datagram []byte) {
	if len(l.held) >= l.cfg.MaxHeld {
		return
	}
	for _, b := range l.held { // a repeat has the same PNNs, incarnations and packet number
		if len(b) == len(datagram) && string(b[:wire.HeaderSize]) == string(datagram[:wire.HeaderSize]) {
			return
		}
	}
	var b []byte
	if n := len(l.spare); n > 0 {
		b, l.spare = l.spare[n-1], l.spare[:n-1]
	}
	l.held = append(l.held, append(b[:0], datagram...))
}

// Retry hands in again what the handler could not take: its state has changed.
func (l *Link) Retry(now Instant, h Handler) {
	n := len(l.held)
	for i := 0; i < n; i++ {
		b := l.held[i]
		l.held[i] = nil
		l.Receive(now, b, h)
		l.spare = append(l.spare, b)
	}
	l.held = append(l.held[:0], l.held[n:]...)
}

// Holding tells whether Retry has anything to hand in.
func (l *Link) Holding() bool { return len(l.held) > 0 }

// assemble adds a fragment. last: with it the message is whole; a nil whole then
// means that there was no room to keep it.
func (l *Link) assemble(c *channel, hd *wire.Header, payload []byte) (whole []byte, last bool) {
	at := -1
	for i := range c.parts {
		if c.parts[i].id == hd.MsgID {
			at = i
		}
	}
	if at < 0 {
		if len(c.parts) >= l.cfg.MaxParts && !c.evict(hd.Epoch) {
			return nil, true
		}
		c.parts = append(c.parts, part{id: hd.MsgID, epoch: hd.Epoch, seen: make([]bool, hd.Count), bytes: make([][]byte, hd.Count)})
		at = len(c.parts) - 1
	}
	q := &c.parts[at]
	if int(hd.Count) != len(q.seen) || q.seen[hd.Index] {
		return nil, true
	}
	q.seen[hd.Index], q.bytes[hd.Index] = true, append([]byte(nil), payload...)
	if q.have++; q.have < len(q.seen) {
		return nil, false
	}
	for _, b := range q.bytes {
		whole = append(whole, b...)
	}
	return whole, true
}

// unassemble takes the last fragment out again: its verdict is the message's, and
// that was NotYet.
func (c *channel) unassemble(hd *wire.Header) {
	for i := range c.parts {
		if c.parts[i].id == hd.MsgID {
			c.parts[i].seen[hd.Index] = false
			c.parts[i].have--
		}
	}
}

// evict makes room by forgetting a message of an older ballot: its sender has
// cancelled it, so its other fragments never come.
func (c *channel) evict(epoch wire.Epoch) bool {
	for i := range c.parts {
		if c.parts[i].epoch < epoch {
			c.parts = append(c.parts[:i], c.parts[i+1:]...)
			return true
		}
	}
	return false
}

func (c *channel) forget(id uint32) {
	for i := range c.parts {
		if c.parts[i].id == id {
			c.parts = append(c.parts[:i], c.parts[i+1:]...)
			return
		}
	}
}
