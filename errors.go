package mainz

import (
	"context"
	"errors"
	"fmt"

	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/protocol/wire"
)

// Errors, for errors.Is. Those of package ltdb are the same values there, so that
// nothing is translated on the way. What a context ends is the context's error,
// joined with ErrUnknown where the operation may have happened.
var (
	ErrNotFound     = ltdb.ErrNotFound
	ErrLocked       = ltdb.ErrLocked
	ErrNotLocked    = ltdb.ErrNotLocked
	ErrCondition    = ltdb.ErrCondition
	ErrMalformed    = ltdb.ErrMalformed
	ErrNoCondition  = ltdb.ErrNoCondition
	ErrMode         = ltdb.ErrMode
	ErrTooBig       = ltdb.ErrTooBig
	ErrNoSpace      = ltdb.ErrNoSpace
	ErrNoHandles    = ltdb.ErrNoHandles
	ErrNoSlots      = ltdb.ErrNoSlots
	ErrTooManyLocks = ltdb.ErrTooManyLocks
	ErrNoDatabase   = ltdb.ErrNoDatabase
	ErrLeaseLost    = ltdb.ErrLeaseLost
	ErrNotRunning   = ltdb.ErrNotRunning
	ErrIncompatible = ltdb.ErrIncompatible
	ErrPermission   = ltdb.ErrPermission
	ErrCorrupt      = ltdb.ErrCorrupt
	ErrClosed       = ltdb.ErrClosed
	ErrNotSupported = ltdb.ErrNotSupported
	ErrMisuse       = ltdb.ErrMisuse

	// ErrUnknown: nobody can say whether the operation has happened.
	ErrUnknown = call.ErrUnknown
)

// wrong is an ErrMisuse that says what is wrong.
type wrong string

func (e wrong) Error() string { return "mainz: " + string(e) }
func (e wrong) Unwrap() error { return ErrMisuse }

const (
	errNoContext = wrong("the context is nil; give the call context.Background() if it may wait for ever")
	errNoBatch   = wrong("the Batch is nil; give a *Batch with its Keys")
)

var errHandleClosed = fmt.Errorf("mainz: handle is closed; make another one: %w", ErrClosed)

// clientError is one of the above that says more than its text.
type clientError struct {
	text string
	kind error
}

func (e *clientError) Error() string { return e.text }
func (e *clientError) Unwrap() error { return e.kind }

var (
	errObserver error = &clientError{"an observer can't do this; attach without ReadOnly", ErrMode}
	errBadKey   error = &clientError{"key must have 1 to 1,024 bytes", ErrTooBig}
	errBadValue error = &clientError{"value is longer than this node takes; make it shorter, or make the node anew for longer ones", ErrTooBig}
	errNoPiece  error = &clientError{"nothing is to be appended: give at least one byte", ErrTooBig}
)

// attachFailed is an error of package attach with the kind that callers know.
type attachFailed struct{ err, kind error }

func (e *attachFailed) Error() string   { return "mainz: " + e.err.Error() }
func (e *attachFailed) Unwrap() []error { return []error{e.err, e.kind} }

// attachError gives an error of package attach the kind that callers know.
func attachError(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range []struct{ from, to error }{
		{attach.ErrNotRunning, ErrNotRunning},
		{attach.ErrPermission, ErrPermission},
		{attach.ErrIncompatible, ErrIncompatible},
		{attach.ErrProtocol, ErrIncompatible},
		{attach.ErrNotSupported, ErrNotSupported},
	} {
		if errors.Is(err, k.from) {
			return &attachFailed{err, k.to}
		}
	}
	return fmt.Errorf("mainz: %w", err)
}

// failed is the error for a status with which a call through the ring has
// ended; nil for OK.
func failed(ctx context.Context, st wire.Status) error {
	switch st {
	case wire.OK:
		return nil
	case wire.NotFound:
		return ErrNotFound
	case wire.Condition:
		return ErrCondition
	case wire.Malformed:
		return ErrMalformed
	case wire.NoCondition:
		return ErrNoCondition
	case wire.NotLocked:
		return ErrNotLocked
	case wire.Mode:
		return ErrMode
	case wire.TooBig:
		return ErrTooBig
	case wire.NoDB:
		return ErrNoDatabase
	case wire.NoMemory:
		return ltdb.ErrFull
	case wire.Unknown:
		return ErrUnknown
	case wire.Timeout: // the dispatcher's clock was a little faster than the context's
		if err := ctx.Err(); err != nil {
			return err
		}
		return context.DeadlineExceeded
	}
	return fmt.Errorf("mainz: the dispatcher says %v", st)
}
