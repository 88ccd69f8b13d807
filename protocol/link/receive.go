package link

import (
	"fmt"

	"github.com/mainzdb/mainz/protocol/wire"
)

// Receive takes one datagram off the network and hands what is new in it to h.
func (l *Link) Receive(now Instant, datagram []byte, h Handler) {
	hd := &l.rx
	payload, err := l.open(datagram, hd)
	if err != nil {
		l.drop(err)
		return
	}
	if hd.Dst != l.cfg.Self || int(hd.Src) >= l.cfg.Nodes {
		l.count.Dropped++
		l.count.Stranger++
		return
	}
	kind := hd.Flags & (wire.FlagPing | wire.FlagPong)
	hello := kind != 0 && hd.Flags&wire.FlagAck == 0 && hd.DstInc == 0 // from who does not know us yet
	if hd.DstInc != l.cfg.Incarnation && !hello {
		l.count.Stale++ // for who was here before us
		return
	}
	if kind == wire.FlagPing && hd.Flags&wire.FlagAck != 0 {
		// A challenge is answered to whoever sent it: it proves nothing about them.
		l.emit(hd.Src, wire.Header{Flags: wire.FlagPong | wire.FlagAck, DstInc: hd.SrcInc, Ack: hd.Packet}, nil)
		return
	}
	if hd.SrcInc != l.peers[hd.Src].inc && !l.newIncarnation(now, hd, h) {
		l.count.Stale++
		return
	}
	l.count.Received++
	switch {
	case kind != 0 && hd.Flags&wire.FlagAck != 0: // of use to newIncarnation only
	case kind != 0:
		l.receiveBeacon(now, hd, payload, h)
	case hd.Flags&wire.FlagData != 0:
		l.receive(now, hd, Data, payload, datagram, h)
	default:
		l.receive(now, hd, Control, payload, datagram, h)
	}
}

// open reads the envelope and checks its sum or its seal. The payload lasts until
// the next call.
func (l *Link) open(datagram []byte, hd *wire.Header) (payload []byte, err error) {
	if l.cfg.Sealer == nil {
		return wire.DecodeHeader(datagram, l.cfg.Cluster, hd)
	}
	head, sealed, err := wire.DecodeSealed(datagram, l.cfg.Cluster, l.tail, hd)
	if err != nil {
		return nil, err
	}
	plain, ok := l.cfg.Sealer.Open(l.plain[:0], hd, head, sealed)
	if !ok || len(plain) != len(sealed)-l.tail {
		return nil, errForged
	}
	l.plain = plain
	return plain, nil
}

var errForged = fmt.Errorf("%w: not sealed with the cluster's key", wire.ErrPacket)

// drop counts a datagram that gets no answer.
func (l *Link) drop(err error) {
	l.count.Dropped++
	switch err {
	case wire.ErrCluster:
		l.count.Foreign++
	case wire.ErrSum:
		l.count.BadSum++
	case wire.ErrSealed:
		l.count.Unsealed++
	case errForged:
		l.count.Forged++
	default:
		l.count.Malformed++
	}
}

// newIncarnation starts anew with a peer that was restarted; false: the datagram
// is dropped. Incarnations have no order, and a late datagram of a dead one must
// not end the link with the living. So an unknown one is challenged: only a living
// dispatcher can answer with a packet number that was drawn just now. The first
// one ever heard needs no proof, as nobody loses by it. What a living one has
// displaced stays out for good: two dispatchers that were started under one PNN by
// mistake must not take turns.
func (l *Link) newIncarnation(now Instant, hd *wire.Header, h Handler) bool {
	p := &l.peers[hd.Src]
	for _, d := range p.dead {
		if d == hd.SrcInc {
			return false
		}
	}
	first := p.inc == 0
	if !first {
		answer := hd.Flags&wire.FlagPong != 0 && hd.Flags&wire.FlagAck != 0
		if !answer || hd.SrcInc != p.asked || hd.Ack != p.askNum {
			l.challenge(now, hd, p)
			return false
		}
		for ch := range p.ch {
			c := &p.ch[ch]
			l.dropSending(c)
			l.resetReceiving(c, 0)
		}
		p.dead[p.displaced%len(p.dead)] = p.inc
		p.displaced++
		p.srtt, p.beacon, p.beacons = 0, 0, 0
		if p.partial != nil {
			p.partial.count = 0
		}
	}
	p.inc, p.asked = hd.SrcInc, 0
	if first { // what was queued for whoever would answer first
		l.pump(now, hd.Src, Data)
		l.pump(now, hd.Src, Control)
		h.Peer(now, hd.Src, Met)
		return true
	}
	h.Peer(now, hd.Src, Restarted)
	return true
}

// challenge an incarnation, one per peer at a time: its next datagram asks again.
func (l *Link) challenge(now Instant, hd *wire.Header, p *peer) {
	if p.asked != 0 && now-p.askAt < l.cfg.RetryMin {
		return
	}
	l.count.Challenges++
	l.emit(hd.Src, wire.Header{Flags: wire.FlagPing | wire.FlagAck, DstInc: hd.SrcInc}, nil)
	p.asked, p.askNum, p.askAt = hd.SrcInc, l.packet, now
}

// receiveBeacon hands in what comes outside the channels, once: a repeat, or one
// that 64 newer ones have overtaken, tells nothing new and may be an attacker's.
func (l *Link) receiveBeacon(now Instant, hd *wire.Header, payload []byte, h Handler) {
	p := &l.peers[hd.Src]
	if hd.Seq > p.beacon {
		p.beacons = p.beacons<<min(hd.Seq-p.beacon, 64) | 1
		p.beacon = hd.Seq
	} else {
		bit := uint64(1) << min(p.beacon-hd.Seq, 64)
		if bit == 0 || p.beacons&bit != 0 {
			l.count.Duplicates++
			return
		}
		p.beacons |= bit
	}
	if hd.Flags&wire.FlagFrag != 0 {
		if p.partial == nil {
			p.partial = &part{}
		}
		if q := p.partial; q.id != hd.MsgID || q.count != hd.Count {
			q.begin(hd)
		}
		if payload = l.assemble(p.partial, hd, payload); payload == nil {
			return
		}
	}
	h.Step(now, hd.Src, Beacon, hd.Epoch, hd.DBID, payload)
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
		l.count.Beyond++
		return
	}
	var q *part
	if hd.Flags&wire.FlagFrag != 0 {
		if q = l.part(c, hd); q == nil {
			return
		}
		if payload = l.assemble(q, hd, payload); payload == nil {
			if q.has(hd.Index) { // kept until the others come; if not, they do not fit together
				c.mark(hd.Seq)
				l.owe(now, hd.Src, ch)
			}
			return
		}
	}
	verdict := Handled
	if len(payload) > 0 {
		verdict = h.Step(now, hd.Src, ch, hd.Epoch, hd.DBID, payload)
	}
	switch verdict {
	case Handled:
		if l.plant != plantKeepParts {
			l.forget(c, q)
		}
		c.mark(hd.Seq)
		l.owe(now, hd.Src, ch)
	case NotYet:
		if l.plant == plantHeldForever {
			c.mark(hd.Seq)
		}
		if q != nil && l.plant != plantLastFragment {
			q.without(hd.Index) // the last fragment's verdict is the message's
		}
		l.hold(datagram)
	case Refused:
		l.forget(c, q)
		l.refuse(hd, ch)
		if ch == Control && l.plant != plantHole {
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
	} else if c.ackAt == 0 && l.plant != plantNoAckTimer {
		c.ackAt = now + l.cfg.AckDelay
	}
}

func (l *Link) refuse(hd *wire.Header, ch Channel) {
	flags := uint8(wire.FlagRefused | wire.FlagData)
	if ch == Control {
		flags = wire.FlagRefused | wire.FlagControl
	}
	l.emit(hd.Src, wire.Header{Flags: flags, Epoch: hd.Epoch, Ack: hd.Seq}, nil)
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
		if l.plant != plantRefusedWindow {
			c.settle() // or what waits behind a window of refused frames would wait for ever
		}
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
	if c.settle() && l.plant != plantNoPump {
		l.pump(now, hd.Src, ch)
	}
}

// settle moves acked up to the first frame still out; true: the window moved.
func (c *channel) settle() bool {
	low := c.next - 1
	if len(c.flight) > 0 {
		low = c.flight[0].seq - 1
	} else if c.waiting.len() > 0 {
		low = c.waiting.frames()[0].seq - 1
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
	c.flight = l.without(c.flight, m)
	c.waiting.all = c.waiting.all[:c.waiting.head+len(l.without(c.waiting.frames(), m))]
	if token != 0 {
		h.Refused(now, token)
	}
}

// without frees the frames of a message.
func (l *Link) without(fs []*frame, m *message) []*frame {
	kept := fs[:0]
	for _, f := range fs {
		if f.msg == m {
			l.freeFrame(f, true)
		} else {
			kept = append(kept, f)
		}
	}
	return kept
}

// hold keeps a datagram that could not be handled yet. If there is no room it is
// dropped; its sender repeats it.
func (l *Link) hold(datagram []byte) {
	for _, b := range l.held { // a repeat has the same PNNs, incarnations and packet number
		if len(b) == len(datagram) && string(b[:wire.HeaderSize]) == string(datagram[:wire.HeaderSize]) {
			return
		}
	}
	if len(l.held) >= l.cfg.MaxHeld {
		l.count.Unheld++
		return
	}
	var b []byte
	if n := len(l.spare); n > 0 {
		b, l.spare = l.spare[n-1], l.spare[:n-1]
	}
	l.held = append(l.held, append(b[:0], datagram...))
}

// Retry hands in again what the handler could not take: its state has changed.
func (l *Link) Retry(now Instant, h Handler) {
	again := l.held
	l.held, l.retried = l.retried[:0], again
	for _, b := range again {
		l.Receive(now, b, h)
		l.spare = append(l.spare, b)
	}
}

// Holding tells whether Retry has anything to hand in.
func (l *Link) Holding() bool { return len(l.held) > 0 }
