package shm

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// lookEvery is how often a client's guardian, and an observer's timer, look
// whether the segment's file is still the one in the directory: twice in the
// second within which the end of a segment has to reach everybody. Mostly they need
// not: the dispatcher's guardian is told by the kernel when the file loses its name,
// and a client's when its connection to the dispatcher ends (Alarm).
const lookEvery = 500 * time.Millisecond

// fileID names a file.
type fileID struct{ device, inode, birth uint64 }

// ending is how a segment's use here ends.
type ending struct {
	reason atomic.Pointer[error] // nil as long as it goes on
	done   chan struct{}         // closed when reason is set
}

func newEnding() ending { return ending{done: make(chan struct{})} }

// Why a segment is of no use any more.
var (
	errDeleted = fmt.Errorf("shm: the segment's file was deleted: %w; start mainzd, and attach again", ErrClosed)
	errDamaged = fmt.Errorf("shm: the dispatcher has found the segment damaged and closed it: %w: %w; its log says where; start mainzd, and attach again", ErrCorrupt, ErrClosed)
	errGivenUp = fmt.Errorf("shm: the dispatcher has given the segment up, as a client is stopped in the middle of a call and can't be ended: %w; its log says which process: end that, start mainzd, and attach again", ErrClosed)
	errCut     = fmt.Errorf("shm: the segment file was truncated: %w: %w; find out who did it, then start mainzd, which makes a new one with --wipe", ErrCorrupt, ErrClosed)
	errOther   = fmt.Errorf("shm: the segment's file was replaced by another one: %w; attach again", ErrClosed)
)

// Ended returns why the segment is of no use here any more, nil if nobody has
// seen a reason. It wraps ErrClosed.
func (s *Segment) Ended() error {
	if p := s.ending.reason.Load(); p != nil {
		return *p
	}
	return nil
}

// Done is closed when Ended has a reason.
func (s *Segment) Done() <-chan struct{} { return s.ending.done }

// Why is the reason for a dead gate, never nil: for who has met one. It makes
// system calls.
func (s *Segment) Why() error {
	if err := s.Look(); err != nil {
		return err
	}
	return errReplaced
}

// Look looks now whether the segment is still the one in its directory, and
// returns Ended. Guardians and observers' timers do so by themselves.
//
// A file without a link is nobody's segment: Look closes the gate for good, for
// all. Another file in its place is no proof of that, as mount namespaces differ:
// it ends the use in this process alone.
func (s *Segment) Look() error {
	if err := s.Ended(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.Ended(); err != nil || s.closed.Load() {
		return err // closed here: the gate is dead whatever the file is
	}
	reason, all := s.looked()
	if reason == errCut {
		// An access to a page that is gone would be a SIGBUS. Private zero pages
		// take the place of all: a dead gate among them.
		if s.r.done != nil {
			_ = s.r.done()
		}
		s.ending.reason.Store(&reason)
		close(s.ending.done)
		return reason
	}
	state, _ := s.Gate().State()
	switch {
	case state == GateDead:
		if reason == nil {
			reason = died(s.Gate().Gate.Load())
		}
	case reason == nil:
		return nil
	case all && !s.ro:
		s.bury()
	default:
		s.buryHere()
	}
	s.ending.reason.Store(&reason)
	close(s.ending.done)
	return reason
}

// died says why the gate is dead, as its word tells.
func died(word uint64) error {
	switch word {
	case gateDamaged:
		return errDamaged
	case gateGivenUp:
		return errGivenUp
	}
	return errReplaced
}

// End closes the gate for good, for all, as the caller has found the segment
// damaged (an ErrCorrupt), or a client stopped that keeps the others and can't be
// ended. It returns why the segment has ended, which may be an earlier reason.
func (s *Segment) End(why error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.Ended(); err != nil {
		return err
	}
	word := uint64(gateGivenUp)
	if errors.Is(why, ErrCorrupt) {
		word = gateDamaged
	}
	s.buryAs(word)
	reason := fmt.Errorf("%w (%w)", why, ErrClosed)
	s.ending.reason.Store(&reason)
	close(s.ending.done)
	return reason
}

// bury closes the segment for good, for all, and wakes who waits in it: they all
// watch some client's liveness word, or look at the gate within a time slice.
func (s *Segment) bury() { s.buryAs(GateDead) }

func (s *Segment) buryAs(word uint64) {
	g := &s.Gate().Gate
	g.Swap(word)
	g.Lo().Wake(All)
	g.Hi().Wake(All)
	s.eachSlot(func(_ uint32, sl *Slot) {
		sl.Live.Wake(All)
		sl.Claim.Wake(All)
	})
}
