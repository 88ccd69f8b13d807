package histogram

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// newRand prints its seed, so that a failure can be repeated.
func newRand(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestHistogramBucketsHoldTheirValues(t *testing.T) {
	values := []uint64{0, 1, 127, 128, 255, 256, 257, 511, 512, 1<<40 - 1}
	r := newRand(t)
	for range 100_000 {
		values = append(values, r.Uint64()>>(24+r.UintN(40)))
	}
	slices.Sort(values)
	before := 0
	for _, v := range values {
		i := Bucket(v)
		if i < before || i >= Size {
			t.Fatalf("%d is in bucket %d, behind one in %d, of %d", v, i, before, Size)
		}
		before = i
		if off := math.Abs(Middle(i) - float64(v)); off > float64(v)/256 || v < 256 && off != 0 {
			t.Fatalf("%d is told as %v", v, Middle(i))
		}
	}
	if got := Bucket(math.MaxUint64); got != Size-1 {
		t.Errorf("the largest value is in bucket %d, not the last (%d)", got, Size-1)
	}
}

// A sorted slice is the naive twin.
func TestHistogramQuantiles(t *testing.T) {
	r := newRand(t)
	for range 20 {
		var h Histogram
		var values []uint64
		for range 1 + r.IntN(5000) {
			v := uint64(math.Exp(r.Float64() * 20))
			values = append(values, v)
			h.Add(v)
		}
		slices.Sort(values)
		for _, q := range []float64{0, 0.5, 0.99, 0.999, 1} {
			want := float64(values[min(int(q*float64(len(values))), len(values)-1)])
			if got := h.Quantile(q); math.Abs(got-want) > want/128+1 {
				t.Errorf("quantile %v of %d values is %v, not %v", q, len(values), got, want)
			}
		}
		if h.Max != values[len(values)-1] {
			t.Errorf("max is %d, not %d", h.Max, values[len(values)-1])
		}
	}
	if got := new(Histogram).Quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestHistogramMerges(t *testing.T) {
	r := newRand(t)
	var one, two, both, merged Histogram
	for i := range 10_000 {
		v := r.Uint64N(1 << 30)
		both.Add(v)
		if i%3 == 0 {
			one.Add(v)
		} else {
			two.Add(v)
		}
	}
	for _, h := range []*Histogram{&one, &two} {
		if err := merged.Merge(h.Buckets(), h.Max); err != nil {
			t.Fatal(err)
		}
	}
	if merged != both {
		t.Error("two halves merged differ from the whole")
	}
	if err := merged.Merge(Buckets{{Size, 1}}, 0); err == nil {
		t.Error("a bucket behind the last one was taken")
	}
}

// What is behind the largest bucket is in it, and no quantile is above the longest.
func TestHistogramOfLongTimes(t *testing.T) {
	var h Histogram
	for range 3 {
		h.Add(math.MaxUint64)
	}
	h.Add(5)
	if h.N != 4 || h.Max != math.MaxUint64 || h.Quantile(0) != 5 || h.Quantile(1) < 1<<39 {
		t.Errorf("%d values up to %d, quantiles %v and %v", h.N, h.Max, h.Quantile(0), h.Quantile(1))
	}
}
