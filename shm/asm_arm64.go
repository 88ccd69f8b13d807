package shm

import "unsafe"

// StoreBarrier keeps later stores behind earlier ones (DMB ISHST). A release
// store does not: STLR lets the stores behind it pass.
//
//go:noescape
func StoreBarrier()

// LoadBarrier keeps later loads behind earlier ones (DMB ISHLD).
//
//go:noescape
func LoadBarrier()

//go:noescape
func pause(n uint32)

// Ticks reads the counter of the architecture; its rate is constant.
//
//go:noescape
func Ticks() uint64

// Prefetch asks for the cache line at p.
//
//go:noescape
func Prefetch(p unsafe.Pointer)
