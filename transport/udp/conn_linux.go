package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/transport"
)

const (
	rxSlots    = 32
	txSlots    = 128
	arenaBytes = 2 << 20 // twenty of the largest; pages never used are never touched
	maxPayload = 65507   // what fits an IPv4 datagram

	// singleLooks is how many looks in a row must have found one datagram
	// before the next one asks for several.
	singleLooks = 2
	// otherEvery is how many looks at the connected socket there are for one
	// at the other, where only strangers' datagrams come.
	otherEvery = 64

	mtuEvery = time.Second

	// maxWaiting bounds what is counted of a socket that is closed: more than
	// a buffer of the default size holds of the smallest datagrams.
	maxWaiting = 1 << 14
)

// Conn is a kernel UDP transport.
type Conn struct {
	opts  Options
	v6    bool
	fd    int // bound
	one   int // connected to the only peer, -1 if there is not exactly one
	table *transport.Table
	peers []peer
	rx    receiver
	tx    sender

	hits  int // looks in a row that found something
	turn  uint
	stats transport.Stats
	path  transport.Path

	mtuAt   time.Duration
	lastErr unix.Errno // for which sendErr was made
	sendErr error
	closed  bool
}

type peer struct {
	name  sockaddr
	addr  netip.AddrPort
	mtu   int  // of datagrams
	heard bool // since its last probe of kind kernel
}

var _ transport.Transport = (*Conn)(nil)

// Open binds the socket.
func Open(opts Options) (*Conn, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	c := &Conn{opts: opts, v6: opts.Listen.Addr().Is6(), fd: -1, one: -1, table: &transport.Table{}}
	c.path = transport.Path{Kind: transport.KindUDP, Proven: true}
	fd, err := c.socket()
	if err != nil {
		return nil, fmt.Errorf("open udp %v: %w", opts.Listen, err)
	}
	c.fd = fd
	if err := unix.Bind(fd, c.local()); err != nil {
		c.Close()
		return nil, fmt.Errorf("bind %v: %w", opts.Listen, err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("name of the socket: %w", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		c.opts.Listen = netip.AddrPortFrom(c.opts.Listen.Addr(), uint16(sa.Port))
	case *unix.SockaddrInet6:
		c.opts.Listen = netip.AddrPortFrom(c.opts.Listen.Addr(), uint16(sa.Port))
	}
	c.rx.init()
	c.tx.init()
	return c, nil
}

// socket makes a socket with all options, not bound.
func (c *Conn) socket() (int, error) {
	family := unix.AF_INET
	if c.v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if c.v6 {
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO))
	} else {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		// Without CAP_NET_ADMIN the size is cut to what the system allows,
		// which is good enough to go on with.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], c.opts.BufferBytes) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], c.opts.BufferBytes)
		}
	}
	return fd, nil
}

func (c *Conn) local() unix.Sockaddr { return unixAddr(c.opts.Listen) }

func unixAddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() || a.Addr().Is4In6() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zone(a.Addr().Zone())}
}

// zone is the number of an interface; 0 if there is none, and then the kernel
// will tell.
func zone(name string) uint32 {
	if name == "" {
		return 0
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return uint32(i.Index)
}

// Listen is the address and port in force.
func (c *Conn) Listen() netip.AddrPort { return c.opts.Listen }

// Poll implements transport.Transport.
func (c *Conn) Poll(max int, f func(p []byte, from transport.PeerID)) int {
	c.tx.open = -1
	if c.one < 0 {
		return c.look(c.fd, max, f)
	}
	n := c.look(c.one, max, f)
	if c.turn++; c.turn%otherEvery == 0 && n < max {
		n += c.look(c.fd, max-n, f)
	}
	return n
}

func (c *Conn) look(fd, max int, f func(p []byte, from transport.PeerID)) int {
	if max <= 0 {
		return 0
	}
	want := 1
	if c.hits >= singleLooks {
		want = min(max, rxSlots)
	}
	c.stats.RxCalls++
	got, errno := c.rx.receive(fd, want)
	if got == 0 {
		c.hits = 0
		if errno != unix.EAGAIN && errno != unix.EINTR {
			// An ICMP error that was waiting on the connected socket: the
			// peer's port is not open yet, or the like. The link will see.
			return 0
		}
		return 0
	}
	if want == 1 || got > 1 {
		c.hits++
	} else {
		c.hits = 0
	}
	found := 0
	for i := range got {
		found += c.take(i, f)
	}
	return found
}

// take judges datagram i of the last look.
func (c *Conn) take(i int, f func(p []byte, from transport.PeerID)) int {
	p, from := c.rx.datagram(i)
	ix := c.table.Find(from)
	if ix < 0 {
		c.stats.Drops[transport.DropStranger]++
		return 0
	}
	if len(p) == transport.ProbeLen {
		if probe, ok := transport.ParseProbe(p); ok {
			c.Probed(probe, ix)
			return 0
		}
	}
	c.Heard(ix)
	if why, ok := c.opts.Filter.Passes(p); !ok {
		c.stats.Drops[why]++
		return 0
	}
	c.stats.RxPackets++
	c.stats.RxBytes += uint64(len(p))
	f(p, c.table.Peers[ix].ID)
	return 1
}

// Probed deals with a probe from the peer with index from: a question is
// answered at once, past the queue, and an answer is for OnAnswer. A question
// of our own that a plain echo server sent back is an answer too, which only
// OnAnswer can know.
func (c *Conn) Probed(p transport.Probe, from int) {
	c.stats.ProbesReceived++
	if c.opts.OnAnswer != nil {
		c.opts.OnAnswer(p, from)
	}
	if !p.Question() {
		return
	}
	a := p.Answer()
	if p.Kernel() {
		a.Heard = c.peers[from].heard
		c.peers[from].heard = false
	} else {
		c.Heard(from)
	}
	c.SendProbe(a, from)
}

// Heard notes that the peer with this index reaches us by the way that its
// datagrams take.
func (c *Conn) Heard(from int) { c.peers[from].heard = true }

// SendProbe sends a probe to the peer with this index, past the queue. If that
// does not work, no answer will come: that is what probes are for.
func (c *Conn) SendProbe(p transport.Probe, to int) {
	var b [transport.ProbeLen]byte
	if c.tx.sendOne(c.fd, p.Append(b[:0]), &c.peers[to].name) {
		c.stats.ProbesSent++
	}
}

// Buf implements transport.Transport.
func (c *Conn) Buf(to transport.PeerID, n int) []byte {
	c.tx.open = -1
	ix := c.table.Index(to)
	if ix < 0 || n > c.peers[ix].mtu {
		return nil
	}
	return c.tx.buf(ix, n)
}

// Commit implements transport.Transport.
func (c *Conn) Commit(n int) { c.tx.commit(n, &c.peers[c.tx.to].name) }

// Flush implements transport.Transport.
func (c *Conn) Flush() error {
	c.tx.open = -1
	if c.tx.queued() == 0 {
		return nil
	}
	return c.flush()
}

func (c *Conn) flush() error {
	var err error
	for c.tx.queued() > 0 {
		fd := c.fd
		if c.one >= 0 {
			fd = c.one
		}
		c.stats.TxCalls++
		n, bytes, errno := c.tx.send(fd, c.one >= 0)
		c.stats.TxPackets += uint64(n)
		c.stats.TxBytes += uint64(bytes)
		switch errno {
		case 0, unix.EINTR:
		case unix.EAGAIN:
			return err // the rest stays queued
		default:
			err = c.unsent(errno)
		}
	}
	return err
}

// unsent drops the first datagram of the queue.
func (c *Conn) unsent(errno unix.Errno) error {
	to := c.tx.drop()
	// A connected socket reports an old ICMP error once instead of sending;
	// that costs one datagram and is not worth a second try.
	c.stats.Drops[transport.DropUnsent]++
	if errno == unix.EMSGSIZE && to < len(c.peers) {
		c.peers[to].mtu = c.routeMTU(c.peers[to].addr)
	}
	if errno == unix.ECONNREFUSED {
		return nil // nobody listens there yet: the link finds out by itself
	}
	if errno != c.lastErr {
		c.lastErr = errno
		c.sendErr = fmt.Errorf("send from %v: %w", c.opts.Listen, errno)
	}
	return c.sendErr
}

// SetPeers implements transport.Transport.
func (c *Conn) SetPeers(peers []transport.Peer) error {
	c.tx.open = -1
	table, err := transport.NewTable(peers, c.v6)
	if err != nil {
		return err
	}
	_ = c.Flush()
	c.tx.clear(&c.stats) // it holds indexes into the old table
	c.table = table
	c.peers = make([]peer, len(peers))
	for i, p := range table.Peers {
		q := &c.peers[i]
		q.addr = p.Addr
		q.name.set(p.Addr, zone(p.Addr.Addr().Zone()))
		q.mtu = c.routeMTU(p.Addr)
	}
	c.disconnect()
	if len(peers) == 1 {
		c.connectOnly()
	}
	return nil
}

// disconnect closes the connected socket. What waits there is lost, and counted.
func (c *Conn) disconnect() {
	if c.one < 0 {
		return
	}
	// Connected to ourselves it gets nothing more: that goes to the other one.
	_ = unix.Connect(c.one, c.local())
	for range maxWaiting {
		if n, _ := c.rx.receive(c.one, 1); n == 0 {
			break
		}
		c.stats.Drops[transport.DropNoRoom]++
	}
	c.stats.Drops[transport.DropNoRoom] += socketDrops(c.one)
	unix.Close(c.one)
	c.one = -1
}

// connectOnly opens a second socket on the port, connected to the only peer.
// Both need SO_REUSEADDR while it binds. It is taken off again at once: with it
// a second daemon could bind the port and silently take the datagrams. If
// anything fails, the bound socket does it alone.
func (c *Conn) connectOnly() {
	fd, err := c.socket()
	if err != nil {
		return
	}
	reuse := func(fd, on int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, on) }
	err = errors.Join(reuse(c.fd, 1), reuse(fd, 1))
	if err == nil {
		err = unix.Bind(fd, c.local())
	}
	err = errors.Join(err, reuse(c.fd, 0), reuse(fd, 0))
	if err == nil {
		err = unix.Connect(fd, unixAddr(c.peers[0].addr))
	}
	if err != nil {
		unix.Close(fd)
		return
	}
	c.one = fd
}

// routeMTU is the largest datagram for the route to a. If the kernel won't
// tell, it is what every IPv6 link and nearly every IPv4 link can carry.
func (c *Conn) routeMTU(a netip.AddrPort) int {
	mtu, head := 1280, 28
	if c.v6 {
		head = 48
	}
	if fd, err := c.socket(); err == nil {
		defer unix.Close(fd)
		level, name := unix.IPPROTO_IP, unix.IP_MTU
		if c.v6 {
			level, name = unix.IPPROTO_IPV6, unix.IPV6_MTU
		}
		if unix.Connect(fd, unixAddr(a)) == nil {
			if m, err := unix.GetsockoptInt(fd, level, name); err == nil && m > head {
				mtu = m
			}
		}
	}
	return min(mtu-head, maxPayload)
}

// MTU implements transport.Transport.
func (c *Conn) MTU(to transport.PeerID) int {
	ix := c.table.Index(to)
	if ix < 0 {
		return 0
	}
	return c.peers[ix].mtu
}

// Tick implements transport.Transport.
func (c *Conn) Tick(now time.Duration) error {
	c.tx.open = -1
	if now-c.mtuAt < mtuEvery {
		return nil
	}
	c.mtuAt = now
	for i := range c.peers {
		c.peers[i].mtu = c.routeMTU(c.peers[i].addr)
	}
	return nil
}

// Fds implements transport.Transport.
func (c *Conn) Fds() []int {
	if c.one >= 0 {
		return []int{c.one, c.fd}
	}
	return []int{c.fd}
}

// Path implements transport.Transport.
func (c *Conn) Path() transport.Path { return c.path }

// Stats implements transport.Transport.
func (c *Conn) Stats() transport.Stats {
	s := c.stats
	for _, fd := range c.Fds() {
		s.Drops[transport.DropNoRoom] += socketDrops(fd)
	}
	s.RxKernel, s.TxKernel = s.RxPackets, s.TxPackets
	return s
}

// Queued is how many datagrams wait for Flush.
func (c *Conn) Queued() int { return c.tx.queued() }

// Close implements transport.Transport.
func (c *Conn) Close() error {
	if c.closed {
		return nil
	}
	c.closed = true
	var err error
	for _, fd := range []int{c.fd, c.one} {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	c.fd, c.one = -1, -1
	c.table, c.peers = &transport.Table{}, nil
	return err
}
