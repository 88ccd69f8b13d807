//go:build !amd64 && !arm64

package shm

import "sync/atomic"

var fence atomic.Uint32

// StoreBarrier keeps later stores behind earlier ones.
func StoreBarrier() { fence.Add(1) }

// LoadBarrier keeps later loads behind earlier ones.
func LoadBarrier() { fence.Add(0) }
