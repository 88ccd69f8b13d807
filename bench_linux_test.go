package mainz

import (
	"os"
	"path/filepath"
	"testing"
)

// benchNode starts mainzd in a process of its own.
func benchNode(b *testing.B, idle string) *Client {
	b.Helper()
	base, err := os.MkdirTemp("/dev/shm", "mainz-bench-*")
	if err != nil {
		b.Fatal(err)
	}
	dir := filepath.Join(base, "v1")
	d := child(b, "mainzd", "--config", os.DevNull, "--dir", dir, "--size", "64MiB", "--idle", idle, "--log-level", "warn")
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
					if err := c.ring.nop(ctx); err != nil {
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

// The same by bypass, through a Handle and through the DB.
func BenchmarkBypass(b *testing.B) {
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
	for name, ops := range map[string]Ops{"handle": h, "db": db, "store": h.l} {
		b.Run(name+"/fetch64", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ops.AppendFetch(ctx, buf, key); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/rmw64", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, err := ops.FetchLocked(ctx, key)
				if err == nil {
					err = r.StoreUnlock(value)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
