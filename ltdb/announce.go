package ltdb

import (
	"context"
	"errors"

	"github.com/mainzdb/mainz/shm"
)

// Announced is a record whose lock a client has asked the dispatcher for. The client's
// cell stands before the dispatcher leaves it the lock (Keeper.UnlockTo).
type Announced struct {
	h   *Handle
	l   *lock
	key []byte
}

// Announce prepares for the dispatcher to leave the record's lock to this client. If
// the record is not there, Announce makes it, owned by this node. It makes no
// difference who holds the lock. Announce waits only for a closed gate, and makes
// nothing if ctx ends that wait.
func (h *Handle) Announce(ctx context.Context, key []byte) (*Announced, error) {
	if err := h.enter(); err != nil {
		return nil, err
	}
	defer h.leave()
	if checkKey(key) != nil {
		return nil, errBadKey
	}
	l, err := h.a.takeLock()
	if err != nil {
		return nil, err
	}
	h.a.ctx = ctx
	s, hash := h.db.s, h.db.hash(key)
	for range maxLooks {
		ok, err := h.db.find(hash, key, &l.at)
		if err != nil {
			h.a.keepLock(l)
			return nil, err
		}
		if ok {
			l.cell.Store(shm.OffsetOf(s.r, l.at.entry))
			l.hash, l.db = hash, h.db
			return &Announced{h, l, key}, nil
		}
		h.a.keep = 0
		if err := h.a.insert(h.db, key, hash, l.cell, &l.at); err == nil {
			l.hash, l.db = hash, h.db
			if !s.release(&l.at) { // the cell stays
				l.cell.Store(0)
				h.a.keepLock(l)
				return nil, errLockLost
			}
			return &Announced{h, l, key}, nil
		} else if err == errGate {
			l.cell.Store(0) // whoever closes it passes over what is under way
			if err := s.waitGate(ctx); err != nil {
				h.a.keepLock(l)
				return nil, err
			}
		} else if err != errHeld {
			l.cell.Store(0)
			h.a.keepLock(l)
			return nil, err
		}
	}
	l.cell.Store(0)
	h.a.keepLock(l)
	return nil, errOddBlock
}

// Record takes the lock that the dispatcher has left to this client. ErrNotLocked: it
// has left none, and the client holds nothing.
func (n *Announced) Record() (Record, error) {
	h, l := n.h, n.l
	if err := h.enter(); err != nil {
		return Record{}, err
	}
	defer h.leave()
	s := h.db.s
	ok, err := h.db.find(l.hash, n.key, &l.at)
	if err == nil && (!ok || l.at.e&ownerMask != s.me || shm.OffsetOf(s.r, l.at.entry) != l.cell.Load()) {
		err = ErrNotLocked
	}
	if err == nil {
		if err = h.a.fillLock(h.db, n.key, l.hash, l); err == nil {
			h.a.noteHeld(l)
			return l.record(), nil
		}
		h.a.keepLock(l)
		return Record{}, err
	}
	return Record{}, errors.Join(err, n.cancel())
}

// Cancel takes the announcement back, and releases the lock if the dispatcher has left
// it to the client.
//
// Preconditions: the dispatcher does not act on the announcement any more.
func (n *Announced) Cancel() error {
	if err := n.h.enter(); err != nil {
		return err
	}
	defer n.h.leave()
	return n.cancel()
}

func (n *Announced) cancel() error {
	h, l := n.h, n.l
	h.a.ctx = context.Background()
	s := h.db.s
	var at spot
	ok, err := h.db.find(l.hash, n.key, &at)
	if ok && at.e&ownerMask == s.me && shm.OffsetOf(s.r, at.entry) == l.cell.Load() {
		err = h.a.letGo(&at, l.cell)
	} else {
		l.cell.Store(0)
	}
	h.a.keepLock(l)
	return err
}
