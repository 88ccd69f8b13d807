package ltdb

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// Handle does what its DB does, for one goroutine at a time, without
// borrowing one of the client's handles for each call: the hot path. A call that finds
// another one of the same Handle under way panics, before it has touched anything;
// Fetch and its like, which change nothing, are not looked at.
type Handle struct {
	db    *DB
	a     *actor
	quick *actor  // a, if Quick may look for it
	seat  useWord // who has it may use what of a is not for reading
}

// States of Handle.seat.
const (
	seatClosed = iota // of the zero Handle as well
	seatFree
	seatBusy
)

// enter begins a call that uses the actor. It is what keeps a Handle that two
// goroutines share by mistake from damaging everybody's segment, so it is certain: a
// hint, as Go's maps have one, would be enough to find the mistake, but not to survive
// it.
func (h *Handle) enter() error {
	if h.seat.CompareAndSwap(seatFree, seatBusy) || planted("noseat") {
		return nil
	}
	return h.refuse()
}

func (h *Handle) leave() { h.seat.Store(seatFree) }

// refuse says why the Handle can't be used.
func (h *Handle) refuse() error {
	if h.seat.Load() == seatClosed {
		return errClosed
	}
	panic("mainz: a Handle is used by two goroutines at once, or by a condition that it runs; each goroutine needs a Handle of its own, or the DB's methods")
}

// Handle reserves one of the client's handles until its Close. ErrNoHandles: all but
// two are reserved; these two are always left to the DB's own methods.
func (db *DB) Handle() (*Handle, error) {
	s := db.s
	if s.c == nil {
		return nil, errReadOnly
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return nil, errClosed
	}
	if len(s.handles) == shm.HandlesPerSlot-pooled {
		return nil, ErrNoHandles
	}
	for i := range s.actors {
		a := &s.actors[i]
		// A call may be under way on an idle-to-be actor; it will end, but
		// another one is most likely free.
		if a.use.CompareAndSwap(actorIdle, actorReserved) {
			return s.reserveHandle(db, a), nil
		}
	}
	for i := range s.actors {
		a := &s.actors[i]
		for a.use.Load() != actorReserved {
			if a.use.CompareAndSwap(actorIdle, actorReserved) {
				return s.reserveHandle(db, a), nil
			}
			runtime.Gosched()
		}
	}
	return nil, ErrNoHandles
}

// newHandle makes a Handle for an actor that is the caller's.
func newHandle(db *DB, a *actor) *Handle {
	h := &Handle{db: db, a: a}
	if vectors {
		h.quick = a
	}
	a.of = h
	h.seat.Store(seatFree)
	return h
}

// reserveHandle makes the Handle of an actor that was reserved just now.
//
// Preconditions: the caller has s.mu.
func (s *Store) reserveHandle(db *DB, a *actor) *Handle {
	h := newHandle(db, a)
	s.handles = append(s.handles, h)
	return h
}

// DB returns the handle's database.
func (h *Handle) DB() *DB { return h.db }

// Close gives the handle back and unlocks the records that were locked
// through it and are locked still. It may be called again, and after the Store's Close,
// which has closed the Handle as well.
func (h *Handle) Close() error {
	if err := h.enter(); err != nil {
		return nil
	}
	err := h.a.unlockAll()
	h.shut()
	s := h.db.s
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.handles, h)
	if i < 0 {
		return err // Close was here meanwhile
	}
	s.handles = slices.Delete(s.handles, i, i+1)
	h.a.of = nil
	s.giveBack(h.a)
	return err
}

// shut ends the use of the Handle for good.
//
// Preconditions: the caller has the seat.
func (h *Handle) shut() {
	if vectors {
		h.quick = nil
	}
	h.seat.Store(seatClosed)
}

// shutHandles ends the use of all Handles, and waits for their calls under way: those
// that wait look at closed.
//
// Preconditions: closed is set, and the caller has s.mu.
func (s *Store) shutHandles() {
	for _, h := range s.handles {
		for !h.seat.CompareAndSwap(seatFree, seatBusy) && h.seat.Load() != seatClosed {
			time.Sleep(50 * time.Microsecond)
		}
		h.shut()
		h.a.use.Store(actorRetired)
	}
	s.handles = nil
}

// ready reports why h can't be used for reading.
func (h *Handle) ready() error {
	if h.seat.Load() == seatClosed || h.db.s.closed.Load() {
		return errClosed
	}
	return nil
}

// Fetch returns a copy of the value, ErrNotFound if there is no record.
func (h *Handle) Fetch(ctx context.Context, key []byte) ([]byte, error) {
	return h.AppendFetch(ctx, nil, key)
}

// AppendFetch appends the value to dst and returns the extended slice. It
// does not allocate if dst has room; on an error it returns dst as it was.
func (h *Handle) AppendFetch(ctx context.Context, dst, key []byte) ([]byte, error) {
	n := quickFetch(h, &dst, &key)
	if n >= 0 {
		return dst[:len(dst)+n], nil
	}
	return h.QuickMissed(ctx, dst, key, n)
}

// Quick is the first half of AppendFetch. Package mainz calls it, which saves it a
// call. It returns the length of the value that it has copied behind dst, or a negative
// number to call QuickMissed with. The zero Handle always refuses.
func (h *Handle) Quick(dst, key *[]byte) int { return quickFetch(h, dst, key) }

// What Quick returns if it did not find the value.
const (
	missed  = -1 // it has looked, and counted the call
	refused = -2
)

// QuickMissed is the second half of AppendFetch. why is what Quick returned.
func (h *Handle) QuickMissed(ctx context.Context, dst, key []byte, why int) ([]byte, error) {
	if why == missed {
		return h.db.fetchMiss(ctx, h.a, dst, key, h.db.hash(key))
	}
	return h.appendFetch(ctx, dst, key)
}

// appendFetch is AppendFetch for keys of other lengths and other machines.
func (h *Handle) appendFetch(ctx context.Context, dst, key []byte) ([]byte, error) {
	if err := h.ready(); err != nil {
		return dst, err
	}
	if err := checkKey(key); err != nil {
		return dst, err
	}
	if h.a.h.counters[countFetches].Next()%sampleEvery == 0 {
		return h.sampledFetch(ctx, dst, key)
	}
	return h.db.fetch(ctx, h.a, dst, key, h.db.hash(key))
}

func (h *Handle) sampledFetch(ctx context.Context, dst, key []byte) ([]byte, error) {
	start := shm.Ticks()
	out, err := h.db.fetch(ctx, h.a, dst, key, h.db.hash(key))
	// The first sample takes a block for the histograms.
	if h.seat.CompareAndSwap(seatFree, seatBusy) {
		h.a.sample(latencyFetch, start)
		h.leave()
	}
	return out, err
}

// FetchBatch fills b.Value and b.Err for every key of b.Keys, and returns how many
// records it found. The cache misses of 8 keys at a time overlap. Its own error says
// that it looked for none.
func (h *Handle) FetchBatch(ctx context.Context, b *Batch) (int, error) {
	if b == nil {
		return 0, errNoBatch
	}
	if err := h.ready(); err != nil {
		return 0, err
	}
	h.a.h.counters[countFetches].Add(uint64(len(b.Keys)))
	return h.db.fetchBatch(ctx, h.a, b), nil
}

// FetchLocked locks the record and copies its value. If there is no record it makes an
// empty one, which goes with the lock if nothing is stored. It waits while others hold
// the lock, until ctx ends: then it returns a *LockError with the error of ctx.
// ErrTooManyLocks, ErrNoSpace: nothing has changed.
func (h *Handle) FetchLocked(ctx context.Context, key []byte) (Record, error) {
	if err := h.enter(); err != nil {
		return Record{}, err
	}
	if checkKey(key) != nil {
		h.leave()
		return Record{}, errBadKey
	}
	if l := h.a.free; l != nil { // the common case, without the loop around it
		if h.a.fetchLocked(h.db, key, h.db.hash(key), l, newcomer) == nil {
			h.a.free = l.next
			h.a.nfree--
			h.a.noteHeld(l)
			r := l.record()
			h.leave()
			return r, nil
		}
	}
	return h.lockRecord(ctx, key, true)
}

// lockRecord is the rest of FetchLocked.
//
// Preconditions: the caller has the seat, which this gives back.
func (h *Handle) lockRecord(ctx context.Context, key []byte, wait bool) (Record, error) {
	defer h.leave()
	return h.db.lockRecord(ctx, h.a, key, wait)
}

// TryFetchLocked is FetchLocked that returns ErrLocked instead of waiting for
// another holder.
func (h *Handle) TryFetchLocked(ctx context.Context, key []byte) (Record, error) {
	if err := h.enter(); err != nil {
		return Record{}, err
	}
	return h.lockRecord(ctx, key, false)
}

// Store gives the record a new value, or makes the record. Without data it deletes the
// record. It takes the record's lock for a moment, and waits while others hold it.
// ErrTooBig, ErrMode, ErrNoSpace: nothing has changed.
func (h *Handle) Store(ctx context.Context, key, data []byte) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.leave()
	return h.db.store(ctx, h.a, key, data)
}

// Append adds data to the end of the value; if there is no record, data becomes the
// value. It waits like Store, and has its errors. ErrTooBig: the value would become too
// long.
func (h *Handle) Append(ctx context.Context, key, data []byte) error {
	if err := h.db.checkStore(key, data); err != nil {
		return err
	}
	r, err := h.FetchLocked(ctx, key)
	if err != nil {
		return err
	}
	return r.append(ctx, data)
}

// Delete removes the record; it waits like Store. ErrNotFound if there is
// none.
func (h *Handle) Delete(ctx context.Context, key []byte) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.leave()
	return h.db.remove(ctx, h.a, key)
}

// Fetch returns a copy of the value, ErrNotFound if there is no record.
func (db *DB) Fetch(ctx context.Context, key []byte) ([]byte, error) {
	return db.AppendFetch(ctx, nil, key)
}

// AppendFetch appends the value to dst and returns the extended slice. It
// does not allocate if dst has room; on an error it returns dst as it was.
func (db *DB) AppendFetch(ctx context.Context, dst, key []byte) ([]byte, error) {
	if checkKey(key) != nil {
		return dst, errBadKey
	}
	s := db.s
	if s.c == nil {
		return db.observe(ctx, dst, key)
	}
	hash := db.hash(key)
	a, err := s.borrow(ctx)
	if err != nil {
		return dst, err
	}
	var start uint64
	if a.h.counters[countFetches].Next()%sampleEvery == 0 {
		start = shm.Ticks()
	}
	out, found := db.quick(dst, key, hash)
	done := true
	if !found {
		out, found, done, err = db.read(dst, key, hash)
	}
	if start != 0 {
		a.sample(latencyFetch, start)
	}
	s.giveBack(a) // before any wait: whoever has the record may need an actor
	switch {
	case found:
		return out, nil
	case err != nil:
		return dst, err
	case done:
		return dst, ErrNotFound
	}
	return db.fetchSlow(ctx, nil, dst, key, hash)
}

// observe is AppendFetch in a store that was opened for reading only.
func (db *DB) observe(ctx context.Context, dst, key []byte) ([]byte, error) {
	if err := db.s.enter(); err != nil {
		return dst, err
	}
	defer db.s.exit()
	return db.fetch(ctx, nil, dst, key, db.hash(key))
}

// FetchBatch fills b.Value and b.Err for every key of b.Keys, and returns how many
// records it found. The cache misses of 8 keys at a time overlap. Its own error says
// that it looked for none.
func (db *DB) FetchBatch(ctx context.Context, b *Batch) (int, error) {
	if b == nil {
		return 0, errNoBatch
	}
	s := db.s
	if s.c != nil {
		a, err := s.borrow(ctx)
		if err != nil {
			return 0, err
		}
		a.h.counters[countFetches].Add(uint64(len(b.Keys)))
		s.giveBack(a)
	}
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.exit()
	return db.fetchBatch(ctx, nil, b), nil
}

// FetchLocked locks the record and copies its value. If there is no record it makes an
// empty one, which goes with the lock if nothing is stored. It waits while others hold
// the lock, until ctx ends: then it returns a *LockError with the error of ctx.
// ErrTooManyLocks, ErrNoSpace: nothing has changed.
func (db *DB) FetchLocked(ctx context.Context, key []byte) (Record, error) {
	if uint(len(key)-1) >= maxKey {
		return Record{}, errBadKey
	}
	hash := db.hash(key) // here the CPU has done it by the time the swap in borrow is
	a, err := db.s.borrow(ctx)
	if err != nil {
		return Record{}, err
	}
	if l := a.free; l != nil { // the common case, as in Handle
		if a.fetchLocked(db, key, hash, l, newcomer) == nil {
			a.free = l.next
			a.nfree--
			r := l.record()
			db.s.giveBack(a)
			return r, nil
		}
	}
	db.s.giveBack(a)
	return db.lockRecord(ctx, nil, key, true)
}

// TryFetchLocked is FetchLocked that returns ErrLocked instead of waiting for
// another holder.
func (db *DB) TryFetchLocked(ctx context.Context, key []byte) (Record, error) {
	return db.lockRecord(ctx, nil, key, false)
}

// Store gives the record a new value, or makes the record. Without data it deletes the
// record. It takes the record's lock for a moment, and waits while others hold it.
// ErrTooBig, ErrMode, ErrNoSpace: nothing has changed.
func (db *DB) Store(ctx context.Context, key, data []byte) error {
	return db.store(ctx, nil, key, data)
}

// Append adds data to the end of the value; if there is no record, data becomes the
// value. It waits like Store, and has its errors. ErrTooBig: the value would become too
// long.
func (db *DB) Append(ctx context.Context, key, data []byte) error {
	if err := db.checkStore(key, data); err != nil {
		return err
	}
	r, err := db.FetchLocked(ctx, key)
	if err != nil {
		return err
	}
	return r.append(ctx, data)
}

// Delete removes the record; it waits like Store. ErrNotFound if there is
// none.
func (db *DB) Delete(ctx context.Context, key []byte) error { return db.remove(ctx, nil, key) }

// checkStore says whether the database takes that key and value.
func (db *DB) checkStore(key, data []byte) error {
	if uint(len(key)-1) >= maxKey {
		return errBadKey
	}
	return db.checkValue(data)
}

func (db *DB) checkValue(data []byte) error {
	switch {
	case len(data) > db.s.maxValue:
		return errBadValue
	case db.mode != KV:
		return ErrMode
	}
	return nil
}

func (db *DB) store(ctx context.Context, own *actor, key, data []byte) error {
	if err := db.checkStore(key, data); err != nil {
		return err
	}
	if len(data) == 0 { // an empty record is an absent one
		if err := db.remove(ctx, own, key); err != ErrNotFound {
			return err
		}
		return nil
	}
	hash := db.hash(key)
	var spin shm.Spin
	for {
		err := db.storeOnce(ctx, own, key, data, hash, &spin)
		if err != errHeld && err != errGate && err != errAgain {
			return err
		}
		if err == errAgain {
			continue
		}
		ok, err := db.contended(ctx, own, key, hash, func(a *actor, at *spot, l *lock) error {
			a.keep = 0
			defer a.s.locks.put(l)
			return a.commit(len(key), data, hash, at, l.cell)
		})
		if ok || err != nil {
			return err
		}
	}
}

func (db *DB) storeOnce(ctx context.Context, own *actor, key, data []byte, hash uint64, spin *shm.Spin) error {
	a := own
	if a == nil {
		var err error
		if a, err = db.s.borrow(ctx); err != nil {
			return err
		}
	}
	a.ctx = ctx
	var at spot
	err := a.store(db, key, data, hash, &at)
	if own == nil {
		db.s.giveBack(a)
	}
	if err == errHeld && db.s.spinFor(spin, &at) {
		return errAgain
	}
	return err
}

// append is the second half of Append.
func (r Record) append(ctx context.Context, data []byte) error {
	l := r.l
	if len(l.value)+len(data) > l.s.maxValue {
		return errors.Join(errBadValue, r.unlock(false))
	}
	l.value = append(l.value, data...)
	return r.storeUnlock(ctx, l.value, false)
}

func (db *DB) remove(ctx context.Context, own *actor, key []byte) error {
	if checkKey(key) != nil {
		return errBadKey
	}
	hash := db.hash(key)
	var spin shm.Spin
	for {
		err := db.removeOnce(ctx, own, key, hash, &spin)
		if err != errHeld && err != errGate && err != errAgain {
			return err
		}
		if err == errAgain {
			continue
		}
		ok, err := db.contended(ctx, own, key, hash, func(a *actor, at *spot, l *lock) error {
			a.keep = 0
			defer a.s.locks.put(l)
			return a.removeLocked(db, key, hash, at, l.cell)
		})
		if ok || err != nil {
			return err
		}
	}
}

func (db *DB) removeOnce(ctx context.Context, own *actor, key []byte, hash uint64, spin *shm.Spin) error {
	a := own
	if a == nil {
		var err error
		if a, err = db.s.borrow(ctx); err != nil {
			return err
		}
	}
	a.ctx = ctx
	a.keep = 0
	var at spot
	ok, err := a.s.tryLock(db, key, hash, a.cell, nil, &at, newcomer)
	switch {
	case err != nil:
		a.cell.Store(0)
	case !ok:
		err = ErrNotFound
	default:
		err = a.removeLocked(db, key, hash, &at, a.cell)
	}
	if own == nil {
		db.s.giveBack(a)
	}
	if err == errHeld && db.s.spinFor(spin, &at) {
		return errAgain
	}
	return err
}

func (a *actor) removeLocked(db *DB, key []byte, hash uint64, at *spot, cell *shm.Word64) error {
	if db.mode != KV && metaFlags(at.meta)&flagEmpty == 0 {
		return errors.Join(ErrMode, a.s.unlock(at, cell))
	}
	a.clearOwnerDied(at) // a Delete ends the record, and what is known of its last holder
	if metaFlags(at.meta)&flagEmpty != 0 {
		if err := a.letGo(at, cell); err != nil {
			return err
		}
		return ErrNotFound
	}
	return a.erase(len(key), hash, at, cell)
}
