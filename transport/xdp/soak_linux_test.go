package xdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/transport"
	"github.com/mainzdb/mainz/transport/transporttest"
)

// residentKiB is how much memory this process has, without garbage.
func residentKiB(t testing.TB) int {
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSoak sends both ways as fast as it goes, each side on a thread of its
// own, in bursts that overflow the rings now and then. In the end every
// datagram has come once, with the bytes that were sent, or is counted under
// a reason; all frames are where they belong, and memory has not grown.
// MAINZ_SOAK=5m sets how long each path is under load, MAINZ_SEED repeats the
// choices of a run.
func TestSoak(t *testing.T) {
	testenv.Need(t, testenv.NetNS, testenv.AFXDP)
	length := 300 * time.Millisecond
	if s := os.Getenv("MAINZ_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range []Mode{UDP, Copy, Generic} {
		t.Run(string(mode), func(t *testing.T) { soak(t, mode, length) })
	}
}

// seed is MAINZ_SEED, or a new one.
func seed(t testing.TB) uint64 {
	s := rand.Uint64()
	if text := os.Getenv("MAINZ_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 0, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MAINZ_SEED=%#x", s)
	return s
}

// soakWindow is how many datagrams back one may come and still be told from
// one that comes twice: more than all rings and buffers hold.
const soakWindow = 1 << 20

// soaker is one side of a soak. Its datagrams are a serial number and a piece
// of noise that the number chooses: an unwritten one could look like a probe
// that the frame held before.
type soaker struct {
	node      *transporttest.Node
	to        transport.PeerID
	noise     []byte
	committed uint64
	got       uint64
	wrong     uint64 // not what was sent, twice, or very late
	newest    uint64 // serial received, + 1
	seen      []uint64
}

func (s *soaker) fill(p []byte, serial uint64) {
	binary.LittleEndian.PutUint64(p, serial)
	copy(p[8:], s.noise[serial%4096:])
}

func (s *soaker) take(p []byte, _ transport.PeerID) {
	serial := uint64(1 << 63)
	if len(p) >= 8 {
		serial = binary.LittleEndian.Uint64(p)
	}
	if serial > s.newest+soakWindow || serial+soakWindow < s.newest ||
		!bytes.Equal(p[8:], s.noise[serial%4096:][:len(p)-8]) {
		s.wrong++
		return
	}
	for ; s.newest <= serial; s.newest++ {
		s.seen[s.newest%soakWindow/64] &^= 1 << (s.newest % 64)
	}
	word, bit := &s.seen[serial%soakWindow/64], uint64(1)<<(serial%64)
	if *word&bit != 0 {
		s.wrong++
		return
	}
	*word |= bit
	s.got++
}

// run sends and receives until the time is over. The first fifth is for memory
// to come to its size: sampled is called when it is over.
func (s *soaker) run(r *rand.Rand, length time.Duration, sampled func()) error {
	start, ticked := time.Now(), time.Duration(0)
	for now := time.Duration(0); now < length; now = time.Since(start) {
		for range 1 + r.IntN(3)*r.IntN(900) {
			p := s.node.Buf(s.to, 16+r.IntN(1400))
			if p == nil {
				_ = s.node.Flush() // what it drops is counted
				if r.IntN(8) > 0 {
					s.node.Poll(32, s.take)
				}
				continue
			}
			s.fill(p, s.committed)
			s.node.Commit(len(p))
			s.committed++
		}
		_ = s.node.Flush()
		for range r.IntN(60) {
			s.node.Poll(32, s.take)
		}
		if now-ticked > 10*time.Millisecond {
			ticked = now
			if err := s.node.Tick(now); err != nil {
				return err
			}
		}
		if sampled != nil && now > length/5 {
			sampled()
			sampled = nil
		}
	}
	if sampled != nil { // the thread got no CPU meanwhile
		sampled()
	}
	return nil
}

func soak(t *testing.T, mode Mode, length time.Duration) {
	w := newWire(t, false, 1)
	a, b := w.net(mode).Open2(t, transport.Filter{})
	seed := seed(t)
	noise := make([]byte, 4096+2048)
	r := rand.New(rand.NewPCG(seed, 9))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	var sides [2]*soaker
	for i, n := range []*transporttest.Node{a, b} {
		sides[i] = &soaker{node: n, to: transport.PeerID(1 - i), noise: noise, seen: make([]uint64, soakWindow/64)}
	}
	var first int
	var errs [2]error
	var wg sync.WaitGroup
	for i, s := range sides {
		wg.Go(func() {
			var sampled func()
			if i == 0 {
				sampled = func() { first = residentKiB(t) }
			}
			errs[i] = s.run(rand.New(rand.NewPCG(seed, uint64(i))), length, sampled)
		})
	}
	wg.Wait()
	last := residentKiB(t)
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	var accounts [2]account
	defer func() {
		for i, x := range accounts {
			t.Logf("%d to %d, in %v: %s", i, 1-i, length, x)
		}
		if t.Failed() {
			counters(t, w, a, b)
		}
	}()
	transporttest.Eventually(t, "an account of every datagram", func() bool {
		complete := true
		for _, s := range sides {
			_ = s.node.Flush()
			s.node.Poll(256, s.take)
		}
		for i := range sides {
			x := settle(t, w, sides[i], sides[1-i])
			accounts[i] = x
			if x.missing() < 0 {
				t.Fatal("more came and got lost than was sent")
			}
			complete = complete && x.complete()
		}
		return complete
	})
	for i, s := range sides {
		st := s.node.Stats()
		if s.wrong > 0 {
			t.Errorf("side %d received %d datagrams that were not sent so, came twice or very late", i, s.wrong)
		}
		if st.RxPackets != s.got || st.TxPackets+st.Drops[transport.DropUnsent] != s.committed {
			t.Errorf("side %d received %d and sent %d, by its own count %+v", i, s.got, s.committed, st)
		}
		if c, ok := s.node.Transport.(inNS).Transport.(*Conn); ok {
			if err := c.u.check(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Logf("memory %d then %d KiB", first, last)
	if last > first+4<<10 && !testenv.Race { // whose own memory grows
		t.Errorf("memory grew from %d to %d KiB", first, last)
	}
}

// account is where the datagrams of one direction are, probes among them.
type account struct {
	sent, received, unsent uint64
	wire                   uint64          // lost by the interface, which told nobody
	lost                   transport.Stats // of the receiver
}

// missing are those that the transports neither received nor counted as lost.
func (x account) missing() int64 {
	return int64(x.sent - x.received - x.unsent - (x.lost.Dropped() - x.lost.Drops[transport.DropUnsent]))
}

// complete tells whether the interface lost what is missing. It may have lost
// more: others send by it as well.
func (x account) complete() bool { return x.missing() >= 0 && x.missing() <= int64(x.wire) }

func (x account) String() string {
	text := fmt.Sprintf("%d sent, %d received, %d unsent, %d lost by the wire", x.sent, x.received, x.unsent, x.wire)
	for d, n := range x.lost.Drops {
		if n > 0 && transport.Drop(d) != transport.DropUnsent {
			text += fmt.Sprintf(", %d %v", n, transport.Drop(d))
		}
	}
	return text + fmt.Sprintf(", %d missing", x.missing())
}

// settle adds up one direction. What the interface dropped it tells an AF_XDP
// sender, who counts it as unsent, and no other.
func settle(t testing.TB, w *wire, from, to *soaker) account {
	s, r := from.node.Stats(), to.node.Stats()
	x := account{sent: from.committed + s.ProbesSent, received: to.got + to.wrong + r.ProbesReceived,
		unsent: s.Drops[transport.DropUnsent], lost: r}
	wire := wireDropped(t, w, int(to.to))
	x.wire = wire - min(wire, x.unsent)
	return x
}

// wireDropped is what the veth pair itself lost of what side i sent.
func wireDropped(t testing.TB, w *wire, i int) (n uint64) {
	w.link(t, i, func(l netlink.Link) error {
		n = l.Attrs().Statistics.TxDropped
		return nil
	})
	return n
}

// counters logs whatever anybody counted, for a failed account.
func counters(t testing.TB, w *wire, nodes ...*transporttest.Node) {
	for i, n := range nodes {
		w.link(t, i, func(l netlink.Link) error {
			t.Logf("interface %d: %+v", i, *l.Attrs().Statistics)
			return nil
		})
		t.Logf("transport %d: %v %+v", i, n.Path(), n.Stats())
		c, ok := n.Transport.(inNS).Transport.(*Conn)
		if !ok || c.u == nil {
			continue
		}
		t.Logf("  kernel's socket %+v", c.kernel.Stats())
		t.Logf("  program (redirected, no socket, probes, strangers, malformed, foreign): %v", c.prog.count())
		for _, s := range c.u.sockets {
			x, err := xdpStatistics(s.fd)
			t.Logf("  queue %d: %+v, %v; to take %d, to send %d, given %d, got back %d", s.queue, x, err,
				s.rx.available(), s.tx.unseen(), s.tx.prod, s.comp.cons)
		}
	}
	for _, name := range []string{"/proc/net/softnet_stat", "/proc/net/snmp"} {
		text, err := os.ReadFile(name)
		t.Logf("%s: %v\n%s", name, err, text)
	}
}
