package link

import (
	"errors"
	"fmt"

	"github.com/mainzdb/mainz/protocol/wire"
)

// Instant is a time in nanoseconds on the node's own clock (CLOCK_BOOTTIME).
type Instant int64

// Durations.
const (
	Microsecond Instant = 1000
	Millisecond         = 1000 * Microsecond
	Second              = 1000 * Millisecond
	Never       Instant = 1<<63 - 1
)

// Channel is one of the two reliable channels, or none.
type Channel uint8

const (
	Data Channel = iota
	Control
	Beacon // unreliable, repeated by its sender
)

// Verdict is the handler's answer; the link acknowledges by it.
type Verdict uint8

const (
	Handled Verdict = iota // its effects are done: acknowledge
	NotYet                 // hand it in again later
	Refused                // of an older epoch: the sender stops repeating it
)

// PeerEvent tells the handler about a peer.
type PeerEvent uint8

const (
	Met       PeerEvent = 1 // the first incarnation of the peer that we hear of
	Restarted PeerEvent = 2 // the peer has a new incarnation; all that was under way is gone
)

// Handler is who uses the link: the core of the node.
type Handler interface {
	// Step handles one whole packet.
	Step(now Instant, from wire.PNN, ch Channel, epoch wire.Epoch, dbid uint32, packet []byte) Verdict
	// Acked: the peer has handled the message sent with this token.
	Acked(now Instant, token uint64)
	// Refused: the peer will never handle the message sent with this token.
	Refused(now Instant, token uint64)
	Peer(now Instant, pnn wire.PNN, ev PeerEvent)
}

// Config of a link. Zero values take the defaults given.
type Config struct {
	Self        wire.PNN
	Nodes       int    // PNNs 0..Nodes-1 are configured
	Incarnation uint64 // random, not 0, new at every start
	Cluster     uint32
	MTU         int     // bytes of a datagram, 1,400
	RetryMin    Instant // first repeat, at least: 2 ms
	RetryMax    Instant // 50 ms
	AckDelay    Instant // a pure ack waits for company this long: 200 µs
	AckEvery    int     // but not for more than so many datagrams: 8
	MaxQueue    int     // messages waiting per peer and channel: 65,536
	MaxHeld     int     // 64
	MaxParts    int     // 4
}

// Window is how many frames of a channel may be on their way to a peer: what one
// ack can name (Ack+1 and 64 bits).
const Window = 65

// Limits that Config is held to.
const minMTU = wire.HeaderSize + wire.FragSize + wire.SumSize + 64

func (c *Config) check() error {
	def := func(v *Instant, d Instant) {
		if *v == 0 {
			*v = d
		}
	}
	defInt := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	defInt(&c.MTU, 1400)
	def(&c.RetryMin, 2*Millisecond)
	def(&c.RetryMax, 50*Millisecond)
	def(&c.AckDelay, 200*Microsecond)
	defInt(&c.AckEvery, 8)
	defInt(&c.MaxQueue, 65536)
	defInt(&c.MaxHeld, 64)
	defInt(&c.MaxParts, 4)
	switch {
	case c.Nodes < 1 || c.Nodes > wire.MaxNodes || int(c.Self) >= c.Nodes:
		return fmt.Errorf("link: node %d of %d: the nodes file holds 1 to %d lines", c.Self, c.Nodes, wire.MaxNodes)
	case c.Incarnation == 0:
		return errors.New("link: incarnation 0: draw a random one at each start")
	case c.MTU < minMTU:
		return fmt.Errorf("link: datagrams of %d bytes: at least %d", c.MTU, minMTU)
	}
	return nil
}

// Counters of a link, since its start.
type Counters struct {
	Sent, Repeated, Acks, Received, Duplicates, Dropped, Stale uint64
}

// Datagram is what is to be sent; Bytes is valid until the next call of Take.
type Datagram struct {
	To    wire.PNN
	Bytes []byte
}

// Link is all peers of one node.
type Link struct {
	cfg    Config
	epoch  wire.Epoch // of DATA
	ballot wire.Epoch // of CONTROL, the highest sent or cancelled below
	packet uint64
	peers  [wire.MaxNodes]peer
	out    []outgoing
	buf    []byte
	prev   []byte
	dgrams []Datagram
	held   [][]byte
	spare  [][]byte // buffers for held
	pool   []*frame
	msgs   []*message
	msgID  uint32
	count  Counters
}

type outgoing struct {
	to        wire.PNN
	from, end int
}

// peer is what one link knows about one other node, for one incarnation.
type peer struct {
	inc  uint64     // 0: never heard
	dead [16]uint64 // former incarnations: a late datagram must not bring one back
	nth  int
	srtt Instant
	ch   [2]channel
}

// channel is one direction each of sending and receiving.
type channel struct {
	// sending
	next    uint64
	flight  []*frame // handed out and not acknowledged, in order of seq
	waiting []*frame
	acked   uint64 // all of 1..acked are acknowledged
	// receiving
	epoch  wire.Epoch // DATA: the epoch of base and bits
	base   uint64     // all of 1..base were handled
	bits   uint64     // bit i: base+2+i was handled
	ackAt  Instant    // 0: nothing to acknowledge
	ackNum int
	parts  []part
}

// frame is one datagram, sealed at its first sending.
type frame struct {
	buf    []byte // room for the header, payload, sum
	seq    uint64
	epoch  wire.Epoch
	dbid   uint32
	flags  uint8
	null   bool // cancelled before or after its first sending: nothing in it
	tries  int
	first  Instant
	due    Instant
	wait   Instant
	msg    *message
	msgID  uint32
	index  uint16
	pieces uint16
}

type message struct {
	token uint64
	left  int
}

// part is a message that is being put together.
type part struct {
	id    uint32
	epoch wire.Epoch
	have  int
	seen  []bool
	bytes [][]byte
}

// New makes a link; nothing goes out before the caller sends.
func New(cfg Config) (*Link, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	l := &Link{cfg: cfg}
	for i := range l.peers {
		for c := range l.peers[i].ch {
			l.peers[i].ch[c].next = 1
		}
	}
	return l, nil
}

// Counters since the start.
func (l *Link) Counters() Counters { return l.count }

// Incarnation of a peer, 0 if it was never heard.
func (l *Link) Incarnation(p wire.PNN) uint64 { return l.peers[p].inc }

// Backlog is how many messages wait for room in p's windows. The caller takes no
// more work for p when it grows; Send panics beyond Config.MaxQueue.
func (l *Link) Backlog(p wire.PNN) int {
	return len(l.peers[p].ch[Data].waiting) + len(l.peers[p].ch[Control].waiting)
}

// Send queues a packet on a reliable channel; it is copied. A token that is not 0
// comes back by Acked or Refused; not if the epoch (DATA), the ballot (CONTROL)
// or the peer's incarnation ends first.
// Preconditions: to is another configured node.
func (l *Link) Send(now Instant, to wire.PNN, ch Channel, epoch wire.Epoch, dbid uint32, packet []byte, token uint64) {
	if to == l.cfg.Self || int(to) >= l.cfg.Nodes {
		panic(fmt.Sprintf("link: send to node %d of %d by node %d", to, l.cfg.Nodes, l.cfg.Self))
	}
	if ch == Beacon {
		l.beacon(to, epoch, packet)
		return
	}
	if ch == Data && epoch != l.epoch {
		return // the map has changed between the decision and here: recovery decides
	}
	if ch == Control {
		if epoch < l.ballot {
			return
		}
		l.Cancel(now, epoch) // so a receiver may forget the fragments of older ballots
	}
	p := &l.peers[to]
	c := &p.ch[ch]
	if len(c.waiting) >= l.cfg.MaxQueue {
		panic(fmt.Sprintf("link: %d messages wait for node %d", len(c.waiting), to))
	}
	room := l.cfg.MTU - wire.HeaderSize - wire.SumSize
	pieces := 1
	if len(packet) > room {
		room -= wire.FragSize
		pieces = (len(packet) + room - 1) / room
		l.msgID++
	}
	if pieces > 1<<16-1 {
		panic(fmt.Sprintf("link: %d bytes do not fit in 65,535 fragments of %d", len(packet), room))
	}
	m := l.newMessage(token, pieces)
	for i := range pieces {
		f := l.newFrame()
		f.seq, f.epoch, f.dbid, f.msg, f.flags = c.next, epoch, dbid, m, wire.FlagData
		if ch == Control {
			f.flags = wire.FlagControl
		}
		head := wire.HeaderSize
		if pieces > 1 {
			f.flags |= wire.FlagFrag
			f.msgID, f.index, f.pieces = l.msgID, uint16(i), uint16(pieces)
			head += wire.FragSize
		}
		c.next++
		f.buf = append(grow(f.buf, head), packet[i*room:min(len(packet), (i+1)*room)]...)
		c.waiting = append(c.waiting, f)
	}
	l.pump(now, to, ch)
}

// grow makes b n bytes long, whatever they are.
func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n, n+512)
	}
	return b[:n]
}

// beacon sends one unreliable datagram.
func (l *Link) beacon(to wire.PNN, epoch wire.Epoch, packet []byte) {
	h := wire.Header{Flags: wire.FlagPong, Epoch: epoch}
	if len(packet) >= 4 && packet[0] == byte(wire.Ping) {
		h.Flags = wire.FlagPing
	}
	l.emit(to, &h, packet)
}

// emit writes a new datagram with a packet number of its own.
func (l *Link) emit(to wire.PNN, h *wire.Header, payload []byte) {
	l.packet++
	h.Cluster, h.Src, h.Dst, h.SrcInc, h.DstInc, h.Packet = l.cfg.Cluster, l.cfg.Self, to, l.cfg.Incarnation, l.peers[to].inc, l.packet
	from := len(l.buf)
	l.buf = append(wire.AppendHeader(l.buf, h), payload...)
	l.buf = append(l.buf, 0, 0, 0, 0)
	end := len(l.buf)
	wire.AppendSum(l.buf[from : end-wire.SumSize : end])
	l.out = append(l.out, outgoing{to, from, end})
	l.count.Sent++
}

// pump moves waiting frames into the window, as far as it goes.
func (l *Link) pump(now Instant, to wire.PNN, ch Channel) {
	p := &l.peers[to]
	c := &p.ch[ch]
	if p.inc == 0 {
		return // nobody there yet to address
	}
	n := 0
	for _, f := range c.waiting {
		if f.seq > c.acked+Window {
			break
		}
		l.transmit(now, to, ch, f)
		c.flight = append(c.flight, f)
		n++
	}
	if n > 0 {
		c.waiting = append(c.waiting[:0], c.waiting[n:]...)
	}
}

// transmit sends a frame the first time, with the acks of the moment.
func (l *Link) transmit(now Instant, to wire.PNN, ch Channel, f *frame) {
	p := &l.peers[to]
	c := &p.ch[ch]
	l.packet++
	h := wire.Header{Flags: f.flags, Cluster: l.cfg.Cluster, Src: l.cfg.Self, Dst: to, SrcInc: l.cfg.Incarnation, DstInc: p.inc, Epoch: f.epoch, Packet: l.packet,
		Seq: f.seq, DBID: f.dbid, MsgID: f.msgID, Index: f.index, Count: f.pieces}
	if ch == Control || c.epoch == f.epoch {
		h.Ack, h.AckBits = c.base, c.bits
		c.ackAt, c.ackNum = 0, 0
	}
	wire.AppendHeader(f.buf[:0], &h)
	f.buf = wire.AppendSum(f.buf)
	f.tries, f.first = 1, now
	f.wait = min(max(l.cfg.RetryMin, 4*p.srtt), l.cfg.RetryMax)
	f.due = now + f.wait
	l.copyOut(to, f.buf)
	l.count.Sent++
}

func (l *Link) copyOut(to wire.PNN, b []byte) {
	from := len(l.buf)
	l.buf = append(l.buf, b...)
	l.out = append(l.out, outgoing{to, from, len(l.buf)})
}

// Take gives out the datagrams to send. They are valid until the next Take.
func (l *Link) Take() []Datagram {
	l.dgrams = l.dgrams[:0]
	for _, o := range l.out {
		l.dgrams = append(l.dgrams, Datagram{o.to, l.buf[o.from:o.end:o.end]})
	}
	l.prev, l.buf, l.out = l.buf, l.prev[:0], l.out[:0]
	return l.dgrams
}

// Tick repeats what is due and sends the acks that found no company.
func (l *Link) Tick(now Instant) {
	for i := range l.cfg.Nodes {
		p := &l.peers[i]
		if p.inc == 0 {
			continue
		}
		for ch := range p.ch {
			c := &p.ch[ch]
			for _, f := range c.flight {
				if f.due > now {
					continue
				}
				f.tries++
				f.wait = min(2*f.wait, l.cfg.RetryMax)
				f.due = now + f.wait
				l.copyOut(wire.PNN(i), f.buf)
				l.count.Repeated++
			}
			if c.ackAt != 0 && c.ackAt <= now {
				l.sendAck(wire.PNN(i), Channel(ch))
			}
		}
	}
}

// Next is when Tick has something to do.
func (l *Link) Next() Instant {
	next := Never
	for i := range l.cfg.Nodes {
		p := &l.peers[i]
		if p.inc == 0 {
			continue
		}
		for ch := range p.ch {
			c := &p.ch[ch]
			for _, f := range c.flight {
				next = min(next, f.due)
			}
			if c.ackAt != 0 {
				next = min(next, c.ackAt)
			}
		}
	}
	return next
}

func (l *Link) sendAck(to wire.PNN, ch Channel) {
	c := &l.peers[to].ch[ch]
	h := wire.Header{Flags: wire.FlagData | wire.FlagAck, Epoch: c.epoch, Ack: c.base, AckBits: c.bits}
	if ch == Control {
		h.Flags = wire.FlagControl | wire.FlagAck
	}
	c.ackAt, c.ackNum = 0, 0
	l.emit(to, &h, nil)
	l.count.Acks++
}

// SetEpoch: a NEW_MAP was taken. All DATA of older epochs is dropped, in both
// directions; no token of it comes back.
func (l *Link) SetEpoch(epoch wire.Epoch) {
	if epoch <= l.epoch {
		return
	}
	l.epoch = epoch
	for i := range l.cfg.Nodes {
		c := &l.peers[i].ch[Data]
		l.dropSending(c)
		if c.epoch < epoch {
			l.resetReceiving(c, epoch)
		}
	}
}

// Cancel empties the CONTROL messages of ballots below this one. What has been
// sent keeps its place in the sequence, as a datagram with nothing in it. Sending
// under a higher ballot cancels as well.
func (l *Link) Cancel(now Instant, ballot wire.Epoch) {
	if ballot <= l.ballot {
		return
	}
	l.ballot = ballot
	for i := range l.cfg.Nodes {
		p := &l.peers[i]
		c := &p.ch[Control]
		for _, fs := range [2][]*frame{c.flight, c.waiting} {
			for _, f := range fs {
				if f.epoch >= ballot || f.null {
					continue
				}
				l.freeMessage(f.msg, true)
				f.msg, f.null, f.flags, f.dbid = nil, true, wire.FlagControl, 0
				f.buf = f.buf[:wire.HeaderSize]
				if f.tries > 0 {
					l.transmit(now, wire.PNN(i), Control, f)
				}
			}
		}
	}
}

func (l *Link) dropSending(c *channel) {
	for _, fs := range [2][]*frame{c.flight, c.waiting} {
		for _, f := range fs {
			l.freeFrame(f, true)
		}
	}
	c.flight, c.waiting, c.next, c.acked = c.flight[:0], c.waiting[:0], 1, 0
}

func (l *Link) resetReceiving(c *channel, epoch wire.Epoch) {
	c.epoch, c.base, c.bits, c.ackAt, c.ackNum = epoch, 0, 0, 0, 0
	c.parts = c.parts[:0]
}

func (l *Link) newFrame() *frame {
	if n := len(l.pool); n > 0 {
		f := l.pool[n-1]
		l.pool = l.pool[:n-1]
		*f = frame{buf: f.buf[:0]}
		return f
	}
	return &frame{}
}

// freeFrame gives back a frame and its share of the message. dropped: the token
// must not come back any more.
func (l *Link) freeFrame(f *frame, dropped bool) (token uint64, done bool) {
	if f.msg != nil {
		token, done = l.freeMessage(f.msg, dropped)
	}
	f.msg = nil
	l.pool = append(l.pool, f)
	return token, done
}

func (l *Link) newMessage(token uint64, left int) *message {
	if n := len(l.msgs); n > 0 {
		m := l.msgs[n-1]
		l.msgs = l.msgs[:n-1]
		*m = message{token, left}
		return m
	}
	return &message{token, left}
}

func (l *Link) freeMessage(m *message, dropped bool) (token uint64, done bool) {
	if m == nil {
		return 0, false
	}
	if dropped {
		m.token = 0
	}
	if m.left--; m.left > 0 {
		return 0, false
	}
	l.msgs = append(l.msgs, m)
	return m.token, true
}
