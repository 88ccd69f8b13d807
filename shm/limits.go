package shm

import (
	"fmt"
	"math"
	"strings"
)

// Unlimited is a limit that is none, or one that is not known.
const Unlimited = math.MaxUint64

// Machine is what the machine grants to a process, as ReadMachine finds it.
type Machine struct {
	// Memory and Pids are the control groups of the process with that
	// controller, its own first, then those above it, as far as they can be
	// seen: above a container's root they can't.
	Memory []MemoryGroup
	Pids   []PidsGroup

	Available uint64 // bytes of memory that the machine can give without swapping
	Swap      uint64 // bytes of swap that are free

	AddressSpace     uint64 // RLIMIT_AS, bytes (ulimit -v is in KiB)
	AddressUsed      uint64 // bytes
	FileSize         uint64 // RLIMIT_FSIZE, bytes
	Files, FilesHard uint64 // RLIMIT_NOFILE, descriptors

	UID       uint32
	Systemd   bool // runs here
	RemoveIPC bool // logind removes a user's files in /dev/shm when he has logged out
}

// MemoryGroup is a control group that limits memory.
type MemoryGroup struct {
	Path  string // of its directory
	V1    bool
	Max   uint64 // bytes; beyond it the kernel kills
	High  uint64 // bytes; beyond it the kernel slows down (v2)
	Used  uint64 // bytes, without the cache of files, which the kernel takes back
	Swap  uint64 // bytes that it may still swap
	MaxAt string // the file that Max stands in
}

// PidsGroup is a control group that limits processes and threads.
type PidsGroup struct {
	Path      string
	Max, Used uint64
}

// Need is what a segment needs of the machine.
type Need struct {
	Dir   string
	Size  uint64 // bytes of the segment
	Slots uint32 // clients at a time
	// Create: its memory is yet to be had. Otherwise it is there, and only has to
	// be mapped.
	Create bool
	// Owner: the process serves the clients: a descriptor for each.
	Owner bool
	// Ram: its memory is the machine's and counts in control groups: tmpfs. A
	// disk's is cache, and hugetlbfs has a pool of its own.
	Ram bool
}

// LimitError says which limit forbids a segment. It is an ErrNoSpace.
type LimitError struct {
	Need, Have uint64 // bytes
	What       string // whose limit
	Fix        string
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("shm: %v: %s needed, %s allows %s; %s", ErrNoSpace, bytesText(e.Need), e.What,
		bytesText(e.Have), e.Fix)
}

// Is reports that this is an ErrNoSpace.
func (e *LimitError) Is(target error) bool { return target == ErrNoSpace }

// besides is what a process needs of a limit besides the segment: the Go runtime's
// own memory, and the tables that map the segment (8 bytes for each 4 KiB).
func besides(size uint64) uint64 { return 32<<20 + size>>9 }

// spareFiles is how many descriptors a process needs besides its clients'.
const spareFiles = 64

// spareThreads is how many threads mainzd may need.
const spareThreads = 16

// Check compares what a segment needs with what the machine grants, before any
// memory is touched: beyond a limit the kernel kills, or sends SIGBUS, and says
// nothing. The error is a *LimitError. The warnings are what works now and may not
// later.
func (m *Machine) Check(n Need) (warnings []string, err error) {
	if err := m.refuses(n); err != nil {
		return nil, err
	}
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }
	if n.Create && n.Ram {
		for _, g := range m.Memory {
			switch {
			case n.Size > left(g.Max, g.Used):
				warn("control group %s fits the segment of %s only by swapping: raise %s", g.Path, bytesText(n.Size),
					g.MaxAt)
			case n.Size > left(g.High, g.Used):
				warn("the segment of %s is beyond memory.high of control group %s, %s, of which %s are used: the kernel will slow everybody in it down; raise memory.high (systemd: MemoryHigh=)",
					bytesText(n.Size), g.Path, bytesText(g.High), bytesText(g.Used))
			}
		}
		if n.Size > m.Available {
			warn("the machine has %s of memory to give, and fits the segment of %s only by swapping: stop something, or choose a smaller segment", bytesText(m.Available), bytesText(n.Size))
		}
	}
	if n.Owner {
		if want := uint64(n.Slots) + spareFiles; want > m.Files {
			fix := fmt.Sprintf("ulimit -n %d, or LimitNOFILE=%d in the unit", want, want)
			if want > m.FilesHard {
				fix += ", as root: the hard limit is " + fmt.Sprint(m.FilesHard)
			}
			warn("%d slots need %d file descriptors, one for each client, and the limit is %d: raise it (%s), or make the segment with fewer slots", n.Slots, want, m.Files, fix)
		}
		for _, g := range m.Pids {
			if spareThreads > left(g.Max, g.Used) {
				warn("control group %s allows %d processes and threads, of which %d are used: mainzd needs up to %d; raise pids.max (systemd: TasksMax=; a container: --pids-limit)", g.Path, g.Max, g.Used, spareThreads)
			}
		}
	}
	if m.Systemd && m.RemoveIPC && m.UID >= systemUsers && underDevShm(n.Dir) {
		warn("systemd-logind deletes the files of user %d in /dev/shm when he logs out (RemoveIPC), and the segment with them: set RemoveIPC=no in /etc/systemd/logind.conf, or run mainzd as a system user (below %d), or use a tmpfs elsewhere", m.UID, systemUsers)
	}
	return warnings, nil
}

// systemUsers are below this number: logind lets their files be.
const systemUsers = 1000

// refuses is Check's error.
func (m *Machine) refuses(n Need) error {
	if room := left(m.AddressSpace, m.AddressUsed); n.Size > room {
		return &LimitError{n.Size, room, fmt.Sprintf("the address space of a process (ulimit -v %d)",
			m.AddressSpace>>10),
			fmt.Sprintf("ulimit -v %d or unlimited (systemd: LimitAS=infinity)",
				(m.AddressUsed+n.Size+besides(n.Size))>>10)}
	}
	if !n.Create {
		return nil
	}
	if n.Size > m.FileSize {
		return &LimitError{n.Size, m.FileSize, "the size of a file (ulimit -f)",
			"ulimit -f unlimited (systemd: LimitFSIZE=infinity)"}
	}
	if !n.Ram {
		return nil
	}
	need := n.Size + besides(n.Size)
	for _, g := range m.Memory {
		if room := plus(left(g.Max, g.Used), g.Swap); need > room {
			return &LimitError{need, room, "control group " + g.Path,
				fmt.Sprintf("raise %s to %d (systemd: MemoryMax=; a container: --memory), or choose a smaller segment", g.MaxAt, plus(g.Used, need))}
		}
	}
	if room := plus(m.Available, m.Swap); n.Size > room {
		return &LimitError{n.Size, room, "the machine's memory",
			"stop something, add memory, or choose a smaller segment"}
	}
	return nil
}

func underDevShm(dir string) bool { return strings.HasPrefix(dir, "/dev/shm/") }

// without is the machine when size bytes of memory have been given back by who may
// have been counted in these groups.
func (m *Machine) without(size uint64) *Machine {
	c := *m
	c.Available = plus(c.Available, size)
	c.Memory = append([]MemoryGroup(nil), m.Memory...)
	for i := range c.Memory {
		c.Memory[i].Used -= min(c.Memory[i].Used, size)
	}
	return &c
}

// left is what is left of a limit.
func left(limit, used uint64) uint64 {
	if limit == Unlimited {
		return Unlimited
	}
	return limit - min(limit, used)
}

// plus adds, and stays Unlimited.
func plus(a, b uint64) uint64 {
	if c := a + b; c >= a {
		return c
	}
	return Unlimited
}
