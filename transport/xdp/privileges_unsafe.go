//go:build linux

package xdp

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/transport"
)

// DropPrivileges takes CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and
// CAP_SYS_ADMIN, which can stand for them, from all threads of this process,
// for good. An open transport goes on without: sockets, maps and the program's
// link are held by descriptors. But no other way of AF_XDP can be opened any
// more; if the one in force dies, Auto goes on through the kernel.
//
// It needs a binary built without cgo, and Linux 5.19: older kernels want
// CAP_BPF for every change of the list of members.
func DropPrivileges() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for _, c := range []uint{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_ADMIN} {
		d := &data[c/32]
		mask := ^(uint32(1) << (c % 32))
		d.Effective &= mask
		d.Permitted &= mask
		d.Inheritable &= mask
	}
	// Without this an execve by root would give them back.
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
	if errno == unix.ENOTSUP {
		return fmt.Errorf("drop capabilities: %w in a binary built with cgo: build with CGO_ENABLED=0, or keep them",
			transport.ErrNotSupported)
	}
	if errno != 0 {
		return fmt.Errorf("set no_new_privs: %w", errno)
	}
	_, _, errno = syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)),
		uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}
