package link

import (
	"errors"
	"fmt"
	"slices"

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

// Handler is who uses the link: the core of the node. It is called from within
// Receive and Retry and must not call the link back.
type Handler interface {
	// Step handles one whole packet.
	Step(now Instant, from wire.PNN, ch Channel, epoch wire.Epoch, dbid uint32, packet []byte) Verdict
	// Acked: the peer has handled the message sent with this token.
	Acked(now Instant, token uint64)
	// Refused: the peer will never handle the message sent with this token.
	Refused(now Instant, token uint64)
	Peer(now Instant, pnn wire.PNN, ev PeerEvent)
}

// Sealer encrypts and authenticates datagrams with an AEAD. The key comes from the
// cluster's secret, the direction (h.Src, h.Dst) and the incarnations: of both sides
// on the channels, of the sender alone for PING, PONG and what else goes outside
// them, as the other side may not know it yet. So a key has one user, and as the
// nonce is h.Packet, of which an incarnation uses each but once for one content, no
// pair of key and nonce ever meets two plaintexts. The encoded header is the
// additional data. Neither method may keep its arguments.
type Sealer interface {
	// Overhead is how much longer the sealed payload is. Constant.
	Overhead() int
	// Seal appends the sealed payload to header, behind which plain lies already:
	// it is sealed in place.
	Seal(h *wire.Header, header, plain []byte) []byte
	// Open appends the payload to dst; false: nobody with the key has sealed this.
	Open(dst []byte, h *wire.Header, header, sealed []byte) ([]byte, bool)
}

// Config of a link. Zero values take the defaults given.
type Config struct {
	Self        wire.PNN
	Nodes       int    // PNNs 0..Nodes-1 are configured
	Incarnation uint64 // random, not 0, new at every start
	Cluster     uint32
	Sealer      Sealer  // nil: CRC-32C
	MTU         int     // bytes of a datagram, 1,400
	RetryMin    Instant // first repeat, at least: 2 ms
	RetryMax    Instant // 50 ms
	AckDelay    Instant // a pure ack waits for company this long: 200 µs
	AckEvery    int     // but not for more than so many datagrams: 8
	MaxQueue    int     // frames waiting per peer and channel: 1<<22
	MaxHeld     int     // 64
	Window      int     // frames on their way to a peer on one channel: 65, which is the most
	Plant       string  // turns one rule off, by name, for the simulator alone; see Plants
}

// Window is how many frames of a channel may be on their way to a peer: what one
// ack can name (Ack+1 and 64 bits).
const Window = 65

// MaxMessage is the longest packet, in bytes: the longest that wire encodes.
const MaxMessage = 3*wire.MaxData + wire.MaxKey + 1024

// minMTU is what Config is held to.
const minMTU = wire.HeaderSize + wire.FragSize + 96

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
	defInt(&c.MaxQueue, 1<<22)
	defInt(&c.MaxHeld, 64)
	defInt(&c.Window, Window)
	switch {
	case c.Nodes < 1 || c.Nodes > wire.MaxNodes || int(c.Self) >= c.Nodes:
		return fmt.Errorf("link: node %d of %d: the nodes file holds 1 to %d lines", c.Self, c.Nodes, wire.MaxNodes)
	case c.Window < 1 || c.Window > Window:
		return fmt.Errorf("link: a window of %d frames: 1 to %d", c.Window, Window)
	case c.Incarnation == 0:
		return errors.New("link: incarnation 0: draw a random one at each start")
	case c.MTU < minMTU || c.MTU > 1<<16:
		return fmt.Errorf("link: datagrams of %d bytes: %d to %d", c.MTU, minMTU, 1<<16)
	case c.Sealer != nil && (c.Sealer.Overhead() < 0 || c.Sealer.Overhead() > 64):
		return fmt.Errorf("link: a seal of %d bytes: at most 64", c.Sealer.Overhead())
	}
	return nil
}

// Counters of a link, since its start.
type Counters struct {
	Sent       uint64 // datagrams, without repeats
	Repeated   uint64
	Waited     uint64 // frames that found no room in the window
	Unheld     uint64 // datagrams that came too early and found no room to wait for Retry
	Acks       uint64 // pure ones and refusals
	Received   uint64 // datagrams of a peer, in its incarnation and ours
	Duplicates uint64
	Dropped    uint64 // all that follow
	Malformed  uint64 // no envelope of ours, or fragments that do not fit together
	Foreign    uint64 // another cluster's
	BadSum     uint64
	Unsealed   uint64 // unsealed on a sealed cluster, or the reverse
	Forged     uint64 // could not be opened
	Stranger   uint64 // of or for a node that is not configured, or not us
	Beyond     uint64 // outside the window
	// Stale ones are of another incarnation than the peer's present one, or for
	// another than ours.
	Stale      uint64
	Challenges uint64
}

// Datagram is what is to be sent; Bytes is valid until the next call of Take.
type Datagram struct {
	To    wire.PNN
	Bytes []byte
}

// Link is all peers of one node.
type Link struct {
	cfg    Config
	plant  plant
	epoch  wire.Epoch // of DATA
	ballot wire.Epoch // of CONTROL, the highest sent or cancelled below
	packet uint64
	peers  [wire.MaxNodes]peer
	out    []outgoing
	buf    []byte
	prev   []byte
	dgrams []Datagram
	held   [][]byte
	// retried is the memory of what was held before; spare has buffers.
	retried [][]byte
	spare   [][]byte
	pool    []*frame
	msgs    []*message
	parts   []*part
	plain   []byte      // what was opened last
	rx, tx  wire.Header // of the datagram in hand; local ones would escape to the Sealer
	tail    int         // bytes behind the payload: sum or seal
	msgID   uint32
	count   Counters
}

type outgoing struct {
	to        wire.PNN
	from, end int
}

// peer is what one link knows about one other node, for one incarnation.
type peer struct {
	inc       uint64 // 0: never heard
	asked     uint64 // incarnation that was challenged last, by which packet, and when
	askNum    uint64
	askAt     Instant
	dead      [16]uint64 // displaced by living ones
	displaced int
	srtt      Instant
	ch        [2]channel
	// Datagrams outside the channels: each is handed in once at most.
	said    uint64 // sequence of our last one
	beacon  uint64 // the highest sequence that has come
	beacons uint64 // bit i: beacon-i has come
	partial *part  // the one that is being put together
}

// channel is one direction each of sending and receiving.
type channel struct {
	// sending
	next    uint64
	flight  []*frame // handed out and not acknowledged, in order of seq
	waiting queue
	acked   uint64 // all of 1..acked are acknowledged
	// receiving
	epoch  wire.Epoch // DATA: the epoch of base and bits
	base   uint64     // all of 1..base were handled
	bits   uint64     // bit i: base+2+i was handled
	ackAt  Instant    // 0: nothing to acknowledge
	ackNum int
	parts  []*part // fewer than Window: each lacks a sequence inside the window
}

// queue is a first-in, first-out of frames in one slice, without a copy for each
// that leaves: a recovery queues tens of thousands.
type queue struct {
	all  []*frame
	head int
}

func (q *queue) push(f *frame)    { q.all = append(q.all, f) }
func (q *queue) frames() []*frame { return q.all[q.head:] }
func (q *queue) len() int         { return len(q.all) - q.head }

// take n frames off the front.
func (q *queue) take(n int) {
	q.head += n
	if q.head > len(q.all)/2 {
		q.all = append(q.all[:0], q.all[q.head:]...)
		q.head = 0
	}
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

// New makes a link; nothing goes out before the caller sends.
func New(cfg Config) (*Link, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	l := &Link{cfg: cfg, plant: plantByName(cfg.Plant), tail: wire.SumSize}
	if cfg.Sealer != nil {
		l.tail = cfg.Sealer.Overhead()
	}
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

// Backlog is how many frames wait for room in p's windows. It is bounded by what
// the core has pending in the whole cluster, and in a recovery by the records of a
// node; Send panics beyond Config.MaxQueue, which says that this does not hold.
func (l *Link) Backlog(p wire.PNN) int {
	return l.peers[p].ch[Data].waiting.len() + l.peers[p].ch[Control].waiting.len()
}

// Unacked is when the oldest message of DATA that p has not acknowledged first went
// out; 0: there is none.
func (l *Link) Unacked(p wire.PNN) Instant {
	if f := l.peers[p].ch[Data].flight; len(f) > 0 {
		return f[0].first
	}
	return 0
}

// Send queues a packet on a reliable channel; it is copied. A token that is not 0
// comes back by Acked or Refused; not if the epoch (DATA), the ballot (CONTROL)
// or the peer's incarnation ends first.
// Preconditions: to is another configured node; the packet is not empty and not
// longer than MaxMessage.
func (l *Link) Send(now Instant, to wire.PNN, ch Channel, epoch wire.Epoch, dbid uint32, packet []byte, token uint64) {
	if to == l.cfg.Self || int(to) >= l.cfg.Nodes {
		panic(fmt.Sprintf("link: send to node %d of %d by node %d", to, l.cfg.Nodes, l.cfg.Self))
	}
	if len(packet) == 0 || len(packet) > MaxMessage {
		panic(fmt.Sprintf("link: a packet of %d bytes: 1 to %d", len(packet), MaxMessage))
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
	if c.waiting.len() >= l.cfg.MaxQueue {
		panic(fmt.Sprintf("link: %d frames wait for node %d", c.waiting.len(), to))
	}
	room, pieces := l.split(len(packet))
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
		c.waiting.push(f)
	}
	l.pump(now, to, ch)
	if n := c.waiting.len(); n > 0 {
		l.count.Waited += uint64(min(n, pieces))
	}
}

// split tells how many bytes of a packet go in each of how many datagrams; more
// than one are fragments, under a message id of their own.
func (l *Link) split(n int) (room, pieces int) {
	room = l.cfg.MTU - wire.HeaderSize - l.tail
	if n <= room {
		return room, 1
	}
	room -= wire.FragSize
	pieces = (n + room - 1) / room
	if pieces > 1<<16-1 {
		panic(fmt.Sprintf("link: %d bytes do not fit in 65,535 fragments of %d", n, room))
	}
	l.msgID++
	return room, pieces
}

// grow makes b n bytes long, whatever they are.
func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n, n+512)
	}
	return b[:n]
}

// beacon sends a packet once. A lost fragment loses it.
func (l *Link) beacon(to wire.PNN, epoch wire.Epoch, packet []byte) {
	h := wire.Header{Flags: wire.FlagPong, Epoch: epoch}
	if packet[0] == byte(wire.Ping) {
		h.Flags = wire.FlagPing
	}
	room, pieces := l.split(len(packet))
	if pieces > 1 {
		h.Flags |= wire.FlagFrag
		h.MsgID, h.Count = l.msgID, uint16(pieces)
	}
	for i := range pieces {
		l.peers[to].said++
		h.Index, h.Seq = uint16(i), l.peers[to].said
		l.emit(to, h, packet[i*room:min(len(packet), (i+1)*room)])
	}
}

// emit writes a new datagram with a packet number of its own, to the peer's
// present incarnation unless h names another.
func (l *Link) emit(to wire.PNN, h wire.Header, payload []byte) {
	if h.DstInc == 0 {
		h.DstInc = l.peers[to].inc
	}
	from := len(l.buf)
	l.buf = append(l.begin(l.buf, to, h), payload...)
	l.buf = slices.Grow(l.buf, l.tail) // so that finish does not move it
	l.buf = l.buf[:from+len(l.finish(l.buf[from:]))]
	l.out = append(l.out, outgoing{to, from, len(l.buf)})
	l.count.Sent++
}

// begin a datagram behind b, under the next packet number.
func (l *Link) begin(b []byte, to wire.PNN, h wire.Header) []byte {
	l.packet++
	h.Cluster, h.Src, h.Dst, h.SrcInc, h.Packet = l.cfg.Cluster, l.cfg.Self, to, l.cfg.Incarnation, l.packet
	if l.cfg.Sealer != nil {
		h.Flags |= wire.FlagSealed
	}
	l.tx = h
	return wire.AppendHeader(b, &l.tx)
}

// finish ends the datagram that was begun, of header and payload, with its sum, or
// seals it.
func (l *Link) finish(b []byte) []byte {
	if l.cfg.Sealer == nil {
		return wire.AppendSum(b)
	}
	at := wire.HeaderSize
	if l.tx.Flags&wire.FlagFrag != 0 {
		at += wire.FragSize
	}
	n := len(b) + l.tail
	if b = l.cfg.Sealer.Seal(&l.tx, b[:at], b[at:]); len(b) != n {
		panic(fmt.Sprintf("link: sealed %d bytes, not the %d that were promised", len(b), n))
	}
	return b
}

// pump moves waiting frames into the window, as far as it goes.
func (l *Link) pump(now Instant, to wire.PNN, ch Channel) {
	p := &l.peers[to]
	c := &p.ch[ch]
	if p.inc == 0 {
		return // nobody there yet to address
	}
	n := 0
	for _, f := range c.waiting.frames() {
		if f.seq > c.acked+uint64(l.cfg.Window) {
			break
		}
		l.transmit(now, to, ch, f)
		c.flight = append(c.flight, f)
		n++
	}
	c.waiting.take(n)
}

// transmit sends a frame the first time, with the acks of the moment.
func (l *Link) transmit(now Instant, to wire.PNN, ch Channel, f *frame) {
	p := &l.peers[to]
	c := &p.ch[ch]
	h := wire.Header{Flags: f.flags, DstInc: p.inc, Epoch: f.epoch, Seq: f.seq, DBID: f.dbid, MsgID: f.msgID, Index: f.index, Count: f.pieces}
	if ch == Control || c.epoch == f.epoch {
		h.Ack, h.AckBits = c.base, c.bits
		c.ackAt, c.ackNum = 0, 0
	}
	l.begin(f.buf[:0], to, h)
	f.buf = l.finish(f.buf)
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
	l.emit(to, h, nil)
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
		if l.plant == plantDropCancelled && len(c.flight) > 0 && c.flight[0].epoch < ballot {
			c.flight = c.flight[1:]
		}
		for _, fs := range [2][]*frame{c.flight, c.waiting.frames()} {
			for _, f := range fs {
				if f.epoch >= ballot || f.null {
					continue
				}
				l.freeMessage(f.msg, true)
				f.msg, f.null, f.flags, f.dbid = nil, true, wire.FlagControl, 0
				f.buf = f.buf[:wire.HeaderSize]
				if f.tries > 0 && l.plant != plantNullLost {
					l.transmit(now, wire.PNN(i), Control, f)
				}
			}
		}
	}
}

func (l *Link) dropSending(c *channel) {
	for _, fs := range [2][]*frame{c.flight, c.waiting.frames()} {
		for _, f := range fs {
			l.freeFrame(f, true)
		}
	}
	c.flight, c.next, c.acked = c.flight[:0], 1, 0
	c.waiting.take(c.waiting.len())
}

func (l *Link) resetReceiving(c *channel, epoch wire.Epoch) {
	c.epoch, c.base, c.bits, c.ackAt, c.ackNum = epoch, 0, 0, 0, 0
	l.parts = append(l.parts, c.parts...)
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
