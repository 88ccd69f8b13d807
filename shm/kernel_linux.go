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
		return fmt.Errorf("membarrier: %w (%w); it needs CONFIG_MEMBARRIER, and a seccomp profile that allows it",
			ErrNotSupported, e)
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

// ended reports whether the tenant of a slot that is marked dead has ended. The
// kernel's word decides wherever there is one:
//
//   - the process that has dialled as the slot's tenant lives, and somebody has a lock
//     of the slot: no. It has ended: yes;
//   - nobody has the slot's lock: yes. The kernel takes it when the last thread has
//     gone, or in an exec;
//   - the process for which the slot's lock was taken, as its length tells, has gone, or
//     all its threads are doomed: yes. It lives, or can't be seen from here: no.
//
// Only where somebody else has that lock, whose length tells nothing, the slot's words
// decide, which anybody can have written: it had not written down who it is, so that it
// can't have done anything, or the process that they name has ended.
func (c *Client) ended(slot uint32, sl *Slot) (bool, error) {
	if c.seg.hasTenant(slot) {
		return false, nil // it is in this very process
	}
	gen := sl.Generation.Load()
	if c.opts.Peer != nil {
		if fd, pid, ok := c.opts.Peer(slot, gen); ok {
			defer unix.Close(fd)
			if fateOfPeer(fd, pid, 0) == ended {
				return true, nil
			}
			held, err := c.seg.lockHeld(slotLock(slot, 0), slotLocks)
			return err == nil && !held, err
		}
	}
	said, err := c.seg.lockSays(slot, gen)
	if err != nil {
		return false, err
	}
	if said == saysLives && slot == DispatcherSlot && c.opts.Dispatcher {
		// Who has the owner lock has the kernel's word that no other dispatcher lives.
		said = saysNothing
	}
	switch said {
	case saysNobody, saysEnded:
		return true, nil
	case saysLives:
		return false, nil
	}
	pid, me := int(sl.PID.Load()), identify()
	return pid == 0 || me.place != 0 && sl.Place.Load() == me.place && fateOf(pid, sl.Start.Load()) == ended, nil
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

// Locks in the segment's file: the kernel drops them when the last thread of the
// process has gone. Any member can lock what nobody has locked, but nobody can change
// a lock that somebody else has.

// slotLock is where the lock of a slot's tenant begins. Each tenant has another
// place, up to the 64th after it, so that nobody waits for the teardown of its
// predecessor.
//
// How long it is tells for which process it was taken (lockFor), and is the proof when
// a client dials again (Stretch). There is room for that behind each place: so the
// kernel never makes one lock of those of two slots either.
func slotLock(slot uint32, generation uint64) int64 {
	return int64(slot)<<(lockRoomBits+lockGenerationBits) | int64(generation%(1<<lockGenerationBits))<<lockRoomBits
}

// lockWho is how many bytes beyond the first the lock of a process has: its PID, and
// some bits of the namespaces in which that means it. Never 0, which is the length of
// a lock that somebody takes who does not know of this.
func lockWho(pid uint32, place uint64) int64 {
	return int64(pid)&(1<<lockPIDBits-1) | int64(placeHash(place))<<lockPIDBits
}

func placeHash(place uint64) uint8 {
	h := place * 0x9e3779b97f4a7c15 >> 56
	return uint8(max(h, 1))
}

// says is what the kernel says by a slot's locks.
type says int

const (
	saysNobody  says = iota // has any
	saysEnded               // that of the tenant was taken for a process that runs no more
	saysLives               // one was taken for a process that lives, or can't be seen
	saysNothing             // that of the tenant is somebody's who does not say who he is
)

// lockSays looks at all locks of a slot: the word of its generation can be forged, and
// its tenant still has the lock of the right one.
func (s *Segment) lockSays(slot uint32, generation uint64) (says, error) {
	const room = 1 << lockRoomBits
	at, first := slotLock(slot, generation), slotLock(slot, 0)
	verdict, err := s.lockAt(at)
	if verdict == saysLives || err != nil {
		return verdict, err
	}
	for _, side := range [2][2]int64{{first, at}, {at + room, first + slotLocks}} {
		if side[0] == side[1] {
			continue
		}
		if held, err := s.lockHeld(side[0], side[1]-side[0]); err != nil {
			return 0, err
		} else if !held {
			continue
		}
		for place := side[0]; place < side[1]; place += room {
			if said, err := s.lockAt(place); said == saysLives || err != nil {
				return said, err
			}
		}
	}
	return verdict, nil
}

// lockAt is what the lock says that somebody has at a place, if it is as a tenant
// takes it.
func (s *Segment) lockAt(at int64) (says, error) {
	lk, err := s.lockIn(at, 1)
	who := (lk.Len - 1) & (1<<lockProofBit - 1)
	pid, hash := int(who&(1<<lockPIDBits-1)), uint8(who>>lockPIDBits)
	switch me := identify(); {
	case err != nil:
		return 0, err
	case lk.Type == unix.F_UNLCK:
		return saysNobody, nil
	case lk.Type != unix.F_WRLCK || lk.Start != at || lk.Len <= 1 || lk.Len > 1<<lockRoomBits || pid == 0 || hash == 0:
		return saysNothing, nil
	case me.place != 0 && hash == placeHash(me.place) && fateOf(pid, 0) == ended:
		return saysEnded, nil
	}
	return saysLives, nil
}

func (s *Segment) fileLock(kind int16, at, length int64) error {
	lk := unix.Flock_t{Type: kind, Start: at, Len: length}
	return unix.FcntlFlock(s.file.Fd(), unix.F_OFD_SETLK, &lk)
}

// lockIn returns a lock that somebody else has in a stretch of the file, of type
// F_UNLCK if there is none.
func (s *Segment) lockIn(at, length int64) (unix.Flock_t, error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: length}
	if err := unix.FcntlFlock(s.file.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return lk, fmt.Errorf("look at lock %d of %s: %w", at, s.dir, err)
	}
	return lk, nil
}

func (s *Segment) lockHeld(at, length int64) (bool, error) {
	lk, err := s.lockIn(at, length)
	return err == nil && lk.Type != unix.F_UNLCK, err
}

// lockSlot takes the lock of a slot's new tenant, and reports whether it did: somebody
// else may have it.
func (s *Segment) lockSlot(slot uint32, generation uint64) (bool, error) {
	id := identify()
	switch err := s.fileLock(unix.F_WRLCK, slotLock(slot, generation), 1+lockWho(id.pid, id.place)); err {
	case nil:
		return true, nil
	case unix.EAGAIN, unix.EACCES:
		return false, nil
	default:
		return false, fmt.Errorf("lock slot %d: %w", slot, err)
	}
}

// MaxStretch is by how much Stretch can make a lock longer.
const MaxStretch = 1<<(lockRoomBits-lockProofBit) - 1

// Stretch makes the lock of the client's slot longer by a number, 0 to MaxStretch; 0 is
// its usual length. Only who has the lock can, and the kernel tells everybody how long
// it is (Stretched): so the client proves by a number that somebody else chooses that
// it is the tenant. ErrPermission: somebody else has that place.
func (c *Client) Stretch(by uint32) error {
	id := identify()
	at, usual := slotLock(c.slot, c.generation), 1+lockWho(id.pid, id.place)
	if c.seg.InHeap() || by > MaxStretch {
		return ErrNotSupported
	}
	if err := c.seg.fileLock(unix.F_UNLCK, at+usual, 1<<lockRoomBits-usual); err != nil {
		return fmt.Errorf("shm: shorten the lock of slot %d: %w", c.slot, err)
	}
	if by == 0 {
		return nil
	}
	switch err := c.seg.fileLock(unix.F_WRLCK, at, usual+int64(by)<<lockProofBit); err {
	case nil:
		return nil
	case unix.EAGAIN, unix.EACCES:
		return fmt.Errorf("shm: the lock of slot %d is another process's: %w", c.slot, ErrPermission)
	default:
		return fmt.Errorf("shm: stretch the lock of slot %d: %w", c.slot, err)
	}
}

// Stretched reports whether the lock of a slot's tenant is longer by that number.
func (s *Segment) Stretched(slot uint32, generation uint64, by uint32) bool {
	if s.InHeap() {
		return false
	}
	at := slotLock(slot, generation)
	lk, err := s.lockIn(at, 1)
	return err == nil && lk.Type == unix.F_WRLCK && lk.Start == at && (lk.Len-1)>>lockProofBit == int64(by)
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
