package protocol

import (
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/protocol/wire"
)

// The link's words, which the core's callers need as well.
type (
	Instant   = link.Instant
	Verdict   = link.Verdict
	Channel   = link.Channel
	PeerEvent = link.PeerEvent
	PNN       = wire.PNN
	VNN       = wire.VNN
	Epoch     = wire.Epoch
	ReqID     = wire.ReqID
	OPID      = wire.OPID
	Message   = wire.Message
)

const (
	Handled   = link.Handled
	NotYet    = link.NotYet
	Refused   = link.Refused
	Data      = link.Data
	Control   = link.Control
	Beacon    = link.Beacon
	Met       = link.Met
	Restarted = link.Restarted
	Never     = link.Never
	ms        = link.Millisecond
)

// ClientID is a client's slot on this node; 0 is none. Dispatcher holds the locks
// that are held for other nodes.
type ClientID uint32

const Dispatcher ClientID = 4095

// Mode of a database.
type Mode uint8

const (
	NoMode Mode = iota // this node does not know the database
	KV
	Pieces
)

// Conditions are the functions that decide conditional appends. Pure.
type Conditions interface {
	// Check tells whether piece may be appended to a record of these bytes.
	Check(id uint32, data, tags, piece []byte) (yes, known bool)
	// Malformed tells whether the piece, or one in the record, is none of the
	// condition's, so that no change of others' would make Check say yes.
	Malformed(id uint32, data, tags, piece []byte) bool
	// Find tells which part of a record of mode KV what asks to remove: n < 1:
	// none. known is false if there is no such function.
	Find(id uint32, data, what []byte) (off, n int, known bool)
}

// Config of a node. Zero durations and limits take the defaults given.
type Config struct {
	Self        PNN
	Nodes       int // lines of the nodes file
	Incarnation uint64
	Port        uint16
	Addr        [16]byte
	NodesFile   uint32   // version of the nodes file
	Unused      wire.Set // its lines that are no node, or not any more
	PromiseFile bool     // the caller has a promise file: see Effects.Save
	Arbiter     bool     // half of the nodes and the arbiter's lock are a quorum
	Seed        uint64   // of the jitter
	WallMS      int64    // the wall clock when the node's own clock showed Start
	Start       Instant

	Hash       func(db uint32, key []byte) uint64
	Mode       func(db uint32) Mode // a fixed table instead of that of OPEN_DB; else nil
	Conditions Conditions
	Policy     Policy // default PolicyPlan(3)

	Heartbeat Instant // 20 ms
	DeadAfter Instant // 200 ms
	Lease     Instant // 150 ms
	Margin    Instant // 10 ms
	StepLimit Instant // 150 ms: a recovery in which a member makes no progress for longer starts over
	Gather    Instant // 10 ms: for promises that are not needed
	JoinHold  Instant // 400 ms
	// Unanswered is how long a member that is heard may leave a message unacknowledged:
	// 1 s. Longer than any wait that is allowed to a handler that says not yet.
	Unanswered Instant
	// LockTimeout is the LCKTIMEOUT of a FETCH_LOCKED that names none: 10 s.
	LockTimeout Instant
	MaxStrikes  int    // recoveries a member may be blamed for in short order: 3
	MaxHops     uint32 // 8

	MaxPending int // operations of local clients: 65,536, and as many that give locks back
	MaxParked  int // requests that wait at this node: 65,536
	MaxDBs     int // databases: 1,024
	MaxWalks   int // traverses, of this node's clients and of all nodes' here: 64
	MaxMoved   int // bytes that a traverse notes of records that move: 1 MiB
	MaxDone    int // entries of a record's done list: 64
	MaxTries   int // parked requests that are tried until a Tick goes on with the others: 256
	MaxAsks    int // questions about databases of which messages have come: 64
	MaxCarried int // copies of records that were passed on: 65,536, and no more than Stable has lines
	MaxOffers  int // records that a leaving node has on offer: 256
	// Budget bounds what one step does of a recovery or a walk: so many records, pieces or
	// pending operations, 1,000. They take less than a millisecond.
	Budget int
	// ClaimWindow is how many batches of a recovery are on their way at once for each
	// other member: 32.
	ClaimWindow int
	ClaimBytes  int // bytes of a CLAIM, VERDICT or RESUPPLY batch: 1,200
	Hints       int // locations of other LMASTERs' records that are remembered, a power of two: 4,096
	// RoomShare is how many bytes of the store's reserve one request promises to the
	// record that may come for it: 65,536. Larger records stay where they are.
	RoomShare int

	// Plant turns one rule off, by name, for the simulator alone; see Plants.
	Plant string
	// Fault is told of a broken promise between nodes, as it is met; nil panics. What
	// becomes of it is in Effects.Fault.
	Fault func(what string)
}

func (c *Config) defaults() {
	def := func(v *Instant, d Instant) {
		if *v == 0 {
			*v = d
		}
	}
	num := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.Heartbeat, 20*ms)
	def(&c.DeadAfter, 200*ms)
	def(&c.Lease, 150*ms)
	def(&c.Margin, 10*ms)
	def(&c.StepLimit, 150*ms)
	def(&c.Gather, 10*ms)
	def(&c.JoinHold, 400*ms)
	def(&c.Unanswered, 1000*ms)
	def(&c.LockTimeout, 10_000*ms)
	num(&c.MaxStrikes, 3)
	num(&c.MaxPending, 65536)
	num(&c.MaxParked, 65536)
	num(&c.MaxDBs, 1024)
	num(&c.MaxTries, 256)
	num(&c.MaxWalks, 64)
	num(&c.MaxMoved, 1<<20)
	num(&c.MaxDone, 64)
	num(&c.MaxAsks, 64)
	num(&c.MaxCarried, 65536)
	num(&c.ClaimBytes, 1200)
	num(&c.MaxOffers, 256)
	num(&c.Budget, 1000)
	num(&c.ClaimWindow, 32)
	num(&c.RoomShare, 65536)
	num(&c.Hints, 4096)
	if c.Hints&(c.Hints-1) != 0 {
		panic("protocol: Hints has to be a power of two")
	}
	if c.MaxHops == 0 {
		c.MaxHops = 8
	}
	if c.Policy == nil {
		c.Policy = PolicyPlan(3)
	}
	if c.Fault == nil {
		c.Fault = func(what string) { panic("protocol: " + what) }
	}
}

// GateState is what local clients see before anything else.
type GateState uint8

const (
	GateDead GateState = iota
	GateFrozen
	GateOpen
)

// Gate is the gate's line in the segment.
type Gate struct {
	State GateState
	Epoch Epoch
	Life  uint64
	VNN   VNN
}

// SendKind is what the link is to do.
type SendKind uint8

const (
	SendMessage SendKind = iota // queue a message
	SendEpoch                   // Link.SetEpoch: DATA of older epochs is over
	SendCancel                  // Link.Cancel: CONTROL of lower ballots is over
)

// Send is one order for the link: a message, or, with an Epoch alone, the end of what
// is older. The orders of several steps keep their order, as a message that was decided
// before the map changed must not go out as if it had been decided after it.
type Send struct {
	Kind   SendKind
	To     PNN
	Ch     Channel
	Epoch  Epoch
	DBID   uint32
	Token  uint64 // comes back by Acked or Refused, if it is not 0
	Packet []byte
	at     [2]int
}

// Reply ends an operation of a local client.
type Reply struct {
	Client ClientID
	Cookie uint64
	Op     wire.Op
	Status wire.Status
	Data   []byte
	RSN    uint64
	OPID   OPID  // of the operation; of an append to a pieces database: its piece's name
	LockID ReqID // FETCH_LOCKED, if the lock is at another node; 0: the client's slot holds it here
	Why    uint32
	at     [2]int
}

// Effects is what the steps since the last Take want done; package host says in which
// order. Its slices are the node's and are used again by the Take after the next.
type Effects struct {
	Sends   []Send  // in the order of the steps
	Events  []Event // tell the local clients, in this order, before any of the Replies
	Replies []Reply // in the order of the steps
	Gate    Gate    // as it stands behind the last step
	Lease   Instant // local clients may work until then; it only grows
	// Freeze: pass over the handles, then call Frozen with the number. A pass that was
	// asked for earlier and is not over yet is of no use any more.
	Freeze  bool
	PassNum uint64
	// Fault, if it is not empty, is why this node lets no recovery end: a promise
	// between nodes is broken, and whatever opened now could serve two values for one
	// record. It names keys and nodes, for an administrator; it goes when an epoch opens.
	Fault string
	// Save, if it is not 0: what Stable.Load gives, less what is of a life (Words.Wiped), is
	// to go into the promise file, where it outlasts a loss of memory; then Saved is called
	// with this number. The newest stands for older ones.
	Save uint64
	// Retry: what the node could not take before, it may take now.
	Retry bool
	// DBs: the table of databases has grown; Stable.DBs has it.
	DBs bool
	// WantLock: hold the arbiter's lock, and renew it, or let it go. LockValue, if it
	// is not 0, is to be stored with it: the newest, which stands for older ones, as the
	// ballots that a node leads only grow. Node.Arbiter tells how it stands.
	WantLock  bool
	LockValue Epoch
	// Next is when Tick has something to do.
	Next Instant
	buf  []byte
}

// Event tells local clients of an epoch that has opened here.
type Event struct {
	Epoch   Epoch
	Members wire.Set
	Joined  wire.Set // since the epoch that opened here before
	Left    wire.Set
	Kept    bool // this node's records are those of that epoch, less what was lost
}

// Map is the VNN map of one epoch.
type Map struct {
	Members []wire.Member
	place   [wire.MaxNodes]int8 // PNN → index+1
	set     wire.Set
}

func (m *Map) index() {
	m.place, m.set = [wire.MaxNodes]int8{}, 0
	for i := range m.Members {
		m.place[m.Members[i].PNN] = int8(i + 1)
		m.set |= 1 << m.Members[i].PNN
	}
}

// member returns a node's line, or nil.
func (m *Map) member(p PNN) *wire.Member {
	if p >= wire.MaxNodes || m.place[p] == 0 {
		return nil
	}
	return &m.Members[m.place[p]-1]
}

// pnn finds a member by its VNN.
func (m *Map) pnn(v VNN) (PNN, bool) {
	for i := range m.Members {
		if m.Members[i].VNN == v {
			return m.Members[i].PNN, true
		}
	}
	return wire.NoPNN, false
}

func (m *Map) vnn(p PNN) VNN {
	if e := m.member(p); e != nil {
		return e.VNN
	}
	return 0
}

// coordinator is the member with the lowest PNN.
func (m *Map) coordinator() PNN {
	low := wire.NoPNN
	for i := range m.Members {
		low = min(low, m.Members[i].PNN)
	}
	return low
}

// alive tells whether the life that drew an OPID goes on in this map.
func (m *Map) alive(o OPID) bool {
	e := m.member(o.PNN)
	return e != nil && e.Life == o.Life
}
