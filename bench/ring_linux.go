package bench

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mainzdb/mainz/internal/histogram"
	"github.com/mainzdb/mainz/ring"
	"github.com/mainzdb/mainz/shm"
)

//go:embed ringpeer/driver.c
var ringDriver []byte

// ringBench is a run.
type ringBench struct {
	RingOptions
	self, driver string
	dir          string // of the run; each slice has one of its own in it
	clientCPU    int
	serverCPU    int
	slices       int
}

// Ring measures the round trip of a message without work between two processes
// over rings, beside the floor of the hardware, a unix datagram socket and a
// pipe, in alternating slices. Client and server are pinned to a CPU each.
func Ring(ctx context.Context, o RingOptions) (report *Report, err error) {
	o.defaults()
	env, err := environment(Options{Dir: o.Dir, Quick: o.Quick, Slice: o.Slice})
	if err != nil {
		return nil, err
	}
	env.TimerStepNS = timerStep()
	b := &ringBench{RingOptions: o}
	if b.clientCPU, b.serverCPU, err = twoCPUs(); err != nil {
		return nil, err
	}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp(o.Dir, "mainz-ring-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	peers := ringPeers
	if b.driver, err = compileDriver(ctx, b.dir, ringDriver); err != nil {
		env.Warnings = append(env.Warnings, "no floor, datagrams and pipes: "+err.Error())
		peers = slices.DeleteFunc(slices.Clone(peers), ofC)
	}
	env.Peers = peers
	before := cpuTimes()
	got := map[string][]netSlice{}
	for round := range o.Rounds {
		for _, p := range peers {
			o.Progress(fmt.Sprintf("round %d of %d: %s", round+1, o.Rounds, p))
			s, err := b.slice(ctx, p)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p, err)
			}
			got[p] = append(got[p], s)
		}
	}
	if stolen := cpuTimes().stolenSince(before); stolen > 0.02 {
		env.Warnings = append(env.Warnings, fmt.Sprintf("the host took %.0f %% of the CPUs' time", 100*stolen))
	}
	report = &Report{Environment: env}
	for _, p := range peers {
		r, _ := netResult("rtt", p, 64, got[p])
		r.Suite, r.PacketsPerCore = "ring", 0
		report.Results = append(report.Results, r)
	}
	report.Ratios = ringRatios(got)
	return report, nil
}

// ringRatios compares slices of the same round: their means, which have no time
// stamps inside, as these would make the two sides more alike than they are;
// and their medians, which a busy machine disturbs less.
func ringRatios(got map[string][]netSlice) (out []Ratio) {
	for _, by := range []struct {
		name string
		of   func(netSlice) float64
	}{
		{"rtt", func(s netSlice) float64 { return 1 / s.PerSec }},
		{"rtt p50", func(s netSlice) float64 { return s.P50 }},
	} {
		trips := func(peer string) (v []float64) {
			for _, s := range got[peer] {
				v = append(v, by.of(s))
			}
			return v
		}
		for _, us := range ringPeers {
			if ofC(us) {
				continue
			}
			for _, peer := range []string{peerFloor, peerDatagram, peerPipe} {
				if r, ok := newRatio(fmt.Sprintf("%s: %s / %s", by.name, us, peer), trips(us), trips(peer)); ok {
					out = append(out, r)
				}
			}
		}
	}
	return out
}

// slice runs one contestant for one slice.
func (b *ringBench) slice(ctx context.Context, peer string) (s netSlice, err error) {
	ctx, stop := context.WithTimeout(ctx, b.Slice+30*time.Second)
	defer stop()
	b.slices++
	dir := filepath.Join(b.dir, strconv.Itoa(b.slices))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return s, err
	}
	defer os.RemoveAll(dir)
	// A child is told to die with the thread that has started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	server := b.command(ctx, peer, true, dir)
	in, err := server.StdinPipe()
	if err != nil {
		return s, err
	}
	defer in.Close()
	out, err := server.StdoutPipe()
	if err != nil {
		return s, err
	}
	if err := server.Start(); err != nil {
		return s, fmt.Errorf("start the server: %w", err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		return s, fmt.Errorf("the server said %q: %v", line, err)
	}
	text, err := b.command(ctx, peer, false, dir).Output()
	if err != nil {
		return s, fmt.Errorf("client: %w", err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("client's result: %w", err)
	}
	if s.Recv == 0 || s.PerSec <= 0 {
		return s, errors.New("no message came back")
	}
	return s, nil
}

func (b *ringBench) command(ctx context.Context, peer string, server bool, dir string) *exec.Cmd {
	cpu, role := b.clientCPU, "client"
	if server {
		cpu, role = b.serverCPU, "server"
	}
	var cmd *exec.Cmd
	if kind, ok := strings.CutPrefix(peer, "c-"); ok {
		args := []string{kind, role, dir, strconv.Itoa(cpu)}
		if !server {
			args = append(args, strconv.FormatInt(b.Slice.Microseconds(), 10))
		}
		cmd = exec.CommandContext(ctx, b.driver, args...)
	} else {
		idle, call := strings.TrimPrefix(peer, "ring-"), ""
		if of, ok := strings.CutPrefix(peer, "mainzd-"); ok {
			idle, call, _ = strings.Cut(of, "-")
		}
		cmd = exec.CommandContext(ctx, b.self, "bench", "ring-worker", "--idle", idle, "--call="+call,
			"--dir", dir, "--cpu", strconv.Itoa(cpu), "--slice", b.Slice.String(),
			"--server="+strconv.FormatBool(server))
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

const (
	ringCells  = 256
	ringLayout = "bench ring " + ring.Layout
)

// ringEnds are what one process has of the two rings of a segment.
type ringEnds struct {
	seg *shm.Segment
	p   *ring.Producer
	c   *ring.Consumer
}

func openRings(ctx context.Context, o RingWorkerOptions) (e ringEnds, err error) {
	idle, err := ring.ParseStrategy(o.Idle)
	if err != nil {
		return e, err
	}
	dir := filepath.Join(o.Dir, "segment.d")
	if o.Server {
		e.seg, err = shm.Create(ctx, dir, shm.Config{
			Slots: 1, Layout: ringLayout, HugePages: shm.HugeNever,
			Areas: []shm.AreaSpec{{ID: shm.AreaRings, Size: 2 * ring.Size(ringCells)}},
		}, func(s *shm.Segment) error {
			off, _ := s.Area(shm.AreaRings)
			return errors.Join(ring.Init(s.Region(), off, ringCells),
				ring.Init(s.Region(), off+ring.Size(ringCells), ringCells))
		})
	} else {
		e.seg, err = shm.Attach(ctx, dir, ringLayout)
	}
	if err != nil {
		return e, err
	}
	out, _ := e.seg.Area(shm.AreaRings)
	in := out + ring.Size(ringCells)
	if o.Server {
		in, out = out, in
	}
	var err1, err2 error
	e.p, err1 = ring.OpenProducer(e.seg.Region(), out, ringCells, ring.Options{Idle: idle})
	e.c, err2 = ring.OpenConsumer(e.seg.Region(), in, ringCells, ring.Options{Idle: idle})
	return e, errors.Join(err1, err2)
}

// RingWorker is one end of our ring.
func RingWorker(ctx context.Context, o RingWorkerOptions, in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	if o.Call != "" {
		return callWorker(ctx, o, in, out)
	}
	e, err := openRings(ctx, o)
	if err != nil {
		return err
	}
	defer e.seg.Close()
	if err := pin(o.CPU); err != nil {
		return err
	}
	if !o.Server {
		s, err := e.client(ctx, o.Slice)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(s)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, in)
		stop()
	}()
	fmt.Fprintln(out, "ready")
	return e.serve(ctx)
}

func (e *ringEnds) serve(ctx context.Context) error {
	var failed error
	answer := func(m *ring.Message) {
		claim, err := e.p.TryClaim()
		if err != nil {
			failed = err
			return
		}
		m.Head[1] = ^m.Head[0]
		claim.Commit(m)
	}
	for {
		if e.c.Poll(64, answer) == 0 {
			if err := e.c.Wait(ctx); err != nil {
				return nil
			}
		}
		if failed != nil {
			return failed
		}
	}
}

var errAnswer = errors.New("a wrong answer")

func (e *ringEnds) client(ctx context.Context, slice time.Duration) (s netSlice, err error) {
	var m, got ring.Message
	take := func(m *ring.Message) { got = *m }
	trip := func() error {
		m.Head[0]++
		claim, err := e.p.TryClaim()
		if err != nil {
			return err
		}
		claim.Commit(&m)
		for e.c.Poll(1, take) == 0 {
			if err := e.c.Wait(ctx); err != nil {
				return err
			}
		}
		if got.Head != [2]uint64{m.Head[0], ^m.Head[0]} {
			return errAnswer
		}
		return nil
	}
	return measureTrips(slice, trip)
}

// measureTrips measures a round trip again and again.
func measureTrips(slice time.Duration, trip func() error) (s netSlice, err error) {
	const burst = 64 // between two looks at the clock
	trips := uint64(0)
	ticks := startClock()
	during := func(d time.Duration, f func() error) (n uint64, took time.Duration, err error) {
		start := monotonicNS()
		for {
			for range burst {
				if err := f(); err != nil {
					return n, took, err
				}
			}
			n += burst
			trips += burst
			if took = time.Duration(monotonicNS() - start); took >= d {
				return n, took, nil
			}
		}
	}
	if _, _, err = during(slice/10, trip); err != nil {
		return s, err
	}
	// First without time stamps inside, for the mean.
	n, took, err := during(slice/2, trip)
	if err != nil {
		return s, err
	}
	s.PerSec = float64(n) / took.Seconds()
	ticks.calibrate()
	h := new(histogram.Histogram)
	_, _, err = during(slice/2, func() error {
		from := shm.FencedTicks()
		err := trip()
		h.Add(ticks.ns(shm.FencedTicks() - from))
		return err
	})
	s.Sent, s.Recv = trips, trips
	s.P50, s.P99, s.P999, s.Max = h.Quantile(0.5), h.Quantile(0.99), h.Quantile(0.999), float64(h.Max)
	return s, err
}
