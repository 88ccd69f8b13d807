package bench

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/bench/drive"
	"github.com/mainzdb/mainz/internal/histogram"
	"github.com/mainzdb/mainz/internal/netns"
	"github.com/mainzdb/mainz/transport"
	"github.com/mainzdb/mainz/transport/xdp"
)

//go:embed netpeer/driver.c
var netDriver []byte

const (
	netPort   = 4379
	netClient = "10.79.0.1"
	netServer = "10.79.0.2"

	// netPatience is how long the first answer may take on a busy machine.
	netPatience = time.Minute
	// netAttempts is how often a slice is tried. On a machine where either end
	// got no CPU, or only one, a slice may come to nothing.
	netAttempts = 3
)

// netBench is a run: two namespaces with a veth pair, and the contestants.
type netBench struct {
	NetOptions
	self, driver   string
	client, server *netns.NS
	clientCPU      int
	serverCPU      int
}

// netSlice is what one slice of one contestant came to.
type netSlice struct {
	PerSec float64 `json:"per_second"`
	P50    float64 `json:"p50_ns"`
	P99    float64 `json:"p99_ns"`
	P999   float64 `json:"p999_ns"`
	Max    float64 `json:"max_ns"`
	Sent   uint64  `json:"sent"`
	Recv   uint64  `json:"received"`
	Lost   uint64  `json:"lost"`
}

// ok tells a slice that was measured from one that came to nothing.
func (s netSlice) ok() bool { return s.Recv > 0 }

// Net measures round trips and rates of the transports and of their peers over
// one veth pair between two namespaces that go with the run, in alternating
// slices. Every client and server is a process, spins, and is pinned to a CPU.
// A slice that comes to nothing is tried again, and if that does not help its
// contestant is out and the report has a warning. It is an error if nothing at
// all was measured.
func Net(ctx context.Context, o NetOptions) (*Report, error) {
	o.defaults()
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("bench net makes network namespaces and attaches programs: run it as root: %w",
			os.ErrPermission)
	}
	env, err := environment(Options{Dir: "/dev/shm", Quick: o.Quick, Slice: o.Slice})
	if err != nil {
		return nil, err
	}
	b := &netBench{NetOptions: o}
	if b.clientCPU, b.serverCPU, err = twoCPUs(); err != nil {
		return nil, err
	}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "mainz-net-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	peers := netPeers
	if b.driver, err = compileDriver(ctx, dir, netDriver); err != nil {
		env.Warnings = append(env.Warnings, "no "+peerC+": "+err.Error())
		peers = slices.DeleteFunc(slices.Clone(peers), func(p string) bool { return p == peerC })
	}
	env.Peers = peers
	if err := b.wire(); err != nil {
		return nil, err
	}
	defer b.client.Close()
	defer b.server.Close()

	var lastErr error
	report := &Report{Environment: env, RatioTitle: "round trips (p50, less is better), and rates (more is better), over"}
	for _, size := range netSizes {
		for _, op := range []struct {
			name   string
			window int
		}{{"rtt", 1}, {"rate", o.Window}} {
			if o.Quick && op.window > 1 && size > netSizes[0] {
				continue
			}
			rounds := o.Rounds
			if op.window > 1 {
				rounds *= 2 // rates vary twice as much from slice to slice
			}
			got := map[string][]netSlice{}
			for round := range rounds {
				for _, p := range peers {
					if round > 0 && !got[p][round-1].ok() {
						got[p] = append(got[p], netSlice{}) // it is out
						continue
					}
					o.Progress(fmt.Sprintf("%s, %d bytes, round %d of %d: %s", op.name, size, round+1, rounds, p))
					s, err := retried(ctx, func() (netSlice, error) { return b.slice(ctx, p, size, op.window) })
					if ctx.Err() != nil {
						return nil, ctx.Err()
					}
					if err != nil {
						lastErr = fmt.Errorf("%s, %d bytes, round %d, %s: %w", op.name, size, round+1, p, err)
						report.Environment.Warnings = append(report.Environment.Warnings,
							"not measured, nor in the rounds after: "+lastErr.Error())
					}
					got[p] = append(got[p], s)
				}
			}
			for _, p := range peers {
				if r, ok := netResult(op.name, p, size, got[p]); ok {
					report.Results = append(report.Results, r)
				}
			}
			report.Ratios = append(report.Ratios, netRatios(op.name, size, got)...)
		}
	}
	if len(report.Results) == 0 {
		return nil, fmt.Errorf("nothing was measured; the last slice: %w", lastErr)
	}
	return report, nil
}

// retried tries a slice until it comes to something. Without, the slice is
// zero and the error is the last one.
func retried(ctx context.Context, slice func() (netSlice, error)) (s netSlice, err error) {
	for range netAttempts {
		s, err = slice()
		if err == nil && !s.ok() {
			err = fmt.Errorf("none of %d datagrams came back", s.Sent)
		}
		if err == nil || ctx.Err() != nil {
			return s, err
		}
	}
	return netSlice{}, err
}

// netResult sums up the slices that were measured, if there are any.
func netResult(op, peer string, size int, all []netSlice) (r Result, ok bool) {
	got := slices.DeleteFunc(slices.Clone(all), func(s netSlice) bool { return !s.ok() })
	if len(got) == 0 {
		return r, false
	}
	middle := func(of func(netSlice) float64) float64 {
		v := make([]float64, len(got))
		for i, s := range got {
			v[i] = of(s)
		}
		_, m, _ := quartiles(v)
		return round(m)
	}
	// Either process has a CPU, and sends and receives once for an answer.
	r = Result{Suite: "net", Op: op, Peer: peer, ValueBytes: size, Procs: 2, Reps: len(got),
		PacketsPerCore: middle(func(s netSlice) float64 { return 2 * s.PerSec }),
		Mops:           middle(func(s netSlice) float64 { return s.PerSec / 1e6 }),
		P50:            middle(func(s netSlice) float64 { return s.P50 }),
		P99:            middle(func(s netSlice) float64 { return s.P99 }),
		P999:           middle(func(s netSlice) float64 { return s.P999 }),
	}
	for i, s := range got {
		m := round(s.PerSec / 1e6)
		if i == 0 || m < r.MopsMin {
			r.MopsMin = m
		}
		r.MopsMax = max(r.MopsMax, m)
		r.Max = max(r.Max, s.Max)
	}
	return r, true
}

// netRatios compares slices of the same round: the way that auto picks on veth
// with the best kernel UDP and with each of the others. The best is the one with
// the best median of the run. (The best of each round would be another one: where
// two are equal and noisy, the better of two slices is better than either of them
// is, by 5 to 10 % on a busy machine.) A round in which one of the two compared was
// not measured is left out, and so is who never was.
func netRatios(op string, size int, got map[string][]netSlice) (out []Ratio) {
	value := func(s netSlice) float64 { return s.P50 }
	better := func(a, b float64) bool { return a < b }
	if op != "rtt" {
		value, better = func(s netSlice) float64 { return s.PerSec }, func(a, b float64) bool { return a > b }
	}
	values := func(peer string) (v []float64) {
		for _, s := range got[peer] {
			if s.ok() {
				v = append(v, value(s))
			} else {
				v = append(v, 0) // which no ratio is taken of
			}
		}
		return v
	}
	best, bestValue := "", 0.0
	for _, p := range []string{peerC, peerUDP} {
		v := slices.DeleteFunc(values(p), func(x float64) bool { return x == 0 })
		if _, m, _ := quartiles(v); len(v) > 0 && (best == "" || better(m, bestValue)) {
			best, bestValue = p, m
		}
	}
	for _, of := range []struct{ over, peer string }{
		{"best kernel UDP", best}, {peerC, peerC}, {peerGo, peerGo}, {peerUDP, peerUDP},
	} {
		name := fmt.Sprintf("%s %d: %s / %s", op, size, peerGeneric, of.over)
		if r, ok := newRatio(name, values(peerGeneric), values(of.peer)); ok {
			out = append(out, r)
		}
	}
	return out
}

// compileDriver compiles a contestant that is written in C.
func compileDriver(ctx context.Context, dir string, source []byte) (string, error) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		return "", errors.New("no C compiler: apt-get install gcc libc6-dev")
	}
	src, bin := filepath.Join(dir, "driver.c"), filepath.Join(dir, "driver")
	if err := os.WriteFile(src, source, 0o600); err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, cc, "-O2", "-o", bin, src).CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the driver: %w: %s", err, out)
	}
	return bin, nil
}

// twoCPUs are two that this process may run on.
func twoCPUs() (a, b int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0, 0, err
	}
	var list []int
	for i := 0; i < 1024 && len(list) < 2; i++ {
		if set.IsSet(i) {
			list = append(list, i)
		}
	}
	if len(list) < 2 {
		return 0, 0, errors.New("two CPUs are needed: client and server both spin")
	}
	return list[0], list[1], nil
}

func (b *netBench) wire() (err error) {
	if b.client, err = netns.New(); err != nil {
		return err
	}
	if b.server, err = netns.New(); err != nil {
		b.client.Close()
		return err
	}
	end := func(ns *netns.NS, name, addr string) netns.End {
		return netns.End{NS: ns, Name: name, Addrs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(addr), 24)}}
	}
	return netns.Veth(end(b.client, "mainz0", netClient), end(b.server, "mainz1", netServer), 1)
}

// slice runs one contestant for one slice.
func (b *netBench) slice(ctx context.Context, peer string, size, window int) (s netSlice, err error) {
	ctx, stop := context.WithTimeout(ctx, b.Slice+2*netPatience)
	defer stop()
	// A child is told to die with the thread that has started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var serverSays, clientSays bytes.Buffer
	server := b.command(ctx, peer, true, size, window)
	server.Stderr = &serverSays
	in, err := server.StdinPipe()
	if err != nil {
		return s, err
	}
	defer in.Close()
	out, err := server.StdoutPipe()
	if err != nil {
		return s, err
	}
	if err := b.server.Do(server.Start); err != nil {
		return s, fmt.Errorf("start the server: %w", err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		if err != nil {
			err = fmt.Errorf("%w; client: %q, server: %q", err, bytes.TrimSpace(clientSays.Bytes()),
				bytes.TrimSpace(serverSays.Bytes()))
		}
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		return s, fmt.Errorf("the server said %q: %v", line, err)
	}
	client := b.command(ctx, peer, false, size, window)
	client.Stderr = &clientSays
	var text []byte
	err = b.client.Do(func() (err error) {
		text, err = client.Output()
		return err
	})
	if err != nil {
		return s, fmt.Errorf("client: %w", err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("client's result: %w", err)
	}
	return s, nil
}

func (b *netBench) command(ctx context.Context, peer string, server bool, size, window int) *exec.Cmd {
	us, to, cpu := netClient, netServer, b.clientCPU
	role := "client"
	if server {
		us, to, cpu, role = netServer, netClient, b.serverCPU, "server"
	}
	slice := strconv.FormatInt(b.Slice.Microseconds(), 10)
	var cmd *exec.Cmd
	if peer == peerC {
		args := []string{role, us, strconv.Itoa(netPort), to, strconv.Itoa(size), strconv.Itoa(cpu)}
		if !server {
			args = append(args, slice)
		}
		cmd = exec.CommandContext(ctx, b.driver, append(args, strconv.Itoa(window))...)
	} else {
		at := func(a string) string { return netip.AddrPortFrom(netip.MustParseAddr(a), netPort).String() }
		cmd = exec.CommandContext(ctx, b.self, "bench", "net-worker", "--peer", peer, "--listen", at(us), "--to",
			at(to),
			"--size", strconv.Itoa(size), "--window", strconv.Itoa(window), "--cpu", strconv.Itoa(cpu),
			"--slice", b.Slice.String(), "--server="+strconv.FormatBool(server))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

var netModes = map[string]xdp.Mode{peerUDP: xdp.UDP, peerGeneric: xdp.Generic, peerNative: xdp.Copy}

// NetWorker is one end of a contestant that is written in Go.
func NetWorker(ctx context.Context, o NetWorkerOptions, in io.Reader, out io.Writer) error {
	listen, err := netip.ParseAddrPort(o.Listen)
	if err != nil {
		return err
	}
	to, err := netip.ParseAddrPort(o.To)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if o.Server {
		go func() {
			_, _ = io.Copy(io.Discard, in)
			stop()
		}()
	}
	if o.Peer == peerGo {
		return goNet(ctx, o, listen, to, out)
	}
	mode, ok := netModes[o.Peer]
	if !ok {
		return fmt.Errorf("no peer %q", o.Peer)
	}
	t, err := xdp.Open(xdp.Options{Listen: listen, Mode: mode})
	if err != nil {
		return err
	}
	defer t.Close()
	if err := t.SetPeers([]transport.Peer{{ID: 1, Addr: to}}); err != nil {
		return err
	}
	d := drive.Options{Idle: drive.Busy, CPU: o.CPU}
	if o.Server {
		fmt.Fprintln(out, "ready")
		_, err := drive.Echo(ctx, t, d)
		return err
	}
	r, err := drive.Ping(ctx, t, drive.PingOptions{Options: d, To: 1, Size: o.Size, Window: o.Window,
		Duration: o.Slice, WaitFor: netPatience, Patience: netPatience / 6})
	if err != nil {
		return err
	}
	if p := t.Path(); !p.Proven {
		return fmt.Errorf("the path was not proven: %v", p)
	}
	return json.NewEncoder(out).Encode(r)
}

// goNet is what one gets from the standard library.
func goNet(ctx context.Context, o NetWorkerOptions, listen, to netip.AddrPort, out io.Writer) error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(o.CPU)
	// All threads: the runtime's poller must not borrow the other side's CPU.
	if err := pinAll(&set); err != nil {
		return err
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(listen))
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetReadBuffer(4 << 20)
	buf := make([]byte, 2048)
	if o.Server {
		go func() {
			<-ctx.Done()
			c.Close()
		}()
		fmt.Fprintln(out, "ready")
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return nil
			}
			if _, err := c.WriteToUDPAddrPort(buf[:n], from); err != nil {
				return err
			}
		}
	}
	var s netSlice
	var h histogram.Histogram
	msg := make([]byte, o.Size)
	// A first answer, so that addresses are resolved.
	for end := time.Now().Add(netPatience); ; {
		if _, err := c.WriteToUDPAddrPort(msg, to); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, _, err := c.ReadFromUDPAddrPort(buf); err == nil {
			break
		}
		if time.Now().After(end) {
			return errors.New("no answer")
		}
	}
	start := time.Now().Add(-1) // 0 is the time in those of before
	_ = c.SetReadDeadline(start.Add(o.Slice))
	// A slice ends with its time, but not before the first answer.
	for underWay, late := 0, false; time.Since(start) < o.Slice || s.Recv == 0 && !late; {
		for ; underWay < o.Window; underWay++ {
			binary.LittleEndian.PutUint64(msg, uint64(time.Since(start)))
			if _, err := c.WriteToUDPAddrPort(msg, to); err != nil {
				return err
			}
			s.Sent++
		}
		if _, _, err := c.ReadFromUDPAddrPort(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			// What is under way is late or lost.
			late = s.Recv > 0 || time.Since(start) > netPatience
			_ = c.SetReadDeadline(start.Add(netPatience))
			continue
		} else if err != nil {
			return err
		}
		sent := binary.LittleEndian.Uint64(buf)
		if sent == 0 {
			continue
		}
		h.Add(uint64(time.Since(start)) - sent)
		underWay--
		s.Recv++
	}
	s.PerSec = float64(s.Recv) / time.Since(start).Seconds()
	s.P50, s.P99, s.P999, s.Max = h.Quantile(0.5), h.Quantile(0.99), h.Quantile(0.999), float64(h.Max)
	return json.NewEncoder(out).Encode(s)
}

// pinAll pins every thread of the process.
func pinAll(set *unix.CPUSet) error {
	list, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range list {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("pin: %w", err)
		}
	}
	return nil
}
