//go:build !shmsim

package ltdb

import (
	"os/exec"
	"syscall"
	"testing"

	"github.com/mainzdb/mainz/shm"
)

// For the tests in package ltdb_test, which use the dispatcher as well.

// RamdiskForTest is a directory for a store.
func RamdiskForTest(t *testing.T) string { return ramdisk(t) }

// StopInsideForTest starts a process that is stopped in the middle of a call.
func StopInsideForTest(t *testing.T, dir string) *exec.Cmd { return stopInside(t, dir) }

// StopInsideAsForTest is StopInsideForTest for a process of another user.
func StopInsideAsForTest(t *testing.T, dir, program string, attr *syscall.SysProcAttr) *exec.Cmd {
	return stopInsideAs(t, dir, program, attr)
}

// LatchForTest makes the client in a slot the holder of the latch of the smallest
// class, as if it were in the middle of a call.
func LatchForTest(t *testing.T, s *Store, slot uint32) {
	t.Helper()
	h := &shm.At[body](s.r, s.seg.SlotBody(slot)).handles[0]
	h.classIntent.Store(1)
	if !s.classes[0].latch.TryLock(shm.HandleID(slot * shm.HandlesPerSlot)) {
		t.Fatal("the latch is held")
	}
}
