package shm

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestWaiterRecoversDeadOwner(t *testing.T) {
	s := heapSegment(t, 4)
	area := areaOf(s)
	a, b := join(t, s, repairArea), join(t, s, repairArea)
	if err := area.latch.Lock(a, a.HandleID(3)); err != nil {
		t.Fatal(err)
	}
	area.a.Store(1) // half of an update
	got := make(chan error)
	go func() { got <- area.latch.Lock(b, b.HandleID(0)) }()
	until(t, "b waits", func() bool { return area.latch.w.Load()&latchWaiters != 0 })
	a.SimulateDeath()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if area.seen.Load() != 1 || area.latch.Owner() != b.HandleID(0) || area.b.Load() != 1 {
		t.Errorf("repaired %d times, latch of %#x, b is %d", area.seen.Load(), area.latch.Owner(), area.b.Load())
	}
	dead := s.Slot(a.Slot())
	if dead.Live.Load() != 0 || dead.Claim.Load() != 0 || dead.PID.Load() != 0 {
		t.Errorf("slot after recovery: live %#x, claim %d, pid %d", dead.Live.Load(), dead.Claim.Load(),
			dead.PID.Load())
	}
	area.latch.Unlock(b.HandleID(0))
	if err := b.Leave(); err != nil {
		t.Fatal(err)
	}
	if err := b.Leave(); err != nil {
		t.Errorf("second Leave: %v", err)
	}
	if _, err := b.Recover(1); !errors.Is(err, ErrClosed) {
		t.Errorf("recover after Leave: %v", err)
	}
	if err := b.WaitOwner(0, Watch{&area.bell, 0}, nil, time.Hour); !errors.Is(err, ErrClosed) {
		t.Errorf("wait after Leave: %v", err)
	}
}

// Goroutines of many clients update under one latch while clients die.
func TestLatchContended(t *testing.T) {
	const goroutines, rounds = 6, 400
	s := heapSegment(t, goroutines+2)
	area := areaOf(s)
	var wg sync.WaitGroup
	for range goroutines {
		c := join(t, s, repairArea)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range rounds {
				id := c.HandleID(i % HandlesPerSlot)
				if err := area.latch.Lock(c, id); err != nil {
					t.Error(err)
					return
				}
				area.update()
				area.latch.Unlock(id)
			}
			if n := c.Slices().Lost; n != 0 {
				t.Errorf("%d wake-ups lost", n)
			}
		}()
	}
	const deaths = 20
	for range deaths {
		c := join(t, s, repairArea)
		if err := area.latch.Lock(c, c.HandleID(1)); err != nil {
			t.Fatal(err)
		}
		area.a.Store(area.a.Load() + 1)
		c.SimulateDeath()
	}
	wg.Wait()
	c := join(t, s, repairArea)
	if _, err := c.RecoverAll(); err != nil {
		t.Fatal(err)
	}
	want := uint64(goroutines*rounds + deaths)
	if a, b := area.a.Load(), area.b.Load(); a != want || b != want {
		t.Errorf("counters are %d and %d, want %d", a, b, want)
	}
	if o := area.latch.Owner(); o != 0 {
		t.Errorf("latch still held by %#x", o)
	}
}

// Two goroutines of one client must not repair a slot at the same time, though
// the claim word can't tell them apart.
func TestRecoverOnceInProcess(t *testing.T) {
	s := heapSegment(t, 4)
	var inside, most, repairs atomic.Int32
	started, goOn := make(chan struct{}), make(chan struct{})
	c := join(t, s, func(c *Client, slot uint32) error {
		if slot == c.Slot() {
			return nil
		}
		most.Store(max(most.Load(), inside.Add(1)))
		repairs.Add(1)
		close(started)
		<-goOn
		inside.Add(-1)
		return nil
	})
	d := join(t, s, nil)
	d.SimulateDeath()
	first := make(chan bool)
	go func() {
		did, err := c.Recover(d.Slot())
		first <- did && err == nil
	}()
	<-started
	if did, err := c.Recover(d.Slot()); did || err != nil {
		t.Errorf("second recovery: %v, %v", did, err)
	}
	left := make(chan error)
	go func() { left <- c.Leave() }() // has to wait for the recovery
	select {
	case <-left:
		t.Error("left while a recovery was under way")
	default:
	}
	close(goOn)
	if !<-first || most.Load() != 1 || repairs.Load() != 1 {
		t.Errorf("%d repairs, %d at a time", repairs.Load(), most.Load())
	}
	if err := <-left; err != nil {
		t.Error(err)
	}
}

// A recoverer dies in the middle; who comes next recovers it first.
func TestDeadRecoverer(t *testing.T) {
	s := heapSegment(t, 4)
	var order []uint32
	a := join(t, s, nil)
	var b, c *Client
	hang := make(chan struct{})
	b = join(t, s, func(_ *Client, slot uint32) error {
		b.SimulateDeath()
		close(hang)
		select {} // died here
	})
	c = join(t, s, func(_ *Client, slot uint32) error {
		order = append(order, slot)
		return nil
	})
	a.SimulateDeath()
	go b.Recover(a.Slot())
	<-hang
	if got := s.Slot(a.Slot()).Claim.Load(); got != b.Slot() {
		t.Fatalf("claim is %d, want %d", got, b.Slot())
	}
	did, err := c.Recover(a.Slot())
	if !did || err != nil {
		t.Fatalf("recover: %v, %v", did, err)
	}
	if len(order) != 2 || order[0] != b.Slot() || order[1] != a.Slot() {
		t.Errorf("recovered %v, want the recoverer %d before %d", order, b.Slot(), a.Slot())
	}
	for i := uint32(1); i <= s.Slots(); i++ {
		if sl := s.Slot(i); sl.Claim.Load() != 0 || i != c.Slot() && sl.Live.Load() != 0 {
			t.Errorf("slot %d: live %#x, claim %d", i, sl.Live.Load(), sl.Claim.Load())
		}
	}
}

// Repairing one slot needs the latch of another dead one.
func TestNestedRecovery(t *testing.T) {
	s := heapSegment(t, 4)
	area := areaOf(s)
	a, b := join(t, s, nil), join(t, s, nil)
	c := join(t, s, func(c *Client, slot uint32) error {
		switch slot {
		case a.Slot():
			if err := area.latch.Lock(c, c.HandleID(0)); err != nil {
				return err
			}
			area.latch.Unlock(c.HandleID(0))
		case b.Slot():
			area.latch.Break(b.HandleID(0))
		}
		return nil
	})
	if !area.latch.TryLock(b.HandleID(0)) {
		t.Fatal("latch is taken")
	}
	a.SimulateDeath()
	b.SimulateDeath()
	if did, err := c.Recover(a.Slot()); !did || err != nil {
		t.Fatalf("recover: %v, %v", did, err)
	}
	if n, err := c.RecoverAll(); n != 0 || err != nil {
		t.Errorf("%d slots left to recover, %v", n, err)
	}
}

func TestSlotsInHeap(t *testing.T) {
	s := heapSegment(t, 3)
	repaired := 0
	repair := func(*Client, uint32) error { repaired++; return nil }
	cs := []*Client{join(t, s, repair), join(t, s, repair), join(t, s, repair)}
	_, err := s.Join(context.Background(), JoinOptions{})
	var none *NoSlotsError
	if !errors.Is(err, ErrNoSlots) || !errors.As(err, &none) || none.Live != 3 || none.Dead != 0 {
		t.Errorf("join with all slots taken: %v", err)
	}
	gen := s.Slot(cs[1].Slot()).Generation.Load()
	cs[1].SimulateDeath()
	c := join(t, s, repair)
	if c.Slot() != cs[1].Slot() || repaired != 1 {
		t.Errorf("got slot %d after %d repairs, want the dead one's, %d, after 1", c.Slot(), repaired, cs[1].Slot())
	}
	if got := s.Slot(c.Slot()).Generation.Load(); got != gen+1 {
		t.Errorf("generation %d, want %d", got, gen+1)
	}
	if got := s.SlotName(c.Slot()); got != t.Name() {
		t.Errorf("name in the slot is %q", got)
	}
}

func TestRepairFails(t *testing.T) {
	s := heapSegment(t, 3)
	bad := errors.New("a torn table")
	a := join(t, s, nil)
	c := join(t, s, func(*Client, uint32) error { return bad })
	a.SimulateDeath()
	if did, err := c.Recover(a.Slot()); did || !errors.Is(err, bad) {
		t.Errorf("recover: %v, %v", did, err)
	}
	if sl := s.Slot(a.Slot()); sl.Claim.Load() != 0 || sl.Live.Load()&liveDied == 0 {
		t.Errorf("after a failed repair: live %#x, claim %d", sl.Live.Load(), sl.Claim.Load())
	}
	if err := c.WaitOwner(a.Slot(), Watch{&areaOf(s).bell, 0}, nil, time.Hour); !errors.Is(err, bad) {
		t.Errorf("wait for the dead owner: %v", err)
	}
	// What can't be repaired is not handed out.
	if err := c.Leave(); !errors.Is(err, bad) {
		t.Errorf("leave: %v", err)
	}
	if !join(t, s, nil).Dead(c.Slot()) {
		t.Error("a slot whose repair failed is free")
	}
	if _, err := s.Join(context.Background(),
		JoinOptions{Repair: func(*Client, uint32) error { return bad }}); !errors.Is(err, bad) {
		t.Errorf("join over a slot that can't be repaired: %v", err)
	}
}

func TestGarbageInSlots(t *testing.T) {
	s := heapSegment(t, 3)
	c, d := join(t, s, nil), join(t, s, nil)
	for _, claim := range []uint32{d.Slot(), 3, 99, DispatcherSlot, 1 << 31} {
		dead := join(t, s, nil)
		sl := s.Slot(dead.Slot())
		dead.SimulateDeath()
		sl.Claim.Store(claim)
		did, err := c.Recover(dead.Slot())
		if claim == d.Slot() {
			if did || err != nil {
				t.Errorf("recovered although %d lives and claims it: %v", claim, err)
			}
			sl.Claim.Store(0)
			did, err = c.Recover(dead.Slot())
		}
		if !did || err != nil || sl.Claim.Load() != 0 {
			t.Errorf("claim %d: recovered %v, %v, claim now %d", claim, did, err, sl.Claim.Load())
		}
	}
	bell := &areaOf(s).bell
	for _, owner := range []uint32{4, 4094, 4096, 1 << 31} {
		if err := c.WaitOwner(owner, Watch{bell, 0}, nil, time.Hour); !errors.Is(err, ErrCorrupt) {
			t.Errorf("wait for owner %d: %v", owner, err)
		}
		if _, err := c.Recover(owner); !errors.Is(err, ErrCorrupt) {
			t.Errorf("recover %d: %v", owner, err)
		}
		if c.Dead(owner) || s.SlotBody(owner) != 0 || s.SlotName(owner) != "" {
			t.Errorf("slot %d exists", owner)
		}
	}
	// Dead claimers in a circle: no program makes one, so it is an error.
	e := join(t, s, nil)
	d.SimulateDeath()
	e.SimulateDeath()
	s.Slot(d.Slot()).Claim.Store(e.Slot())
	s.Slot(e.Slot()).Claim.Store(d.Slot())
	did, err := c.Recover(d.Slot())
	t.Logf("claims in a circle: %v, %v", did, err)
	if did {
		t.Error("recovered out of a circle of claims")
	}
}

func TestWaitOwner(t *testing.T) {
	s := heapSegment(t, 3)
	c := join(t, s, nil)
	bell := &areaOf(s).bell
	cancel := new(Word32)

	if err := c.WaitOwner(0, Watch{bell, 1}, nil, time.Hour); err != nil {
		t.Errorf("word that differs: %v", err)
	}
	cancel.Store(1)
	if err := c.WaitOwner(0, Watch{bell, 0}, cancel, time.Hour); err != nil {
		t.Errorf("cancelled before: %v", err)
	}
	cancel.Store(0)
	for _, owner := range []uint32{0, c.Slot(), DispatcherSlot} {
		done := make(chan error)
		go func() { done <- c.WaitOwner(owner, Watch{bell, 0}, cancel, time.Hour) }()
		cancel.Store(1)
		cancel.Wake(All)
		if err := <-done; err != nil {
			t.Errorf("cancelled: %v", err)
		}
		cancel.Store(0)
		go func() { done <- c.WaitOwner(owner, Watch{bell, 0}, nil, time.Hour) }()
		bell.Store(1)
		bell.Wake(1)
		if err := <-done; err != nil {
			t.Errorf("woken: %v", err)
		}
		bell.Store(0)
	}
	before := c.Slices()
	if err := c.WaitOwner(0, Watch{bell, 0}, nil, 3*waitSlice); err != nil {
		t.Error(err)
	}
	if got := c.Slices(); got.Ended != before.Ended+3 || got.Changed != before.Changed {
		t.Errorf("three slices: counted %+v, before %+v", got, before)
	}
	s.Gate().Gate.Store(0)
	if err := c.WaitOwner(0, Watch{bell, 0}, nil, time.Hour); !errors.Is(err, ErrClosed) {
		t.Errorf("gate dead: %v", err)
	}
	if _, err := s.Join(context.Background(), JoinOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("join with the gate dead: %v", err)
	}
}

// A store without a wake is a bug of whoever forgot it, and it is counted
// when the sleeper's slice ends.
func TestLostWakeUpIsCounted(t *testing.T) {
	defer func(n int) { lostProof = n }(lostProof)
	lostProof = 5
	s := heapSegment(t, 3)
	c := join(t, s, nil)
	bell := &areaOf(s).bell
	for _, tc := range []struct {
		name          string
		before, after uint32
		seen          uint32 // at the end of the sleep
		then          func() // while the sleeper makes sure
		changed, lost uint64
	}{
		{"nothing happened", 0x100, 0x100, 0x100, nil, 0, 0},
		{"freed, nobody woken", 0x100, 0x001, 0x001, nil, 1, 1},
		{"freed after the sleep", 0x100, 0x001, 0x100, nil, 1, 0},
		{"passed on to another", 0x100, 0x200, 0x200, nil, 1, 0},
		{"was free before", 0x001, 0x002, 0x002, nil, 1, 0},
		{"freed, the wake-up was on its way", 0x100, 0x001, 0x001, func() { bell.Wake(1) }, 1, 0},
		{"freed, another sleeper was woken and took it", 0x100, 0x001, 0x001, func() { bell.Store(0x201) }, 1, 0},
	} {
		was := c.Slices()
		bell.Store(tc.after)
		over := make(chan struct{})
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for done := tc.then == nil; !done; {
				tc.then()
				select {
				case <-over:
					done = true
				default:
				}
			}
		}()
		if got, want := c.sliceEnded(tc.seen, Watch{bell, tc.before}, Watch{}, 0xff00, nil),
			tc.before != tc.after; got != want {
			t.Errorf("%s: changed is %v", tc.name, got)
		}
		close(over)
		<-stopped
		now := c.Slices()
		if now.Ended != was.Ended+1 || now.Changed != was.Changed+tc.changed || now.Lost != was.Lost+tc.lost ||
			(now.Lost > 0) != strings.Contains(now.How, " waited for the word at ") {
			t.Errorf("%s: counted %+v after %+v", tc.name, now, was)
		}
	}
}

func TestConfigChecked(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
	}{
		{"no slots", Config{}},
		{"too many slots", Config{Slots: MaxSlots + 1}},
		{"area of ours", Config{Slots: 1, Areas: []AreaSpec{{AreaSlots, 4096}}}},
		{"area twice", Config{Slots: 1, Areas: []AreaSpec{{AreaNode, 4096}, {AreaNode, 4096}}}},
		{"area unknown", Config{Slots: 1, Areas: []AreaSpec{{maxAreas, 4096}}}},
		{"area wraps", Config{Slots: 1, Areas: []AreaSpec{{AreaNode, 1<<64 - 1}}}},
		{"odd alignment", Config{Slots: 1, DataAlign: 100, Areas: []AreaSpec{{AreaData, 4096}}}},
		{"too small", Config{Slots: 1, Size: 4096, Areas: []AreaSpec{{AreaData, 4096}}}},
		{"long name", Config{Slots: 1, Cluster: strings.Repeat("x", nameSize)}},
	} {
		if s, err := NewHeap(tc.cfg, nil); err == nil {
			t.Errorf("%s: made a segment of %d bytes", tc.name, s.Region().Size())
		}
	}
	s, err := NewHeap(Config{Slots: 2, Size: 1 << 20, DataAlign: 1 << 16,
		Areas: []AreaSpec{{AreaNode, 100}, {AreaData, 0}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if off, size := s.Area(AreaData); off%(1<<16) != 0 || off+size != 1<<20 {
		t.Errorf("data lies at %d, %d bytes", off, size)
	}
	bad := errors.New("no")
	if _, err := NewHeap(testConfig(1), func(*Segment) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("fill fails: %v", err)
	}
}
