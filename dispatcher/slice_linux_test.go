package dispatcher

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
)

// turns measures the turns of a dispatcher's loop.
type turns struct{ cpu, wall []time.Duration }

func threadTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}

// until runs the loop, on the caller's thread, until over says so.
func (m *turns) until(ctx context.Context, b *testing.B, d *Dispatcher, what string, over func() bool) {
	b.Helper()
	for !over() {
		if ctx.Err() != nil {
			b.Fatal(what)
		}
		cpu, wall := threadTime(), time.Now()
		did := d.turn()
		m.wall, m.cpu = append(m.wall, time.Since(wall)), append(m.cpu, threadTime()-cpu)
		if !did {
			time.Sleep(20 * time.Microsecond) // polls: clients and clock bring the next turn about
		}
	}
}

func (m *turns) report(b *testing.B) {
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	slices.Sort(m.cpu)
	slices.Sort(m.wall)
	n := len(m.cpu)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(n)/float64(b.N), "turns")
	b.ReportMetric(us(m.cpu[n*99/100]), "cpu-p99-µs")
	b.ReportMetric(us(m.cpu[n-1]), "cpu-max-µs")
	b.ReportMetric(us(m.wall[n*99/100]), "wall-p99-µs")
	b.ReportMetric(us(m.wall[n-1]), "wall-max-µs")
}

func sized(b *testing.B, name string, otherwise int) int {
	n, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		return otherwise
	}
	return n
}

// BenchmarkTurns measures the turns of the loop, one by one, by the time of its thread
// and by the clock: while it removes the MAINZ_PIECES pieces (20,000) of a dead client,
// and while it walks MAINZ_RECORDS records (20,000) after a restart, which a client
// fetches by the ring meanwhile.
func BenchmarkTurns(b *testing.B) {
	testenv.Need(b, testenv.Linux, testenv.NoRace)
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	open := func(dir string, size int) *Dispatcher {
		d, err := Open(ctx, Options{Dir: dir,
			Store: ltdb.Options{Create: true, Config: ltdb.Config{Size: uint64(size), Slots: 8}}})
		if err != nil {
			b.Fatal(err)
		}
		return d
	}
	b.Run("death", func(b *testing.B) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		n := sized(b, "MAINZ_PIECES", 20_000)
		dir := filepath.Join(testenv.ShmDir(b), "v1")
		d := open(dir, 64<<20+n*768)
		defer d.Close()
		var m turns
		for range b.N {
			said := make(chan error, 1)
			cmd, out := unready(b, "pieces", dir, fmt.Sprint("MAINZ_PIECES=", n))
			go func() {
				_, err := out.Read(make([]byte, 1))
				said <- err
			}()
			var idle turns
			idle.until(ctx, b, d, "the client has no pieces", func() bool { return len(said) > 0 })
			if err := <-said; err != nil {
				b.Fatal(err)
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			gone := d.Stats.Gone
			m.until(ctx, b, d, "the pieces stay", func() bool { return d.Stats.Gone > gone && !d.orphans })
		}
		m.report(b)
	})
	b.Run("restart", func(b *testing.B) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		n := sized(b, "MAINZ_RECORDS", 20_000)
		dir := filepath.Join(testenv.ShmDir(b), "v1")
		d := open(dir, 64<<20+n*256)
		s, err := ltdb.Open(ctx, dir, ltdb.Options{})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		db, err := s.Database(ctx, "db", ltdb.KV, ltdb.DatabaseOptions{Records: n})
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
		attached := make(chan *mainz.Client, 1)
		go func() {
			c, err := mainz.Attach(ctx, dir, mainz.ThroughRing())
			if err != nil {
				b.Error(err)
			}
			attached <- c
		}()
		var idle, m turns
		idle.until(ctx, b, d, "no client", func() bool { return len(attached) > 0 })
		c := <-attached
		if c == nil {
			return
		}
		asking, stop := context.WithCancel(ctx)
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			db, err := c.Open(asking, "db", mainz.KV)
			for i := 0; err == nil; i++ {
				key := make([]byte, 8)
				binary.LittleEndian.PutUint64(key, uint64(i%n))
				_, err = db.Fetch(asking, key)
			}
			_ = c.Close()
		}()
		for range b.N {
			if err := d.Close(); err != nil {
				b.Fatal(err)
			}
			d = open(dir, 0)
			m.until(ctx, b, d, "the walk does not end", func() bool { return d.leftOver })
		}
		stop()
		idle.until(ctx, b, d, "the client stays", func() bool {
			select {
			case <-asked:
				return true
			default:
				return false
			}
		})
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		m.report(b)
	})
}

// piecesChild appends pieces, one to a record, says so, and stays.
func piecesChild(dir string) error {
	n, err := strconv.Atoi(os.Getenv("MAINZ_PIECES"))
	if err != nil {
		return err
	}
	ctx := context.Background()
	c, err := mainz.Attach(ctx, dir)
	if err != nil {
		return err
	}
	db, err := c.Open(ctx, "pieces", mainz.Pieces, mainz.Records(n))
	for i := 0; i < n && err == nil; i++ {
		_, err = db.ConditionalAppend(ctx, mainz.Always, fmt.Append(nil, i), []byte("a piece"))
	}
	if err == nil {
		fmt.Print("!")
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
	return err
}
