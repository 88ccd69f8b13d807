package link

import (
	"bytes"
	"testing"

	"github.com/mainzdb/mainz/protocol/wire"
)

// One rule of the link in each test, in the order that breaks it.

// first takes the one datagram that a link wants sent.
func first(t *testing.T, l *Link) []byte {
	t.Helper()
	ds := l.Take()
	if len(ds) != 1 {
		t.Fatalf("%d datagrams, not one", len(ds))
	}
	return bytes.Clone(ds[0].Bytes)
}

// TestLateAck: an acknowledgement of an older epoch frees nothing of this one.
func TestLateAck(t *testing.T) {
	a, b := pairOf(t, nil, nil)
	h := &counter{}
	a.SetEpoch(1)
	b.SetEpoch(1)
	a.Send(2, 1, Data, 1, 7, []byte("of epoch 1"), 11)
	carry(a, b, 2, h)
	b.Tick(Second)
	ack := first(t, b)
	a.SetEpoch(2)
	a.Send(3, 1, Data, 2, 7, []byte("of epoch 2"), 12)
	a.Take() // lost
	a.Receive(4, ack, h)
	if h.acked != 0 || a.Next() == Never {
		t.Errorf("%d messages acknowledged by another epoch's ack", h.acked)
	}
	b.SetEpoch(2)
	settlePair(t, a, b, h)
	if h.acked != 1 || h.steps != 2 {
		t.Errorf("%d acknowledged, %d handled", h.acked, h.steps)
	}
}

// TestRefused: a refusal ends the repeats and is no acknowledgement; all fragments
// of the message go.
func TestRefused(t *testing.T) {
	for _, size := range []int{10, 5000, -10, -5000} {
		a, b := pairOf(t, nil, nil)
		a.SetEpoch(1)
		if size > 0 {
			b.SetEpoch(2) // the link knows
		}
		size = max(size, -size) // else its handler alone
		there, here := &counter{verdict: Refused}, &counter{}
		a.Send(2, 1, Data, 1, 7, make([]byte, size), 11)
		carry(a, b, 2, there)
		carry(b, a, 2, here)
		if here.refused != 1 || here.acked != 0 || a.Next() != Never || a.Backlog(1) != 0 {
			t.Errorf("%d bytes: refused %d times, acknowledged %d times, next repeat %d", size, here.refused,
				here.acked, a.Next())
		}
	}
}

// TestNotYet: what was not handled is neither acknowledged nor remembered.
func TestNotYet(t *testing.T) {
	a, b := pairOf(t, nil, nil)
	there, here := &counter{verdict: NotYet}, &counter{}
	a.Send(2, 1, Data, 0, 7, []byte("x"), 11)
	d := first(t, a)
	for i := range Instant(3) {
		b.Receive(2+i, d, there)
		b.Tick(Second)
		carry(b, a, 2, here)
	}
	if there.steps != 3 || here.acked != 0 || len(b.held) != 1 {
		t.Errorf("handed in %d times, acknowledged %d times, held %d times", there.steps, here.acked, len(b.held))
	}
	there.verdict = Handled
	b.Retry(3, there)
	b.Receive(3, d, there)
	b.Tick(2 * Second)
	if carry(b, a, 3, here); there.steps != 4 || here.acked != 1 {
		t.Errorf("handed in %d times, acknowledged %d times", there.steps, here.acked)
	}
}

// TestBackoff: the first repeat after 2 ms, then twice as long, 50 ms at most.
func TestBackoff(t *testing.T) {
	a, _ := pairOf(t, nil, nil)
	now := Second
	a.Send(now, 1, Data, 0, 7, []byte("x"), 11)
	d := first(t, a)
	for _, want := range []Instant{2, 4, 8, 16, 32, 50, 50, 50} {
		if got := a.Next() - now; got != want*Millisecond {
			t.Fatalf("repeated after %d µs, not %d ms", got/Microsecond, want)
		}
		now = a.Next()
		a.Tick(now - 1)
		if len(a.Take()) != 0 {
			t.Fatal("repeated early")
		}
		a.Tick(now)
		if again := first(t, a); !bytes.Equal(d, again) {
			t.Fatal("repeated with other bytes")
		}
	}
}

// TestFormerSelf: what was sent to a former incarnation of this node reaches nobody.
func TestFormerSelf(t *testing.T) {
	a, b := pairOf(t, nil, nil)
	h := &counter{}
	a.Send(2, 1, Data, 0, 7, []byte("x"), 11)
	a.Send(2, 1, Beacon, 0, 0, ping(), 0)
	a.Send(2, 1, Control, 5, 0, []byte("y"), 12)
	again, err := New(Config{Self: 1, Nodes: 2, Incarnation: 3})
	if err != nil {
		t.Fatal(err)
	}
	b.Send(2, 0, Data, 0, 7, []byte("z"), 1)
	acked := first(t, b)
	carry(a, again, 2, h)
	if h.steps+h.beacons+len(h.events) != 0 || again.Counters().Stale != 3 {
		t.Errorf("%d packets and %d beacons handed in, events %v", h.steps, h.beacons, h.events)
	}
	// The new one is met by its PING; what is under way to the old one is dropped, and
	// what the old one had sent is for nobody.
	again.Send(3, 0, Beacon, 0, 0, ping(), 0)
	for range 4 {
		carry(again, a, 3, h)
		carry(a, again, 3, sink{})
	}
	if a.Incarnation(1) != 3 || a.Next() != Never {
		t.Errorf("incarnation %d, next repeat %d", a.Incarnation(1), a.Next())
	}
	h.steps = 0
	a.Receive(3, acked, h)
	if h.steps != 0 || h.acked != 0 {
		t.Error("a message of the former incarnation is handled")
	}
}

// TestLateAnswer: an answer to a challenge counts while that challenge is the last.
func TestLateAnswer(t *testing.T) {
	a, _ := pairOf(t, nil, nil)
	h := &counter{}
	start := func(inc uint64) *Link {
		l, err := New(Config{Self: 1, Nodes: 2, Incarnation: inc})
		if err != nil {
			t.Fatal(err)
		}
		l.Send(1, 0, Beacon, 0, 0, ping(), 0)
		return l
	}
	challenged := func(l *Link, now Instant) (answer []byte) {
		carry(l, a, now, h)
		carry(a, l, now, sink{})
		return first(t, l)
	}
	dead := challenged(start(70), 2)
	answer := challenged(start(80), 2+Second)
	a.Receive(2+Second, dead, h)
	if a.Incarnation(1) != 2 {
		t.Fatalf("incarnation %d by an answer to another challenge", a.Incarnation(1))
	}
	a.Receive(3+Second, answer, h)
	a.Receive(4+Second, dead, h)
	if a.Incarnation(1) != 80 {
		t.Errorf("incarnation %d", a.Incarnation(1))
	}
}

// TestFirstWord: a peer that was never heard gets what was queued for it when it speaks,
// in order.
func TestFirstWord(t *testing.T) {
	mk := func(self wire.PNN) *Link {
		l, err := New(Config{Self: self, Nodes: 2, Incarnation: uint64(self) + 1})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	a, b := mk(0), mk(1)
	for i := range 3 {
		a.Send(1, 1, Control, 5, 0, []byte{byte(i)}, 1)
	}
	if a.Take() != nil && len(a.Take()) != 0 || a.Next() != Never {
		t.Fatal("sent to nobody")
	}
	b.Send(1, 0, Beacon, 0, 0, ping(), 0)
	h := &counter{}
	carry(b, a, 1, h)
	ds := a.Take()
	if len(ds) != 3 || len(h.events) != 1 || h.events[0] != Met {
		t.Fatalf("%d datagrams, events %v", len(ds), h.events)
	}
	for i, d := range ds {
		if b.Receive(1, d.Bytes, h); h.last[0] != byte(i) {
			t.Errorf("message %d is %d", i, h.last[0])
		}
	}
}

// TestRefusedWindow: a window full of refused messages lets go what waits behind it.
func TestRefusedWindow(t *testing.T) {
	for _, ch := range []Channel{Data, Control} {
		a, b := pairOf(t, nil, nil)
		if ch == Data {
			b.SetEpoch(2)
		}
		there, here := &counter{verdict: Refused}, &counter{}
		for range Window + 5 {
			a.Send(2, 1, ch, 0, 7, []byte("of an older time"), 11)
		}
		for range 3 {
			carry(a, b, 2, there)
			carry(b, a, 2, here)
			if err := a.Check(2); err != nil {
				t.Fatal(err)
			}
		}
		if here.refused != Window+5 || a.Backlog(1) != 0 {
			t.Errorf("channel %d: %d of %d refused, %d wait", ch, here.refused, Window+5, a.Backlog(1))
		}
		// CONTROL goes on with the same sequence: the refused ones leave no hole.
		there.verdict = Handled
		a.Send(3, 1, Control, 1, 7, []byte("of this time"), 12)
		carry(a, b, 3, there)
		if s, r := a.State(1, Control), b.State(0, Control); r.Base != s.Next-1 || r.Holes {
			t.Errorf("channel %d: %d of %d handled, holes %v", ch, r.Base, s.Next-1, r.Holes)
		}
	}
}

// TestHeldFull: who has no room for what comes too early drops it, and takes the
// repeat; what waits already does not count twice.
func TestHeldFull(t *testing.T) {
	a, b := pairOf(t, nil, nil)
	b.cfg.MaxHeld = 2
	there, here := &counter{verdict: NotYet}, &counter{}
	for range 3 {
		a.Send(2, 1, Data, 0, 7, []byte("early"), 11)
	}
	carry(a, b, 2, there)
	a.Tick(Second)
	carry(a, b, Second, there)
	if b.Held() != 2 || b.Counters().Unheld != 2 {
		t.Errorf("%d datagrams held, %d not", b.Held(), b.Counters().Unheld)
	}
	there.verdict = Handled
	b.Retry(Second, there)
	a.Tick(2 * Second)
	carry(a, b, 2*Second, there)
	b.Tick(3 * Second)
	if carry(b, a, 3*Second, here); here.acked != 3 {
		t.Errorf("%d of 3 acknowledged", here.acked)
	}
}

// TestWindow: no more frames are on their way than the window says.
func TestWindow(t *testing.T) {
	a, b := pairOf(t, nil, nil)
	a.cfg.Window = 3
	h := &counter{}
	for range 10 {
		a.Send(2, 1, Data, 0, 7, []byte("x"), 0)
	}
	if s := a.State(1, Data); s.Flight != 3 || s.Waiting != 7 || a.Counters().Waited != 7 {
		t.Errorf("%d frames are on their way, %d wait, %d have waited", s.Flight, s.Waiting, a.Counters().Waited)
	}
	if settlePair(t, a, b, h); h.steps != 10 {
		t.Errorf("%d of 10 handled", h.steps)
	}
}
