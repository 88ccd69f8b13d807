package shm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/testenv"
)

func readable(t *testing.T, d *Doorbell, wait time.Duration) bool {
	t.Helper()
	for end := time.Now().Add(wait); ; {
		fds := []unix.PollFd{{Fd: int32(d.FD()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(end)).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n == 1 && fds[0].Revents&unix.POLLIN != 0
	}
}

func openDoorbell(t *testing.T, dir string) *Doorbell {
	t.Helper()
	d, err := OpenDoorbell(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDoorbell(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "seg")
	if _, err := OpenDoorbell(dir); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("without a directory: %v", err)
	}
	if err := MakeDoorbell(dir, Config{}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(filepath.Join(dir, doorbellName))
	if err != nil || info.Mode() != os.ModeNamedPipe|0o660 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	ringer, sleeper := openDoorbell(t, dir), openDoorbell(t, dir)
	if readable(t, sleeper, 0) {
		t.Fatal("readable before anybody rang")
	}
	ringer.Ring()
	ringer.Ring()
	if !readable(t, sleeper, time.Minute) {
		t.Fatal("not rung")
	}
	sleeper.Drain()
	if readable(t, sleeper, 0) {
		t.Fatal("readable after it was drained")
	}
	// The sleeper is restarted: those who have it open reach its successor.
	if err := errors.Join(sleeper.Close(), sleeper.Close()); err != nil {
		t.Fatal(err)
	}
	ringer.Ring() // nobody listens
	if err := MakeDoorbell(dir, Config{}); err != nil {
		t.Fatal(err)
	}
	next := openDoorbell(t, dir)
	ringer.Ring()
	if !readable(t, next, time.Minute) {
		t.Fatal("the successor was not rung")
	}
	// Full: ringing never waits.
	for range 100_000 {
		ringer.Ring()
	}
	next.Drain()
	if readable(t, next, 0) {
		t.Fatal("readable after a full one was drained")
	}
	// the detector lets more escape
	if n := testing.AllocsPerRun(100, func() { ringer.Ring(); next.Drain() }); n != 0 && !testenv.Race {
		t.Errorf("%v allocations", n)
	}
}

func TestDoorbellIsNoFIFO(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "seg")
	if err := MakeDir(dir, Config{}); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, doorbellName)
	if err := os.WriteFile(at, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDoorbell(dir); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a regular file: %v", err)
	}
	// The owner makes it anew.
	if err := MakeDoorbell(dir, Config{Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(at); err != nil || info.Mode() != os.ModeNamedPipe|0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := os.Chmod(at, 0o622); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDoorbell(dir); !errors.Is(err, ErrPermission) {
		t.Errorf("writable for all: %v", err)
	}
	if err := errors.Join(os.Remove(at), os.Symlink("elsewhere", at)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDoorbell(dir); !errors.Is(err, ErrPermission) {
		t.Errorf("a link: %v", err)
	}
}
