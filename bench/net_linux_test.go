package bench

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// TestStarvedSlices: a slice that came to nothing is tried again, and one that
// never comes to something spoils neither the others nor their ratios.
func TestStarvedSlices(t *testing.T) {
	good := netSlice{Sent: 9, Recv: 8, PerSec: 8, P50: 3}
	for name, c := range map[string]struct {
		give  []netSlice
		fail  error
		tries int
		ok    bool
	}{
		"at once":        {[]netSlice{good}, nil, 1, true},
		"no answer once": {[]netSlice{{Sent: 9}, good}, nil, 2, true},
		"nothing sent":   {[]netSlice{{}, {}, good}, nil, 3, true},
		"never":          {[]netSlice{{}, {}, {}, good}, nil, 3, false},
		"error":          {[]netSlice{good, good, good, good}, errors.New("no such interface"), 3, false},
	} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			s, err := retried(t.Context(), func() (netSlice, error) {
				tries++
				return c.give[tries-1], c.fail
			})
			if tries != c.tries || s.ok() != c.ok || (err == nil) != c.ok || c.fail != nil && !errors.Is(err, c.fail) {
				t.Errorf("%d tries, %+v, %v", tries, s, err)
			}
		})
	}
	ctx, stop := context.WithCancel(t.Context())
	tries := 0
	if _, err := retried(ctx, func() (netSlice, error) {
		tries++
		stop()
		return netSlice{}, ctx.Err()
	}); err == nil || tries != 1 {
		t.Errorf("cancelled, and then %d tries, %v", tries, err)
	}

	at := func(p50 ...float64) (v []netSlice) {
		for _, x := range p50 {
			s := netSlice{P50: x, PerSec: 1e9 / max(x, 1)}
			if x > 0 {
				s.Recv = 1
			}
			v = append(v, s)
		}
		return v
	}
	if _, ok := netResult("rtt", peerC, 64, at(0, 0)); ok {
		t.Error("a result of nothing")
	}
	if r, ok := netResult("rtt", peerC, 64, at(0, 10, 20)); !ok || r.Reps != 2 || r.P50 != 15 || r.MopsMin <= 0 {
		t.Errorf("%+v", r)
	}
	// The first round has no C and the third none of ours; Go was never measured.
	ratios := netRatios("rtt", 64, map[string][]netSlice{
		peerC: at(0, 10, 10), peerUDP: at(20, 20, 9), peerGeneric: at(8, 5, 0), peerGo: at(0, 0, 0)})
	want := []Ratio{
		{Name: "rtt 64: xdp-generic / best kernel UDP", Value: 0.5, Q1: 0.5, Q3: 0.5, Pairs: 1},
		{Name: "rtt 64: xdp-generic / c-udp", Value: 0.5, Q1: 0.5, Q3: 0.5, Pairs: 1},
		{Name: "rtt 64: xdp-generic / udp", Value: 0.325, Q1: 0.2875, Q3: 0.3625, Pairs: 2},
	}
	if !slices.Equal(ratios, want) {
		t.Errorf("got  %+v,\nwant %+v", ratios, want)
	}
	// The best is that of the run, though the other one won a round.
	rate := func(perSec ...float64) (v []netSlice) {
		for _, x := range perSec {
			v = append(v, netSlice{PerSec: x, Recv: 1})
		}
		return v
	}
	ratios = netRatios("rate", 64, map[string][]netSlice{peerC: rate(2, 2, 5), peerUDP: rate(4, 4, 4),
		peerGeneric: rate(8, 8, 10)})
	if len(ratios) != 3 || ratios[0].Value != 2 || ratios[0].Q3 != 2.25 || ratios[1].Value != 4 ||
		ratios[2].Value != 2 {
		t.Errorf("%+v", ratios)
	}
	ratios = netRatios("rate", 64, map[string][]netSlice{peerUDP: at(10, 20), peerGeneric: at(5, 5)})
	if len(ratios) != 2 || ratios[0] != (Ratio{Name: ratios[0].Name, Value: 3, Q1: 2.5, Q3: 3.5, Pairs: 2}) ||
		ratios[1].Value != 3 {
		t.Errorf("%+v", ratios)
	}
	if r := netRatios("rtt", 64, nil); r != nil {
		t.Errorf("of nothing: %+v", r)
	}
}
