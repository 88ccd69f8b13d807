package ltdb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// Holder is who holds a record's lock, as it stands in shared memory.
type Holder struct {
	Slot     uint32    // 0: nobody, by the time of the look
	Name     string    // that the client gave itself
	PID      uint32    // in its own PID namespace; 0: not known
	Attached time.Time // since when it has the slot: it holds the lock for less long
	Mainzd   bool      // the dispatcher holds it, for a client whose call goes through it
}

// LockError is the error of a call whose context has ended while it waited for a
// record's lock. It wraps the context's error.
type LockError struct {
	Database string
	Key      []byte
	Holder   Holder
	Err      error // of the context
}

func (e *LockError) Unwrap() error { return e.Err }

func (e *LockError) Error() string {
	key := e.Key
	dots := ""
	if len(key) > 64 {
		key, dots = key[:64], "…"
	}
	record := fmt.Sprintf("record %q%s of database %q", key, dots, e.Database)
	h := &e.Holder
	switch {
	case h.Slot == 0:
		return fmt.Sprintf("%s: its lock was not had in time; it is free now: %v", record, e.Err)
	case h.Mainzd:
		return fmt.Sprintf("%s: locked by mainzd, process %d: %v", record, h.PID, e.Err)
	}
	return fmt.Sprintf("%s: locked by process %d (%q in slot %d, attached since %s): %v", record, h.PID, h.Name,
		h.Slot, h.Attached.Format(time.RFC3339), e.Err)
}

// waitedFor says what a wait for a record's lock was for that ctx has ended; other
// errors are what they are. The look for the holder takes no lock: he may have gone
// on in the meantime.
func (db *DB) waitedFor(ctx context.Context, key []byte, hash uint64, err error) error {
	if err == nil || err != ctx.Err() {
		return err
	}
	return db.blocked(key, hash, err)
}

func (db *DB) blocked(key []byte, hash uint64, err error) error {
	if !db.s.isOpen() {
		return err // a closed gate has nothing to do with the record
	}
	e := &LockError{Database: db.Name(), Key: append([]byte(nil), key...), Err: err}
	var at spot
	if ok, _ := db.find(hash, key, &at); ok {
		e.Holder = db.s.holder(entryOwner(at.entry.Load()))
	}
	return e
}

// Blocked returns the error of a call whose context has ended while it waited for the
// record's lock by another way than this package: err, and who holds the lock.
func (db *DB) Blocked(key []byte, err error) error {
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) || db.s.enter() != nil {
		return err
	}
	defer db.s.exit()
	return db.blocked(key, db.hash(key), err)
}

// holder says who is in a slot. Each word is read once: what others wrote there is
// told, and believed by nobody.
func (s *Store) holder(slot uint32) Holder {
	sl := s.seg.Slot(slot)
	if slot == 0 || sl == nil {
		return Holder{}
	}
	h := Holder{Slot: slot, PID: sl.PID.Load(), Mainzd: slot == DispatcherSlot}
	if !h.Mainzd {
		h.Name = s.seg.SlotName(slot)
	}
	if at := int64(sl.Joined.Load()); at > 0 {
		h.Attached = time.Unix(0, at)
	}
	return h
}

func (s *Store) isOpen() bool {
	state, _ := s.seg.Gate().State()
	return state == shm.GateOpen
}
