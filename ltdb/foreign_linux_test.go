//go:build !shmsim

package ltdb_test

import (
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

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/dispatcher"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
)

// Two users of our group, neither of which may send the other signals.
func asUser(uid uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uint32(os.Getegid())}}
}

const serving, attaching = 54322, 54323

// foreign starts this binary as another user, as what and for dir, and waits until it
// says that it is ready. It is killed when ctx ends. The file has its standard error.
func foreign(ctx context.Context, t *testing.T, program, what, dir string, uid uint32) (*exec.Cmd, *os.File) {
	t.Helper()
	cmd := exec.CommandContext(ctx, program, "-test.run=^TestForeignProcess$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), "FOREIGN_"+what+"="+dir)
	cmd.SysProcAttr = asUser(uid)
	log, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = in.Close()
	})
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatalf("%s: %v: %s", what, err, said(t, log))
	}
	return cmd, log
}

func said(t *testing.T, log *os.File) string {
	t.Helper()
	b, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestForeignProcess is what TestMayNotKill starts.
func TestForeignProcess(t *testing.T) {
	ctx := context.Background()
	var err error
	if dir := os.Getenv("FOREIGN_DISPATCHER"); dir != "" {
		var d *dispatcher.Dispatcher
		d, err = dispatcher.Open(ctx, dispatcher.Options{Dir: dir, StallLimit: 200 * time.Millisecond,
			Log:   slog.New(slog.NewTextHandler(os.Stderr, nil)),
			Store: ltdb.Options{Create: true, Config: ltdb.Config{Size: 16 << 20, Slots: 8}}})
		if err == nil {
			fmt.Print("!")
			err = errors.Join(d.Run(ctx), d.Close())
		}
	} else if dir := os.Getenv("FOREIGN_CLIENT"); dir != "" {
		var c *mainz.Client
		if c, err = mainz.Attach(ctx, dir); err == nil {
			fmt.Print("!")
			for err == nil {
				err = c.Ping(ctx)
				time.Sleep(time.Millisecond) // paces the calls: the test waits for the one that fails
			}
			fmt.Fprintln(os.Stderr, errors.Is(err, mainz.ErrClosed), errors.Is(err, mainz.ErrCorrupt), err)
			err = c.Close()
		}
	} else {
		return // started by foreign only
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestMayNotKill: a client of another user is stopped with a latch, and mainzd may
// not end it. The segment's life ends: whoever waits is told why, mainzd ends and
// says which process it was. The next mainzd serves a new segment beside the process
// that is stopped, and that one meets a dead gate when it goes on.
func TestMayNotKill(t *testing.T) {
	testenv.Need(t, testenv.Root)
	for _, socket := range []bool{true, false} { // does the kernel name the client by its socket?
		t.Run(fmt.Sprintf("socket=%v", socket), func(t *testing.T) {
			dir := ltdb.RamdiskForTest(t)
			base := filepath.Dir(filepath.Dir(filepath.Dir(dir)))
			if err := errors.Join(os.Chown(base, serving, -1), os.Chmod(base, 0o755)); err != nil {
				t.Fatal(err)
			}
			program := testenv.Program(t, "program")
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			mainzd, log := foreign(ctx, t, program, "DISPATCHER", dir, serving)
			c, err := mainz.Attach(ctx, dir)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			s, err := ltdb.Open(ctx, dir, ltdb.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			db, err := s.Database(ctx, "db", ltdb.KV, ltdb.DatabaseOptions{Records: 100})
			if err != nil {
				t.Fatal(err)
			}

			var stopped *exec.Cmd
			var told *os.File
			if !socket {
				stopped = ltdb.StopInsideAsForTest(t, dir, program, asUser(attaching))
			} else {
				stopped, told = foreign(ctx, t, program, "CLIENT", dir, attaching)
				if err := stopped.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				ltdb.LatchForTest(t, s, slotOf(t, s, stopped.Process.Pid))
			}
			for i := 0; err == nil; i++ { // until it needs the latch
				err = db.Store(ctx, fmt.Append(nil, i), []byte("v"))
			}
			if !errors.Is(err, ltdb.ErrClosed) || errors.Is(err, ltdb.ErrCorrupt) ||
				!strings.Contains(err.Error(), "stopped") {
				t.Errorf("who waits for the latch is told %v", err)
			}
			if err := c.Ping(ctx); !errors.Is(err, mainz.ErrClosed) || !strings.Contains(err.Error(), "stopped") {
				t.Errorf("who asks mainzd is told %v", err)
			}
			_ = mainzd.Wait()
			text := said(t, log)
			if mainzd.ProcessState.ExitCode() != 1 ||
				!strings.Contains(text, fmt.Sprintf("process %d ", stopped.Process.Pid)) ||
				!strings.Contains(text, "permission") {
				t.Errorf("mainzd has ended with %v: %s", mainzd.ProcessState, text)
			}

			foreign(ctx, t, program, "DISPATCHER", dir, serving)
			next, err := mainz.Attach(ctx, dir)
			if err != nil {
				t.Fatal(err)
			}
			fresh, err := next.Open(ctx, "db", mainz.KV)
			if err == nil {
				err = fresh.Store(ctx, []byte("k"), []byte("v"))
			}
			if err = errors.Join(err, next.Ping(ctx), next.Close()); err != nil {
				t.Errorf("the next mainzd: %v", err)
			}
			if !socket {
				return
			}
			_ = stopped.Process.Signal(syscall.SIGCONT)
			_ = stopped.Wait()
			if text := said(t, told); !strings.HasPrefix(text, "true false ") ||
				!strings.Contains(text, "attach again") {
				t.Errorf("who was stopped is told %s", text)
			}
		})
	}
}

// slotOf finds the slot of a process.
func slotOf(t *testing.T, s *ltdb.Store, pid int) uint32 {
	t.Helper()
	for i := uint32(1); i <= s.Segment().Slots(); i++ {
		if s.Segment().Slot(i).PID.Load() == uint32(pid) {
			return i
		}
	}
	t.Fatalf("process %d has no slot", pid)
	return 0
}
