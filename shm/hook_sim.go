//go:build shmsim

package shm

import "unsafe"

// SimEnabled reports whether this build can run under a simulated scheduler.
const SimEnabled = true

// Scheduler decides, in builds with the tag shmsim, which task goes on at
// each shared access, and stands in for the kernel's futexes. It may not
// return from Access at all: then the task died before the access.
type Scheduler interface {
	// Access is called before every access to a shared word or block.
	Access(op Op, p unsafe.Pointer)
	// Spin is called where a task can go on only when another one acts.
	Spin()
	// WaitAny and Wake stand in for futex_waitv and FUTEX_WAKE.
	WaitAny(ws []Watch) WaitResult
	Wake(p unsafe.Pointer, n int)
}

// Sim is the scheduler in force, nil for none. Only a test sets it, before
// it starts its tasks.
var Sim Scheduler

func access[W any](op Op, w *W) {
	if Sim != nil {
		Sim.Access(op, unsafe.Pointer(w))
	}
}

func simWaitAny(ws []Watch) WaitResult {
	if Sim == nil {
		return 0
	}
	return Sim.WaitAny(ws)
}

func simWake(w *Word32, n int) bool {
	if Sim == nil {
		return false
	}
	Sim.Wake(unsafe.Pointer(w), n)
	return true
}

// Pause tells the CPU n times that this is a spin loop.
func Pause(n uint32) {
	if Sim != nil {
		Sim.Spin()
		return
	}
	pause(n)
}
