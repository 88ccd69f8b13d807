package drive_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainzdb/mainz/bench/drive"
	"github.com/mainzdb/mainz/transport"
)

var addrs = [2]netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:1")}

// serve runs an echo server on a network and returns the other end.
func serve(t *testing.T, net *transport.Net) *transport.Memory {
	t.Helper()
	var m [2]*transport.Memory
	for i := range m {
		x, err := net.Open(addrs[i], transport.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		if err := x.SetPeers([]transport.Peer{{ID: transport.PeerID(1 - i), Addr: addrs[1-i]}}); err != nil {
			t.Fatal(err)
		}
		m[i] = x
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, err := drive.Echo(ctx, m[1], drive.Options{CPU: -1})
		done <- err
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m[0]
}

func TestPing(t *testing.T) {
	for _, window := range []int{1, 7, 64} {
		m := serve(t, new(transport.Net))
		r, err := drive.Ping(context.Background(), m,
			drive.PingOptions{To: 1, Count: 100, Window: window, Size: 100, Patience: time.Minute,
				Options: drive.Options{CPU: -1}})
		if err != nil {
			t.Fatal(err)
		}
		if r.Sent != 100 || r.Received != 100 || r.Lost != 0 || r.Min > r.P50 || r.P50 > r.P99 || r.P99 > r.P999 ||
			r.P50 <= 0 {
			t.Errorf("window %d: %+v", window, r)
		}
	}
}

// TestLoss: every datagram is accounted for.
func TestLoss(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var lost atomic.Uint64 // the server still runs when it is read
	m := serve(t, &transport.Net{Lose: func(from, to netip.AddrPort, p []byte) bool {
		if len(p) != 50 || r.IntN(20) != 0 {
			return false
		}
		lost.Add(1)
		return true
	}})
	got, err := drive.Ping(context.Background(), m,
		drive.PingOptions{To: 1, Count: 300, Window: 4, Size: 50, Patience: 1_000_000,
			Options: drive.Options{Idle: drive.Busy, CPU: -1}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Lost == 0 || lost.Load() == 0 || got.Sent != 300 || got.Received+got.Lost != got.Sent {
		t.Errorf("%d lost on the way: %+v", lost.Load(), got)
	}
}

func TestNobody(t *testing.T) {
	m := serve(t, &transport.Net{Lose: func(from, to netip.AddrPort, p []byte) bool { return true }})
	_, err := drive.Ping(context.Background(), m,
		drive.PingOptions{To: 1, Count: 1, WaitFor: 1_000_000, Options: drive.Options{Idle: drive.Busy, CPU: -1}})
	if !errors.Is(err, drive.ErrNoAnswer) {
		t.Errorf("nobody answers: %v", err)
	}
	for _, o := range []drive.PingOptions{{To: 1}, {To: 1, Count: 1, Size: 15}, {To: 1, Count: 1, Size: 1 << 20},
		{To: 1, Count: 1, Window: -1}, {To: 9, Count: 1},
		{To: 1, Count: -1}, {To: 1, Duration: -1}, {To: 1, Count: 1, Duration: -1}} {
		if _, err := drive.Ping(context.Background(), m, o); !errors.Is(err, drive.ErrOptions) {
			t.Errorf("%+v was taken", o)
		}
	}
}

// sleeper counts how often somebody goes to sleep.
type sleeper struct {
	*transport.Memory
	slept int
}

func (s *sleeper) Fds() []int {
	s.slept++
	return s.Memory.Fds()
}

// TestIdle: every way to be idle finds what comes.
func TestIdle(t *testing.T) {
	for _, idle := range []drive.Idle{drive.Adaptive, drive.Busy, drive.Sleep} {
		m := serve(t, new(transport.Net))
		r, err := drive.Ping(context.Background(), m,
			drive.PingOptions{To: 1, Count: 20, Patience: time.Minute, Options: drive.Options{Idle: idle, CPU: -1}})
		if err != nil {
			t.Fatal(err)
		}
		if r.Received != 20 || r.Lost != 0 {
			t.Errorf("%s: %+v", idle, r)
		}
	}
	// And each idles in its way: descriptors are asked for to sleep on them.
	for idle, want := range map[drive.Idle]bool{drive.Adaptive: true, drive.Busy: false, drive.Sleep: true} {
		m, err := new(transport.Net).Open(addrs[0], transport.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		s := &sleeper{Memory: m}
		err = drive.Loop(context.Background(), s, drive.Options{Idle: idle, Spin: time.Millisecond, CPU: -1},
			func(now time.Duration) (busy, done bool) { return false, now > 30*time.Millisecond })
		if err != nil || s.slept > 0 != want {
			t.Errorf("%s slept %d times, %v", idle, s.slept, err)
		}
	}
	if _, err := drive.ParseIdle("never"); err == nil {
		t.Error("a way to be idle that there is not")
	}
	if i, err := drive.ParseIdle(""); err != nil || i != drive.Adaptive {
		t.Errorf("the default is %q, %v", i, err)
	}
}
