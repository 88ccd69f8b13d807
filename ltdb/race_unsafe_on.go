//go:build race

package ltdb

import (
	"runtime"
	"unsafe"
)

// shadow has a word of this process's memory for each record, more or less: the race
// detector does not know that words of mapped memory are synchronized on, and would
// report what an application guards by record locks.
var shadow [4096]uint32

func raceAcquire(hash uint64) { runtime.RaceAcquire(unsafe.Pointer(&shadow[hash%4096])) }

func raceRelease(hash uint64) { runtime.RaceReleaseMerge(unsafe.Pointer(&shadow[hash%4096])) }
