package ring

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// Strategy is what to do while there is nothing to do.
type Strategy uint8

const (
	// Adaptive spins for about as long as a wake-up takes, and sleeps then. So
	// it never costs more than twice what knowing in advance would.
	Adaptive Strategy = iota
	// Busy never sleeps: for who has a CPU to himself.
	Busy
	// Sleep sleeps at once.
	Sleep
)

var strategyNames = [...]string{"adaptive", "busy", "sleep"}

func (s Strategy) String() string {
	if int(s) < len(strategyNames) {
		return strategyNames[s]
	}
	return fmt.Sprintf("strategy %d", uint8(s))
}

// ParseStrategy reads what String writes.
func ParseStrategy(name string) (Strategy, error) {
	for i, n := range strategyNames {
		if n == name {
			return Strategy(i), nil
		}
	}
	return 0, fmt.Errorf("ring: idle strategy %q: there are busy, adaptive and sleep", name)
}

// Idle is a loop that looks for something to do:
//
//	for !look() {
//		if !idle.Again() {
//			// sleep, then
//			idle.Reset()
//		}
//	}
type Idle struct {
	strategy Strategy
	turns    uint32 // since Reset
	start    uint64 // ticks at the first of them
	budget   uint64 // ticks to spin; 0: not known yet
}

// Start returns a loop with this strategy. The first loop of Adaptive that is used
// measures what a wake-up takes, with some 10 ms of CPU time (SpinTicks).
func (s Strategy) Start() Idle { return Idle{strategy: s} }

// startAt is Start for who knows what SpinTicks returns on this machine, or has it
// from another process: then any number may come, and no wait may become long by it.
// 0: it is not known.
func (s Strategy) startAt(spin uint64) Idle {
	i := Idle{strategy: s, budget: min(spin, mostSpin)}
	if spin != 0 && (runtime.NumCPU() < 2 || runtime.GOMAXPROCS(0) < 2) {
		i.budget = 1 // whoever is waited for can't run while this process spins
	}
	return i
}

// mostSpin bounds what is believed of another process, in ticks: some 0.3 ms on
// amd64.
const mostSpin = 1 << 20

// SpinTicks returns how long Adaptive spins on this machine, in ticks of the
// time-stamp counter. The first call measures it, which takes some 10 ms of CPU time:
// one process does, and the others are given the result (Options.Spin).
func SpinTicks() uint64 { return spinTicks() }

// Reset begins anew: there was something to do.
func (i *Idle) Reset() { i.turns = 0 }

// ticksEvery is how many turns there are between two looks at the counter: a
// look takes longer than a turn.
const ticksEvery = 8

// Again reports whether to look again, and makes a short pause then; false is
// to go to sleep.
func (i *Idle) Again() bool {
	switch i.strategy {
	case Busy:
	case Sleep:
		return false
	default:
		if i.turns%ticksEvery == 0 {
			now := shm.Ticks()
			if i.turns == 0 {
				if i.budget == 0 {
					i.budget = spinTicks()
					now = shm.Ticks()
				}
				i.start = now
			}
			if now-i.start >= i.budget {
				return false
			}
		}
		i.turns++
	}
	shm.Pause(1)
	return true
}

// Bounds and default of what Adaptive spins. The lower one is for machines
// with one CPU, where whoever is waited for can't run meanwhile.
const (
	shortestSpin = time.Microsecond
	defaultSpin  = 50 * time.Microsecond
	longestSpin  = 100 * time.Microsecond
)

// spinTicks is how long Adaptive spins.
var spinTicks = sync.OnceValue(func() uint64 {
	perNS := shm.TickRate() / 1e9
	spin := uint64(float64(defaultSpin) * perNS)
	switch {
	case runtime.NumCPU() < 2:
		return uint64(float64(shortestSpin) * perNS)
	case runtime.GOMAXPROCS(0) < 2 || shm.SimEnabled:
		return spin // it can't be measured in this process
	}
	if took, ok := wakeTicks(); ok {
		spin = took
	}
	return min(max(spin, uint64(float64(shortestSpin)*perNS)), uint64(float64(longestSpin)*perNS))
})

// wakeTicks measures what it takes to wake a thread that sleeps on a futex: the
// median of some round trips between two, halved. ok is false if that took
// unreasonably long.
func wakeTicks() (ticks uint64, ok bool) {
	const trips, patience = 33, 50 * time.Millisecond
	m := shm.Heap(2 * align)
	ping, pong := shm.At[shm.Word32](m, 0), shm.At[shm.Word32](m, align)
	end := time.Now().Add(patience)
	wait := func(w *shm.Word32, from uint32) bool {
		for w.Load() == from {
			if time.Now().After(end) {
				return false
			}
			shm.WaitAny(time.Millisecond, shm.Watch{W: w, Val: from})
		}
		return true
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range uint32(trips) {
			if !wait(ping, i) {
				return
			}
			pong.Swap(i + 1)
			pong.Wake(1)
		}
	}()
	var took []uint64
	for i := range uint32(trips) {
		start := shm.Ticks()
		ping.Swap(i + 1)
		ping.Wake(1)
		if !wait(pong, i) {
			break
		}
		took = append(took, shm.Ticks()-start)
	}
	<-done
	if len(took) < trips/2 {
		return 0, false
	}
	slices.Sort(took)
	return took[len(took)/2] / 2, true
}
