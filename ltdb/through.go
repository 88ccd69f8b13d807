package ltdb

import "context"

// Hash is the hash of a key of this database, by which its bucket and its
// LMASTER are found.
func (db *DB) Hash(key []byte) uint64 { return db.hash(key) }

// Tenant returns the generation of the client in a slot: who it is among those
// that had the slot one after the other. false: nobody has it, or he is dead.
func (s *Store) Tenant(slot uint32) (generation uint64, alive bool) {
	sl := s.seg.Slot(slot)
	if sl == nil || s.c == nil || sl.Live.Load() == 0 || s.c.Dead(slot) {
		return 0, false
	}
	return sl.Generation.Load(), true
}

// What a client needs whose call goes through the dispatcher. Each of these
// calls borrows a handle, and may be made by any goroutine.

// Announce is Handle.Announce for a caller that has no Handle. Redeem or Withdraw ends
// it.
func (db *DB) Announce(ctx context.Context, key []byte) (n *Announced, err error) {
	err = db.with(ctx, func(h *Handle) error {
		n, err = h.Announce(ctx, key)
		return err
	})
	return n, err
}

// Redeem takes the lock that the dispatcher has left to this client. ErrNotLocked: it
// has left none, and the client holds nothing.
func (db *DB) Redeem(n *Announced) (r Record, err error) {
	err = db.with(context.Background(), func(h *Handle) error {
		n.h = h
		if r, err = n.Record(); err == nil {
			h.a.forget(r.l)
			r.l.own = nil // it is nobody's Handle's
		}
		return err
	})
	return r, err
}

// Withdraw takes an announcement back. given says that the dispatcher has left the lock
// to this client because of it; Withdraw releases the lock then. (That the client holds
// the record proves nothing: another of its goroutines may have locked it.)
//
// Preconditions: the dispatcher does not act on the announcement any more.
func (db *DB) Withdraw(n *Announced, given bool) error {
	return db.with(context.Background(), func(h *Handle) error {
		n.h = h
		if given {
			return n.Cancel()
		}
		n.l.cell.Store(0)
		h.a.keepLock(n.l)
		return nil
	})
}

// with calls f with a borrowed handle.
func (db *DB) with(ctx context.Context, f func(h *Handle) error) error {
	if db.s.c == nil {
		return errReadOnly
	}
	a, err := db.s.borrow(ctx)
	if err != nil {
		return err
	}
	defer func() {
		a.of = nil
		db.s.giveBack(a)
	}()
	return f(newHandle(db, a))
}

// CheckPiece returns ErrMalformed, with what is wrong, for a piece that the condition
// does not understand. It returns nil if this client does not have the condition: the
// dispatcher looks then.
func (db *DB) CheckPiece(id ConditionID, piece []byte) error {
	if c := db.s.condition(id); c != nil {
		return c.Malformed(Snapshot{}, piece)
	}
	return nil
}

// PreparePiece puts a piece into this client's index, which the dispatcher is to append
// under the name that PreparePiece returns. KeepPiece or DropPiece ends it. If the
// client dies before that, the piece is removed wherever it is.
func (db *DB) PreparePiece(key, piece []byte) (p Piece, err error) {
	switch {
	case db.mode != Pieces:
		return Piece{}, ErrMode
	case checkKey(key) != nil:
		return Piece{}, errBadKey
	case len(piece) == 0:
		return Piece{}, errNoPiece
	case len(piece) > db.s.maxValue:
		return Piece{}, errBadValue
	}
	err = db.with(context.Background(), func(h *Handle) error {
		h.a.keep = 0
		n, counter, err := h.a.preparePiece(db, key, piece, db.hash(key))
		if err == nil {
			p = Piece{db.s.opid(counter), n}
		}
		return err
	})
	return p, err
}

// KeepPiece notes that a prepared piece is in its record, or that a piece that was to
// be removed is still there.
func (db *DB) KeepPiece(p Piece) {
	if w := db.s.index.word(p.word); w != nil {
		w.Store(w.Load()&^stateMask | stateLive)
	}
}

// DropPiece notes that a piece is in no record.
func (db *DB) DropPiece(p Piece) error {
	return db.with(context.Background(), func(h *Handle) error {
		w := db.s.index.word(p.word)
		if w == nil {
			return ErrNotFound
		}
		h.a.keep = 0
		err := h.a.erasePiece(w)
		if err == nil {
			h.a.freeWord(p.word)
		}
		return err
	})
}

// MarkRemoving notes that the dispatcher is about to remove a piece of this client.
// KeepPiece or DropPiece ends it. ErrNotFound: there is no such piece, or it is being
// removed already.
func (db *DB) MarkRemoving(key []byte, p Piece) error {
	s := db.s
	w := s.index.word(p.word)
	if w == nil || p.IsZero() || p.opid != s.opid(p.opid.Counter) {
		return ErrNotFound
	}
	v := w.Load()
	b, ok := s.pieceAt(v)
	if !ok || v&stateMask != stateLive || b.counter != p.opid.Counter || b.db != db.id || b.klen != len(key) ||
		!s.r.Equal(refOffset(b.ref)+blockHeaderSize, key) ||
		!w.CAS(v, v&^stateMask|stateRemoving) {
		return ErrNotFound
	}
	return nil
}
