package ltdb

import (
	"math/bits"

	"github.com/mainzdb/mainz/shm"
)

// What the Keeper hears of records: that one was handed to it, that one that it attends
// has changed, that one may be had by now. The book of all that is in watches.go.

// Attend asks to be told of commits to a record; with on false it no longer asks. Call
// it when a condition fails. If the record has changed since this turn's first look at
// it, Rung tells of it at its next call.
func (k *Keeper) Attend(id uint32, key []byte, on bool) {
	db := k.db(id)
	if db == nil {
		return
	}
	if !on {
		if w := k.book.find(id, key); w != nil {
			w.attended = false
			k.book.drop(w)
		}
		empty := false
		k.withLock(id, key, func(at *spot) {
			meta := at.b.meta.Load()
			at.b.meta.Store(meta &^ (flagAttended << 24))
			empty = metaFlags(meta)&flagEmpty != 0
		})
		if empty && k.Holder(id, key) == 0 && k.TryLock(id, key, false) == LockTaken {
			k.Unlock(id, key) // which drops it
		}
		return
	}
	var w *watch
	done := k.withLock(id, key, func(at *spot) {
		w = k.book.at(db, key, shm.OffsetOf(k.s.r, at.entry)) // before any bit is set in the entry or its block
		at.b.meta.Store(at.b.meta.Load() | flagAttended<<24)
		if !planted("attendlate") && k.book.changed(k.seen(at)) {
			k.book.tellLater(db, key)
		}
	})
	if done {
		w.attended = true
		return
	}
	// A client holds it, or it is gone: the dispatcher gets the lock next, or
	// looks again.
	if k.TryLock(id, key, false) == LockTaken {
		k.Unlock(id, key)
		k.book.tellLater(db, key)
	}
}

// unattend takes the flag of a record off that this dispatcher does not attend,
// and drops it if it is empty. What a client has locked is handed over first.
func (k *Keeper) unattend(db *DB, key []byte) {
	switch k.TryLock(db.id, key, false) {
	case LockHeld:
		k.book.get(db, key).left = true // Rung comes back to it
		return
	case LockNoSpace:
		return
	}
	var at spot
	if k.findHeld(db.id, key, &at) {
		at.b.meta.Store(at.b.meta.Load() &^ (flagAttended << 24))
	}
	k.Unlock(db.id, key)
}

// Rung begins a turn. It calls f for every record that a client has handed over since
// the last call, for every attended one that has changed, and for those that are to be
// tried again. f may call all methods but Rung.
func (k *Keeper) Rung(f func(db uint32, key []byte)) {
	b := &k.book
	b.seen = b.seen[:0]
	k.due = k.due[:0]
	undone := b.undone
	b.undone = nil
	for _, r := range undone {
		k.Remove(r.db, []byte(r.key))
	}
	for _, w := range b.later {
		w.later = false
		k.due = append(k.due, w)
	}
	b.later = b.later[:0]
	for i := range k.s.node.rung {
		w := &k.s.node.rung[i]
		if w.Load() == 0 {
			continue
		}
		for set := w.Swap(0); set != 0; set &= set - 1 {
			k.due = append(k.due, b.bits[uint(i*64)+uint(bits.TrailingZeros64(set))]...)
		}
	}
	for _, w := range k.due {
		if w.waits && !w.attended && !w.overdue && k.stillAsked(w) {
			continue // another record with the same bit
		}
		w.waits = false
		if w.left {
			if w.left = false; !w.attended {
				k.unattend(w.db, w.key)
			}
		}
		f(w.db.id, w.key)
		w.overdue = false
	}
	for _, w := range k.due {
		b.drop(w)
	}
}

// stillAsked reports whether a client that holds the record will hand it over: D stands. A
// repair takes D off, and somebody else may have the record by now.
func (k *Keeper) stillAsked(w *watch) bool {
	var at spot
	ok, err := w.db.find(w.db.hash(w.key), w.key, &at)
	k.fail(err)
	owner := entryOwner(at.e)
	return ok && owner != 0 && owner != DispatcherSlot && (at.e&bitD != 0 || planted("nottold"))
}

// Again reports whether Rung has something to tell although nobody rings. The caller
// must not sleep for longer than about a millisecond then.
func (k *Keeper) Again() bool { return len(k.book.later) > 0 || len(k.book.undone) > 0 }
