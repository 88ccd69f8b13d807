package ltdb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// ConditionID names a condition function in the whole cluster. 0 to 15 are
// built in or kept for later ones.
type ConditionID uint32

// The built-in conditions. docs/conditions.md has their byte layouts and truth
// tables.
const (
	Always     ConditionID = iota // always true: a plain append
	IfAbsent                      // the record is empty
	ShareModes                    // no conflict with the share modes of the entries that are there
	ByteRanges                    // no conflict with the byte ranges of the entries that are there
)

// firstOwnCondition is the lowest id that a caller's condition may have.
const firstOwnCondition = 16

// MaxConditions is how many conditions a segment knows, the built-in ones
// among them.
const MaxConditions = 64

// MaxConditionName is the longest name of a condition in bytes.
const MaxConditionName = 48

// Condition decides appends. Its functions must be pure: the same in every
// process, no state, no blocking, no keeping of slices. They run on a
// snapshot, never under a latch or a record lock, and maybe more than once for
// one append. What they are given may be garbage that another process has
// stored: they must not panic on it.
type Condition struct {
	ID      ConditionID
	Name    string // 1 to 48 bytes; tells two conditions apart that were given one id
	Version uint32 // to be raised with every change of what the functions answer
	// Holds reports whether piece may be appended to rec.
	Holds func(rec Snapshot, piece []byte) bool
	// Find returns the part of rec that data asks to remove; n < 0: it is not
	// there. nil: RemoveMatching fails with ErrMode.
	Find func(rec Snapshot, data []byte) (off, n int)
	// WellFormed says what is wrong with a piece, nil if nothing is; it does not
	// keep it. With it an append of a malformed piece, and one that is refused
	// while a malformed piece is in the record, end with ErrMalformed: no wait
	// would help. Holds must be false for both. nil: all bytes are well formed.
	WellFormed func(piece []byte) error
}

// Malformed says what is wrong with the pieces of a record that the condition
// has refused, or with the new one: an ErrMalformed, nil if nothing is.
func (c *Condition) Malformed(rec Snapshot, piece []byte) error {
	if c.WellFormed == nil {
		return nil
	}
	if err := c.WellFormed(piece); err != nil {
		return fmt.Errorf("%w: %s takes no such piece of %d bytes: %w", ErrMalformed, c.Name, len(piece), err)
	}
	n := 0
	for there := range rec.Pieces() {
		if err := c.WellFormed(there); err != nil {
			what := "the value"
			if rec.pieces {
				o := tagOPID(rec.tags[n*tagSize:])
				what = fmt.Sprintf("piece %d, %#x of node %d,", n+1, o.Counter, o.PNN)
			}
			return fmt.Errorf("%w: %s of %d bytes, which is in the record, is none of %s: %w; remove it first",
				ErrMalformed, what, len(there), c.Name, err)
		}
		n++
	}
	return nil
}

// Snapshot is a record as a condition sees it: a committed value, which may be
// another one by now. Its slices are valid during the call.
type Snapshot struct {
	data, tags []byte
	pieces     bool
}

// MakeSnapshot puts a snapshot together for a caller of conditions that has
// read the record itself: the dispatcher. tags are the rows that tell the
// pieces apart, of a database of mode Pieces.
func MakeSnapshot(mode Mode, data, tags []byte) Snapshot {
	return Snapshot{data: data, tags: tags, pieces: mode == Pieces}
}

// Data is the whole value; empty if there is no record.
func (s Snapshot) Data() []byte { return s.data }

// Pieces yields each piece's bytes (mode Pieces) or the whole value once (KV).
// An empty record has none.
func (s Snapshot) Pieces() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) { s.each(yield) }
}

func (s Snapshot) each(yield func([]byte) bool) {
	if !s.pieces {
		if len(s.data) > 0 {
			yield(s.data)
		}
		return
	}
	data := s.data
	for t := s.tags; len(t) >= tagSize; t = t[tagSize:] {
		n := min(int(tagLen(t)), len(data))
		if !yield(data[:n:n]) {
			return
		}
		data = data[n:]
	}
}

// A tag says whose piece the next bytes of a record are. It is the row of the
// protocol's tag lists, so that the dispatcher sends what it finds:
//
//	0  PNN      u32, of the node whose client appended the piece
//	4  life     u64, of that node
//	12 counter  u64: with the two above the OPID
//	20 length   u32, of the piece in bytes
const tagSize = 24

// OPID names an operation, and the piece that it has appended, in the whole
// cluster.
type OPID struct {
	PNN     uint32
	Life    uint64
	Counter uint64
}

func tagLen(t []byte) uint32 { return binary.LittleEndian.Uint32(t[20:]) }

func tagOPID(t []byte) OPID {
	return OPID{binary.LittleEndian.Uint32(t), binary.LittleEndian.Uint64(t[4:]), binary.LittleEndian.Uint64(t[12:])}
}

func appendTag(b []byte, o OPID, n int) []byte {
	b = binary.LittleEndian.AppendUint32(b, o.PNN)
	b = binary.LittleEndian.AppendUint64(b, o.Life)
	b = binary.LittleEndian.AppendUint64(b, o.Counter)
	return binary.LittleEndian.AppendUint32(b, uint32(n))
}

// conditionLine is one line of the table of conditions, behind that of the
// databases and under the same latch. Who registers the condition first stores
// it, ready last, and nobody changes it afterwards: a segment keeps what its
// records were decided by.
type conditionLine struct {
	ready   shm.Word32 // 0: free or half made
	id      shm.Word32
	version shm.Word32
	nameLen shm.Word32
	name    [MaxConditionName]byte
}

const conditionLineSize = 64

// ConditionInfo is what a segment knows of a condition.
type ConditionInfo struct {
	ID      ConditionID
	Name    string
	Version uint32
}

func (c ConditionInfo) String() string {
	return fmt.Sprintf("condition %d %q version %d", uint32(c.ID), c.Name, c.Version)
}

func (c *Condition) info() ConditionInfo { return ConditionInfo{c.ID, c.Name, c.Version} }

// Conditions lists the conditions that the segment knows: who attaches with
// one of these ids must bring the same name and version. With an error it lists
// those whose lines in the table are sound.
func (s *Store) Conditions() ([]ConditionInfo, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.exit()
	var all []ConditionInfo
	var first error
	for i := range s.condLines {
		if s.condLines[i].ready.Load() == 0 {
			continue
		}
		c, err := s.conditionAt(i)
		if err == nil {
			all = append(all, c)
		} else if first == nil {
			first = err
		}
	}
	return all, first
}

// conditionAt reads a line of the table, as input.
func (s *Store) conditionAt(i int) (ConditionInfo, error) {
	l := &s.condLines[i]
	n := l.nameLen.Load()
	if n < 1 || n > MaxConditionName {
		return ConditionInfo{}, damage(fmt.Sprintf("line %d of the table of conditions", i))
	}
	name := make([]byte, n)
	s.r.CopyOut(name, shm.OffsetOf(s.r, &l.name))
	return ConditionInfo{ConditionID(l.id.Load()), string(name), l.version.Load()}, nil
}

func (s *Store) putCondition(i int, c ConditionInfo) {
	l := &s.condLines[i]
	l.id.Store(uint32(c.ID))
	l.version.Store(c.Version)
	l.nameLen.Store(uint32(len(c.Name)))
	s.r.CopyIn(shm.OffsetOf(s.r, &l.name), []byte(c.Name))
	l.ready.Store(1)
}

// condition returns the condition function of that id, nil if this client has
// none.
func (s *Store) condition(id ConditionID) *Condition {
	if int(id) < len(builtin) {
		return &builtin[id]
	}
	for i := range s.conds {
		if s.conds[i].ID == id {
			return &s.conds[i]
		}
	}
	return nil
}

// Condition returns the condition function of that id; false if this client
// has none, though others may.
func (s *Store) Condition(id ConditionID) (Condition, bool) {
	if c := s.condition(id); c != nil {
		return *c, true
	}
	return Condition{}, false
}

// checkConditions says what is wrong with the conditions that a caller brings.
func checkConditions(conds []Condition) error {
	for i, c := range conds {
		switch {
		case c.ID < firstOwnCondition:
			return fmt.Errorf("%v: ids 0 to %d are built in; choose another: %w", c.info(), firstOwnCondition-1,
				ErrIncompatible)
		case len(c.Name) < 1 || len(c.Name) > MaxConditionName:
			return fmt.Errorf("%v: the name must have 1 to %d bytes: %w", c.info(), MaxConditionName, ErrTooBig)
		case c.Holds == nil:
			return fmt.Errorf("%v: it has no function Holds: %w", c.info(), ErrNoCondition)
		}
		for _, other := range conds[:i] {
			if other.ID == c.ID {
				return fmt.Errorf("%v and %v have one id: %w", other.info(), c.info(), ErrIncompatible)
			}
		}
	}
	return nil
}

// register compares the conditions with those that the segment knows, and
// writes down the new ones, under the table's latch. It waits for that as long as
// ctx allows. The dispatcher does not wait: it puts a latchError aside.
func (s *Store) register(ctx context.Context, conds []Condition) error {
	if err := checkConditions(conds); err != nil {
		return err
	}
	known, err := s.matchAll(conds)
	for limit := time.Now().Add(mendLimit); err != nil && s.c.Slot() != DispatcherSlot && s.served() && !simulated(); {
		// The line may have been overwritten: the dispatcher, which has a copy,
		// writes it anew some times a second.
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
		if known, err = s.matchAll(conds); time.Now().After(limit) {
			break
		}
	}
	if err != nil {
		return err
	}
	if !known { // else the latch may be held by who is stopped
		a, err := s.borrow(ctx)
		if err != nil {
			return err
		}
		defer s.giveBack(a)
		if err := a.registerAll(conds); err != nil {
			return err
		}
	}
	s.conds = append(s.conds, conds...)
	return nil
}

// mendLimit is for how long who joins waits for a line to be mended that contradicts
// his conditions.
const mendLimit = 400 * time.Millisecond

// matchAll compares the built-in conditions and conds with those of the segment, and
// reports whether that knows all of them.
func (s *Store) matchAll(conds []Condition) (known bool, err error) {
	for i := range builtin {
		if err := s.match(builtin[i].info()); err != nil {
			return false, err
		}
	}
	known = true
	for i := range conds {
		switch err := s.match(conds[i].info()); err {
		case nil:
		case errUnregistered:
			known = false
		default:
			return false, err
		}
	}
	return known, nil
}

func (a *actor) registerAll(conds []Condition) error {
	s := a.s
	l := &s.dbHead.latch
	a.h.tableIntent.Store(1)
	err := a.lockLatch(l, tableLatch, 1)
	if err == nil {
		for i := range conds {
			if err = s.registerOne(conds[i].info()); err != nil {
				break
			}
		}
		l.Unlock(a.id)
	} else if err == errLatched {
		err = s.latched(l, tableLatch, 1, err)
	}
	a.h.tableIntent.Store(0)
	return err
}

// Register adds conditions to those that the dispatcher was opened with. It does not
// wait: put says that a client, which err names, has the latch of the table, so that
// the caller is to try again. With put nothing has changed; any other error is final.
func (k *Keeper) Register(conds []Condition) (put bool, err error) {
	err = k.s.register(context.Background(), conds)
	return errors.Is(err, errLatched), err
}

func (s *Store) registerOne(c ConditionInfo) error {
	err := s.match(c)
	if err != errUnregistered {
		return err
	}
	for i := range s.condLines {
		if s.condLines[i].ready.Load() == 0 {
			s.putCondition(i, c)
			return nil
		}
	}
	return fmt.Errorf("%v: the segment has its maximum of %d conditions: %w", c, MaxConditions, ErrNoSpace)
}

var errUnregistered error = wrapError{"the segment does not know the condition", ErrIncompatible}

// match compares a condition with the segment's of the same id.
func (s *Store) match(c ConditionInfo) error {
	for i := range s.condLines {
		if s.condLines[i].ready.Load() == 0 || ConditionID(s.condLines[i].id.Load()) != c.ID {
			continue
		}
		there, err := s.conditionAt(i)
		if err == nil && there != c {
			err = fmt.Errorf("this program has %v, the segment %v: use programs of one version: %w", c, there,
				ErrIncompatible)
		}
		return err
	}
	return errUnregistered
}
