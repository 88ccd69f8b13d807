package shm

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	futexWake     = 1    // FUTEX_WAKE: shared, so it finds waiters of any process
	futex2SizeU32 = 0x02 // FUTEX2_SIZE_U32; shared without FUTEX2_PRIVATE

	// longestRawWait bounds the sleep of which the scheduler isn't told. A
	// raw wait saves the hand-over of the P, which can cost 11 ms to get back
	// when all are busy; but it also holds up the collector's stop-the-world.
	longestRawWait = 100 * time.Microsecond
)

// futexWaitv is struct futex_waitv of the kernel.
type futexWaitv struct {
	val      uint64
	addr     uint64
	flags    uint32
	reserved uint32
}

var _ [24]byte = [unsafe.Sizeof(futexWaitv{})]byte{}

// kernelTimespec is struct __kernel_timespec: 64 bits on every architecture.
type kernelTimespec struct{ sec, nsec int64 }

// sleepers are the threads of this process in waitAny. Only who is alone there sleeps
// without telling the scheduler: two hundred that did so for a moment in every time
// slice left no processor to run those who were woken.
var sleepers atomic.Int32

func waitAny(d time.Duration, ws []Watch) WaitResult {
	var v [maxWatches]futexWaitv
	n := uintptr(0)
	for i := range ws {
		if ws[i].W != nil {
			v[n] = futexWaitv{uint64(ws[i].Val), uint64(uintptr(unsafe.Pointer(ws[i].W))), futex2SizeU32, 0}
			n++
		}
	}
	if n == 0 {
		time.Sleep(d)
		return TimedOut
	}
	start := monotonic()
	until := start + int64(d)
	raw := sleepers.Add(1) == 1
	defer sleepers.Add(-1)
	if raw {
		until = start + int64(min(d, longestRawWait))
	}
	for ; ; raw = false {
		ts := kernelTimespec{until / 1e9, until % 1e9}
		var e syscall.Errno
		if raw {
			_, _, e = unix.RawSyscall6(unix.SYS_FUTEX_WAITV, uintptr(unsafe.Pointer(&v[0])), n, 0,
				uintptr(unsafe.Pointer(&ts)), unix.CLOCK_MONOTONIC, 0)
		} else {
			_, _, e = unix.Syscall6(unix.SYS_FUTEX_WAITV, uintptr(unsafe.Pointer(&v[0])), n, 0,
				uintptr(unsafe.Pointer(&ts)), unix.CLOCK_MONOTONIC, 0)
		}
		switch e {
		case 0:
			runtime.KeepAlive(ws)
			return Woken
		case unix.EAGAIN:
			return Changed
		case unix.ETIMEDOUT:
			if until >= start+int64(d) {
				return TimedOut
			}
		case unix.EINTR:
		case unix.ENOMEM:
			time.Sleep(longestRawWait)
			return Woken
		default:
			// ENOSYS and EPERM are refused when a segment is made; what is
			// left is a word that is not mapped any more, or not aligned.
			panic("shm: futex_waitv: " + e.Error())
		}
		until = start + int64(d)
	}
}

func wake(w *Word32, n int) {
	unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(w)), futexWake, uintptr(n), 0, 0, 0)
}

// monotonic is CLOCK_MONOTONIC, which futex_waitv's absolute timeout wants.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("shm: clock_gettime: " + err.Error())
	}
	return ts.Nano()
}
