package shm

import (
	"sync"
	"time"
)

// TickRate returns how often [Ticks] counts in a second. The first call takes
// 5 ms to find out, to a hundredth of a percent.
func TickRate() float64 { return tickRate() }

var tickRate = sync.OnceValue(func() float64 {
	start, first := time.Now(), Ticks()
	for time.Since(start) < 5*time.Millisecond {
		Pause(10)
	}
	ticks := Ticks() - first
	return float64(ticks) / time.Since(start).Seconds()
})
