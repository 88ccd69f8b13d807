//go:build !shmsim

package ltdb

import "testing"

// For the tests in package ltdb_test, which use the dispatcher as well.

// RamdiskForTest is a directory for a store.
func RamdiskForTest(t *testing.T) string { return ramdisk(t) }

// StopInsideForTest starts a process that is stopped in the middle of a call.
func StopInsideForTest(t *testing.T, dir string) { stopInside(t, dir) }
