package ltdb

import (
	"context"
	"errors"
	"sync"

	"github.com/mainzdb/mainz/shm"
)

// lock is this process's side of a record lock that outlives a call. It owns
// a cell in the slot for good.
type lock struct {
	cell  *shm.Word64
	next  *lock
	db    *DB
	own   *actor // the Handle's, nil if the record was locked through the DB
	at    spot
	hash  uint64
	gen   uint64 // raised at each release, so that copies of a Record go stale together
	held  bool
	older *lock // of the same Handle
	klen  int   // of the key: its bytes are in the block, which stays while it is locked
	value []byte
	has   bool // the record has a value
}

// lockPool has the locks that are not in use.
type lockPool struct {
	mu    sync.Mutex
	s     *Store
	made  int
	first *lock
}

func (p *lockPool) init(s *Store) { p.s, p.made = s, shm.HandlesPerSlot }

func (p *lockPool) get() (*lock, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l := p.first; l != nil {
		p.first = l.next
		return l, nil
	}
	if p.made == cellsPerSlot {
		return nil, ErrTooManyLocks
	}
	l := &lock{cell: &p.s.body.cells[p.made]}
	p.made++
	return l, nil
}

func (p *lockPool) put(l *lock) {
	p.mu.Lock()
	l.next = p.first
	p.first = l
	p.mu.Unlock()
}

// locksAtHand is how many locks an actor keeps to itself.
const locksAtHand = 8

// takeLock gets a lock without the pool's mutex if one is at hand.
func (a *actor) takeLock() (*lock, error) {
	if l := a.free; l != nil {
		a.free = l.next
		a.nfree--
		return l, nil
	}
	return a.s.locks.get()
}

func (a *actor) keepLock(l *lock) {
	if a.nfree < locksAtHand {
		l.next = a.free
		a.free = l
		a.nfree++
		return
	}
	a.s.locks.put(l)
}

// Record is a locked record, a small value: copies go stale together, and
// every method of a stale one returns ErrNotLocked. One goroutine at a time
// uses it. Its methods never wait for another holder.
type Record struct {
	l   *lock
	gen uint64
}

// fetchLocked locks the record and copies its value. It never waits.
func (a *actor) fetchLocked(db *DB, key []byte, hash uint64, l *lock) error {
	var start uint64
	if a.sampled(countLocks) {
		start = shm.Ticks()
	}
	ok, err := a.s.tryLock(db, key, hash, l.cell, nil, &l.at)
	if err == nil && !ok {
		a.keep = 0
		err = a.insert(db, key, hash, l.cell, &l.at)
	}
	if err != nil {
		l.cell.Store(0)
		return err
	}
	err = a.fillLock(db, key, hash, l)
	if start != 0 {
		a.sample(latencyLock, start)
	}
	return err
}

// fillLock copies the value of a record that l has just locked.
func (a *actor) fillLock(db *DB, key []byte, hash uint64, l *lock) error {
	l.db, l.hash, l.own = db, hash, nil
	l.klen = len(key)
	l.value = l.value[:0]
	var err error
	l.value, l.has, err = a.s.copyLocked(l.value[:0], len(key), &l.at)
	if err != nil {
		return errors.Join(err, a.s.unlock(&l.at, l.cell))
	}
	l.held = true
	raceAcquire(hash)
	a.h.counters[countLocks].Inc()
	if metaFlags(l.at.meta)&flagOwnerDied != 0 {
		a.h.counters[countOwnerDied].Inc()
	}
	return nil
}

func (r Record) live() *lock {
	if r.l == nil || r.l.gen != r.gen || !r.l.held {
		return nil
	}
	return r.l
}

// Held reports whether the record is locked still, as far as this process has
// not unlocked it.
func (r Record) Held() bool { return r.live() != nil }

// Data returns the value as fetched or last stored, in memory of this
// process, capacity clipped; it may be changed in place and stored. It is
// valid until the record is unlocked, and nil if the record is new.
func (r Record) Data() []byte {
	l := r.live()
	if l == nil || !l.has {
		return nil
	}
	return l.value[:len(l.value):len(l.value)]
}

// Header is what CTDB knows of a record beside its data. The DMASTER is this
// node.
type Header struct {
	RSN       uint64 // updates since the record's life began
	LACCESSOR uint32 // VNN of the last node that asked for the record
	LACOUNT   uint32 // how often in a row
}

// Header returns the record's header; the zero Header if r is stale.
func (r Record) Header() Header {
	l := r.live()
	if l == nil {
		return Header{}
	}
	acc := l.at.b.acc.Load()
	return Header{RSN: l.at.b.rsn.Load(), LACCESSOR: uint32(acc), LACOUNT: uint32(acc >> 32)}
}

// OwnerDied reports that the last holder died with the lock: the value is
// whole, what it guards may not be.
func (r Record) OwnerDied() bool {
	l := r.live()
	return l != nil && metaFlags(l.at.meta)&flagOwnerDied != 0
}

// actor gets the actor that a record's method works with.
func (l *lock) actor() (*actor, error) {
	if l.own != nil {
		return l.own, nil
	}
	return l.db.s.borrow()
}

// holds notes that l was locked through the Handle that has the actor.
func (a *actor) holds(l *lock) {
	l.own = a
	l.older = a.held
	a.held = l
}

// done ends the record: the lock is released already.
func (l *lock) done(a *actor) {
	own := l.own
	l.held = false
	l.gen++
	if own == nil {
		a.keepLock(l)
		a.s.giveBack(a)
		return
	}
	// Mostly the last one locked is the first one unlocked.
	for p := &a.held; *p != nil; p = &(*p).older {
		if *p == l {
			*p = l.older
			break
		}
	}
	l.older = nil
	a.keepLock(l)
}

// Store replaces the value and keeps the lock. data may be what Data
// returned. On an error the record has its old value and its lock; with
// ErrLeaseLost it has the new one, which may not count.
func (r Record) Store(data []byte) error {
	l := r.live()
	if l == nil {
		return ErrNotLocked
	}
	if err := l.db.checkValue(data); err != nil {
		return err
	}
	a, err := l.actor()
	if err != nil {
		return err
	}
	if l.own == nil {
		defer a.s.giveBack(a)
	}
	a.keep = 0
	d, err := a.prepare(l.klen, data, &l.at)
	if err != nil {
		return err
	}
	flags := flagOwn | metaFlags(l.at.meta)&(flagAttended|flagDone)
	if len(data) == 0 {
		flags |= flagEmpty
	}
	d.seal(l.klen, len(data), l.hash, l.at.b.rsn.Load()+1, a.s.accessed(l.at.b.acc.Load()), flags)
	id := l.at.e&tagMask | makeID(d.ref, d.c)
	oldClass := entryClass(l.at.e)
	spare := a.spare
	if err := a.publish(&l.at, l.cell, id, false); err != nil {
		return err
	}
	a.h.counters[countStores].Inc()
	if spare { // the record has the block that it had
		l.at.seq, l.at.meta = l.at.b.seq.Load(), l.at.b.meta.Load()
	} else {
		l.at.e = l.at.e&lockBits | id
		l.at.b, l.at.seq, l.at.meta = d.b, d.odd+1, d.b.meta.Load()
	}
	l.value = append(l.value[:0], data...)
	l.has = len(data) > 0
	return a.settle(oldClass)
}

// StoreUnlock replaces the value and unlocks, in one step; no data deletes.
// On any error the lock is gone.
func (r Record) StoreUnlock(data []byte) error {
	l := r.live()
	if l == nil {
		return ErrNotLocked
	}
	a, err := l.actor()
	if err != nil {
		return err
	}
	a.keep = 0
	raceRelease(l.hash)
	if len(data) == 0 {
		err = a.eraseChecked(l)
	} else if err = l.db.checkValue(data); err == nil {
		err = a.commit(l.klen, data, l.hash, &l.at, l.cell)
	} else {
		err = errors.Join(err, a.letGo(&l.at, l.cell))
	}
	l.done(a)
	return err
}

func (a *actor) eraseChecked(l *lock) error {
	if l.db.mode != KV && l.has {
		return errors.Join(ErrMode, a.letGo(&l.at, l.cell))
	}
	return a.erase(l.klen, l.hash, &l.at, l.cell)
}

// Delete removes the record and unlocks.
func (r Record) Delete() error { return r.StoreUnlock(nil) }

// Unlock unlocks; a second call returns ErrNotLocked, so that a deferred one
// after StoreUnlock is harmless.
func (r Record) Unlock() error {
	l := r.live()
	if l == nil {
		return ErrNotLocked
	}
	a, err := l.actor()
	if err != nil {
		return err
	}
	raceRelease(l.hash)
	err = a.letGo(&l.at, l.cell)
	l.done(a)
	return err
}

// lockRecord is FetchLocked for DB (own nil) and Handle.
func (db *DB) lockRecord(ctx context.Context, own *actor, key []byte, wait bool) (Record, error) {
	if checkKey(key) != nil {
		return Record{}, errBadKey
	}
	hash := db.hash(key)
	var spin shm.Spin
	for {
		l, err := db.lockOnce(own, key, hash, &spin, wait)
		if err == nil {
			return Record{l, l.gen}, nil
		}
		switch {
		case err == errAgain:
		case err != errHeld && err != errGate:
			return Record{}, err
		case !wait && err == errHeld:
			return Record{}, ErrLocked
		default:
			var r Record
			ok, err := db.contended(ctx, own, key, hash, func(a *actor, at *spot, l *lock) error {
				l.at = *at
				if err := a.fillLock(db, key, hash, l); err != nil {
					db.s.locks.put(l)
					return err
				}
				if own != nil {
					own.holds(l)
				}
				r = Record{l, l.gen}
				return nil
			})
			if ok || err != nil {
				return r, err
			}
		}
	}
}

// errAgain makes the caller begin again at once.
var errAgain = errors.New("ltdb: look again")

func (db *DB) lockOnce(own *actor, key []byte, hash uint64, spin *shm.Spin, wait bool) (*lock, error) {
	a := own
	if a == nil {
		var err error
		if a, err = db.s.borrow(); err != nil {
			return nil, err
		}
	} else if db.s.closed.Load() {
		return nil, errClosed
	}
	l, err := a.takeLock()
	if err == nil {
		if err = a.fetchLocked(db, key, hash, l); err == nil {
			if own != nil {
				own.holds(l)
			}
		} else {
			if err == errHeld && wait && spinFor(spin, &l.at) {
				err = errAgain
			}
			a.keepLock(l)
		}
	}
	if own == nil {
		db.s.giveBack(a)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}
