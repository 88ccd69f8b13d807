package shm

import (
	"fmt"
	"os"
	"strconv"
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
	place, start uint64 // 0: not known, as /proc is missing
}

var identify = sync.OnceValue(func() identity {
	id := identity{pid: uint32(os.Getpid()), uid: uint32(os.Geteuid())}
	// In another PID namespace the PID means somebody else, in another time
	// namespace the start time does.
	var pids, times unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &pids) == nil && unix.Stat("/proc/self/ns/time", &times) == nil {
		if dir, err := tasks(os.Getpid()); err == nil {
			if t, err := readThread(dir, strconv.Itoa(os.Getpid())); err == nil {
				id.start, id.place = t.start, pids.Ino<<32|times.Ino
			}
			_ = unix.Close(dir)
		}
	}
	return id
})

// fence makes sure that the process that lived in a slot executes no further
// instruction of its program: the guardian's death alone does not say so, and
// anybody can write into a slot that it has died. Nobody is killed for it: it
// takes what the kernel says of that process.
//
// Threads that have a SIGKILL pending may run until they next enter the kernel;
// the barrier makes all of them enter it. It is a proof as no system call ever
// writes into the segment.
//
// errNotYet: nothing says that it runs no more. It does not wait.
func (c *Client) fence(slot uint32, sl *Slot) error {
	if c.seg.InHeap() {
		return nil
	}
	ended, err := c.ended(slot, sl)
	if err != nil {
		return err
	}
	if !ended {
		return errNotYet
	}
	_, _, e := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobalExpedited, 0, 0)
	if e != 0 {
		return fmt.Errorf("membarrier: %w", e)
	}
	return nil
}

// ended reports whether the tenant of a slot that is marked dead has ended. Each
// of these is enough:
//
//   - it had not written down who it is: it can't have done anything;
//   - nobody has the slot's lock: the kernel takes it when the last thread has
//     gone, or in an exec;
//   - the process that its words name has gone, or all its threads are doomed;
//   - the same holds for the process that has dialled as the slot's tenant.
//
// So a lock that somebody else takes keeps nothing of the dead one, nor do words
// that somebody else writes, unless he does both.
func (c *Client) ended(slot uint32, sl *Slot) (bool, error) {
	gen, pid := sl.Generation.Load(), int(sl.PID.Load())
	if c.seg.hasTenant(slot, gen) {
		return false, nil // it is in this very process
	}
	if pid == 0 {
		return true, nil
	}
	held, err := c.seg.slotLockHeld(slot, gen)
	if err != nil || !held {
		return err == nil, err
	}
	if me := identify(); me.place != 0 && sl.Place.Load() == me.place && fateOf(pid, sl.Start.Load()) == ended {
		return true, nil
	}
	if c.opts.Peer != nil {
		if fd, pid, ok := c.opts.Peer(slot, gen); ok {
			defer unix.Close(fd)
			return fateOfPeer(fd, pid, 0) == ended, nil
		}
	}
	return false, nil
}

// Unproven reports whether a slot is marked dead, and nothing says that its tenant's
// process runs no more: what it holds stays held then. It takes some tens of
// microseconds.
func (c *Client) Unproven(slot uint32) bool {
	sl := c.seg.Slot(slot)
	if sl == nil || c.seg.InHeap() || !c.seg.Dead(slot) {
		return false
	}
	ended, err := c.ended(slot, sl)
	return err == nil && !ended && c.seg.Dead(slot)
}

// LockPlace is where in the segment's file the lock of a slot's tenant begins, as
// /proc/PID/fdinfo shows it.
func (s *Segment) LockPlace(slot uint32) int64 {
	return slotLock(slot, s.Slot(slot).Generation.Load())
}

// Locks in the segment's file, one byte each: the kernel drops them when the
// last thread of the process has gone. They are only looked at where nothing
// quicker says that a process is gone.

// slotLock is held by the tenant of a slot. Each tenant has another, so that
// nobody waits for the teardown of its predecessor.
//
// It is one byte, and behind it there is room to stretch it: see Stretch. So the
// kernel never makes one lock of those of two slots either.
func slotLock(slot uint32, generation uint64) int64 {
	return int64(slot)<<stretchBits | int64(generation<<(13+stretchBits)>>1) // stays positive
}

func (s *Segment) fileLock(kind int16, at, length int64) error {
	lk := unix.Flock_t{Type: kind, Start: at, Len: length}
	return unix.FcntlFlock(s.file.Fd(), unix.F_OFD_SETLK, &lk)
}

func (s *Segment) fileLockHeld(at int64) (bool, error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
	if err := unix.FcntlFlock(s.file.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false, fmt.Errorf("look at lock %d of %s: %w", at, s.dir, err)
	}
	return lk.Type != unix.F_UNLCK, nil
}

// lockSlot takes the lock of a slot's new tenant. One that somebody else has is
// done without: it is only one of the things that tell whether the tenant lives.
func (s *Segment) lockSlot(slot uint32, generation uint64) error {
	if s.InHeap() {
		return nil
	}
	s.mu.Lock()
	if s.tenants == nil {
		s.tenants = make(map[uint32]uint64)
	}
	s.tenants[slot] = generation
	s.mu.Unlock()
	switch err := s.fileLock(unix.F_WRLCK, slotLock(slot, generation), 1); err {
	case nil, unix.EAGAIN, unix.EACCES:
		return nil
	default:
		s.dropTenant(slot)
		return fmt.Errorf("lock slot %d: %w", slot, err)
	}
}

// dropTenant ends the tenancy. The slot's lock stays until the slot is free or
// marked dead.
func (s *Segment) dropTenant(slot uint32) {
	s.mu.Lock()
	delete(s.tenants, slot)
	s.mu.Unlock()
}

// hasTenant reports whether the tenant of a slot is a client of this Segment,
// whose locks the kernel does not show to it.
func (s *Segment) hasTenant(slot uint32, generation uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.tenants[slot]
	return ok && g == generation
}

func (s *Segment) slotLockHeld(slot uint32, generation uint64) (bool, error) {
	return s.fileLockHeld(slotLock(slot, generation))
}

// maxStretch is the room for the lock of one slot.
const maxStretch = 1 << stretchBits

// MaxStretch is by how many bytes Stretch can make a lock longer.
const MaxStretch = maxStretch - 1

// Stretch makes the lock of the client's slot longer by so many bytes, 0 to
// MaxStretch; 0 is its usual length. Only who has the lock can, and the kernel tells
// everybody how long it is (Stretched): so the client proves by a number that somebody
// else chooses that it is the tenant. ErrPermission: somebody else has that place.
func (c *Client) Stretch(by uint32) error {
	at := slotLock(c.slot, c.generation)
	if c.seg.InHeap() || by > MaxStretch {
		return ErrNotSupported
	}
	if err := c.seg.fileLock(unix.F_UNLCK, at+1, MaxStretch); err != nil {
		return fmt.Errorf("shm: shorten the lock of slot %d: %w", c.slot, err)
	}
	if by == 0 {
		return nil
	}
	switch err := c.seg.fileLock(unix.F_WRLCK, at, 1+int64(by)); err {
	case nil:
		return nil
	case unix.EAGAIN, unix.EACCES:
		return fmt.Errorf("shm: the lock of slot %d is another process's: %w", c.slot, ErrPermission)
	default:
		return fmt.Errorf("shm: stretch the lock of slot %d: %w", c.slot, err)
	}
}

// Stretched reports whether the lock of a slot's tenant is longer by so many bytes.
func (s *Segment) Stretched(slot uint32, generation uint64, by uint32) bool {
	if s.InHeap() {
		return false
	}
	at := slotLock(slot, generation)
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
	err := unix.FcntlFlock(s.file.Fd(), unix.F_OFD_GETLK, &lk)
	return err == nil && lk.Type == unix.F_WRLCK && lk.Start == at && lk.Len == 1+int64(by)
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
	switch err := s.fileLock(kind, partLock(n), 1); err {
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
		_ = s.fileLock(unix.F_UNLCK, partLock(n), 1)
	}
}
