//go:build !linux

package shm

import (
	"context"
	"fmt"
	"runtime"
)

// Shared memory between processes needs Linux: robust futexes, futex_waitv,
// OFD locks, pidfds. Segments in the heap work everywhere.

type fsInfo struct {
	name string
	ram  bool
}

type guardian struct{}

type identity struct {
	pid, uid     uint32
	place, start uint64
}

// OwnerLock makes this process the owner of a segment's directory. There are
// none on this system.
type OwnerLock struct{}

func needsLinux(what, dir string) error {
	return fmt.Errorf("shm: %s %s on %s: %w; shared memory needs Linux: use OpenHeap", what, dir, runtime.GOOS,
		ErrNotSupported)
}

// Create needs Linux.
func Create(_ context.Context, dir string, _ Config, _ func(*Segment) error) (*Segment, error) {
	return nil, needsLinux("create", dir)
}

// Attach needs Linux.
func Attach(_ context.Context, dir string, _ string) (*Segment, error) {
	return nil, needsLinux("attach", dir)
}

// AttachReadOnly needs Linux.
func AttachReadOnly(_ context.Context, dir string, _ string) (*Segment, error) {
	return nil, needsLinux("attach", dir)
}

// MakeDir needs Linux.
func MakeDir(dir string, _ Config) error { return needsLinux("make", dir) }

// LockOwner needs Linux.
func LockOwner(dir string) (*OwnerLock, error) { return nil, needsLinux("own", dir) }

// InPlace says yes here.
func (l *OwnerLock) InPlace() bool { return true }

// Keep does nothing here.
func (l *OwnerLock) Keep() (made bool, err error) { return false, nil }

// Release gives the directory up.
func (l *OwnerLock) Release() error { return nil }

// TryAlone makes the caller the only one that uses part n of the segment. In the heap
// it always is.
func (s *Segment) TryAlone(int) (bool, error) { return true, nil }

// TryShare makes the caller one of those that use part n.
func (s *Segment) TryShare(int) (bool, error) { return true, nil }

// Unshare ends the use of part n.
func (s *Segment) Unshare(int) {}

// Doorbell is a FIFO in a segment's directory. There are none on this system.
type Doorbell struct{}

// MakeDoorbell needs Linux.
func MakeDoorbell(dir string, _ Config) error { return needsLinux("make the doorbell of", dir) }

// OpenDoorbell needs Linux.
func OpenDoorbell(dir string) (*Doorbell, error) {
	return nil, needsLinux("open the doorbell of", dir)
}

// Keep does nothing here.
func (d *Doorbell) Keep(Config) (made bool, err error) { return false, nil }

// Renew does nothing here.
func (d *Doorbell) Renew() error { return nil }

// FD is no file descriptor here.
func (d *Doorbell) FD() int { return -1 }

// Ring does nothing here.
func (d *Doorbell) Ring() {}

// Drain does nothing here.
func (d *Doorbell) Drain() {}

// Close does nothing here.
func (d *Doorbell) Close() error { return nil }

// GroupNumber needs Linux.
func GroupNumber(string) (int, error) { return 0, ErrNotSupported }

// Group is not known on this system.
func (s *Segment) Group() (gid uint32, ok bool) { return 0, false }

// Warnings has none on this system.
func (s *Segment) Warnings(owner bool) []string { return nil }

// Huge returns which pages the segment has: not known on this system.
func (s *Segment) Huge() HugeReport { return HugeReport{Asked: HugePages(s.h.Huge)} }

// Stopped reports whether the process in a slot is stopped: not known here.
func (c *Client) Stopped(uint32) bool { return false }

// MaxStretch is for Linux.
const MaxStretch = 1

// Stretch needs Linux.
func (c *Client) Stretch(uint32) error { return ErrNotSupported }

// Stretched: no lock is, here.
func (s *Segment) Stretched(uint32, uint64, uint32) bool { return false }

// Unproven: nothing is, here.
func (c *Client) Unproven(uint32) bool { return false }

// LockPlace: there are no locks here.
func (s *Segment) LockPlace(uint32) int64 { return 0 }

// Alarm watches nothing here.
func (c *Client) Alarm(int, func()) {}

// FindLost has nothing to do here.
func (c *Client) FindLost() {}

// Evict kills nobody here.
func (c *Client) Evict(uint32, uint64) (bool, error) { return false, nil }

func checkKernel() error                                 { return nil }
func identify() identity                                 { return identity{pid: 1} }
func (c *Client) fence(uint32, *Slot) error              { return nil }
func (s *Segment) lockSlot(uint32, uint64) (bool, error) { return true, nil }
func (s *Segment) unmap() error                          { return nil }
func (s *Segment) looked() (reason error, all bool)      { return nil, false }
func (s *Segment) buryHere()                             { s.bury() }
func (c *Client) takeSlot(ctx context.Context) error     { return c.takeHeapSlot(ctx) }
func (c *Client) giveSlot(clean bool)                    { c.giveHeapSlot(clean) }
