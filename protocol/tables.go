package protocol

import (
	"bytes"

	"github.com/mainzdb/mainz/protocol/wire"
)

// mirror is what the core has of its Stable in memory of its own, where nobody else can
// change it, and what only this incarnation knows about the same things. Stable first:
// whatever changes in both is written there before it is here.
type mirror struct {
	Words
	pend []*pending // by line of Stable; nil: free
	recs recTable
	dbs  []DB
}

// pendState is where a pending operation stands.
type pendState uint8

const (
	pendNew pendState = iota + 1 // waits for the gate
	pendOut                      // sent under reqid
	pendBackoff
	pendLocal // in the queue of a record, here or on its way here
	pendDone  // it has ended; the answer is not known to have reached its client
)

// pending is an operation of a local client, or of the dispatcher (client 0).
type pending struct {
	slot      int
	opid      OPID
	client    ClientID
	cookie    uint64
	abandoned bool
	undone    bool // it was abandoned, and what it did is taken back
	undo      bool // the dispatcher's own: takes back what an abandoned one did
	removes   bool // a piece of the journal
	m         Message
	kbuf      []byte
	dbuf      []byte
	deadline  Instant
	state     pendState
	kept      PendingState // as it stands in Stable
	data      bool         // pendDone: dbuf is what is to be answered
	heard     bool         // its client has had an answer: it runs on, and answers nobody
	reqid     ReqID        // outstanding, 0: none
	to        PNN
	hops      uint32
	backoffs  uint32
	until     Instant
	room      uint32 // promised to what may come for reqid
	parked    *parked

	earlier, later *pending // in Node's list, in which it is listed
	listed         bool
}

// recTable finds what the core knows about a key. Entries stand in the order they
// were made, so that walking them does not depend on hashing.
type recTable struct {
	buckets []*rec
	first   *rec
	last    *rec
	n       int
	free    *rec
	at      [walkCount]*rec // where the walks that are under way go on
}

// Walks over a table, one of each kind at a time, which need not end in one step.
const (
	walkWork = iota
	walkPrune
	walkCount
)

// walk begins a walk.
func (t *recTable) walk(kind int) { t.at[kind] = t.first }

// next entry of a walk, nil at its end. Those that are made meanwhile are met.
func (t *recTable) next(kind int) *rec {
	r := t.at[kind]
	if r != nil {
		t.at[kind] = r.next
	}
	return r
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
	empty  bool // the record is here and was empty when it was claimed
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
	at    int32 // its line in Stable
	token uint64
	// While it is loaded: as in DoneLine.
	intent bool
	rsn    uint64
	lock   ReqID
}

// remoteLock is a record lock held for a client of another node.
type remoteLock struct {
	at       int32 // its line in Stable
	held     bool
	opid     OPID
	reqid    ReqID
	deadline Instant
}

// carried is the copy of a record that was passed on, until that is acknowledged. What
// is in it stands in Stable alone.
type carried struct {
	at      int32
	token   uint64
	bound   PNN
	through bool // of a record that passes through this node
	reqid   ReqID
	rsn     uint64
	size    int // bytes of data

	preparing bool // while it is loaded
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
	for i := range t.at {
		if t.at[i] == r {
			t.at[i] = r.next
		}
	}
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
	return len(r.dones) == 0 && !r.lock.held && len(r.carry) == 0 && len(r.parked) == 0 && !r.dirty && !r.listed && !r.empty && r.claim == nil
}
