package transport_test

import (
	"net/netip"
	"testing"

	"github.com/mainzdb/mainz/transport"
	"github.com/mainzdb/mainz/transport/transporttest"
)

func TestMemory(t *testing.T) {
	addr := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 4379)
	}
	var net *transport.Net
	transporttest.Run(t, transporttest.Net{
		Addr: addr,
		Open: func(t *testing.T, i int, f transport.Filter) transport.Transport {
			if i == 0 {
				net = new(transport.Net)
			}
			m, err := net.Open(addr(i), f)
			if err != nil {
				t.Fatal(err)
			}
			return m
		},
	})
}

func TestMemoryLoses(t *testing.T) {
	a4 := netip.MustParseAddrPort("10.0.0.1:1")
	b4 := netip.MustParseAddrPort("10.0.0.2:1")
	net := &transport.Net{Lose: func(from, to netip.AddrPort, p []byte) bool { return p[0] == 'l' }}
	a, _ := net.Open(a4, transport.Filter{})
	b, _ := net.Open(b4, transport.Filter{})
	if _, err := net.Open(b4, transport.Filter{}); err == nil {
		t.Error("two nodes with one address")
	}
	if a.SetPeers([]transport.Peer{{ID: 1, Addr: b4}}) != nil ||
		b.SetPeers([]transport.Peer{{ID: 0, Addr: a4}}) != nil {
		t.Fatal("no peers")
	}
	n := transporttest.NewNode(a)
	n.Send(t, 1, "lost")
	n.Send(t, 1, "kept")
	m := transporttest.NewNode(b)
	m.Turn(t)
	if len(m.Got) != 1 || m.Got[0] != "kept" {
		t.Errorf("got %q", m.Got)
	}
}

func TestProbe(t *testing.T) {
	for _, k := range []byte{transport.ProbeKernel, transport.ProbeKernelAnswer, transport.ProbePath,
		transport.ProbePathAnswer} {
		p := transport.Probe{Kind: k, Heard: k == transport.ProbeKernelAnswer, Token: 1<<63 | 5, Serial: 7}
		b := p.Append(nil)
		if len(b) != transport.ProbeLen {
			t.Fatalf("%d bytes", len(b))
		}
		if q, ok := transport.ParseProbe(b); !ok || q != p {
			t.Errorf("%+v became %+v", p, q)
		}
		if p.Question() && (p.Answer().Question() || p.Answer().Kernel() != p.Kernel()) {
			t.Errorf("the answer to %+v is %+v", p, p.Answer())
		}
		for i := range b[:5] {
			c := append([]byte(nil), b...)
			c[i]++
			if _, ok := transport.ParseProbe(c); ok {
				t.Errorf("taken for a probe: %q", c)
			}
		}
		if _, ok := transport.ParseProbe(append(b, 0)); ok {
			t.Error("a longer one was taken for a probe")
		}
	}
}

func TestPathString(t *testing.T) {
	p := transport.Path{Kind: transport.KindXDPGeneric, Interface: "eth0", Refused: []transport.Refusal{
		{Kind: transport.KindXDPZeroCopy, Err: transport.ErrNotSupported}}}
	if got, want := p.String(), "xdp-generic on eth0 (not proven yet); not xdp-zerocopy: not supported"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
