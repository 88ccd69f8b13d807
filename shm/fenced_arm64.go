package shm

// FencedTicks reads the counter of the architecture after everything before
// it has completed, and before anything behind it starts. It is for
// measurements; [Ticks] is enough for a deadline.
//
//go:noescape
func FencedTicks() uint64
