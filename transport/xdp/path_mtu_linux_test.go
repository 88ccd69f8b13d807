package xdp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/mainzdb/mainz/internal/netns"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/transport"
	"github.com/mainzdb/mainz/transport/transporttest"
)

// TestPathMTU: a router between the nodes has a smaller MTU on its other side.
// It drops what is too large, for DF is set, and says so; the kernel learns
// from that, even for what was sent without it, and MTU follows.
func TestPathMTU(t *testing.T) {
	testenv.Need(t, testenv.NetNS, testenv.AFXDP)
	for _, mode := range []Mode{UDP, Generic, Copy} {
		for _, v6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s v6=%v", mode, v6), func(t *testing.T) { pathMTU(t, mode, v6) })
		}
	}
}

func pathMTU(t *testing.T, mode Mode, v6 bool) {
	const narrow = 1300
	prefixes, forward, head := []string{"10.77.0.1/24", "10.77.0.9/24", "10.78.0.9/24", "10.78.0.2/24"},
		"ipv4/ip_forward", 28
	if v6 {
		prefixes, forward, head = []string{"fd77::1/64", "fd77::9/64", "fd78::9/64", "fd78::2/64"},
			"ipv6/conf/all/forwarding", 48
	}
	var at [4]netip.Prefix
	for i, p := range prefixes {
		at[i] = netip.MustParsePrefix(p)
	}
	var a, router, b *netns.NS
	for _, ns := range []**netns.NS{&a, &router, &b} {
		n, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Close)
		*ns = n
	}
	end := func(ns *netns.NS, name string, i int) netns.End {
		return netns.End{NS: ns, Name: name, Addrs: []netip.Prefix{at[i]}}
	}
	do := func(ns *netns.NS, f func() error) {
		t.Helper()
		if err := ns.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	do(router, func() error { return os.WriteFile("/proc/sys/net/"+forward, []byte("1"), 0o644) })
	if err := netns.Veth(end(a, nameA, 0), end(router, "mzr", 1), 1); err != nil {
		t.Fatal(err)
	}
	if err := netns.Veth(end(router, "mzs", 2), end(b, nameB, 3), 1); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		ns   *netns.NS
		name string
		mtu  int
		via  int
	}{{a, nameA, 1500, 1}, {b, nameB, narrow, 2}, {router, "mzs", narrow, -1}} {
		do(x.ns, func() error {
			l, err := netlink.LinkByName(x.name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetMTU(l, x.mtu); err != nil || x.via < 0 {
				return err
			}
			all := &net.IPNet{IP: make(net.IP, at[0].Addr().BitLen()/8), Mask: net.CIDRMask(0, at[0].Addr().BitLen())}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all,
				Gw: at[x.via].Addr().AsSlice()})
		})
	}

	w := &wire{a: a, b: b}
	open := func(i int, mode Mode) *transporttest.Node {
		var tr transport.Transport
		do(w.ns(i), func() (err error) {
			tr, err = Open(Options{Listen: netip.AddrPortFrom(at[3*i].Addr(), 4379), Mode: mode})
			return err
		})
		t.Cleanup(func() { tr.Close() })
		n := transporttest.NewNode(inNS{tr, w.ns(i)})
		if err := n.SetPeers([]transport.Peer{{ID: transport.PeerID(1 - i),
			Addr: netip.AddrPortFrom(at[3*(1-i)].Addr(), 4379)}}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	na, nb := open(0, mode), open(1, UDP)
	proven(t, na, nb)
	if got := na.MTU(1); got != 1500-head {
		t.Fatalf("MTU is %d at first", got)
	}
	transporttest.Eventually(t, "word of the router", func() bool {
		if p := na.Buf(1, na.MTU(1)); p != nil {
			na.Commit(copy(p, strings.Repeat("x", len(p))))
		}
		_ = na.Flush() // the kernel's socket may refuse it by now
		return na.MTU(1) == narrow-head
	}, na, nb)
	proven(t, na, nb)
	last := strings.Repeat("y", narrow-head)
	transporttest.Eventually(t, "a datagram of that size", func() bool {
		na.Send(t, 1, last)
		return len(nb.Got) > 0 && nb.Got[len(nb.Got)-1] == last
	}, na, nb)
	if mode != UDP {
		if k := na.Path(); k.Kind == transport.KindUDP || !k.Proven {
			t.Errorf("path is %v", k)
		}
	}
}
