package drive_test

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainzdb/mainz/dispatcher/transport"
	"github.com/mainzdb/mainz/dispatcher/transport/drive"
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
		r, err := drive.Ping(context.Background(), m, drive.PingOptions{To: 1, Count: 100, Window: window, Size: 100, Patience: time.Minute, Options: drive.Options{CPU: -1}})
		if err != nil {
			t.Fatal(err)
		}
		if r.Sent != 100 || r.Received != 100 || r.Lost != 0 || r.Min > r.P50 || r.P50 > r.P99 || r.P99 > r.P999 || r.P50 <= 0 {
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
	got, err := drive.Ping(context.Background(), m, drive.PingOptions{To: 1, Count: 300, Window: 4, Size: 50, Patience: 1_000_000, Options: drive.Options{Idle: drive.Busy, CPU: -1}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Lost == 0 || lost.Load() == 0 || got.Sent != 300 || got.Received+got.Lost != got.Sent {
		t.Errorf("%d lost on the way: %+v", lost.Load(), got)
	}
}

func TestNobody(t *testing.T) {
	m := serve(t, &transport.Net{Lose: func(from, to netip.AddrPort, p []byte) bool { return true }})
	_, err := drive.Ping(context.Background(), m, drive.PingOptions{To: 1, Count: 1, WaitFor: 1_000_000, Options: drive.Options{Idle: drive.Busy, CPU: -1}})
	if err == nil || !strings.Contains(err.Error(), "has not answered") {
		t.Errorf("nobody answers: %v", err)
	}
	for _, o := range []drive.PingOptions{{To: 1}, {To: 1, Count: 1, Size: 15}, {To: 1, Count: 1, Size: 1 << 20}, {To: 1, Count: 1, Window: -1}, {To: 9, Count: 1}} {
		if _, err := drive.Ping(context.Background(), m, o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// TestIdle: every way to be idle finds what comes.
func TestIdle(t *testing.T) {
	for _, idle := range []drive.Idle{drive.Adaptive, drive.Busy, drive.Sleep} {
		m := serve(t, new(transport.Net))
		r, err := drive.Ping(context.Background(), m, drive.PingOptions{To: 1, Count: 20, Patience: time.Minute, Options: drive.Options{Idle: idle, CPU: -1}})
		if err != nil {
			t.Fatal(err)
		}
		if r.Received != 20 || r.Lost != 0 {
			t.Errorf("%s: %+v", idle, r)
		}
	}
	if _, err := drive.ParseIdle("never"); err == nil {
		t.Error("a way to be idle that there is not")
	}
	if i, err := drive.ParseIdle(""); err != nil || i != drive.Adaptive {
		t.Errorf("the default is %q, %v", i, err)
	}
}
