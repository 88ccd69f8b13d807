package bench

import (
	"fmt"
	"math/bits"
)

const (
	subBits    = 7  // 128 buckets for each power of two: 0.8 %
	topBits    = 40 // everything above 2^40 ns is in the last bucket
	bucketsAll = (topBits - subBits + 1) << subBits
)

// histogram counts nanoseconds in log-linear buckets, exact below 256 ns. The
// zero histogram is empty. peers/workload.h has the same buckets.
type histogram struct {
	n, max uint64
	count  [bucketsAll]uint32
}

// buckets is a histogram on its way between processes: bucket and count, for
// those that are not empty, in ascending order.
type buckets [][2]uint32

func bucketOf(ns uint64) int {
	ns = min(ns, 1<<topBits-1)
	shift := max(0, bits.Len64(ns)-1-subBits)
	return shift<<subBits + int(ns>>shift)
}

// bucketValue is the middle of a bucket.
func bucketValue(i int) float64 {
	if i < 2<<subBits {
		return float64(i)
	}
	shift := i>>subBits - 1
	low := uint64(i-shift<<subBits) << shift
	return float64(low) + float64(uint64(1)<<shift-1)/2
}

func (h *histogram) add(ns uint64) {
	h.n++
	h.max = max(h.max, ns)
	h.count[bucketOf(ns)]++
}

// merge adds what another process counted.
func (h *histogram) merge(b buckets, maxNS uint64) error {
	for _, x := range b {
		if x[0] >= bucketsAll {
			return fmt.Errorf("histogram has bucket %d of %d", x[0], bucketsAll)
		}
		h.count[x[0]] += x[1]
		h.n += uint64(x[1])
	}
	h.max = max(h.max, maxNS)
	return nil
}

func (h *histogram) buckets() buckets {
	var b buckets
	for i, n := range h.count {
		if n > 0 {
			b = append(b, [2]uint32{uint32(i), n})
		}
	}
	return b
}

// quantile returns the value that a share q of the values lies below, 0 if
// there are none.
func (h *histogram) quantile(q float64) float64 {
	if h.n == 0 {
		return 0
	}
	rank := min(uint64(q*float64(h.n)), h.n-1)
	seen := uint64(0)
	for i, n := range h.count {
		if seen += uint64(n); seen > rank {
			return min(bucketValue(i), float64(h.max))
		}
	}
	panic(fmt.Sprintf("bench: histogram of %d values counts only %d", h.n, seen))
}
