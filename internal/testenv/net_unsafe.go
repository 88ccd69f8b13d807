//go:build linux

package testenv

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refused tells whether the machine does not allow it. Any other error is for
// the test to run into: a skip must not hide a fault.
func refused(err error) bool {
	for _, e := range []error{unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EINVAL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

var netnsReason = sync.OnceValue(func() string {
	result := make(chan error)
	go func() {
		// The thread is not unlocked, and so ends with its namespace.
		runtime.LockOSThread()
		result <- unix.Unshare(unix.CLONE_NEWNET)
	}()
	if err := <-result; refused(err) {
		return fmt.Sprintf("making a network namespace: %v", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if unix.Capget(&hdr, &caps[0]) == nil && caps[0].Effective>>unix.CAP_NET_ADMIN&1 == 0 {
		return "no CAP_NET_ADMIN for the interfaces in it"
	}
	return ""
})

var afxdpReason = sync.OnceValue(func() string {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if refused(err) {
		return fmt.Sprintf("making an AF_XDP socket: %v", err)
	}
	if err == nil {
		unix.Close(fd)
	}
	// The beginning of union bpf_attr for BPF_MAP_CREATE.
	attr := struct{ kind, keySize, valueSize, entries, flags uint32 }{unix.BPF_MAP_TYPE_XSKMAP, 4, 4, 1, 0}
	n, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno == 0 {
		unix.Close(int(n))
		return ""
	}
	if refused(errno) {
		return fmt.Sprintf("making a BPF map: %v", errno)
	}
	return ""
})
