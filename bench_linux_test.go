package mainz

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// benchNode starts mainzd in a process of its own.
func benchNode(b *testing.B, idle string) *Client {
	b.Helper()
	base, err := os.MkdirTemp("/dev/shm", "mainz-bench-*")
	if err != nil {
		b.Fatal(err)
	}
	dir := filepath.Join(base, "v1")
	d := child(b, "mainzd", "--config", os.DevNull, "--dir", dir, "--size", "64MiB", "--idle", idle, "--log-level",
		"warn")
	if err := d.Start(); err != nil {
		b.Fatal(err)
	}
	c := attachTo(b, dir, ThroughRing())
	b.Cleanup(func() {
		_ = c.Close()
		_ = d.Process.Kill()
		_ = d.Wait()
		_ = os.RemoveAll(base)
	})
	return c
}

// The way through the ring to mainzd and back, by what mainzd does when it has
// nothing to do. mainz bench ring has the floor under it.
func BenchmarkRing(b *testing.B) {
	ctx := b.Context()
	for _, idle := range []string{"busy", "adaptive", "sleep"} {
		b.Run(idle, func(b *testing.B) {
			c := benchNode(b, idle)
			db := c.open(b, "db", KV)
			key, value := []byte("0123456789abcdef"), make([]byte, 64)
			if err := db.Store(ctx, key, value); err != nil {
				b.Fatal(err)
			}
			b.Run("nop", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := c.ring.Nop(ctx); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("fetch64", func(b *testing.B) {
				b.ReportAllocs()
				buf := make([]byte, 0, 64)
				for b.Loop() {
					if _, err := db.AppendFetch(ctx, buf, key); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("store64", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := db.Store(ctx, key, value); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("rmw64", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					r, err := db.FetchLocked(ctx, key)
					if err == nil {
						err = r.StoreUnlock(value)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// The same by bypass, through a Handle and through the DB, against the store's own
// Handle: slices of some 50 us in turn, so that all of them see the same machine. Its
// figures are the medians of the slices, and of the differences and ratios to the
// store's slice of the same round.
func BenchmarkBypass(b *testing.B) {
	const slice = 500
	ctx := b.Context()
	c := benchNode(b, "sleep")
	c.opts.forceRing = false
	db := c.open(b, "db", KV)
	h, err := db.Handle()
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	key, value := []byte("0123456789abcdef"), make([]byte, 64)
	if err := db.Store(ctx, key, value); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 0, 64)
	fetch := func(ops Ops) (err error) {
		for i := 0; i < slice && err == nil; i++ {
			_, err = ops.AppendFetch(ctx, buf, key)
		}
		return err
	}
	update := func(ops Ops) (err error) {
		for i := 0; i < slice && err == nil; i++ {
			var r Record
			if r, err = ops.FetchLocked(ctx, key); err == nil {
				err = r.StoreUnlock(value)
			}
		}
		return err
	}
	names, ops := []string{"store", "handle", "db"}, []Ops{h.l, h, db}
	measure := func(name string, run func(Ops) error) {
		b.Run(name, func(b *testing.B) {
			ns := make([][]float64, len(ops))
			for b.Loop() {
				for i, o := range ops {
					start := time.Now()
					if err := run(o); err != nil {
						b.Fatal(err)
					}
					ns[i] = append(ns[i], float64(time.Since(start))/slice)
				}
			}
			b.ReportMetric(0, "ns/op")
			for i, name := range names {
				var over, ratio []float64
				for j, v := range ns[i] {
					over, ratio = append(over, v-ns[0][j]), append(ratio, v/ns[0][j])
				}
				b.ReportMetric(median(ns[i]), name+"-ns")
				if i > 0 {
					b.ReportMetric(median(over), name+"-over-ns")
					b.ReportMetric(median(ratio), name+"/store")
				}
			}
		})
	}
	measure("fetch64", fetch)
	measure("rmw64", update)
}

func median(v []float64) float64 {
	return slices.Sorted(slices.Values(v))[len(v)/2]
}
