package protocol

// Record is what a store knows of one record that this node owns. Slices belong to
// the store and last until its next call.
type Record struct {
	RSN       uint64
	LAccessor PNN
	LACount   uint32
	Data      []byte
	Tags      []byte // rows of wire.Tag
	Cookie    uint64 // Publish: of the local client's operation that this is the effect of; 0: of none
}

// Empty: an empty record and an absent key are one thing.
func (r *Record) Empty() bool { return len(r.Data) == 0 }

// LockResult is the answer of Store.TryLock.
type LockResult uint8

const (
	Locked  LockResult = iota // the dispatcher holds it, until Unlock, UnlockTo or Remove
	Held                      // another does; Node.Released follows when it is handed over
	NoSpace                   // there is none, and no room for one
)

// Store is the node's own records: the segment in production, a map in the
// simulator. The core is its only caller besides the clients' bypass, which goes
// by the record locks. No call waits.
type Store interface {
	// Look reads the last committed value; false: this node owns no such record.
	Look(db uint32, key []byte, r *Record) bool
	// TryLock locks a record for the dispatcher; what is not there is made, empty
	// and owned; not owned before it is published, if it is an arriving one, and then a
	// restart forgets it. A record that the dispatcher holds already is Locked. Arriving
	// records may use the reserve, which other requests can't.
	TryLock(db uint32, key []byte, arriving bool) LockResult
	// Holder is who holds the lock: 0, a client's slot, or the Dispatcher.
	Holder(db uint32, key []byte) ClientID
	Unlock(db uint32, key []byte)
	// UnlockTo leaves the lock to a client's slot, which asked for it by the
	// operation of that cookie.
	UnlockTo(db uint32, key []byte, c ClientID, cookie uint64)
	// Publish sets a record that the dispatcher holds: Locked. Held: not now;
	// Node.Released follows. NoSpace: no room, for an arriving one not even in the
	// reserve.
	Publish(db uint32, key []byte, r *Record, arriving bool) LockResult
	// Remove: the record leaves the node. The dispatcher holds it.
	Remove(db uint32, key []byte)
	// Touch notes who asked last. Not an update.
	Touch(db uint32, key []byte, accessor PNN, count uint32)
	// Attend: commits to this record are to be told by Node.Released.
	Attend(db uint32, key []byte, on bool)
	// Room is how many bytes a record may have that moves here.
	Room() uint32

	// Scan calls f for records of a database from a cursor on, 0 at first, until it
	// returns false; it gives back where to go on, 0 at the end. A record that is there
	// throughout comes once.
	Scan(db uint32, cursor uint64, f func(key []byte, r *Record) bool) uint64

	// What a recovery needs; the gate is closed and the pass is over.

	// Each calls f for every record owned; f may ask for its Holder and Unlock it. This
	// walk and the next two go in parts: each call comes by about so many records, from a
	// cursor on, 0 at first, and gives back where to go on, 0 at the end. What is there
	// throughout is met once.
	Each(cursor uint64, records int, f func(db uint32, key []byte, rsn uint64, empty bool)) uint64
	// Sweep calls keep for every piece and takes out those it does not keep.
	Sweep(cursor uint64, records int, keep func(o OPID) bool) uint64
	// Provisional adds a piece to a record that re-supply makes, ordered by OPID.
	Provisional(db uint32, key []byte, o OPID, piece []byte, epoch Epoch) bool
	// DropProvisional drops the provisional records of epochs that never opened.
	DropProvisional(cursor uint64, records int) uint64
	// OpenProvisional makes all provisional records normal.
	OpenProvisional()
	// IsProvisional tells of one record.
	IsProvisional(db uint32, key []byte) bool
	// Life is the life of the segment, as Reset set it last.
	Life() uint64
	// Reset starts a new, empty segment; the clients of the old one attach anew.
	Reset(life uint64)
}
