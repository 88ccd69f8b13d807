package wire

import (
	"fmt"
	"unicode/utf8"
)

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
	case fClaims, fVerdicts, fPieces, fBatch:
		return appendLimited(b, m.Rows, MaxData)
	case fWhy:
		return le.AppendUint32(b, m.Why)
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

// Errors of the decoder, one per field and reason, made once: a flood of garbage
// costs no allocation.
var (
	errShort    [fieldCount]error
	errValue    [fieldCount]error
	errOp       = fmt.Errorf("%w: no such OPERATION", ErrPacket)
	errTrailing = fmt.Errorf("%w: bytes after the last field", ErrPacket)
	errCut      = fmt.Errorf("%w: cut off in OPERATION", ErrPacket)
)

func init() {
	for f := range errShort {
		errShort[f] = fmt.Errorf("%w: cut off in %s", ErrPacket, fieldNames[f])
		errValue[f] = fmt.Errorf("%w: impossible %s", ErrPacket, fieldNames[f])
	}
}

// Decode fills m from one whole packet. On an error m is undefined.
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
	for _, f := range layouts[m.Op] {
		if d.field(f, m); d.err != nil {
			return d.err
		}
	}
	if len(d.b) != 0 {
		return errTrailing
	}
	return nil
}

type decoder struct {
	b   []byte
	err error
}

func (d *decoder) u32(f field) uint32 {
	if len(d.b) < 4 {
		d.err = errShort[f]
		return 0
	}
	v := le.Uint32(d.b)
	d.b = d.b[4:]
	return v
}

func (d *decoder) u64(f field) uint64 {
	if len(d.b) < 8 {
		d.err = errShort[f]
		return 0
	}
	v := le.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

func (d *decoder) bool(f field) bool {
	v := d.u32(f)
	if v > 1 {
		d.err = errValue[f]
	}
	return v == 1
}

func (d *decoder) opid(f field) OPID {
	if len(d.b) < opidSize {
		d.err = errShort[f]
		return OPID{}
	}
	o, ok := opidAt(d.b)
	if !ok {
		d.err = errValue[f]
	}
	d.b = d.b[opidSize:]
	return o
}

func (d *decoder) bytes(f field, limit int) []byte {
	v, rest, ok := takeBytes(d.b, limit)
	if !ok {
		d.err = errShort[f]
		return nil
	}
	d.b = rest
	return v
}

// rows takes a list of fixed rows: a count, then the rows.
func (d *decoder) rows(f field, size int) []byte {
	n := d.u32(f)
	if d.err != nil || n > MaxData/uint32(size) || int(n)*size > len(d.b) {
		d.err = errShort[f]
		return nil
	}
	v := d.b[: int(n)*size : int(n)*size]
	d.b = d.b[int(n)*size:]
	return v
}

// field decodes one field into m, or sets d.err.
func (d *decoder) field(f field, m *Message) {
	switch f {
	case fDest:
		m.Dest = VNN(d.u32(f))
	case fSrc:
		m.Src = VNN(d.u32(f))
	case fReqID:
		m.ReqID = ReqID(d.u32(f))
	case fLockID:
		m.LockID = ReqID(d.u32(f))
	case fTimeout:
		m.Timeout = d.u32(f)
	case fLockTimeout:
		m.LockTimeout = d.u32(f)
	case fCond:
		m.Cond = d.u32(f)
	case fKey:
		m.Key = d.bytes(f, MaxKey)
	case fData:
		m.Data = d.bytes(f, MaxData)
	case fMsg:
		if m.Data = d.bytes(f, MaxMsg); d.err == nil && !utf8.Valid(m.Data) {
			d.err = errValue[f]
		}
	case fDMaster:
		m.DMaster = VNN(d.u32(f))
	case fStatus:
		m.Status = Status(d.u32(f))
	case fErrEpoch:
		if m.Status == VNNMap {
			m.Epoch = Epoch(d.u64(f))
		}
	case fPiece:
		m.Piece = d.opid(f)
	case fOPID:
		m.OPID = d.opid(f)
	case fVia:
		m.Via = ReqID(d.u32(f))
	case fOwnID:
		own := ReqID(d.u32(f))
		if m.Op == ReqUnlock || m.Op == ReqStoreUnlock {
			m.ReqID = own
		} else if own != 0 {
			d.err = errValue[f]
		}
	case fRoom:
		m.Room = d.u32(f)
	case fHops:
		m.Hops = d.u32(f)
	case fRSN:
		m.RSN = d.u64(f)
	case fLAccessor:
		m.LAccessor = VNN(d.u32(f))
	case fLACount:
		m.LACount = d.u32(f)
	case fDones:
		m.Dones = d.rows(f, doneSize)
		for r, ok := m.Dones, true; len(r) > 0; {
			if _, r, ok = NextDone(r); !ok {
				d.err = errValue[f]
				return
			}
		}
	case fTags:
		m.Tags = d.rows(f, tagSize)
		d.tags(f, m)
	case fT:
		m.T = int64(d.u64(f))
	case fEpoch:
		m.Epoch = Epoch(d.u64(f))
	case fPromise:
		m.Promise = Epoch(d.u64(f))
	case fOpen:
		m.Open = d.bool(f)
	case fGrant:
		m.Grant = d.bool(f)
	case fLife:
		m.Life = d.u64(f)
	case fFloor:
		m.Floor = d.u64(f)
	case fHeard:
		m.Heard = Set(d.u64(f))
	case fMembers:
		m.Members = d.rows(f, memberSize)
		d.members(f, m)
	case fMemory:
		if m.Memory = d.u32(f); m.Memory > MemoryFull {
			d.err = errValue[f]
		}
	case fVNN:
		m.VNN = VNN(d.u32(f))
	case fSince:
		if m.Since = d.rows(f, 4); len(m.Since) > 4*MaxNodes {
			d.err = errValue[f]
		}
	case fNodes:
		m.Nodes = d.u32(f)
	case fInc:
		m.Inc = d.u64(f)
	case fClaims, fVerdicts, fPieces, fBatch:
		m.Rows = d.bytes(f, MaxData)
		if d.err == nil && !rowsOK(f, m.Rows) {
			d.err = errValue[f]
		}
	case fWhy:
		m.Why = d.u32(f)
	case fCursor:
		m.Cursor = d.u64(f)
	default:
		panic("wire: field without a decoding")
	}
}

// tags: the pieces must be exactly the data.
func (d *decoder) tags(f field, m *Message) {
	sum := uint64(0)
	for r := m.Tags; len(r) > 0; {
		t, rest, ok := NextTag(r)
		if sum += uint64(t.Len); !ok || sum > uint64(len(m.Data)) {
			d.err = errValue[f]
			return
		}
		r = rest
	}
	if len(m.Tags) > 0 && sum != uint64(len(m.Data)) && d.err == nil {
		d.err = errValue[f]
	}
}

// members: no PNN and no VNN twice, and no more than a set can hold.
func (d *decoder) members(f field, m *Message) {
	var seen Set
	for r := m.Members; len(r) > 0; {
		e, rest, ok := NextMember(r)
		if !ok || seen.Has(e.PNN) {
			d.err = errValue[f]
			return
		}
		seen |= 1 << e.PNN
		for q := rest; len(q) > 0; {
			o, qrest, ok := NextMember(q)
			if !ok || o.VNN == e.VNN {
				d.err = errValue[f]
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
