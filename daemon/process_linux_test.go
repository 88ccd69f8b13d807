package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/ltdb"
)

// These tests run the daemon as a process of its own, which is this very program: its
// surroundings fail, and it has to go on.

func TestMain(m *testing.M) {
	if os.Getenv("MAINZD_TEST") != "" {
		// A condition function that never returns hangs the loop, as a bug would.
		opts := []Option{WithVersion("v1.2.3"),
			WithCondition(ltdb.Condition{ID: hangs, Name: "hangs", Version: 1, Holds: func(ltdb.Snapshot, []byte) bool {
				select {}
			}})}
		if os.Getenv("MAINZD_TEST") == "command" {
			within(opts)
		}
		Main(opts...)
	}
	os.Exit(m.Run())
}

const hangs = 99

// within is a program that has the daemon as one of its commands, and takes signals
// itself.
func within(opts []Option) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{Use: "program", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(Command(opts...))
	root.SetArgs(append([]string{"daemon"}, os.Args[1:]...))
	err := root.ExecuteContext(ctx)
	if code, ok := errors.AsType[Exit](err); ok {
		os.Exit(int(code))
	}
	if err != nil {
		os.Exit(100)
	}
	os.Exit(0)
}

// both runs a test with the daemon as a program, and as a command of another one.
func both(t *testing.T, f func(t *testing.T, env []string)) {
	t.Run("program", func(t *testing.T) { f(t, nil) })
	t.Run("command", func(t *testing.T) { f(t, []string{"MAINZD_TEST=command"}) })
}

// patience is for what takes a moment, on a machine that is busy.
const patience = time.Minute

// process is a daemon.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	dir  string
	done chan struct{} // it has ended
}

// start starts a daemon whose standard error is stderr, and waits until it lets
// clients in.
func start(t *testing.T, stderr *os.File, env []string, args ...string) *process {
	t.Helper()
	base, err := os.MkdirTemp("/dev/shm", "mainzd-test-*")
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, dir: filepath.Join(base, "v1"), done: make(chan struct{})}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(exe, append([]string{"--dir", p.dir, "--size", "16MiB", "--slots", "16"}, args...)...)
	p.cmd.Env = append(append(os.Environ(), "MAINZD_TEST=1"), env...)
	if stderr != nil {
		p.cmd.Stderr = stderr
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		os.RemoveAll(base)
	})
	p.until("it does not open", func() bool {
		c, err := attach.Dial(t.Context(), p.dir)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return p
}

// until looks until f is true.
func (p *process) until(what string, f func() bool) {
	p.t.Helper()
	for limit := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		select {
		case <-p.done:
			p.t.Fatalf("%s: the daemon has ended: %v", what, p.cmd.ProcessState)
		default:
		}
		if time.Now().After(limit) {
			p.t.Fatal(what)
		}
	}
}

func (p *process) attach() (*mainz.Client, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	return mainz.Attach(ctx, p.dir)
}

// served shows that a client is served.
func (p *process) served() {
	p.t.Helper()
	c, err := p.attach()
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	if err := errors.Join(c.Ping(ctx), c.Close()); err != nil {
		p.t.Fatal(err)
	}
}

// ends waits for the end, and returns how it was.
func (p *process) ends() *os.ProcessState {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatal("the daemon does not end")
	}
	return p.cmd.ProcessState
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// pipe makes a pipe that holds little.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// Nobody reads the log: clients are let in all the same, and the daemon can be ended.
func TestNobodyReadsTheLog(t *testing.T) { both(t, testNobodyReadsTheLog) }

func testNobodyReadsTheLog(t *testing.T, env []string) {
	r, w := pipe(t)
	p := start(t, w, env, "--log-level", "debug")
	w.Close()
	for range 100 { // some 15 KiB of log
		p.served()
	}
	p.signal(syscall.SIGTERM)
	if s := p.ends(); s.ExitCode() != 0 {
		t.Errorf("it ends with %v", s)
	}
	if b, err := io.ReadAll(r); err != nil || !bytes.Contains(b, []byte("node is open")) {
		t.Errorf("the log begins with %q, %v", b, err)
	}
}

// The reader of the log dies: a write to a pipe without a reader is no reason to end.
func TestReaderOfTheLogDies(t *testing.T) { both(t, testReaderOfTheLogDies) }

func testReaderOfTheLogDies(t *testing.T, env []string) {
	r, w := pipe(t)
	p := start(t, w, env, "--log-level", "debug")
	w.Close()
	r.Close()
	for range 10 {
		p.served()
	}
	p.signal(syscall.SIGTERM)
	if s := p.ends(); s.ExitCode() != 0 {
		t.Errorf("it ends with %v", s)
	}
}

// logFile is where a daemon writes its log, to be looked at.
func logFile(t *testing.T) (f *os.File, has func(string) int) {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, func(text string) int {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), text)
	}
}

// SIGHUP takes the log level of the configuration as it is now, and says what of a
// changed configuration it can't take.
func TestHangUpReadsTheConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mainzd.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log_level = \"warn\"\ncluster = \"a\"\n")
	f, has := logFile(t)
	p := start(t, f, nil, "--config", file)
	p.served()
	write("log_level = \"debug\"\ncluster = \"b\"\n")
	p.signal(syscall.SIGHUP)
	p.until("it does not read the configuration",
		func() bool { return has("needs a restart") == 1 && has("setting=cluster") == 1 })
	if n := has("client attached"); n != 0 {
		t.Errorf("%d lines of level debug before", n)
	}
	p.served()
	p.until("the level has not changed", func() bool { return has("client attached") > 0 })
	write("log_level = \"loud\"\n")
	p.signal(syscall.SIGHUP)
	p.until("it does not say what is wrong", func() bool { return has("there are debug, info, warn and error") == 1 })
	p.served()
	p.signal(syscall.SIGINT)
	if s := p.ends(); s.ExitCode() != 0 {
		t.Errorf("it ends with %v", s)
	}
}

// hang makes the loop of the daemon stand still.
func (p *process) hang() {
	p.t.Helper()
	c, err := p.attach()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	ctx, cancel := context.WithCancel(p.t.Context())
	p.t.Cleanup(cancel)
	db, err := c.Open(ctx, "db", mainz.KV)
	if err != nil {
		p.t.Fatal(err)
	}
	go func() { _, _ = db.ConditionalAppend(ctx, hangs, []byte("key"), []byte("x")) }()
	p.until("it does not hang", func() bool {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		return c.Ping(ctx) != nil
	})
}

// Who asks twice does not wait: the second signal ends a daemon that does not come to
// its end.
func TestSecondSignalEndsAtOnce(t *testing.T) { both(t, testSecondSignalEndsAtOnce) }

func testSecondSignalEndsAtOnce(t *testing.T, env []string) {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		p := start(t, nil, env)
		p.hang()
		p.signal(s)
		select {
		case <-p.done:
			t.Fatalf("%v: the first one ends a daemon that hangs: %v", s, p.cmd.ProcessState)
		case <-time.After(100 * time.Millisecond):
		}
		// The first one is taken by a goroutine, so the second may come too early.
		for range 1000 {
			p.signal(s)
			select {
			case <-p.done:
			case <-time.After(10 * time.Millisecond):
				continue
			}
			break
		}
		if ws := p.ends().Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != s {
			t.Errorf("%v: it ends with %v", s, p.cmd.ProcessState)
		}
	}
}

// manage listens as a service manager does.
func manage(t *testing.T, name string) <-chan string {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	words := make(chan string, 1<<16)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				close(words)
				return
			}
			words <- string(b[:n])
		}
	}()
	return words
}

// next waits for a word of the daemon that begins so.
func next(t *testing.T, words <-chan string, prefix string) {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case w := <-words:
			if strings.HasPrefix(w, prefix) {
				return
			}
		case <-limit:
			t.Fatalf("no %s", prefix)
		}
	}
}

// The service manager is told how it stands, by a socket with a name in the file
// system or without. The loop itself gives the signs of life: they end when it hangs.
func TestServiceManager(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@mainz-test-%d", os.Getpid())} {
		words := manage(t, name)
		p := start(t, nil, []string{"NOTIFY_SOCKET=" + name, "WATCHDOG_USEC=60000"})
		next(t, words, "READY=1")
		for range 5 {
			next(t, words, "WATCHDOG=1")
		}
		p.signal(syscall.SIGHUP)
		next(t, words, "RELOADING=1\nMONOTONIC_USEC=")
		next(t, words, "READY=1")
		next(t, words, "WATCHDOG=1")
		p.signal(syscall.SIGTERM)
		next(t, words, "STOPPING=1")
		p.ends()
	}
	name := fmt.Sprintf("@mainz-test-%d-hang", os.Getpid())
	words := manage(t, name)
	p := start(t, nil, []string{"NOTIFY_SOCKET=" + name, "WATCHDOG_USEC=60000"})
	next(t, words, "WATCHDOG=1")
	p.hang()
	for last := len(words); ; last = len(words) { // those before it hung
		for range last {
			<-words
		}
		time.Sleep(200 * time.Millisecond) // three times what the manager allows
		if len(words) == 0 {
			break
		}
		t.Fatalf("%d signs of life of a loop that hangs", len(words))
	}
}

// With WATCHDOG_PID somebody else is meant.
func TestWatchdogOfAnother(t *testing.T) {
	set := map[string]string{"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "3000000"}
	env := func(name string) (string, bool) { v, ok := set[name]; return v, ok }
	m := newManager(env)
	defer m.close()
	if m.every != time.Second {
		t.Errorf("every %v", m.every)
	}
	set["WATCHDOG_PID"] = "1"
	other := newManager(env)
	defer other.close()
	if other.every != 0 {
		t.Errorf("another's: every %v", other.every)
	}
}

func TestVersion(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	both(t, func(t *testing.T, env []string) {
		cmd := exec.Command(exe, "--version")
		cmd.Env = append(append(os.Environ(), "MAINZD_TEST=1"), env...)
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "v1.2.3") {
			t.Errorf("%q, %v", out, err)
		}
	})
}

// The last words are for somebody who may not read them: the daemon ends all the
// same, with its exit code.
func TestNobodyReadsTheLastWords(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	both(t, func(t *testing.T, env []string) {
		var err error
		_, w := pipe(t)
		fd := int(w.Fd()) // once: Fd makes it blocking
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
		for err == nil { // until the pipe is full
			_, err = unix.Write(fd, make([]byte, 4096))
		}
		if err := unix.SetNonblock(fd, false); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe, "--size", "1 mile")
		cmd.Env = append(append(os.Environ(), "MAINZD_TEST=1"), env...)
		cmd.Stderr = w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p := &process{t: t, cmd: cmd, done: make(chan struct{})}
		go func() {
			_ = cmd.Wait()
			close(p.done)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-p.done
		})
		if s := p.ends(); s.ExitCode() != 2 {
			t.Errorf("it ends with %v, not with 2", s)
		}
	})
}

// silent opens connections that say nothing, as many as f asks for.
func (p *process) silent(f func(i int) bool) (open []int) {
	p.t.Helper()
	p.t.Cleanup(func() { closeAll(open) })
	for i := 0; f(i); i++ {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			p.t.Fatal(err)
		}
		open = append(open, fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(p.dir, attach.SocketName)}); err != nil {
			p.t.Fatal(err)
		}
	}
	return open
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Without file descriptors a client is told so, the log says it a few times and not
// at every turn, who is attached is served, and when there are some again others get
// in.
func TestOutOfFileDescriptors(t *testing.T) {
	f, has := logFile(t)
	p := start(t, f, nil, "--config", os.DevNull)
	c, err := p.attach()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	few := unix.Rlimit{Cur: uint64(len(fds) + 20), Max: uint64(len(fds) + 20)}
	if err := unix.Prlimit(p.cmd.Process.Pid, unix.RLIMIT_NOFILE, &few, &old); err != nil {
		t.Fatal(err)
	}
	open := p.silent(func(i int) bool { return i < 60 })
	for range 200 {
		_, err := p.attach()
		if !errors.Is(err, attach.ErrRefused) || !strings.Contains(err.Error(), "LimitNOFILE=") {
			t.Fatalf("attached without a descriptor: %v", err)
		}
		if err := c.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := has("could not be let in"); n < 1 || n > 20 {
		t.Errorf("%d lines in the log for 240 clients", n)
	}
	closeAll(open)
	p.until("nobody gets in any more", func() bool {
		c, err := p.attach()
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// Connections that say nothing, connections that say nonsense, and connections that
// end in between: an honest client gets in, and what the daemon keeps is bounded.
func TestSocketFlood(t *testing.T) {
	p := start(t, nil, nil, "--config", os.DevNull)
	silent := p.silent(func(i int) bool { return i < 1000 })
	p.served()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if len(fds) > 300 { // 16 slots and 128 more, and what a process has
		t.Errorf("%d descriptors are open", len(fds))
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := 0; !stop.Load(); n++ {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Error(err)
					return
				}
				if unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(p.dir, attach.SocketName)}) == nil && i > 0 {
					_ = unix.Sendto(fd, bytes.Repeat([]byte{byte(n)}, 1+n*37%20000),
						unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, nil)
				}
				_ = unix.Close(fd)
			}
		})
	}
	for range 5 {
		p.served()
	}
	stop.Store(true)
	wg.Wait()
	closeAll(silent)
	p.served()
}

// Many clients attach at once: none of them sets a limit of its own, and none fails.
func TestManyAttachAtOnce(t *testing.T) {
	p := start(t, nil, nil, "--config", os.DevNull, "--slots", "200", "--size", "64MiB")
	var wg sync.WaitGroup
	errs := make(chan error, 200)
	for range cap(errs) {
		wg.Go(func() {
			c, err := mainz.Attach(context.Background(), p.dir)
			if err == nil {
				t.Cleanup(func() { c.Close() })
			}
			errs <- err
		})
	}
	wg.Wait()
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}
