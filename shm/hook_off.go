//go:build !shmsim

package shm

// SimEnabled reports whether this build can run under a simulated scheduler.
const SimEnabled = false

// The hook of the explorer costs nothing in a normal build: both functions
// inline to nothing.

func access[W any](Op, *W) {}

func simWaitAny([]Watch) WaitResult { return 0 }

func simWake(*Word32, int) bool { return false }

// Pause tells the CPU n times that this is a spin loop.
func Pause(n uint32) { pause(n) }
