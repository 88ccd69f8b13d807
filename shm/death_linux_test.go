package shm

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

// kill -9 of who holds a latch, until another process that waits for it has it. The
// larger the segment, the longer the kernel needs to tear the dead one's memory down:
// nobody may have to wait for that.
func BenchmarkDeath(b *testing.B) {
	dir := mapped(b)
	for _, size := range []uint64{16 << 20, 1 << 30} {
		b.Run(fmt.Sprint(size>>20, "MiB"), func(b *testing.B) {
			cfg := testConfig(4)
			cfg.Size = size
			s := newSegment(b, dir, cfg)
			c := join(b, s, repairArea)
			area := areaOf(s)
			var took []time.Duration
			for range b.N {
				h := spawn(b, "hold", dir, nil)
				h.says("holds")
				got := make(chan error)
				go func() { got <- area.latch.Lock(c, c.HandleID(1)) }()
				until(b, "we wait", func() bool { return area.latch.w.Load()&latchWaiters != 0 })
				start := time.Now()
				h.signal(syscall.SIGKILL)
				if err := <-got; err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
				area.latch.Unlock(c.HandleID(1))
				h.kill()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*9/10].Microseconds()), "p90-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
