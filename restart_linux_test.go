package mainz

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// sizeFromEnv reads how many records or pieces a benchmark is to have.
func sizeFromEnv(b *testing.B, name string, otherwise int) int {
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		b.Fatalf("%s: %v", name, err)
	}
	return n
}

// sized is a killable mainzd with a segment of its own size.
func sized(b *testing.B, size string) *killable {
	b.Helper()
	base, err := os.MkdirTemp("/dev/shm", "mainz-bench-*")
	if err != nil {
		b.Fatal(err)
	}
	d := &killable{dir: filepath.Join(base, "v1")}
	b.Cleanup(func() {
		d.kill()
		os.RemoveAll(base)
	})
	d.boot(b, size)
	return d
}

func (d *killable) boot(b *testing.B, size string) {
	b.Helper()
	d.cmd = child(b, "mainzd", "--config", os.DevNull, "--dir", d.dir, "--size", size, "--slots", "32", "--log-level",
		"warn")
	if err := d.cmd.Start(); err != nil {
		b.Fatal(err)
	}
}

// ping makes a call that the dispatcher answers, also one that is yet to start.
func ping(b *testing.B, c *Client) {
	b.Helper()
	if err := c.ring.Nop(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWarmRestart kills mainzd with MAINZ_RECORDS records (20,000) and starts
// it again, while a client fetches by bypass. It reports for how long the gate was
// closed, the longest time between two fetches, and when the new mainzd answered.
// Longest times are the scheduler's on a busy machine.
func BenchmarkWarmRestart(b *testing.B) {
	n := sizeFromEnv(b, "MAINZ_RECORDS", 20_000)
	size := fmt.Sprint(64<<20 + n*256)
	d := sized(b, size)
	c := attachTo(b, d.dir)
	defer c.Close()
	ctx := context.Background()
	db, err := c.Open(ctx, "records", KV, Records(n))
	if err != nil {
		b.Fatal(err)
	}
	key, value := make([]byte, 8), make([]byte, 64)
	for i := range n {
		binary.LittleEndian.PutUint64(key, uint64(i))
		if err := db.Store(ctx, key, value); err != nil {
			b.Fatal(err)
		}
	}
	ping(b, c)
	var closed, stall, open time.Duration
	b.ResetTimer()
	for range b.N {
		var stop atomic.Bool
		done := make(chan error)
		gate := c.store.Segment().Gate()
		go func() {
			key, dst := make([]byte, 8), make([]byte, 0, 64)
			last := time.Now()
			for i := 0; !stop.Load(); i++ {
				binary.LittleEndian.PutUint64(key, uint64(i%n))
				if _, err := db.AppendFetch(ctx, dst, key); err != nil {
					done <- err
					return
				}
				now := time.Now()
				stall, last = max(stall, now.Sub(last)), now
			}
			done <- nil
		}()
		go func() {
			var shut time.Time
			for !stop.Load() {
				switch state, _ := gate.State(); {
				case state == shm.GateOpen:
					shut = time.Time{}
				case shut.IsZero():
					shut = time.Now()
				default:
					closed = max(closed, time.Since(shut))
				}
				time.Sleep(100 * time.Microsecond)
			}
			done <- nil
		}()
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
		began := time.Now()
		d.boot(b, size)
		ping(b, c)
		open = max(open, time.Since(began))
		time.Sleep(100 * time.Millisecond) // the fetches go on for a while
		stop.Store(true)
		for range 2 {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(closed.Microseconds())/1e3, "gate-closed-ms")
	b.ReportMetric(float64(stall.Microseconds())/1e3, "longest-fetch-ms")
	b.ReportMetric(float64(open.Microseconds())/1e3, "answered-ms")
}

// BenchmarkCleanUp kills a client with MAINZ_PIECES pieces (20,000), one a record,
// while another one asks mainzd again and again. It reports the longest time that a
// request has waited, and when the pieces were gone.
func BenchmarkCleanUp(b *testing.B) {
	n := sizeFromEnv(b, "MAINZ_PIECES", 20_000)
	d := sized(b, fmt.Sprint(64<<20+n*768))
	c := attachTo(b, d.dir)
	defer c.Close()
	ctx := context.Background()
	db, err := c.Open(ctx, "pieces", Pieces, Records(n))
	if err != nil {
		b.Fatal(err)
	}
	var wait, gone time.Duration
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		cmd := child(b, "pieces", d.dir, fmt.Sprint(n))
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		ping(b, c)
		last := []byte(fmt.Sprint(n - 1))
		b.StartTimer()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		began := time.Now()
		for gone = 0; gone == 0; {
			at := time.Now()
			ping(b, c)
			wait = max(wait, time.Since(at))
			left := false
			for _, k := range [][]byte{last, []byte("0"), fmt.Append(nil, n/2)} {
				if _, err := db.Fetch(ctx, k); err == nil {
					left = true
				}
			}
			if !left {
				gone = time.Since(began)
			}
		}
		for range 1000 { // the rest of the turn
			at := time.Now()
			ping(b, c)
			wait = max(wait, time.Since(at))
		}
	}
	b.ReportMetric(float64(wait.Microseconds())/1e3, "longest-request-ms")
	b.ReportMetric(float64(gone.Microseconds())/1e3, "pieces-gone-ms")
}

// piecesClient appends pieces, one to a record, says so, and stays.
func piecesClient() {
	n, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	c, err := Attach(ctx, os.Args[1])
	if err != nil {
		panic(err)
	}
	db, err := c.Open(ctx, "pieces", Pieces)
	if err != nil {
		panic(err)
	}
	for i := range n {
		if _, err := db.ConditionalAppend(ctx, Always, fmt.Append(nil, i), []byte("a piece")); err != nil {
			panic(err)
		}
	}
	fmt.Print("!")
	select {}
}

// BenchmarkOverrun lets 1,000 calls at a time, with deadlines of up to 300 ms that are
// drawn at random, wait for records whose holder is stopped: by bypass, through mainzd,
// each for a record of its own, and all for one. It reports how late they came back.
func BenchmarkOverrun(b *testing.B) {
	const calls = 1000
	d := sized(b, "64MiB")
	own := attachTo(b, d.dir)
	defer own.Close()
	stopped := child(b, "holder", d.dir, fmt.Sprint(calls))
	out, err := stopped.StdoutPipe()
	if err == nil {
		err = stopped.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = stopped.Process.Kill()
		_ = stopped.Wait()
	}()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	_ = stopped.Process.Signal(syscall.SIGSTOP)
	for _, way := range []struct {
		name string
		opts []Option
	}{{"bypass", nil}, {"ring", []Option{ThroughRing()}}} {
		for _, records := range []int{1, calls} {
			b.Run(fmt.Sprintf("%s/records=%d", way.name, records), func(b *testing.B) {
				c := attachTo(b, d.dir, way.opts...)
				defer c.Close()
				db, err := c.Open(context.Background(), "db", KV)
				if err != nil {
					b.Fatal(err)
				}
				seed := uint64(time.Now().UnixNano())
				b.Logf("seed %d", seed)
				rng := rand.New(rand.NewPCG(seed, 0))
				var late []time.Duration
				for range b.N {
					came := make(chan time.Duration, calls)
					for i := range calls {
						limit := time.Duration(1 + rng.Int64N(int64(300*time.Millisecond)))
						go func() {
							until := time.Now().Add(limit)
							ctx, stop := context.WithDeadline(context.Background(), until)
							defer stop()
							_, err := db.FetchLocked(ctx, fmt.Append(nil, i%records))
							if !errors.Is(err, context.DeadlineExceeded) {
								b.Error(err)
							}
							came <- time.Since(until)
						}()
					}
					for range calls {
						late = append(late, <-came)
					}
				}
				slices.Sort(late)
				ms := func(at int) float64 { return float64(late[at].Microseconds()) / 1e3 }
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(ms(len(late)/2), "p50-ms")
				b.ReportMetric(ms(len(late)*99/100), "p99-ms")
				b.ReportMetric(ms(len(late)-1), "max-ms")
			})
		}
	}
}

// holderClient locks records, says so, and stays.
func holderClient() {
	n, err := strconv.Atoi(os.Args[2])
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	c, err := Attach(ctx, os.Args[1])
	if err != nil {
		panic(err)
	}
	db, err := c.Open(ctx, "db", KV)
	for i := 0; i < n && err == nil; i++ {
		_, err = db.FetchLocked(ctx, fmt.Append(nil, i))
	}
	if err != nil {
		panic(err)
	}
	fmt.Print("!")
	select {}
}
