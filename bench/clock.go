package bench

import (
	"math/bits"

	"github.com/mainzdb/mainz/shm"
)

// clock turns ticks of the CPU's counter into nanoseconds.
type clock struct {
	firstTicks, scale uint64 // ns = ticks * scale >> 32
	firstNS           int64
}

func startClock() clock { return clock{firstTicks: shm.Ticks(), firstNS: monotonicNS()} }

// calibrate measures the counter's rate over the whole life of the process so
// far, at least 20 ms: the two readings are then off by less than 10 in a
// million.
func (c *clock) calibrate() {
	for {
		ns, ticks := monotonicNS(), shm.Ticks()
		if life := ns - c.firstNS; life >= 20e6 {
			c.scale, _ = bits.Div64(uint64(life)>>32, uint64(life)<<32, ticks-c.firstTicks)
			return
		}
	}
}

func (c *clock) ns(ticks uint64) uint64 {
	hi, lo := bits.Mul64(ticks, c.scale)
	return hi<<32 | lo>>32
}

func (c *clock) ticks(ns uint64) uint64 {
	q, _ := bits.Div64(ns>>32, ns<<32, c.scale)
	return q
}

// timerStep is the resolution of the counter in nanoseconds: on some CPUs it
// is counted at 100 MHz and scaled up. The smallest difference between two
// intervals tells it even where an interval is much longer than a step.
func timerStep() float64 {
	c := startClock()
	c.calibrate()
	step := uint64(1 << 20)
	var last uint64
	for range 10_000 {
		from := shm.FencedTicks()
		took := shm.FencedTicks() - from
		if took != last {
			step = min(step, max(took, last)-min(took, last))
		}
		last = took
	}
	return round(float64(step) * float64(c.scale) / (1 << 32))
}
