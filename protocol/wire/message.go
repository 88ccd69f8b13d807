package wire

// PNN is a node's physical number: its line in the nodes file, for life.
type PNN uint16

// VNN is a node's virtual number in one map; a recovery gives out new ones.
type VNN uint32

// ReqID names one sending of a request. 0 is none.
type ReqID uint32

// Epoch is the number of a map, and the ballot under which it was made:
// counter << 16 | PNN of the leader.
type Epoch uint64

// Counter is the ballot without its leader.
func (e Epoch) Counter() uint64 { return uint64(e) >> 16 }

// Leader is who made the epoch.
func (e Epoch) Leader() PNN { return PNN(e) }

// Ballot makes an epoch's number.
func Ballot(counter uint64, leader PNN) Epoch { return Epoch(counter<<16 | uint64(leader)) }

// OPID names one client operation, however often it is sent.
type OPID struct {
	PNN     PNN
	Life    uint64
	Counter uint64
}

// Set is a set of PNNs, one bit each.
type Set uint64

// Has tells whether n is in the set.
func (s Set) Has(n PNN) bool { return n < MaxNodes && s>>n&1 != 0 }

// Message is one packet, decoded. Which fields count is a matter of the opcode:
// see layout.go. Byte fields borrow from the packet.
type Message struct {
	Op   Op
	DBID uint32 // from and for the envelope; never in the packet
	Dest VNN
	Src  VNN
	// ReqID is this sending's own REQID, also for UNLOCK and STORE_UNLOCK, whose
	// plan header holds LockID instead.
	ReqID   ReqID
	Timeout uint32 // REQTIMEOUT, milliseconds: what is left of it

	LockID      ReqID // UNLOCK, STORE_UNLOCK: REQID of the FETCH_LOCKED reply; 0 in STORE_UNLOCK: blind store
	LockTimeout uint32
	Cond        uint32
	Key         []byte
	Data        []byte
	DMaster     VNN
	Status      Status

	OPID  OPID // trailer of every request
	Via   ReqID
	Hops  uint32
	Room  uint32 // bytes the requester's node can take now
	Piece OPID   // REMOVE_TRIGGER; CONDITIONAL_APPEND: the piece's name, if it is not the operation's

	RSN       uint64
	LAccessor VNN
	LACount   uint32
	Dones     []byte // rows of Done
	Tags      []byte // rows of Tag

	T       int64 // the PING sender's clock
	Epoch   Epoch
	Promise Epoch
	Open    bool
	Grant   bool
	Life    uint64
	Floor   uint64 // lowest OPID counter still pending
	// Progress of the recovery that the sender is in: it grows with what it gets done, and
	// with what it knows that others do, if it leads. 0: it is in none.
	Progress uint64
	Heard    Set
	Members  []byte // rows of Member
	Memory   uint32
	VNN      VNN    // highest seen
	Since    []byte // rows of u32: milliseconds since we granted PNN i a lease, all ones: never
	Nodes    uint32 // version of the nodes file
	Inc      uint64 // the promiser's incarnation
	Blame    PNN    // RECOVERY_WANTED: who made it necessary, NoPNN: nobody
	Stall    uint32 // and how: BlameStall and the like
	Clock    uint64 // the promiser's wall clock, milliseconds since 1970
	Old      Set    // nodes of the last nodes file that may be in use, if it is another
	Rows     []byte // CLAIM, VERDICT, RESUPPLY, TRAVERSE: rows, one behind the other
	Why      uint32
	Cursor   uint64
	Mode     uint32 // REPLY_DB_INFO, whose name is Data
	Conds    []byte // rows of Cond
}
