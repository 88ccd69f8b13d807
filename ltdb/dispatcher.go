package ltdb

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// Dispatcher is the dispatcher's side of a store: it serves requests for the
// node's records beside the clients that work on them directly. Each of its
// methods belongs to one goroutine, and none waits for a record or a bucket:
// what can't be had now is told by Rung later.
//
// What the dispatcher has locked stays locked when it dies. Its successor
// releases what nobody remembers (ReleaseLeft).
type Dispatcher struct {
	s       *Store
	a       *actor
	owner   *shm.OwnerLock
	dbs     map[uint32]*DB
	watch   map[watchKey]*watch
	bits    [rungBits][]*watch // by bit, what to tell when it is rung
	later   []*watch           // what could not be had for a reason that passes by itself
	told    []*watch
	orphans orphanPlace // where their clean-up goes on
	undone  []watchKey  // to be removed as soon as a latch is free; locked until then
	seen    []seenAt    // what was looked at since the last Rung
	burst   [64]struct {
		entry *shm.Word64
		n     int
	}
	at         spot   // of locked
	data, tags []byte // of Look
	scanKey    []byte // of Scan
	scanned    Held
	err        error // the first damage met
	met        []error
	conds      map[int]ConditionInfo // by line of the table, as they were when they were sound
	mapped     mappedAs
	gate       uint64 // the gate's word as this dispatcher has stored it; 0: it has not
	stuck      map[shm.HandleID]stuckAt
	stuckSlot  uint32 // that was looked at last
}

// mappedAs is what the dispatcher has stored beside the gate's word and in the
// lease, for Mend.
type mappedAs struct {
	known               bool // Mapped, Lease and Open were called
	epoch, opened       uint64
	vnn, members, place uint32
	ticks, boot         uint64
}

type watchKey struct {
	db  uint32
	key string
}

// watch is a record that the dispatcher wants to hear of.
type watch struct {
	db       *DB
	key      []byte
	bit      uint
	listed   bool // in bits
	attended bool // until Attend says no; else until the record is handed over
	waits    bool // for the lock
	later    bool // tell at the next Rung in any case
	overdue  bool // it was left to a sleeper when it was last tried
	left     bool // what an earlier dispatcher has left there is still to be taken off
	entry    *shm.Word64
}

type seenAt struct {
	entry *shm.Word64
	id    uint64
	seq   uint64
}

// LockResult is the answer of TryLock.
type LockResult uint8

// TryLock's answers: the dispatcher holds it; another does, and Rung tells when
// to try again; there is no room for a new record.
const (
	LockTaken LockResult = iota
	LockHeld
	LockNoSpace
)

// localBurst is how often in a row the dispatcher serves a record for which
// local clients sleep, before it lets one of them go first.
const localBurst = 4

// OpenDispatcher opens the store in dir as its dispatcher, and owns the
// directory until Close. Of Options it takes all but ReadOnly.
func OpenDispatcher(ctx context.Context, dir string, opts Options) (*Dispatcher, error) {
	cfg, err := segmentConfig(opts.Config)
	if err != nil {
		return nil, err
	}
	if opts.Create || opts.Wipe {
		if err := shm.MakeDir(dir, cfg); err != nil {
			return nil, fmt.Errorf("open %s: %w", dir, err)
		}
	}
	owner, err := shm.LockOwner(dir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	d, err := openOwned(ctx, dir, opts, cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", dir, err), owner.Release())
	}
	d.owner = owner
	return d, nil
}

func openOwned(ctx context.Context, dir string, opts Options, cfg shm.Config) (*Dispatcher, error) {
	var seg *shm.Segment
	err := error(ErrNotRunning)
	if !opts.Wipe {
		if seg, err = shm.Attach(ctx, dir, layout()); err == nil {
			warnConfig(seg, opts)
		}
	}
	if absent(err) && (opts.Create || opts.Wipe) {
		seg, err = shm.Create(ctx, dir, cfg, fill)
	}
	if err != nil {
		return nil, err
	}
	d, err := joinDispatcher(ctx, seg, opts)
	if err != nil {
		return nil, errors.Join(err, seg.Close())
	}
	return d, nil
}

// JoinDispatcher adds a dispatcher to a store's segment, as another process
// would. It serves tests over a heap store.
func (s *Store) JoinDispatcher(ctx context.Context, opts Options) (*Dispatcher, error) {
	d, err := joinDispatcher(ctx, s.seg, opts)
	if err == nil {
		d.s.guest = true
	}
	return d, err
}

func joinDispatcher(ctx context.Context, seg *shm.Segment, opts Options) (*Dispatcher, error) {
	if opts.Name == "" {
		opts.Name = "dispatcher"
	}
	opts.dispatcher = true
	conds := opts.Conditions
	opts.Conditions = nil
	warn(seg, opts)
	s, err := join(ctx, seg, opts)
	if err != nil {
		return nil, err
	}
	if err := s.registerSoon(ctx, conds); err != nil {
		return nil, errors.Join(err, s.c.Leave())
	}
	var a *actor
	for i := len(s.actors) - 1; i >= 0; i-- {
		if s.actors[i].use.Load() == actorIdle {
			a = &s.actors[i]
		}
	}
	a.use.Store(actorReserved)
	a.arriving = false
	return &Dispatcher{s: s, a: a, dbs: map[uint32]*DB{}, conds: map[int]ConditionInfo{}, watch: map[watchKey]*watch{}}, nil
}

// registerSoon is register for the dispatcher, within ctx.
func (s *Store) registerSoon(ctx context.Context, conds []Condition) error {
	for {
		err := s.register(ctx, conds)
		if !errors.Is(err, errLatched) {
			return err
		}
		select {
		case <-ctx.Done():
			var held *latchError
			errors.As(err, &held)
			held.err = ctx.Err()
			return err
		case <-time.After(time.Millisecond):
		}
	}
}

// Store returns the store that the dispatcher works on.
func (d *Dispatcher) Store() *Store { return d.s }

// Err returns the first damage of the segment that a method has met, nil if
// none. Damage of one thing leaves the others to be served.
func (d *Dispatcher) Err() error { return d.err }

// Trouble returns the damage that was met since the last call, each kind once,
// and forgets it.
func (d *Dispatcher) Trouble() []error {
	met := d.met
	d.met = nil
	return met
}

// Ended says why the segment can't be served any more, nil if it can: only this
// dispatcher stores to the gate, but for who replaces the segment.
func (d *Dispatcher) Ended() error {
	g := d.s.gate.Gate.Load()
	switch {
	case g == d.gate || d.gate == 0:
		return nil
	case g&3 == shm.GateDead:
		return d.s.seg.Why()
	}
	return errBadGate
}

// HeaderWhole is an error if the segment's header was overwritten.
func (d *Dispatcher) HeaderWhole() error {
	if !d.s.seg.HeaderWhole() {
		return errBadHeader
	}
	return nil
}

// setGate closes the gate or opens it. Whatever somebody else has stored there
// stays: Ended tells.
func (d *Dispatcher) setGate(state uint64) {
	was := d.s.gate.Gate.Load()
	if d.gate != 0 {
		was = d.gate
	}
	d.gate = (was>>2+1)<<2 | state
	if was&3 != shm.GateDead { // dead is for good
		d.s.gate.Gate.CAS(was, d.gate)
	}
}

// maxTrouble bounds what Trouble has to say at a time.
const maxTrouble = 16

// Close gives the dispatcher's slot and the directory up. What it has locked
// stays so.
func (d *Dispatcher) Close() error {
	d.a.use.Store(actorIdle)
	err := d.s.Close()
	return errors.Join(err, d.owner.Release())
}

// OwnsDir reports whether the directory that the dispatcher owns is still the one at
// its path.
func (d *Dispatcher) OwnsDir() bool { return d.owner.InPlace() }

// KeepOwner makes the file of the owner lock again if somebody has deleted or replaced
// it, and reports whether it did. The lock itself does not depend on it.
func (d *Dispatcher) KeepOwner() (made bool, err error) { return d.owner.Keep() }

// fail notes damage. An operation that meets it does nothing.
func (d *Dispatcher) fail(err error) {
	if err == nil {
		return
	}
	if d.err == nil {
		d.err = err
	}
	same := func(e error) bool { return e.Error() == err.Error() }
	if len(d.met) < maxTrouble && !slices.ContainsFunc(d.met, same) {
		d.met = append(d.met, err)
	}
}

// db returns the database with that number, nil if there is none.
func (d *Dispatcher) db(id uint32) *DB {
	db := d.dbs[id]
	if db == nil {
		if db = d.s.databaseOf(id); db != nil {
			d.dbs[id] = db
		}
	}
	return db
}

// Held is a record as the dispatcher reads and writes it. Slices that Look has
// set belong to the Dispatcher until its next Look.
type Held struct {
	RSN       uint64
	LAccessor uint32
	LACount   uint32
	Data      []byte
	Tags      []byte // rows of tags: PNN u32, life u64, counter u64, length u32
}

// Look reads the last committed value, whether the gate is open or not. false:
// this node owns no such record.
func (d *Dispatcher) Look(id uint32, key []byte, r *Held) bool {
	db := d.db(id)
	if db == nil {
		return false
	}
	hash, l := db.hash(key), &d.a.look
	for range maxLooks {
		ok, err := db.find(hash, key, &l.at)
		if err != nil || !ok {
			d.fail(err)
			return false
		}
		fits := d.a.copyRecord(len(key), &l.at)
		rsn, acc := l.at.b.rsn.Load(), l.at.b.acc.Load()
		shm.LoadBarrier()
		if !l.at.unchanged() {
			continue
		}
		switch {
		case !fits:
			d.fail(errBadBlock)
			return false
		case metaFlags(l.at.meta)&flagOwn == 0:
			return false
		}
		d.note(&l.at)
		d.data, d.tags = append(d.data[:0], l.data...), append(d.tags[:0], l.tags...)
		*r = Held{rsn, uint32(acc), uint32(acc >> 32), d.data, d.tags}
		return true
	}
	d.fail(errOddBlock)
	return false
}

// note remembers the first look at each record since the last Rung: what has
// changed since then, Attend has to tell of.
func (d *Dispatcher) note(at *spot) {
	for i := range d.seen {
		if d.seen[i].entry == at.entry {
			return
		}
	}
	if len(d.seen) < 256 {
		d.seen = append(d.seen, seenAt{at.entry, at.e & identity, at.seq})
	}
}

// TryLock locks a record for the dispatcher. What is not there is made, empty
// and owned; an arriving record may use the reserve. A record that the
// dispatcher holds already is LockTaken. After LockHeld Rung tells when to try
// again.
func (d *Dispatcher) TryLock(id uint32, key []byte, arriving bool) LockResult {
	db := d.db(id)
	if db == nil {
		return LockNoSpace
	}
	s, hash := d.s, db.hash(key)
	var at spot
	for range maxLooks {
		ok, err := db.find(hash, key, &at)
		if err != nil {
			d.fail(err)
			return LockNoSpace
		}
		if !ok {
			switch err := d.insert(db, key, hash, arriving, &at); {
			case err == nil:
				return LockTaken
			case err == errHeld: // somebody else has made it
				continue
			case errors.Is(err, errLatched):
				d.tellLater(db, key)
				return LockHeld
			case !errors.Is(err, ErrNoSpace):
				d.fail(err)
				fallthrough
			default:
				return LockNoSpace
			}
		}
		switch owner := entryOwner(at.e); {
		case owner == DispatcherSlot:
			return LockTaken
		case owner != 0:
			w := d.watched(db, key, at.entry)
			w.waits = true
			if at.e&bitD != 0 || at.entry.CAS(at.e, at.e|bitD) {
				return LockHeld
			}
		case at.e&bitS != 0 && !d.overdue(db, key):
			return LockHeld // a sleeper goes first
		case at.entry.CAS(at.e, at.e&^(bitD|bitS)|s.me):
			at.e = at.e&^(bitD|bitS) | s.me
			if at.b.seq.Load() == at.seq || db.still(key, &at) {
				return LockTaken
			}
			if !s.release(&at) {
				d.fail(errLockLost)
				return LockNoSpace
			}
		}
	}
	d.fail(errOddBlock)
	return LockNoSpace
}

// overdue reports whether a free record that was left to a sleeper has been
// left to him once already by this dispatcher: he may be gone.
func (d *Dispatcher) overdue(db *DB, key []byte) bool {
	w := d.watch[watchKey{db.id, string(key)}]
	if w != nil && w.overdue {
		w.overdue = false
		return true
	}
	d.tellLater(db, key).overdue = true
	return false
}

// insert makes an empty record that the dispatcher holds. It does not wait for
// the bucket's latch.
func (d *Dispatcher) insert(db *DB, key []byte, hash uint64, arriving bool, at *spot) error {
	s, a := d.s, d.a
	c := classOf(blockSize(len(key), 0))
	a.keep, a.arriving = 0, arriving
	defer func() { a.arriving = false }()
	n := 1
	if c == 0 {
		n = 2
	}
	for a.have(c) < n || a.have(0) < 1 {
		if err := a.reserve(c, n); err != nil {
			return err
		}
		if err := a.reserve(0, 1); err != nil {
			return err
		}
	}
	bk := &db.buckets[hash&db.mask]
	if o := bk.latch.Owner(); o != 0 {
		if s.c.Dead(o.Slot()) {
			if _, err := s.c.Recover(o.Slot()); err != nil {
				return err
			}
		}
		return errLatched
	}
	a.h.bucketIntent.Store(shm.OffsetOf(s.r, bk))
	if !bk.latch.TryLock(a.id) {
		a.h.bucketIntent.Store(0)
		return errLatched
	}
	err := a.insertLatched(db, bk, key, hash, a.cell, at, c)
	a.h.jNew.Store(0)
	bk.latch.Unlock(a.id)
	a.h.bucketIntent.Store(0)
	a.cell.Store(0) // the dispatcher's locks have no cells
	return err
}

// Holder returns who holds the record's lock: 0, a client's slot, or
// DispatcherSlot.
func (d *Dispatcher) Holder(id uint32, key []byte) uint32 {
	if db := d.db(id); db != nil {
		var at spot
		if ok, err := db.find(db.hash(key), key, &at); ok {
			return entryOwner(at.e)
		} else if err != nil {
			d.fail(err)
		}
	}
	return 0
}

// held finds a record that the dispatcher holds.
func (d *Dispatcher) held(id uint32, key []byte, at *spot) bool {
	db := d.db(id)
	if db == nil {
		return false
	}
	ok, err := db.find(db.hash(key), key, at)
	if err == nil && (!ok || at.e&ownerMask != d.s.me) {
		err = errLockLost
	}
	d.fail(err)
	return err == nil
}

// Unlock releases a record. One without a value goes, unless the dispatcher
// attends it. After some services in a row with clients asleep it is a
// client's turn.
//
// Preconditions: the dispatcher holds it.
func (d *Dispatcher) Unlock(id uint32, key []byte) {
	var at spot
	if !d.held(id, key, &at) {
		return
	}
	s, a := d.s, d.a
	if f := metaFlags(at.meta); f&flagEmpty != 0 && f&(keptFlags|flagAway) == 0 && at.meta&metaWaited == 0 {
		switch err := a.makeRoom(entryClass(at.e), 1); {
		case err == nil:
			d.fail(a.publish(&at, a.cell, 0, andUnlock))
			d.flush(&at)
			return
		case errors.Is(err, errLatched):
			d.tellLater(d.db(id), key).left = true // to be dropped then
		}
	}
	b := &d.burst[shm.OffsetOf(s.r, at.entry)/8%uint64(len(d.burst))]
	for {
		e := at.entry.Load()
		if e&ownerMask != s.me {
			d.fail(errLockLost)
			return
		}
		free := e & identity
		starve := false
		if e&bitW != 0 {
			if b.entry != at.entry {
				b.entry, b.n = at.entry, 0
			}
			if starve = b.n+1 >= localBurst; starve {
				free |= bitS
			}
		}
		if !at.entry.CAS(e, free) {
			continue
		}
		if e&bitW != 0 {
			if b.n++; starve {
				b.n = 0
			}
			at.entry.Hi().Wake(1)
		}
		return
	}
}

// UnlockTo leaves the lock to a client: the tenant of that generation of a slot. It
// returns false, and has unlocked the record, if that client has no cell for it: it
// has died or left, or has never announced it (Handle.Announce).
//
// Preconditions: the dispatcher holds it.
func (d *Dispatcher) UnlockTo(id uint32, key []byte, slot, generation uint32) bool {
	var at spot
	if !d.held(id, key, &at) {
		return false
	}
	s := d.s
	if !s.announced(slot, generation, shm.OffsetOf(s.r, at.entry)) {
		d.Unlock(id, key)
		return false
	}
	for {
		e := at.entry.Load()
		if e&ownerMask != s.me {
			d.fail(errLockLost)
			return false
		}
		// With D until the second look: by it the lock can be told from any other
		// that the slot may have had by then.
		given := e&(identity|bitW) | bitD | ownedBy(slot)
		if planted("takeany") {
			given &^= bitD
		}
		if at.entry.CAS(e, given) {
			break
		}
	}
	return d.given(id, key, at.entry, slot, generation)
}

// announced reports whether the client of that generation of a slot has a cell for
// the entry at off, which nobody is about to clear after its death. The generation is
// looked at last: the cell was this client's then, and not its successor's.
func (s *Store) announced(slot, generation uint32, off shm.Offset) bool {
	sl := s.seg.Slot(slot)
	if sl == nil || slot == DispatcherSlot {
		return false
	}
	found := false
	b := shm.At[body](s.r, s.seg.SlotBody(slot))
	for i := range b.cells {
		if b.cells[i].Load() == off {
			found = true
			break
		}
	}
	return found && (uint32(sl.Generation.Load()) == generation || planted("anytenant"))
}

// given is the second look at a client that was left a lock. Who repairs a slot marks
// the cell before it looks at the entry, so either the cell stands here, and a repair
// will find the lock, or it does not, and the lock is taken back. It is still the lock
// that was given as long as D stands: a release would have handed the record over, and a
// repair takes D off first.
func (d *Dispatcher) given(id uint32, key []byte, entry *shm.Word64, slot, generation uint32) bool {
	s := d.s
	stands := planted("nosecond") || s.announced(slot, generation, shm.OffsetOf(s.r, entry))
	for {
		e := entry.Load()
		free := e & identity
		switch {
		case entryOwner(e) == DispatcherSlot: // it was handed back
			d.Unlock(id, key)
			return false
		case entryOwner(e) != slot:
			return false
		case e&bitD == 0 && !planted("takeany"):
			// It is repaired at the moment, and may be handed to us.
			d.watched(d.db(id), key, entry).left = true
			return stands
		case stands:
			free = e &^ bitD
		}
		if entry.CAS(e, free) {
			if !stands {
				entry.Hi().Wake(shm.All)
			}
			return stands
		}
	}
}

// Gave says of a record that the dispatcher before this one was about to leave to a
// client whether it has, and takes the lock back if the client is gone.
func (d *Dispatcher) Gave(id uint32, key []byte, slot, generation uint32) bool {
	db := d.db(id)
	if db == nil {
		return false
	}
	var at spot
	ok, err := db.find(db.hash(key), key, &at)
	d.fail(err)
	if err != nil || !ok || entryOwner(at.e) != slot || slot == DispatcherSlot {
		return false
	}
	return d.given(id, key, at.entry, slot, generation)
}

// Publish gives a record a new value and keeps the lock: LockTaken. LockHeld:
// somebody holds the latch of a list of free memory, and Rung tells when to try
// again. LockNoSpace: no room, for an arriving one not even in the reserve.
//
// Preconditions: the dispatcher holds it.
func (d *Dispatcher) Publish(id uint32, key []byte, r *Held, arriving bool) LockResult {
	var at spot
	if !d.held(id, key, &at) {
		return LockNoSpace
	}
	err := d.replace(id, key, &at, r, arriving, flagOwn|metaFlags(at.meta)&keptFlags, 0)
	switch {
	case err == nil:
		return LockTaken
	case errors.Is(err, errLatched):
		d.tellLater(d.db(id), key)
		return LockHeld
	}
	return LockNoSpace
}

// PublishFor is Publish for a client: the tenant of that generation of a slot. In a
// database of pieces the value may have a piece of it. LockNoSpace if the client's
// index has gone to the orphans: the piece may have been looked for already, in vain,
// and would stay for ever.
//
// A look before the commit is enough. Who removes the pieces of the dead needs the
// record's lock to look for each, and it is the dispatcher's from before the look until
// after the commit: an index that goes to the orphans in between is worked through later.
func (d *Dispatcher) PublishFor(id uint32, key []byte, r *Held, slot, generation uint32) LockResult {
	db := d.db(id)
	if db != nil && db.mode == Pieces && !d.s.indexed(slot, generation) {
		return LockNoSpace
	}
	return d.Publish(id, key, r, false)
}

// indexed reports whether the client of that generation of a slot has its index: it
// loses it before its pieces are removed, be it dead or about to leave. The generation
// is looked at last: the index was this client's then, and not its successor's.
func (s *Store) indexed(slot, generation uint32) bool {
	sl := s.seg.Slot(slot)
	switch {
	case sl == nil || slot == DispatcherSlot:
		return false
	case planted("noindex"):
		return true
	case planted("leaving"):
		g, alive := s.Tenant(slot)
		return alive && uint32(g) == generation
	}
	return shm.At[body](s.r, s.seg.SlotBody(slot)).pieces.Load() != 0 && uint32(sl.Generation.Load()) == generation
}

// replace publishes a block with the given flags in the place of at's, which
// the dispatcher holds, or which nobody else can commit to.
func (d *Dispatcher) replace(id uint32, key []byte, at *spot, r *Held, arriving bool, flags, epoch uint64) error {
	s, a, db := d.s, d.a, d.db(id)
	size := pieceSize(len(key), len(r.Data), len(r.Tags)/tagSize)
	if len(r.Data) > s.maxValue || size > s.maxBlock || db.mode == KV && len(r.Tags) > 0 {
		return errBadValue
	}
	if len(r.Data) == 0 {
		flags |= flagEmpty
	}
	c := classOf(size)
	a.keep, a.arriving = 0, arriving
	err := a.makeRoom(entryClass(at.e), 1)
	var dr draft
	if err == nil {
		dr, err = a.draftFor(c, at)
	}
	a.arriving = false
	if err != nil {
		if !errors.Is(err, ErrNoSpace) && !errors.Is(err, errLatched) {
			d.fail(err)
		}
		return err
	}
	a.writeNew(dr, key, r.Data)
	s.r.CopyIn(refOffset(dr.ref)+tagsOffset(len(key), len(r.Data)), r.Tags)
	dr.b.rsn.Store(r.RSN)
	dr.b.acc.Store(uint64(r.LAccessor) | uint64(r.LACount)<<32)
	dr.b.size.Store(uint64(uint32(len(r.Data))) | db.hash(key)<<32)
	dr.b.meta.Store(makeMeta(len(key), dr.c, flags) | uint64(len(r.Tags)/tagSize)<<32)
	dr.b.epoch.Store(epoch)
	dr.b.seq.Store(dr.odd + 1)
	next := at.e&tagMask | makeID(dr.ref, dr.c)
	if err := a.publish(at, a.cell, next, beneath); err != nil {
		d.fail(err)
		return err
	}
	d.flush(at)
	return nil
}

// flush gives large blocks back. What it can't now, makeRoom does later.
func (d *Dispatcher) flush(at *spot) {
	if entryClass(at.e) >= smallClasses {
		if err := d.a.flushBig(); !errors.Is(err, errLatched) {
			d.fail(err)
		}
	}
}

// Remove takes a record off the node, with its lock.
//
// Preconditions: the dispatcher holds it.
func (d *Dispatcher) Remove(id uint32, key []byte) {
	var at spot
	if d.held(id, key, &at) && !d.erase(&at) {
		d.undone = append(d.undone, watchKey{id, string(key)}) // it stays locked
	}
}

// erase reports whether it could: if not, somebody holds a latch that it needs.
func (d *Dispatcher) erase(at *spot) bool {
	a := d.a
	if err := a.makeRoom(entryClass(at.e), 1); err != nil {
		if errors.Is(err, errLatched) {
			return false
		}
		d.fail(err)
		return true
	}
	if err := a.publish(at, a.cell, 0, beneath); err != nil {
		d.fail(err)
		return true
	}
	d.flush(at)
	return true
}

// Touch notes which node has asked for a record last, and how often in a row.
// It is not an update: a record that a client holds is left alone.
func (d *Dispatcher) Touch(id uint32, key []byte, accessor, count uint32) {
	d.locked(id, key, func(at *spot) { at.b.acc.Store(uint64(accessor) | uint64(count)<<32) })
}

// locked calls f with a record that the dispatcher holds, or that was free and
// is locked for f. It reports whether it did.
func (d *Dispatcher) locked(id uint32, key []byte, f func(at *spot)) bool {
	db := d.db(id)
	if db == nil {
		return false
	}
	at := &d.at
	for range maxLooks {
		ok, err := db.find(db.hash(key), key, at)
		if err != nil || !ok {
			d.fail(err)
			return false
		}
		switch entryOwner(at.e) {
		case DispatcherSlot:
			f(at)
			return true
		case 0:
			mine := at.e&^(bitS|bitD) | d.s.me
			if !at.entry.CAS(at.e, mine) {
				continue
			}
			at.e = mine
			same := at.b.seq.Load() == at.seq || db.still(key, at)
			if same {
				at.meta = at.b.meta.Load()
				f(at)
			}
			if !d.s.release(at) {
				d.fail(errLockLost)
				return false
			}
			if same {
				return true
			}
		default:
			return false
		}
	}
	return false
}

// Attend asks to be told of commits to a record, or no longer. It is meant for
// the step that has looked at the record and does not like what is there: what
// has changed since the first look of this turn is told at the next Rung.
func (d *Dispatcher) Attend(id uint32, key []byte, on bool) {
	db := d.db(id)
	if db == nil {
		return
	}
	if !on {
		if w := d.watch[watchKey{id, string(key)}]; w != nil {
			w.attended = false
			d.drop(w)
		}
		empty := false
		d.locked(id, key, func(at *spot) {
			meta := at.b.meta.Load()
			at.b.meta.Store(meta &^ (flagAttended << 24))
			empty = metaFlags(meta)&flagEmpty != 0
		})
		if empty && d.Holder(id, key) == 0 && d.TryLock(id, key, false) == LockTaken {
			d.Unlock(id, key) // which drops it
		}
		return
	}
	var w *watch
	done := d.locked(id, key, func(at *spot) {
		w = d.watched(db, key, at.entry)
		at.b.meta.Store(at.b.meta.Load() | flagAttended<<24)
		if !planted("attendlate") {
			for _, l := range d.seen {
				if l.entry == at.entry && (l.id != at.e&identity || l.seq != at.seq) {
					d.tellLater(db, key) // it has changed since it was looked at
				}
			}
		}
	})
	if done {
		w.attended = true
		return
	}
	// A client holds it, or it is gone: the dispatcher gets the lock next, or
	// looks again.
	if d.TryLock(id, key, false) == LockTaken {
		d.Unlock(id, key)
		d.tellLater(db, key)
	}
}

// watched returns the record's watch, under the bit of the entry, before any
// bit is set in the entry or its block.
func (d *Dispatcher) watched(db *DB, key []byte, entry *shm.Word64) *watch {
	w := d.watchOf(db, key)
	w.entry = entry
	bit := rungBit(shm.OffsetOf(d.s.r, entry))
	if w.listed && w.bit == bit {
		return w
	}
	d.unlist(w)
	w.bit, w.listed = bit, true
	d.bits[bit] = append(d.bits[bit], w)
	return w
}

func (d *Dispatcher) watchOf(db *DB, key []byte) *watch {
	k := watchKey{db.id, string(key)}
	w := d.watch[k]
	if w == nil {
		w = &watch{db: db, key: []byte(k.key)}
		d.watch[k] = w
	}
	return w
}

func (d *Dispatcher) unlist(w *watch) {
	if !w.listed {
		return
	}
	l := d.bits[w.bit]
	for i := range l {
		if l[i] == w {
			l[i] = l[len(l)-1]
			d.bits[w.bit] = l[:len(l)-1]
			break
		}
	}
	w.listed = false
}

// drop forgets a watch that nobody needs.
func (d *Dispatcher) drop(w *watch) {
	if !w.attended && !w.waits && !w.later && !w.overdue && !w.left {
		d.unlist(w)
		if k := (watchKey{w.db.id, string(w.key)}); d.watch[k] == w {
			delete(d.watch, k)
		}
	}
}

// tellLater has the record told at the next Rung.
func (d *Dispatcher) tellLater(db *DB, key []byte) *watch {
	w := d.watchOf(db, key)
	if !w.later {
		w.later = true
		d.later = append(d.later, w)
	}
	return w
}

// Rung calls f for every record that was handed to the dispatcher, or was
// changed though attended, since the last call, and for those that are to be
// tried again. It begins a turn: what Attend compares with was looked at since.
// f may call all methods but Rung.
func (d *Dispatcher) Rung(f func(db uint32, key []byte)) {
	d.seen = d.seen[:0]
	d.told = d.told[:0]
	undone := d.undone
	d.undone = nil
	for _, k := range undone {
		d.Remove(k.db, []byte(k.key))
	}
	for _, w := range d.later {
		w.later = false
		d.told = append(d.told, w)
	}
	d.later = d.later[:0]
	for i := range d.s.node.rung {
		w := &d.s.node.rung[i]
		if w.Load() == 0 {
			continue
		}
		for set := w.Swap(0); set != 0; set &= set - 1 {
			d.told = append(d.told, d.bits[uint(i*64)+uint(bits.TrailingZeros64(set))]...)
		}
	}
	for _, w := range d.told {
		if w.waits && !w.attended && !w.overdue && d.asked(w) {
			continue // another record with the same bit
		}
		w.waits = false
		if w.left {
			if w.left = false; !w.attended {
				d.unattend(w.db, w.key)
			}
		}
		f(w.db.id, w.key)
		w.overdue = false
	}
	for _, w := range d.told {
		d.drop(w)
	}
}

// asked reports whether a client that holds the record will hand it over: D stands. A
// repair takes D off, and somebody else may have the record by now.
func (d *Dispatcher) asked(w *watch) bool {
	var at spot
	ok, err := w.db.find(w.db.hash(w.key), w.key, &at)
	d.fail(err)
	owner := entryOwner(at.e)
	return ok && owner != 0 && owner != DispatcherSlot && (at.e&bitD != 0 || planted("nottold"))
}

// Again reports whether Rung has something to tell although nobody rings: the
// caller must not sleep for longer than about a millisecond.
func (d *Dispatcher) Again() bool { return len(d.later) > 0 || len(d.undone) > 0 }
