//go:build !linux

package shm

import (
	"sync"
	"time"
	"unsafe"
)

// Without futexes a sleeper parks in this process, in a list with its addresses:
// only heap segments exist here, so nobody else could wake it.

type parked struct {
	woken chan struct{}
	addrs [maxWatches]unsafe.Pointer
}

// lot is one list for everybody: speed does not matter on these systems.
var lot struct {
	mu   sync.Mutex
	list []*parked
}

func waitAny(d time.Duration, ws []Watch) WaitResult {
	p := &parked{woken: make(chan struct{}, 1)}
	lot.mu.Lock()
	for i := range ws {
		if ws[i].W == nil {
			continue
		}
		if ws[i].W.Load() != ws[i].Val {
			lot.mu.Unlock()
			return Changed
		}
		p.addrs[i] = unsafe.Pointer(ws[i].W)
	}
	lot.list = append(lot.list, p)
	lot.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.woken:
		return Woken
	case <-t.C:
	}
	lot.mu.Lock()
	defer lot.mu.Unlock()
	for i, q := range lot.list {
		if q == p {
			lot.list = append(lot.list[:i], lot.list[i+1:]...)
			return TimedOut
		}
	}
	return Woken
}

func wake(w *Word32, n int) {
	lot.mu.Lock()
	defer lot.mu.Unlock()
	kept := lot.list[:0]
	for _, p := range lot.list {
		hit := false
		for _, a := range p.addrs {
			hit = hit || a == unsafe.Pointer(w)
		}
		if hit && n > 0 {
			n--
			p.woken <- struct{}{}
			continue
		}
		kept = append(kept, p)
	}
	clear(lot.list[len(kept):])
	lot.list = kept
}
