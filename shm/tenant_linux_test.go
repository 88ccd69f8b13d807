package shm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// killed reports how the child has ended: whether by SIGKILL.
func (c *child) killed() bool {
	_ = c.cmd.Wait()
	ws := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

// lives makes sure that the child still does what it is told, and leaves in order.
func (c *child) lives() {
	c.t.Helper()
	c.tell()
	c.says("left")
	c.end()
}

// freezers are the kinds of control groups in which processes can be frozen here:
// false the first, true the second.
func freezers(t *testing.T) (kinds []bool) {
	t.Helper()
	for _, v2 := range []bool{false, true} {
		dir := freezerDir(v2)
		if os.Geteuid() == 0 && dir != "" && os.Mkdir(dir, 0o755) == nil {
			_ = unix.Rmdir(dir)
			kinds = append(kinds, v2)
		} else {
			t.Logf("no processes can be frozen here by control groups of the second kind: %v", v2)
		}
	}
	return kinds
}

func freezerDir(v2 bool) string {
	root := cgroupDir(v2, "/")
	if root == "" {
		return ""
	}
	return filepath.Join(root, "mainz-test-"+strconv.Itoa(os.Getpid()))
}

// freeze puts the process into a control group of its own, which it freezes.
func freeze(t *testing.T, v2 bool, pid int) (thaw func()) {
	t.Helper()
	dir := freezerDir(v2)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file, on, off := "freezer.state", "FROZEN", "THAWED"
	if v2 {
		file, on, off = "cgroup.freeze", "1", "0"
	}
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(dir, file), []byte(off), 0o644)
		_ = unix.Kill(pid, unix.SIGKILL)
		until(t, "the control group is empty", func() bool { return unix.Rmdir(dir) != unix.EBUSY })
	})
	write := func(file, what string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(what), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("cgroup.procs", strconv.Itoa(pid))
	write(file, on)
	return func() { write(file, off) }
}

// A client is stopped while it holds a latch, by each thing that can stop it. It
// counts as stopped, is evicted, and the latch is free at once. One that only
// waits is not evicted.
func TestEvict(t *testing.T) {
	dir := mapped(t)
	ways := map[string]func(t *testing.T, h *child) (thaw func()){
		"SIGSTOP": func(_ *testing.T, h *child) func() { h.signal(syscall.SIGSTOP); return func() {} },
		"tracer":  func(t *testing.T, h *child) func() { return stopByTracer(t, h.cmd.Process.Pid) },
	}
	for _, v2 := range freezers(t) {
		ways[fmt.Sprintf("freezer v2 %v", v2)] = func(t *testing.T, h *child) func() { return freeze(t, v2, h.cmd.Process.Pid) }
	}
	for how, stop := range ways {
		t.Run(how, func(t *testing.T) {
			s := newSegment(t, filepath.Join(filepath.Dir(dir), fmt.Sprintf("%.9s%d", how, len(how))), testConfig(4))
			c := join(t, s, repairArea)
			h := spawn(t, "hold", s.Dir(), nil)
			var slot uint32
			h.says("holds", &slot)
			gen := s.Slot(slot).Generation.Load()
			if killed, err := c.Evict(slot, gen); c.Stopped(slot) || killed || err != nil {
				t.Fatalf("a client that waits counts as stopped %v, is evicted %v, %v", c.Stopped(slot), killed, err)
			}
			thaw := stop(t, h)
			until(t, "the client counts as stopped", func() bool { return c.Stopped(slot) })
			if killed, err := c.Evict(slot, gen+1); killed || err != nil {
				t.Fatalf("evicted the next tenant: %v, %v", killed, err)
			}
			if killed, err := c.Evict(slot, gen); !killed || err != nil {
				t.Fatalf("evicted %v, %v", killed, err)
			}
			// A frozen one gets to its end only when it is thawed. Nobody waits for that.
			until(t, "the slot is recovered", func() bool {
				did, err := c.Recover(slot)
				if err != nil {
					t.Fatal(err)
				}
				return did
			})
			if a := areaOf(s); a.latch.Owner() != 0 || a.a.Load() != a.b.Load() {
				t.Errorf("latch of %#x, counters %d and %d", a.latch.Owner(), a.a.Load(), a.b.Load())
			}
			next := join(t, s, repairArea)
			thaw()
			if !h.killed() {
				t.Errorf("the client ended with %v, want SIGKILL", h.cmd.ProcessState)
			}
			if next.Slot() != slot || c.Dead(slot) {
				t.Errorf("the next client has slot %d, and counts as dead: %v", next.Slot(), c.Dead(slot))
			}
		})
	}
}

// stopByTracer stops all threads of a process as a debugger does, which ends with
// detach.
func stopByTracer(t *testing.T, pid int) (detach func()) {
	t.Helper()
	tids, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan error), make(chan struct{})
	go func() {
		// All of it from one thread, which ends with this goroutine.
		lockThread()
		for _, tid := range tids {
			n, _ := strconv.Atoi(tid.Name())
			err := unix.PtraceSeize(n)
			if err == nil {
				err = unix.PtraceInterrupt(n)
			}
			if err != nil {
				ready <- err
				return
			}
		}
		ready <- nil
		<-done
	}()
	detach = sync.OnceFunc(func() { close(done) })
	t.Cleanup(detach)
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	return detach
}

// The words of a slot name a stopped bystander: he is not evicted.
func TestEvictForged(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(4))
	c := join(t, s, repairArea)
	h, b := spawn(t, "hold", dir, nil), spawn(t, "join", dir, nil)
	var slot, other uint32
	h.says("holds", &slot)
	b.says("joined", &other)
	b.signal(syscall.SIGSTOP)
	until(t, "the bystander is stopped", b.stopped)
	sl, from := s.Slot(slot), s.Slot(other)
	sl.PID.Store(from.PID.Load())
	sl.Start.Store(from.Start.Load())
	if killed, err := c.Evict(slot, sl.Generation.Load()); killed || !errors.Is(err, ErrPermission) {
		t.Errorf("evicted whom the words name: %v, %v", killed, err)
	}
	// Nor is he, or this process itself, if he is the one who has dialled but runs.
	b.signal(syscall.SIGCONT)
	until(t, "the bystander runs", func() bool { return !b.stopped() })
	for _, pid := range []int{b.cmd.Process.Pid, os.Getpid()} {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		c.opts.Peer = func(uint32, uint64) (int, int, bool) { return fd, pid, true }
		if killed, err := c.Evict(slot, sl.Generation.Load()); killed || err != nil {
			t.Errorf("evicted process %d, which runs: %v, %v", pid, killed, err)
		}
	}
	b.lives()
}
