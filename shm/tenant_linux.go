package shm

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What the kernel says of the process in a slot. The words of the slot name a
// process, but any member can write them. So they choose nobody to be killed:
// they only say at whom to look.

// fate is what the kernel says of a process.
type fate int

const (
	unknown fate = iota // not visible from here
	living
	ended // none of its threads runs an instruction of its program again
)

// thread is one thread, as /proc/PID/task/TID/stat has it.
type thread struct {
	state   byte
	flags   uint64
	threads int    // of its process
	start   uint64 // clock ticks since boot
	pending uint64 // signals for this thread alone
}

const (
	pfExiting = 4 // PF_EXITING: the thread is past its last instruction in user mode
	sigKill   = 1 << (unix.SIGKILL - 1)
)

// doomed reports whether the thread never returns to user mode. Who kills a
// process, exits or replaces it puts a SIGKILL into the set of each thread.
func (t *thread) doomed() bool {
	return t.state == 'Z' || t.state == 'X' || t.flags&pfExiting != 0 || t.pending&sigKill != 0
}

// stopped reports whether a signal or a tracer has stopped the thread.
func (t *thread) stopped() bool { return t.state == 'T' || t.state == 't' }

func parseThread(b []byte) (t thread, err error) {
	// The name, field 2, may contain anything. Behind it come a blank and field 3.
	at := bytes.LastIndexByte(b, ')') + 2
	if at < 2 || at >= len(b) {
		return t, fmt.Errorf("stat of a thread: %q", b)
	}
	t.state = b[at]
	field, v := 3, uint64(0)
	for _, c := range b[at:] {
		if c >= '0' && c <= '9' {
			v = v*10 + uint64(c-'0')
			continue
		}
		if c != ' ' {
			continue
		}
		switch field {
		case 9:
			t.flags = v
		case 20:
			t.threads = int(v)
		case 22:
			t.start = v
		case 31:
			t.pending = v
			return t, nil
		}
		field, v = field+1, 0
	}
	return t, fmt.Errorf("stat of a thread: %q", b)
}

// readThread reads what the kernel says of a thread, name is TID/stat in dir.
func readThread(dir int, tid string) (thread, error) {
	fd, err := unix.Openat(dir, tid+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return thread{}, err
	}
	defer unix.Close(fd)
	var b [1024]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return thread{}, err
	}
	return parseThread(b[:n])
}

// tasks opens the directory of a process's threads.
func tasks(pid int) (int, error) {
	return unix.Open("/proc/"+strconv.Itoa(pid)+"/task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// errMoving: threads came or went while the threads were looked at.
var errMoving = errors.New("threads come and go")

// eachThread calls f for every thread of the process whose directory of threads
// dir is, lead first, which its leader has just been read as. It ends when f says
// so. It is an error if it can't tell that these were all.
func eachThread(dir, pid int, lead thread, f func(*thread) bool) error {
	leader := strconv.Itoa(pid)
	if _, err := unix.Seek(dir, 0, 0); err != nil {
		return err
	}
	var names []string
	for buf := make([]byte, 4096); ; {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if _, _, names = unix.ParseDirent(buf[:n], -1, names); len(names) >= lead.threads {
			break // one that is missing yet makes the numbers differ below
		}
	}
	if !f(&lead) {
		return nil
	}
	for _, name := range names {
		if name == leader {
			continue
		}
		t, err := readThread(dir, name)
		if err != nil {
			return errMoving // an exec gives the leader's TID to another thread
		}
		if !f(&t) {
			return nil
		}
	}
	last, err := readThread(dir, leader)
	if err != nil {
		return errMoving
	}
	// A listing can miss a thread when another one ends under it.
	if lead.threads != len(names) || last.threads != len(names) {
		return errMoving
	}
	return nil
}

// looks is how often the threads are looked at anew when they come and go.
const looks = 32

// fateOf looks at the process that has, or had, the PID and the start time;
// start 0 means whoever has the PID.
func fateOf(pid int, start uint64) fate {
	fd, err := unix.PidfdOpen(pid, 0)
	switch err {
	case nil:
		defer unix.Close(fd)
		return fateOfPeer(fd, pid, start)
	case unix.ESRCH, unix.EINVAL: // EINVAL: the number of a thread by now, or garbage
		return ended
	}
	return unknown
}

// fateOfPeer looks at the process that a pidfd names; pid is its PID here.
//
// A process counts as ended when each of its threads is doomed, although the
// kernel may need long to tear its memory down. A process in the middle of an
// exec has a thread that is not: it lives.
func fateOfPeer(fd, pid int, start uint64) fate {
	if over(fd) {
		return ended
	}
	if pid <= 0 {
		return unknown
	}
	dir, err := tasks(pid)
	if err != nil {
		return gone(fd)
	}
	defer unix.Close(dir)
	if killed(dir, pid) {
		return ended // or it has gone, and somebody else has its PID
	}
	verdict := unknown
	for look, agreed := 0, 0; look < looks && agreed < 2; look++ {
		lead, err := readThread(dir, strconv.Itoa(pid))
		if err != nil {
			return gone(fd)
		}
		doomed := lead.doomed()
		if doomed {
			err = eachThread(dir, pid, lead, func(t *thread) bool { doomed = doomed && t.doomed(); return doomed })
		}
		switch {
		case over(fd): // else /proc may have shown somebody else
			return ended
		case start != 0 && lead.start != start:
			return ended // the PID was used again
		case err == nil && doomed:
			return ended
		case err == nil:
			// A thread has no SIGKILL pending any more for an instant before it
			// is marked as exiting: look again.
			verdict = living
			agreed++
		}
	}
	return verdict
}

// killed reports whether a SIGKILL for the whole process is pending, whose directory of
// threads dir is. The kernel has then put one into the set of each thread as well, under
// the same lock, an exec's own thread among them, and it stays until the last has gone.
// That is one look of 17 µs instead of one of 10 µs for each thread, and what most
// deaths come from that somebody waits for.
func killed(dir, pid int) bool {
	fd, err := unix.Openat(dir, strconv.Itoa(pid)+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var b [4096]byte // many groups fill it: then each thread is looked at
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return false
	}
	_, after, ok := bytes.Cut(b[:n], []byte("\nShdPnd:\t"))
	if !ok || len(after) < 16 {
		return false
	}
	set, err := strconv.ParseUint(string(after[:16]), 16, 64)
	return err == nil && set&sigKill != 0
}

// over reports whether all threads of a pidfd's process have gone.
func over(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents != 0
}

// gone tells a process that has gone from one that /proc hides.
func gone(fd int) fate {
	if over(fd) {
		return ended
	}
	return unknown
}

// named is a process that the kernel has named for a slot.
type named struct{ fd, pid int }

func (p named) close() { _ = unix.Close(p.fd) }

// errUnnamed: the kernel names nobody for a slot, as far as this process can see.
var errUnnamed = fmt.Errorf("the kernel does not tell which process it is: %w; run as root or as its user",
	ErrPermission)

// peer returns the process that the kernel names for the tenant of a slot: who
// has dialled as such, else who maps the segment and has the slot's lock open.
// The words of the slot only say at whom to look.
func (c *Client) peer(slot uint32, generation uint64) (named, error) {
	if c.opts.Peer != nil {
		if fd, pid, ok := c.opts.Peer(slot, generation); ok {
			return named{fd, pid}, nil
		}
	}
	sl := c.seg.Slot(slot)
	if c.seg.InHeap() || sl == nil {
		return named{}, errUnnamed
	}
	pid, me := int(sl.PID.Load()), identify()
	if pid <= 0 || me.place == 0 || sl.Place.Load() != me.place {
		return named{}, errUnnamed
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return named{}, errUnnamed
	}
	if !c.seg.holds(pid, slotLock(slot, generation)) || over(fd) {
		_ = unix.Close(fd)
		return named{}, errUnnamed
	}
	return named{fd, pid}, nil
}

// holds reports whether the kernel says of a process that it has mapped the
// segment and that a lock that begins at byte at is one of its open files'. Mapped: a
// file alone can be sent to anybody who takes files from strangers.
func (s *Segment) holds(pid int, at int64) bool {
	var st unix.Stat_t
	if unix.Fstat(int(s.file.Fd()), &st) != nil {
		return false
	}
	proc := "/proc/" + strconv.Itoa(pid)
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	byteAt := strconv.FormatInt(at, 10)
	// lock:   1: OFDLCK ADVISORY  WRITE -1 00:1a:23 4097 4097
	locked := func(f []string) bool {
		return len(f) == 9 && f[0] == "lock:" && f[2] == "OFDLCK" && f[4] == "WRITE" && f[6] == inode && f[7] == byteAt
	}
	dev := fmt.Sprintf("%02x:%02x", unix.Major(st.Dev), unix.Minor(st.Dev))
	ino := strconv.FormatUint(st.Ino, 10)
	// 7f…-7f… rw-s 00000000 00:1a 23   /dev/shm/…
	mapped := func(f []string) bool {
		return len(f) >= 5 && f[1] == "rw-s" && f[3] == dev && f[4] == ino
	}
	files, err := os.ReadDir(proc + "/fdinfo")
	if err != nil {
		return false
	}
	for _, f := range files {
		if lineIn(filepath.Join(proc, "fdinfo", f.Name()), locked) {
			return lineIn(proc+"/maps", mapped)
		}
	}
	return false
}

// lineIn reports whether a line of the file, cut into fields, is as wanted.
func lineIn(path string, wanted func([]string) bool) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if wanted(strings.Fields(sc.Text())) {
			return true
		}
	}
	return false
}

// Stopped reports whether the process in a slot is stopped: by a signal, by a
// tracer, or by its control group's freezer, as the kernel says. A process that
// waits for a CPU, a disk or a lock is not. It takes some tens of microseconds
// and a few system calls for each thread.
//
// Where the kernel does not tell whose slot it is, the slot's own words do;
// Evict does not believe these.
func (c *Client) Stopped(slot uint32) bool {
	sl := c.seg.Slot(slot)
	if sl == nil || c.seg.InHeap() {
		return false
	}
	pid := 0
	if p, err := c.peer(slot, sl.Generation.Load()); err == nil {
		defer p.close()
		pid = p.pid
	} else if me := identify(); me.place != 0 && sl.Place.Load() == me.place {
		pid = int(sl.PID.Load())
	}
	return pid > 0 && (stoppedProcess(pid) || frozenProcess(pid))
}

// stoppedProcess reports whether all threads that are not about to end are stopped.
func stoppedProcess(pid int) bool {
	dir, err := tasks(pid)
	if err != nil {
		return false
	}
	defer unix.Close(dir)
	for range looks {
		lead, err := readThread(dir, strconv.Itoa(pid))
		if err != nil {
			return false
		}
		running, stopped := false, false
		err = eachThread(dir, pid, lead, func(t *thread) bool {
			running = !t.doomed() && !t.stopped()
			stopped = stopped || t.stopped() && !t.doomed()
			return !running
		})
		if err != errMoving {
			return err == nil && stopped && !running
		}
	}
	return false
}

// frozenProcess reports whether the process's control group is frozen, or one
// above it.
func frozenProcess(pid int) bool {
	groups, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(groups)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		v2 := f[0] == "0" && f[1] == ""
		if !v2 && f[1] != "freezer" {
			continue
		}
		file, want := "freezer.state", "FROZEN"
		if v2 {
			file, want = "cgroup.events", "frozen 1"
		}
		if dir := cgroupDir(v2, f[2]); dir != "" &&
			lineIn(filepath.Join(dir, file), func(got []string) bool { return strings.Join(got, " ") == want }) {
			return true
		}
	}
	return false
}

// cgroupDir is where a control group can be looked at, "" if nowhere.
func cgroupDir(v2 bool, group string) (dir string) {
	// 36 35 0:30 /root /sys/fs/cgroup/freezer rw,… shared:9 - cgroup cgroup rw,freezer
	lineIn("/proc/self/mountinfo", func(f []string) bool {
		for i := 6; i+3 < len(f); i++ {
			if f[i] != "-" {
				continue
			}
			fits := v2 && f[i+1] == "cgroup2" ||
				!v2 && f[i+1] == "cgroup" && strings.Contains(","+f[i+3]+",", ",freezer,")
			under, ok := strings.CutPrefix(group, strings.TrimSuffix(f[3], "/"))
			if fits && ok && (under == "" || under[0] == '/') {
				dir = filepath.Join(f[4], under)
			}
			break
		}
		return dir != ""
	})
	return dir
}

// Evict kills the process in a slot if it is stopped (Stopped), so that others
// can recover what it holds. It reports whether that process will run no more:
// false without an error means that it is not stopped, or that the slot has
// another tenant than that of the generation. The caller recovers the slot
// (Recover) as after any death; it need not wait for the process to end.
//
// Nobody is killed but whom the kernel names for the slot: who has dialled as
// its tenant (JoinOptions.Peer), or who has the segment mapped and the slot's
// lock open. ErrPermission: the kernel names nobody, or this process may not
// kill him. Nothing is changed then, and others wait until he runs again.
func (c *Client) Evict(slot uint32, generation uint64) (bool, error) {
	sl := c.seg.Slot(slot)
	if sl == nil || c.seg.InHeap() {
		return false, nil
	}
	live := sl.Live.Load()
	if sl.Generation.Load() != generation || live == 0 {
		return false, nil
	}
	p, err := c.peer(slot, generation)
	if err != nil {
		return false, fmt.Errorf("shm: evict the client in slot %d: %w", slot, err)
	}
	defer p.close()
	if !over(p.fd) {
		if p.pid <= 0 || p.pid == os.Getpid() || !stoppedProcess(p.pid) && !frozenProcess(p.pid) {
			return false, nil
		}
		switch err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); err {
		case nil, unix.ESRCH:
		case unix.EPERM:
			return false, fmt.Errorf("shm: evict the client in slot %d: process %d is another user's: %w; run as root or as its user", slot, p.pid, ErrPermission)
		default:
			return false, fmt.Errorf("shm: evict the client in slot %d: %w", slot, err)
		}
	}
	// The kernel marks the slot when the process gets to its end, which a
	// freezer of the old kind puts off until it is thawed.
	if live&liveDied == 0 && fateOfPeer(p.fd, p.pid, 0) == ended && sl.Generation.Load() == generation &&
		sl.Live.CAS(live, liveWaiters|liveDied) {
		sl.Live.Wake(All)
	}
	return true, nil
}

// tend puts right what somebody has written into the client's slot, or in its name:
// else its death could go unnoticed, or others wait for a recovery that it does not
// make. The guardian's thread calls it from time to time; mark is what belongs into
// the liveness word.
func (c *Client) tend(mark uint32) {
	m := c.me
	if !c.locked {
		c.locked, _ = c.seg.lockSlot(c.slot, c.generation)
	}
	if v := m.Live.Load(); v != mark {
		// Seen twice: somebody who has just taken the slot, because it was said to
		// be free, would have another generation by now.
		if v == c.strange && m.Generation.Load() == c.generation {
			m.Live.CAS(v, mark)
		}
		c.strange = v
		return
	}
	c.strange = mark
	id := identify()
	m.Generation.Store(c.generation)
	m.Place.Store(id.place)
	m.Start.Store(id.start)
	if m.PID.Load() != 0 { // 0: it leaves
		m.PID.Store(id.pid)
	}
	// With mu held nobody here begins a recovery.
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seg.eachSlot(func(i uint32, sl *Slot) {
		if sl.Claim.Load() == c.slot && !slices.Contains(c.busy, i) && sl.Claim.CAS(c.slot, 0) {
			sl.Claim.Wake(All)
		}
	})
}

// lookAgain is for how many milliseconds a look at a tenant serves all others. A look
// takes some 100 µs, and each of two hundred waiters ends fifty time slices a second.
const lookAgain = 1000

// FindLost looks at one slot, at another one each time. It marks it dead if its
// tenant's process has gone although the liveness word, which somebody has
// overwritten, says that it lives. It takes some 100 µs, and nothing if somebody
// has looked at that slot within the last second.
func (c *Client) FindLost() {
	if c.seg.InHeap() {
		return
	}
	i := c.nextLost.Add(1)%c.seg.Slots() + 1
	sl, me := c.seg.Slot(i), identify()
	// The difference wraps: a stamp from the future counts as old.
	now, looked := uint32(monotonic()/1e6), sl.Looked.Load()
	if now-looked < lookAgain || !sl.Looked.CAS(looked, now) {
		return
	}
	live, pid := sl.Live.Load(), sl.PID.Load()
	// A claim: who takes a dead slot over may not have written down who it is.
	if i == c.slot || live == 0 || live&liveDied != 0 || sl.Claim.Load() != 0 || pid == 0 ||
		me.place == 0 || sl.Place.Load() != me.place || fateOf(int(pid), sl.Start.Load()) != ended {
		return
	}
	if gone, err := c.ended(i, sl); !gone || err != nil {
		return // its words may be forged
	}
	if sl.Claim.Load() == 0 && sl.PID.Load() == pid && sl.Live.CAS(live, liveWaiters|liveDied) {
		sl.Live.Wake(All)
	}
}
