package shm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
)

// mapped asks for what every test of a real segment needs.
func mapped(t testing.TB) string {
	t.Helper()
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	return filepath.Join(testenv.ShmDir(t), "cluster", "3", "v1")
}

// A process is killed in the middle of an update. Its waiter is woken by the
// kernel, repairs the update and has the latch.
func TestKilledHolder(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(4))
	c := join(t, s, repairArea)
	area := areaOf(s)
	for i := range uint64(5) {
		h := spawn(t, "hold", dir, nil)
		var slot uint32
		h.says("holds", &slot)
		if tid := s.Slot(slot).Live.Load() &^ liveWaiters; tid == s.Slot(slot).PID.Load() || tid == 0 {
			t.Errorf("the guardian's TID is %d, the PID %d: it must not be the main thread", tid,
				s.Slot(slot).PID.Load())
		}
		if s.SlotName(slot) != "child" {
			t.Errorf("the child's name is %q", s.SlotName(slot))
		}
		got := make(chan error)
		go func() { got <- area.latch.Lock(c, c.HandleID(1)) }()
		until(t, "we wait", func() bool { return area.latch.w.Load()&latchWaiters != 0 })
		start := time.Now()
		h.signal(syscall.SIGKILL)
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		t.Logf("kill -9 to the next one holding the latch: %v", time.Since(start))
		h.kill()
		if a, b := area.a.Load(), area.b.Load(); a != i+1 || b != i+1 {
			t.Fatalf("counters are %d and %d, want %d", a, b, i+1)
		}
		if area.seen.Load() != uint32(i+1) || s.Slot(slot).Live.Load() != 0 || s.Slot(slot).Claim.Load() != 0 {
			t.Fatalf("%d repairs, live %#x, claim %d", area.seen.Load(), s.Slot(slot).Live.Load(),
				s.Slot(slot).Claim.Load())
		}
		area.latch.Unlock(c.HandleID(1))
	}
	if err := c.Leave(); err != nil {
		t.Fatal(err)
	}
}

// A process that exits without leaving is dead as well, and one that leaves is not.
func TestExitAndLeave(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(4))
	c := join(t, s, repairArea)
	var slot uint32
	e := spawn(t, "exit", dir, nil)
	e.says("joined", &slot)
	e.end()
	if !c.Dead(slot) {
		t.Errorf("slot %d after exit: live %#x", slot, s.Slot(slot).Live.Load())
	}
	j := spawn(t, "join", dir, nil)
	var other uint32
	j.says("joined", &other)
	if other == slot || other == c.Slot() {
		t.Errorf("got slot %d; %d is ours, %d dead", other, c.Slot(), slot)
	}
	j.tell()
	j.says("left")
	j.end()
	if v := s.Slot(other).Live.Load(); v != 0 {
		t.Errorf("slot %d after Leave: live %#x", other, v)
	}
	if n, err := c.RecoverAll(); n != 1 || err != nil {
		t.Errorf("recovered %d, %v; want 1", n, err)
	}
}

// A process dies while it repairs a dead one.
func TestKilledRecoverer(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(5))
	c := join(t, s, repairArea)
	h, r := spawn(t, "hold", dir, nil), spawn(t, "recover", dir, nil)
	var held, repairer, repaired uint32
	h.says("holds", &held)
	r.says("joined", &repairer)
	h.kill()
	r.tell()
	r.says("repairs", &repaired)
	if repaired != held || s.Slot(held).Claim.Load() != repairer {
		t.Fatalf("repairs %d, claimed by %d; want %d and %d", repaired, s.Slot(held).Claim.Load(), held, repairer)
	}
	if did, err := c.Recover(held); did || err != nil {
		t.Fatalf("recovered although process %d does: %v", r.cmd.Process.Pid, err)
	}
	r.kill()
	if err := areaOf(s).latch.Lock(c, c.HandleID(0)); err != nil {
		t.Fatal(err)
	}
	if a := areaOf(s); a.a.Load() != 1 || a.b.Load() != 1 || a.seen.Load() != 2 {
		t.Errorf("counters %d and %d after %d repairs, want 1, 1, 2", a.a.Load(), a.b.Load(), a.seen.Load())
	}
	for i := uint32(1); i <= s.Slots(); i++ {
		if sl := s.Slot(i); sl.Claim.Load() != 0 || i != c.Slot() && sl.Live.Load() != 0 {
			t.Errorf("slot %d: live %#x, claim %d", i, sl.Live.Load(), sl.Claim.Load())
		}
	}
}

// A process is stopped while it repairs a dead one: it is evicted.
func TestStoppedRecoverer(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(5))
	defer func(d time.Duration) { stallLimit = d }(stallLimit)
	stallLimit = 30 * time.Millisecond
	c := join(t, s, repairArea)
	h, r := spawn(t, "hold", dir, nil), spawn(t, "recover", dir, nil)
	var held, repairer, repaired uint32
	h.says("holds", &held)
	r.says("joined", &repairer)
	h.kill()
	r.tell()
	r.says("repairs", &repaired)
	r.signal(syscall.SIGSTOP)
	until(t, "the child is stopped", r.stopped)
	if err := areaOf(s).latch.Lock(c, c.HandleID(0)); err != nil {
		t.Fatal(err)
	}
	_ = r.cmd.Wait()
	if ws := r.cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("the stopped recoverer ended with %v, want SIGKILL", r.cmd.ProcessState)
	}
	if a := areaOf(s); a.a.Load() != 1 || a.b.Load() != 1 {
		t.Errorf("counters %d and %d, want 1 and 1", a.a.Load(), a.b.Load())
	}
}

// Everybody else is dead and no slot is free: who joins takes one over.
func TestJoinOverDeadSlots(t *testing.T) {
	dir := mapped(t)
	const slots = 3
	s := newSegment(t, dir, testConfig(slots))
	var cs [slots]*child
	for i := range cs {
		cs[i] = spawn(t, []string{"hold", "join", "join"}[i], dir, nil)
		var slot uint32
		cs[i].says([]string{"holds", "joined", "joined"}[i], &slot)
	}
	_, err := s.Join(context.Background(), JoinOptions{})
	var none *NoSlotsError
	if !errors.Is(err, ErrNoSlots) || !errors.As(err, &none) || none.Live != slots || none.Dead != 0 {
		t.Fatalf("join with all slots taken: %v", err)
	}
	for _, c := range cs {
		c.kill()
	}
	c := join(t, s, repairArea)
	if n, err := c.RecoverAll(); n != slots-1 || err != nil {
		t.Errorf("recovered %d, %v; want %d", n, err, slots-1)
	}
	if a := areaOf(s); a.a.Load() != 1 || a.b.Load() != 1 || a.latch.Owner() != 0 {
		t.Errorf("counters %d and %d, latch of %#x", a.a.Load(), a.b.Load(), a.latch.Owner())
	}
	if err := c.Leave(); err != nil {
		t.Fatal(err)
	}
}

// Everybody is dead, one of them while it repaired another: who joins takes
// over the repairer's slot, and the claim that came with it is void.
func TestJoinOverDeadRecoverer(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(2))
	h, r := spawn(t, "hold", dir, nil), spawn(t, "recover", dir, nil)
	var held, repairer uint32
	h.says("holds", &held)
	r.says("joined", &repairer)
	h.kill()
	r.tell()
	r.says("repairs")
	r.kill()
	c := join(t, s, repairArea)
	if c.Slot() != repairer || s.Slot(held).Claim.Load() != 0 {
		t.Errorf("took slot %d, slot %d is claimed by %d; want %d, 0", c.Slot(), held, s.Slot(held).Claim.Load(),
			repairer)
	}
	if n, err := c.RecoverAll(); n != 1 || err != nil {
		t.Errorf("recovered %d, %v; want 1", n, err)
	}
	if a := areaOf(s); a.a.Load() != 1 || a.b.Load() != 1 || a.latch.Owner() != 0 {
		t.Errorf("counters %d and %d, latch of %#x", a.a.Load(), a.b.Load(), a.latch.Owner())
	}
}

// A joiner claims a dead slot, without having one, and dies. The kernel says so.
func TestDeadJoiner(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(2))
	c := join(t, s, repairArea)
	h := spawn(t, "hold", dir, nil)
	var slot, claimed uint32
	h.says("holds", &slot)
	h.kill()
	j := spawn(t, "joiner", dir, nil)
	j.says("claims", &claimed)
	if claim := s.Slot(slot).Claim.Load(); claimed != slot || !joining(claim) {
		t.Fatalf("the joiner claims slot %d: claim of %d is %#x", claimed, slot, claim)
	}
	if did, err := c.Recover(slot); did || err != nil {
		t.Errorf("recovered although a joiner has it: %v, %v", did, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Join(ctx, JoinOptions{}); !errors.Is(err, ErrNoSlots) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("join while another joiner has the only slot: %v", err)
	}
	j.kill()
	if claim := s.Slot(slot).Claim.Load(); claim != liveWaiters|liveDied {
		t.Errorf("the claim of the dead joiner is %#x", claim)
	}
	if did, err := c.Recover(slot); !did || err != nil {
		t.Errorf("recover after the joiner's death: %v, %v", did, err)
	}
	if a := areaOf(s); a.a.Load() != 1 || a.b.Load() != 1 || s.Slot(slot).Claim.Load() != 0 {
		t.Errorf("counters %d and %d, claim %#x", a.a.Load(), a.b.Load(), s.Slot(slot).Claim.Load())
	}
}

// A joiner is stopped, or was never there: it loses its claim. When it goes on it
// takes no slot that has had another tenant since.
func TestStoppedJoiner(t *testing.T) {
	dir := mapped(t)
	defer func(d time.Duration) { stallLimit = d }(stallLimit)
	stallLimit = 10 * time.Millisecond
	s := newSegment(t, dir, testConfig(2))
	c := join(t, s, repairArea)
	h := spawn(t, "hold", dir, nil)
	var slot, again uint32
	h.says("holds", &slot)
	h.kill()
	j := spawn(t, "joiner", dir, nil)
	j.says("claims")
	until(t, "the claim is taken from the joiner", func() bool {
		did, err := c.Recover(slot)
		if err != nil {
			t.Fatal(err)
		}
		return did
	})
	h = spawn(t, "hold", dir, nil)
	h.says("holds", &again)
	h.kill()
	if again != slot {
		t.Fatalf("the next client has slot %d, not %d", again, slot)
	}
	j.tell()
	j.says("took false")
	if n, err := c.RecoverAll(); n != 1 || err != nil {
		t.Errorf("recovered %d, %v; want 1", n, err)
	}
	if a := areaOf(s); a.a.Load() != 2 || a.b.Load() != 2 || a.latch.Owner() != 0 {
		t.Errorf("counters %d and %d, latch of %#x", a.a.Load(), a.b.Load(), a.latch.Owner())
	}
	j.end()
}

// Processes update under one latch and are killed at random moments.
func TestLatchTorture(t *testing.T) {
	dir := mapped(t)
	const procs = 3
	kills := 40
	if testing.Short() {
		kills = 10
	}
	if v := os.Getenv("MAINZ_KILLS"); v != "" {
		if _, err := fmt.Sscan(v, &kills); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("MAINZ_SEED"); v != "" {
		if _, err := fmt.Sscan(v, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MAINZ_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	s := newSegment(t, dir, testConfig(procs+1))
	c := join(t, s, repairArea)
	area := areaOf(s)
	var cs [procs]*child
	for i := range cs {
		cs[i] = spawn(t, "count", dir, nil)
	}
	acked := uint64(0)
	for range kills {
		i := rnd.IntN(procs)
		// Killed after it has done something, and then at whatever instruction.
		cs[i].says("updates")
		acked += warmUp
		for range rnd.IntN(20_000) {
			Pause(1)
		}
		cs[i].kill()
		cs[i] = spawn(t, "count", dir, nil)
	}
	for _, ch := range cs {
		_ = ch.in.Close()
		for ch.out.Scan() {
			line := ch.out.Text()
			if strings.HasPrefix(line, "updates") {
				continue
			}
			var lost, n uint64
			if _, err := fmt.Sscanf(line, "lost %d updates %d", &lost, &n); err != nil || lost != 0 {
				t.Errorf("child says %q", line)
			}
			acked += n
		}
		if err := ch.cmd.Wait(); err != nil {
			t.Errorf("child: %v", err)
		}
	}
	if _, err := c.RecoverAll(); err != nil {
		t.Fatal(err)
	}
	if a, b := area.a.Load(), area.b.Load(); a != b || a < acked {
		t.Errorf("counters are %d and %d, at least %d updates were acknowledged", a, b, acked)
	}
	if o := area.latch.Owner(); o != 0 {
		t.Errorf("latch still held by %#x", o)
	}
	t.Logf("%d updates, %d kills", area.a.Load(), kills)
}

// The slot's tenant lives in another PID namespace: its PID means nothing here.
func TestOtherPIDNamespace(t *testing.T) {
	dir := mapped(t)
	testenv.Need(t, testenv.Mount) // the same right
	s := newSegment(t, dir, testConfig(4))
	c := join(t, s, repairArea)
	h := spawn(t, "hold", dir, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID})
	var slot uint32
	h.says("holds", &slot)
	sl := s.Slot(slot)
	if sl.Place.Load() == identify().place || sl.PID.Load() == uint32(h.cmd.Process.Pid) {
		t.Fatalf("the child's PID is %d in namespace %#x, as here", sl.PID.Load(), sl.Place.Load())
	}
	if held, err := s.lockHeld(slotLock(slot, sl.Generation.Load()), 1); !held || err != nil {
		t.Errorf("the child's slot lock: held %v, %v", held, err)
	}
	// Its guardian alone seems dead: nobody may take over what it still uses.
	live := sl.Live.Load()
	sl.Live.Store(liveWaiters | liveDied)
	if did, err := c.Recover(slot); did || err != nil {
		t.Errorf("recovered a process that runs: %v", err)
	}
	sl.Live.Store(live)
	h.signal(syscall.SIGKILL)
	if err := areaOf(s).latch.Lock(c, c.HandleID(0)); err != nil {
		t.Fatal(err)
	}
	h.kill()
	if a := areaOf(s); a.a.Load() != 1 || a.b.Load() != 1 {
		t.Errorf("counters %d and %d, want 1 and 1", a.a.Load(), a.b.Load())
	}
}

// Wake-ups and cancellation go across processes.
func TestWakeAcrossProcesses(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(4))
	c := join(t, s, nil)
	w := spawn(t, "wake", dir, nil)
	var slot uint32
	w.says("joined", &slot)
	bell := &areaOf(s).bell
	for i := range uint32(50) {
		w.tell()
		if err := c.WaitOwner(slot, Watch{bell, i}, nil, time.Minute); err != nil {
			t.Fatal(err)
		}
		until(t, "the bell", func() bool { return bell.Load() == i+1 })
		w.says("rang")
	}
	if n := c.Slices().Lost; n != 0 {
		t.Errorf("%d wake-ups lost", n)
	}
	w.end()
}

// Joining and leaving over and over leaks no thread, no lock and no slot, and
// the guardian is never the main thread.
func TestJoinLeave(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(2))
	for range 100 {
		c := join(t, s, nil)
		if tid := c.me.Live.Load() &^ liveWaiters; tid == uint32(os.Getpid()) {
			t.Fatal("the guardian is on the main thread")
		}
		slot := c.Slot()
		if held, err := s.lockHeld(slotLock(slot, 0), slotLocks); held || err != nil || !s.hasTenant(slot) {
			t.Fatalf("our own lock is in our way: %v", err)
		}
		if err := c.Leave(); err != nil {
			t.Fatal(err)
		}
		if s.hasTenant(slot) {
			t.Fatal("a client that has left counts as a tenant")
		}
	}
	guardians.Range(func(k, _ any) bool { t.Error("a guardian is left"); return true })
	n, err := os.ReadDir("/proc/self/task")
	if err != nil || len(n) > 60 {
		t.Errorf("%d threads, %v", len(n), err)
	}
	runtime.GC()
}

func TestReplaced(t *testing.T) {
	dir := mapped(t)
	ctx := context.Background()
	old := newSegment(t, dir, testConfig(3))
	c := join(t, old, nil)
	got := make(chan error)
	go func() {
		for {
			if err := c.WaitOwner(c.Slot(), Watch{&areaOf(old).bell, 0}, nil, time.Hour); err != nil {
				got <- err
				return
			}
		}
	}()
	s := newSegment(t, dir, testConfig(3))
	if err := <-got; !errors.Is(err, ErrClosed) {
		t.Errorf("waiter in a replaced segment: %v", err)
	}
	if _, err := old.Join(ctx, JoinOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("join of a replaced segment: %v", err)
	}
	d := join(t, s, nil)
	areaOf(s).a.Store(77)
	// The old one is given up in any order, and its memory stays readable.
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	areaOf(old).a.Store(5)
	if err := c.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if g := old.Gate().Gate.Load(); g != 0 || areaOf(old).a.Load() != 0 {
		t.Errorf("after Close: gate %#x, data %d", g, areaOf(old).a.Load())
	}
	if _, err := old.Join(ctx, JoinOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("join after Close: %v", err)
	}

	ro, err := AttachReadOnly(ctx, dir, testLayout)
	if err != nil {
		t.Fatal(err)
	}
	if areaOf(ro).a.Load() != 77 || !ro.ReadOnly() {
		t.Errorf("read-only: %d", areaOf(ro).a.Load())
	}
	if _, err := ro.Join(ctx, JoinOptions{}); !errors.Is(err, ErrPermission) {
		t.Errorf("join of a read-only segment: %v", err)
	}
	if err := ro.Close(); err != nil {
		t.Error(err)
	}

	// An owner that closed for good, and nobody replaces it.
	if err := d.Leave(); err != nil {
		t.Fatal(err)
	}
	s.Gate().Gate.Store(GateDead)
	if _, err := Attach(ctx, dir, testLayout); !errors.Is(err, ErrNotRunning) ||
		errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("attach to a closed segment: %v", err)
	}
	// An owner that is about to replace it, but does not: never without a limit.
	own := spawn(t, "own", dir, nil)
	own.says("owns")
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := Attach(short, dir, testLayout); !errors.Is(err, ErrNotRunning) ||
		!errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("attach while an owner replaces it: %v", err)
	}
}
