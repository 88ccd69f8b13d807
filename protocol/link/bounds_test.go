package link

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/mainzdb/mainz/protocol/wire"
)

// sink handles everything.
type sink struct{}

func (sink) Step(Instant, wire.PNN, Channel, wire.Epoch, uint32, []byte) Verdict { return Handled }
func (sink) Acked(Instant, uint64)                                               {}
func (sink) Refused(Instant, uint64)                                             {}
func (sink) Peer(Instant, wire.PNN, PeerEvent)                                   {}

// counter counts what it is told, and answers with a verdict.
type counter struct {
	steps, beacons, acked, refused int
	verdict                        Verdict
	last                           []byte
	events                         []PeerEvent
}

func (h *counter) Step(_ Instant, _ wire.PNN, ch Channel, _ wire.Epoch, _ uint32, p []byte) Verdict {
	h.last = bytes.Clone(p)
	if ch == Beacon {
		h.beacons++
		return Handled
	}
	h.steps++
	return h.verdict
}
func (h *counter) Acked(Instant, uint64)                    { h.acked++ }
func (h *counter) Refused(Instant, uint64)                  { h.refused++ }
func (h *counter) Peer(_ Instant, _ wire.PNN, ev PeerEvent) { h.events = append(h.events, ev) }
func ping() []byte                                          { return wire.Append(nil, &wire.Message{Op: wire.Ping}) }
func carry(from, to *Link, now Instant, h Handler) (n int) {
	for _, d := range from.Take() {
		to.Receive(now, d.Bytes, h)
		n++
	}
	return n
}

// pairOf makes two links that have met.
func pairOf(tb testing.TB, sa, sb Sealer) (a, b *Link) {
	a, err := New(Config{Self: 0, Nodes: 2, Incarnation: 1, Sealer: sa})
	if err != nil {
		tb.Fatal(err)
	}
	b, err = New(Config{Self: 1, Nodes: 2, Incarnation: 2, Sealer: sb})
	if err != nil {
		tb.Fatal(err)
	}
	a.Send(1, 1, Beacon, 0, 0, ping(), 0)
	carry(a, b, 1, sink{})
	b.Send(1, 0, Beacon, 0, 0, ping(), 0)
	carry(b, a, 1, sink{})
	return a, b
}

// TestLateIncarnation: datagrams of a dead incarnation that come late do not end the
// link with the living one, in whatever order they come. Seen with a first PING that
// was overtaken by the next start's.
func TestLateIncarnation(t *testing.T) {
	start := func(self wire.PNN, inc uint64) *Link {
		l, err := New(Config{Self: self, Nodes: 2, Incarnation: inc})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	a, h := start(0, 1), &counter{}
	old, living := start(1, 100), start(1, 50)
	old.Send(1, 0, Beacon, 0, 0, ping(), 0)
	late := bytes.Clone(old.Take()[0].Bytes)
	talk := func(now Instant) {
		living.Send(now, 0, Beacon, 0, 0, ping(), 0)
		for range 4 {
			carry(living, a, now, h)
			carry(a, living, now, sink{})
		}
	}
	talk(2)
	for i := range Instant(10) {
		a.Receive(3+i, late, h)
		carry(a, living, 3+i, sink{}) // the challenge finds nobody
	}
	if a.Incarnation(1) != 50 || len(h.events) != 1 {
		t.Fatalf("taken for a restart: incarnation %d, events %v", a.Incarnation(1), h.events)
	}
	a.Send(20, 1, Data, 0, 0, []byte("x"), 9)
	carry(a, living, 20, sink{})
	living.Tick(20 + Second)
	if carry(living, a, 20, h); h.acked != 1 {
		t.Error("the link with the living incarnation is gone")
	}

	// A real restart is believed after one round trip, whatever comes between.
	living = start(1, 75)
	a.Receive(Second, late, h)
	talk(2 * Second)
	if a.Incarnation(1) != 75 || len(h.events) != 2 || h.events[1] != Restarted {
		t.Errorf("incarnation %d, events %v", a.Incarnation(1), h.events)
	}
	if n := a.Counters().Challenges; n < 2 || n > 20 {
		t.Errorf("%d challenges", n)
	}

	// Two dispatchers under one PNN: the second one has it.
	second := start(1, 60)
	for i := range Instant(10) {
		for _, l := range []*Link{living, second} {
			now := 3*Second + i*20*Millisecond
			l.Send(now, 0, Beacon, 0, 0, ping(), 0)
			for range 4 {
				carry(l, a, now, h)
				for _, d := range a.Take() {
					living.Receive(now, d.Bytes, sink{})
					second.Receive(now, d.Bytes, sink{})
				}
			}
		}
	}
	if a.Incarnation(1) != 60 || len(h.events) != 3 {
		t.Errorf("incarnation %d, events %v", a.Incarnation(1), h.events)
	}
}

// TestBeacons: what goes outside the channels is handed in once at most, and may be
// longer than a datagram, as a PROMISE of 64 nodes is.
func TestBeacons(t *testing.T) {
	a, b := pairOf(t, nil, nil)
	h := &counter{}
	long := make([]byte, 3500)
	long[0] = byte(wire.Promise)
	for i := 4; i < len(long); i++ {
		long[i] = byte(i)
	}
	for k := range 3 {
		a.Send(2, 1, Beacon, 0, 0, long, 0)
		ds := a.Take()
		if len(ds) != 3 {
			t.Fatalf("%d datagrams", len(ds))
		}
		for i := range ds {
			if len(ds[i].Bytes) > 1400 {
				t.Errorf("a datagram of %d bytes", len(ds[i].Bytes))
			}
			b.Receive(2, ds[(i+k)%3].Bytes, h)
			b.Receive(2, ds[(i+k)%3].Bytes, h)
		}
		if h.beacons != k+1 || !bytes.Equal(h.last, long) {
			t.Fatalf("handed in %d times", h.beacons)
		}
	}
	// One fragment is lost: the message is, and the next is whole.
	a.Send(2, 1, Beacon, 0, 0, long, 0)
	for _, d := range a.Take()[1:] {
		b.Receive(2, d.Bytes, h)
	}
	a.Send(2, 1, Beacon, 0, 0, long, 0)
	if carry(a, b, 2, h); h.beacons != 4 {
		t.Errorf("handed in %d times", h.beacons)
	}
	var kept [][]byte
	for range 100 {
		a.Send(2, 1, Beacon, 0, 0, ping(), 0)
		kept = append(kept, bytes.Clone(a.Take()[0].Bytes))
		for range 3 { // acknowledgements in between do not count
			a.sendAck(1, Data)
		}
		a.Take()
	}
	h.beacons = 0
	for i := range kept { // the newest first: 63 older ones are still new
		b.Receive(2, kept[len(kept)-1-i], h)
		b.Receive(2, kept[len(kept)-1-i], h)
	}
	if h.beacons != 64 {
		t.Errorf("%d of 100 were handed in, newest first", h.beacons)
	}
}

// TestWindowTwin: the receiver's two words beside a plain set.
func TestWindowTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 3))
	var c channel
	done := map[uint64]bool{}
	for range 20_000 {
		seq := c.base + 1 + rng.Uint64N(Window)
		got := seq <= c.base || seq > c.base+1 && c.bits>>(seq-c.base-2)&1 != 0
		if got != done[seq] {
			t.Fatalf("sequence %d, base %d, bits %b: handled %v, not %v", seq, c.base, c.bits, got, done[seq])
		}
		if got {
			continue
		}
		c.mark(seq)
		done[seq] = true
		if done[c.base+1] {
			t.Fatalf("base %d, but the next is handled", c.base)
		}
		for s := c.base; s > 0 && s+200 > c.base; s-- {
			if !done[s] {
				t.Fatalf("base %d, but %d is not handled", c.base, s)
			}
		}
	}
}

// TestBounds: windows, held datagrams and partial messages stay within what doc.go
// says, whatever is sent; and messages of every size arrive whole.
func TestBounds(t *testing.T) {
	a, b := pairOf(t, nil, nil)
	h := &counter{verdict: NotYet}
	for i := range 500 {
		a.Send(2, 1, Data, 0, 7, binary.LittleEndian.AppendUint32(nil, uint32(i)), 1)
	}
	if n := len(a.peers[1].ch[Data].flight); n != Window || a.Backlog(1) != 500-Window {
		t.Errorf("%d on their way, %d wait", n, a.Backlog(1))
	}
	carry(a, b, 2, h)
	for range 5 {
		now := a.Next()
		a.Tick(now)
		carry(a, b, now, h)
		b.Retry(now, h)
	}
	if len(b.held) != 64 || !b.Holding() {
		t.Errorf("%d datagrams held", len(b.held))
	}
	h.verdict, h.steps = Handled, 0
	b.Retry(Second, h)
	if b.Holding() || h.steps != 64 {
		t.Errorf("%d of 64 handed in again", h.steps)
	}
	settlePair(t, a, b, h)
	if h.steps != 500 || h.acked != 500 {
		t.Errorf("%d of 500 handled, %d acked", h.steps, h.acked)
	}

	// Two-fragment messages of which only the second halves come: half a window of them.
	for range 100 {
		a.Send(Second, 1, Control, 5, 0, make([]byte, 2000), 1)
	}
	for i, d := range a.Take() {
		if i%2 == 1 {
			b.Receive(Second, d.Bytes, h)
		}
	}
	if n := len(b.peers[0].ch[Control].parts); n != Window/2 {
		t.Errorf("%d messages in parts", n)
	}
	h.steps = 0
	a.Cancel(Second, 6)
	a.Send(Second, 1, Control, 6, 0, make([]byte, 3000), 1)
	settlePair(t, a, b, h)
	if n := len(b.peers[0].ch[Control].parts); n != 0 || h.steps != 1 {
		t.Errorf("%d messages in parts after their ballot, %d handled", n, h.steps)
	}

	for _, size := range []int{1, 1324, 1325, 1316, 1317, 2632, 2633, 1 << 20} {
		p := make([]byte, size)
		for i := range p {
			p[i] = byte(i * 7)
		}
		a.Send(2*Second, 1, Data, 0, 7, p, 1)
		settlePair(t, a, b, h)
		if !bytes.Equal(h.last, p) {
			t.Errorf("%d bytes arrive as %d others", size, len(h.last))
		}
	}
	for name, f := range map[string]func(){
		"to itself":        func() { a.Send(1, 0, Data, 0, 0, []byte("x"), 0) },
		"to nobody":        func() { a.Send(1, 2, Data, 0, 0, []byte("x"), 0) },
		"an empty packet":  func() { a.Send(1, 1, Data, 0, 0, nil, 0) },
		"a packet too big": func() { a.Send(1, 1, Data, 0, 0, make([]byte, MaxMessage+1), 0) },
		"too many": func() {
			a.cfg.MaxQueue = 1000
			for range 1000 + Window + 1 {
				a.Send(1, 1, Data, 0, 0, []byte("x"), 0)
			}
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

// settlePair lets both talk until all is acknowledged.
func settlePair(t *testing.T, a, b *Link, h Handler) {
	now := 3 * Second
	for range 100_000 {
		n := carry(a, b, now, h) + carry(b, a, now, h)
		next := min(a.Next(), b.Next())
		if n == 0 && next == Never {
			return
		}
		if n == 0 {
			now = max(now, next)
			a.Tick(now)
			b.Tick(now)
		}
	}
	t.Fatal("does not come to rest")
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no nodes":        {Incarnation: 1},
		"too many nodes":  {Nodes: 65, Incarnation: 1},
		"not in the file": {Nodes: 3, Self: 3, Incarnation: 1},
		"no incarnation":  {Nodes: 3},
		"small datagrams": {Nodes: 3, Incarnation: 1, MTU: 100},
		"huge datagrams":  {Nodes: 3, Incarnation: 1, MTU: 1 << 17},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// roundTrip: a message each way, acks riding along.
func roundTrip(a, b *Link, now Instant, p []byte) {
	a.Send(now, 1, Data, 0, 7, p, 1)
	carry(a, b, now, sink{})
	b.Send(now, 0, Data, 0, 7, p, 1)
	carry(b, a, now, sink{})
}

// TestNoAllocation: nothing is allocated once the pools have grown: plain, sealed,
// in fragments, held and handed in again, lost and repeated.
func TestNoAllocation(t *testing.T) {
	secret := []byte("of the cluster")
	for name, seal := range map[string]func() Sealer{"plain": func() Sealer { return nil },
		"sealed": func() Sealer { return &aeadSealer{secret: secret} }} {
		a, b := pairOf(t, seal(), seal())
		now, h := Instant(2), &refuser{}
		small, large := make([]byte, 100), make([]byte, 5000)
		steps := map[string]func(){
			"round trip": func() { roundTrip(a, b, now, small) },
			"fragments":  func() { roundTrip(a, b, now, large) },
			"beacons": func() {
				a.Send(now, 1, Beacon, 0, 0, small, 0)
				a.Send(now, 1, Beacon, 0, 0, large, 0)
				carry(a, b, now, sink{})
			},
			"held": func() {
				h.verdict = NotYet
				a.Send(now, 1, Data, 0, 7, small, 1)
				a.Send(now, 1, Data, 0, 7, large, 1)
				carry(a, b, now, h)
				h.verdict = Handled
				b.Retry(now, h)
				b.Tick(now + Second)
				carry(b, a, now, h)
			},
			"lost and repeated": func() {
				a.Send(now, 1, Control, 5, 0, small, 1)
				a.Take()
				now = a.Next()
				a.Tick(now)
				carry(a, b, now, sink{})
				now += Millisecond
				b.Tick(now)
				carry(b, a, now, sink{})
			},
		}
		for what, f := range steps {
			for range 200 {
				f()
			}
			if n := testing.AllocsPerRun(500, f); n != 0 {
				t.Errorf("%s, %s: %v allocations", name, what, n)
			}
		}
	}
}

// refuser answers with its verdict and notes nothing.
type refuser struct {
	sink
	verdict Verdict
}

func (h *refuser) Step(Instant, wire.PNN, Channel, wire.Epoch, uint32, []byte) Verdict {
	return h.verdict
}

// FuzzReceive: datagrams that a peer has sent, changed by the fuzzer and given the
// right sum again. Nothing panics, and the window stays one.
func FuzzReceive(f *testing.F) {
	a, _ := pairOf(f, nil, nil)
	a.Send(2, 1, Data, 0, 7, []byte("x"), 1)
	a.Send(2, 1, Control, 5, 7, make([]byte, 1500), 1)
	a.Send(2, 1, Beacon, 5, 0, ping(), 0)
	for _, d := range a.Take() {
		f.Add(d.Bytes, []byte{0, 3, 8, 1, 9, 2}, uint8(0))
	}
	f.Fuzz(func(t *testing.T, d, edits []byte, verdict uint8) {
		a, b := pairOf(t, nil, nil)
		h := &refuser{verdict: Verdict(verdict % 3)}
		b.SetEpoch(1)
		for i := range 8 {
			a.Send(2, 1, Control, 5, 7, make([]byte, 100+400*i), 1)
		}
		carry(a, b, 2, h)
		try := func(d []byte) {
			if len(d) < wire.HeaderSize+wire.SumSize {
				b.Receive(3, d, h)
				return
			}
			d = bytes.Clone(d[:len(d)-wire.SumSize])
			copy(d, []byte{0x6d, 0x7a, wire.Version})
			b.Receive(3, wire.AppendSum(d), h)
		}
		try(d)
		for i := 0; i+1 < len(edits) && i < 64; i += 2 {
			if len(d) > 0 {
				d = bytes.Clone(d)
				d[int(edits[i])%len(d)] ^= edits[i+1]
			}
			try(d)
		}
		b.Retry(4, h)
		b.Tick(5 * Second)
		for _, d := range b.Take() {
			a.Receive(5, d.Bytes, h)
		}
		a.Tick(6 * Second)
		for i := range b.peers {
			for c := range b.peers[i].ch {
				if n := len(b.peers[i].ch[c].parts); n > Window {
					t.Fatalf("%d messages in parts", n)
				}
			}
		}
		if len(b.held) > 64 {
			t.Fatalf("%d datagrams held", len(b.held))
		}
	})
}

func benchmark(bm *testing.B, seal func() Sealer, size int) {
	a, b := pairOf(bm, seal(), seal())
	p := make([]byte, size)
	bm.ReportAllocs()
	for bm.Loop() {
		roundTrip(a, b, 2, p)
	}
}

func BenchmarkRoundTrip(b *testing.B) { benchmark(b, func() Sealer { return nil }, 100) }
func BenchmarkFragments(b *testing.B) { benchmark(b, func() Sealer { return nil }, 5000) }
func BenchmarkSealed(b *testing.B) {
	benchmark(b, func() Sealer { return &aeadSealer{secret: []byte("of the cluster")} }, 100)
}
