package wire

import "unicode/utf8"

// Append encodes m behind b and returns the longer slice.
// Preconditions: m.Op is a message; keys, data and lists are within the limits.
func Append(b []byte, m *Message) []byte {
	if !m.Op.Valid() {
		panic("wire: encode " + m.Op.String())
	}
	b = le.AppendUint32(b, uint32(m.Op))
	for _, f := range layouts[m.Op] {
		b = appendField(b, f, m)
	}
	return b
}

func appendField(b []byte, f field, m *Message) []byte {
	switch f {
	case fDest:
		return le.AppendUint32(b, uint32(m.Dest))
	case fSrc:
		return le.AppendUint32(b, uint32(m.Src))
	case fReqID:
		return le.AppendUint32(b, uint32(m.ReqID))
	case fLockID:
		return le.AppendUint32(b, uint32(m.LockID))
	case fTimeout:
		return le.AppendUint32(b, m.Timeout)
	case fLockTimeout:
		return le.AppendUint32(b, m.LockTimeout)
	case fCond:
		return le.AppendUint32(b, m.Cond)
	case fKey:
		return appendLimited(b, m.Key, MaxKey)
	case fData:
		return appendLimited(b, m.Data, MaxData)
	case fMsg:
		return appendLimited(b, m.Data, MaxMsg)
	case fDMaster:
		return le.AppendUint32(b, uint32(m.DMaster))
	case fStatus:
		return le.AppendUint32(b, uint32(m.Status))
	case fErrEpoch:
		if m.Status != VNNMap {
			return b
		}
		return le.AppendUint64(b, uint64(m.Epoch))
	case fPiece:
		return appendOPID(b, m.Piece)
	case fOPID:
		return appendOPID(b, m.OPID)
	case fVia:
		return le.AppendUint32(b, uint32(m.Via))
	case fOwnID:
		if m.Op != ReqUnlock && m.Op != ReqStoreUnlock {
			return le.AppendUint32(b, 0)
		}
		return le.AppendUint32(b, uint32(m.ReqID))
	case fRoom:
		return le.AppendUint32(b, m.Room)
	case fHops:
		return le.AppendUint32(b, m.Hops)
	case fRSN:
		return le.AppendUint64(b, m.RSN)
	case fLAccessor:
		return le.AppendUint32(b, uint32(m.LAccessor))
	case fLACount:
		return le.AppendUint32(b, m.LACount)
	case fDones:
		return appendRows(b, m.Dones, doneSize)
	case fTags:
		return appendRows(b, m.Tags, tagSize)
	case fT:
		return le.AppendUint64(b, uint64(m.T))
	case fEpoch:
		return le.AppendUint64(b, uint64(m.Epoch))
	case fPromise:
		return le.AppendUint64(b, uint64(m.Promise))
	case fOpen:
		return le.AppendUint32(b, b2u(m.Open))
	case fGrant:
		return le.AppendUint32(b, b2u(m.Grant))
	case fLife:
		return le.AppendUint64(b, m.Life)
	case fFloor:
		return le.AppendUint64(b, m.Floor)
	case fProgress:
		return le.AppendUint64(b, m.Progress)
	case fHeard:
		return le.AppendUint64(b, uint64(m.Heard))
	case fMembers:
		return appendRows(b, m.Members, memberSize)
	case fMemory:
		return le.AppendUint32(b, m.Memory)
	case fVNN:
		return le.AppendUint32(b, uint32(m.VNN))
	case fSince:
		return appendRows(b, m.Since, 4)
	case fNodes:
		return le.AppendUint32(b, m.Nodes)
	case fInc:
		return le.AppendUint64(b, m.Inc)
	case fOld:
		return le.AppendUint64(b, uint64(m.Old))
	case fClock:
		return le.AppendUint64(b, m.Clock)
	case fBlame:
		return le.AppendUint32(le.AppendUint32(b, uint32(m.Blame)), m.Stall)
	case fClaims, fVerdicts, fPieces, fBatch:
		return appendLimited(b, m.Rows, MaxData)
	case fWhy:
		return le.AppendUint32(b, m.Why)
	case fMode:
		return le.AppendUint32(b, m.Mode)
	case fName:
		return appendLimited(b, m.Data, MaxName)
	case fConds:
		return appendRows(b, m.Conds, condSize)
	case fCursor:
		return le.AppendUint64(b, m.Cursor)
	}
	panic("wire: field without an encoding")
}

func appendLimited(b, v []byte, limit int) []byte {
	if len(v) > limit {
		panic("wire: " + utoa(uint64(len(v))) + " bytes where " + utoa(uint64(limit)) + " are the limit")
	}
	return appendBytes(b, v)
}

func appendRows(b, rows []byte, size int) []byte {
	if len(rows)%size != 0 || len(rows) > MaxData {
		panic("wire: " + utoa(uint64(len(rows))) + " bytes of rows of " + utoa(uint64(size)))
	}
	return append(le.AppendUint32(b, uint32(len(rows)/size)), rows...)
}

// Decode fills m from one whole packet. On an error, a *[PacketError], m is
// undefined.
func Decode(packet []byte, m *Message) error {
	*m = Message{DBID: m.DBID}
	if len(packet) < 4 {
		return errCut
	}
	m.Op = Op(le.Uint32(packet))
	if !m.Op.Valid() {
		return errOp
	}
	d := decoder{b: packet[4:]}
	for i, f := range layouts[m.Op] {
		if d.field(f, m); d.why != 0 {
			return &complaints[m.Op][i][d.why]
		}
	}
	if len(d.b) != 0 {
		return &trailing[m.Op]
	}
	return nil
}

// decoder walks the fields of one packet. After a complaint its values mean nothing.
type decoder struct {
	b   []byte
	why Reason
}

func (d *decoder) u32() uint32 {
	if len(d.b) < 4 {
		d.why = Short
		return 0
	}
	v := le.Uint32(d.b)
	d.b = d.b[4:]
	return v
}

func (d *decoder) u64() uint64 {
	if len(d.b) < 8 {
		d.why = Short
		return 0
	}
	v := le.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

// must complains of a value that can't be. A field that was cut off stays that.
func (d *decoder) must(ok bool) {
	if !ok && d.why == 0 {
		d.why = Impossible
	}
}

func (d *decoder) bool() bool {
	v := d.u32()
	d.must(v <= 1)
	return v == 1
}

func (d *decoder) opid() OPID {
	if len(d.b) < opidSize {
		d.why = Short
		return OPID{}
	}
	o, ok := opidAt(d.b)
	d.must(ok)
	d.b = d.b[opidSize:]
	return o
}

func (d *decoder) bytes(limit int) []byte {
	n := d.u32()
	switch {
	case d.why != 0:
	case n > uint32(limit):
		d.why = TooLong
	case int(n) > len(d.b):
		d.why = Short
	default:
		v := d.b[:n:n]
		d.b = d.b[n:]
		return v
	}
	return nil
}

// rows takes a list of fixed rows: a count, then the rows.
func (d *decoder) rows(size int) []byte {
	n := d.u32()
	switch {
	case d.why != 0:
	case n > MaxData/uint32(size):
		d.why = TooLong
	case int(n)*size > len(d.b):
		d.why = Short
	default:
		v := d.b[: int(n)*size : int(n)*size]
		d.b = d.b[int(n)*size:]
		return v
	}
	return nil
}

// field decodes one field into m, or sets d.why.
func (d *decoder) field(f field, m *Message) {
	switch f {
	case fDest:
		m.Dest = VNN(d.u32())
	case fSrc:
		m.Src = VNN(d.u32())
	case fReqID:
		m.ReqID = ReqID(d.u32())
	case fLockID:
		m.LockID = ReqID(d.u32())
	case fTimeout:
		m.Timeout = d.u32()
	case fLockTimeout:
		m.LockTimeout = d.u32()
	case fCond:
		m.Cond = d.u32()
	case fKey:
		m.Key = d.bytes(MaxKey)
		d.must(len(m.Key) > 0)
	case fData:
		m.Data = d.bytes(MaxData)
	case fMsg:
		m.Data = d.bytes(MaxMsg)
		d.must(utf8.Valid(m.Data))
	case fDMaster:
		m.DMaster = VNN(d.u32())
	case fStatus:
		m.Status = Status(d.u32())
		d.must(m.Status.Valid() && (m.Status != OK || m.Op != ReplyError))
	case fErrEpoch:
		if m.Status == VNNMap {
			m.Epoch = Epoch(d.u64())
		}
	case fPiece:
		m.Piece = d.opid()
	case fOPID:
		m.OPID = d.opid()
	case fVia:
		m.Via = ReqID(d.u32())
	case fOwnID:
		own := ReqID(d.u32())
		if m.Op == ReqUnlock || m.Op == ReqStoreUnlock {
			m.ReqID = own
		} else {
			d.must(own == 0)
		}
	case fRoom:
		m.Room = d.u32()
	case fHops:
		m.Hops = d.u32()
	case fRSN:
		m.RSN = d.u64()
	case fLAccessor:
		m.LAccessor = VNN(d.u32())
	case fLACount:
		m.LACount = d.u32()
	case fDones:
		m.Dones = d.rows(doneSize)
		for r, ok := m.Dones, true; len(r) > 0; {
			if _, r, ok = NextDone(r); !ok {
				d.why = Impossible
				return
			}
		}
	case fTags:
		m.Tags = d.rows(tagSize)
		d.tags(m)
	case fT:
		m.T = int64(d.u64())
	case fEpoch:
		m.Epoch = Epoch(d.u64())
	case fPromise:
		m.Promise = Epoch(d.u64())
	case fOpen:
		m.Open = d.bool()
	case fGrant:
		m.Grant = d.bool()
	case fLife:
		m.Life = d.u64()
	case fFloor:
		m.Floor = d.u64()
	case fProgress:
		m.Progress = d.u64()
	case fHeard:
		m.Heard = Set(d.u64())
	case fMembers:
		m.Members = d.rows(memberSize)
		d.members(m)
	case fMemory:
		m.Memory = d.u32()
		d.must(m.Memory <= MemoryLeft)
	case fVNN:
		m.VNN = VNN(d.u32())
	case fSince:
		m.Since = d.rows(4)
		d.must(len(m.Since) <= 4*MaxNodes)
	case fNodes:
		m.Nodes = d.u32()
	case fInc:
		m.Inc = d.u64()
	case fOld:
		m.Old = Set(d.u64())
	case fBlame:
		who := d.u32()
		m.Blame, m.Stall = PNN(who), d.u32()
		d.must(who < MaxNodes && m.Stall >= BlameStall && m.Stall <= BlameMute || who == uint32(NoPNN) && m.Stall == 0)
	case fClock:
		m.Clock = d.u64()
		d.must(m.Clock < 1<<47) // it may become a ballot's counter
	case fClaims, fVerdicts, fPieces, fBatch:
		m.Rows = d.bytes(MaxData)
		d.must(rowsOK(f, m.Rows))
	case fWhy:
		m.Why = d.u32()
		d.must(m.Why >= WatchChanged && m.Why <= WatchLost)
	case fCursor:
		m.Cursor = d.u64()
	case fMode:
		m.Mode = d.u32()
		d.must(m.Mode <= ModePieces && (m.Mode != 0) == (m.Status == OK))
	case fName:
		m.Data = d.bytes(MaxName)
		d.must(utf8.Valid(m.Data) && (len(m.Data) > 0) == (m.Status == OK))
	case fConds:
		m.Conds = d.rows(condSize)
	default:
		panic("wire: field without a decoding")
	}
}

// tags: the pieces must be exactly the data.
func (d *decoder) tags(m *Message) {
	sum := uint64(0)
	for r := m.Tags; len(r) > 0; {
		t, rest, ok := NextTag(r)
		if sum += uint64(t.Len); !ok || sum > uint64(len(m.Data)) {
			d.must(false)
			return
		}
		r = rest
	}
	d.must(len(m.Tags) == 0 || sum == uint64(len(m.Data)))
}

// members: no PNN and no VNN twice, and no more than a set can hold.
func (d *decoder) members(m *Message) {
	var seen Set
	for r := m.Members; len(r) > 0; {
		e, rest, ok := NextMember(r)
		if !ok || seen.Has(e.PNN) {
			d.must(false)
			return
		}
		seen |= 1 << e.PNN
		for q := rest; len(q) > 0; {
			o, qrest, ok := NextMember(q)
			if !ok || o.VNN == e.VNN {
				d.must(false)
				return
			}
			q = qrest
		}
		r = rest
	}
}

func rowsOK(f field, r []byte) bool {
	ok := true
	for ok && len(r) > 0 {
		switch f {
		case fClaims:
			_, r, ok = NextClaim(r)
		case fVerdicts:
			_, r, ok = NextVerdict(r)
		case fPieces:
			_, r, ok = NextPiece(r)
		default:
			_, r, ok = NextEntry(r)
		}
	}
	return ok
}
