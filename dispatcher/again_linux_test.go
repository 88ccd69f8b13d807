package dispatcher

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/shm"
)

// Child processes of the tests are this binary: a dispatcher to be killed, and a client.
func TestMain(m *testing.M) {
	dir := os.Getenv("MAINZ_TEST_DIR")
	var err error
	switch os.Getenv("MAINZ_TEST_CHILD") {
	case "dispatcher":
		var d *Dispatcher
		if d, err = Open(context.Background(), smallNode(dir)); err == nil {
			fmt.Println("open")
			err = d.Run(context.Background())
		}
	case "client":
		var c *mainz.Client
		if c, err = mainz.Attach(context.Background(), dir); err == nil {
			fmt.Println("attached")
			_, _ = io.Copy(io.Discard, os.Stdin)
			err = c.Close()
		}
	case "pieces":
		err = piecesChild(dir)
	default:
		os.Exit(m.Run())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func smallNode(dir string) Options {
	return Options{Dir: dir, Store: ltdb.Options{Create: true, Config: ltdb.Config{Size: 16 << 20, Slots: 4}}}
}

// child starts this binary as something else, and waits for its first line. It ends
// with the test.
func child(t *testing.T, what, dir string) *exec.Cmd {
	t.Helper()
	cmd, out := unready(t, what, dir)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return cmd
}

// unready is child that does not wait for the first line.
func unready(t testing.TB, what, dir string, env ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "MAINZ_TEST_CHILD="+what, "MAINZ_TEST_DIR="+dir), env...)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil { // Wait closes it
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, out
}

// turnUntil runs the loop until f is true.
func (d *Dispatcher) turnUntil(ctx context.Context, t *testing.T, what string, f func() bool) {
	t.Helper()
	for !f() {
		if ctx.Err() != nil {
			t.Fatal(what)
		}
		if !d.turn() {
			time.Sleep(100 * time.Microsecond)
		}
	}
}

// liarsAreRefused: a liar has written his PID into the slot of a client, locks what he
// can, and says that he has proven it.
func liarsAreRefused(ctx context.Context, t *testing.T, d *Dispatcher, c *client) {
	t.Helper()
	sl := d.seg.Slot(c.slot)
	pid, start := sl.PID.Load(), sl.Start.Load()
	for _, lie := range []struct {
		words, locks, other bool
		want                error
	}{
		{false, true, false, attach.ErrRefused}, {true, false, false, attach.ErrPermission},
		{true, true, false, attach.ErrPermission},
		{true, false, true, attach.ErrRefused}, // of a segment that was replaced
	} {
		if lie.words {
			sl.PID.Store(uint32(os.Getpid()))
			sl.Start.Store(d.seg.Slot(shm.DispatcherSlot).Start.Load())
		}
		told := make(chan error, 1)
		id := d.seg.Header().ID
		if lie.other {
			id[0]++
		}
		go func() { told <- pretend(ctx, d, id, c, lie.locks) }()
		var err error
		d.turnUntil(ctx, t, "the liar gets no answer", func() bool {
			select {
			case err = <-told:
				return true
			default:
				return false
			}
		})
		sl.PID.Store(pid)
		sl.Start.Store(start)
		if !errors.Is(err, lie.want) {
			t.Errorf("%+v: the liar is told %v", lie, err)
		}
		if _, _, ok := d.dialled(c.slot, uint64(c.generation)); ok {
			t.Errorf("%+v: the liar has the client's place", lie)
		}
	}
}

// A dispatcher is killed and another one starts. Somebody lies that the client is he:
// he is told no. The client dials again, so that the kernel names it, and is evicted by
// that name when it is stopped, whatever its slot says.
func TestDialsAgain(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := filepath.Join(testenv.ShmDir(t), "v1")
	first := child(t, "dispatcher", dir)
	who := child(t, "client", dir)
	pid := who.Process.Pid
	_ = who.Process.Signal(syscall.SIGSTOP) // it shall come after the liar
	_ = first.Process.Kill()
	_ = first.Wait()
	d, err := Open(ctx, smallNode(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	if len(d.clients) != 1 {
		t.Fatalf("%d clients", len(d.clients))
	}
	c := d.clients[0]
	sl := d.seg.Slot(c.slot)
	if sl.PID.Load() != uint32(pid) {
		t.Fatalf("slot %d has process %d, not %d", c.slot, sl.PID.Load(), pid)
	}
	named := func() bool {
		fd, by, ok := d.dialled(c.slot, uint64(c.generation))
		if !ok {
			return false
		}
		defer unix.Close(fd)
		if by != pid || unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
			t.Fatalf("process %d is named, not %d", by, pid)
		}
		return true
	}
	if named() {
		t.Fatal("the kernel names it before it has dialled")
	}

	liarsAreRefused(ctx, t, d, c)

	_ = who.Process.Signal(syscall.SIGCONT)
	d.turnUntil(ctx, t, "the client does not dial again", named)
	evict := d.keeper.Evict
	if did, err := evict(c.slot, uint64(c.generation)); did || err != nil {
		t.Fatalf("it runs, and was evicted: %v, %v", did, err)
	}
	_ = who.Process.Signal(syscall.SIGSTOP)
	d.turnUntil(ctx, t, "it is not evicted", func() bool {
		sl.PID.Store(uint32(os.Getppid())) // so /proc leads to somebody else
		did, err := evict(c.slot, uint64(c.generation))
		sl.PID.Store(uint32(pid))
		if err != nil {
			t.Fatal(err)
		}
		return did
	})
	_ = who.Wait()
	if ws := who.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("it has ended with %v", who.ProcessState)
	}
	d.turnUntil(ctx, t, "it is not gone", func() bool { return len(d.clients) == 0 })
}

// pretend dials as a client that it is not.
func pretend(ctx context.Context, d *Dispatcher, id [16]byte, as *client, locks bool) error {
	conn, err := attach.Dial(ctx, d.opts.Dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	var m attach.Message
	if err := conn.Call(ctx, &attach.Message{Kind: attach.Hello, Version: attach.Version}, &m); err != nil {
		return err
	}
	if err := conn.Call(ctx, &attach.Message{Kind: attach.Again, Segment: id, Slot: as.slot,
		Generation: as.generation}, &m); err != nil {
		return err
	}
	if locks {
		f, err := os.OpenFile(filepath.Join(d.opts.Dir, "segment"), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		// Behind the tenant's: shm takes the lock to be longer by 2^31 times the number.
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: d.seg.LockPlace(as.slot) + 1<<31, Len: int64(m.Stretch) << 31}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
			return err
		}
	}
	return conn.Call(ctx, &attach.Message{Kind: attach.Proven}, &m)
}

// A client is marked dead, and nothing proves that its process is gone: somebody has
// its lock, and its slot names a process that lives. After a while the log says so,
// once, and the words for mainz status do, until it is over.
func TestUnproven(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	defer func(old protocol.Instant) { unprovenAfter = old }(unprovenAfter)
	unprovenAfter = 10 * link.Millisecond
	dir := filepath.Join(testenv.ShmDir(t), "v1")
	first := child(t, "dispatcher", dir)
	who := child(t, "client", dir)
	_ = who.Process.Signal(syscall.SIGSTOP) // it shall not dial again
	_ = first.Process.Kill()
	_ = first.Wait()
	var log bytes.Buffer
	opts := smallNode(dir)
	opts.Log = slog.New(slog.NewTextHandler(&log, nil))
	d, err := Open(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	if len(d.clients) != 1 {
		t.Fatalf("%d clients", len(d.clients))
	}
	slot := d.clients[0].slot
	sl := d.seg.Slot(slot)
	f, err := os.OpenFile(filepath.Join(dir, "segment"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	locked := make(chan error, 1)
	go func() {
		lk := unix.Flock_t{Type: unix.F_WRLCK, Start: d.seg.LockPlace(slot), Len: 1}
		locked <- unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &lk) // until the kernel gives it up
	}()
	sl.PID.Store(uint32(os.Getpid()))
	sl.Start.Store(d.seg.Slot(shm.DispatcherSlot).Start.Load())
	sl.Live.Store(1<<31 | 1<<30) // as the kernel marks a death; its robust list no more finds itself
	d.turnUntil(ctx, t, "it is not named while it lives",
		func() bool { return d.node.Unproven[0].Load()>>40 == uint64(slot) })
	_ = who.Process.Kill()
	_ = who.Wait()
	if err := <-locked; err != nil {
		t.Fatal(err)
	}
	for range 20 {
		d.turnUntil(ctx, t, "no scan", func() bool { return d.scanAt > d.now })
		d.scanAt = 0
		d.turn()
	}
	if w := d.node.Unproven[0].Load(); w>>40 != uint64(slot) ||
		time.Since(time.Unix(int64(w&(1<<40-1)), 0)) > time.Minute {
		t.Errorf("the word for status is %#x", w)
	}
	if n := strings.Count(log.String(), "is marked dead"); n != 1 ||
		!strings.Contains(log.String(), fmt.Sprint(d.seg.LockPlace(slot))) {
		t.Errorf("the log says so %d times:\n%s", n, &log)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	d.turnUntil(ctx, t, "it is named for ever",
		func() bool { return d.node.Unproven[0].Load() == 0 && len(d.clients) == 0 })
}
