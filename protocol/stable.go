package protocol

import (
	"bytes"
	"slices"

	"github.com/mainzdb/mainz/protocol/wire"
)

// Stable is what a restarted dispatcher finds again: the node lines of the
// segment. The core alone writes it, but for the journal entries of bypass
// appends, which their clients write.
type Stable struct {
	Memory   uint32 // wire.MemoryFresh, MemoryWiped, MemoryFull
	Promised Epoch
	Taken    Epoch
	Opened   Epoch
	Map      Map
	Life     uint64
	HighVNN  VNN
	opCount  uint64
	reqCount ReqID
	pend     []*pending
	recs     recTable
	journal  []*Piece
	spare    []*Piece // erased
	dbs      []DB
	file     nodesFile
	told     wire.Set // members of the epoch that opened here last
	toldLife uint64
}

// NewStable is a node's first memory: nothing.
func NewStable() *Stable { return &Stable{} }

// Wiped is what a node has of s that has lost its memory and kept its promise file:
// what it promised and took, and the nodes file. Nothing, if it never promised.
func (s *Stable) Wiped() *Stable {
	if s.Promised == 0 {
		return NewStable()
	}
	return &Stable{Memory: wire.MemoryWiped, Promised: s.Promised, Taken: s.Taken, Opened: s.Opened, Map: s.Map, HighVNN: s.HighVNN, file: s.file}
}

// OPIDs is the counter of the OPID drawn last.
func (s *Stable) OPIDs() uint64 { return s.opCount }

// SkipOPIDs goes on counting behind n: for a restart that knows only how far the
// counter may have come.
func (s *Stable) SkipOPIDs(n uint64) { s.opCount = max(s.opCount, n) }

// Told notes which epoch the clients of this node know, for a restart that has no more
// of the old memory: its members, and the life that the node had in it.
func (s *Stable) Told(members wire.Set, life uint64) { s.told, s.toldLife = members, life }

// forget all of the old segment: a new life begins.
func (s *Stable) forget(life uint64) {
	s.Life = life
	s.pend, s.journal, s.spare, s.recs = nil, nil, nil, recTable{}
	s.opCount, s.dbs = 0, nil
	s.Memory = wire.MemoryFull
}

// PieceState of a journal entry.
type PieceState uint8

const (
	PiecePrepared PieceState = iota + 1
	PieceLive
	PieceRemoving
)

// Piece is a journal entry: what a client of this node has appended, or is about to.
type Piece struct {
	OPID   OPID
	Client ClientID
	DB     uint32
	Key    []byte
	Data   []byte
	State  PieceState
}

// Prepare makes a journal entry before the append is submitted or the record locked.
func (s *Stable) Prepare(o OPID, c ClientID, db uint32, key, data []byte) *Piece {
	var p *Piece
	if n := len(s.spare); n > 0 {
		p, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		p = &Piece{}
	}
	*p = Piece{OPID: o, Client: c, DB: db, Key: append(p.Key[:0], key...), Data: append(p.Data[:0], data...), State: PiecePrepared}
	s.journal = append(s.journal, p)
	return p
}

// Piece finds a journal entry.
func (s *Stable) Piece(o OPID) *Piece {
	for _, p := range s.journal {
		if p.OPID == o {
			return p
		}
	}
	return nil
}

// Erase a journal entry, if it is there. Its memory is the next one's.
func (s *Stable) Erase(o OPID) {
	for i, p := range s.journal {
		if p.OPID == o {
			s.journal = slices.Delete(s.journal, i, i+1)
			s.spare = append(s.spare, p)
			return
		}
	}
}

// EachPiece calls f for every journal entry in the order they were made.
func (s *Stable) EachPiece(f func(p *Piece)) {
	for _, p := range s.journal {
		f(p)
	}
}

// pendState is where a pending operation stands.
type pendState uint8

const (
	pendNew pendState = iota + 1 // waits for the gate
	pendOut                      // sent under reqid
	pendBackoff
	pendLocal // in the queue of a record, here or on its way here
	pendDone  // it has ended, and its client has not asked again since the restart
)

// ending is how an operation has ended.
type ending struct {
	status wire.Status
	rsn    uint64
	lock   ReqID
	why    uint32
}

// pending is an operation of a local client, or of the dispatcher (client 0).
type pending struct {
	slot      int
	opid      OPID
	client    ClientID
	cookie    uint64
	abandoned bool
	undo      bool // the dispatcher's own: takes back what an abandoned one did
	removes   bool // a piece of the journal
	m         Message
	kbuf      []byte
	dbuf      []byte
	deadline  Instant
	state     pendState
	end       ending // pendDone; the data is in dbuf
	reqid     ReqID  // outstanding, 0: none
	to        PNN
	hops      uint32
	backoffs  uint32
	until     Instant
	room      uint32 // promised to what may come for reqid
	parked    *parked
}

// recTable finds what the core knows about a key. Entries stand in the order they
// were made, so that walking them does not depend on hashing.
type recTable struct {
	buckets []*rec
	first   *rec
	last    *rec
	n       int
	free    *rec
}

// rec is what the core knows about one key besides its value.
type rec struct {
	hash       uint64
	db         uint32
	key        []byte
	chain      *rec
	prev, next *rec

	dones []doneEntry // in the segment
	lock  remoteLock
	carry []carried

	parked []*parked // volatile from here on
	dirty  bool
	claim  *claim

	// What is to be tried of parked, and has not been for want of time: all from place
	// at on (owed), the whole queue after that (again), those that are due.
	owed, again bool
	at, due     int
	listed      bool // in Node.unfinished
	emptied     int  // how often parked has moved on with the record
}

type doneEntry struct {
	wire.Done
	token uint64
}

// remoteLock is a record lock held for a client of another node.
type remoteLock struct {
	held     bool
	opid     OPID
	reqid    ReqID
	deadline Instant
}

// carried is the copy of a record that was passed on, until that is acknowledged.
type carried struct {
	token     uint64
	bound     PNN
	through   bool // of a record that passes through this node
	reqid     ReqID
	rsn       uint64
	laccessor PNN
	lacount   uint32
	data      []byte
	tags      []byte
	dones     []byte
}

// parked is a request that waits at this node.
type parked struct {
	m        Message
	kbuf     []byte
	dbuf     []byte
	src      PNN
	p        *pending // of a local client
	deadline Instant
	behind   ReqID // waits for this REQID of ours, not for a record of ours
	due      bool  // to be tried whatever happens to the record: its time is over, or nobody waits
}

func (t *recTable) find(hash uint64, db uint32, key []byte) *rec {
	if t.n == 0 {
		return nil
	}
	for r := t.buckets[hash%uint64(len(t.buckets))]; r != nil; r = r.chain {
		if r.hash == hash && r.db == db && bytes.Equal(r.key, key) {
			return r
		}
	}
	return nil
}

func (t *recTable) get(hash uint64, db uint32, key []byte) *rec {
	if r := t.find(hash, db, key); r != nil {
		return r
	}
	if t.n >= len(t.buckets) {
		t.grow()
	}
	r := t.free
	if r != nil {
		t.free = r.chain
	} else {
		r = &rec{}
	}
	*r = rec{hash: hash, db: db, key: append(r.key[:0], key...), dones: r.dones[:0], carry: r.carry[:0], parked: r.parked[:0]}
	b := hash % uint64(len(t.buckets))
	r.chain, t.buckets[b] = t.buckets[b], r
	if r.prev = t.last; r.prev != nil {
		r.prev.next = r
	} else {
		t.first = r
	}
	t.last = r
	t.n++
	return r
}

func (t *recTable) grow() {
	old := t.buckets
	t.buckets = make([]*rec, max(64, 2*len(old)))
	for r := t.first; r != nil; r = r.next {
		b := r.hash % uint64(len(t.buckets))
		r.chain, t.buckets[b] = t.buckets[b], r
	}
}

// drop gives an entry back that says nothing any more.
func (t *recTable) drop(r *rec) {
	at := &t.buckets[r.hash%uint64(len(t.buckets))]
	for *at != r {
		at = &(*at).chain
	}
	*at = r.chain
	if r.prev != nil {
		r.prev.next = r.next
	} else {
		t.first = r.next
	}
	if r.next != nil {
		r.next.prev = r.prev
	} else {
		t.last = r.prev
	}
	t.n--
	r.prev, r.next = nil, nil
	r.chain, t.free = t.free, r
}

func (r *rec) idle() bool {
	return len(r.dones) == 0 && !r.lock.held && len(r.carry) == 0 && len(r.parked) == 0 && !r.dirty && !r.listed && r.claim == nil
}

// EachCarried calls f for every carried copy: for tools and checkers.
func (s *Stable) EachCarried(f func(db uint32, key []byte, bound PNN, reqid ReqID, rsn uint64)) {
	for r := s.recs.first; r != nil; r = r.next {
		for i := range r.carry {
			f(r.db, r.key, r.carry[i].bound, r.carry[i].reqid, r.carry[i].rsn)
		}
	}
}

// Pending is how many operations wait for an answer.
func (s *Stable) Pending() int {
	k := 0
	for _, p := range s.pend {
		if p != nil {
			k++
		}
	}
	return k
}

// LMaster is the node that knows where a key of this hash is, in the map taken
// last: for tools.
func (s *Stable) LMaster(hash uint64) PNN { return s.Map.lmaster(hash) }
