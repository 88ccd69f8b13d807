package ltdb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// Keeper is the dispatcher's side of a store:
//   - keeper_serve.go: it serves requests for the node's records, beside the clients that
//     work on them directly.
//   - keeper_watch.go: it tells of what others do to the records.
//   - keeper_left.go: it releases what its predecessor has left.
//   - keeper_recovery.go: it takes the node through a recovery.
//   - keeper_sweep.go, keeper_dead.go: it clears up after recoveries and after the dead.
//
// Each of its methods belongs to one goroutine, and none waits for a record or a bucket.
// What can't be had now is told by Rung later. What a Keeper has locked stays locked
// when its process dies. Its successor releases what nobody remembers (ReleaseLeft).
type Keeper struct {
	s     *Store
	a     *actor
	owner *shm.OwnerLock
	dbs   map[uint32]*DB
	book  watches

	at         spot   // of withLock
	data, tags []byte // of Look
	scanKey    []byte // of Scan
	scanned    Held
	due        []*watch    // of Rung
	orphans    orphanPlace // where their clean-up goes on

	err       error // the first damage met
	met       []error
	conds     map[int]ConditionInfo // by line of the table, as they were when they were sound
	mapped    mappedAs
	gate      uint64 // the gate's word as this Keeper has stored it; 0: it has not
	stuck     map[shm.HandleID]stuckAt
	stuckSlot uint32 // that was looked at last
}

// mappedAs is what the Keeper has stored beside the gate's word and in the
// lease, for Mend.
type mappedAs struct {
	known               bool // Mapped, Lease and Open were called
	epoch, opened       uint64
	vnn, members, place uint32
	ticks, boot         uint64
}

// OpenKeeper opens the store in dir as its dispatcher, and owns the
// directory until Close. Of Options it takes all but ReadOnly.
func OpenKeeper(ctx context.Context, dir string, opts Options) (*Keeper, error) {
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
	k, err := openOwned(ctx, dir, opts, cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", dir, err), owner.Release())
	}
	k.owner = owner
	return k, nil
}

func openOwned(ctx context.Context, dir string, opts Options, cfg shm.Config) (*Keeper, error) {
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
	k, err := joinKeeper(ctx, seg, opts)
	if err != nil {
		return nil, errors.Join(err, seg.Close())
	}
	return k, nil
}

// JoinKeeper adds a dispatcher to a store's segment, as another process
// would. It serves tests over a heap store.
func (s *Store) JoinKeeper(ctx context.Context, opts Options) (*Keeper, error) {
	k, err := joinKeeper(ctx, s.seg, opts)
	if err == nil {
		k.s.guest = true
	}
	return k, err
}

func joinKeeper(ctx context.Context, seg *shm.Segment, opts Options) (*Keeper, error) {
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
	return &Keeper{s: s, a: a, dbs: map[uint32]*DB{}, conds: map[int]ConditionInfo{}}, nil
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
func (k *Keeper) Store() *Store { return k.s }

// Err returns the first damage of the segment that a method has met, nil if none. The
// Keeper goes on to serve what is whole.
func (k *Keeper) Err() error { return k.err }

// Trouble returns the kinds of damage that methods have met since the last call, each
// once, and forgets them.
func (k *Keeper) Trouble() []error {
	met := k.met
	k.met = nil
	return met
}

// Ended says why the segment can't be served any more; nil: it can. Only this Keeper
// stores to the gate, and whoever replaces the segment.
func (k *Keeper) Ended() error {
	g := k.s.gate.Gate.Load()
	switch {
	case g == k.gate || k.gate == 0:
		return nil
	case g&3 == shm.GateDead:
		return k.s.seg.Why()
	}
	return errBadGate
}

// HeaderWhole returns an error if somebody has overwritten the segment's header.
func (k *Keeper) HeaderWhole() error {
	if !k.s.seg.HeaderWhole() {
		return errBadHeader
	}
	return nil
}

// setGate closes the gate or opens it. Whatever somebody else has stored there
// stays: Ended tells.
func (k *Keeper) setGate(state uint64) {
	was := k.s.gate.Gate.Load()
	if k.gate != 0 {
		was = k.gate
	}
	k.gate = (was>>2+1)<<2 | state
	if was&3 != shm.GateDead { // dead is for good
		k.s.gate.Gate.CAS(was, k.gate)
	}
}

// maxTrouble bounds what Trouble has to say at a time.
const maxTrouble = 16

// Close gives up the dispatcher's slot and the directory. Records that the Keeper has
// locked stay locked.
func (k *Keeper) Close() error {
	k.a.use.Store(actorIdle)
	err := k.s.Close()
	return errors.Join(err, k.owner.Release())
}

// OwnsDir reports whether the directory that the Keeper owns is still the one at its
// path.
func (k *Keeper) OwnsDir() bool { return k.owner.InPlace() }

// KeepOwner makes the owner lock's file again if somebody has deleted or replaced it,
// and reports whether it did. The lock itself does not depend on that file.
func (k *Keeper) KeepOwner() (made bool, err error) { return k.owner.Keep() }

// fail notes damage. An operation that meets it does nothing.
func (k *Keeper) fail(err error) {
	if err == nil {
		return
	}
	if k.err == nil {
		k.err = err
	}
	same := func(e error) bool { return e.Error() == err.Error() }
	if len(k.met) < maxTrouble && !slices.ContainsFunc(k.met, same) {
		k.met = append(k.met, err)
	}
}

// db returns the database with that number, nil if there is none.
func (k *Keeper) db(id uint32) *DB {
	db := k.dbs[id]
	if db == nil {
		if db = k.s.databaseOf(id); db != nil {
			k.dbs[id] = db
		}
	}
	return db
}
