//go:build !amd64 && !arm64

package shm

import (
	"runtime"
	"time"
	"unsafe"
)

func pause(n uint32) {
	for ; n > 0; n-- {
		runtime.Gosched()
	}
}

var start = time.Now()

// Ticks returns nanoseconds since the start of the process.
func Ticks() uint64 { return uint64(time.Since(start)) }

// Prefetch does nothing here.
func Prefetch(unsafe.Pointer) {}
