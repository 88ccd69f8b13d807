package ltdb

import (
	"context"
	"errors"
	"sync"

	"github.com/mainzdb/mainz/shm"
)

// lock is this process's side of a record lock that outlives a call. It owns
// a cell in the slot for good.
//
// Who moves the state away from lockLive owns the lock, and nobody else does: that one
// step decides which of several calls ends a record. A lock that was locked through
// a Handle is changed under the Handle's seat alone, one that was locked through the
// DB by a compare-and-swap, with an actor borrowed: so Close, which waits for seats
// and actors, meets no lock on its way.
type lock struct {
	cell  *shm.Word64
	state stateWord // generation of tenants << 2 | what it is now
	next  *lock
	s     *Store
	db    *DB
	own   *Handle // nil if the record was locked through the DB
	at    spot
	hash  uint64
	older *lock // of the same Handle
	klen  int   // of the key: its bytes are in the block, which stays while it is locked
	value []byte
	has   bool // the record has a value
}

// States of a lock. A Record has the word that its lock had when it was live, so that
// copies of it go stale together.
const (
	lockFree   = iota
	lockLive   // somebody has a Record of it
	lockBusy   // Record.Store is under way
	lockClosed // it was live when the Store was closed
	lockTenant // the next tenant's lockFree
)

// lockPool has the locks that are not in use.
type lockPool struct {
	mu    sync.Mutex
	s     *Store
	made  int
	first *lock
	all   []*lock // all that were made
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
	l := &lock{cell: &p.s.body.cells[p.made], s: p.s}
	p.made++
	p.all = append(p.all, l)
	return l, nil
}

func (p *lockPool) put(l *lock) {
	p.mu.Lock()
	l.next = p.first
	p.first = l
	p.mu.Unlock()
}

// close makes stale what is live still. Nobody uses the locks any more: the Handles
// are shut, and the actors retired.
func (p *lockPool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.all {
		if v := l.state.Load(); v&3 == lockLive {
			l.state.Store(v - lockLive + lockClosed)
		}
	}
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

// Record is a locked record. It is a small value, and copies of it go stale together.
// Every method of a stale one returns ErrNotLocked, or ErrClosed after the Store's
// Close. One goroutine at a time uses it. Of two calls that end a record at once, one
// ends it and the other returns ErrNotLocked. A call that meets Store under way in
// another goroutine panics. No method waits for another holder.
type Record struct {
	l    *lock
	live uint64 // l.state as long as the Record is not stale
}

// record is the Record of a lock that was filled just now.
func (l *lock) record() Record { return Record{l, l.state.Load()} }

// fetchLocked locks the record and copies its value. It never waits.
func (a *actor) fetchLocked(db *DB, key []byte, hash uint64, l *lock, who uint64) error {
	var start uint64
	if a.sampled(countLocks) {
		start = shm.Ticks()
	}
	ok, err := a.s.tryLock(db, key, hash, l.cell, nil, &l.at, who)
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
	l.state.Store(l.state.Load() + lockLive)
	raceAcquire(hash)
	a.h.counters[countLocks].Inc()
	if metaFlags(l.at.meta)&flagOwnerDied != 0 {
		a.h.counters[countOwnerDied].Inc()
	}
	return nil
}

// fresh reports whether r is not stale and nobody changes its lock just now.
func (r Record) fresh() bool { return r.l != nil && r.l.state.Load() == r.live }

// stale says why a record that is not fresh can't be used.
//
// It panics if another goroutine stores just now: then nobody could say whether the
// record is locked after that.
func (r Record) stale() error {
	if r.l != nil {
		switch r.l.state.Load() {
		case r.live - lockLive + lockClosed:
			return errClosed
		case r.live - lockLive + lockBusy:
			panic("mainz: a Record is used by two goroutines at once: one of them is in Store")
		}
	}
	return ErrNotLocked
}

// Held reports whether the record is still locked, as far as this process has not
// unlocked it.
func (r Record) Held() bool { return r.fresh() }

// Data returns the value as it was fetched or last stored: nil if the record is new.
// The slice is memory of this process, with its capacity clipped. The caller may change
// it in place and store it. It is valid until the record is unlocked.
func (r Record) Data() []byte {
	if !r.fresh() {
		return nil
	}
	l := r.l
	has, v := l.has, l.value
	if !has || !r.fresh() { // ended meanwhile: v may be half of two slices
		return nil
	}
	return v[:len(v):len(v)]
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
	if !r.fresh() {
		return Header{}
	}
	b := r.l.at.b
	acc := b.acc.Load()
	h := Header{RSN: b.rsn.Load(), LACCESSOR: uint32(acc), LACOUNT: uint32(acc >> 32)}
	if !r.fresh() {
		return Header{} // ended meanwhile
	}
	return h
}

// OwnerDied reports that the last holder died with the lock. The value is whole; what
// it guards may be half done. That holds for a record without a value as well, and
// until somebody who holds the record stores, unlocks or deletes it.
func (r Record) OwnerDied() bool {
	return r.fresh() && metaFlags(r.l.at.meta)&flagOwnerDied != 0
}

// noteHeld notes that l was locked through the Handle that has the actor.
func (a *actor) noteHeld(l *lock) {
	l.own = a.of
	l.older = a.held
	a.held = l
}

// take makes the caller the only one that works with the record, and gets the actor
// for that: to is the state that the lock has from then on, lockBusy or lockTenant.
// end or endKept ends it.
func (r Record) take(to uint64) (*actor, error) {
	if !r.fresh() {
		return nil, r.stale()
	}
	l := r.l
	if h := l.own; h != nil {
		between(lookAndClaim)
		if err := h.enter(); err != nil {
			return nil, err
		}
		if !r.fresh() && !planted("nolook") {
			h.leave()
			return nil, r.stale()
		}
		between(claimAndState)
		l.state.Store(r.live - lockLive + to)
		h.a.ctx = context.Background()
		return h.a, nil
	}
	// The actor first: Close, which waits for actors, makes stale what is live then.
	a, err := l.s.borrow(context.Background())
	if err != nil {
		return nil, err
	}
	between(lookAndClaim)
	if planted("endtwice") {
		l.state.Store(r.live - lockLive + to)
	} else if !l.state.CompareAndSwap(r.live, r.live-lockLive+to) {
		l.s.giveBack(a)
		return nil, r.stale()
	}
	return a, nil
}

// endKept ends a call that keeps the record locked.
func (r Record) endKept(a *actor) {
	h := r.l.own
	r.l.state.Store(r.live)
	if h == nil {
		a.s.giveBack(a)
		return
	}
	h.leave()
}

// end ends the record: the lock is released already.
func (l *lock) end(a *actor) {
	h := l.own
	if h == nil {
		a.keepLock(l)
		a.s.giveBack(a)
		return
	}
	a.forget(l)
	a.keepLock(l)
	h.leave()
}

// forget takes l off the locks of the Handle that has the actor. Mostly the last one
// locked is the first one unlocked.
func (a *actor) forget(l *lock) {
	for p := &a.held; *p != nil; p = &(*p).older {
		if *p == l {
			*p = l.older
			break
		}
	}
	l.older = nil
}

// unlockAll ends the records that were locked through the Handle that has the actor.
//
// Preconditions: the caller has the Handle's seat.
func (a *actor) unlockAll() error {
	var errs []error
	for l := a.held; l != nil; l = a.held {
		l.state.Store(l.state.Load() - lockLive + lockTenant)
		raceRelease(l.hash)
		if err := a.letGo(&l.at, l.cell); err != nil {
			errs = append(errs, err)
		}
		a.forget(l)
		a.keepLock(l)
	}
	return errors.Join(errs...)
}

// Store replaces the value and keeps the lock. data may be what Data returned. On an
// error the record has its old value, and its lock. The exception is ErrLeaseLost: the
// record has the new value, which may not count.
func (r Record) Store(data []byte) error {
	if !r.fresh() {
		return r.stale()
	}
	if err := r.l.db.checkValue(data); err != nil {
		return err
	}
	a, err := r.take(lockBusy)
	if err != nil {
		return err
	}
	err = a.storeKept(r.l, data)
	r.endKept(a)
	return err
}

func (a *actor) storeKept(l *lock, data []byte) error {
	a.keep = 0
	d, err := a.prepare(l.klen, data, &l.at)
	if err != nil {
		return err
	}
	flags := flagOwn | metaFlags(l.at.meta)&keptFlags&^flagOwnerDied
	if len(data) == 0 {
		flags |= flagEmpty
	}
	d.seal(l.klen, len(data), l.hash, l.at.b.rsn.Load()+1, a.s.accessed(l.at.b.acc.Load()), flags)
	id := l.at.e&tagMask | makeID(d.ref, d.c)
	oldClass := entryClass(l.at.e)
	spare := a.spare
	if err := a.publish(&l.at, l.cell, id, andKeep); err != nil {
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

// StoreUnlock replaces the value and unlocks the record, in one step. Without data it
// deletes the record. On any error the lock is gone.
func (r Record) StoreUnlock(data []byte) error {
	return r.storeUnlock(context.Background(), data, true)
}

// storeUnlock is StoreUnlock that waits for latches only as long as ctx allows. couldAsk
// says that the caller could ask for OwnerDied.
func (r Record) storeUnlock(ctx context.Context, data []byte, couldAsk bool) error {
	a, err := r.take(lockTenant)
	if err != nil {
		return err
	}
	l := r.l
	a.ctx = ctx
	a.keep = 0
	if couldAsk {
		a.clearOwnerDied(&l.at)
	}
	raceRelease(l.hash)
	if len(data) == 0 {
		err = a.eraseChecked(l)
	} else if err = l.db.checkValue(data); err == nil {
		err = a.commit(l.klen, data, l.hash, &l.at, l.cell)
	} else {
		err = errors.Join(err, a.letGo(&l.at, l.cell))
	}
	l.end(a)
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

// Unlock unlocks the record. A second call returns ErrNotLocked, so a deferred Unlock
// after StoreUnlock is harmless.
func (r Record) Unlock() error { return r.unlock(true) }

func (r Record) unlock(couldAsk bool) error {
	a, err := r.take(lockTenant)
	if err != nil {
		return err
	}
	l := r.l
	raceRelease(l.hash)
	if couldAsk {
		a.clearOwnerDied(&l.at)
	}
	err = a.letGo(&l.at, l.cell)
	l.end(a)
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
		r, err := db.lockOnce(ctx, own, key, hash, &spin, wait)
		if err == nil {
			return r, nil
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
					own.noteHeld(l)
				}
				r = l.record()
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

func (db *DB) lockOnce(ctx context.Context, own *actor, key []byte, hash uint64, spin *shm.Spin, wait bool) (r Record,
	err error) {
	a := own
	if a == nil {
		if a, err = db.s.borrow(ctx); err != nil {
			return Record{}, err
		}
	} else if db.s.closed.Load() {
		return Record{}, errClosed
	}
	a.ctx = ctx
	who := uint64(newcomer)
	if !wait {
		who = anybody
	}
	l, err := a.takeLock()
	if err == nil {
		if err = a.fetchLocked(db, key, hash, l, who); err == nil {
			if own != nil {
				own.noteHeld(l)
			}
			r = l.record()
		} else {
			if err == errHeld && wait && db.s.spinFor(spin, &l.at) {
				err = errAgain
			}
			a.keepLock(l)
		}
	}
	if own == nil {
		db.s.giveBack(a)
	}
	return r, err
}
