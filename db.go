package mainz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/protocol/wire"
)

// What a client sees of the store is the store's: nothing is copied or
// translated between the two.
type (
	// Batch is reusable room for FetchBatch.
	Batch = ltdb.Batch
	// Record is a locked record, a small value: copies go stale together, and
	// every method of a stale one returns ErrNotLocked, or ErrClosed after the Client's
	// Close. One goroutine at a time: of two calls that end a record at once one does,
	// and the other returns ErrNotLocked; one that meets Store under way in another
	// goroutine panics.
	Record = ltdb.Record
	// LockError is what a call returns whose context has ended while it waited for a
	// record's lock: which record, and who holds it. It wraps the context's error.
	LockError = ltdb.LockError
	// Holder is who holds a record's lock.
	Holder = ltdb.Holder
	// Piece names what one ConditionalAppend added; comparable; meaningless to
	// other clients and after Close.
	Piece = ltdb.Piece
	// Entry is one record of a Traverse; its slices are valid until the next step.
	Entry = ltdb.Entry
	// ConditionID names a condition function in the whole cluster. 0 to 15 are
	// built in.
	ConditionID = ltdb.ConditionID
	// Condition decides appends; docs/conditions.md.
	Condition = ltdb.Condition
	// Snapshot is a record as a condition sees it.
	Snapshot = ltdb.Snapshot
)

// The built-in conditions.
const (
	Always     = ltdb.Always     // always true: a plain append
	IfAbsent   = ltdb.IfAbsent   // the record is empty
	ShareModes = ltdb.ShareModes // no conflict with the share modes of the other entries
	ByteRanges = ltdb.ByteRanges // no conflict with the byte ranges of the other entries
)

// DB is one database as a client of the node uses it: by bypass where it can, through
// the ring where it must. It is safe for many goroutines; each call borrows a Handle.
// Keys are 1 to 1,024 bytes.
type DB struct {
	c       *Client
	l       *ltdb.DB
	special bool // see ops.go

	lockTimeout uint32 // milliseconds
}

// Handle does what its DB does, for one goroutine at a time, without the
// borrowing: the hot path. A call that finds another one of the same Handle under way
// panics, before it has touched anything; Fetch and its like, which change nothing, are
// not looked at.
type Handle struct {
	l       *ltdb.Handle
	quick   *ltdb.Handle // l, or one that refuses always if special
	special bool         // the DB's
	db      *DB

	mu     sync.Mutex
	byRing []Record // locked through the ring, which are no locks of l
	closed bool
}

// Ops is what both a *DB and a *Handle can do. ctx is looked at only when a call
// has to wait.
type Ops interface {
	// Fetch returns a copy of the value, or ErrNotFound if there is no record. It takes no lock.
	Fetch(ctx context.Context, key []byte) ([]byte, error)
	// AppendFetch appends the value to dst and returns the extended slice. It does not allocate
	// if dst has room. On an error it returns dst as it was.
	AppendFetch(ctx context.Context, dst, key []byte) ([]byte, error)
	// FetchBatch fills b.Value and b.Err for every key of b.Keys, and returns how many records
	// it found. Its own error says that it looked for none.
	FetchBatch(ctx context.Context, b *Batch) (int, error)
	// FetchLocked locks the record and copies its value. If there is no record it makes an empty
	// one, which goes with the lock if nothing is stored. It waits while others hold the lock; if
	// ctx ends first, a *LockError says who does.
	FetchLocked(ctx context.Context, key []byte) (Record, error)
	// TryFetchLocked is FetchLocked that does not wait for another holder: it returns ErrLocked.
	TryFetchLocked(ctx context.Context, key []byte) (Record, error)
	// Store replaces the value, or makes the record, in a database of mode KV. It waits while
	// others hold the lock. It keeps no lock.
	Store(ctx context.Context, key, data []byte) error
	// Delete removes the record. It waits like Store. ErrNotFound: there is no record. ErrMode:
	// the record holds pieces.
	Delete(ctx context.Context, key []byte) error
	// ConditionalAppend adds piece to the record if the condition holds. Otherwise it returns
	// ErrCondition at once. ErrMalformed: the piece, or one in the record, is none that the
	// condition understands. In mode KV the Piece is the zero one.
	ConditionalAppend(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error)
	// ConditionalAppendWait is ConditionalAppend that tries again at every change of the record
	// until ctx ends. If ctx ends first, nothing stays appended.
	ConditionalAppendWait(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error)
	// RemoveAndTrigger removes a piece that this client appended, in a database of mode Pieces,
	// and wakes those who wait for the record or watch it.
	RemoveAndTrigger(ctx context.Context, key []byte, p Piece) error
	// RemoveMatching removes what the condition's function finds in the record, in a database of
	// mode KV. ErrNotFound: it finds nothing.
	RemoveMatching(ctx context.Context, cond ConditionID, key, data []byte) error
}

var (
	_ Ops = (*DB)(nil)
	_ Ops = (*Handle)(nil)
)

// Name returns the database's name.
func (db *DB) Name() string { return db.l.Name() }

// Mode returns the database's mode.
func (db *DB) Mode() Mode { return db.l.Mode() }

// Handle reserves one of the client's handles until Close; ErrNoHandles when all
// are taken.
func (db *DB) Handle() (*Handle, error) {
	l, err := db.l.Handle()
	if err != nil {
		return nil, err
	}
	h := &Handle{l: l, quick: l, special: db.special, db: db}
	if h.special {
		h.quick = new(ltdb.Handle)
	}
	return h, nil
}

// Close gives the handle back and unlocks what it still holds.
func (h *Handle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	var errs []error
	for _, r := range h.byRing {
		if err := r.Unlock(); err != ErrNotLocked && !errors.Is(err, ErrClosed) {
			errs = append(errs, err)
		}
	}
	h.byRing = nil
	return errors.Join(append(errs, h.l.Close())...)
}

// lock is FetchLocked through the ring.
func (h *Handle) lock(ctx context.Context, key []byte, wait bool) (Record, error) {
	r, err := h.db.lock(ctx, key, wait)
	if err != nil {
		return r, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return Record{}, errors.Join(errHandleClosed, r.Unlock())
	}
	h.byRing = append(slices.DeleteFunc(h.byRing, func(old Record) bool { return !old.Held() }), r)
	return r, nil
}

// ringServes reports whether an operation that the bypass refused can go through the
// ring. Nothing has happened then.
func (db *DB) ringServes(err error) bool {
	return (errors.Is(err, ltdb.ErrNotHere) || errors.Is(err, ErrNoCondition)) && db.c.ring != nil
}

// limit is the time that a request may take at the dispatcher.
func limit(ctx context.Context) uint32 {
	if ctx == nil {
		return call.NoLimit // through refuses it
	}
	d, ok := ctx.Deadline()
	if !ok {
		return call.NoLimit
	}
	left := time.Until(d)
	return uint32(min(max(left, 0)/time.Millisecond+1, 1<<31))
}

// through sends a request through the ring.
//
// late is called if the call ends when nobody waits for it any more; it may be
// nil.
func (db *DB) through(ctx context.Context, m *wire.Message, late func(*call.Pending)) (*call.Pending, error) {
	if ctx == nil {
		return nil, errNoContext
	}
	if db.c.ring == nil {
		return nil, errObserver
	}
	if len(m.Key) < 1 || len(m.Key) > call.MaxKey {
		return nil, errBadKey
	}
	if len(m.Data) > db.c.store.MaxValue() {
		return nil, errBadValue
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.DBID = db.l.ID()
	p, err := db.c.ring.Call(ctx, m, late)
	if err != nil {
		return nil, err
	}
	return p, failed(ctx, p.Status)
}

// giveBack ends the use of what through has returned.
func (db *DB) giveBack(p *call.Pending) {
	if p != nil {
		db.c.ring.Done(p)
	}
}

// change is through for what changes a record, and waits for its lock. A request
// without a time limit may wait for a false condition as well, so one that must
// not is asked again and again.
func (db *DB) change(ctx context.Context, m *wire.Message, once bool, late func(*call.Pending)) error {
	m.Timeout = limit(ctx)
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		if once {
			m.Timeout = 0
		}
		p, err := db.through(ctx, m, late)
		again := once && p != nil && p.Status == wire.Timeout
		db.giveBack(p)
		if !again {
			return db.blocked(m.Key, err)
		}
		select {
		case <-ctx.Done():
			return db.blocked(m.Key, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// blocked is the error of a change whose context has ended, with who holds the record
// if somebody does. It may also have waited for a condition, or for mainzd; and of an
// ErrUnknown nobody knows what it waited for.
func (db *DB) blocked(key []byte, err error) error {
	if err == nil || errors.Is(err, ErrUnknown) {
		return err
	}
	var l *LockError
	if named := db.l.Blocked(key, err); errors.As(named, &l) && l.Holder.Slot != 0 {
		return named
	}
	return err
}

// fetch is AppendFetch through the ring.
func (db *DB) fetch(ctx context.Context, dst, key []byte) ([]byte, error) {
	if ctx == nil {
		return dst, errNoContext
	}
	p, err := db.through(ctx, &wire.Message{Op: wire.ReqFetch, Key: key, Timeout: limit(ctx)}, nil)
	defer db.giveBack(p)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err() // a read has no outcome that anybody could not know
		}
		return dst, err
	}
	_, data, ok := call.DecodeReply(p.Reply)
	switch {
	case !ok:
		return dst, ErrIncompatible
	case len(data) == 0:
		return dst, ErrNotFound
	}
	return append(dst, data...), nil
}

// lock is FetchLocked through the ring.
func (db *DB) lock(ctx context.Context, key []byte, wait bool) (Record, error) {
	if ctx == nil {
		return Record{}, errNoContext
	}
	if db.c.ring == nil {
		return Record{}, errObserver
	}
	if len(key) < 1 || len(key) > call.MaxKey {
		return Record{}, errBadKey
	}
	if err := ctx.Err(); err != nil {
		return Record{}, err
	}
	key = bytes.Clone(key) // the announcement may outlive the call
	if wait {
		leave, err := db.c.ring.Stand(ctx, db.l.ID(), string(key))
		if err != nil {
			return Record{}, db.l.Blocked(key, err)
		}
		defer leave()
	}
	n, err := db.l.Announce(ctx, key)
	if err != nil {
		return Record{}, err
	}
	m := wire.Message{Op: wire.ReqFetchLocked, DBID: db.l.ID(), Key: key, LockTimeout: db.lockTimeout}
	if wait {
		m.Timeout = limit(ctx)
	}
	p, err := db.c.ring.Call(ctx, &m, func(end *call.Pending) {
		_ = db.l.Withdraw(n, !end.Abandoned && end.Status == wire.OK)
	})
	defer db.c.ring.Done(p)
	if err == nil && p.Status == wire.OK {
		return db.l.Redeem(n)
	}
	if !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrClosed) {
		err = errors.Join(err, db.l.Withdraw(n, false))
	}
	if err == nil {
		if p.Status == wire.Timeout && !wait {
			return Record{}, ErrLocked
		}
		err = failed(ctx, p.Status)
	}
	return Record{}, db.l.Blocked(key, err)
}

// append is ConditionalAppend and …Wait through the ring.
func (db *DB) append(ctx context.Context, cond ConditionID, key, piece []byte, wait bool) (Piece, error) {
	m := wire.Message{Op: wire.ReqConditionalAppend, Cond: uint32(cond), Key: key, Data: piece}
	if len(piece) == 0 {
		return Piece{}, errNoPiece
	}
	if err := db.l.CheckPiece(cond, piece); err != nil {
		return Piece{}, err
	}
	if db.l.Mode() == KV {
		return Piece{}, db.malformed(key, waited(ctx, wait, db.change(ctx, &m, !wait, nil)))
	}
	p, err := db.l.PreparePiece(key, piece)
	if err != nil {
		return Piece{}, err
	}
	m.Piece = opid(p)
	key = bytes.Clone(key)
	err = db.change(ctx, &m, !wait, func(end *call.Pending) {
		if end.Abandoned || end.Status != wire.OK {
			_ = db.l.DropPiece(p)
			return
		}
		db.l.KeepPiece(p)
		go func() { _ = db.remove(db.c.ring.Context(), key, p) }() // nobody wants it
	})
	switch {
	case err == nil:
		db.l.KeepPiece(p)
		return p, nil
	case errors.Is(err, ErrUnknown), errors.Is(err, ErrClosed):
		return Piece{}, err // it stays prepared until the call ends, or the client does
	}
	return Piece{}, errors.Join(db.malformed(key, waited(ctx, wait, err)), db.l.DropPiece(p))
}

// malformed names the record of an ErrMalformed that the dispatcher has answered.
func (db *DB) malformed(key []byte, err error) error {
	if errors.Is(err, ErrMalformed) {
		return fmt.Errorf("database %q, record %q, a piece that is in it: %w; remove it first", db.l.Name(), key, err)
	}
	return err
}

// waited is the error of an append that was to wait until its condition is true:
// if that is the answer, the dispatcher's clock was a little faster than the
// context's.
func waited(ctx context.Context, wait bool, err error) error {
	if !wait || !errors.Is(err, ErrCondition) {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return context.DeadlineExceeded
}

func opid(p Piece) wire.OPID {
	o := p.OPID()
	return wire.OPID{PNN: wire.PNN(o.PNN), Life: o.Life, Counter: o.Counter}
}

// remove is RemoveAndTrigger through the ring.
func (db *DB) remove(ctx context.Context, key []byte, p Piece) error {
	if db.l.Mode() != Pieces {
		return ErrMode
	}
	if ctx == nil {
		return errNoContext
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := db.l.MarkRemoving(key, p); err != nil {
		return err
	}
	err := db.change(ctx, &wire.Message{Op: wire.ReqRemoveTrigger, Key: key, Piece: opid(p)}, false,
		func(end *call.Pending) {
			if end.Abandoned || end.Status != wire.OK && end.Status != wire.NotFound {
				db.l.KeepPiece(p)
				return
			}
			_ = db.l.DropPiece(p)
		})
	switch {
	case err == nil || errors.Is(err, ErrNotFound):
		return db.l.DropPiece(p)
	case !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrClosed):
		db.l.KeepPiece(p)
	}
	return err
}

func (db *DB) removeMatching(ctx context.Context, cond ConditionID, key, data []byte) error {
	if db.l.Mode() != KV {
		return ErrMode
	}
	if err := db.l.CheckPiece(cond, data); err != nil {
		return err
	}
	return db.change(ctx, &wire.Message{Op: wire.ReqRemoveTrigger, Cond: uint32(cond), Key: key, Data: data}, false,
		nil)
}

func (db *DB) put(ctx context.Context, key, data []byte) error {
	if db.l.Mode() != KV {
		return ErrMode
	}
	return db.change(ctx, &wire.Message{Op: wire.ReqStoreUnlock, Key: key, Data: data}, false, nil)
}

func (db *DB) batch(ctx context.Context, b *Batch) (int, error) {
	if ctx == nil {
		return 0, errNoContext
	}
	if b == nil {
		return 0, errNoBatch
	}
	n := 0
	b.Value, b.Err = make([][]byte, len(b.Keys)), make([]error, len(b.Keys))
	for i, key := range b.Keys {
		b.Value[i], b.Err[i] = db.fetch(ctx, nil, key)
		if b.Err[i] == nil {
			n++
		} else if err := ctx.Err(); err != nil {
			return n, err
		}
	}
	return n, nil
}

// Event says why Watch yielded.
type Event uint8

const (
	Armed     Event = iota + 1 // The watch stands; nothing later is missed.
	Changed                    // The value changed or a piece was removed.
	Recovered                  // A recovery passed: the value may have been lost or rebuilt.
)

// Watch yields once when armed and then after every change of key (several may
// be one), until ctx ends or the loop breaks. Fetch inside the loop. It goes
// through the ring.
func (db *DB) Watch(ctx context.Context, key []byte) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for seen, event := uint64(0), Armed; ; {
			rsn, now, err := db.await(ctx, key, seen, event)
			if err != nil {
				yield(0, err)
				return
			}
			if now == 0 {
				continue
			}
			if seen = rsn; !yield(now, nil) {
				return
			}
			event = Changed
		}
	}
}

// await waits for one event of a watch; 0: it is to be asked again.
func (db *DB) await(ctx context.Context, key []byte, seen uint64, event Event) (rsn uint64, _ Event, err error) {
	if ctx == nil {
		return 0, 0, errNoContext
	}
	if db.c.ring == nil {
		return 0, 0, errObserver
	}
	m := wire.Message{Op: wire.ReqWatch, Key: key, RSN: seen, Timeout: limit(ctx)}
	if event == Armed {
		m.RSN = ^uint64(0) // a number that no record has: the answer is the present one
	}
	until, end := db.c.ring.Watch(ctx)
	p, err := db.through(until, &m, nil)
	recovered := end()
	defer db.giveBack(p)
	switch {
	case recovered && ctx.Err() == nil && event == Armed:
		return 0, 0, nil // as if it had not been asked
	case recovered && ctx.Err() == nil:
		return seen, Recovered, nil
	case err != nil && ctx.Err() != nil:
		return 0, 0, ctx.Err()
	case err != nil:
		return 0, 0, err
	}
	rsn, _, ok := call.DecodeReply(p.Reply)
	switch {
	case !ok:
		return 0, 0, ErrIncompatible
	case p.Why == wire.WatchTimeout:
		return 0, 0, nil
	}
	return rsn, event, nil
}

// Traverse yields the database's records in no order, each at least once if it
// exists throughout. No lock is held while the body runs.
func (db *DB) Traverse(ctx context.Context) iter.Seq2[Entry, error] { return db.l.Traverse(ctx) }

// Usage walks the database and counts what is in it. It takes no lock.
func (db *DB) Usage(ctx context.Context) (ltdb.Usage, error) { return db.l.Usage(ctx) }
