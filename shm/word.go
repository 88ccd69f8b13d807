package shm

import "sync/atomic"

// Word32 is an aligned 32-bit word that several processes load and store.
// The zero Word32 holds 0. It must never be copied out of its region.
type Word32 struct{ v uint32 }

// Word64 is an aligned 64-bit word that several processes load and store.
// The zero Word64 holds 0. It must never be copied out of its region.
type Word64 struct{ v uint64 }

// Load returns the word; no later load or store of this thread is seen before it.
func (w *Word32) Load() uint32 {
	access(OpLoad, w)
	return atomic.LoadUint32(&w.v)
}

// CAS replaces old by x and reports whether it did. It is a full barrier.
func (w *Word32) CAS(old, x uint32) bool {
	access(OpCAS, w)
	return atomic.CompareAndSwapUint32(&w.v, old, x)
}

// Swap stores x and returns what was there. It is a full barrier.
func (w *Word32) Swap(x uint32) uint32 {
	access(OpSwap, w)
	return atomic.SwapUint32(&w.v, x)
}

// Raise makes the word 1 and wakes who sleeps on it. The word lies in memory of
// this process alone, where it ends a wait (WaitAny). Any goroutine may call it,
// also one that no task of the explorer has started: it is no access to shared
// memory, and the explorer is not asked.
func (w *Word32) Raise() {
	atomic.StoreUint32(&w.v, 1)
	wake(w, All)
}

// Load returns the word; no later load or store of this thread is seen before it.
func (w *Word64) Load() uint64 {
	access(OpLoad, w)
	return atomic.LoadUint64(&w.v)
}

// CAS replaces old by x and reports whether it did. It is a full barrier.
func (w *Word64) CAS(old, x uint64) bool {
	access(OpCAS, w)
	return atomic.CompareAndSwapUint64(&w.v, old, x)
}

// Swap stores x and returns what was there. It is a full barrier.
func (w *Word64) Swap(x uint64) uint64 {
	access(OpSwap, w)
	return atomic.SwapUint64(&w.v, x)
}

// Add adds n and returns the new value. It is a full barrier.
func (w *Word64) Add(n uint64) uint64 {
	access(OpSwap, w)
	return atomic.AddUint64(&w.v, n)
}

// Counter is a statistic with one writing process at a time. Readers may see
// it late. Counters take part in no protocol, so the explorer does not stop
// at them.
type Counter struct{ v uint64 }
