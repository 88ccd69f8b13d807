package shm

import (
	"sync"
	"testing"
	"time"
)

func TestWaitAny(t *testing.T) {
	w := new([3]Word32)
	for i, tc := range []struct {
		d    time.Duration
		ws   []Watch
		want WaitResult
	}{
		{time.Hour, []Watch{{&w[0], 1}}, Changed},
		{time.Hour, []Watch{{&w[0], 0}, {nil, 5}, {&w[1], 1}}, Changed},
		{0, []Watch{{&w[0], 0}}, TimedOut},
		{-time.Second, []Watch{{&w[0], 0}}, TimedOut},
		{50 * time.Microsecond, []Watch{{&w[0], 0}}, TimedOut},
		{3 * time.Millisecond, []Watch{{&w[0], 0}, {nil, 0}, {&w[1], 0}, {&w[2], 0}}, TimedOut},
		{time.Millisecond, nil, TimedOut},
	} {
		start := time.Now()
		if got := WaitAny(tc.d, tc.ws...); got != tc.want {
			t.Errorf("case %d: %v, want %v", i, got, tc.want)
		}
		if took := time.Since(start); tc.want == TimedOut && took < tc.d {
			t.Errorf("case %d: timed out after %v, want %v", i, took, tc.d)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("5 words: no panic")
		}
	}()
	WaitAny(0, make([]Watch, 5)...)
}

// Every wake-up arrives, on whichever of the words it is sent.
func TestWaitAnyWoken(t *testing.T) {
	const rounds = 300
	w := new([4]Word32)
	ping := new(Word32)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for i := range uint32(rounds) {
			until(t, "the other side's turn", func() bool {
				WaitAny(time.Second, Watch{ping, i})
				return ping.Load() == i+1
			})
			w[i%4].Store(i + 1)
			w[i%4].Wake(1)
		}
	}()
	old := [4]uint32{}
	for i := range uint32(rounds) {
		ping.Store(i + 1)
		ping.Wake(1)
		until(t, "a wake-up", func() bool {
			return WaitAny(time.Minute, Watch{&w[0], old[0]}, Watch{&w[1], old[1]}, Watch{&w[2], old[2]},
				Watch{&w[3], old[3]}) != TimedOut && w[i%4].Load() == i+1
		})
		old[i%4] = i + 1
	}
	wg.Wait()
}

// Wake(n) wakes n, and All all.
func TestWakeCounts(t *testing.T) {
	const sleepers = 5
	w := new(Word32)
	woken := make(chan struct{}, sleepers)
	for range sleepers {
		go func() {
			for WaitAny(time.Minute, Watch{w, 0}) == TimedOut {
			}
			woken <- struct{}{}
		}()
	}
	// Who does not sleep yet sees the word changed, so nobody can be missed.
	w.Store(1)
	w.Wake(2)
	w.Wake(All)
	for range sleepers {
		<-woken
	}
}

func TestWaitingDoesNotAllocate(t *testing.T) {
	if SimEnabled {
		t.Skip("the explorer's hook lets the words escape")
	}
	s := heapSegment(t, 2)
	c := join(t, s, nil)
	w, cancel := new(Word32), new(Word32)
	for name, f := range map[string]func(){
		"timeout":   func() { WaitAny(time.Microsecond, Watch{w, 0}, Watch{cancel, 0}) },
		"slice":     func() { WaitAny(150*time.Microsecond, Watch{w, 0}, Watch{}, Watch{cancel, 0}) },
		"changed":   func() { WaitAny(time.Hour, Watch{w, 1}) },
		"wake":      func() { w.Wake(All) },
		"WaitOwner": func() { _ = c.WaitOwner(c.Slot(), Watch{w, 0}, cancel, time.Microsecond) },
	} {
		if n := testing.AllocsPerRun(20, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
