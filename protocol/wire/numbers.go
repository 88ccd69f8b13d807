package wire

// Port is the UDP port of a cluster unless it is configured otherwise.
const Port = 4379

// Op is a message's opcode. 1 to 18 are the plan's messages in the plan's order;
// 64 and above are ours. 0 is no message.
type Op uint32

const (
	ReqFetch               Op = 1
	ReplyFetch             Op = 2
	ReqFetchLocked         Op = 3
	ReplyFetchLocked       Op = 4
	ReqStoreUnlock         Op = 5
	ReplyStoreUnlock       Op = 6
	ReqDelete              Op = 7
	ReplyDelete            Op = 8
	ReqUnlock              Op = 9
	ReplyUnlock            Op = 10
	ReqConditionalAppend   Op = 11
	ReplyConditionalAppend Op = 12
	ReqRemoveTrigger       Op = 13
	ReplyRemoveTrigger     Op = 14
	ReplyRedirect          Op = 15
	RequestDMaster         Op = 16
	ReplyDMaster           Op = 17
	ReplyError             Op = 18

	Ping           Op = 64
	Pong           Op = 65
	RecoveryWanted Op = 66
	Prepare        Op = 67
	Promise        Op = 68
	Nack           Op = 69
	NewMap         Op = 70
	Claims         Op = 71
	ClaimsDone     Op = 72
	Settle         Op = 73
	Settled        Op = 74
	Recovered      Op = 75
	Verdicts       Op = 76
	Resupply       Op = 77
	DBInfo         Op = 78
	ReplyDBInfo    Op = 79
	ReqWatch       Op = 80
	ReplyWatch     Op = 81
	ReqTraverse    Op = 82
	ReplyTraverse  Op = 83
	Offer          Op = 84
	OpenDB         Op = 85
	DBTable        Op = 86
)

// Status is the STATUS of a CTDB_REPLY_ERROR. 1 to 6 are the plan's codes in the
// order in which the plan names them; 64 and above are ours.
type Status uint32

const (
	OK          Status = 0
	NotDMaster  Status = 1  // a REQUEST_DMASTER from a node that is not the location
	VNNMap      Status = 2  // the sender's map or epoch is not the receiver's
	Internal    Status = 3  // the server found a broken promise of its own
	NoMemory    Status = 4  // no room for the record, or a table is full
	Timeout     Status = 5  // locked, or its condition false, for all of REQTIMEOUT
	NotLocked   Status = 6  // the lock named is not held (any more)
	Condition   Status = 64 // the condition is false, and REQTIMEOUT is 0
	NoCondition Status = 65 // the server has no condition function of that number
	NotFound    Status = 66 // nothing to remove
	Mode        Status = 67 // the database's mode forbids the operation
	TooBig      Status = 68 // larger than the server takes
	NoDB        Status = 69 // no member knows the database
	Frozen      Status = 70 // the node is in a recovery and its client does not wait
	BadPacket   Status = 71 // not a message
	Unknown     Status = 72 // the node's life ended: done or not done, nobody can say
	Malformed   Status = 73 // the piece, or one in the record, is none of the condition's: no wait helps
)

// Flags of the envelope.
const (
	FlagData    = 1 << 0 // the DATA channel: requests, replies, handover
	FlagControl = 1 << 1 // the CONTROL channel: recovery
	FlagAck     = 1 << 2 // nothing but an acknowledgement; with PING a challenge, with PONG its answer
	FlagRefused = 1 << 3 // Ack names one sequence that was refused
	FlagFrag    = 1 << 4 // one fragment of a packet; the fragment fields follow
	FlagPing    = 1 << 5 // outside the channels: PING
	FlagPong    = 1 << 6 // outside the channels: all other messages that are repeated by their sender's clock
	FlagSealed  = 1 << 7 // the payload is sealed, with a tag instead of the CRC
)

// Magic and Version open every datagram.
const (
	Magic   = 0x7a6d // "mz"
	Version = 2
)

// Limits of the format.
const (
	MaxNodes = 64       // a set of nodes is one u64
	MaxKey   = 64 << 10 // bytes of a key
	MaxData  = 8 << 20  // bytes of a record, a list or a batch
	MaxMsg   = 256      // bytes of an error's text
	MaxName  = 64       // bytes of a database's name
	NoPNN    = PNN(1<<16 - 1)
)

// Why a watch ended.
const (
	WatchChanged uint32 = 1 // a trigger fired or the RSN is another
	WatchTimeout uint32 = 2 // REQTIMEOUT is over
	WatchLost    uint32 = 3 // the record was lost in a recovery
)

// Why somebody is blamed for a recovery (RECOVERY_WANTED).
const (
	BlameStall  uint32 = 1 // it stalled, and its lease ran out
	BlameSilent uint32 = 2 // it was not heard
	BlameMute   uint32 = 3 // it was heard, and acknowledged no DATA
)

// Mode of a database (DB_INFO).
const (
	ModeKV     uint32 = 1
	ModePieces uint32 = 2
)

// What a node remembers (PROMISE).
const (
	MemoryFresh uint32 = 0 // nothing
	MemoryWiped uint32 = 1 // its promises, no records
	MemoryFull  uint32 = 2 // its segment
	MemoryLeft  uint32 = 3 // its segment, which is empty: it asks for an epoch without it
)

// What a node claims (CLAIM).
const (
	ClaimOwner   uint32 = 1 // it owns the record
	ClaimCarried uint32 = 2 // it carries a copy, bound for another
	ClaimWant    uint32 = 3 // one of its REQIDs is outstanding for the key
)

// opNames spells the opcodes as the plan does.
var opNames = map[Op]string{
	ReqFetch: "REQ_FETCH", ReplyFetch: "REPLY_FETCH", ReqFetchLocked: "REQ_FETCH_LOCKED",
	ReplyFetchLocked: "REPLY_FETCH_LOCKED",
	ReqStoreUnlock:   "REQ_STORE_UNLOCK", ReplyStoreUnlock: "REPLY_STORE_UNLOCK", ReqDelete: "REQ_DELETE",
	ReplyDelete: "REPLY_DELETE",
	ReqUnlock:   "REQ_UNLOCK", ReplyUnlock: "REPLY_UNLOCK", ReqConditionalAppend: "REQ_CONDITIONAL_APPEND",
	ReplyConditionalAppend: "REPLY_CONDITIONAL_APPEND",
	ReqRemoveTrigger:       "REQ_REMOVE_TRIGGER", ReplyRemoveTrigger: "REPLY_REMOVE_TRIGGER",
	ReplyRedirect:  "REPLY_REDIRECT",
	RequestDMaster: "REQUEST_DMASTER", ReplyDMaster: "REPLY_DMASTER", ReplyError: "REPLY_ERROR",
	Ping: "PING", Pong: "PONG", RecoveryWanted: "RECOVERY_WANTED", Prepare: "PREPARE", Promise: "PROMISE",
	Nack: "NACK", NewMap: "NEW_MAP",
	Claims: "CLAIM", ClaimsDone: "CLAIMS_DONE", Settle: "SETTLE", Settled: "SETTLED", Recovered: "RECOVERED",
	Verdicts: "VERDICT", Resupply: "RESUPPLY",
	DBInfo: "DB_INFO", ReplyDBInfo: "REPLY_DB_INFO", ReqWatch: "REQ_WATCH", ReplyWatch: "REPLY_WATCH",
	ReqTraverse: "TRAVERSE", ReplyTraverse: "REPLY_TRAVERSE",
	Offer: "OFFER", OpenDB: "OPEN_DB", DBTable: "DB_TABLE",
}

var statusNames = map[Status]string{
	OK: "OK", NotDMaster: "NOT_DMASTER", VNNMap: "VNN_MAP", Internal: "INTERNAL_ERROR", NoMemory: "NO_MEMORY",
	Timeout: "TIMEOUT", NotLocked: "NOT_LOCKED",
	Condition: "CONDITION", NoCondition: "NO_CONDITION", NotFound: "NOT_FOUND", Mode: "MODE", TooBig: "TOO_BIG",
	NoDB: "NO_DB", Frozen: "FROZEN",
	BadPacket: "BAD_PACKET", Unknown: "UNKNOWN", Malformed: "MALFORMED",
}

// String is the plan's name without its CTDB_ prefix.
func (o Op) String() string {
	if s, ok := opNames[o]; ok {
		return s
	}
	return "OP_" + utoa(uint64(o))
}

// String is the plan's name without its CTDB_ERR_ prefix.
func (s Status) String() string {
	if n, ok := statusNames[s]; ok {
		return n
	}
	return "STATUS_" + utoa(uint64(s))
}

// Valid tells whether s is in the table.
func (s Status) Valid() bool { return s <= NotLocked || s >= Condition && s <= Malformed }

func utoa(v uint64) string {
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + v%10)
		if v /= 10; v == 0 {
			return string(b[i:])
		}
	}
}
