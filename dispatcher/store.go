package dispatcher

import (
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/protocol"
)

// store presents the segment's records to the core. It notes in the segment
// whose call a change is for, before the change.
type store struct {
	keeper   *ltdb.Keeper
	calls    *calls
	dbs      map[uint32]*ltdb.DB
	attended map[string]bool // keys with their database in front
	held     ltdb.Held
	name     []byte
}

func newStore(k *ltdb.Keeper, c *calls) *store {
	return &store{keeper: k, calls: c, dbs: map[uint32]*ltdb.DB{}, attended: map[string]bool{}}
}

// database finds a database by its number; nil: there is none.
func (s *store) database(id uint32) *ltdb.DB {
	if db := s.dbs[id]; db != nil {
		return db
	}
	// With an error, which the keeper has noted as damage, those that are sound.
	all, _ := s.keeper.Store().Databases()
	for _, db := range all {
		s.dbs[db.ID()] = db
	}
	return s.dbs[id]
}

func (s *store) mode(id uint32) protocol.Mode {
	switch db := s.database(id); {
	case db == nil:
		return protocol.NoMode
	case db.Mode() == ltdb.Pieces:
		return protocol.Pieces
	}
	return protocol.KV
}

func (s *store) hash(id uint32, key []byte) uint64 {
	if db := s.database(id); db != nil {
		return db.Hash(key)
	}
	return 0 // such a request is refused
}

// Check implements protocol.Conditions with the functions that the dispatcher
// was given and the built-in ones.
func (s *store) Check(id uint32, data, tags, piece []byte) (yes, known bool) {
	c, ok := s.keeper.Store().Condition(ltdb.ConditionID(id))
	if !ok {
		return false, false
	}
	mode := ltdb.KV
	if len(tags) > 0 {
		mode = ltdb.Pieces
	}
	return c.Holds(ltdb.MakeSnapshot(mode, data, tags), piece), true
}

// Malformed implements protocol.Conditions.
func (s *store) Malformed(id uint32, data, tags, piece []byte) bool {
	c, ok := s.keeper.Store().Condition(ltdb.ConditionID(id))
	mode := ltdb.KV
	if len(tags) > 0 {
		mode = ltdb.Pieces
	}
	return ok && c.Malformed(ltdb.MakeSnapshot(mode, data, tags), piece) != nil
}

// Find implements protocol.Conditions.
func (s *store) Find(id uint32, data, what []byte) (off, n int, known bool) {
	c, ok := s.keeper.Store().Condition(ltdb.ConditionID(id))
	if !ok || c.Find == nil {
		return 0, 0, false
	}
	off, n = c.Find(ltdb.MakeSnapshot(ltdb.KV, data, nil), what)
	return off, n, true
}

func (s *store) Look(db uint32, key []byte, r *protocol.Record) bool {
	h := &s.held
	if !s.keeper.Look(db, key, h) {
		return false
	}
	*r = protocol.Record{RSN: h.RSN, LAccessor: protocol.PNN(h.LAccessor), LACount: h.LACount, Data: h.Data,
		Tags: h.Tags}
	return true
}

func (s *store) TryLock(db uint32, key []byte, arriving bool) protocol.LockResult {
	return result(s.keeper.TryLock(db, key, arriving))
}

func result(r ltdb.LockResult) protocol.LockResult {
	switch r {
	case ltdb.LockTaken:
		return protocol.Locked
	case ltdb.LockHeld:
		return protocol.Held
	}
	return protocol.NoSpace
}

func (s *store) Holder(db uint32, key []byte) protocol.ClientID {
	return protocol.ClientID(s.keeper.Holder(db, key))
}

func (s *store) Unlock(db uint32, key []byte) { s.keeper.Unlock(db, key) }

func (s *store) UnlockTo(db uint32, key []byte, c protocol.ClientID, cookie uint64) {
	st := s.calls.find(cookie)
	if st == nil { // it has ended, so nobody asks for the lock
		s.keeper.Unlock(db, key)
		return
	}
	// The record is the dispatcher's until the lock is the client's: if we die
	// in between, its holder tells whether it was given.
	line := s.calls.intend(cookie, db, key, 0)
	ok := s.keeper.UnlockTo(db, key, uint32(c), st.client.generation)
	s.calls.did(cookie, line, ok)
}

func (s *store) Publish(db uint32, key []byte, r *protocol.Record, arriving bool) protocol.LockResult {
	h := ltdb.Held{RSN: r.RSN, LAccessor: uint32(r.LAccessor), LACount: r.LACount, Data: r.Data, Tags: r.Tags}
	if r.Cookie == 0 {
		return result(s.keeper.Publish(db, key, &h, arriving))
	}
	st, line := s.calls.find(r.Cookie), s.calls.intend(r.Cookie, db, key, r.RSN)
	if line < 0 {
		return protocol.NoSpace
	}
	got := result(s.keeper.PublishFor(db, key, &h, st.client.slot, st.client.generation))
	s.calls.did(r.Cookie, line, got == protocol.Locked)
	return got
}

// alive reports whether the client is the tenant of its slot still.
func (s *store) alive(slot, generation uint32) bool {
	g, ok := s.keeper.Store().Tenant(slot)
	return ok && uint32(g) == generation
}

func (s *store) Remove(db uint32, key []byte) { s.keeper.Remove(db, key) }

func (s *store) Touch(db uint32, key []byte, accessor protocol.PNN, count uint32) {
	s.keeper.Touch(db, key, uint32(accessor), count)
}

// Attend asks the segment only for what changes: the core says it at each step.
func (s *store) Attend(db uint32, key []byte, on bool) {
	s.name = append(append(s.name[:0], byte(db), byte(db>>8), byte(db>>16), byte(db>>24)), key...)
	if !on {
		if s.attended[string(s.name)] {
			delete(s.attended, string(s.name))
			s.keeper.Attend(db, key, false)
		}
		return
	}
	s.attended[string(s.name)] = true
	s.keeper.Attend(db, key, true)
}

func (s *store) Room() uint32 { return s.keeper.Room() }

func (s *store) Scan(db uint32, cursor uint64, f func(key []byte, r *protocol.Record) bool) uint64 {
	return s.keeper.Scan(db, cursor, func(key []byte, h *ltdb.Held) bool {
		return f(key, &protocol.Record{RSN: h.RSN, LAccessor: protocol.PNN(h.LAccessor), LACount: h.LACount,
			Data: h.Data, Tags: h.Tags})
	})
}

// Each tells the core of no record: it asks in order to tell other nodes, and to
// release what the dispatcher before this one had locked, which the loop does. A
// walk over all records here would keep every request for as long.
func (s *store) Each(uint64, int, func(db uint32, key []byte, rsn uint64, empty bool)) uint64 {
	return 0
}

// Sweep has nothing to do for the same reason: no other node's clients, and none of
// another life of this node, have pieces here.
func (s *store) Sweep(uint64, int, func(o protocol.OPID) bool) uint64 { return 0 }

func (s *store) Provisional(db uint32, key []byte, o protocol.OPID, piece []byte, epoch protocol.Epoch) bool {
	return s.keeper.Provisional(db, key, ltdb.OPID{PNN: uint32(o.PNN), Life: o.Life, Counter: o.Counter}, piece,
		uint64(epoch))
}

// DropProvisional has nothing to do: a recovery of a node that is alone makes no
// records.
func (s *store) DropProvisional(uint64, int) uint64 { return 0 }

// OpenProvisional has nothing to do: the epoch that the gate opens with makes
// them normal.
func (s *store) OpenProvisional() {}

func (s *store) IsProvisional(db uint32, key []byte) bool { return s.keeper.IsProvisional(db, key) }

func (s *store) Life() uint64 { return s.keeper.Store().Segment().Gate().Life.Load() }

// Reset is for a node that joins others without its data, which a single node
// never does: Open gives the core a memory that is full.
func (s *store) Reset(uint64) { panic("dispatcher: a single node was told to start a new life") }
