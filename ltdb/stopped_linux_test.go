//go:build !shmsim

package ltdb

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// stopInside starts a process that stops itself with a class latch and with one of
// its handles in the middle of a change, and waits until it has.
func stopInside(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	return stopInsideAs(t, dir, os.Args[0], nil)
}

// stopInsideAs is stopInside for a process of another user. program is this binary.
func stopInsideAs(t *testing.T, dir, program string, attr *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program, "-test.run=^TestStoppedProcess$", "-test.timeout=0")
	cmd.SysProcAttr = attr
	cmd.Env = append(os.Environ(), "STOPPED_DIR="+dir)
	cmd.Stderr = os.Stderr
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
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	soon(t, "the process stops", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := bytes.Cut(stat, []byte(") "))
		return len(rest) > 0 && rest[0] == 'T'
	})
	return cmd
}

// soon waits for a condition that others bring about.
func soon(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("waited a minute in vain: %s", what)
		}
	}
}

func TestStoppedProcess(t *testing.T) {
	dir := os.Getenv("STOPPED_DIR")
	if dir == "" {
		return // started by stopInside only
	}
	s, err := Open(bg, dir, Options{Name: "stopped"})
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("STOPPED_WITH") == "table" {
		hold(t, s, tableLatch, 1, &s.dbHead.latch)
	} else {
		holdClass(t, s, 0)
		s.actors[0].h.busy.Store(1)
	}
	fmt.Print("!")
	_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	select {}
}

// TestStoppedIsEvicted: a client is stopped in the middle of a call. It is seen after
// the limit, ended, and what it held is free; one that runs is not.
func TestStoppedIsEvicted(t *testing.T) {
	dir := ramdisk(t)
	d, err := OpenKeeper(bg, dir, Options{Create: true, Config: small()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(bg, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	release := holdClass(t, s, 1) // it is in the way as well, but runs
	cmd := stopInside(t, dir)
	always := func() bool { return true }
	var seen Stuck
	soon(t, "it is seen", func() bool {
		d.Stuck(50*time.Millisecond, always, func(c Stuck) {
			if c.Slot == s.slot {
				if ended, _ := d.Evict(c.Slot, c.Generation); ended || d.Stopped(c.Slot) {
					t.Fatal("a client that runs counts as stopped")
				}
			} else if d.Stopped(c.Slot) { // all its threads, by now
				seen = c
			}
		})
		return seen.Slot != 0
	})
	if !seen.Latch || seen.For < 50*time.Millisecond {
		t.Errorf("%+v", seen)
	}
	ended, err := d.Evict(seen.Slot, seen.Generation)
	if !ended || err != nil {
		t.Fatalf("evict: %v, %v", ended, err)
	}
	_ = cmd.Wait()
	gone := 0
	soon(t, "it is recovered", func() bool {
		wantErr(t, "recover", recoverAll(d, func(uint32) { gone++ }), nil)
		return gone == 1
	})
	if o := s.classes[0].latch.Owner(); o != 0 {
		t.Errorf("the latch is still %d's", o)
	}
	release()
	mustCheck(t, s)
	wantErr(t, "close", errorsOf(d.Err(), s.Close(), d.Close()), nil)
}
