package ltdb

import (
	"errors"

	"github.com/mainzdb/mainz/shm"
)

// What operations return, for errors.Is. Those of package shm come from
// attaching; a wait that its context ends returns the context's error. The texts stand
// in errors of package mainz and of the command line as well: they name no package, and
// no option of one of the three.
var (
	// ErrNotFound: there is no such record, or it is empty, which is the same.
	ErrNotFound = errors.New("no such record")
	// ErrLocked: somebody else holds the record's lock.
	ErrLocked = errors.New("record is locked")
	// ErrNotLocked: the lock was given back already.
	ErrNotLocked = errors.New("lock is not held any more; fetch the record locked again")
	// ErrMode: the database's mode does not allow it, or is another one.
	ErrMode = errors.New("not allowed in this database's mode")
	// ErrCondition: the condition is false; nothing was appended.
	ErrCondition = errors.New("condition is false")
	// ErrMalformed: the piece, or one that is in the record, is not what the condition's pieces are. No wait
	// would make the condition true.
	ErrMalformed = errors.New("malformed piece")
	// ErrNoCondition: this client has no condition function of that id.
	ErrNoCondition = errors.New("this program has no condition function of that number; register it when it attaches")
	// ErrTooBig: a length that is not allowed. A key must have 1 to 1,024 bytes, a value at
	// most Config.MaxValue, a database's name 1 to 64.
	ErrTooBig = errors.New("key, value or name is too long, or empty")
	// ErrFull: no memory is left for the record, even after the reclaim of what the dead left behind.
	// errors.Is(ErrFull, ErrNoSpace) holds.
	ErrFull = fullError{}
	// ErrNoHandles: all of the client's handles are reserved.
	ErrNoHandles = errors.New("all handles are taken; close one, or use the DB's own methods")
	// ErrTooManyLocks: the client holds or waits for its maximum of 1,008 locks. A few less may be it, as each
	// handle keeps up to 8 free ones to itself.
	ErrTooManyLocks = errors.New("client holds its maximum of 1,008 locks; unlock some first")
	// ErrTooManyDatabases: the segment has as many as it was made for (Config.Databases). It is an ErrNoSpace.
	ErrTooManyDatabases error = wrapError{"the node has its maximum of databases", shm.ErrNoSpace}
	// ErrNotHere: the record is at another node.
	ErrNotHere = errors.New("record is at another node")
	// ErrLeaseLost: this node left its cluster while the operation ran; it may or may not have happened.
	ErrLeaseLost = errors.New("node left the cluster; attach again")
	// ErrMisuse: the call itself is wrong, whatever the store holds: a nil context, batch or
	// function, or options that contradict each other.
	ErrMisuse = errors.New("wrong call")
	// ErrNoDatabase: DatabaseOptions.MustExist, and there is none of that name.
	ErrNoDatabase = errors.New("no such database")

	ErrNoSpace      = shm.ErrNoSpace
	ErrNoSlots      = shm.ErrNoSlots
	ErrNotRunning   = shm.ErrNotRunning
	ErrIncompatible = shm.ErrIncompatible
	ErrStale        = shm.ErrStale
	ErrCopied       = shm.ErrCopied
	ErrPermission   = shm.ErrPermission
	ErrCorrupt      = shm.ErrCorrupt
	ErrClosed       = shm.ErrClosed
	ErrInUse        = shm.ErrInUse
	ErrNotSupported = shm.ErrNotSupported
)

type fullError struct{}

func (fullError) Error() string {
	return "store is full; delete records, or make the node anew with a larger segment"
}
func (fullError) Is(target error) bool { return target == shm.ErrNoSpace }

// Errors of the hot path, built once.
var errBadKey error = wrapError{"key must have 1 to 1,024 bytes", ErrTooBig}
var errBadValue error = wrapError{"value is longer than this node takes; make it shorter, or make the node anew for longer ones", ErrTooBig}

var errNoPiece error = wrapError{"a piece must have at least one byte", ErrTooBig}
var errBadFind error = wrapError{"the condition's function Find names a place outside of the record", ErrNoCondition}

type wrapError struct {
	text string
	kind error
}

func (e wrapError) Error() string { return e.text }
func (e wrapError) Unwrap() error { return e.kind }

// endedError is an ErrLeaseLost of a segment whose life has ended: it is ErrClosed
// as well, and says why.
type endedError struct{ why error }

func (e endedError) Error() string        { return e.why.Error() }
func (e endedError) Unwrap() error        { return e.why }
func (e endedError) Is(target error) bool { return target == ErrLeaseLost }

// damage is an ErrCorrupt that says where.
func damage(text string) error {
	return wrapError{"segment is damaged: " + text + "; run the check, then create the segment anew", ErrCorrupt}
}

var (
	errBadBlock  = damage("an entry or free list names no block")
	errBadClass  = damage("a block's class is not its span's")
	errBadChain  = damage("a chain of buckets does not end")
	errBadGate   = damage("the word of its gate was overwritten, so nobody works with it any more")
	errBadHeader = damage("its header was overwritten, so nobody works with it any more")

	errBadPages = damage("an index of pieces does not end, or leads to what is no page of one")
	errOddBlock = damage("an entry's block is never finished")
	errBadLink  = damage("a free list does not end")
	errLockLost = damage("a record's lock was lost while it was held")
	errOrphan   = damage("a record is locked by nobody")
	errLatch    = damage("a latch is held by nobody")
	errBadSpare = damage("its first block, the spare, belongs to another class")

	errClosed    error = wrapError{"store or handle is closed; open it again", ErrClosed}
	errNoContext error = wrapError{"the context is nil; give the call context.Background() if it may wait for ever",
		ErrMisuse}
	errNoBatch  error = wrapError{"the Batch is nil; give a *Batch with its Keys", ErrMisuse}
	errReadOnly error = wrapError{"attached for reading only; attach as a client", ErrMode}
)
