package protocol

import "github.com/mainzdb/mainz/protocol/wire"

// Stable is what a restarted dispatcher finds again: words and tables of bounded size,
// with room for everything taken before it is needed. The core alone writes it, but for
// the pieces that clients append by bypass, and never asks it for what it wrote itself,
// except for the contents of carried copies: after New it writes only.
//
// Every method is one step in the order of the core's stores. A dispatcher may die
// before or behind any of them: then it has happened as a whole or not at all. So the
// core writes what it is about to do first, then does it in the Store, then writes that
// it is done:
//
//	change for a local client   SetPending intent · Publish or UnlockTo · SetPending done · Unlock
//	change for another node     PutDone intent · Publish · SetDone · EraseLock, if it was the lock's · Unlock
//	remote lock                 TryLock · PutLock; EraseLock · Unlock
//	record passed on            TryLock · PutCarried · Remove · SetCarried · EraseDone of what went along
//	record arrives              PutDone of what came along · TryLock, Publish · Unlock · SetPending: its REQID is over
//	copy becomes the record     the same, then EraseCarried
//	piece                       PutPiece prepared · PutPending · …; SetPiece live · the reply · ErasePending
//	new map                     TakeMap; or NewLife, then Store.Reset
//
// New decides what was under way by the record, which the dead dispatcher has locked
// until the change was noted as done: nobody else can have changed it since.
//
// Keys and values are copied. The at of a line names it until it is erased.
type Stable interface {
	// Load gives out all single words.
	Load() Words
	// Promise notes the highest ballot promised.
	Promise(ballot Epoch)
	// TakeMap notes a map, whose ballot is promised and taken. The node keeps its data.
	TakeMap(ballot Epoch, members []wire.Member, high VNN)
	// NewLife notes a map in which this node begins anew: all tables are empty then, and
	// the counters of OPIDs 0. One step, together with all else of the old life.
	NewLife(ballot Epoch, members []wire.Member, high VNN, life uint64)
	// Opened notes that the epoch taken last has opened here.
	Open(e Epoch)
	// Tell notes what the clients know: the members of an epoch, and the node's life in it.
	Tell(members wire.Set, life uint64)
	// SetFile notes the nodes file.
	SetFile(f NodesFile)

	// Databases are those known. AddDatabase adds one; false: there is no room.
	Databases() []DB
	AddDatabase(d *DB) bool

	// PutPending fills line at, which is free, and counts its OPID; false: there is no
	// such line.
	PutPending(at int, l *PendingLine) bool
	// SetPending overwrites what changes of a line, and counts its REQID.
	SetPending(at int, s *PendingState)
	ErasePending(at int)
	// PendingLines tells of all lines in their order. What f is given lasts until it returns.
	PendingLines(f func(at int, l *PendingLine))

	// PutDone takes a line; -1: all are taken.
	PutDone(l *DoneLine) int
	// SetDone: the operation of an intent has run.
	SetDone(at int)
	EraseDone(at int)
	DoneLines(f func(at int, l *DoneLine))

	// PutLock takes a line; -1: all are taken. SetLock notes another REQID.
	PutLock(l *LockLine) int
	SetLock(at int, reqid ReqID)
	EraseLock(at int)
	LockLines(f func(at int, l *LockLine))

	// PutCarried takes a line; -1: all are taken.
	PutCarried(l *CarriedLine) int
	// SetCarried: the record has left, and the copy stands for it.
	SetCarried(at int)
	// Carried gives the contents out. They last until the line changes.
	Carried(at int) *CarriedLine
	// TrimCarried replaces what is in a copy by some of it.
	TrimCarried(at int, data, tags, dones []byte)
	EraseCarried(at int)
	CarriedLines(f func(at int, l *CarriedLine))

	// PutPiece notes a piece that is prepared; false: there is no room.
	PutPiece(o OPID, c ClientID, db uint32, key, data []byte) bool
	// Piece finds one; nil: it is not there. It lasts until the next call.
	Piece(o OPID) *Piece
	SetPiece(o OPID, s PieceState)
	ErasePiece(o OPID)
	// EachPiece tells of all pieces in the order they were made. f may erase and put.
	EachPiece(f func(p *Piece))
	// SomePieces tells of about so many pieces from a cursor on, 0 at first, and gives back
	// where to go on, 0 at the end. Those that are there throughout are met.
	SomePieces(cursor, pieces int, f func(p *Piece)) int
}

// Words are the single words of a Stable.
type Words struct {
	Memory   uint32 // wire.MemoryFresh, MemoryWiped, MemoryFull
	Promised Epoch
	Taken    Epoch
	Opened   Epoch
	Map      Map
	Life     uint64
	HighVNN  VNN
	OPIDs    uint64   // the counter of the OPID drawn last
	ReqIDs   ReqID    // the REQID drawn last
	Told     wire.Set // members of the epoch that opened here last
	ToldLife uint64
	File     NodesFile
}

// NodesFile is the nodes file that a node goes by.
type NodesFile struct {
	Version uint32
	Set     wire.Set // its nodes
	InUse   bool     // an epoch has opened here under it
	Old     wire.Set // until then: the nodes of the last file that may be in use; 0: none is known
	Since   Epoch    // ballots up to this one were promised under other files
}

// Stage is how far an operation has come that is noted before it runs.
type Stage uint8

const (
	StageOpen       Stage = iota // it has not run here
	StageIntent                  // about to change the record: its RSN is RSN then
	StageIntentLock              // about to leave the record's lock to the client
	StageDone                    // it has ended, with Status
)

// PendingLine is an operation of a local client, or of the dispatcher.
type PendingLine struct {
	PendingState
	Cookie uint64
	OPID   OPID
	M      Message // operation, database, key, data, conditions, piece, lock; nothing of a sending
}

// PendingState is what changes of it.
type PendingState struct {
	Client    ClientID // 0: the dispatcher
	Stage     Stage
	Abandoned bool
	Gone      bool // its client is dead, and will not ask again
	Undo      bool // the dispatcher's own: takes back what an abandoned one did
	Removes   bool // a piece of the journal
	Status    wire.Status
	ReqID     ReqID  // outstanding, 0: none
	Room      uint32 // promised to what may come for it
	RSN       uint64
	LockID    ReqID
	Why       uint32
}

// DoneLine is an operation of another node that has run here, or is about to.
type DoneLine struct {
	wire.Done
	Intent bool
	RSN    uint64 // of the record, when it has run; Intent only
	Lock   ReqID  // of the remote lock that ends with it
	DB     uint32
	Key    []byte
}

// LockLine is a record lock held for a client of another node.
type LockLine struct {
	OPID     OPID
	ReqID    ReqID
	Deadline Instant // by the clock of the dispatcher that wrote it
	DB       uint32
	Key      []byte
}

// CarriedLine is a copy of a record that was passed on, or is about to be.
type CarriedLine struct {
	Preparing bool
	Through   bool
	Bound     PNN
	ReqID     ReqID
	RSN       uint64
	LAccessor PNN
	LACount   uint32
	DB        uint32
	Key       []byte
	Data      []byte
	Tags      []byte // rows of wire.Tag
	Dones     []byte // rows of wire.Done
}

// PieceState of a journal entry.
type PieceState uint8

const (
	PiecePrepared PieceState = iota + 1
	PieceLive
	PieceRemoving
)

// Piece is a journal entry: what a client of this node has appended, or is about to.
type Piece struct {
	OPID   OPID
	Client ClientID
	DB     uint32
	Key    []byte
	Data   []byte
	State  PieceState
}

// bypassOPID marks the counters of OPIDs that clients draw for themselves.
const bypassOPID = 1 << 63
