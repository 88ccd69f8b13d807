package mainz

import (
	"context"

	"github.com/mainzdb/mainz/protocol/wire"
)

// The operations of DB and Handle: by bypass, and through the ring if the bypass
// says that this process can't do it. Those of a client that does neither more nor
// less than that look at one flag of their own, and call nothing else of this package.

// special carries out an operation of a client that goes through the ring always, or
// is told of recoveries.
func special[T any](ctx context.Context, db *DB, ring, bypass func() (T, error)) (T, error) {
	if db.c.opts.forceRing {
		return ring()
	}
	v, err := bypass()
	if err != nil && db.ringServes(err) {
		v, err = ring()
	}
	db.c.catchUp(ctx)
	return v, err
}

// specialErr is special for operations without a result.
func specialErr(ctx context.Context, db *DB, ring, bypass func() error) error {
	_, err := special(ctx, db, func() (struct{}, error) { return struct{}{}, ring() },
		func() (struct{}, error) { return struct{}{}, bypass() })
	return err
}

// Fetch returns a copy of the value, or ErrNotFound if there is no record. It takes no lock.
func (db *DB) Fetch(ctx context.Context, key []byte) ([]byte, error) {
	if db.special {
		return special(ctx, db, func() ([]byte, error) { return db.fetch(ctx, nil, key) },
			func() ([]byte, error) { return db.l.Fetch(ctx, key) })
	}
	v, err := db.l.Fetch(ctx, key)
	if err != nil && db.ringServes(err) {
		return db.fetch(ctx, nil, key)
	}
	return v, err
}

// AppendFetch appends the value to dst and returns the extended slice. It does not allocate
// if dst has room. On an error it returns dst as it was.
func (db *DB) AppendFetch(ctx context.Context, dst, key []byte) ([]byte, error) {
	if db.special {
		return special(ctx, db, func() ([]byte, error) { return db.fetch(ctx, dst, key) },
			func() ([]byte, error) { return db.l.AppendFetch(ctx, dst, key) })
	}
	v, err := db.l.AppendFetch(ctx, dst, key)
	if err != nil && db.ringServes(err) {
		return db.fetch(ctx, dst, key)
	}
	return v, err
}

// FetchLocked locks the record and copies its value. If there is no record it makes an empty
// one, which goes with the lock if nothing is stored. It waits while others hold the lock; if
// ctx ends first, a *LockError says who does.
func (db *DB) FetchLocked(ctx context.Context, key []byte) (Record, error) {
	if db.special {
		return special(ctx, db, func() (Record, error) { return db.lock(ctx, key, true) },
			func() (Record, error) { return db.l.FetchLocked(ctx, key) })
	}
	v, err := db.l.FetchLocked(ctx, key)
	if err != nil && db.ringServes(err) {
		return db.lock(ctx, key, true)
	}
	return v, err
}

// TryFetchLocked is FetchLocked that does not wait for another holder: it returns ErrLocked.
func (db *DB) TryFetchLocked(ctx context.Context, key []byte) (Record, error) {
	if db.special {
		return special(ctx, db, func() (Record, error) { return db.lock(ctx, key, false) },
			func() (Record, error) { return db.l.TryFetchLocked(ctx, key) })
	}
	v, err := db.l.TryFetchLocked(ctx, key)
	if err != nil && db.ringServes(err) {
		return db.lock(ctx, key, false)
	}
	return v, err
}

// Store replaces the value, or makes the record, in a database of mode KV. It waits while
// others hold the lock. It keeps no lock.
func (db *DB) Store(ctx context.Context, key, data []byte) error {
	if db.special {
		return specialErr(ctx, db, func() error { return db.put(ctx, key, data) },
			func() error { return db.l.Store(ctx, key, data) })
	}
	err := db.l.Store(ctx, key, data)
	if err != nil && db.ringServes(err) {
		return db.put(ctx, key, data)
	}
	return err
}

// Delete removes the record. It waits like Store. ErrNotFound: there is no record. ErrMode:
// the record holds pieces.
func (db *DB) Delete(ctx context.Context, key []byte) error {
	if db.special {
		return specialErr(ctx, db, func() error {
			return db.change(ctx, &wire.Message{Op: wire.ReqDelete, Key: key}, false, nil)
		}, func() error { return db.l.Delete(ctx, key) })
	}
	err := db.l.Delete(ctx, key)
	if err != nil && db.ringServes(err) {
		return db.change(ctx, &wire.Message{Op: wire.ReqDelete, Key: key}, false, nil)
	}
	return err
}

// ConditionalAppend adds piece to the record if the condition holds. Otherwise it returns
// ErrCondition at once. ErrMalformed: the piece, or one in the record, is none that the
// condition understands. In mode KV the Piece is the zero one.
func (db *DB) ConditionalAppend(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error) {
	if db.special {
		return special(ctx, db, func() (Piece, error) { return db.append(ctx, cond, key, piece, false) },
			func() (Piece, error) { return db.l.ConditionalAppend(ctx, cond, key, piece) })
	}
	v, err := db.l.ConditionalAppend(ctx, cond, key, piece)
	if err != nil && db.ringServes(err) {
		return db.append(ctx, cond, key, piece, false)
	}
	return v, err
}

// ConditionalAppendWait is ConditionalAppend that tries again at every change of the record
// until ctx ends. If ctx ends first, nothing stays appended.
func (db *DB) ConditionalAppendWait(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error) {
	if db.special {
		return special(ctx, db, func() (Piece, error) { return db.append(ctx, cond, key, piece, true) },
			func() (Piece, error) { return db.l.ConditionalAppendWait(ctx, cond, key, piece) })
	}
	v, err := db.l.ConditionalAppendWait(ctx, cond, key, piece)
	if err != nil && db.ringServes(err) {
		return db.append(ctx, cond, key, piece, true)
	}
	return v, err
}

// RemoveAndTrigger removes a piece that this client appended, in a database of mode Pieces,
// and wakes those who wait for the record or watch it.
func (db *DB) RemoveAndTrigger(ctx context.Context, key []byte, p Piece) error {
	if db.special {
		return specialErr(ctx, db, func() error { return db.remove(ctx, key, p) },
			func() error { return db.l.RemoveAndTrigger(ctx, key, p) })
	}
	err := db.l.RemoveAndTrigger(ctx, key, p)
	if err != nil && db.ringServes(err) {
		return db.remove(ctx, key, p)
	}
	return err
}

// RemoveMatching removes what the condition's function finds in the record, in a database of
// mode KV. ErrNotFound: it finds nothing.
func (db *DB) RemoveMatching(ctx context.Context, cond ConditionID, key, data []byte) error {
	if db.special {
		return specialErr(ctx, db, func() error { return db.removeMatching(ctx, cond, key, data) },
			func() error { return db.l.RemoveMatching(ctx, cond, key, data) })
	}
	err := db.l.RemoveMatching(ctx, cond, key, data)
	if err != nil && db.ringServes(err) {
		return db.removeMatching(ctx, cond, key, data)
	}
	return err
}

// FetchBatch fills b.Value and b.Err for every key of b.Keys, and returns how many records
// it found. Its own error says that it looked for none.
func (db *DB) FetchBatch(ctx context.Context, b *Batch) (int, error) {
	if db.special {
		return special(ctx, db, func() (int, error) { return db.batch(ctx, b) },
			func() (int, error) { return db.l.FetchBatch(ctx, b) })
	}
	v, err := db.l.FetchBatch(ctx, b)
	if err != nil && db.ringServes(err) {
		return db.batch(ctx, b)
	}
	return v, err
}

// Fetch returns a copy of the value, or ErrNotFound if there is no record. It takes no lock.
func (h *Handle) Fetch(ctx context.Context, key []byte) ([]byte, error) {
	if h.special {
		return special(ctx, h.db, func() ([]byte, error) { return h.db.fetch(ctx, nil, key) },
			func() ([]byte, error) { return h.l.Fetch(ctx, key) })
	}
	v, err := h.l.Fetch(ctx, key)
	if err != nil && h.db.ringServes(err) {
		return h.db.fetch(ctx, nil, key)
	}
	return v, err
}

// AppendFetch appends the value to dst and returns the extended slice. It does not allocate
// if dst has room. On an error it returns dst as it was.
func (h *Handle) AppendFetch(ctx context.Context, dst, key []byte) ([]byte, error) {
	// The store's AppendFetch, with the half of it that mostly is enough right here: a
	// call, and the stores of nine registers for what may follow it, are a tenth of a
	// hot fetch.
	n := h.quick.Quick(&dst, &key)
	if n >= 0 {
		return dst[:len(dst)+n], nil
	}
	return h.quickMissed(ctx, dst, key, n)
}

func (h *Handle) quickMissed(ctx context.Context, dst, key []byte, why int) ([]byte, error) {
	if h.special {
		return special(ctx, h.db, func() ([]byte, error) { return h.db.fetch(ctx, dst, key) },
			func() ([]byte, error) { return h.l.AppendFetch(ctx, dst, key) })
	}
	v, err := h.l.QuickMissed(ctx, dst, key, why)
	if err != nil && h.db.ringServes(err) {
		return h.db.fetch(ctx, dst, key)
	}
	return v, err
}

// FetchLocked locks the record and copies its value. If there is no record it makes an empty
// one, which goes with the lock if nothing is stored. It waits while others hold the lock; if
// ctx ends first, a *LockError says who does.
func (h *Handle) FetchLocked(ctx context.Context, key []byte) (Record, error) {
	if h.special {
		return special(ctx, h.db, func() (Record, error) { return h.lock(ctx, key, true) },
			func() (Record, error) { return h.l.FetchLocked(ctx, key) })
	}
	v, err := h.l.FetchLocked(ctx, key)
	if err != nil && h.db.ringServes(err) {
		return h.lock(ctx, key, true)
	}
	return v, err
}

// TryFetchLocked is FetchLocked that does not wait for another holder: it returns ErrLocked.
func (h *Handle) TryFetchLocked(ctx context.Context, key []byte) (Record, error) {
	if h.special {
		return special(ctx, h.db, func() (Record, error) { return h.lock(ctx, key, false) },
			func() (Record, error) { return h.l.TryFetchLocked(ctx, key) })
	}
	v, err := h.l.TryFetchLocked(ctx, key)
	if err != nil && h.db.ringServes(err) {
		return h.lock(ctx, key, false)
	}
	return v, err
}

// Store replaces the value, or makes the record, in a database of mode KV. It waits while
// others hold the lock. It keeps no lock.
func (h *Handle) Store(ctx context.Context, key, data []byte) error {
	if h.special {
		return specialErr(ctx, h.db, func() error { return h.db.put(ctx, key, data) },
			func() error { return h.l.Store(ctx, key, data) })
	}
	err := h.l.Store(ctx, key, data)
	if err != nil && h.db.ringServes(err) {
		return h.db.put(ctx, key, data)
	}
	return err
}

// Delete removes the record. It waits like Store. ErrNotFound: there is no record. ErrMode:
// the record holds pieces.
func (h *Handle) Delete(ctx context.Context, key []byte) error {
	if h.special {
		return specialErr(ctx, h.db, func() error {
			return h.db.change(ctx, &wire.Message{Op: wire.ReqDelete, Key: key}, false, nil)
		}, func() error { return h.l.Delete(ctx, key) })
	}
	err := h.l.Delete(ctx, key)
	if err != nil && h.db.ringServes(err) {
		return h.db.change(ctx, &wire.Message{Op: wire.ReqDelete, Key: key}, false, nil)
	}
	return err
}

// ConditionalAppend adds piece to the record if the condition holds. Otherwise it returns
// ErrCondition at once. ErrMalformed: the piece, or one in the record, is none that the
// condition understands. In mode KV the Piece is the zero one.
func (h *Handle) ConditionalAppend(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error) {
	if h.special {
		return special(ctx, h.db, func() (Piece, error) { return h.db.append(ctx, cond, key, piece, false) },
			func() (Piece, error) { return h.l.ConditionalAppend(ctx, cond, key, piece) })
	}
	v, err := h.l.ConditionalAppend(ctx, cond, key, piece)
	if err != nil && h.db.ringServes(err) {
		return h.db.append(ctx, cond, key, piece, false)
	}
	return v, err
}

// ConditionalAppendWait is ConditionalAppend that tries again at every change of the record
// until ctx ends. If ctx ends first, nothing stays appended.
func (h *Handle) ConditionalAppendWait(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error) {
	if h.special {
		return special(ctx, h.db, func() (Piece, error) { return h.db.append(ctx, cond, key, piece, true) },
			func() (Piece, error) { return h.l.ConditionalAppendWait(ctx, cond, key, piece) })
	}
	v, err := h.l.ConditionalAppendWait(ctx, cond, key, piece)
	if err != nil && h.db.ringServes(err) {
		return h.db.append(ctx, cond, key, piece, true)
	}
	return v, err
}

// RemoveAndTrigger removes a piece that this client appended, in a database of mode Pieces,
// and wakes those who wait for the record or watch it.
func (h *Handle) RemoveAndTrigger(ctx context.Context, key []byte, p Piece) error {
	if h.special {
		return specialErr(ctx, h.db, func() error { return h.db.remove(ctx, key, p) },
			func() error { return h.l.RemoveAndTrigger(ctx, key, p) })
	}
	err := h.l.RemoveAndTrigger(ctx, key, p)
	if err != nil && h.db.ringServes(err) {
		return h.db.remove(ctx, key, p)
	}
	return err
}

// RemoveMatching removes what the condition's function finds in the record, in a database of
// mode KV. ErrNotFound: it finds nothing.
func (h *Handle) RemoveMatching(ctx context.Context, cond ConditionID, key, data []byte) error {
	if h.special {
		return specialErr(ctx, h.db, func() error { return h.db.removeMatching(ctx, cond, key, data) },
			func() error { return h.l.RemoveMatching(ctx, cond, key, data) })
	}
	err := h.l.RemoveMatching(ctx, cond, key, data)
	if err != nil && h.db.ringServes(err) {
		return h.db.removeMatching(ctx, cond, key, data)
	}
	return err
}

// FetchBatch fills b.Value and b.Err for every key of b.Keys, and returns how many records
// it found. Its own error says that it looked for none.
func (h *Handle) FetchBatch(ctx context.Context, b *Batch) (int, error) {
	if h.special {
		return special(ctx, h.db, func() (int, error) { return h.db.batch(ctx, b) },
			func() (int, error) { return h.l.FetchBatch(ctx, b) })
	}
	v, err := h.l.FetchBatch(ctx, b)
	if err != nil && h.db.ringServes(err) {
		return h.db.batch(ctx, b)
	}
	return v, err
}
