//go:build amd64 && race

package shm

// StoreBarrier keeps later stores behind earlier ones. Nothing to do on amd64.
func StoreBarrier() {}

// LoadBarrier keeps later loads behind earlier ones. Nothing to do on amd64.
func LoadBarrier() {}
