package shm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/testenv"
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
		ways[fmt.Sprintf("freezer v2 %v", v2)] = func(t *testing.T,
			h *child) func() {
			return freeze(t, v2, h.cmd.Process.Pid)
		}
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
	ready, done := make(chan error), make(chan struct{})
	go onThread(func() {
		seized := map[int]bool{}
		for !stoppedProcess(pid) { // a thread may have started another one
			tids, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
			if err != nil {
				ready <- err
				return
			}
			for _, tid := range tids {
				n, _ := strconv.Atoi(tid.Name())
				if seized[n] {
					continue
				}
				seized[n] = true
				if err := unix.PtraceSeize(n); err == unix.ESRCH {
					continue
				} else if err != nil {
					ready <- err
					return
				}
				if err := unix.PtraceInterrupt(n); err != nil && err != unix.ESRCH {
					ready <- err
					return
				}
			}
		}
		ready <- nil
		<-done
	})
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
		c.opts.Peer = func(uint32, uint64) (int, int, bool) {
			fd, err := unix.PidfdOpen(pid, 0)
			return fd, pid, err == nil
		}
		if killed, err := c.Evict(slot, sl.Generation.Load()); killed || err != nil {
			t.Errorf("evicted process %d, which runs: %v, %v", pid, killed, err)
		}
	}
	b.lives()
}

// forge writes into a slot that its tenant is the process that from names, and died.
func forge(sl, from *Slot) {
	sl.PID.Store(from.PID.Load())
	sl.UID.Store(from.UID.Load())
	sl.Place.Store(from.Place.Load())
	sl.Start.Store(from.Start.Load())
	sl.Live.Store(liveWaiters | liveDied)
}

// Somebody writes into a free slot that a bystander's process died there, of this
// user or of another one, or this very process. The slot is recovered, or taken
// over by who joins, and nobody dies.
func TestForgedVictim(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(8))
	c := join(t, s, repairArea)
	victims := map[string]*child{"of the same user": spawn(t, "join", dir, nil), "this process": nil}
	if os.Geteuid() == 0 {
		// He joins as root: which user the file is for is not the point here.
		victims["of another user"] = spawnExe(t, testenv.Program(t, "program"), "idle", dir,
			&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}})
	}
	for name, v := range victims {
		from := &Slot{}
		id := identify()
		from.PID.Store(id.pid)
		from.Place.Store(id.place)
		from.Start.Store(id.start)
		if v != nil {
			v.says("")
			pid := v.cmd.Process.Pid
			from.PID.Store(uint32(pid))
			dir, err := tasks(pid)
			if err != nil {
				t.Fatal(err)
			}
			th, err := readThread(dir, strconv.Itoa(pid))
			if err != nil {
				t.Fatal(err)
			}
			from.Start.Store(th.start)
			_ = unix.Close(dir)
		}
		free := uint32(8)
		forge(s.Slot(free), from)
		if did, err := c.Recover(free); !did || err != nil {
			t.Errorf("a slot with the words of a process %s: recovered %v, %v", name, did, err)
		}
		forge(s.Slot(DispatcherSlot), from)
		d, err := s.Join(context.Background(), JoinOptions{Dispatcher: true, Repair: repairArea})
		if err != nil {
			t.Fatalf("the dispatcher's slot with the words of a process %s: %v", name, err)
		}
		if err := d.Leave(); err != nil {
			t.Error(err)
		}
		if v != nil {
			v.lives()
		}
	}
}

// Somebody writes that clients died which live: in another process, in this one, or
// in this one by another mapping. They are not recovered, and keep what they hold,
// until they really die or leave.
func TestForgedDeath(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(8))
	other, err := Attach(context.Background(), dir, testLayout)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c, mine, apart := join(t, s, repairArea), join(t, s, repairArea), join(t, other, repairArea)
	h := spawn(t, "hold", dir, nil)
	var slot uint32
	h.says("holds", &slot)
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	// As the words of the slots say, another process was the tenant, which is gone, or
	// nobody yet, or it was another tenant, or this one before its PID was used again.
	forged := map[string]func(sl *Slot){
		"":                   func(*Slot) {},
		"the PID of a death": func(sl *Slot) { sl.PID.Store(uint32(gone.Process.Pid)) },
		"no PID":             func(sl *Slot) { sl.PID.Store(0) },
		"another generation": func(sl *Slot) { sl.Generation.Store(sl.Generation.Load() + 3) },
		"the one before":     func(sl *Slot) { sl.Generation.Store(sl.Generation.Load() - 1) },
		"another start":      func(sl *Slot) { sl.Start.Store(sl.Start.Load() - 1) },
		"all": func(sl *Slot) {
			sl.PID.Store(uint32(gone.Process.Pid))
			sl.Generation.Store(sl.Generation.Load() + 64)
		},
	}
	peer := func(uint32, uint64) (int, int, bool) {
		fd, err := unix.PidfdOpen(h.cmd.Process.Pid, 0)
		return fd, h.cmd.Process.Pid, err == nil
	}
	for how, forge := range forged {
		for _, i := range []uint32{slot, mine.Slot(), apart.Slot()} {
			sl := s.Slot(i)
			live, pid, start, gen := sl.Live.Load(), sl.PID.Load(), sl.Start.Load(), sl.Generation.Load()
			forge(sl)
			sl.Live.Store(liveWaiters | liveDied)
			for range 3 {
				if did, err := c.Recover(i); did || err != nil {
					t.Fatalf("slot %d, whose tenant lives, forged %q: recovered %v, %v", i, how, did, err)
				}
			}
			if i == slot { // who has a socket of it needs no more
				c.opts.Peer = peer
				if did, err := c.Recover(i); did || err != nil {
					t.Fatalf("slot %d, whose tenant lives and has dialled, forged %q: recovered %v, %v", i, how, did,
						err)
				}
				c.opts.Peer = nil
			}
			sl.PID.Store(pid)
			sl.Start.Store(start)
			sl.Generation.Store(gen)
			if i != slot || how != "" {
				sl.Live.Store(live)
			}
		}
	}
	s.Slot(slot).Live.Store(liveWaiters | liveDied)
	if owner := areaOf(s).latch.Owner(); owner.Slot() != slot {
		t.Errorf("the latch is slot %d's", owner.Slot())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	cancelled := new(Word32)
	stop := context.AfterFunc(ctx, func() { cancelled.Store(1); cancelled.Wake(All) })
	defer stop()
	for ctx.Err() == nil { // who waits for it is not kept from ending
		if err := c.WaitOwner(slot, Watch{&areaOf(s).bell, 0}, cancelled, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	h.kill()
	if err := areaOf(s).latch.Lock(c, c.HandleID(0)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(mine.Leave(), apart.Leave()); err != nil {
		t.Error(err)
	}
}

// A process has died, and its lock stays: somebody has got its open file. The slot is
// recovered all the same, whatever its words say, as the lock tells for whom it was
// taken. One that was taken for a process of other namespaces tells nothing of its end.
func TestLockOfTheDead(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(4))
	c := join(t, s, repairArea)
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	other, err := Attach(context.Background(), dir, testLayout)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	const slot = 3
	id, sl := identify(), s.Slot(slot)
	for _, k := range []struct {
		place uint64
		want  bool
	}{{id.place, true}, {id.place + 1, false}} {
		gen := sl.Generation.Load() + 1
		if err := other.fileLock(unix.F_WRLCK, slotLock(slot, gen),
			1+lockWho(uint32(gone.Process.Pid), k.place)); err != nil {
			t.Fatal(err)
		}
		sl.Generation.Store(gen)
		sl.PID.Store(id.pid)
		sl.Place.Store(id.place)
		sl.Start.Store(id.start)
		sl.Live.Store(liveWaiters | liveDied)
		if did, err := c.Recover(slot); did != k.want || err != nil {
			t.Errorf("namespaces %#x: recovered %v, %v; want %v", k.place, did, err, k.want)
		}
	}
	if err := other.fileLock(unix.F_UNLCK, slotLock(slot, sl.Generation.Load()), 1<<lockRoomBits); err != nil {
		t.Fatal(err)
	}
	if did, err := c.Recover(slot); !did || err != nil {
		t.Errorf("nobody has the lock: recovered %v, %v", did, err)
	}
}

// A member has the place of a slot's next lock. Who joins takes another one, or, as all
// are taken, none; and gets it when it is free.
func TestPlaceOfTheLock(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(1))
	other, err := Attach(context.Background(), dir, testLayout)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, length := range []int64{1, slotLocks} {
		if err := other.fileLock(unix.F_WRLCK, slotLock(1, 1)%slotLocks+slotLock(1, 0), length); err != nil {
			t.Fatal(err)
		}
		c := join(t, s, repairArea)
		has := func() bool {
			said, err := other.lockSays(1, c.generation)
			if err != nil {
				t.Fatal(err)
			}
			return said == saysLives
		}
		if got := has(); got != (length == 1) {
			t.Errorf("%d bytes are taken: the client has the lock: %v", length, got)
		}
		if err := other.fileLock(unix.F_UNLCK, slotLock(1, 0), slotLocks); err != nil {
			t.Fatal(err)
		}
		until(t, "the client has the lock", has)
		if err := c.Leave(); err != nil {
			t.Fatal(err)
		}
	}
}

// A member holds the file locks of all slots, or takes a dead one's as soon as the
// kernel gives it up. Clients join, die and are recovered as if it were not there,
// and so does the dispatcher.
func TestForeignLocks(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(2))
	c := join(t, s, repairArea)
	f := spawn(t, "lock", dir, nil)
	f.says("ready")
	for i := range uint64(2) {
		h := spawn(t, "hold", dir, nil)
		var slot uint32
		h.says("holds", &slot)
		if i == 0 {
			f.tell(slotLock(slot, s.Slot(slot).Generation.Load()))
			f.says("waits")
		}
		h.kill()
		if i == 0 {
			f.says("locks")
		}
		if err := areaOf(s).latch.Lock(c, c.HandleID(0)); err != nil {
			t.Fatal(err)
		}
		areaOf(s).latch.Unlock(c.HandleID(0))
		if a := areaOf(s); a.a.Load() != i+1 || a.b.Load() != i+1 {
			t.Errorf("counters %d and %d, want %d", a.a.Load(), a.b.Load(), i+1)
		}
		if i == 0 { // all that is left
			if err := c.Leave(); err != nil {
				t.Fatal(err)
			}
			f.tell("all")
			f.says("locks")
			c = join(t, s, repairArea)
		}
	}
	// Nobody with a slot is left: who joins takes a dead one's.
	if err := c.Leave(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		h := spawn(t, "join", dir, nil)
		h.says("joined")
	}
	for i := uint32(1); i <= 2; i++ {
		pid := int(s.Slot(i).PID.Load())
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, "the client is dead", func() bool { return s.Slot(i).Live.Load()&liveDied != 0 })
	}
	c = join(t, s, repairArea)
	if n, err := c.RecoverAll(); n != 1 || err != nil {
		t.Errorf("recovered %d, %v; want 1", n, err)
	}
	// The dispatcher dies, and its liveness word says that it lives.
	h := spawn(t, "dispatcher", dir, nil)
	h.says("joined")
	if _, err := s.Join(context.Background(), JoinOptions{Dispatcher: true}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second dispatcher: %v", err)
	}
	live := s.Slot(DispatcherSlot).Live.Load()
	h.kill()
	s.Slot(DispatcherSlot).Live.Store(live)
	d, err := s.Join(context.Background(), JoinOptions{Dispatcher: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Leave(); err != nil {
		t.Error(err)
	}
}

// A client replaces its program: by itself, which attaches again, or by another one.
// What it held is free, and the process lives.
func TestExec(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(8))
	c := join(t, s, repairArea)
	for i := range 10 {
		h := spawn(t, "exec", dir, nil)
		var slot uint32
		h.says("holds", &slot)
		got := make(chan error)
		go func() { got <- areaOf(s).latch.Lock(c, c.HandleID(1)) }()
		until(t, "we wait", func() bool { return areaOf(s).latch.w.Load()&latchWaiters != 0 })
		what := []string{"itself", "other"}[i%2]
		h.tell(what)
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		areaOf(s).latch.Unlock(c.HandleID(1))
		if what == "itself" {
			h.says("joined")
			h.lives()
			continue
		}
		h.tell()
		h.says("lives")
		h.end()
	}
	if n, err := c.RecoverAll(); n != 0 || err != nil {
		t.Errorf("recovered %d, %v; want 0", n, err)
	}
}

// Somebody overwrites the words of living clients' slots. They put them right, and do
// not keep others from a recovery that is claimed in their name. One that dies before
// it could is found all the same.
func TestForgedWords(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(4))
	c := join(t, s, repairArea)
	b, h := spawn(t, "join", dir, nil), spawn(t, "hold", dir, nil)
	var idle, held uint32
	b.says("joined", &idle)
	h.says("holds", &held)
	sl := s.Slot(idle)
	var live uint32
	for _, v := range []uint32{liveWaiters | liveDied, 0} {
		// Stored by the kernel or the guardian alone: it is the same all the time.
		live = sl.Live.Load()
		pid, gen, start := sl.PID.Load(), sl.Generation.Load(), sl.Start.Load()
		sl.Live.Store(v)
		sl.PID.Store(1)
		sl.Start.Store(2)
		until(t, "the words are right again", func() bool {
			return sl.Live.Load() == live && sl.PID.Load() == pid && sl.Generation.Load() == gen &&
				sl.Start.Load() == start
		})
	}
	h.kill()
	s.Slot(held).Claim.Store(idle)
	if did, err := c.Recover(held); did || err != nil {
		t.Fatalf("recovered in spite of a claim: %v, %v", did, err)
	}
	until(t, "the slot is recovered", func() bool {
		did, err := c.Recover(held)
		if err != nil {
			t.Fatal(err)
		}
		return did
	})
	b.signal(syscall.SIGSTOP) // it can't put it right
	until(t, "the client is stopped", b.stopped)
	sl.Live.Store(liveWaiters | 7)
	b.kill()
	until(t, "the lost client is recovered", func() bool {
		if _, err := c.RecoverAll(); err != nil {
			t.Fatal(err)
		}
		return sl.Live.Load() == 0
	})
}

// What the kernel says of a thread is read whatever its name is, and cut or foreign text
// is an error.
func TestParseThread(t *testing.T) {
	const stat = "7 (a) b (c) d) T 1 -1 7 0 -1 4194564 9 0 0 0 5 6 0 0 20 0 12 0 34567 99 8 7 1 2 3 4 5 256 0 0 0\n"
	got, err := parseThread([]byte(stat))
	if want := (thread{state: 'T', flags: 4194564, threads: 12, start: 34567, pending: 256}); err != nil ||
		got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if !got.doomed() || !got.stopped() {
		t.Error("a stopped thread with a SIGKILL pending")
	}
	for _, bad := range []string{"", "7", "7 (a)", "7 (a) ", stat[:80], "7 (a) T 1 2 3 4 5"} {
		if got, err := parseThread([]byte(bad)); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}

// Who waits looks at a tenant only if nobody has done so within the last second. A stamp
// that somebody has written, be it from the future, puts the look off for no longer.
func TestLooksAreShared(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(4))
	c := join(t, s, repairArea)
	h := spawn(t, "hold", dir, nil)
	var held uint32
	h.says("holds", &held)
	sl := s.Slot(held)
	h.signal(syscall.SIGSTOP) // it can't put its words right
	until(t, "the client is stopped", h.stopped)
	sl.Live.Store(liveWaiters | 7)
	h.kill()
	found := func(stamp uint32) bool {
		sl.Looked.Store(uint32(monotonic()/1e6) + stamp)
		for range s.Slots() {
			c.FindLost()
		}
		return sl.Live.Load()&liveDied != 0
	}
	if found(0) {
		t.Error("c looks again at once")
	}
	if !found(10_000) {
		t.Error("c takes a stamp from the future for a look")
	}
}

// Who was killed is known by one look at him, also when nobody has waited for him yet;
// who has died otherwise by the look at each thread; who lives, or is stopped, is not.
func TestKilled(t *testing.T) {
	dir := mapped(t)
	newSegment(t, dir, testConfig(8))
	for _, end := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		for _, stopped := range []bool{false, true} {
			if stopped && end != syscall.SIGKILL {
				continue // it stays pending
			}
			h := spawn(t, "hold", dir, nil)
			h.says("holds")
			pid := h.cmd.Process.Pid
			if stopped {
				h.signal(syscall.SIGSTOP)
				until(t, "it is stopped", h.stopped)
			}
			threads, err := tasks(pid)
			if err != nil {
				t.Fatal(err)
			}
			if killed(threads, pid) || fateOf(pid, 0) != living {
				t.Errorf("stopped %v: it lives, and killed %v, fate %v", stopped, killed(threads, pid), fateOf(pid, 0))
			}
			h.signal(end)
			until(t, "it has ended", func() bool { return fateOf(pid, 0) == ended })
			if got := killed(threads, pid); got != (end == syscall.SIGKILL) {
				t.Errorf("%v: killed %v", end, got)
			}
			_ = unix.Close(threads)
			h.kill()
		}
	}
}
