package wire

// field is one step of a layout: how many bytes, and which field of Message.
type field uint8

const (
	fEnd field = iota
	fDest
	fSrc
	fReqID
	fLockID // the plan's REQID field of UNLOCK and STORE_UNLOCK
	fTimeout
	fLockTimeout
	fCond
	fKey  // KEYLEN, KEY[]
	fData // DATALEN, DATA[]
	fMsg  // MSGLEN, MSG[]
	fDMaster
	fStatus
	fErrEpoch // u64, only if STATUS is VNN_MAP
	fPiece
	fOPID
	fVia
	fOwnID // UNLOCK, STORE_UNLOCK: this sending's REQID
	fRoom
	fHops
	fRSN
	fLAccessor
	fLACount
	fDones
	fTags
	fT
	fEpoch
	fPromise
	fOpen
	fGrant
	fLife
	fFloor
	fProgress
	fHeard
	fMembers
	fMemory
	fVNN
	fSince
	fNodes
	fInc
	fOld
	fClock
	fBlame
	fClaims
	fVerdicts
	fPieces
	fBatch
	fWhy
	fCursor
	fMode
	fName // NAMELEN, NAME[]
	fConds
	fieldCount
)

var fieldNames = [fieldCount]string{
	fDest: "DESTNODE", fSrc: "SRCNODE", fReqID: "REQID", fLockID: "REQID (of the lock)", fTimeout: "REQTIMEOUT", fLockTimeout: "LCKTIMEOUT", fCond: "CONDITIONID",
	fKey: "KEYLEN, KEY", fData: "DATALEN, DATA", fMsg: "MSGLEN, MSG", fDMaster: "DMASTER", fStatus: "STATUS", fErrEpoch: "+ epoch",
	fPiece: "+ piece OPID", fOPID: "+ OPID", fVia: "+ via REQID", fOwnID: "+ own REQID", fRoom: "+ room", fHops: "+ hops",
	fRSN: "+ RSN", fLAccessor: "+ LACCESSOR", fLACount: "+ LACOUNT", fDones: "+ done list", fTags: "+ piece tags",
	fT: "T", fEpoch: "epoch", fPromise: "ballot promised", fOpen: "open", fGrant: "grant", fLife: "life", fFloor: "floor", fProgress: "progress", fHeard: "heard", fMembers: "map",
	fMemory: "memory", fVNN: "highest VNN", fSince: "since", fNodes: "nodes file version", fInc: "incarnation", fOld: "nodes of the last file in use", fClock: "clock", fBlame: "blame", fClaims: "claims", fVerdicts: "verdicts", fPieces: "pieces", fBatch: "batch",
	fWhy: "why", fCursor: "cursor", fMode: "mode", fName: "NAMELEN, name", fConds: "conditions",
}

// Headers and the trailer, as the plan and doc.go give them.
var (
	reqHead   = []field{fDest, fSrc, fReqID, fTimeout}
	lockHead  = []field{fDest, fSrc, fLockID, fTimeout}
	replyHead = []field{fDest, fSrc, fReqID}
	trailer   = []field{fOPID, fVia, fOwnID, fRoom, fHops}
)

// layouts is the one description of every message: all fields after OPERATION.
var layouts = [128][]field{
	ReqFetch:               join(reqHead, []field{fKey}, trailer),
	ReplyFetch:             join(replyHead, []field{fData}),
	ReqFetchLocked:         join(reqHead, []field{fLockTimeout, fKey}, trailer),
	ReplyFetchLocked:       join(replyHead, []field{fData}),
	ReqStoreUnlock:         join(lockHead, []field{fKey, fData}, trailer),
	ReplyStoreUnlock:       join(replyHead),
	ReqDelete:              join(reqHead, []field{fKey}, trailer),
	ReplyDelete:            join(replyHead),
	ReqUnlock:              join(lockHead, []field{fKey}, trailer),
	ReplyUnlock:            join(replyHead),
	ReqConditionalAppend:   join(reqHead, []field{fCond, fKey, fData, fPiece}, trailer),
	ReplyConditionalAppend: join(replyHead),
	ReqRemoveTrigger:       join(reqHead, []field{fCond, fKey, fData, fPiece}, trailer),
	ReplyRemoveTrigger:     join(replyHead),
	ReplyRedirect:          join(replyHead, []field{fDMaster, fVia}),
	RequestDMaster:         join(reqHead, []field{fDMaster, fKey, fData, fRSN, fLAccessor, fLACount, fDones, fTags}),
	ReplyDMaster:           join(replyHead, []field{fData, fKey, fRSN, fLAccessor, fLACount, fDones, fTags}),
	ReplyError:             join(replyHead, []field{fStatus, fMsg, fErrEpoch}),

	Ping:           {fT, fEpoch, fOpen, fLife, fFloor, fProgress},
	Pong:           {fT, fEpoch, fOpen, fGrant},
	RecoveryWanted: {fEpoch, fHeard, fBlame},
	Prepare:        {fPromise, fEpoch, fNodes},
	Promise:        {fPromise, fEpoch, fMembers, fMemory, fLife, fVNN, fHeard, fSince, fNodes, fInc, fOpen, fOld, fClock},
	Nack:           {fEpoch, fPromise, fOpen},
	NewMap:         {fPromise, fMembers},
	Claims:         {fClaims},
	ClaimsDone:     {},
	Settle:         {},
	Settled:        {},
	Recovered:      {},
	Verdicts:       {fVerdicts},
	Resupply:       {fPieces},
	DBInfo:         join(reqHead),
	ReplyDBInfo:    join(replyHead, []field{fStatus, fMode, fName, fConds}),
	ReqWatch:       join(reqHead, []field{fKey, fRSN}, trailer),
	ReplyWatch:     join(replyHead, []field{fRSN, fWhy}),
	ReqTraverse:    join(reqHead, []field{fCursor}),
	ReplyTraverse:  join(replyHead, []field{fStatus, fCursor, fBatch}),
	Offer:          join(reqHead, []field{fKey}),
	OpenDB:         join(reqHead, []field{fMode, fName, fConds}),
	DBTable:        {fMode, fName, fConds},
}

func join(parts ...[]field) []field {
	l := []field{}
	for _, p := range parts {
		l = append(l, p...)
	}
	return l
}

// IsRequest tells a request of a client (with OPID, via and hops) from the rest.
func (o Op) IsRequest() bool {
	switch o {
	case ReqFetch, ReqFetchLocked, ReqStoreUnlock, ReqDelete, ReqUnlock, ReqConditionalAppend, ReqRemoveTrigger, ReqWatch:
		return true
	}
	return false
}

// Reply is the opcode that answers the request o.
func (o Op) Reply() Op {
	if !o.IsRequest() {
		panic("wire: no reply to " + o.String())
	}
	return o + 1
}

// Valid tells whether o is a message.
func (o Op) Valid() bool { return o < Op(len(layouts)) && layouts[o] != nil }
