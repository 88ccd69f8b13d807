package shm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	membarrierGlobalExpedited         = 1 << 1
	membarrierRegisterGlobalExpedited = 1 << 2
)

// checkKernel reports a kernel without futex_waitv, which came with 5.16.
var checkKernel = sync.OnceValue(func() error {
	_, _, e := unix.Syscall6(unix.SYS_FUTEX_WAITV, 0, 0, 0, 0, 0, 0)
	if e == unix.EINVAL {
		return nil
	}
	var u unix.Utsname
	_ = unix.Uname(&u)
	return fmt.Errorf("shm: futex_waitv on Linux %s: %w (%w); it needs 5.16 or newer, and a seccomp profile that allows it",
		unix.ByteSliceToString(u.Release[:]), ErrNotSupported, e)
})

// registerMembarrier makes this process one whose threads a recoverer's
// barrier reaches.
var registerMembarrier = sync.OnceValue(func() error {
	_, _, e := unix.Syscall(unix.SYS_MEMBARRIER, membarrierRegisterGlobalExpedited, 0, 0)
	if e != 0 {
		return fmt.Errorf("membarrier: %w (%w); it needs CONFIG_MEMBARRIER, and a seccomp profile that allows it", ErrNotSupported, e)
	}
	return nil
})

// identity says which process this is.
type identity struct {
	pid, uid     uint32
	pidns, start uint64 // 0: not known, as /proc is missing
}

var identify = sync.OnceValue(func() identity {
	id := identity{pid: uint32(os.Getpid()), uid: uint32(os.Geteuid())}
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) == nil {
		if id.start, _ = startTime("self"); id.start != 0 {
			id.pidns = st.Ino
		}
	}
	return id
})

// startTime is field 22 of /proc/PID/stat. With the PID it names a process
// for good; the PID alone is used again.
func startTime(pid string) (uint64, error) {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, err
	}
	// The name, field 2, may contain anything.
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, fmt.Errorf("/proc/%s/stat: %q", pid, b)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// fence makes sure that the process that lived in a slot executes no further
// instruction: that of the guardian's death alone does not say so. Threads
// that were killed may run until they next enter the kernel; the barrier
// makes all of them enter it. It is a proof as no system call ever writes
// into the segment.
//
// errNotYet: it may still run; nothing was found out to the contrary.
func (s *Segment) fence(slot uint32, sl *Slot) error {
	if s.InHeap() {
		return nil
	}
	if sl.PID.Load() != 0 {
		err := s.kill(sl, sl.Generation.Load())
		if err == errForeign {
			// Other PID namespace, or another user's: its lock in the file
			// goes when the last of its threads has gone.
			held, e := s.slotLockHeld(slot, sl.Generation.Load())
			if e != nil {
				return e
			}
			if held {
				return errNotYet
			}
			err = nil
		}
		if err != nil {
			return err
		}
	}
	_, _, e := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobalExpedited, 0, 0)
	if e != 0 {
		return fmt.Errorf("membarrier: %w", e)
	}
	return nil
}

// errForeign: a process that we can't name or may not kill.
var errForeign = errors.New("not ours to kill")

// kill sends SIGKILL to the process in a slot, unless it is gone or the slot
// has another tenant than that of the generation.
func (s *Segment) kill(sl *Slot, gen uint64) error {
	if s.InHeap() || sl == nil {
		return nil
	}
	me := identify()
	pid, start := sl.PID.Load(), sl.Start.Load()
	if me.pidns == 0 || sl.PIDNS.Load() != me.pidns || pid == 0 {
		return errForeign
	}
	fd, err := unix.PidfdOpen(int(pid), 0)
	switch err {
	case nil:
	case unix.ESRCH, unix.EINVAL: // EINVAL: not a process any more, or garbage
		return nil
	default:
		return errForeign
	}
	defer unix.Close(fd)
	// The PID may be another process's by now. If it is still the one we
	// mean, the descriptor, opened before, is that one's.
	now, err := startTime(strconv.Itoa(int(pid)))
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
		return nil
	case err != nil:
		return errForeign
	case now != start:
		// Used again, or the same seen from another time namespace: its lock
		// in the file tells.
		return errForeign
	case sl.Generation.Load() != gen:
		return nil
	case pid == me.pid:
		return fmt.Errorf("the guardian of this very process has died: %w; restart the process", ErrClosed)
	}
	switch err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err {
	case nil, unix.ESRCH:
		return nil
	default:
		return errForeign
	}
}

// Locks in the segment's file, one byte each: the kernel drops them when the
// last thread of the process has gone. They are only looked at where nothing
// quicker says that a process is gone.

// joinLock is held by who takes over a dead slot without having one.
const joinLock = 0

// slotLock is held by the tenant of a slot. Each tenant has another, so that
// nobody waits for the teardown of its predecessor.
func slotLock(slot uint32, generation uint64) int64 {
	return int64(slot) | int64(generation<<13>>1) // stays positive
}

func (s *Segment) fileLock(kind int16, at int64) error {
	lk := unix.Flock_t{Type: kind, Start: at, Len: 1}
	return unix.FcntlFlock(s.file.Fd(), unix.F_OFD_SETLK, &lk)
}

func (s *Segment) fileLockHeld(at int64) (bool, error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
	if err := unix.FcntlFlock(s.file.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false, fmt.Errorf("look at lock %d of %s: %w", at, s.dir, err)
	}
	return lk.Type != unix.F_UNLCK, nil
}

// lockSlot takes the lock of a slot's new tenant.
func (s *Segment) lockSlot(slot uint32, generation uint64) error {
	if s.InHeap() {
		return nil
	}
	if err := s.fileLock(unix.F_WRLCK, slotLock(slot, generation)); err != nil {
		return fmt.Errorf("lock slot %d: %w", slot, err)
	}
	return nil
}

func (s *Segment) slotLockHeld(slot uint32, generation uint64) (bool, error) {
	return s.fileLockHeld(slotLock(slot, generation))
}

// partLock is shared by those who use a part of the segment. No slot's tenant has
// generation 0.
func partLock(n int) int64 { return 1 + int64(n) }

// TryAlone makes the caller the only one that uses part n of the segment, 0 to 4,095;
// false: others use it. What a part is, is the upper layers' affair. The use ends with
// Unshare, when the segment is closed, or when the process ends, however it ends.
func (s *Segment) TryAlone(n int) (bool, error) { return s.tryPart(unix.F_WRLCK, n) }

// TryShare makes the caller one of those that use part n; false: somebody has it alone.
func (s *Segment) TryShare(n int) (bool, error) { return s.tryPart(unix.F_RDLCK, n) }

func (s *Segment) tryPart(kind int16, n int) (bool, error) {
	if s.InHeap() {
		return true, nil
	}
	switch err := s.fileLock(kind, partLock(n)); err {
	case nil:
		return true, nil
	case unix.EAGAIN, unix.EACCES:
		return false, nil
	default:
		return false, fmt.Errorf("shm: %s: lock part %d: %w", s.dir, n, err)
	}
}

// Unshare ends the use of part n.
func (s *Segment) Unshare(n int) {
	if !s.InHeap() {
		_ = s.fileLock(unix.F_UNLCK, partLock(n))
	}
}

// tryJoinLock takes the join lock if nobody has it: no other process, and no
// other goroutine of this one, which the kernel does not tell apart.
func (s *Segment) tryJoinLock() bool {
	if !s.joinMu.TryLock() {
		return false
	}
	if !s.InHeap() && s.fileLock(unix.F_WRLCK, joinLock) != nil {
		s.joinMu.Unlock()
		return false
	}
	return true
}

func (s *Segment) joinUnlock() {
	if !s.InHeap() {
		_ = s.fileLock(unix.F_UNLCK, joinLock)
	}
	s.joinMu.Unlock()
}
