package shm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Which file a segment is. A copy holds the locks, slots and queues of clients
// that are not there, and may have been taken in the middle of a store: so the
// header names its file, and a file that the header does not name is refused.
//
// Three things are compared, which bind mounts and mount namespaces show alike:
// inode, device and, where the file system tells it, the inode's birth. tmpfs and
// hugetlbfs have one device number for each superblock, whoever looks. An inode
// number alone is not enough: each tmpfs counts its own from 1, and a disk gives
// that of a deleted file away again. The birth tells the latter.
//
// An overlay shows a device of its own. So a segment in a container's layer,
// which the host opens through the layer's directory, is refused there. That is
// right: file locks are the overlay's as well, and neither side would see the
// owner's or a client's lock of the other.

// fileID names a file.
type fileID struct{ device, inode, birth uint64 }

// fileIDOf is the identity of an open file.
func fileIDOf(f *os.File) (id fileID, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return id, fmt.Errorf("shm: %s: %w", f.Name(), err)
	}
	id = fileID{device: uint64(st.Dev), inode: st.Ino}
	var x unix.Statx_t
	// A kernel or a seccomp profile without statx knows no births either.
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &x); err == nil && x.Mask&unix.STATX_BTIME != 0 {
		id.birth = uint64(x.Btime.Sec)*1e9 + uint64(x.Btime.Nsec)
	}
	return id, nil
}

// setFile makes f the file that the header names.
func (h *Header) setFile(f *os.File) error {
	id, err := fileIDOf(f)
	h.Device, h.Inode, h.Birth = id.device, id.inode, id.birth
	return err
}

// checkFile reports whether f is the file that the header names.
func (h *Header) checkFile(f *os.File) error {
	is, err := fileIDOf(f)
	if err != nil {
		return err
	}
	was := fileID{h.Device, h.Inode, h.Birth}
	const fix = "remove this file; to copy records, dump each database where the original is served: mainz dump"
	switch {
	case is.inode != was.inode, is.birth != was.birth && is.birth != 0 && was.birth != 0:
		return fmt.Errorf("shm: %s: %w: its inode is %d, the segment was made in inode %d; %s", f.Name(), ErrCopied, is.inode, was.inode, fix)
	case is.device != was.device:
		return fmt.Errorf("shm: %s: %w, or seen through another file system: it lies on device %d:%d, the segment was made on %d:%d; %s; if it is the same file, use it where it was made, or bind mount that",
			f.Name(), ErrCopied, unix.Major(is.device), unix.Minor(is.device), unix.Major(was.device), unix.Minor(was.device), fix)
	}
	return nil
}
