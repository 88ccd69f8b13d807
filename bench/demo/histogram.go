package demo

import "math/bits"

// histogram counts nanoseconds in buckets of 3 % or less: 32 for each power
// of two, up to 18 minutes.
type histogram struct {
	n      uint64
	counts [histogramSize]uint64
}

const (
	histogramBits = 5
	histogramSize = 35<<histogramBits + 2<<histogramBits
)

func bucket(ns uint64) int {
	shift := max(bits.Len64(ns)-histogramBits-1, 0)
	return min(shift<<histogramBits+int(ns>>shift), histogramSize-1)
}

// highest is the largest value of a bucket.
func highest(bucket int) uint64 {
	shift := max(bucket>>histogramBits-1, 0)
	return uint64(bucket-shift<<histogramBits+1)<<shift - 1
}

func (h *histogram) add(ns uint64) {
	h.n++
	h.counts[bucket(ns)]++
}

func (h *histogram) merge(o *histogram) {
	h.n += o.n
	for i, c := range o.counts {
		h.counts[i] += c
	}
}

// quantile returns the value that the part q of all are not above.
func (h *histogram) quantile(q float64) uint64 {
	rank := uint64(q * float64(h.n))
	var seen uint64
	for i, c := range h.counts {
		if seen += c; c > 0 && seen > rank || seen == h.n {
			return highest(i)
		}
	}
	return 0
}

// sparse is a histogram as it is sent: bucket, count, bucket, count, …
func (h *histogram) sparse() (s []uint64) {
	for i, c := range h.counts {
		if c > 0 {
			s = append(s, uint64(i), c)
		}
	}
	return s
}

func (h *histogram) addSparse(s []uint64) {
	for ; len(s) >= 2; s = s[2:] {
		if i := s[0]; i < histogramSize {
			h.counts[i] += s[1]
			h.n += s[1]
		}
	}
}
