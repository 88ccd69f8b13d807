//go:build !amd64 && !arm64

package shm

// FencedTicks is [Ticks] here.
func FencedTicks() uint64 { return Ticks() }
