package histogram

import (
	"fmt"
	"math/bits"
)

const (
	subBits = 7  // 128 buckets for each power of two: 0.8 %
	topBits = 40 // everything above 2^40 ns is in the last bucket
	// Size is how many buckets there are.
	Size = (topBits - subBits + 1) << subBits
)

// Histogram counts nanoseconds in log-linear buckets, exact below 256 ns. The zero
// Histogram is empty. bench/peers/workload.h has the same buckets.
type Histogram struct {
	N, Max uint64 // of the values
	count  [Size]uint32
}

// Buckets is a histogram on its way between processes: bucket and count, for
// those that are not empty, in ascending order.
type Buckets [][2]uint32

// Bucket is the number of the bucket that a value falls into.
func Bucket(ns uint64) int {
	ns = min(ns, 1<<topBits-1)
	shift := max(0, bits.Len64(ns)-1-subBits)
	return shift<<subBits + int(ns>>shift)
}

// Middle is the middle of a bucket.
func Middle(i int) float64 {
	if i < 2<<subBits {
		return float64(i)
	}
	shift := i>>subBits - 1
	low := uint64(i-shift<<subBits) << shift
	return float64(low) + float64(uint64(1)<<shift-1)/2
}

// Add counts one value.
func (h *Histogram) Add(ns uint64) {
	h.N++
	h.Max = max(h.Max, ns)
	h.count[Bucket(ns)]++
}

// Merge adds what another histogram has counted, and takes no bucket that there is not.
func (h *Histogram) Merge(b Buckets, maxNS uint64) error {
	for _, x := range b {
		if x[0] >= Size {
			return fmt.Errorf("histogram has bucket %d of %d", x[0], Size)
		}
		h.count[x[0]] += x[1]
		h.N += uint64(x[1])
	}
	h.Max = max(h.Max, maxNS)
	return nil
}

// Buckets returns what is counted.
func (h *Histogram) Buckets() Buckets {
	var b Buckets
	for i, n := range h.count {
		if n > 0 {
			b = append(b, [2]uint32{uint32(i), n})
		}
	}
	return b
}

// Quantile returns the value that a share q of the values lies below, 0 if
// there are none.
func (h *Histogram) Quantile(q float64) float64 {
	if h.N == 0 {
		return 0
	}
	rank := min(uint64(q*float64(h.N)), h.N-1)
	seen := uint64(0)
	for i, n := range h.count {
		if seen += uint64(n); seen > rank {
			return min(Middle(i), float64(h.Max))
		}
	}
	panic(fmt.Sprintf("histogram of %d values counts only %d", h.N, seen))
}
