package shm

import (
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/testenv"
)

// TestFork: a child that a system call has forked, as a C program that embeds us may do
// without exec, does not have the segment. The child makes system calls only: there is no
// Go runtime in it.
func TestFork(t *testing.T) {
	testenv.Need(t, testenv.Linux)
	s := newSegment(t, mapped(t), testConfig(2))
	const there, gone = 1, 2
	var here byte // something that the child has
	look := func(addr unsafe.Pointer) int {
		page := uintptr(addr) &^ uintptr(unix.Getpagesize()-1)
		var vec [1]byte
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			t.Fatal("fork: ", errno)
		}
		if pid == 0 {
			code := uintptr(there)
			if _, _, errno := syscall.RawSyscall(syscall.SYS_MINCORE, page, 1,
				uintptr(unsafe.Pointer(&vec[0]))); errno == syscall.ENOMEM {
				code = gone
			}
			for {
				syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
			}
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil || !status.Exited() {
			t.Fatal("wait: ", err, status)
		}
		return status.ExitStatus()
	}
	if got := look(unsafe.Pointer(&here)); got != there {
		t.Fatal("a child lacks what everybody has: ", got)
	}
	if got := look(s.r.base); got != gone {
		t.Error("a child has the segment: ", got)
	}
}
