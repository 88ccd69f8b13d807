package shm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests need processes that die. A child is this test binary again, with
// a role in its environment; it says what it has done line by line, and goes
// on when it is told a line, or its input ends.

const roleEnv, dirEnv = "SHM_TEST_ROLE", "SHM_TEST_DIR"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if err := roles[role](os.Getenv(dirEnv)); err != nil {
			fmt.Printf("error %v\n", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var roles = map[string]func(dir string) error{
	"join":       roleJoin,
	"hold":       roleHold,
	"recover":    roleRecover,
	"count":      roleCount,
	"own":        roleOwn,
	"attach":     roleAttach,
	"wake":       roleWake,
	"exit":       roleExit,
	"dispatcher": roleDispatcher,
	"idle":       roleIdle,
	"joiner":     roleJoiner,
	"exec":       roleExec,
	"lock":       roleLock,
}

var told = bufio.NewScanner(os.Stdin)

func childJoin(dir string, repair func(*Client, uint32) error) (*Client, error) {
	ctx := context.Background()
	s, err := Attach(ctx, dir, testLayout)
	if err != nil {
		return nil, err
	}
	return s.Join(ctx, JoinOptions{Name: "child", Repair: repair})
}

// roleJoin joins, and leaves when it is told.
func roleJoin(dir string) error {
	c, err := childJoin(dir, repairArea)
	if err != nil {
		return err
	}
	fmt.Println("joined", c.Slot())
	told.Scan()
	if err := c.Leave(); err != nil {
		return err
	}
	fmt.Println("left")
	return c.Segment().Close()
}

// roleHold stops in the middle of an update, holding the latch.
func roleHold(dir string) error {
	c, err := childJoin(dir, repairArea)
	if err != nil {
		return err
	}
	area := areaOf(c.Segment())
	if err := area.latch.Lock(c, c.HandleID(5)); err != nil {
		return err
	}
	area.a.Store(area.a.Load() + 1)
	// The kernel alone knows of the robust list now.
	for range 3 {
		runtime.GC()
	}
	fmt.Println("holds", c.Slot())
	told.Scan()
	return nil
}

// roleRecover recovers when it is told, and gets stuck in the repair.
func roleRecover(dir string) error {
	c, err := childJoin(dir, func(c *Client, slot uint32) error {
		fmt.Println("repairs", slot)
		told.Scan()
		return repairArea(c, slot)
	})
	if err != nil {
		return err
	}
	fmt.Println("joined", c.Slot())
	told.Scan()
	n, err := c.RecoverAll()
	fmt.Println("recovered", n)
	return err
}

// roleCount updates under the latch until it is told to stop. It says when it
// is in full swing.
func roleCount(dir string) error {
	c, err := childJoin(dir, repairArea)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() { told.Scan(); close(stop) }()
	area, n := areaOf(c.Segment()), 0
	for {
		id := c.HandleID(n % HandlesPerSlot)
		if err := area.latch.Lock(c, id); err != nil {
			return err
		}
		if a, b := area.a.Load(), area.b.Load(); a != b {
			return fmt.Errorf("torn under the latch: %d and %d", a, b)
		}
		area.update()
		area.latch.Unlock(id)
		n++
		if n == warmUp {
			fmt.Println("updates", n)
		}
		select {
		case <-stop:
			fmt.Println("lost", c.Slices().Lost, "updates", n)
			return c.Leave()
		default:
		}
	}
}

const warmUp = 1000

// roleOwn owns the directory until it is told.
func roleOwn(dir string) error {
	l, err := LockOwner(dir)
	if err != nil {
		return err
	}
	fmt.Println("owns", os.Getpid())
	told.Scan()
	return l.Release()
}

// roleAttach says whether it could attach, and what the error is.
func roleAttach(dir string) error {
	s, err := Attach(context.Background(), dir, testLayout)
	if err != nil {
		fmt.Println("refused", errors.Is(err, ErrPermission), err)
		return nil
	}
	if _, err := s.Join(context.Background(), JoinOptions{}); err != nil {
		return err
	}
	fmt.Println("attached")
	return nil
}

// roleWake rings the bell when it is told.
func roleWake(dir string) error {
	c, err := childJoin(dir, nil)
	if err != nil {
		return err
	}
	bell := &areaOf(c.Segment()).bell
	fmt.Println("joined", c.Slot())
	for told.Scan() {
		bell.Store(bell.Load() + 1)
		bell.Wake(1)
		fmt.Println("rang")
	}
	return c.Leave()
}

// roleExit ends without leaving, as a program does that calls os.Exit.
func roleExit(dir string) error {
	c, err := childJoin(dir, nil)
	if err != nil {
		return err
	}
	fmt.Println("joined", c.Slot())
	return nil
}

// roleDispatcher joins as the dispatcher, until it is told.
func roleDispatcher(dir string) error {
	s, err := Attach(context.Background(), dir, testLayout)
	if err != nil {
		return err
	}
	c, err := s.Join(context.Background(), JoinOptions{Dispatcher: true})
	if err != nil {
		return err
	}
	fmt.Println("joined")
	told.Scan()
	return c.Leave()
}

// roleIdle has nothing to do with the segment.
func roleIdle(string) error {
	fmt.Println("idle")
	told.Scan()
	fmt.Println("left")
	return nil
}

// roleJoiner stops in the middle of taking over a dead slot, with the claim taken.
// It says then whether it could go on.
func roleJoiner(dir string) error {
	s, err := Attach(context.Background(), dir, testLayout)
	if err != nil {
		return err
	}
	c := &Client{seg: s}
	_, _ = startGuardian(func(g *guardian) error {
		for i := uint32(1); i <= s.Slots(); i++ {
			if sl := s.Slot(i); sl.Live.Load()&liveDied != 0 {
				betweenClaimAndTake = func() {
					fmt.Println("claims", i)
					told.Scan()
				}
				took, err := c.takeOverSlot(g, i)
				fmt.Println("took", took)
				return errors.Join(err, errors.New("the guardian is not needed any more"))
			}
		}
		return errors.New("no dead slot")
	})
	told.Scan()
	return nil
}

// roleExec holds the latch and replaces its program when it is told: by itself in
// the role join, or by a shell that says that it lives.
func roleExec(dir string) error {
	c, err := childJoin(dir, repairArea)
	if err != nil {
		return err
	}
	if err := areaOf(c.Segment()).latch.Lock(c, c.HandleID(5)); err != nil {
		return err
	}
	fmt.Println("holds", c.Slot())
	told.Scan()
	if told.Text() == "other" {
		return syscall.Exec("/bin/sh", []string{"sh", "-c", "read word; echo lives"}, os.Environ())
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Setenv(roleEnv, "join"); err != nil {
		return err
	}
	return syscall.Exec(exe, []string{exe}, os.Environ())
}

// roleLock takes locks in the segment's file that are not its own: of all bytes at
// once, or of each that its input names as soon as it can be had.
func roleLock(dir string) error {
	f, err := os.OpenFile(dir+"/"+segmentName, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fmt.Println("ready"); told.Scan(); {
		lk := unix.Flock_t{Type: unix.F_WRLCK}
		if at, err := strconv.ParseInt(told.Text(), 10, 64); err == nil {
			lk.Start, lk.Len = at, 1
			fmt.Println("waits")
		}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &lk); err != nil {
			return err
		}
		fmt.Println("locks")
	}
	return nil
}

type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func spawn(t testing.TB, role, dir string, attr *syscall.SysProcAttr) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return spawnExe(t, exe, role, dir, attr)
}

func spawnExe(t testing.TB, exe, role, dir string, attr *syscall.SysProcAttr) *child {
	t.Helper()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, dirEnv+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = attr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{t, cmd, in, bufio.NewScanner(out)}
	t.Cleanup(c.kill)
	return c
}

// says reads the child's next line, which has to begin with want, and scans
// what follows into args.
func (c *child) says(want string, args ...any) {
	c.t.Helper()
	if !c.out.Scan() {
		c.t.Fatalf("child ended, should say %q", want)
	}
	line := c.out.Text()
	rest, ok := strings.CutPrefix(line, want)
	if !ok {
		c.t.Fatalf("child says %q, should say %q", line, want)
	}
	if _, err := fmt.Sscan(rest, args...); err != nil && len(args) > 0 {
		c.t.Fatalf("child says %q: %v", line, err)
	}
}

func (c *child) tell(what ...any) {
	c.t.Helper()
	if len(what) == 0 {
		what = []any{"go"}
	}
	if _, err := fmt.Fprintln(c.in, what...); err != nil {
		c.t.Fatal(err)
	}
}

// kill is kill -9. The process is waited for, but others may find it dead before.
func (c *child) kill() {
	if c.cmd.ProcessState != nil {
		return
	}
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// end waits for an orderly end.
func (c *child) end() {
	c.t.Helper()
	_ = c.in.Close()
	for c.out.Scan() {
		if strings.HasPrefix(c.out.Text(), "error") {
			c.t.Error("child: ", c.out.Text())
		}
	}
	if err := c.cmd.Wait(); err != nil {
		c.t.Errorf("child: %v", err)
	}
}

// stopped reports whether the child has been stopped by a signal.
func (c *child) stopped() bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "T")
}

// onThread runs f on a thread that ends with it: never on the main one, which can't.
func onThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // locked: the thread ends
	}
	done := make(chan struct{})
	go func() { defer close(done); onThread(f) }()
	<-done
	runtime.UnlockOSThread()
}

// newSegment creates a segment on a ramdisk.
func newSegment(t testing.TB, dir string, cfg Config) *Segment {
	t.Helper()
	s, err := Create(context.Background(), dir, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
