//go:build !race

package ring

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/shm"
)

// These tests and benchmarks run this program again as a process of its own.

const childEnv = "MAINZ_RING_CHILD" // role, directory, CPU

func TestMain(m *testing.M) {
	args := strings.Fields(os.Getenv(childEnv))
	if len(args) == 0 {
		os.Exit(m.Run())
	}
	if err := childMain(args[0], args[1], args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const (
	testCells  = 8
	benchCells = 256
	testLayout = "ring test " + Layout
	goroutines = 4
)

// shared is a segment with two rings, a bell and some words.
type shared struct {
	seg  *shm.Segment
	bell shm.Offset
	ring [2]shm.Offset
	word *[8]line
}

type line struct {
	w shm.Word64
	_ [120]byte
}

// Words of the tests.
const (
	wordSeen  = goroutines // by consumers: messages so far
	wordWrong = goroutines + 1
)

func sharedAt(s *shm.Segment) *shared {
	off, _ := s.Area(shm.AreaRings)
	return &shared{
		seg:  s,
		bell: off,
		word: shm.At[[8]line](s.Region(), off+BellSize),
		ring: [2]shm.Offset{off + 2048, off + 2048 + Size(benchCells)},
	}
}

func newShared(t testing.TB, dir string) *shared {
	t.Helper()
	s, err := shm.Create(context.Background(), dir, shm.Config{
		Slots: 4, Layout: testLayout,
		Areas: []shm.AreaSpec{{ID: shm.AreaRings, Size: 2048 + 2*Size(benchCells)}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return sharedAt(s)
}

func childMain(role, dir, cpu string) error {
	seg, err := shm.Attach(context.Background(), dir, testLayout)
	if err != nil {
		return err
	}
	s := sharedAt(seg)
	if n, err := strconv.Atoi(cpu); err == nil && n >= 0 {
		if err := pinAll(n); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { // the parent's end is ours
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	fmt.Println("ready")
	switch role {
	case "send":
		return s.send(ctx, dir)
	case "receive":
		return s.receive(ctx)
	case "echo-busy", "echo-adaptive", "echo-sleep":
		strategy, err := ParseStrategy(strings.TrimPrefix(role, "echo-"))
		if err != nil {
			return err
		}
		return s.echo(ctx, strategy)
	case "swallow":
		return s.swallow(ctx)
	}
	return fmt.Errorf("no role %q", role)
}

// pinAll keeps all threads of the process on one CPU.
func pinAll(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	list, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, task := range list {
		tid, err := strconv.Atoi(task.Name())
		if err == nil {
			err = unix.SchedSetaffinity(tid, &set)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// start starts a child and waits until it is ready.
func start(t testing.TB, role, dir string, cpu int) (cmd *exec.Cmd, stop func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", childEnv, role, dir, cpu))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // Pdeathsig is of the thread
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the child said %q: %v, %v", line, err, cmd.Wait())
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			in.Close()
			_ = cmd.Wait()
		})
	}
	t.Cleanup(stop)
	return cmd, stop
}

// send puts numbered messages into ring 0 from several goroutines, which note
// what was acknowledged, and rings the doorbell.
func (s *shared) send(ctx context.Context, dir string) error {
	d, err := shm.OpenDoorbell(dir)
	if err != nil {
		return err
	}
	bell, err := OpenBell(s.seg.Region(), s.bell, d)
	if err != nil {
		return err
	}
	p, err := OpenProducer(s.seg.Region(), s.ring[0], testCells, Options{Idle: Sleep, Bell: bell})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for g := range uint64(goroutines) {
		wg.Go(func() {
			for n := uint64(1); ; n++ {
				c, err := p.Claim(ctx)
				if err != nil {
					return
				}
				c.Commit(message(g<<32 | n))
				s.word[g].w.Store(n)
				if n%7 == g { // and some that come to nothing
					if c, err := p.Claim(ctx); err == nil {
						c.Abort()
					}
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// kills is how many processes each of the tests kills.
func kills(t *testing.T) int {
	if testing.Short() {
		return 10
	}
	return 100
}

// TestKilledProducers: clients that are killed at any moment. What they had
// committed is delivered, in order and once, and the ring serves the next one.
// The consumer sleeps on the doorbell as the dispatcher does.
func TestKilledProducers(t *testing.T) {
	dir := testenv.ShmDir(t) + "/seg"
	s := newShared(t, dir)
	if err := shm.MakeDoorbell(dir, shm.Config{}); err != nil {
		t.Fatal(err)
	}
	d, err := shm.OpenDoorbell(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	bell, err := OpenBell(s.seg.Region(), s.bell, d)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed(t), 4))
	aborted, total := 0, uint64(0)
	for range kills(t) {
		if err := Init(s.seg.Region(), s.ring[0], testCells); err != nil {
			t.Fatal(err)
		}
		c, err := OpenConsumer(s.seg.Region(), s.ring[0], testCells, Options{Idle: Sleep})
		if err != nil {
			t.Fatal(err)
		}
		var last [goroutines]uint64
		for g := range last {
			s.word[g].w.Store(0)
		}
		sum := uint64(0)
		deliver := func(m *Message) {
			g, n := m.Head[0]>>32, m.Head[0]&(1<<32-1)
			if !intact(m) || g >= goroutines || n != last[g]+1 {
				t.Fatalf("message %v after number %d", *m, last[min(g, goroutines-1)])
			}
			last[g]++
			sum++
		}
		child, _ := start(t, "send", dir, -1)
		for enough := rng.Uint64N(3000); sum < enough; {
			if c.Poll(1+rng.IntN(testCells), deliver) > 0 {
				continue
			}
			bell.Arm()
			if !c.Ready() {
				fds := []unix.PollFd{{Fd: int32(d.FD()), Events: unix.POLLIN}}
				if n, err := unix.Poll(fds, int(minute.Milliseconds())); n == 0 || err != nil && err != unix.EINTR {
					t.Fatalf("not rung for a minute: %v", err)
				}
			}
			bell.Disarm()
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()
		n, err := c.Repair()
		if err != nil {
			t.Fatal(err)
		}
		for c.Poll(testCells, deliver) > 0 {
		}
		if claimed := c.h.claimed.Load(); claimed != c.pos {
			t.Fatalf("claimed up to %d, delivered up to %d", claimed, c.pos)
		}
		for g := range last {
			if acked := s.word[g].w.Load(); last[g] != acked && last[g] != acked+1 {
				t.Fatalf("goroutine %d: %d acknowledged, %d delivered", g, acked, last[g])
			}
		}
		aborted, total = aborted+n, total+sum
	}
	t.Logf("%d messages, %d cells aborted", total, aborted)
}

// receive takes numbered messages out of ring 1 and notes how far it came.
func (s *shared) receive(ctx context.Context) error {
	c, err := OpenConsumer(s.seg.Region(), s.ring[1], testCells, Options{Idle: Sleep})
	if err != nil {
		return err
	}
	seen, released := &s.word[wordSeen].w, c.pos
	next := released // messages are numbered as their positions
	for ctx.Err() == nil {
		n := c.Poll(3, func(m *Message) {
			if had := seen.Load(); !intact(m) || m.Head[0] != next || m.Head[0] > had || m.Head[0]+3 < had {
				s.word[wordWrong].w.Store(m.Head[0] + 1)
			} else if next == had {
				seen.Store(had + 1)
			}
			next++
		})
		if n == 0 {
			if err := c.Wait(ctx); err != nil {
				return nil
			}
		}
	}
	return nil
}

// TestKilledConsumers: a dispatcher that is killed and restarted. All arrives,
// and what is seen again is no more than one Poll's.
func TestKilledConsumers(t *testing.T) {
	dir := testenv.ShmDir(t) + "/seg"
	s := newShared(t, dir)
	if err := Init(s.seg.Region(), s.ring[1], testCells); err != nil {
		t.Fatal(err)
	}
	p, err := OpenProducer(s.seg.Region(), s.ring[1], testCells, Options{Idle: Sleep})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed(t), 5))
	ctx, cancel := context.WithCancel(context.Background())
	sent := make(chan uint64, 1)
	go func() {
		for n := uint64(0); ; n++ {
			c, err := p.Claim(ctx)
			if err != nil {
				sent <- n
				return
			}
			c.Commit(message(n))
		}
	}()
	seen := &s.word[wordSeen].w
	right := func(what string, cond func() bool) {
		t.Helper()
		for end := time.Now().Add(minute); !cond(); runtime.Gosched() {
			if n := s.word[wordWrong].w.Load(); n != 0 {
				t.Fatalf("message %d was not expected, with %d seen", n-1, seen.Load())
			}
			if time.Now().After(end) {
				t.Fatalf("waited a minute in vain: %s", what)
			}
		}
	}
	for range kills(t) {
		child, _ := start(t, "receive", dir, -1)
		from := seen.Load()
		enough := from + rng.Uint64N(2000)
		right("messages arrive", func() bool { return seen.Load() >= enough })
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()
	}
	_, stop := start(t, "receive", dir, -1)
	cancel()
	all := <-sent
	right("all has arrived", func() bool { return seen.Load() == all })
	stop()
	t.Logf("%d messages", all)
}

// ---- benchmarks ----

// echo answers each message of ring 0 in ring 1.
func (s *shared) echo(ctx context.Context, strategy Strategy) error {
	c, err1 := OpenConsumer(s.seg.Region(), s.ring[0], benchCells, Options{Idle: strategy})
	p, err2 := OpenProducer(s.seg.Region(), s.ring[1], benchCells, Options{Idle: strategy})
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	answer := func(m *Message) {
		claim, err := p.TryClaim()
		if err != nil {
			panic(err) // there is one request at a time
		}
		claim.Commit(m)
	}
	for {
		if c.Poll(64, answer) == 0 {
			if err := c.Wait(ctx); err != nil {
				return nil
			}
		}
	}
}

// swallow takes all out of ring 0.
func (s *shared) swallow(ctx context.Context) error {
	c, err := OpenConsumer(s.seg.Region(), s.ring[0], benchCells, Options{Idle: Busy})
	if err != nil {
		return err
	}
	seen := &s.word[wordSeen].w
	for {
		n := c.Poll(64, func(*Message) {})
		if n > 0 {
			seen.Store(c.pos)
		} else if err := c.Wait(ctx); err != nil {
			return nil
		}
	}
}

func benchRings(b *testing.B, role string) *shared {
	b.Helper()
	testenv.Need(b, testenv.TwoCPUs)
	dir := testenv.ShmDir(b) + "/seg"
	s := newShared(b, dir)
	for _, off := range s.ring {
		if err := Init(s.seg.Region(), off, benchCells); err != nil {
			b.Fatal(err)
		}
	}
	start(b, role, dir, 1)
	// This process stays on the other CPU, for good: its threads are many.
	if err := pinAll(0); err != nil {
		b.Log("not pinned: ", err)
	}
	return s
}

// BenchmarkRoundTrip: a message to another process and back, without work
// there.
func BenchmarkRoundTrip(b *testing.B) {
	for _, strategy := range []Strategy{Busy, Adaptive, Sleep} {
		b.Run(strategy.String(), func(b *testing.B) {
			s := benchRings(b, "echo-"+strategy.String())
			p, err1 := OpenProducer(s.seg.Region(), s.ring[0], benchCells, Options{Idle: strategy})
			c, err2 := OpenConsumer(s.seg.Region(), s.ring[1], benchCells, Options{Idle: strategy})
			if err := errors.Join(err1, err2); err != nil {
				b.Fatal(err)
			}
			ctx := deadline(b)
			m, got := message(1), uint64(0)
			take := func(m *Message) { got = m.Head[0] }
			b.ReportAllocs()
			for n := uint64(0); b.Loop(); n++ {
				m.Head[0] = n
				claim, err := p.Claim(ctx)
				if err != nil {
					b.Fatal(err)
				}
				claim.Commit(m)
				for c.Poll(1, take) == 0 {
					if err := c.Wait(ctx); err != nil {
						b.Fatal(err)
					}
				}
				if got != n {
					b.Fatalf("answer %d to request %d", got, n)
				}
			}
		})
	}
}

// BenchmarkThroughput: messages one way to another process, which takes them
// out as fast as it can.
func BenchmarkThroughput(b *testing.B) {
	s := benchRings(b, "swallow")
	p, err := OpenProducer(s.seg.Region(), s.ring[0], benchCells, Options{Idle: Busy})
	if err != nil {
		b.Fatal(err)
	}
	ctx := deadline(b)
	m, n := message(1), uint64(0)
	b.ReportAllocs()
	for ; b.Loop(); n++ {
		claim, err := p.Claim(ctx)
		if err != nil {
			b.Fatal(err)
		}
		claim.Commit(m)
	}
	until(b, "all has arrived", func() bool { return s.word[wordSeen].w.Load() == n })
}

// BenchmarkAlone: claim, commit and poll in one thread: what the instructions
// take, without any line changing hands.
func BenchmarkAlone(b *testing.B) {
	r := newRing(b, benchCells, 0)
	p, c := ends(b, r, benchCells, Options{Idle: Sleep})
	m, sum := message(1), uint64(0)
	take := func(m *Message) { sum += m.Head[0] }
	b.ReportAllocs()
	for b.Loop() {
		claim, err := p.TryClaim()
		if err != nil {
			b.Fatal(err)
		}
		claim.Commit(m)
		c.Poll(64, take)
	}
}
