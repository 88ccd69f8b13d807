package xdp

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/transport"
	"github.com/mainzdb/mainz/transport/udp"
)

const (
	// The kernel's socket is looked at when there is a reason: a look costs a
	// system call, hundreds of times as much as one at the rings.
	//
	// looksAfterPass is how many looks follow the program's word that it
	// passed on something of ours, which then is on its way through the stack.
	looksAfterPass = 64
	// strayTicks is for how many ticks every turn looks, after a datagram came
	// that way.
	strayTicks = 100

	// resolveEvery is how often everything is asked anew even if nothing was
	// heard, resolveSoon how often at most.
	resolveEvery = time.Second
	resolveSoon  = 20 * time.Millisecond
	// Probes of a peer that has not answered yet, and of one that has.
	probeSoon  = 20 * time.Millisecond
	probeLater = time.Second
	// failedAfter is how many probes through the kernel must have been
	// answered, and none over the path, for the path to be given up.
	failedAfter = 8

	maxJumbo = 9000 // of a datagram that we send over several frames
)

// Conn is an AF_XDP transport with the kernel's beside it.
type Conn struct {
	opts   Options
	kernel *udp.Conn
	routes *routes
	dev    device
	todo   []transport.Kind // ways not tried yet

	kind transport.Kind
	prog *filterProgram // nil: the kernel's way alone
	att  link.Link
	u    *umem

	table       *transport.Table
	peers       []peer
	kernelPeers int // reached through the kernel
	elsewhere   int // of these, not by this interface

	turn      int    // the queue that was looked at last
	looks     int    // to come at the kernel's socket
	strays    int    // ticks to come during which every turn looks there
	passed    uint64 // by the program, when last asked
	open      int    // bytes that Buf gave away, -1: none, -2: ask the kernel's
	openTo    int    // index of a peer
	openFrame uint64 // on top of the free list still
	bounce    []byte // a datagram to be sent over several frames
	txQueued  int    // descriptors not published

	token   uint64
	serial  uint64
	fromXSK bool // the probe being judged came through the rings

	resolveAt time.Duration
	dirty     bool
	dead      error // what a call found out, for Tick
	stats     transport.Stats
	refused   []transport.Refusal
	lastErr   unix.Errno
	sendErr   error
	past      [numCounters]uint64 // of programs that are gone
	pastXDP   unix.XDPStatistics  // of sockets that are gone
	closed    bool
}

// peer is what we know of one, by its index in the table.
type peer struct {
	head     header
	resolved bool
	other    bool // the route leads to another interface, or there is none
	proven   bool
	direct   bool // goes through the rings: resolved and proven
	lastAsk  time.Duration
	asked    uint64 // serial of the last probes, if they went both ways
	heard    bool   // something came through the rings since then
	unproven int    // probes answered through the kernel alone, in a row
}

var _ transport.Transport = (*Conn)(nil)

// Open opens the best way that the mode allows.
func Open(opts Options) (transport.Transport, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	if opts.Mode == UDP {
		k, err := udp.Open(udp.Options{Listen: opts.Listen, Filter: opts.Filter, BufferBytes: opts.BufferBytes})
		if err != nil {
			return nil, err
		}
		opts.Log.Info("transport", "path", k.Path().String(), "listen", k.Listen())
		return k, nil
	}
	c := &Conn{opts: opts, kind: transport.KindUDP, open: -1, token: rand.Uint64(), table: &transport.Table{},
		dirty: true, resolveAt: -resolveEvery}
	c.bounce = make([]byte, txPayload+maxJumbo+head6)
	if err := c.start(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) start() (err error) {
	c.kernel, err = udp.Open(udp.Options{Listen: c.opts.Listen, Filter: c.opts.Filter,
		BufferBytes: c.opts.BufferBytes, OnAnswer: c.answered})
	if err != nil {
		return err
	}
	c.opts.Listen = c.kernel.Listen()
	if c.routes, err = openRoutes(); err != nil {
		return err
	}
	c.dev, err = c.routes.deviceOf(c.opts.Listen.Addr())
	if err == nil && c.dev.driver == "lo" {
		// Sockets can be had there, but routing discards what they send.
		err = fmt.Errorf("lo: AF_XDP is %w there, for routing discards what it sends", transport.ErrNotSupported)
	}
	if err != nil && c.opts.Mode != Auto {
		return fmt.Errorf("transport %s: %w", c.opts.Mode, err)
	}
	if err != nil {
		c.refuse(transport.KindXDPGeneric, err)
	} else {
		c.todo = c.opts.Mode.kinds(c.dev.driver)
	}
	return c.next()
}

// next opens the next way that can be had.
func (c *Conn) next() error {
	for len(c.todo) > 0 {
		kind := c.todo[0]
		c.todo = c.todo[1:]
		err := c.openKind(kind)
		if err == nil {
			c.kind = kind
			break
		}
		c.shut()
		if c.opts.Mode != Auto {
			return fmt.Errorf("transport %s on %s: %w", c.opts.Mode, c.dev.name, err)
		}
		c.refuse(kind, err)
	}
	c.opts.Log.Info("transport", "path", c.Path().String(), "listen", c.opts.Listen)
	return nil
}

func (c *Conn) refuse(kind transport.Kind, err error) {
	c.refused = append(c.refused, transport.Refusal{Kind: kind, Err: err})
	c.opts.Log.Warn("transport: no "+kind.String(), "interface", c.dev.name, slog.Any("reason", err))
}

// openKind attaches the program and opens the sockets, in this order: a driver
// makes its rings anew when a program comes.
func (c *Conn) openKind(kind transport.Kind) (err error) {
	o := socketOptions{ifindex: c.dev.index, queues: min(queuesOf(c.dev), maxQueues),
		zeroCopy: kind == transport.KindXDPZeroCopy}
	o.frame, o.sg = frameFor(c.dev.mtu, o.zeroCopy && largeFrames(ethtoolDriver(c.dev.name)))
	if c.prog, err = loadProgram(c.opts.Listen, c.opts.Filter, o.queues, o.sg); err != nil {
		return err
	}
	if err := c.prog.setMembers(c.table.Peers); err != nil {
		return err
	}
	flags := link.XDPDriverMode
	if kind == transport.KindXDPGeneric {
		flags = link.XDPGenericMode
	}
	c.att, err = link.AttachXDP(link.XDPOptions{Program: c.prog.prog, Interface: c.dev.index, Flags: flags})
	if err != nil {
		return fmt.Errorf("attach program: %w%s", err, c.holder(err))
	}
	if c.u, err = openUMEM(o); err != nil {
		return err
	}
	for _, s := range c.u.sockets {
		if err := c.prog.sockets.Update(uint32(s.queue), uint32(s.fd), ebpf.UpdateAny); err != nil {
			return fmt.Errorf("queue %d: enter the socket into the map: %w", s.queue, err)
		}
	}
	return nil
}

// frameFor is the size of frames for an MTU, and whether a packet may take
// several: a frame has to hold what other nodes may send, with a VLAN tag.
func frameFor(mtu int, large bool) (size uint32, sg bool) {
	need := mtu + ethLen + vlanLen
	if !large && need <= 2048-rxOffset {
		return 2048, false
	}
	return 4096, need > 4096-rxOffset
}

// largeFrames tells whether the driver copies if frames are of less than 4 KiB.
func largeFrames(driver string) bool { return driver == "ena" }

// holder says who is in the way, if it is somebody.
func (c *Conn) holder(err error) string {
	if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
		return ""
	}
	l, lerr := c.routes.h.LinkByIndex(c.dev.index)
	if lerr != nil || l.Attrs().Xdp == nil || !l.Attrs().Xdp.Attached {
		return ""
	}
	return fmt.Sprintf(": program %d is attached there (bpftool prog show id %[1]d)", l.Attrs().Xdp.ProgId)
}

// shut leaves the rings: the program goes first, so that nothing is redirected
// to a socket that is gone.
func (c *Conn) shut() {
	if c.att != nil {
		_ = c.att.Close()
		c.att = nil
	}
	if c.prog != nil {
		n := c.prog.count()
		for i, v := range n {
			c.past[i] += v
		}
		c.prog.close()
		c.prog = nil
	}
	if c.u != nil {
		c.pastXDP = c.xdpSums()
		for _, s := range c.u.sockets {
			c.stats.Drops[transport.DropNoRoom] += uint64(s.rx.available())
		}
		c.unsent(uint64(c.txQueued) + uint64(c.u.out.tx.unseen()))
		c.txQueued = 0
		c.u.close()
		c.u = nil
	}
	c.kind = transport.KindUDP
	for i := range c.peers {
		c.peers[i].proven, c.peers[i].unproven, c.peers[i].lastAsk = false, 0, 0
	}
	c.settle()
}

// settle decides which way each peer goes.
func (c *Conn) settle() {
	c.kernelPeers, c.elsewhere = 0, 0
	for i := range c.peers {
		p := &c.peers[i]
		p.direct = c.u != nil && p.resolved && p.proven
		if !p.direct {
			c.kernelPeers++
		}
		if p.other {
			c.elsewhere++
		}
	}
}

// Poll implements transport.Transport.
func (c *Conn) Poll(max int, f func(p []byte, from transport.PeerID)) int {
	c.open = -1
	if c.u == nil {
		return c.kernel.Poll(max, f)
	}
	if p := c.prog.passed(); p != c.passed {
		c.passed, c.looks = p, looksAfterPass
	}
	// More than max may come all the time. So each queue has its turn to be first,
	// and one of several is left for the kernel's socket.
	n, room, kernel := 0, max, c.looks|c.strays|c.elsewhere != 0
	if kernel && max > 1 {
		room--
	}
	for range c.u.sockets {
		if n >= room {
			break
		}
		if c.turn++; c.turn >= len(c.u.sockets) {
			c.turn = 0
		}
		s := c.u.sockets[c.turn]
		if got := s.rx.available(); got > 0 {
			s.waiting(got)
			n += c.take(s, min(got, room-n), f)
		}
	}
	if kernel && n < max {
		n += c.pollKernel(max-n, f)
	}
	return n
}

// pollKernel looks at the kernel's socket. What makes one datagram come that
// way makes others.
func (c *Conn) pollKernel(max int, f func(p []byte, from transport.PeerID)) int {
	if c.looks > 0 {
		c.looks--
	}
	n := c.kernel.Poll(max, f)
	if n > 0 {
		c.strays = strayTicks
	}
	return n
}

// ahead is how many frames before their turn are asked for: another CPU has written
// them.
const ahead = 4

// take hands over n frames of a queue and gives them back to the kernel.
func (c *Conn) take(s *socket, n int, f func(p []byte, from transport.PeerID)) int {
	found := 0
	for i := range min(n, ahead) {
		c.u.prefetch(s.rx.descs[(s.rx.cons+uint32(i))&s.rx.mask].Addr)
	}
	for i := range n {
		if i+ahead < n {
			c.u.prefetch(s.rx.descs[(s.rx.cons+ahead)&s.rx.mask].Addr)
		}
		d := s.rx.descs[s.rx.cons&s.rx.mask]
		s.rx.cons++
		// The kernel is to be trusted, and yet a wild index is not worth it.
		if d.Addr >= uint64(len(c.u.mem)) || uint64(d.Len) > uint64(len(c.u.mem))-d.Addr {
			panic(fmt.Sprintf("xdp: descriptor %#x+%d is outside %d bytes of frames", d.Addr, d.Len, len(c.u.mem)))
		}
		b := c.u.mem[d.Addr : d.Addr+uint64(d.Len)]
		if more := d.Options&unix.XDP_PKT_CONTD != 0; more || s.more {
			if b = s.gather(b, more); b == nil && !more {
				c.stats.Drops[transport.DropTooBig]++
			}
		}
		if b != nil {
			found += c.judge(b, f)
		}
		s.giveBack(c.u.base(d.Addr))
	}
	s.rx.consumed()
	s.fill.publish()
	c.wake(s)
	return found
}

// wake wakes the driver of a queue, if it sleeps for want of frames.
func (c *Conn) wake(s *socket) {
	if s.fill.needsWakeup() {
		c.stats.RxCalls++
		wake(s.fd)
	}
}

func (c *Conn) judge(b []byte, f func(p []byte, from transport.PeerID)) int {
	p, from, ok := parseFrame(b)
	if !ok {
		c.stats.Drops[transport.DropMalformed]++
		return 0
	}
	ix := c.table.Find(from)
	if ix < 0 {
		c.stats.Drops[transport.DropStranger]++
		return 0
	}
	c.peers[ix].heard = true
	if len(p) == transport.ProbeLen {
		if probe, ok := transport.ParseProbe(p); ok {
			c.fromXSK = true
			c.kernel.Probed(probe, ix)
			c.fromXSK = false
			return 0
		}
	}
	c.kernel.Heard(ix)
	if why, ok := c.opts.Filter.Passes(p); !ok {
		c.stats.Drops[why]++
		return 0
	}
	c.stats.RxPackets++
	c.stats.RxBytes += uint64(len(p))
	f(p, c.table.Peers[ix].ID)
	return 1
}

// Buf implements transport.Transport.
func (c *Conn) Buf(to transport.PeerID, n int) []byte {
	c.open = -1
	ix := c.table.Index(to)
	if ix < 0 {
		return nil
	}
	if !c.peers[ix].direct {
		c.open = -2
		return c.kernel.Buf(to, n)
	}
	if n > c.directMTU(to) {
		return nil
	}
	frames := 1
	if !c.u.inPlace(n) {
		frames = (c.peers[ix].head.n + n + int(c.u.frame) - 1) / int(c.u.frame)
	}
	if len(c.u.free) < frames {
		c.u.reap()
		if len(c.u.free) < frames {
			return nil
		}
	}
	c.open, c.openTo = n, ix
	if !c.u.inPlace(n) {
		return c.bounce[txPayload : txPayload+n : txPayload+n]
	}
	at := c.u.free[len(c.u.free)-1] + txPayload
	c.openFrame = at
	return c.u.mem[at : at+uint64(n) : at+uint64(n)]
}

// Commit implements transport.Transport.
func (c *Conn) Commit(n int) {
	if c.open == -2 {
		c.kernel.Commit(n)
		return
	}
	if n < 0 || n > c.open {
		panic(fmt.Sprintf("xdp: commit of %d bytes, Buf gave %d", n, c.open))
	}
	h := &c.peers[c.openTo].head
	size := uint64(h.n + n)
	if !c.u.inPlace(c.open) {
		c.scatter(h, n)
	} else {
		at := c.openFrame - uint64(h.n)
		h.put(c.u.mem[at : at+size])
		c.u.free = c.u.free[:len(c.u.free)-1]
		c.push(unix.XDPDesc{Addr: at, Len: uint32(size)})
	}
	c.open = -1
	c.stats.TxPackets++
	c.stats.TxBytes += uint64(n)
}

// push queues one descriptor. There is room: the ring has as many entries as
// there are frames to send.
//
// Preconditions: it is not empty and lies in one frame.
func (c *Conn) push(d unix.XDPDesc) {
	if d.Len == 0 || c.u.base(d.Addr) != c.u.base(d.Addr+uint64(d.Len)-1) {
		panic(fmt.Sprintf("xdp: to send %#x+%d, which is not within one frame of %d bytes", d.Addr, d.Len, c.u.frame))
	}
	tx := &c.u.out.tx
	tx.descs[tx.prod&tx.mask] = d
	tx.prod++
	c.txQueued++
}

// scatter queues the datagram in bounce over several frames.
func (c *Conn) scatter(h *header, n int) {
	b := c.bounce[txPayload-h.n : txPayload+n]
	h.put(b)
	for len(b) > 0 {
		at := c.u.free[len(c.u.free)-1]
		c.u.free = c.u.free[:len(c.u.free)-1]
		k := copy(c.u.mem[at:at+uint64(c.u.frame)], b)
		b = b[k:]
		d := unix.XDPDesc{Addr: at, Len: uint32(k)}
		if len(b) > 0 {
			d.Options = unix.XDP_PKT_CONTD
		}
		c.push(d)
	}
}

// Flush implements transport.Transport.
func (c *Conn) Flush() error {
	c.open = -1
	var err error
	if c.u != nil && (c.txQueued > 0 || len(c.u.free) < txFrames) {
		err = c.flush()
	}
	if c.kernel.Queued() > 0 {
		err = errors.Join(err, c.kernel.Flush())
	}
	return err
}

// flush publishes the queue and kicks the kernel until it has taken all of it.
// In copy mode before Linux 6.17 one call takes some 32 descriptors and then
// wants to be called again.
func (c *Conn) flush() (err error) {
	s := c.u.out
	if c.txQueued > 0 {
		s.tx.publish()
		c.txQueued = 0
	}
	for range txSize {
		if s.tx.unseen() == 0 || !s.tx.needsWakeup() {
			break
		}
		c.stats.TxCalls++
		errno := kick(s.fd)
		c.u.reap()
		if c.u.zeroCopy && errno == 0 {
			break // the driver sends when it gets to it; the next Flush looks again
		}
		switch errno {
		case 0, unix.EINTR:
		case unix.EAGAIN:
		case unix.EBUSY:
			// One was dropped: the receiver's queue is full.
			c.unsent(1)
		case unix.ENOBUFS:
			return nil // no memory right now; the queue stays
		default:
			// The queue stays and goes out when the link comes back; ENXIO
			// says that it never will.
			if errno == unix.ENXIO {
				c.dead = unix.ENXIO
			}
			c.dirty = true
			return c.failed(errno)
		}
	}
	c.u.reap()
	return err
}

// unsent counts datagrams that were committed and will not go out.
func (c *Conn) unsent(n uint64) {
	c.stats.Drops[transport.DropUnsent] += n
	c.stats.TxPackets -= min(n, c.stats.TxPackets) // a probe may be among them
}

func (c *Conn) failed(errno unix.Errno) error {
	if errno != c.lastErr {
		c.lastErr = errno
		c.sendErr = fmt.Errorf("send by %s on %s: %w", c.kind, c.dev.name, errno)
	}
	return c.sendErr
}

// SetPeers implements transport.Transport.
func (c *Conn) SetPeers(peers []transport.Peer) error {
	c.open = -1
	_ = c.Flush()
	table, err := transport.NewTable(peers, c.opts.Listen.Addr().Is6())
	if err != nil {
		return err
	}
	if c.prog != nil {
		if err := c.prog.setMembers(table.Peers); err != nil {
			return errors.Join(err, c.prog.setMembers(c.table.Peers))
		}
	}
	// It wants of peers what the table did, and takes these.
	if err := c.kernel.SetPeers(peers); err != nil {
		return err
	}
	old, was := c.peers, c.table
	c.table, c.peers = table, make([]peer, len(peers))
	for i, p := range table.Peers {
		// Who stays, stays proven.
		if j := was.Find(transport.SourceOf(p.Addr)); j >= 0 {
			c.peers[i] = old[j]
		}
	}
	c.resolve()
	return nil
}

// resolve asks the kernel for the way to each peer.
func (c *Conn) resolve() {
	if c.u == nil {
		c.settle()
		return
	}
	known, err := c.routes.neighbours(c.dev)
	us := c.opts.Listen.Addr()
	for i := range c.peers {
		p, addr := &c.peers[i], c.table.Peers[i].Addr
		p.resolved = false
		if err != nil || !c.dev.up {
			continue
		}
		var mac [6]byte
		mac, p.resolved, p.other = c.routes.nextHop(c.dev, us, addr.Addr(), known)
		if !p.resolved {
			continue
		}
		if p.head.n == 0 || p.head.last.dst != mac || p.head.last.src != c.dev.mac {
			p.head = makeHeader(c.dev.mac, mac, c.opts.Listen, addr)
		}
	}
	c.settle()
}

// MTU implements transport.Transport. It is the same on both ways, so that it
// does not jump when a peer changes over.
func (c *Conn) MTU(to transport.PeerID) int {
	if c.u == nil {
		return c.kernel.MTU(to)
	}
	return c.directMTU(to)
}

func (c *Conn) directMTU(to transport.PeerID) int {
	n := c.kernel.MTU(to)
	if c.u.sg {
		return min(n, maxJumbo)
	}
	return min(n, c.u.capacity()-head6)
}

// Fds implements transport.Transport. The next Poll looks at the kernel's
// socket: the caller may have slept, and that may have woken it.
func (c *Conn) Fds() []int {
	c.looks = max(c.looks, 1)
	fds := c.kernel.Fds()
	if c.u != nil {
		for _, s := range c.u.sockets {
			fds = append(fds, s.fd)
		}
	}
	return fds
}

// Path implements transport.Transport.
func (c *Conn) Path() transport.Path {
	p := transport.Path{Kind: c.kind, Interface: c.dev.name, Refused: c.refused}
	if c.u != nil {
		p.Queues = len(c.u.sockets)
	}
	p.Proven = c.u == nil
	for i := range c.peers {
		p.Proven = p.Proven || c.peers[i].proven
	}
	return p
}

// Stats implements transport.Transport.
func (c *Conn) Stats() transport.Stats {
	s := c.stats
	k := c.kernel.Stats()
	s.RxKernel, s.TxKernel = k.RxPackets, k.TxPackets
	s.RxPackets += k.RxPackets
	s.RxBytes += k.RxBytes
	s.TxPackets += k.TxPackets
	s.TxBytes += k.TxBytes
	s.RxCalls += k.RxCalls
	s.TxCalls += k.TxCalls
	s.ProbesSent += k.ProbesSent
	s.ProbesReceived += k.ProbesReceived
	for i := range s.Drops {
		s.Drops[i] += k.Drops[i]
	}
	n := c.past
	if c.prog != nil {
		for i, v := range c.prog.count() {
			n[i] += v
		}
	}
	s.Drops[transport.DropStranger] += n[cntStranger]
	s.Drops[transport.DropMalformed] += n[cntMalformed]
	s.Drops[transport.DropForeign] += n[cntForeign]
	s.Drops[transport.DropNoSocket] += n[cntNoSocket]
	x := c.xdpSums()
	// Rx_dropped are packets that found no frame, which the fill ring counts
	// as well, and those that were too large. A full RX ring is in neither.
	s.Drops[transport.DropNoRoom] += x.Rx_ring_full + x.Rx_fill_ring_empty_descs
	s.Drops[transport.DropTooBig] += x.Rx_dropped - min(x.Rx_dropped, x.Rx_fill_ring_empty_descs)
	s.Drops[transport.DropUnsent] += x.Tx_invalid_descs
	return s
}

// xdpSums are the kernel's counters of all sockets, and of those that are gone.
func (c *Conn) xdpSums() unix.XDPStatistics {
	sum := c.pastXDP
	if c.u == nil {
		return sum
	}
	for _, s := range c.u.sockets {
		x, err := xdpStatistics(s.fd)
		if err != nil {
			continue
		}
		sum.Rx_dropped += x.Rx_dropped
		sum.Rx_ring_full += x.Rx_ring_full
		sum.Rx_fill_ring_empty_descs += x.Rx_fill_ring_empty_descs
		sum.Tx_invalid_descs += x.Tx_invalid_descs
	}
	return sum
}

// Tick implements transport.Transport.
func (c *Conn) Tick(now time.Duration) error {
	c.open = -1
	if err := c.kernel.Tick(now); err != nil || c.u == nil {
		return err
	}
	if c.routes.changed() {
		c.dirty = true
	}
	// Fragments, and what came by another interface, nobody announces.
	c.looks = max(c.looks, 1)
	if c.strays > 0 {
		c.strays--
	}
	if since := now - c.resolveAt; c.dirty && since >= resolveSoon || since >= resolveEvery {
		c.dirty, c.resolveAt = false, now
		for _, s := range c.u.sockets {
			s.calm(c.u.least())
		}
		if err := c.lookAtDevice(); err != nil {
			return err
		}
		c.resolve()
	}
	if c.u == nil {
		return nil
	}
	for _, s := range c.u.sockets {
		// It may have gone to sleep after Poll looked, and then nothing comes.
		c.wake(s)
	}
	for i := range c.peers {
		c.ask(i, now)
	}
	return c.verdict()
}

// lookAtDevice finds out whether the interface still is what the rings were
// opened on.
func (c *Conn) lookAtDevice() error {
	d, err := c.routes.device(c.dev.index)
	switch {
	case err != nil && (gone(err) || c.dead != nil):
		return c.leave(fmt.Errorf("%w: %s", transport.ErrInterfaceGone, c.dev.name), nil)
	case err != nil:
		return nil // a passing trouble of netlink: asked again in a second
	case c.dead != nil:
		c.dead = nil
		return c.leave(fmt.Errorf("%w: %s was taken away and came back", transport.ErrInterfaceGone, c.dev.name), nil)
	}
	if need := d.mtu + ethLen + vlanLen; !c.u.sg && need > c.u.capacity() {
		// The same way again, with larger frames.
		c.opts.Log.Info("transport: MTU has grown beyond the frames", "interface", d.name, "mtu", d.mtu, "frame",
			c.u.frame)
		c.todo = append([]transport.Kind{c.kind}, c.todo...)
		c.dev = d
		c.shut()
		return c.next()
	}
	c.dev = d
	return nil
}

// ask probes one peer if that is due.
func (c *Conn) ask(i int, now time.Duration) {
	p := &c.peers[i]
	every := probeSoon
	if p.proven || p.unproven >= failedAfter {
		every = probeLater
	}
	if p.lastAsk != 0 && now-p.lastAsk < every {
		return
	}
	p.lastAsk = max(now, 1)
	c.serial++
	p.asked = 0
	if p.resolved && c.dev.up {
		p.asked = c.serial
		c.sendProbe(i, transport.Probe{Kind: transport.ProbePath, Token: c.token, Serial: c.serial})
	}
	// This one makes the kernel resolve the address, too, and keep it so.
	c.kernel.SendProbe(transport.Probe{Kind: transport.ProbeKernel, Token: c.token, Serial: c.serial}, i)
}

// sendProbe sends through the rings, proven or not.
func (c *Conn) sendProbe(i int, p transport.Probe) {
	c.u.reap()
	if len(c.u.free) == 0 {
		return
	}
	h := &c.peers[i].head
	at := c.u.free[len(c.u.free)-1] + txPayload
	p.Append(c.u.mem[at : at : at+transport.ProbeLen])
	at -= uint64(h.n)
	h.put(c.u.mem[at : at+uint64(h.n)+transport.ProbeLen])
	c.u.free = c.u.free[:len(c.u.free)-1]
	c.push(unix.XDPDesc{Addr: at, Len: uint32(h.n) + transport.ProbeLen})
	c.stats.ProbesSent++
	_ = c.flush()
}

// answered gets every probe that a peer sent, by either way.
func (c *Conn) answered(p transport.Probe, from int) {
	if p.Token != c.token || from >= len(c.peers) {
		return
	}
	q := &c.peers[from]
	if p.Kernel() {
		if p.Serial != q.asked {
			return
		}
		q.asked = 0
		// Questions and answers over the path get lost where somebody does not
		// keep up. It carries all the same if both hear each other over it.
		if q.direct && q.heard && p.Heard {
			q.unproven = 0
		} else {
			q.unproven++
		}
		q.heard = false
		return
	}
	if !c.fromXSK {
		return // it came to a queue that has no socket
	}
	q.unproven = 0
	if !q.proven {
		q.proven = true
		c.settle()
		c.opts.Log.Debug("transport: path proven", "peer", c.table.Peers[from].ID, "kind", c.kind.String())
	}
}

// verdict leaves the path if peers live, but none of them is reached over it.
func (c *Conn) verdict() error {
	works, fails := 0, 0
	for i := range c.peers {
		p := &c.peers[i]
		switch {
		case p.unproven >= failedAfter:
			fails++
			if p.proven {
				p.proven = false
				c.settle()
			}
		case p.proven:
			works++
		}
	}
	if works > 0 || fails == 0 {
		return nil
	}
	return c.leave(fmt.Errorf("%w: peers answer through the kernel, and none of %d over it", transport.ErrPathFailed,
		fails), c.todo)
}

// leave gives the path up for the next of todo, or for the kernel's.
func (c *Conn) leave(why error, todo []transport.Kind) error {
	if c.opts.Mode != Auto {
		return fmt.Errorf("transport %s on %s: %w", c.opts.Mode, c.dev.name, why)
	}
	kind := c.kind
	c.shut()
	c.refuse(kind, why)
	c.todo = todo
	return c.next()
}

// Listen is the address and port in force.
func (c *Conn) Listen() netip.AddrPort { return c.opts.Listen }

// Close implements transport.Transport.
func (c *Conn) Close() error {
	if c.closed {
		return nil
	}
	c.closed = true
	c.shut()
	c.routes.close()
	if c.kernel == nil {
		return nil
	}
	return c.kernel.Close()
}
