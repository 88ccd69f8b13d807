package mainz

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/dispatcher"
	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/shm"
)

// A member of the node's group writes whatever it likes into the segment.

// wildWords are areas to write into. The header and the gate's word, which end the
// segment's life, are not among them.
func wildWords(seg *shm.Segment, rnd *rand.Rand) shm.Offset {
	if rnd.IntN(20) == 0 { // beside the gate's word: its line, and the lease
		return 4096 + 8 + shm.Offset(8*rnd.IntN(15))
	}
	for {
		off, size := seg.Area(shm.AreaID(rnd.IntN(int(shm.AreaData) + 1)))
		if size == 0 {
			continue
		}
		if rnd.IntN(2) == 0 { // where something is, mostly
			size = min(size, 64<<10)
		}
		return off + rnd.Uint64N(size)&^7
	}
}

// wildClient writes n words, by a seed, and says when it is done. It takes no slot:
// what it does nobody can know.
func wildClient() {
	seed, _ := strconv.ParseUint(os.Args[2], 10, 64)
	n, _ := strconv.Atoi(os.Args[3])
	seg, err := shm.Attach(context.Background(), os.Args[1], "*")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	rnd := rand.New(rand.NewPCG(seed, 7))
	r := seg.Region()
	for range n {
		off := wildWords(seg, rnd)
		w := shm.At[shm.Word64](r, off)
		v := w.Load()
		switch rnd.IntN(8) {
		case 0:
			v = 0
		case 1:
			v = ^uint64(0)
		case 2:
			v = rnd.Uint64()
		case 3:
			v ^= 1 << rnd.IntN(64)
		case 4:
			v = shm.At[shm.Word64](r, wildWords(seg, rnd)).Load()
		case 5: // itself: as a ref, and as an offset
			v = v&^0xffffffff | off/64
		case 6:
			v = off
		case 7:
			v = v&^0xffffffff | uint64(rnd.IntN(40))
		}
		w.Store(v)
		if rnd.IntN(200) == 0 { // a slot that names somebody else, and is marked dead
			i := uint32(rnd.IntN(int(seg.Slots()) + 1))
			if i == 0 {
				i = shm.DispatcherSlot
			}
			pid, _ := strconv.ParseUint(os.Args[4+rnd.IntN(len(os.Args)-4)], 10, 32)
			sl := seg.Slot(i)
			sl.PID.Store(uint32(pid))
			sl.Start.Store(startOf(uint32(pid)))
			sl.Live.Store(1 << 30)
		}
	}
	fmt.Println("done")
	os.Exit(0)
}

// startOf is when a process started, in ticks since boot: field 22 of its stat.
func startOf(pid uint32) uint64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(f[19], 10, 64)
	return n
}

// privateKiB is what a process has in memory of its own.
func privateKiB(t *testing.T, pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	want(t, err, nil)
	_, rest, _ := strings.Cut(string(b), "RssAnon:")
	n, _ := strconv.Atoi(strings.Fields(rest)[0])
	return n
}

// answers dials mainzd and asks it something, and returns how long that took.
func (d *killable) answers(t *testing.T, limit time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	began := time.Now()
	conn, err := attach.Dial(ctx, d.dir)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	var m attach.Message
	err = conn.Call(ctx, &attach.Message{Kind: attach.Hello, Version: attach.Version, Name: "asks"}, &m)
	return time.Since(began), err
}

// member is what a hostile member runs as, and what it can reach.
type member struct {
	program string // that it may execute
	group   string // of the node, "" for the test's own
	cred    *syscall.Credential
}

func (m *member) command(what string, args ...string) *exec.Cmd {
	cmd := exec.Command(m.program, args...)
	cmd.Env = append(os.Environ(), "MAINZ_TEST_CHILD="+what)
	cmd.Stderr = os.Stderr
	if m.cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: m.cred}
	}
	return cmd
}

// sentinel is a process that has nothing to do with the node. It says which signal it
// has got, if any, and ends then.
func sentinel() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals)
	fmt.Println("here")
	for s := range signals {
		if s != syscall.SIGURG { // the Go runtime's own
			fmt.Println("signalled:", s)
			os.Exit(1)
		}
	}
}

// guard starts a sentinel, which ends with the test. alive is an error if it was
// signalled.
func (m *member) guard(t *testing.T) (pid int, alive func() error) {
	t.Helper()
	cmd := m.command("sentinel")
	out, err := cmd.StdoutPipe()
	want(t, err, nil)
	want(t, cmd.Start(), nil)
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "here" {
		t.Fatalf("the sentinel says %q", lines.Text())
	}
	end := make(chan error, 1)
	go func() {
		lines.Scan()
		end <- fmt.Errorf("process %d of user %d: %q, %w", cmd.Process.Pid, cmd.SysProcAttr.Credential.Uid,
			lines.Text(), errors.Join(cmd.Wait(), errSignalled))
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-end
	})
	return cmd.Process.Pid, func() error {
		select {
		case err := <-end:
			end <- err
			return err
		default:
			return nil
		}
	}
}

var errSignalled = errors.New("a bystander was signalled")

// Whatever a member writes, mainzd neither ends nor hangs nor grows, no process is
// signalled, and a restart succeeds. MAINZ_KILLS makes it longer, as in torture.
func TestTortureHostileMember(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.Ramdisk)
	t.Run("of the same user", func(t *testing.T) {
		m := &member{program: os.Args[0]}
		hostileMember(t, m, []*member{{program: os.Args[0],
			cred: &syscall.Credential{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid()), NoSetGroups: true}}})
	})
	// mainzd is root's, as are the honest clients: it could kill anybody.
	t.Run("of another user", func(t *testing.T) {
		testenv.Need(t, testenv.Root)
		const group, hostile, stranger = 54321, 54322, 54323
		program := testenv.Program(t, "program")
		of := func(uid uint32, groups ...uint32) *member {
			return &member{program: program, cred: &syscall.Credential{Uid: uid, Gid: uid, Groups: groups}}
		}
		m := of(hostile, group)
		m.group = fmt.Sprint(group)
		hostileMember(t, m, []*member{of(stranger), of(0), of(hostile)})
	})
}

// hostileMember lets m write into nodes, with the PIDs of others among it.
func hostileMember(t *testing.T, m *member, others []*member) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("MAINZ_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("MAINZ_SEED=%d", seed)
	bouts := 6
	if testing.Short() {
		bouts = 2
	}
	if k, err := strconv.Atoi(os.Getenv("MAINZ_KILLS")); err == nil {
		bouts = max(bouts, k/50)
	}
	// Those who have nothing to do with it, and whom the slots will name.
	var pids []string
	var alive []func() error
	for _, o := range others {
		pid, f := o.guard(t)
		pids, alive = append(pids, fmt.Sprint(pid)), append(alive, f)
	}
	var longest time.Duration
	for bout := range bouts {
		d := startKillable(t, m.group)
		attachTo(t, d.dir).Close()
		ended := make(chan error, 1)
		cmd := d.cmd
		go func() { ended <- cmd.Wait() }()
		fill(t, d.dir, 300)
		before := privateKiB(t, cmd.Process.Pid)
		for round := range 4 {
			wild := m.command("wild", append([]string{d.dir, fmt.Sprint(seed + uint64(100*bout+round)), "3000"},
				pids...)...)
			out, err := wild.Output()
			if err != nil || !strings.HasSuffix(string(out), "done\n") {
				t.Fatalf("the hostile member: %v %s", err, out)
			}
			// Honest clients, in a process of their own: what they read may be garbage.
			honest := child(t, "fill", d.dir, "60")
			honest.Stderr = io.Discard
			want(t, honest.Start(), nil)
			_ = waitOrKill(honest, 3*time.Second)
			took, err := d.answers(t, 30*time.Second)
			longest = max(longest, took)
			select {
			case e := <-ended:
				t.Fatalf("bout %d round %d: mainzd ended: %v", bout, round, e)
			default:
			}
			for _, f := range alive {
				if err := f(); err != nil {
					t.Fatalf("bout %d round %d: %v", bout, round, err)
				}
			}
			if err != nil {
				_ = cmd.Process.Signal(syscall.SIGQUIT) // with all stacks
				<-ended
				t.Fatalf("bout %d round %d: mainzd does not answer: %v", bout, round, err)
			}
		}
		if after := privateKiB(t, cmd.Process.Pid); after > before+64<<10 {
			t.Errorf("bout %d: mainzd had %d KiB and has %d", bout, before, after)
		}
		_ = cmd.Process.Kill()
		<-ended
		d.start()
		again := make(chan error, 1)
		cmd = d.cmd
		go func() { again <- cmd.Wait() }()
		for limit := time.Now().Add(time.Minute); ; {
			if _, err := d.answers(t, 30*time.Second); err == nil {
				break
			} else if time.Now().After(limit) {
				t.Fatalf("bout %d: after the restart: %v", bout, err)
			}
			select {
			case e := <-again:
				t.Fatalf("bout %d: the restarted mainzd ended: %v", bout, e)
			case <-time.After(time.Millisecond):
			}
		}
		_ = cmd.Process.Kill()
		<-again
	}
	t.Logf("longest answer %v", longest)
}

// The dispatcher's liveness word says anything. It goes on, nobody recovers its slot or
// takes its place, and the word is right again soon; a restart finds it wrong and
// succeeds.
func TestForgedDispatcher(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	n := startNode(t)
	n.end()
	n.opts.Store.LookEvery = 5 * time.Millisecond
	n.start()
	ctx := minute(t)
	c := n.attach()
	through := n.attach(ThroughRing())
	db, ringDB := c.open(t, "db", KV), through.open(t, "db", KV)
	sl := c.store.Segment().Slot(shm.DispatcherSlot)
	for i, v := range []uint32{0, 1 << 30, 1<<31 | 1<<30, 1<<31 | 1, 7, ^uint32(0)} {
		live := sl.Live.Load()
		for _, pid := range []uint32{sl.PID.Load(), 0, 1 << 21} { // the last is nobody's, mostly
			sl.PID.Store(pid)
			sl.Live.Store(v)
			key := fmt.Append(nil, i)
			want(t, db.Store(ctx, key, key), nil)
			want(t, ringDB.Store(ctx, key, key), nil)
			if did, err := c.store.Recover(ctx); did != 0 || err != nil {
				t.Fatalf("recovered %d slots, %v", did, err)
			}
			d, err := dispatcher.Open(ctx, n.opts)
			if !errors.Is(err, shm.ErrInUse) {
				t.Fatalf("a second dispatcher beside the word %#x: %v", v, err)
			}
			if d != nil {
				_ = d.Close()
			}
		}
		until(t, "the word is right again", func() bool {
			return sl.Live.Load() == live && sl.PID.Load() == uint32(os.Getpid())
		})
		n.end()
		sl.Live.Store(v)
		n.start()
		want(t, ringDB.Store(ctx, []byte("k"), []byte("v")), nil)
	}
}

// Somebody punches a hole into the file, in each part of it: what was there is zeroes.
// mainzd answers all the while, a restart succeeds, and honest clients can attach. In
// the page of the gate and in the header it ends the segment's life.
func TestPunchedHoles(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.Ramdisk, testenv.NoRace)
	for area := -1; area <= int(shm.AreaData); area++ {
		d := startKillable(t)
		c := attachTo(t, d.dir)
		fill(t, d.dir, 10)
		off, size := shm.Offset(0), uint64(8192)
		if area >= 0 {
			off, size = c.store.Segment().Area(shm.AreaID(area))
		}
		ended := make(chan error, 1)
		cmd := d.cmd
		go func() { ended <- cmd.Wait() }()
		f, err := os.OpenFile(filepath.Join(d.dir, "segment"), os.O_RDWR, 0)
		want(t, err, nil)
		want(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off),
			int64(size)), nil)
		want(t, f.Close(), nil)
		if area < 0 {
			select {
			case <-ended:
			case <-time.After(time.Minute):
				t.Fatal("mainzd goes on without a header")
			}
			if code := cmd.ProcessState.ExitCode(); code <= 0 {
				t.Errorf("mainzd ended with %d", code)
			}
			_, err := c.Open(minute(t), "more", KV)
			want(t, err, ErrClosed)
			_ = c.Close()
			continue
		}
		for range 2 {
			honest := child(t, "fill", d.dir, "10")
			honest.Stderr = io.Discard
			want(t, honest.Start(), nil)
			_ = waitOrKill(honest, time.Second)
			if _, err := d.answers(t, 30*time.Second); err != nil {
				t.Fatalf("a hole in area %d: mainzd does not answer: %v", area, err)
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("a hole in area %d: mainzd ended: %v", area, err)
		default:
		}
		_ = cmd.Process.Kill()
		<-ended
		_ = c.Close()
		d.start()
		until(t, "mainzd is there again", func() bool { _, err := d.answers(t, time.Minute); return err == nil })
	}
}

// waitOrKill waits for the end of a process, and ends it after a while.
func waitOrKill(cmd *exec.Cmd, limit time.Duration) error {
	kill := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	return cmd.Wait()
}

// fillClient is fill as a program.
func fillClient() {
	n, _ := strconv.Atoi(os.Args[2])
	fmt.Println(filled(os.Args[1], n))
	os.Exit(0)
}

func fill(t *testing.T, dir string, n int) { want(t, filled(dir, n), nil) }

// filled does what clients do.
func filled(dir string, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var all error
	for _, opts := range [][]Option{nil, {ThroughRing()}} {
		c, err := Attach(ctx, dir, opts...)
		if err != nil {
			return err
		}
		kv, err := c.Open(ctx, "kv", KV)
		opens, err2 := c.Open(ctx, "opens", Pieces)
		if err = errors.Join(err, err2); err != nil {
			return errors.Join(err, c.Close())
		}
		for i := range n {
			short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
			key := binary.LittleEndian.AppendUint32(nil, uint32(i*7))
			all = errors.Join(all, kv.Store(short, key, make([]byte, 1+i*i%5000)))
			_, err := kv.Fetch(short, key)
			p, err2 := opens.ConditionalAppend(short, Always, key[:1], key)
			all = errors.Join(all, err, err2)
			if err2 == nil && i%3 == 0 {
				all = errors.Join(all, opens.RemoveAndTrigger(short, key[:1], p))
			}
			stop()
		}
		all = errors.Join(all, c.Close())
	}
	return all
}

// A truncated segment ends mainzd with an error that says so, and not by a signal.
func TestTruncated(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.Ramdisk)
	base, err := os.MkdirTemp("/dev/shm", "mainz-test-*")
	want(t, err, nil)
	defer os.RemoveAll(base)
	d := &killable{t: t, dir: filepath.Join(base, "v1")}
	var log bytes.Buffer
	d.cmd = child(t, "mainzd", "--config", os.DevNull, "--dir", d.dir, "--size", "64MiB", "--slots", "32",
		"--log-level", "warn")
	d.cmd.Stderr = &log
	want(t, d.cmd.Start(), nil)
	for {
		if _, err := d.answers(t, time.Minute); err == nil {
			break
		}
		time.Sleep(time.Millisecond) // polls
	}
	want(t, os.Truncate(filepath.Join(d.dir, "segment"), 0), nil)
	_ = waitOrKill(d.cmd, time.Minute)
	if code := d.cmd.ProcessState.ExitCode(); code <= 0 || !strings.Contains(log.String(), "truncated") ||
		strings.Contains(log.String(), "goroutine ") {
		t.Errorf("mainzd ended with %d: %s", code, log.String())
	}
}
