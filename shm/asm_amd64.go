package shm

import "unsafe"

//go:noescape
func pause(n uint32)

// Ticks reads the time-stamp counter. It is not ordered with earlier loads:
// it may be read up to the out-of-order window (about 1 µs) early.
//
//go:noescape
func Ticks() uint64

// Prefetch asks for the cache line at p.
//
//go:noescape
func Prefetch(p unsafe.Pointer)
