package shm

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

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

// fileIDOf is the identity of an open file.
func fileIDOf(f *os.File) (id fileID, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return id, fmt.Errorf("shm: %s: %w", f.Name(), err)
	}
	id = fileID{device: uint64(st.Dev), inode: st.Ino}
	var x unix.Statx_t
	// A kernel or a seccomp profile without statx knows no births either.
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &x); err == nil &&
		x.Mask&unix.STATX_BTIME != 0 {
		id.birth = uint64(x.Btime.Sec)*1e9 + uint64(x.Btime.Nsec)
	}
	return id, nil
}

// setFile makes the segment's file the one that its header names.
func (s *Segment) setFile() (err error) {
	s.id, err = fileIDOf(s.file)
	s.root = rootID()
	s.h.Device, s.h.Inode, s.h.Birth = s.id.device, s.id.inode, s.id.birth
	return err
}

// checkFile is an error unless the header names the segment's file.
func (s *Segment) checkFile() (err error) {
	if s.id, err = fileIDOf(s.file); err != nil {
		return err
	}
	s.root = rootID()
	is, was := s.id, fileID{s.h.Device, s.h.Inode, s.h.Birth}
	const fix = "remove this file; to copy records, dump each database where the original is served: mainz dump"
	switch {
	case is.inode != was.inode, is.birth != was.birth && is.birth != 0 && was.birth != 0:
		return fmt.Errorf("shm: %s: %w: its inode is %d, the segment was made in inode %d; %s", s.file.Name(),
			ErrCopied, is.inode, was.inode, fix)
	case is.device != was.device:
		return fmt.Errorf("shm: %s: %w, or seen through another file system: it lies on device %d:%d, the segment was made on %d:%d; %s; if it is the same file, use it where it was made, or bind mount that",
			s.file.Name(), ErrCopied, unix.Major(is.device), unix.Minor(is.device), unix.Major(was.device),
			unix.Minor(was.device), fix)
	}
	return nil
}

// rootID is the identity of "/", zero if it can't be had.
func rootID() fileID {
	var st unix.Stat_t
	if unix.Stat("/", &st) != nil {
		return fileID{}
	}
	return fileID{device: uint64(st.Dev), inode: st.Ino}
}

// looked looks at the file: nil if nothing speaks against it. all: it is nobody's
// segment any more.
//
// Only what is certain counts. A path that can't be looked at (no permission, no
// such directory: another mount namespace, a directory that was renamed) says
// nothing as long as the file has a link; nor does a path behind another root.
func (s *Segment) looked() (reason error, all bool) {
	if s.InHeap() {
		return nil, false
	}
	var st, at unix.Stat_t
	if unix.Fstat(int(s.file.Fd()), &st) != nil {
		return nil, false
	}
	there := unix.Stat(filepath.Join(s.dir, segmentName), &at) == nil && s.root != fileID{} && rootID() == s.root
	other := there && (at.Ino != s.id.inode || uint64(at.Dev) != s.id.device)
	switch {
	case uint64(st.Size) < s.h.Size:
		return errCut, false
	case st.Nlink == 0 && other:
		return errOther, true
	case st.Nlink == 0:
		return errDeleted, true
	case other:
		return errOther, false
	}
	return nil, false
}

// buryHere closes the gate in this process alone. Private memory takes the place of the
// page of the gate and the lease, equal but for the gate, which is dead. All other
// memory stays shared: who is in the middle of a change ends it, and gives back what it
// holds. Pages larger than the gate's (hugetlbfs, arm64 with 64 KiB) begin with the
// header, and have nothing else in them.
func (s *Segment) buryHere() {
	page := uintptr(s.fs.page())
	at := uintptr(gateOffset)
	if page > HeaderSize {
		at = 0
	}
	to, spare := unsafe.Add(s.r.base, at), s.spare
	if spare == nil || at == 0 && uint64(page) > s.h.Areas[AreaSlots].Off {
		s.noPage()
		return
	}
	n := firstArea - at
	copy(unsafe.Slice((*byte)(spare), n), unsafe.Slice((*byte)(to), n))
	(*GateLine)(unsafe.Add(spare, gateOffset-at)).Gate.Store(GateDead)
	// One system call, under which no thread of ours sees neither page.
	if _, err := unix.MremapPtr(spare, page, to, page, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED); err != nil {
		s.noPage()
		return
	}
	s.spare = nil // it is the mapping's now
}

// makeSpare gets the memory for buryHere while there is some: who can't close the gate
// for himself alone would have to close it for all, or go on in a segment that was
// replaced. Two pages are touched, whatever their size.
func (s *Segment) makeSpare() error {
	page := uintptr(s.fs.page())
	m, err := unix.MmapPtr(-1, 0, nil, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return noAddress(s.h.Size + uint64(page))
	}
	b := unsafe.Slice((*byte)(m), page)
	_ = unix.Madvise(b, unix.MADV_NOHUGEPAGE)
	for at := uintptr(0); at < min(page, firstArea); at += uintptr(os.Getpagesize()) {
		b[at] = 1
	}
	s.spare = m
	return nil
}

func (s *Segment) dropSpare() {
	if s.spare != nil {
		_ = unix.MunmapPtr(s.spare, uintptr(s.fs.page()))
		s.spare = nil
	}
}

// noPage is for a process that may not have one more mapping (vm.max_map_count): the
// gate is closed for all then, as a client that goes on in a replaced segment loses data.
func (s *Segment) noPage() {
	if s.ro {
		_ = s.r.done()
	} else {
		s.bury()
	}
}

// observe looks from time to time, for who has no guardian.
func (s *Segment) observe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(lookEvery, func() {
		if s.Look() != nil {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.closed.Load() {
			s.timer.Reset(lookEvery)
		}
	})
}
