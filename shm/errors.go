package shm

import (
	"errors"
	"fmt"
)

// ErrLater is what a JoinOptions.Repair returns that has done what it could, and
// needs for the rest what somebody alive holds: the slot stays dead, and is to be
// repaired again.
var ErrLater = errors.New("shm: the repair can't be finished yet")

// The reasons for which a segment can't be used. Match them with errors.Is;
// the errors returned wrap them and say what to do next.
var (
	// ErrNotRunning: there is no segment, or it was closed for good.
	ErrNotRunning = errors.New("no segment")
	// ErrIncompatible: the segment has another version or layout.
	ErrIncompatible = errors.New("incompatible segment")
	// ErrStale: the segment is from an earlier boot of the kernel.
	ErrStale = errors.New("segment of another boot")
	// ErrCopied: the file is a copy of a segment, with the locks of the
	// original's clients in it.
	ErrCopied = errors.New("copied segment")
	// ErrPermission: a file or directory may not be used, or is not safe to use.
	ErrPermission = errors.New("no permission")
	// ErrNoSpace: the file system can't hold the segment.
	ErrNoSpace = errors.New("no space")
	// ErrNoSlots: every client slot is taken by a living process.
	ErrNoSlots = errors.New("no free client slot")
	// ErrCorrupt: the segment holds what no correct program writes.
	ErrCorrupt = errors.New("corrupt segment")
	// ErrClosed: the segment or client was closed, or the segment replaced.
	ErrClosed = errors.New("closed")
	// ErrInUse: another process owns the directory.
	ErrInUse = errors.New("in use")
	// ErrNotSupported: this system lacks what shared memory needs. It is an
	// errors.ErrUnsupported.
	ErrNotSupported = fmt.Errorf("not supported here (%w)", errors.ErrUnsupported)
)

// Prebuilt for the waiting paths, which do not allocate.
var (
	errReplaced  = fmt.Errorf("shm: the segment was closed or replaced by its owner: %w; attach again", ErrClosed)
	errLeft      = fmt.Errorf("shm: the client has left its segment: %w; join again", ErrClosed)
	errBadOwner  = fmt.Errorf("shm: a lock word names an owner that can't exist: %w; run a check, then create the segment anew", ErrCorrupt)
	errBadClaims = fmt.Errorf("shm: recovery claims form a circle: %w; run a check, then create the segment anew",
		ErrCorrupt)
)

// IncompatibleError says how the two sides differ.
type IncompatibleError struct {
	Path         string
	What         string // "ABI version", "layout", "features"
	Theirs, Ours string
	Creator      string // who created the segment, as the header tells
	Fix          string
}

func (e *IncompatibleError) Error() string {
	return fmt.Sprintf("shm: %s: %v: %s is %s (created by %s), this program has %s; %s",
		e.Path, ErrIncompatible, e.What, e.Theirs, e.Creator, e.Ours, e.Fix)
}

// Is reports that this is an ErrIncompatible.
func (e *IncompatibleError) Is(target error) bool { return target == ErrIncompatible }

// NoSpaceError says what is missing and where.
type NoSpaceError struct {
	Need, Have uint64 // bytes
	Mount      string // the file system's mount point
	Fix        string
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("shm: %v: %s needed, %s free on %s; %s", ErrNoSpace, bytesText(e.Need), bytesText(e.Have),
		e.Mount, e.Fix)
}

// Is reports that this is an ErrNoSpace.
func (e *NoSpaceError) Is(target error) bool { return target == ErrNoSpace }

// NoSlotsError says who holds the slots.
type NoSlotsError struct {
	Slots, Live, Dead int
}

func (e *NoSlotsError) Error() string {
	return fmt.Sprintf("shm: %v: %d slots, %d live clients, %d dead ones that can't be recovered yet; end some clients, or create the segment with more slots",
		ErrNoSlots, e.Slots, e.Live, e.Dead)
}

// Is reports that this is an ErrNoSlots.
func (e *NoSlotsError) Is(target error) bool { return target == ErrNoSlots }

// InUseError says who owns the directory, as far as the lock file tells.
type InUseError struct {
	Path string
	PID  int    // in the owner's PID namespace; 0: not known
	Name string // of the owner's program
}

func (e *InUseError) Error() string {
	who := "another process"
	if e.PID != 0 {
		who = fmt.Sprintf("process %d (%s)", e.PID, e.Name)
	}
	return fmt.Sprintf("shm: %s: %v: owned by %s; stop it first, or attach to its segment", e.Path, ErrInUse, who)
}

// Is reports that this is an ErrInUse.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

func bytesText(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d bytes", n)
}
