package transporttest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/mainzdb/mainz/transport"
)

// Net opens transports that reach each other.
type Net struct {
	// Open opens number i of at most three, with this filter. It is closed by
	// the test.
	Open func(t *testing.T, i int, f transport.Filter) transport.Transport
	// Addr is where number i is to be found.
	Addr func(i int) netip.AddrPort
	// Ready is called with transports 0 and 1 that know each other, before
	// the first datagram. nil: they are ready at once.
	Ready func(t *testing.T, a, b transport.Transport)
}

// waitLimit bounds every wait. Nothing is measured by it: a test that needs it
// fails.
const waitLimit = 2 * time.Minute

// Node is one transport of a test and what it received.
type Node struct {
	transport.Transport
	Got  []string
	From []transport.PeerID
	f    func([]byte, transport.PeerID)
}

// NewNode wraps a transport.
func NewNode(tr transport.Transport) *Node {
	n := &Node{Transport: tr}
	n.f = func(p []byte, from transport.PeerID) {
		n.Got = append(n.Got, string(p))
		n.From = append(n.From, from)
	}
	return n
}

// Turn polls and ticks once.
func (n *Node) Turn(t testing.TB) {
	t.Helper()
	n.Poll(64, n.f)
	if err := n.Tick(now()); err != nil {
		t.Fatal("tick:", err)
	}
}

var start = time.Now()

func now() time.Duration { return time.Since(start) }

// Eventually turns the nodes until done, or fails.
func Eventually(t testing.TB, what string, done func() bool, nodes ...*Node) {
	t.Helper()
	for end := time.Now().Add(waitLimit); ; runtime.Gosched() {
		for _, n := range nodes {
			n.Turn(t)
		}
		if done() {
			return
		}
		if time.Now().After(end) {
			for i, n := range nodes {
				t.Logf("node %d: %v, %+v, %d received", i, n.Path(), n.Stats(), len(n.Got))
			}
			t.Fatalf("%s: not within %v", what, waitLimit)
		}
	}
}

// Send sends one datagram, flushed.
func (n *Node) Send(t testing.TB, to transport.PeerID, p string) {
	t.Helper()
	n.Queue(t, to, p)
	if err := n.Flush(); err != nil {
		t.Fatal("flush:", err)
	}
}

// Queue queues one datagram.
func (n *Node) Queue(t testing.TB, to transport.PeerID, p string) {
	t.Helper()
	b := n.Buf(to, len(p))
	if b == nil {
		t.Fatalf("no room for %d bytes to %d, its MTU is %d", len(p), to, n.MTU(to))
	}
	copy(b, p)
	n.Commit(len(p))
}

func (net Net) peers(ids ...int) []transport.Peer {
	var l []transport.Peer
	for _, i := range ids {
		l = append(l, transport.Peer{ID: transport.PeerID(i), Addr: net.Addr(i)})
	}
	return l
}

// Open2 opens 0 and 1, which know each other. Tests get them ready.
func (net Net) Open2(t *testing.T, f transport.Filter) (a, b *Node) {
	t.Helper()
	var n [2]*Node
	for i := range n {
		tr := net.Open(t, i, f)
		t.Cleanup(func() {
			if err := tr.Close(); err != nil {
				t.Error("close:", err)
			}
		})
		n[i] = NewNode(tr)
		if err := tr.SetPeers(net.peers(1 - i)); err != nil {
			t.Fatal(err)
		}
	}
	if net.Ready != nil {
		net.Ready(t, n[0], n[1])
	}
	return n[0], n[1]
}

// Run runs all of it.
func Run(t *testing.T, net Net) {
	t.Run("sizes", func(t *testing.T) { sizes(t, net) })
	t.Run("every size", func(t *testing.T) { everySize(t, net) })
	t.Run("batches", func(t *testing.T) { batches(t, net) })
	t.Run("random", func(t *testing.T) { random(t, net) })
	t.Run("answer in place", func(t *testing.T) { answer(t, net) })
	t.Run("full", func(t *testing.T) { full(t, net) })
	t.Run("room", func(t *testing.T) { room(t, net) })
	t.Run("strangers", func(t *testing.T) { strangers(t, net) })
	t.Run("filter", func(t *testing.T) { filter(t, net) })
	t.Run("peers", func(t *testing.T) { peers(t, net) })
	t.Run("allocations", func(t *testing.T) { allocations(t, net) })
	t.Run("close", func(t *testing.T) { closing(t, net) })
}

func pattern(n int, seed uint64) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(seed>>(i%8*8)) + byte(i*131>>3)
	}
	return string(b)
}

func sizes(t *testing.T, net Net) {
	a, b := net.Open2(t, transport.Filter{})
	m := a.MTU(1)
	if m < 1000 {
		t.Fatalf("MTU is %d", m)
	}
	var want []string
	for _, n := range []int{0, 1, 2, 7, 8, 15, 16, 17, 18, 19, 63, 64, 65, 100, 255, 256, 511, 512, 900, 1000,
		m/2 - 1, m / 2, m - 9, m - 8, m - 1, m} {
		want = append(want, pattern(n, uint64(n)*0x9e3779b97f4a7c15))
		a.Send(t, 1, want[len(want)-1])
		Eventually(t, fmt.Sprintf("a datagram of %d bytes", n), func() bool { return len(b.Got) == len(want) }, b)
		if got := b.Got[len(want)-1]; got != want[len(want)-1] {
			t.Fatalf("%d bytes sent, %d received, or other ones", n, len(got))
		}
	}
	for _, from := range b.From {
		if from != 0 {
			t.Fatalf("came from %d", from)
		}
	}
	s := a.Stats()
	if s.TxPackets != uint64(len(want)) {
		t.Errorf("%d sent, %+v", len(want), s)
	}
	if s := b.Stats(); s.RxPackets != uint64(len(want)) || s.Dropped() != 0 {
		t.Errorf("%d received, %+v", len(want), s)
	}
}

// everySize sends one datagram of each length that Ethernet has, and some of
// each thousand beyond.
func everySize(t *testing.T, net Net) {
	a, b := net.Open2(t, transport.Filter{})
	const jumbo, stride, step = 9000, 97, 16
	m, sent := a.MTU(1), 0
	for n := 0; n <= m; {
		first := n
		want := map[int]string{}
		for len(want) < step && n <= m {
			want[n] = pattern(n, uint64(n)*0x9e3779b97f4a7c15)
			a.Queue(t, 1, want[n])
			n++
			if n > jumbo && n < m {
				n = min(n+stride, m)
			}
		}
		if err := a.Flush(); err != nil {
			t.Fatal(err)
		}
		sent += len(want)
		b.Got = nil
		Eventually(t, fmt.Sprintf("datagrams of %d bytes and more", first),
			func() bool { return len(b.Got) == len(want) }, b)
		for _, p := range b.Got {
			if p != want[len(p)] {
				t.Fatalf("%d bytes came that were not sent, or twice", len(p))
			}
			delete(want, len(p))
		}
	}
	if s := a.Stats(); s.TxPackets != uint64(sent) || s.Dropped() != 0 {
		t.Errorf("%d sent: %+v", sent, s)
	}
	if s := b.Stats(); s.RxPackets != uint64(sent) || s.Dropped() != 0 {
		t.Errorf("%d sent, received: %+v", sent, s)
	}
}

// batches sends several at once and expects all of them, whole, once each.
func batches(t *testing.T, net Net) {
	a, b := net.Open2(t, transport.Filter{})
	want, sent := map[string]bool{}, 0
	for _, n := range []int{1, 2, 3, 31, 32, 33, 50, 1, 1, 48} {
		for i := range n {
			p := pattern(8+(i*37+n)%1000, uint64(sent)<<32|uint64(n))
			p = string(binary.BigEndian.AppendUint32(nil, uint32(sent))) + p
			want[p] = true
			sent++
			a.Queue(t, 1, p)
		}
		if err := a.Flush(); err != nil {
			t.Fatal(err)
		}
		Eventually(t, fmt.Sprintf("a batch of %d", n), func() bool { return len(b.Got) == sent }, a, b)
	}
	for _, p := range b.Got {
		if !want[p] {
			t.Fatalf("%d bytes came that were not sent, or came twice", len(p))
		}
		delete(want, p)
	}
}

// random sends what comes to the generator's mind both ways, and compares with
// a list.
func random(t *testing.T, net Net) {
	a, b := net.Open2(t, transport.Filter{})
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(seed, 5))
	nodes := [2]*Node{a, b}
	var sent [2][]string
	for step := range 300 {
		i := r.IntN(2)
		n, to := nodes[i], transport.PeerID(1-i)
		for range r.IntN(20) {
			p := pattern(r.IntN(n.MTU(to)+1), r.Uint64())
			if r.IntN(8) == 0 {
				n.Buf(to, len(p)) // room that is not used
			}
			buf := n.Buf(to, min(len(p)+r.IntN(9), n.MTU(to)))
			if buf == nil {
				t.Fatalf("step %d: no room with less than 20 queued", step)
			}
			n.Commit(copy(buf, p))
			sent[i] = append(sent[i], p)
		}
		if err := n.Flush(); err != nil {
			t.Fatal(err)
		}
		Eventually(t, fmt.Sprintf("step %d", step), func() bool {
			return len(nodes[1-i].Got) == len(sent[i])
		}, a, b)
	}
	for i := range nodes {
		count := map[string]int{}
		for _, p := range sent[i] {
			count[p]++
		}
		for _, p := range nodes[1-i].Got {
			count[p]--
		}
		for p, n := range count {
			if n != 0 {
				t.Errorf("a datagram of %d bytes: %d more sent than received", len(p), n)
			}
		}
	}
}

// answer sends from within Poll's function.
func answer(t *testing.T, net Net) {
	a, b := net.Open2(t, transport.Filter{})
	b.f = func(p []byte, from transport.PeerID) {
		q := b.Buf(from, len(p)+1)
		if q == nil {
			t.Error("no room for an answer")
			return
		}
		q[copy(q, p)] = '!'
		b.Commit(len(q))
	}
	for i := range 20 {
		for j := range i {
			a.Queue(t, 1, fmt.Sprint(i, j))
		}
		if err := a.Flush(); err != nil {
			t.Fatal(err)
		}
		a.Got = nil
		Eventually(t, "answers", func() bool {
			if err := b.Flush(); err != nil {
				t.Fatal(err)
			}
			return len(a.Got) == i
		}, a, b)
		for _, p := range a.Got {
			if p[len(p)-1] != '!' {
				t.Fatalf("answer is %q", p)
			}
		}
	}
}

// full queues without Flush until there is no more room: that must come, and
// Flush must end it.
func full(t *testing.T, net Net) {
	a, b := net.Open2(t, transport.Filter{})
	n := 0
	for ; a.Buf(1, 100) != nil; n++ {
		if n == 100_000 {
			t.Fatal("the queue has no end")
		}
		a.Commit(100)
	}
	if n < 32 {
		t.Errorf("room for %d datagrams only", n)
	}
	Eventually(t, "room after Flush", func() bool {
		if err := a.Flush(); err != nil {
			t.Fatal(err)
		}
		return a.Buf(1, a.MTU(1)) != nil
	}, a, b)
	// A receiver may lose some of so many, but counts them; whatever is sent
	// afterwards arrives.
	Eventually(t, "the last ones", func() bool {
		a.Send(t, 1, "after")
		b.Turn(t)
		for _, p := range b.Got {
			if p == "after" {
				return true
			}
		}
		return false
	}, a)
}

func room(t *testing.T, net Net) {
	a, _ := net.Open2(t, transport.Filter{})
	if a.Buf(1, a.MTU(1)+1) != nil {
		t.Error("there is room for more than the MTU")
	}
	if a.Buf(2, 1) != nil || a.MTU(2) != 0 {
		t.Error("there is room for somebody unknown")
	}
	if a.Buf(transport.MaxPeerID, 1) != nil || a.Buf(1<<31, 1) != nil {
		t.Error("there is room for an absurd number")
	}
	b := a.Buf(1, 10)
	if len(b) != 10 || cap(b) != 10 {
		t.Errorf("asked for 10, got %d of %d", len(b), cap(b))
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("more was committed than there was room for")
			}
		}()
		a.Commit(11)
	}()
}

// strangers: 2 is no peer of 0 at first.
func strangers(t *testing.T, net Net) {
	a, b := net.Open2(t, transport.Filter{})
	c := NewNode(net.Open(t, 2, transport.Filter{}))
	defer c.Close()
	if err := c.SetPeers(net.peers(0)); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if i%2 == 0 {
			b.Send(t, 0, "friend")
		}
		c.Send(t, 0, "stranger")
	}
	Eventually(t, "a count of strangers", func() bool {
		return len(a.Got) == 5 && a.Stats().Drops[transport.DropStranger] == 10
	}, a, b, c)
	for _, p := range a.Got {
		if p != "friend" {
			t.Fatalf("%q got in", p)
		}
	}
	if err := a.SetPeers(net.peers(1, 2)); err != nil {
		t.Fatal(err)
	}
	a.Got, a.From = nil, nil
	Eventually(t, "the new peer", func() bool {
		c.Send(t, 0, "no stranger any more")
		return len(a.From) > 0 && a.From[0] == 2
	}, a, b, c)
	a.Got = nil
	Eventually(t, "the old peer", func() bool {
		b.Send(t, 0, "still here")
		for _, p := range a.Got {
			if p == "still here" {
				return true
			}
		}
		return false
	}, a, b, c)
}

func filter(t *testing.T, net Net) {
	a, b := net.Open2(t, transport.Filter{MinLen: 8, Prefix: []byte("MZ\x01")})
	bad := map[transport.Drop][]string{
		transport.DropMalformed: {"", "MZ\x01", "MZ\x01 67"},
		transport.DropForeign:   {"MZ\x02 long enough", "xZ\x01 long enough", "........"},
	}
	for _, l := range bad {
		for _, p := range l {
			a.Send(t, 1, p)
		}
	}
	a.Send(t, 1, "MZ\x01 good.")
	Eventually(t, "drops", func() bool {
		d := b.Stats().Drops
		return d[transport.DropMalformed] == 3 && d[transport.DropForeign] == 3 && len(b.Got) == 1
	}, a, b)
	if b.Got[0] != "MZ\x01 good." {
		t.Errorf("%q got in", b.Got[0])
	}
}

func peers(t *testing.T, net Net) {
	a, b := net.Open2(t, transport.Filter{})
	for _, l := range [][]transport.Peer{
		{{ID: 1, Addr: net.Addr(1)}, {ID: 1, Addr: net.Addr(2)}},
		{{ID: 1, Addr: net.Addr(1)}, {ID: 2, Addr: net.Addr(1)}},
		{{ID: transport.MaxPeerID + 1, Addr: net.Addr(1)}},
		{{ID: 1}},
		{{ID: 1, Addr: netip.AddrPortFrom(net.Addr(1).Addr(), 0)}},
	} {
		if err := a.SetPeers(l); err == nil {
			t.Errorf("%v were taken for peers", l)
		}
	}
	// What was refused changed nothing.
	a.Send(t, 1, "still")
	Eventually(t, "a datagram", func() bool { return len(b.Got) == 1 }, a, b)
	if err := a.SetPeers(nil); err != nil {
		t.Fatal(err)
	}
	if a.Buf(1, 1) != nil || a.MTU(1) != 0 {
		t.Error("a removed peer still has room")
	}
	b.Send(t, 0, "to one who does not know me")
	Eventually(t, "a count", func() bool { return a.Stats().Drops[transport.DropStranger] >= 1 }, a, b)
	// Ask for it by another number.
	if err := a.SetPeers([]transport.Peer{{ID: 77, Addr: net.Addr(1)}}); err != nil {
		t.Fatal(err)
	}
	if net.Ready != nil {
		net.Ready(t, a, b)
	}
	a.Got, a.From = nil, nil
	b.Send(t, 0, "again")
	Eventually(t, "a datagram", func() bool { return len(a.From) == 1 }, a, b)
	if a.From[0] != 77 {
		t.Errorf("came from %d", a.From[0])
	}
}

func allocations(t *testing.T, net Net) {
	a, b := net.Open2(t, transport.Filter{})
	var got int
	count := func(p []byte, from transport.PeerID) { got++ }
	for _, batch := range []int{1, 20} {
		per := testing.AllocsPerRun(100, func() {
			for range batch {
				if buf := a.Buf(1, 200); buf != nil {
					a.Commit(200)
				}
			}
			if err := a.Flush(); err != nil {
				t.Fatal(err)
			}
			for i := 0; i < 1_000_000 && got < batch; i++ {
				b.Poll(32, count)
				a.Poll(32, count)
			}
			if got != batch {
				t.Fatalf("%d of %d arrived", got, batch)
			}
			got = 0
		})
		if per != 0 {
			t.Errorf("%v allocations for a batch of %d", per, batch)
		}
	}
}

func closing(t *testing.T, net Net) {
	for range 3 {
		a, b := net.Open2(t, transport.Filter{})
		a.Send(t, 1, "x")
		a.Queue(t, 1, "y") // left behind
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal("second close:", err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
