package shm

import (
	"math"
	"time"
)

// All wakes everybody who sleeps on a word.
const All = math.MaxInt32

// Watch is a word to sleep on, and the value that it has while sleeping makes
// sense.
type Watch struct {
	W   *Word32
	Val uint32
}

// WaitResult says why a wait ended.
type WaitResult uint8

// Woken: somebody called Wake, or there was no reason at all. Changed: a word
// no longer held its value, there was no sleep. TimedOut: neither, in time.
const (
	Woken WaitResult = iota + 1
	Changed
	TimedOut
)

func (r WaitResult) String() string { return [...]string{"?", "woken", "changed", "timed out"}[r] }

const maxWatches = 4

// WaitAny sleeps until one of the words is woken, does not hold its value to
// begin with, or d has passed. It does not allocate.
//
// Preconditions: at most 4 words; entries without a word are skipped.
func WaitAny(d time.Duration, ws ...Watch) WaitResult {
	if r := simWaitAny(ws); r != 0 {
		return r
	}
	if len(ws) > maxWatches {
		panic("shm: WaitAny on more than 4 words")
	}
	for i := range ws {
		if ws[i].W != nil && ws[i].W.Load() != ws[i].Val {
			return Changed
		}
	}
	if d <= 0 {
		return TimedOut
	}
	return waitAny(d, ws)
}

// Wake wakes up to n sleepers of the word, in whatever process.
func (w *Word32) Wake(n int) {
	if simWake(w, n) {
		return
	}
	wake(w, n)
}
