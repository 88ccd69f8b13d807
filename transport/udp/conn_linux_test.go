package udp_test

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/transport"
	"github.com/mainzdb/mainz/transport/transporttest"
	"github.com/mainzdb/mainz/transport/udp"
)

// loopback is a net on the loopback interface, on ports that were free.
func loopback(t *testing.T, ip string, bystander bool) transporttest.Net {
	addr := netip.MustParseAddr(ip)
	var ports [3]netip.AddrPort
	for i := range ports {
		c := open(t, udp.Options{Listen: netip.AddrPortFrom(addr, 0)})
		ports[i] = c.Listen()
		defer c.Close()
	}
	n := transporttest.Net{
		Addr: func(i int) netip.AddrPort { return ports[i] },
		Open: func(t *testing.T, i int, f transport.Filter) transport.Transport {
			c := open(t, udp.Options{Listen: ports[i], Filter: f})
			if bystander {
				return second{c}
			}
			return c
		},
	}
	return n
}

// second adds a peer that never says anything, so that there are two and no
// socket gets connected.
type second struct{ *udp.Conn }

func (s second) SetPeers(peers []transport.Peer) error {
	if len(peers) == 1 {
		a := netip.AddrFrom4([4]byte{127, 9, 9, 9})
		if peers[0].Addr.Addr().Is6() {
			a = netip.MustParseAddr("fd00:9::9")
		}
		peers = append(peers, transport.Peer{ID: 4000, Addr: netip.AddrPortFrom(a, 9)})
	}
	return s.Conn.SetPeers(peers)
}

func open(t *testing.T, o udp.Options) *udp.Conn {
	t.Helper()
	c, err := udp.Open(o)
	if errors.Is(err, unix.EADDRNOTAVAIL) && o.Listen.Addr().Is6() {
		t.Skip("no IPv6 on the loopback interface")
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConformance(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip+" connected", func(t *testing.T) { transporttest.Run(t, loopback(t, ip, false)) })
		t.Run(ip, func(t *testing.T) { transporttest.Run(t, loopback(t, ip, true)) })
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, a := range []string{"0.0.0.0:4379", "[::]:4379", "224.0.0.1:4379"} {
		if c, err := udp.Open(udp.Options{Listen: netip.MustParseAddrPort(a)}); err == nil {
			c.Close()
			t.Errorf("%s was taken for one address of this node", a)
		}
	}
	if _, err := udp.Open(udp.Options{}); err == nil {
		t.Error("no address was taken for one")
	}
	if _, err := udp.Open(udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0"),
		Filter: transport.Filter{Prefix: []byte(transport.ProbeMagic)}}); err == nil {
		t.Error("the prefix of probes was taken")
	}
}

// TestSecondDaemon: the port belongs to one, also while a socket is connected,
// which needs SO_REUSEADDR for a moment.
func TestSecondDaemon(t *testing.T) {
	c := open(t, udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	defer c.Close()
	for range 2 {
		if d, err := udp.Open(udp.Options{Listen: c.Listen()}); !errors.Is(err, unix.EADDRINUSE) {
			if d != nil {
				d.Close()
			}
			t.Fatalf("a second one on the port: %v", err)
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			t.Fatal(err)
		}
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(c.Listen().Port()), Addr: [4]byte{127, 0, 0, 1}})
		unix.Close(fd)
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Fatalf("a second one with SO_REUSEADDR: %v", err)
		}
		if err := c.SetPeers([]transport.Peer{{ID: 1, Addr: netip.MustParseAddrPort("127.0.0.1:9")}}); err != nil {
			t.Fatal(err)
		}
		if len(c.Fds()) != 2 {
			t.Fatal("one peer, and no connected socket")
		}
	}
}

// TestNobodyListens: ICMP errors on the connected socket break nothing.
func TestNobodyListens(t *testing.T) {
	gone := open(t, udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	c := open(t, udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	defer c.Close()
	if err := c.SetPeers([]transport.Peer{{ID: 1, Addr: gone.Listen()}}); err != nil {
		t.Fatal(err)
	}
	gone.Close()
	n := transporttest.NewNode(c)
	for range 20 {
		n.Send(t, 1, "anybody there?")
		n.Turn(t)
	}
	s := c.Stats()
	if s.TxPackets+s.Drops[transport.DropUnsent] != 20 {
		t.Errorf("20 sent, %+v", s)
	}
	late := open(t, udp.Options{Listen: gone.Listen()})
	defer late.Close()
	if err := late.SetPeers([]transport.Peer{{ID: 0, Addr: c.Listen()}}); err != nil {
		t.Fatal(err)
	}
	m := transporttest.NewNode(late)
	transporttest.Eventually(t, "a datagram after all", func() bool {
		n.Send(t, 1, "and now?")
		return len(m.Got) > 0
	}, n, m)
}

// TestOverflow: what the socket's buffer has no room for is counted.
func TestOverflow(t *testing.T) {
	a := open(t, udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	defer a.Close()
	b := open(t, udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0"), BufferBytes: 8192})
	defer b.Close()
	if a.SetPeers([]transport.Peer{{ID: 1, Addr: b.Listen()}}) != nil ||
		b.SetPeers([]transport.Peer{{ID: 0, Addr: a.Listen()}}) != nil {
		t.Fatal("no peers")
	}
	n, m := transporttest.NewNode(a), transporttest.NewNode(b)
	const sent = 1000
	for range sent {
		n.Send(t, 1, "0123456789")
	}
	transporttest.Eventually(t, "an account of all", func() bool {
		s := b.Stats()
		return s.RxPackets+s.Drops[transport.DropNoRoom] == sent
	}, m)
	if s := b.Stats(); s.Drops[transport.DropNoRoom] == 0 || s.RxPackets == 0 {
		t.Errorf("nothing overflowed, or everything: %+v", s)
	}
}

// TestPeersChange: what waits on the connected socket, and what it had no room
// for, stays counted when the socket goes.
func TestPeersChange(t *testing.T) {
	a := open(t, udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	defer a.Close()
	b := open(t, udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0"), BufferBytes: 8192})
	defer b.Close()
	only := []transport.Peer{{ID: 0, Addr: a.Listen()}}
	if a.SetPeers([]transport.Peer{{ID: 1, Addr: b.Listen()}}) != nil || b.SetPeers(only) != nil {
		t.Fatal("no peers")
	}
	n := transporttest.NewNode(a)
	const sent = 500
	for range sent {
		n.Send(t, 1, "0123456789")
	}
	// The loopback interface delivers before the call that sends returns, or
	// soon after.
	transporttest.Eventually(t, "an overflow", func() bool { return b.Stats().Drops[transport.DropNoRoom] > 0 }, n)
	if err := b.SetPeers(append(only, transport.Peer{ID: 2,
		Addr: netip.MustParseAddrPort("127.0.0.9:9")})); err != nil {
		t.Fatal(err)
	}
	if len(b.Fds()) != 1 {
		t.Fatal("two peers, and a connected socket")
	}
	m := transporttest.NewNode(b)
	transporttest.Eventually(t, "an account of all", func() bool {
		s := b.Stats()
		return s.RxPackets+s.Drops[transport.DropNoRoom] == sent
	}, m)
}

// TestProbes: a question is answered, past the filter, and never handed over.
func TestProbes(t *testing.T) {
	var back []transport.Probe
	a := open(t, udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0"),
		OnAnswer: func(p transport.Probe, from int) { back = append(back, p) }})
	defer a.Close()
	b := open(t, udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Filter: transport.Filter{MinLen: 100}})
	defer b.Close()
	if a.SetPeers([]transport.Peer{{ID: 1, Addr: b.Listen()}}) != nil ||
		b.SetPeers([]transport.Peer{{ID: 0, Addr: a.Listen()}}) != nil {
		t.Fatal("no peers")
	}
	n, m := transporttest.NewNode(a), transporttest.NewNode(b)
	for _, k := range []byte{transport.ProbeKernel, transport.ProbePath} {
		p := transport.Probe{Kind: k, Token: 5, Serial: uint64(k)}
		back = nil
		a.SendProbe(p, 0)
		transporttest.Eventually(t, "an answer", func() bool { return len(back) == 1 }, n, m)
		if back[0] != p.Answer() {
			t.Errorf("%+v was answered by %+v", p, back[0])
		}
	}
	if len(n.Got)+len(m.Got) != 0 || b.Stats().Dropped() != 0 {
		t.Errorf("a probe got through: %q, %q", n.Got, m.Got)
	}
}
