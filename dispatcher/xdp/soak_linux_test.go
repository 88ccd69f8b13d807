package xdp

import (
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/dispatcher/transport"
	"github.com/mainzdb/mainz/dispatcher/transport/transporttest"
	"github.com/mainzdb/mainz/internal/testenv"
)

// residentKiB is how much memory this process has.
func residentKiB(t testing.TB) int {
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

// TestSoak sends both ways as fast as it goes, in bursts that overflow the
// rings now and then. In the end every datagram has come or is counted under a
// reason, all frames are where they belong, and memory has not grown.
// MAINZ_SOAK=5m sets how long each path is under load.
func TestSoak(t *testing.T) {
	testenv.Need(t, testenv.Root)
	length := 300 * time.Millisecond
	// Open: on a busy machine the generic path loses some datagrams that no
	// counter of ours or of the interface names, about one run in seven. Its
	// account is asked for with MAINZ_SOAK until that place is found.
	modes := []Mode{UDP, Copy}
	if s := os.Getenv("MAINZ_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
		modes = append(modes, Generic)
	}
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) { soak(t, mode, length) })
	}
}

func soak(t *testing.T, mode Mode, length time.Duration) {
	w := newWire(t, false, 1)
	a, b := w.net(mode).Open2(t, transport.Filter{})
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(seed, 9))
	nodes := [2]*transporttest.Node{a, b}
	// Nodes keep what they get; this loop counts.
	count := func([]byte, transport.PeerID) {}
	var first, last int
	start, ticked := time.Now(), time.Duration(0)
	for time.Since(start) < length {
		i := r.IntN(2)
		from, to := nodes[i], transport.PeerID(1-i)
		for range 1 + r.IntN(3)*r.IntN(900) {
			buf := from.Buf(to, 16+r.IntN(1400))
			if buf == nil {
				_ = from.Flush()
				if r.IntN(8) > 0 {
					nodes[1-i].Poll(32, count)
				}
				continue
			}
			from.Commit(len(buf))
		}
		_ = from.Flush()
		for range r.IntN(60) {
			nodes[0].Poll(32, count)
			nodes[1].Poll(32, count)
		}
		if now := time.Since(start); now-ticked > 10*time.Millisecond {
			ticked = now
			for _, n := range nodes {
				if err := n.Tick(now); err != nil {
					t.Fatal(err)
				}
			}
		}
		if first == 0 && time.Since(start) > length/5 {
			first = residentKiB(t)
		}
	}
	last = residentKiB(t)
	var sent, got, lost, probes uint64
	transporttest.Eventually(t, "an account of every datagram", func() bool {
		nodes[0].Poll(256, count)
		nodes[1].Poll(256, count)
		sent, got, lost, probes = 0, 0, wireDrops(t, w), 0
		for _, n := range nodes {
			_ = n.Flush()
			s := n.Stats()
			sent += s.TxPackets + s.Drops[transport.DropUnsent]
			got += s.RxPackets
			lost += s.Dropped()
			probes += s.ProbesSent + s.ProbesBack
		}
		return got+lost >= sent
	})
	s := [2]transport.Stats{a.Stats(), b.Stats()}
	t.Logf("%d sent in %v, %d received, %d counted as lost; %+v; memory %d then %d KiB", sent, length, got, lost, s, first, last)
	// Probes get lost like all else, and are counted among the losses.
	if got+lost > sent+probes {
		t.Errorf("%d sent, but %d received and %d lost", sent, got, lost)
	}
	if last > first+8<<10 {
		t.Errorf("memory grew from %d to %d KiB", first, last)
	}
	if mode != UDP {
		for _, n := range nodes {
			if err := conn(n).u.check(); err != nil {
				t.Error(err)
			}
		}
	}
}
