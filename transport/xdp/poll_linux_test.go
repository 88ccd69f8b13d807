package xdp

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/transport"
	"github.com/mainzdb/mainz/transport/udp"
)

// fakeQueues is a Conn whose rings no kernel has. The test is the driver: so it can
// be one with several queues, with packets over several frames, and one that sleeps.
type fakeQueues struct {
	*Conn
	peer netip.AddrPort
}

const fakeRing = 64

func newFakeQueues(t *testing.T, queues int) *fakeQueues {
	t.Helper()
	testenv.Need(t, testenv.Linux)
	k, err := udp.Open(udp.Options{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	f := &fakeQueues{peer: netip.MustParseAddrPort("127.0.0.2:4379")}
	peers := []transport.Peer{{ID: 7, Addr: f.peer}}
	if err := k.SetPeers(peers); err != nil {
		t.Fatal(err)
	}
	table, err := transport.NewTable(peers, false)
	if err != nil {
		t.Fatal(err)
	}
	u := &umem{socketOptions: socketOptions{frame: 2048, sg: true}, rxFrames: fakeRing,
		mem: make([]byte, queues*fakeRing*2048)}
	ring := func(descs bool) ring {
		r := ring{producer: new(uint32), consumer: new(uint32), flags: new(uint32), mask: fakeRing - 1}
		if descs {
			r.descs = make([]unix.XDPDesc, fakeRing)
		} else {
			r.addrs = make([]uint64, fakeRing)
		}
		return r
	}
	for q := range queues {
		s := &socket{fd: -1, queue: q, fill: ring(false), rx: ring(true), tx: ring(true), comp: ring(false)}
		s.round, s.spare = fakeRing, make([]uint64, 0, fakeRing)
		for i := range fakeRing {
			s.giveBack(uint64(q*fakeRing+i) * 2048)
		}
		s.fill.publish()
		u.sockets = append(u.sockets, s)
	}
	u.out = u.sockets[0]
	f.Conn = &Conn{opts: Options{Listen: k.Listen()}, kernel: k, u: u, table: table, peers: make([]peer, 1), open: -1,
		prog: &filterProgram{mapped: make([]byte, 8)}}
	return f
}

// arrive puts a frame with this payload into a queue, cut into pieces of at most size
// bytes. It tells whether there was room.
func (f *fakeQueues) arrive(q int, payload []byte, size int) bool {
	h := makeHeader([6]byte{2, 1}, [6]byte{2, 2}, f.peer, f.opts.Listen)
	b := make([]byte, h.n+len(payload))
	copy(b[h.n:], payload)
	h.put(b)
	s := f.u.sockets[q]
	frames := (len(b) + size - 1) / size
	if int(*s.fill.producer-*s.fill.consumer) < frames || int(*s.rx.producer-*s.rx.consumer)+frames > fakeRing {
		return false
	}
	for len(b) > 0 {
		at := s.fill.addrs[*s.fill.consumer&s.fill.mask] + rxOffset
		*s.fill.consumer++
		n := copy(f.u.mem[at:at+uint64(size)], b)
		d := unix.XDPDesc{Addr: at, Len: uint32(n)}
		if b = b[n:]; len(b) > 0 {
			d.Options = unix.XDP_PKT_CONTD
		}
		s.rx.descs[*s.rx.producer&s.rx.mask] = d
		*s.rx.producer++
	}
	return true
}

// Packets over several frames come whole however small the looks are, though the
// queues take turns between two parts.
func TestPacketsOverFrames(t *testing.T) {
	f := newFakeQueues(t, 3)
	want := map[string]int{}
	payload := func(q, i int) []byte {
		b := bytes.Repeat([]byte{byte(q), byte(i)}, 500+q*100+i)
		return binary.LittleEndian.AppendUint32(b, uint32(q<<16|i))
	}
	for i := range 10 {
		for q := range 3 {
			p := payload(q, i)
			if !f.arrive(q, p, 400) { // three to five frames
				t.Fatal("no room")
			}
			want[string(p)]++
		}
	}
	for looks := 0; len(want) > 0; looks++ {
		if looks > 1000 {
			t.Fatalf("%d packets did not come", len(want))
		}
		f.Poll(1+looks%3, func(p []byte, from transport.PeerID) {
			if want[string(p)] != 1 || from != 7 {
				t.Fatalf("%d bytes from %d that nobody sent, or for the second time", len(p), from)
			}
			delete(want, string(p))
		})
	}
	if n := f.stats.Dropped(); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

// What is larger than any packet is counted once, and what follows comes.
func TestPacketTooLarge(t *testing.T) {
	s := &socket{}
	part := make([]byte, 2000)
	for range maxPacket / len(part) {
		if s.gather(part, true) != nil {
			t.Fatal("a packet without its end")
		}
	}
	if s.gather(part, true) != nil || s.gather(part, false) != nil {
		t.Error("a packet larger than the largest")
	}
	if s.gather(part[:10], true) != nil || len(s.gather(part[:5], false)) != 15 {
		t.Error("the packet after it did not come whole")
	}
}

// However much comes by one queue, the others and the kernel's socket have their turn.
func TestQueuesTakeTurns(t *testing.T) {
	const most = 8
	f := newFakeQueues(t, 3)
	k, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(f.peer), net.UDPAddrFromAddrPort(f.opts.Listen))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	came := map[string]int{}
	for looks := 0; came["queue 2"] == 0 || came["kernel"] == 0; looks++ {
		if looks > 10_000 {
			t.Fatalf("after %d looks: %v", looks, came)
		}
		for f.arrive(0, []byte("queue 0"), 2048-rxOffset) && f.arrive(1, []byte("queue 1"), 2048-rxOffset) {
		}
		if looks == 100 {
			f.arrive(2, []byte("queue 2"), 2048-rxOffset)
			if _, err := k.Write([]byte("kernel")); err != nil {
				t.Fatal(err)
			}
			binary.NativeEndian.PutUint64(f.prog.mapped, 1) // as the program tells
		}
		n := f.Poll(most, func(p []byte, _ transport.PeerID) { came[string(p)]++ })
		if n > most {
			t.Fatalf("%d came, at most %d were asked for", n, most)
		}
	}
	if a, b := came["queue 0"], came["queue 1"]; a > 2*b+2*most || b > 2*a+2*most {
		t.Errorf("queues that are always full: %d and %d came", a, b)
	}
}

// A driver that went to sleep for want of frames after the last look is woken by a
// tick: until then nothing comes that would make Poll look again.
func TestTickWakesDriver(t *testing.T) {
	w := newWire(t, false, 1)
	a, _ := w.net(Copy).Open2(t, transport.Filter{})
	c := conn(a)
	turn := func(what string, want bool) {
		t.Helper()
		before := c.stats.RxCalls
		if err := a.Tick(time.Hour); err != nil {
			t.Fatal(err)
		}
		if woken := c.stats.RxCalls > before; woken != want {
			t.Errorf("%s: woken: %v", what, woken)
		}
	}
	turn("awake", false)
	*c.u.sockets[0].fill.flags |= unix.XDP_RING_NEED_WAKEUP
	defer func() { *c.u.sockets[0].fill.flags &^= unix.XDP_RING_NEED_WAKEUP }()
	turn("asleep", true)
}
