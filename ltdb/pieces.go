package ltdb

import (
	"context"
	"errors"
	"fmt"

	"github.com/mainzdb/mainz/shm"
)

// Piece names what one ConditionalAppend has added: its OPID. It is
// comparable, and means nothing to other clients and after Close.
type Piece struct {
	opid OPID
	word uint32 // number of its word in the client's index
}

// IsZero reports whether p names nothing.
func (p Piece) IsZero() bool { return p == Piece{} }

// OPID returns the number of the append in the cluster.
func (p Piece) OPID() OPID { return p.opid }

func (s *Store) opid(counter uint64) OPID { return OPID{s.pnn, s.life, counter} }

// look is a snapshot of a record in memory of this process, and where it was
// taken: a change of the record counts only if it finds it unchanged.
type look struct {
	found bool // there is a record, maybe an empty one
	at    spot
	data  []byte
	tags  []byte
}

// same reports whether a record that was locked just now is still the one that
// was looked at. A seq never repeats at an address.
func (l *look) same(at *spot) bool {
	return l.found && l.at.entry == at.entry && (l.at.e^at.e)&identity == 0 && l.at.seq == at.seq
}

// lookAt takes the snapshot into a.look, as read does. done is false if the
// gate is closed or others kept changing the record.
func (a *actor) lookAt(db *DB, key []byte, hash uint64) (done bool, err error) {
	s, l := a.s, &a.look
	g := s.gate.Gate.Load()
	if g&3 != shm.GateOpen {
		return false, nil
	}
	for range readLooks {
		l.data, l.tags = l.data[:0], l.tags[:0]
		if l.found, err = db.find(hash, key, &l.at); err != nil {
			return true, err
		}
		fits := true
		if l.found {
			fits = a.copyRecord(len(key), &l.at)
			shm.LoadBarrier()
			if !l.at.unchanged() {
				continue
			}
		}
		switch {
		case s.gate.Gate.Load() != g:
			return false, nil
		case !s.leaseRuns():
			return true, ErrLeaseLost
		case !l.found:
			return true, nil
		case !fits:
			return true, errBadBlock
		case metaFlags(l.at.meta)&flagOwn == 0:
			return true, ErrNotHere
		}
		return true, nil
	}
	return false, nil
}

// copyRecord copies value and tags of the block at into a.look. It reports
// whether they make sense; a copy of something that changes meanwhile may not.
func (a *actor) copyRecord(klen int, at *spot) bool {
	s, l := a.s, &a.look
	n, tags := int(uint32(at.b.size.Load())), metaTags(at.meta)
	size := uint64(classSizes[entryClass(at.e)])
	if n > s.maxValue || dataOffset(klen)+uint64(n) > size || tags > 0 && pieceSize(klen, n, tags) > size {
		return false
	}
	off := refOffset(entryRef(at.e))
	l.data = room(l.data, n)
	s.r.CopyOut(l.data, off+dataOffset(klen))
	l.tags = room(l.tags, tags*tagSize)
	if tags == 0 {
		return true
	}
	s.r.CopyOut(l.tags, off+tagsOffset(klen, n))
	sum := 0
	for t := l.tags; len(t) > 0; t = t[tagSize:] {
		if sum += int(tagLen(t)); sum > n {
			return false
		}
	}
	return sum == n
}

// room returns a slice of n bytes, of b's memory if it is large enough.
func room(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n, n+n/2)
	}
	return b[:n]
}

// attempt is a change that a condition decides, over its attempts.
type attempt struct {
	db     *DB
	hash   uint64
	cond   *Condition
	wait   bool // a false condition arms the record
	remove bool // of what the condition finds
	// The piece's place in the index; prepared is false if it has none.
	prepared bool
	word     uint32
	counter  uint64
	// Where a refused append has to wait: a word and the value it had.
	change *shm.Word32
	seen   uint32
}

// ConditionalAppend adds piece to the record if the condition holds of it, and
// makes the record if there is none; else it returns ErrCondition at once. In
// a database of mode Pieces what it returns names the piece, which stays until
// RemoveAndTrigger, Close, or the client's death; in mode KV the piece becomes
// part of the value, and the zero Piece is returned. It waits while others
// hold the record's lock. ErrNoCondition, ErrTooBig, ErrNoSpace: nothing has
// changed. ErrMalformed: neither, and the error names the piece, or the one in
// the record, that is none of the condition's.
func (db *DB) ConditionalAppend(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error) {
	return db.conditionalAppend(ctx, nil, cond, key, piece, false)
}

// ConditionalAppendWait is ConditionalAppend that waits while the condition is
// false, and tries again whenever the record has changed. Once ctx has ended
// nothing stays appended: then its error is that of ctx.
func (db *DB) ConditionalAppendWait(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error) {
	return db.conditionalAppend(ctx, nil, cond, key, piece, true)
}

// RemoveAndTrigger removes a piece that this client has appended (mode Pieces)
// and wakes who waits for a change of the record. It returns nil, too, if the
// piece was lost with its record; ErrNotFound if the client has no such piece,
// or no longer; the error of ctx if the record stayed locked: then the piece
// is still there.
func (db *DB) RemoveAndTrigger(ctx context.Context, key []byte, p Piece) error {
	return db.removePiece(ctx, nil, key, p)
}

// RemoveMatching lets the condition find what to remove of the value (mode
// KV) for data, and wakes who waits for a change. ErrNotFound if it finds
// nothing; ErrMode if the condition can't find anything.
func (db *DB) RemoveMatching(ctx context.Context, cond ConditionID, key, data []byte) error {
	return db.removeMatching(ctx, nil, cond, key, data)
}

// ConditionalAppend is DB.ConditionalAppend.
func (h *Handle) ConditionalAppend(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error) {
	if err := h.enter(); err != nil {
		return Piece{}, err
	}
	defer h.leave()
	return h.db.conditionalAppend(ctx, h.a, cond, key, piece, false)
}

// ConditionalAppendWait is DB.ConditionalAppendWait.
func (h *Handle) ConditionalAppendWait(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error) {
	if err := h.enter(); err != nil {
		return Piece{}, err
	}
	defer h.leave()
	return h.db.conditionalAppend(ctx, h.a, cond, key, piece, true)
}

// RemoveAndTrigger is DB.RemoveAndTrigger.
func (h *Handle) RemoveAndTrigger(ctx context.Context, key []byte, p Piece) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.leave()
	return h.db.removePiece(ctx, h.a, key, p)
}

// RemoveMatching is DB.RemoveMatching.
func (h *Handle) RemoveMatching(ctx context.Context, cond ConditionID, key, data []byte) error {
	if err := h.enter(); err != nil {
		return err
	}
	defer h.leave()
	return h.db.removeMatching(ctx, h.a, cond, key, data)
}

func (db *DB) conditionalAppend(ctx context.Context, own *actor, id ConditionID, key, piece []byte, wait bool) (Piece,
	error) {
	s := db.s
	t := attempt{db: db, cond: s.condition(id), wait: wait}
	switch {
	case s.c == nil:
		return Piece{}, errReadOnly
	case checkKey(key) != nil:
		return Piece{}, errBadKey
	case len(piece) == 0:
		return Piece{}, errNoPiece
	case len(piece) > s.maxValue:
		return Piece{}, errBadValue
	case t.cond == nil:
		return Piece{}, ErrNoCondition
	}
	if err := t.cond.Malformed(Snapshot{}, piece); err != nil {
		return Piece{}, err
	}
	t.hash = db.hash(key)
	panicked := true
	defer func() {
		if panicked { // the condition did: nothing stays prepared
			_ = db.giveUp(own, key, &t, nil)
		}
	}()
	err := db.decide(ctx, own, key, piece, &t)
	if err == ErrFull {
		// The pieces of the dead take room as well.
		if n, e := s.tidy(ctx); e == nil && n > 0 {
			err = db.decide(ctx, own, key, piece, &t)
		}
	}
	panicked = false
	if err != nil {
		return Piece{}, db.giveUp(own, key, &t, err)
	}
	if db.mode == KV {
		return Piece{}, nil
	}
	return Piece{s.opid(t.counter), t.word}, nil
}

func (db *DB) removeMatching(ctx context.Context, own *actor, id ConditionID, key, data []byte) error {
	t := attempt{db: db, cond: db.s.condition(id), remove: true}
	switch {
	case db.s.c == nil:
		return errReadOnly
	case checkKey(key) != nil:
		return errBadKey
	case db.mode != KV:
		return ErrMode
	case t.cond == nil:
		return ErrNoCondition
	case t.cond.Find == nil:
		return ErrMode
	}
	if err := t.cond.Malformed(Snapshot{}, data); err != nil {
		return err
	}
	t.hash = db.hash(key)
	return db.decide(ctx, own, key, data, &t)
}

// maxAgain is how often in a row an attempt may find the record changed.
const maxAgain = 1 << 20

// decide tries until the change is made, refused, or ctx has ended.
func (db *DB) decide(ctx context.Context, own *actor, key, piece []byte, t *attempt) error {
	s := db.s
	var spin shm.Spin
	for again := 0; ; {
		err := db.decideOnce(ctx, own, key, piece, t, &spin)
		switch err {
		case nil:
			return nil
		case errAgain:
			// Somebody else has changed the record: one of us gets on.
			if again++; again%64 == 0 && ctx.Err() != nil {
				return ctx.Err()
			} else if again > maxAgain {
				return errOddBlock
			}
		case ErrCondition:
			if !t.wait {
				return err
			}
			if err = s.awaitChange(ctx, t.change, t.seen); err != nil {
				return err
			}
			again = 0
		case errHeld, errGate:
			// A condition runs on a snapshot: so this waits until the lock is
			// free, and looks anew.
			_, err = db.contended(ctx, own, key, t.hash, func(a *actor, at *spot, l *lock) error {
				defer a.s.locks.put(l)
				return a.s.comeBack(at, l.cell)
			})
			if err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// decideOnce makes one attempt. It never waits for a record.
func (db *DB) decideOnce(ctx context.Context, own *actor, key, piece []byte, t *attempt, spin *shm.Spin) error {
	a := own
	if a == nil {
		var err error
		if a, err = db.s.borrow(ctx); err != nil {
			return err
		}
	} else if db.s.closed.Load() {
		return errClosed
	}
	a.ctx = ctx
	defer a.endDecide(own) // the condition may panic
	a.keep = 0
	err := a.decide(t, key, piece)
	if err == errHeld && db.s.spinFor(spin, &a.look.at) {
		err = errAgain
	}
	return err
}

func (a *actor) endDecide(own *actor) {
	a.arriving = false
	if own == nil {
		a.s.giveBack(a)
	}
}

// decide looks, asks the condition, and changes the record if it is then still
// what was looked at.
func (a *actor) decide(t *attempt, key, piece []byte) error {
	s, l := a.s, &a.look
	done, err := a.lookAt(t.db, key, t.hash)
	if !done {
		done, err = a.lookLocked(t.db, key, t.hash)
	}
	if err != nil || !done {
		return err
	}
	// The functions get slices of ours: what the caller gave would else have to
	// be on the heap.
	n := len(l.data)
	l.data = append(l.data, piece...)
	value, piece := l.data[:n:n], l.data[n:]
	rec := Snapshot{data: value, tags: l.tags, pieces: t.db.mode == Pieces}
	if t.remove {
		off, cut := t.cond.Find(rec, piece)
		switch {
		case n == 0 || cut <= 0:
			return ErrNotFound
		case off < 0 || off > n || cut > n-off:
			return errBadFind
		}
		copy(value[off:], value[off+cut:])
		l.data = l.data[:n-cut] // not of value, whose capacity is clipped
		return a.changePlain(t, key)
	}
	if !t.cond.Holds(rec, piece) {
		return a.refused(t, key, rec, piece)
	}
	if len(l.data) > s.maxValue {
		return errBadValue
	}
	if t.db.mode == KV {
		return a.changePlain(t, key)
	}
	if pieceSize(len(key), len(l.data), len(l.tags)/tagSize+1) > s.maxBlock || len(l.tags)/tagSize == maxTags {
		return errBadValue
	}
	if !t.prepared {
		if t.word, t.counter, err = a.preparePiece(t.db, key, piece, t.hash); err != nil {
			return err
		}
		t.prepared = true
	}
	l.tags = appendTag(l.tags, s.opid(t.counter), len(piece))
	return a.changePieces(t, key)
}

// refused ends an attempt whose condition is false: with ErrCondition, and if
// it may be true as soon as the pieces of the dead are gone, with errAgain
// then. A record that no wait makes true is ErrMalformed. Who waits arms the
// record first.
func (a *actor) refused(t *attempt, key []byte, rec Snapshot, piece []byte) error {
	s := a.s
	if t.db.mode == Pieces && !s.managed() {
		found, err := s.foundDead(a.look.tags)
		if err != nil {
			return err
		}
		if found {
			saved := a.look
			a.look = look{}
			n, err := a.tidy()
			a.look = saved
			if err != nil {
				return err
			}
			if n > 0 {
				return errAgain
			}
		}
	}
	if err := t.cond.Malformed(rec, piece); err != nil {
		return fmt.Errorf("database %q, record %q: %w", t.db.name, key, err)
	}
	if !t.wait {
		return ErrCondition
	}
	return a.arm(t, key)
}

// arm flags the record as one that is waited for, under its lock, if it is
// still the one for which the condition was false. Who changes it after that
// sees the flag; who changed it before makes us look again.
func (a *actor) arm(t *attempt, key []byte) error {
	s := a.s
	// A sweep must not move the record between the lock and the flag.
	a.h.busy.Store(1)
	defer a.h.busy.Store(0)
	var at spot
	if planted("armlate") && a.look.found {
		if ok, err := s.tryLock(t.db, key, t.hash, a.cell, nil, &at, newcomer); err != nil {
			a.cell.Store(0)
			return err
		} else if !ok {
			return errAgain
		}
	} else if err := a.lockSame(t.db, key, t.hash, &at); err != nil {
		return err
	}
	t.change = s.changeOf(shm.OffsetOf(s.r, at.entry))
	t.seen = t.change.Load()
	at.b.meta.Store(at.b.meta.Load() | metaWaited)
	if err := s.unlock(&at, a.cell); err != nil {
		return err
	}
	return ErrCondition
}

// lookLocked takes the snapshot under the record's lock: a large record that
// is written all the time never holds still.
func (a *actor) lookLocked(db *DB, key []byte, hash uint64) (done bool, err error) {
	s, l := a.s, &a.look
	if s.gate.Gate.Load()&3 != shm.GateOpen {
		return false, errGate
	}
	ok, err := s.tryLock(db, key, hash, a.cell, nil, &l.at, newcomer)
	l.found = ok
	if err != nil {
		a.cell.Store(0)
		return false, err
	}
	if !ok {
		return false, errAgain
	}
	fits := a.copyRecord(len(key), &l.at)
	if err := s.unlock(&l.at, a.cell); err != nil {
		return false, err
	}
	if !fits {
		return false, errBadBlock
	}
	return true, nil
}

// lockSame locks the record that was looked at, or makes it if there was none.
// errAgain: it is another one by now, and not locked.
func (a *actor) lockSame(db *DB, key []byte, hash uint64, at *spot) error {
	s := a.s
	ok, err := s.tryLock(db, key, hash, a.cell, nil, at, newcomer)
	switch {
	case err != nil:
		a.cell.Store(0)
		a.look.at = *at // for who spins
		return err
	case !ok && !a.look.found:
		if err := a.insert(db, key, hash, a.cell, at); err != nil {
			a.cell.Store(0)
			if err == errHeld {
				err = errAgain // it is there by now
			}
			return err
		}
		return nil
	case !ok:
		return errAgain
	case !a.look.same(at) && !planted("stale") && (a.look.found || metaFlags(at.meta)&flagEmpty == 0):
		if err := a.release(at); err != nil {
			return err
		}
		return errAgain
	}
	return nil
}

// release lets go of a locked record that keeps its value. Unlike letGo it
// does not look at the gate: who waits for that must not be busy.
func (a *actor) release(at *spot) error {
	if f := metaFlags(at.meta); f&flagEmpty != 0 && f&keptFlags == 0 && a.makeRoom(entryClass(at.e), 1) == nil {
		err := a.publish(at, a.cell, 0, andUnlock)
		if entryClass(at.e) >= smallClasses && err == nil {
			err = a.flushBig()
		}
		return err
	}
	return a.s.unlock(at, a.cell)
}

// changePlain replaces the value by a.look's, of mode KV.
func (a *actor) changePlain(t *attempt, key []byte) error {
	var at spot
	if len(a.look.data) > 0 {
		if err := a.reserveFor(classOf(blockSize(len(key), len(a.look.data)))); err != nil {
			return err
		}
	}
	if err := a.lockSame(t.db, key, t.hash, &at); err != nil {
		return err
	}
	if len(a.look.data) == 0 {
		return a.erase(len(key), t.hash, &at, a.cell)
	}
	return a.commit(len(key), a.look.data, t.hash, &at, a.cell)
}

// reserveFor is reserve of a block of class c for the next value of the record
// that was looked at: one that fits the record's own block needs none (spare.go).
func (a *actor) reserveFor(c int) error {
	if ok, err := a.gather(c, 1); ok || err != nil || a.look.found && c <= entryClass(a.look.at.e) {
		return err
	}
	return a.reserve(c, 1)
}

// changePieces replaces the record by a.look, of mode Pieces, and makes the
// prepared piece live. Live comes after the lock: before it, a freeze could
// find the piece live that no record has, and supply it anew. And before the
// commit: after it, a death would leave a piece in the record that nobody
// knows to be live.
//
// busy stands from before the lock until after the commit. A freeze waits for
// it; so nothing may wait for the freeze in between.
func (a *actor) changePieces(t *attempt, key []byte) error {
	s, l := a.s, &a.look
	w := s.index.word(t.word)
	tags := len(l.tags) / tagSize
	if err := a.reserveFor(classOf(pieceSize(len(key), len(l.data), tags))); err != nil {
		return err
	}
	live := w.Load()&^stateMask | stateLive
	if planted("livefirst") {
		w.Store(live)
	}
	if !planted("nobusy") {
		a.h.busy.Store(1)
	}
	var at spot
	err := a.lockSame(t.db, key, t.hash, &at)
	if err != nil {
		a.h.busy.Store(0)
		return err
	}
	old := entryClass(at.e)
	var d draft
	if s.leaseRuns() {
		d, err = a.draftPieces(len(key), t.hash, &at)
	} else {
		err = ErrLeaseLost
	}
	if err != nil {
		err = errors.Join(err, a.release(&at))
		a.h.busy.Store(0)
		return err
	}
	w.Store(live)
	err = a.publish(&at, a.cell, at.e&tagMask|makeID(d.ref, d.c), andUnlock)
	a.h.busy.Store(0)
	if err != nil {
		return err
	}
	t.prepared = false // it is the record's now
	a.h.counters[countStores].Inc()
	return a.settle(old)
}

// draftPieces writes a.look into a draft: the record's next value.
func (a *actor) draftPieces(klen int, hash uint64, at *spot) (draft, error) {
	l := &a.look
	tags := len(l.tags) / tagSize
	if err := a.makeRoom(entryClass(at.e), 1); err != nil {
		return draft{}, err
	}
	d, err := a.draftFor(classOf(pieceSize(klen, len(l.data), tags)), at)
	if err != nil {
		return d, err
	}
	a.write(d, klen, l.data, entryRef(at.e))
	a.s.r.CopyIn(refOffset(d.ref)+tagsOffset(klen, len(l.data)), l.tags)
	flags := flagOwn | metaFlags(at.meta)&keptFlags
	if len(l.data) == 0 {
		flags |= flagEmpty
	}
	d.b.rsn.Store(at.b.rsn.Load() + 1)
	d.b.acc.Store(a.s.accessed(at.b.acc.Load()))
	d.b.size.Store(uint64(uint32(len(l.data))) | hash<<32)
	d.b.meta.Store(makeMeta(klen, d.c, flags) | uint64(tags)<<32)
	d.b.seq.Store(d.odd + 1)
	return d, nil
}

// giveUp takes back what an append that fails has prepared.
func (db *DB) giveUp(own *actor, key []byte, t *attempt, err error) error {
	if !t.prepared && t.change == nil {
		return err
	}
	a := own
	if a == nil {
		var e error
		if a, e = db.s.borrow(context.Background()); e != nil {
			return err // closed: Close removes it
		}
		defer db.s.giveBack(a)
	}
	if t.change != nil {
		// It may have made an empty record to wait at.
		var at spot
		if ok, e := a.s.tryLock(db, key, t.hash, a.cell, nil, &at, anybody); e != nil || !ok {
			a.cell.Store(0)
		} else if e := a.release(&at); e != nil {
			return errors.Join(err, e)
		}
	}
	if !t.prepared {
		return err
	}
	if e := a.erasePiece(db.s.index.word(t.word)); e != nil {
		return errors.Join(err, e)
	}
	a.freeWord(t.word)
	return err
}

// removePiece is RemoveAndTrigger.
func (db *DB) removePiece(ctx context.Context, own *actor, key []byte, p Piece) error {
	s := db.s
	switch {
	case s.c == nil:
		return errReadOnly
	case s.closed.Load():
		return errClosed
	case checkKey(key) != nil:
		return errBadKey
	case db.mode != Pieces:
		return ErrMode
	}
	w := s.index.word(p.word)
	if w == nil || p.IsZero() || p.opid != s.opid(p.opid.Counter) {
		return ErrNotFound
	}
	v := w.Load()
	if v&stateMask != stateLive || (v^stampOf(p.opid.Counter))>>stampShift != 0 ||
		!w.CAS(v, v&^stateMask|stateRemoving) {
		return ErrNotFound
	}
	b, ok := s.pieceAt(v)
	if !ok || b.counter != p.opid.Counter || b.db != db.id || b.klen != len(key) ||
		!s.r.Equal(refOffset(b.ref)+blockHeaderSize, key) {
		w.Store(v)
		if !ok {
			return errBadBlock
		}
		return ErrNotFound
	}
	hash := db.hash(key)
	var spin shm.Spin
	for {
		err := db.removePieceOnce(ctx, own, key, hash, p, w, &spin)
		switch err {
		case errAgain:
			continue
		case errHeld, errGate:
			_, err = db.contended(ctx, own, key, hash, func(a *actor, at *spot, l *lock) error {
				defer a.s.locks.put(l)
				return a.s.comeBack(at, l.cell)
			})
			if err == nil {
				continue
			}
		case nil:
			return nil
		}
		if w.Load()&stateMask == stateRemoving {
			w.Store(v) // it is still there
		}
		return err
	}
}

func (db *DB) removePieceOnce(ctx context.Context, own *actor, key []byte, hash uint64, p Piece, w *shm.Word64,
	spin *shm.Spin) error {
	a := own
	if a == nil {
		var err error
		if a, err = db.s.borrow(ctx); err != nil {
			return err
		}
	} else if db.s.closed.Load() {
		return errClosed
	}
	a.ctx = ctx
	a.keep = 0
	_, err := a.cutPiece(db, key, hash, p.opid, newcomer)
	switch {
	case err == errHeld && db.s.spinFor(spin, &a.look.at):
		err = errAgain
	case err == nil || errors.Is(err, ErrLeaseLost):
		e := a.erasePiece(w)
		if e == nil {
			a.freeWord(p.word)
		}
		if err == nil {
			err = e
		}
	}
	if own == nil {
		db.s.giveBack(a)
	}
	return err
}

// cutPiece takes a piece out of its record, if it is there. It never waits for
// the record; who is tryLock's. changed says that it was there.
func (a *actor) cutPiece(db *DB, key []byte, hash uint64, o OPID, who uint64) (changed bool, err error) {
	s, l := a.s, &a.look
	if !planted("nobusy") {
		a.h.busy.Store(1)
	}
	var at spot
	ok, err := s.tryLock(db, key, hash, a.cell, nil, &at, who)
	if err != nil || !ok {
		a.cell.Store(0)
		a.h.busy.Store(0)
		l.at, l.found = at, ok // for who spins, and for orphans
		return false, err
	}
	l.found = true
	if !a.copyRecord(len(key), &at) {
		err = errBadBlock
	} else {
		changed = l.cut(o)
	}
	if err != nil || !changed {
		err = errors.Join(err, a.release(&at))
		a.h.busy.Store(0)
		return false, err
	}
	old, id := entryClass(at.e), uint64(0)
	if len(l.data) > 0 || metaFlags(at.meta)&keptFlags != 0 {
		var d draft
		if d, err = a.draftPieces(len(key), hash, &at); err == nil {
			id = at.e&tagMask | makeID(d.ref, d.c)
		}
	} else {
		err = a.makeRoom(old, 1)
		a.h.counters[countDeletes].Inc()
	}
	if err != nil {
		err = errors.Join(err, s.unlock(&at, a.cell))
		a.h.busy.Store(0)
		return false, err
	}
	err = a.publish(&at, a.cell, id, andUnlock)
	a.h.busy.Store(0)
	if err != nil {
		return false, err
	}
	return true, a.settle(old)
}

// cut takes the piece with that OPID out of the copy, if it is there.
func (l *look) cut(o OPID) bool {
	at := 0
	for i := 0; i < len(l.tags); i += tagSize {
		n := int(tagLen(l.tags[i:]))
		if tagOPID(l.tags[i:]) == o {
			l.data = append(l.data[:at], l.data[at+n:]...)
			l.tags = append(l.tags[:i], l.tags[i+tagSize:]...)
			return true
		}
		at += n
	}
	return false
}
