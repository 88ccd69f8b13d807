package protocol

import (
	"slices"

	"github.com/mainzdb/mainz/protocol/wire"
)

// Lines are how many a Memory has. Zero values take the defaults given.
type Lines struct {
	Pending                      int // 262,144: beyond Config.MaxPending come unlocks and what takes back
	Done, Locks, Carried, Pieces int // 65,536 each
	Databases                    int // 1,024
}

// Memory is a Stable in memory that a dispatcher does not lose: for the simulator, and
// for a node that keeps nothing over a restart.
type Memory struct {
	Words
	limits  Lines
	dbs     []DB
	pend    lines[PendingLine]
	dones   lines[DoneLine]
	locks   lines[LockLine]
	carried lines[CarriedLine]
	journal []*Piece
	spare   []*Piece // erased
}

var _ Stable = (*Memory)(nil)

// NewMemory is a node's first memory: nothing.
func NewMemory(l Lines) *Memory {
	if l.Pending == 0 {
		l.Pending = 4 * 65536
	}
	for _, n := range []*int{&l.Done, &l.Locks, &l.Carried, &l.Pieces} {
		if *n == 0 {
			*n = 65536
		}
	}
	if l.Databases == 0 {
		l.Databases = 1024
	}
	m := &Memory{limits: l}
	m.Map.index()
	return m
}

// lines is a table. A line that is taken keeps the buffers of the one that was there.
type lines[T any] struct {
	all  []T
	used []bool
	free []int32
	n    int
}

// take a line; -1: limit are taken.
func (t *lines[T]) take(limit int) int {
	if t.n >= limit {
		return -1
	}
	t.n++
	if k := len(t.free); k > 0 {
		at := t.free[k-1]
		t.free = t.free[:k-1]
		t.used[at] = true
		return int(at)
	}
	var v T
	t.all, t.used = append(t.all, v), append(t.used, true)
	return len(t.all) - 1
}

// at is a line that is in use.
func (t *lines[T]) at(i int) *T {
	if !t.used[i] {
		panic("protocol: a line that nobody has put")
	}
	return &t.all[i]
}

func (t *lines[T]) erase(i int) {
	t.at(i)
	t.used[i] = false
	t.free = append(t.free, int32(i))
	t.n--
}

func (t *lines[T]) each(f func(at int, l *T)) {
	for i := range t.all {
		if t.used[i] {
			f(i, &t.all[i])
		}
	}
}

// WithWords is a memory that knows single words only: for a restart that has no more of
// the old memory, as after a promise file alone, or beside a segment without tables.
func WithWords(w Words, l Lines) *Memory {
	m := NewMemory(l)
	m.Words = w
	m.Map.index()
	return m
}

// Wiped is what a node has that has lost its memory and kept its promise file: what it
// promised and took, and the nodes file. Nothing, if it never promised.
func (m *Memory) Wiped() *Memory {
	return WithWords(m.Words.Wiped(), m.limits)
}

// Wiped are the words that a promise file keeps.
func (w *Words) Wiped() Words {
	if w.Promised == 0 {
		return Words{}
	}
	return Words{Memory: wire.MemoryWiped, Promised: w.Promised, Taken: w.Taken, Opened: w.Opened, Map: w.Map, HighVNN: w.HighVNN, File: w.File}
}

func (m *Memory) Load() Words          { return m.Words }
func (m *Memory) Promise(ballot Epoch) { m.Promised = ballot }
func (m *Memory) Open(e Epoch)         { m.Opened = e }
func (m *Memory) SetFile(f NodesFile)  { m.File = f }

func (m *Memory) Tell(members wire.Set, life uint64) { m.Told, m.ToldLife = members, life }

func (m *Memory) TakeMap(ballot Epoch, members []wire.Member, high VNN) {
	w := &m.Words
	w.Promised, w.Taken, w.HighVNN = ballot, ballot, high
	w.Map = Map{Members: slices.Clone(members)}
	w.Map.index()
}

func (m *Memory) NewLife(ballot Epoch, members []wire.Member, high VNN, life uint64) {
	m.TakeMap(ballot, members, high)
	m.Life, m.Memory, m.OPIDs = life, wire.MemoryFull, 0
	m.dbs, m.journal, m.spare = nil, nil, nil
	m.pend, m.dones, m.locks, m.carried = lines[PendingLine]{}, lines[DoneLine]{}, lines[LockLine]{}, lines[CarriedLine]{}
}

func (m *Memory) Databases() []DB { return m.dbs }

func (m *Memory) AddDatabase(d *DB) bool {
	if len(m.dbs) >= m.limits.Databases {
		return false
	}
	m.dbs = append(m.dbs, *d)
	return true
}

func (m *Memory) PutPending(at int, l *PendingLine) bool {
	if at >= m.limits.Pending {
		return false
	}
	for at >= len(m.pend.all) {
		m.pend.all, m.pend.used = append(m.pend.all, PendingLine{}), append(m.pend.used, false)
	}
	if m.pend.used[at] {
		panic("protocol: a line of a pending operation is put twice")
	}
	m.OPIDs = max(m.OPIDs, l.OPID.Counter)
	p := &m.pend.all[at]
	key, data, conds := p.M.Key, p.M.Data, p.M.Conds
	*p = *l
	p.M.Key, p.M.Data, p.M.Conds = append(key[:0], l.M.Key...), append(data[:0], l.M.Data...), append(conds[:0], l.M.Conds...)
	m.pend.used[at] = true
	m.pend.n++
	return true
}

func (m *Memory) SetPending(at int, s *PendingState) {
	m.pend.at(at).PendingState = *s
	if s.ReqID != 0 {
		m.ReqIDs = s.ReqID
	}
}

func (m *Memory) ErasePending(at int) {
	m.pend.at(at)
	m.pend.used[at] = false
	m.pend.n--
}

func (m *Memory) PendingLines(f func(at int, l *PendingLine)) { m.pend.each(f) }

func (m *Memory) PutDone(l *DoneLine) int {
	at := m.dones.take(m.limits.Done)
	if at >= 0 {
		d := &m.dones.all[at]
		key := d.Key
		*d = *l
		d.Key = append(key[:0], l.Key...)
	}
	return at
}

func (m *Memory) SetDone(at int)                        { m.dones.at(at).Intent = false }
func (m *Memory) EraseDone(at int)                      { m.dones.erase(at) }
func (m *Memory) DoneLines(f func(at int, l *DoneLine)) { m.dones.each(f) }

func (m *Memory) PutLock(l *LockLine) int {
	at := m.locks.take(m.limits.Locks)
	if at >= 0 {
		d := &m.locks.all[at]
		key := d.Key
		*d = *l
		d.Key = append(key[:0], l.Key...)
	}
	return at
}

func (m *Memory) SetLock(at int, reqid ReqID)           { m.locks.at(at).ReqID = reqid }
func (m *Memory) EraseLock(at int)                      { m.locks.erase(at) }
func (m *Memory) LockLines(f func(at int, l *LockLine)) { m.locks.each(f) }

func (m *Memory) PutCarried(l *CarriedLine) int {
	at := m.carried.take(m.limits.Carried)
	if at >= 0 {
		c := &m.carried.all[at]
		key, data, tags, dones := c.Key, c.Data, c.Tags, c.Dones
		*c = *l
		c.Key, c.Data = append(key[:0], l.Key...), append(data[:0], l.Data...)
		c.Tags, c.Dones = append(tags[:0], l.Tags...), append(dones[:0], l.Dones...)
	}
	return at
}

func (m *Memory) SetCarried(at int)                           { m.carried.at(at).Preparing = false }
func (m *Memory) Carried(at int) *CarriedLine                 { return m.carried.at(at) }
func (m *Memory) EraseCarried(at int)                         { m.carried.erase(at) }
func (m *Memory) CarriedLines(f func(at int, l *CarriedLine)) { m.carried.each(f) }

func (m *Memory) TrimCarried(at int, data, tags, dones []byte) {
	c := m.carried.at(at)
	c.Data, c.Tags, c.Dones = append(c.Data[:0], data...), append(c.Tags[:0], tags...), append(c.Dones[:0], dones...)
}

func (m *Memory) PutPiece(o OPID, c ClientID, db uint32, key, data []byte) bool {
	if len(m.journal) >= m.limits.Pieces {
		return false
	}
	if o.Counter&bypassOPID == 0 {
		m.OPIDs = max(m.OPIDs, o.Counter)
	}
	var p *Piece
	if n := len(m.spare); n > 0 {
		p, m.spare = m.spare[n-1], m.spare[:n-1]
	} else {
		p = &Piece{}
	}
	*p = Piece{OPID: o, Client: c, DB: db, Key: append(p.Key[:0], key...), Data: append(p.Data[:0], data...), State: PiecePrepared}
	m.journal = append(m.journal, p)
	return true
}

func (m *Memory) Piece(o OPID) *Piece {
	for _, p := range m.journal {
		if p.OPID == o {
			return p
		}
	}
	return nil
}

func (m *Memory) SetPiece(o OPID, s PieceState) {
	if p := m.Piece(o); p != nil {
		p.State = s
	}
}

func (m *Memory) ErasePiece(o OPID) {
	for i, p := range m.journal {
		if p.OPID == o {
			m.journal = slices.Delete(m.journal, i, i+1)
			m.spare = append(m.spare, p)
			return
		}
	}
}

func (m *Memory) EachPiece(f func(p *Piece)) {
	for _, p := range slices.Clone(m.journal) {
		if m.Piece(p.OPID) == p {
			f(p)
		}
	}
}

func (m *Memory) SomePieces(cursor, pieces int, f func(p *Piece)) int {
	from := min(cursor, len(m.journal))
	to := min(from+pieces, len(m.journal))
	for _, p := range m.journal[from:to] {
		f(p)
	}
	if to == len(m.journal) {
		return 0
	}
	return to
}

// EachCarried calls f for every carried copy that stands for its record: for tools and
// checkers.
func (m *Memory) EachCarried(f func(db uint32, key []byte, bound PNN, reqid ReqID, rsn uint64)) {
	m.carried.each(func(_ int, l *CarriedLine) {
		if !l.Preparing {
			f(l.DB, l.Key, l.Bound, l.ReqID, l.RSN)
		}
	})
}

// EachLock calls f for every lock that is held here for a client of another node: for
// tools and checkers.
func (m *Memory) EachLock(f func(db uint32, key []byte, o OPID, reqid ReqID)) {
	m.locks.each(func(_ int, l *LockLine) { f(l.DB, l.Key, l.OPID, l.ReqID) })
}

// DBs are the databases that this node knows: for tools and checkers.
func (m *Memory) DBs() []DB { return m.dbs }

// Pending is how many operations wait for an answer: for tools and checkers.
func (m *Memory) Pending() int { return m.pend.n }

// LMaster is the node that knows where a key of this hash is, in the map taken
// last: for tools.
func (m *Memory) LMaster(hash uint64) PNN { return m.Map.lmaster(hash) }
