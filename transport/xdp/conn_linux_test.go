package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/netns"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/transport"
	"github.com/mainzdb/mainz/transport/transporttest"
)

// wire is two namespaces with a veth pair between them.
type wire struct {
	a, b *netns.NS
	v6   bool
}

const (
	nameA = "mza"
	nameB = "mzb"
)

func newWire(t testing.TB, v6 bool, queues int) *wire {
	t.Helper()
	testenv.Need(t, testenv.NetNS, testenv.AFXDP)
	w := &wire{v6: v6}
	for _, ns := range []**netns.NS{&w.a, &w.b} {
		n, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Close)
		*ns = n
	}
	end := func(ns *netns.NS, name string, hosts ...int) netns.End {
		e := netns.End{NS: ns, Name: name}
		for _, h := range hosts {
			e.Addrs = append(e.Addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(h)}), 24),
				netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd77::%d", h)), 64))
		}
		return e
	}
	if err := netns.Veth(end(w.a, nameA, 1), end(w.b, nameB, 2, 3), queues); err != nil {
		t.Fatal(err)
	}
	return w
}

// addr is 0 in a, 1 and 2 in b.
func (w *wire) addr(i int) netip.AddrPort {
	if w.v6 {
		return netip.MustParseAddrPort(fmt.Sprintf("[fd77::%d]:4379", i+1))
	}
	return netip.MustParseAddrPort(fmt.Sprintf("10.77.0.%d:4379", i+1))
}

func (w *wire) ns(i int) *netns.NS {
	if i == 0 {
		return w.a
	}
	return w.b
}

// inNS does in its namespace what may open something there.
type inNS struct {
	transport.Transport
	ns *netns.NS
}

func (n inNS) Tick(now time.Duration) (err error) {
	if e := n.ns.Do(func() error { err = n.Transport.Tick(now); return nil }); e != nil {
		return e
	}
	return err
}

func (n inNS) SetPeers(p []transport.Peer) error {
	return n.ns.Do(func() error { return n.Transport.SetPeers(p) })
}

func (w *wire) open(t testing.TB, i int, o Options) (transport.Transport, error) {
	t.Helper()
	o.Listen = w.addr(i)
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(testLog{t}, nil))
	}
	var tr transport.Transport
	err := w.ns(i).Do(func() (err error) {
		tr, err = Open(o)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if c, ok := tr.(*Conn); ok && c.u != nil {
			if err := c.u.check(); err != nil {
				t.Error("frames:", err)
			}
		}
		tr.Close()
	})
	return inNS{tr, w.ns(i)}, nil
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}

func conn(n transport.Transport) *Conn {
	if x, ok := n.(*transporttest.Node); ok {
		n = x.Transport
	}
	return n.(inNS).Transport.(*Conn)
}

// proven turns until the transports reach each other over the rings.
func proven(t testing.TB, nodes ...*transporttest.Node) {
	t.Helper()
	transporttest.Eventually(t, "a proof of the path", func() bool {
		for _, n := range nodes {
			if c, ok := n.Transport.(inNS).Transport.(*Conn); ok && (c.kernelPeers > 0 || len(c.peers) == 0) {
				return false
			}
		}
		return true
	}, nodes...)
}

func (w *wire) net(mode Mode) transporttest.Net {
	return transporttest.Net{
		Addr: w.addr,
		Open: func(t *testing.T, i int, f transport.Filter) transport.Transport {
			m := mode
			if i == 2 {
				m = UDP // the interface is taken by 1
			}
			tr, err := w.open(t, i, Options{Mode: m, Filter: f})
			if err != nil {
				t.Fatal(err)
			}
			return tr
		},
		Ready: func(t *testing.T, a, b transport.Transport) {
			na, nb := a.(*transporttest.Node), b.(*transporttest.Node)
			proven(t, na, nb)
		},
	}
}

func TestConformance(t *testing.T) {
	testenv.Need(t, testenv.NetNS, testenv.AFXDP)
	for _, mode := range []Mode{Generic, Copy, UDP} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s v6=%v", mode, v6), func(t *testing.T) {
				transporttest.Run(t, newWire(t, v6, 2).net(mode))
			})
		}
	}
}

func setMTU(t testing.TB, w *wire, mtu int) error {
	t.Helper()
	for i, name := range []string{nameA, nameB} {
		err := w.ns(i).Do(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, mtu)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// TestFrames4096 and jumbo frames: larger frames, and several for a packet.
func TestLargeMTU(t *testing.T) {
	testenv.Need(t, testenv.NetNS, testenv.AFXDP)
	for _, mode := range []Mode{Generic, Copy} {
		for _, mtu := range []int{3000, 9000} {
			t.Run(fmt.Sprintf("%s %d", mode, mtu), func(t *testing.T) {
				w := newWire(t, mtu == 9000, 1)
				if err := setMTU(t, w, mtu); err != nil {
					t.Fatal(err)
				}
				net := w.net(mode)
				t.Run("all", func(t *testing.T) {
					transporttest.Run(t, net)
				})
				a, _ := net.Open2(t, transport.Filter{})
				if c := conn(a); c.u.frame != 4096 || c.u.sg != (mtu == 9000) {
					t.Errorf("frames of %d, several: %v", c.u.frame, c.u.sg)
				}
				head := 28
				if w.v6 {
					head = 48
				}
				if got := a.MTU(1); got != mtu-head {
					t.Errorf("MTU is %d", got)
				}
			})
		}
	}
}

func TestAuto(t *testing.T) {
	w := newWire(t, false, 1)
	var log strings.Builder
	tr, err := w.open(t, 0, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"transport: no xdp-zerocopy" interface=` + nameA + ` reason=`,
		`path="xdp-generic on ` + nameA + ` (not proven yet); not xdp-zerocopy: `} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, &log)
		}
	}
	p := tr.Path()
	if p.Kind != transport.KindXDPGeneric || p.Interface != nameA || p.Proven || len(p.Refused) != 1 ||
		p.Refused[0].Kind != transport.KindXDPZeroCopy || !errors.Is(p.Refused[0].Err, unix.EOPNOTSUPP) {
		t.Errorf("path is %v", p)
	}
	lo, err := Open(Options{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	defer lo.Close()
	if p := lo.Path(); p.Kind != transport.KindUDP || len(p.Refused) != 1 {
		t.Errorf("path on lo is %v", p)
	}
}

// TestOrder: the ways that are tried, the best one first.
func TestOrder(t *testing.T) {
	const zc, native, generic = transport.KindXDPZeroCopy, transport.KindXDPNative, transport.KindXDPGeneric
	for _, c := range []struct {
		mode   Mode
		driver string
		want   []transport.Kind
	}{
		{Auto, "device", []transport.Kind{zc, native, generic}},
		{Auto, "veth", []transport.Kind{zc, generic, native}}, {Auto, "lo", nil},
		{UDP, "device", nil}, {XDP, "device", []transport.Kind{zc}}, {Copy, "veth", []transport.Kind{native}},
		{Generic, "device", []transport.Kind{generic}},
	} {
		if got := c.mode.kinds(c.driver); !slices.Equal(got, c.want) {
			t.Errorf("%s on %s: %v, want %v", c.mode, c.driver, got, c.want)
		}
	}
}

// TestQueues: each receive queue in use has a socket, and what comes by the second one
// is received there.
func TestQueues(t *testing.T) {
	w := newWire(t, false, 2)
	a, _ := w.net(Copy).Open2(t, transport.Filter{})
	c := conn(a)
	if p := a.Path(); p.Queues != 2 || len(c.u.sockets) != 2 || len(c.u.mem) != umemBytes(c.u.frame, 2, false) {
		t.Fatalf("%d sockets, %d bytes of frames: %v", len(c.u.sockets), len(c.u.mem), p)
	}
	// The kernel spreads its flows over the queues. From other ports they are strangers. The
	// two sides' probes are a flow as well, and may come by the second queue.
	byProbes := c.u.sockets[1].rx.cons
	for port := uint16(20_000); c.u.sockets[1].rx.cons == byProbes ||
		a.Stats().Drops[transport.DropStranger] == 0; port++ {
		if port == 20_500 {
			t.Fatalf("500 flows, and none by the second queue is counted as a stranger's: %+v", a.Stats())
		}
		err := w.b.Do(func() error {
			k, err := net.DialUDP("udp", &net.UDPAddr{IP: w.addr(1).Addr().AsSlice(), Port: int(port)},
				net.UDPAddrFromAddrPort(w.addr(0)))
			if err != nil {
				return err
			}
			defer k.Close()
			_, err = k.Write([]byte("by any queue"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			a.Poll(64, func([]byte, transport.PeerID) { t.Error("a stranger's datagram") })
		}
	}
}

// TestManyPeers: more than the program has room for are refused, and change nothing.
func TestManyPeers(t *testing.T) {
	w := newWire(t, false, 1)
	a, b := w.net(Generic).Open2(t, transport.Filter{})
	var list []transport.Peer
	for i := range maxMembers + 1 {
		list = append(list, transport.Peer{ID: transport.PeerID(i),
			Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 1)})
	}
	if err := a.SetPeers(list); !errors.Is(err, transport.ErrPeer) {
		t.Fatalf("%d peers: %v", len(list), err)
	}
	for range 3 {
		a.Send(t, 1, "to")
		b.Send(t, 0, "fro")
	}
	transporttest.Eventually(t, "three datagrams each", func() bool { return len(a.Got) == 3 && len(b.Got) == 3 }, a, b)
	// As many as there may be, twice, none of them the same.
	for round := range 2 {
		for i := range list {
			list[i].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(20 + round), byte(i >> 8), byte(i)}), 1)
		}
		if err := conn(a).prog.setMembers(list[:maxMembers]); err != nil {
			t.Errorf("%d peers: %v", maxMembers, err)
		}
	}
}

// TestSleep: who sleeps on the descriptors is woken by what comes, and then finds it.
func TestSleep(t *testing.T) {
	for _, mode := range []Mode{UDP, Copy, Generic} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWire(t, false, 1)
			a, b := w.net(mode).Open2(t, transport.Filter{})
			ready := func(ms int) bool {
				var fds []unix.PollFd
				for _, fd := range b.Fds() {
					fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
				}
				n, err := unix.Poll(fds, ms)
				for err == unix.EINTR {
					n, err = unix.Poll(fds, ms)
				}
				if err != nil {
					t.Fatal(err)
				}
				return n > 0
			}
			came := 0
			look := func() { b.Poll(64, func([]byte, transport.PeerID) { came++ }) }
			for tries := 0; ready(0); tries++ { // answers to probes
				if look(); tries > 10_000 {
					t.Fatal("readable all the time")
				}
			}
			came = 0
			a.Send(t, 1, "wake up")
			if !ready(60_000) {
				t.Fatal("nobody was woken")
			}
			for range 10_000 {
				if look(); came == 1 {
					return
				}
			}
			t.Errorf("%d datagrams found", came)
		})
	}
}

// TestBatches: a batch takes one system call to send, and few to receive.
func TestBatches(t *testing.T) {
	for _, mode := range []Mode{UDP, Copy, Generic} {
		t.Run(string(mode), func(t *testing.T) {
			const batch = 32
			w := newWire(t, false, 1)
			a, b := w.net(mode).Open2(t, transport.Filter{})
			few := false
			for range 100 { // the receiver may be called when half of them are there
				for range batch {
					a.Queue(t, 1, "one of many")
				}
				sent, received := a.Stats().TxCalls, b.Stats().RxCalls
				if err := a.Flush(); err != nil {
					t.Fatal(err)
				}
				if calls := a.Stats().TxCalls - sent; calls > 2 { // 2: Linux before 6.17
					t.Fatalf("%d calls for %d datagrams", calls, batch)
				}
				for came, looks := 0, 0; came < batch; looks++ {
					if came += b.Poll(64, func([]byte, transport.PeerID) {}); looks > 1_000_000 {
						t.Fatalf("%d of %d came", came, batch)
					}
				}
				if few = b.Stats().RxCalls-received <= 8; few {
					break
				}
			}
			if !few {
				t.Errorf("never less than 8 calls to receive %d datagrams", batch)
			}
		})
	}
}

func TestForced(t *testing.T) {
	w := newWire(t, false, 1)
	if tr, err := w.open(t, 0, Options{Mode: XDP}); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("zero copy on veth: %v, %v", tr, err)
	}
	for _, m := range []Mode{XDP, Copy, Generic} {
		if _, err := Open(Options{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Mode: m}); !errors.Is(err,
			transport.ErrNotSupported) {
			t.Errorf("%s on lo: %v", m, err)
		}
	}
	if _, err := Open(Options{Mode: "warp"}); err == nil {
		t.Error("an unknown mode")
	}
}

// TestTwoDaemons: the second one on an interface gets the kernel's way, and is
// told who is in the way; both work.
func TestTwoDaemons(t *testing.T) {
	w := newWire(t, false, 1)
	first, err := w.open(t, 1, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []Mode{Generic, Copy} {
		if _, err := w.open(t, 2, Options{Mode: mode}); err == nil ||
			!strings.Contains(err.Error(), "is attached there") {
			t.Errorf("%s: two programs on one interface: %v", mode, err)
		}
	}
	second, err := w.open(t, 2, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if p := second.Path(); p.Kind != transport.KindUDP || len(p.Refused) != 3 {
		t.Errorf("path of the second is %v", p)
	}
	far, err := w.open(t, 0, Options{})
	if err != nil {
		t.Fatal(err)
	}
	n := []*transporttest.Node{transporttest.NewNode(far), transporttest.NewNode(first), transporttest.NewNode(second)}
	for i := range n {
		var peers []transport.Peer
		for j := range n {
			if i != j {
				peers = append(peers, transport.Peer{ID: transport.PeerID(j), Addr: w.addr(j)})
			}
		}
		if err := n[i].SetPeers(peers); err != nil {
			t.Fatal(err)
		}
	}
	// The two that share a host talk to each other through the kernel.
	transporttest.Eventually(t, "a proof of the path", func() bool {
		return conn(n[0]).kernelPeers == 0 && conn(n[1]).kernelPeers == 1
	}, n...)
	for i := range n {
		for j := range n {
			if i != j {
				n[i].Send(t, transport.PeerID(j), fmt.Sprint(i, " to ", j))
			}
		}
	}
	transporttest.Eventually(t, "six datagrams", func() bool {
		return len(n[0].Got) == 2 && len(n[1].Got) == 2 && len(n[2].Got) == 2
	}, n...)
}

// TestFragments: fragments are the kernel's, and what it makes of them comes
// to its socket and is handed over.
func TestFragments(t *testing.T) {
	for _, mode := range []Mode{Generic, Copy, UDP} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s v6=%v", mode, v6), func(t *testing.T) { fragments(t, mode, v6) })
		}
	}
}

func fragments(t *testing.T, mode Mode, v6 bool) {
	w := newWire(t, v6, 1)
	a, b := w.net(mode).Open2(t, transport.Filter{})
	// An ordinary socket in place of the other transport: ours never
	// fragments.
	b.Close()
	family := unix.AF_INET
	if v6 {
		family = unix.AF_INET6
	}
	var fd int
	err := w.b.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Bind(fd, sockaddr(w.addr(1)))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	big := make([]byte, 3000)
	for i := range big {
		big[i] = byte(i * 7)
	}
	if err := unix.Sendto(fd, big, 0, sockaddr(w.addr(0))); err != nil {
		t.Fatal(err)
	}
	transporttest.Eventually(t, "a datagram of 3000 bytes", func() bool { return len(a.Got) == 1 }, a)
	if a.Got[0] != string(big) {
		t.Error("other bytes came")
	}
	if s := a.Stats(); s.RxKernel != 1 {
		t.Errorf("it came another way: %+v", s)
	}
}

// TestWhyNoGSO is the reason why udp does not use GSO: four datagrams that are
// sent as one GSO packet reach a generic program on a veth pair as one. If this
// fails for Generic one day, udp may be made faster.
func TestWhyNoGSO(t *testing.T) {
	for mode, want := range map[Mode]int{Generic: 1, Copy: 4, UDP: 4} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWire(t, false, 1)
			a, b := w.net(mode).Open2(t, transport.Filter{})
			b.Close()
			var fd int
			err := w.b.Do(func() (err error) {
				fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				return unix.Bind(fd, sockaddr(w.addr(1)))
			})
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			oob := make([]byte, unix.CmsgSpace(2))
			binary.NativeEndian.PutUint64(oob, uint64(unix.CmsgLen(2)))
			binary.NativeEndian.PutUint32(oob[8:], unix.SOL_UDP)
			binary.NativeEndian.PutUint32(oob[12:], unix.UDP_SEGMENT)
			binary.NativeEndian.PutUint16(oob[16:], 100)
			if _, err := unix.SendmsgN(fd, make([]byte, 400), oob, sockaddr(w.addr(0)), 0); err != nil {
				t.Fatal(err)
			}
			if err := unix.Sendto(fd, []byte("end"), 0, sockaddr(w.addr(0))); err != nil {
				t.Fatal(err)
			}
			transporttest.Eventually(t, "the end", func() bool {
				return len(a.Got) > 0 && a.Got[len(a.Got)-1] == "end"
			}, a)
			if n := len(a.Got) - 1; n != want || len(a.Got[0]) != 400/want {
				t.Errorf("%d datagrams came of 4, the first of %d bytes", n, len(a.Got[0]))
			}
		})
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// TestIdleLook: looks that find nothing do no system call.
func TestIdleLook(t *testing.T) {
	for _, mode := range []Mode{Generic, Copy} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWire(t, false, 2)
			a, b := w.net(mode).Open2(t, transport.Filter{})
			nothing := func([]byte, transport.PeerID) {}
			calls := func() (rx, tx uint64) {
				for range 25_600 {
					a.Poll(32, nothing)
					if err := a.Flush(); err != nil {
						t.Fatal(err)
					}
				}
				s := a.Stats()
				return s.RxCalls, s.TxCalls
			}
			// What was still under way comes first, and may be answered.
			var rx, tx uint64
			transporttest.Eventually(t, "many looks without a call", func() bool {
				b.Poll(32, nothing)
				oldRx, oldTx := rx, tx
				rx, tx = calls()
				return rx == oldRx && tx == oldTx
			})
			// A datagram that the kernel delivers is found all the same.
			if err := conn(a).prog.sockets.Delete(uint32(0)); err != nil {
				t.Fatal(err)
			}
			b.Send(t, 0, "round about")
			got := 0
			transporttest.Eventually(t, "a datagram from the kernel", func() bool {
				got += a.Poll(32, nothing)
				return got == 1
			})
			if now, _ := calls(); now == rx {
				t.Error("it was received without a call")
			}
		})
	}
}

// TestQueueWithoutSocket: what comes there is the kernel's to deliver.
func TestQueueWithoutSocket(t *testing.T) {
	w := newWire(t, false, 1)
	a, b := w.net(Generic).Open2(t, transport.Filter{})
	if err := conn(a).prog.sockets.Delete(uint32(0)); err != nil {
		t.Fatal(err)
	}
	b.Send(t, 0, "round about")
	transporttest.Eventually(t, "a datagram", func() bool { return len(a.Got) == 1 }, a, b)
	if s := a.Stats(); s.RxKernel != 1 || s.Drops[transport.DropNoSocket] == 0 || s.Dropped() != 0 {
		t.Errorf("%+v", s)
	}
}

func BenchmarkIdleLook(b *testing.B) {
	w := newWire(b, false, 1)
	tr, err := w.open(b, 0, Options{Mode: Generic})
	if err != nil {
		b.Fatal(err)
	}
	nothing := func([]byte, transport.PeerID) {}
	for b.Loop() {
		tr.Poll(32, nothing)
	}
}
