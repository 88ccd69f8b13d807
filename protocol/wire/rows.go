package wire

import "encoding/binary"

var le = binary.LittleEndian

// Rows of the lists. A Next function takes the rest of a list's bytes and gives
// back one row less; the decoder has walked every list once, so on a decoded
// message Next can't fail before the end.

// Done says that an operation has been done: its OPID and how it ended.
type Done struct {
	OPID   OPID
	Status Status
}

// Tag says whose piece the next Len bytes of a record's data are.
type Tag struct {
	OPID OPID
	Len  uint32
}

const (
	opidSize = 20
	doneSize = opidSize + 4
	tagSize  = opidSize + 4
)

func appendOPID(b []byte, o OPID) []byte {
	b = le.AppendUint32(b, uint32(o.PNN))
	b = le.AppendUint64(b, o.Life)
	return le.AppendUint64(b, o.Counter)
}

func opidAt(b []byte) (OPID, bool) {
	p := le.Uint32(b)
	return OPID{PNN(p), le.Uint64(b[4:]), le.Uint64(b[12:])}, p < MaxNodes
}

// AppendDone adds a row to a done list.
func AppendDone(b []byte, d Done) []byte {
	return le.AppendUint32(appendOPID(b, d.OPID), uint32(d.Status))
}

// NextDone takes the first row off a done list.
func NextDone(b []byte) (d Done, rest []byte, ok bool) {
	if len(b) < doneSize {
		return d, nil, false
	}
	d.OPID, ok = opidAt(b)
	d.Status = Status(le.Uint32(b[opidSize:]))
	return d, b[doneSize:], ok && d.Status.Valid()
}

// AppendTag adds a row to a tag list.
func AppendTag(b []byte, t Tag) []byte {
	return le.AppendUint32(appendOPID(b, t.OPID), t.Len)
}

// NextTag takes the first row off a tag list.
func NextTag(b []byte) (t Tag, rest []byte, ok bool) {
	if len(b) < tagSize {
		return t, nil, false
	}
	t.OPID, ok = opidAt(b)
	t.Len = le.Uint32(b[opidSize:])
	return t, b[tagSize:], ok
}

// Member is one line of a VNN map.
type Member struct {
	VNN         VNN
	PNN         PNN
	Joiner      bool
	Port        uint16
	Addr        [16]byte
	Incarnation uint64
	Life        uint64
}

const memberSize = 4 + 2 + 2 + 2 + 2 + 16 + 8 + 8

// AppendMember adds a row to a map.
func AppendMember(b []byte, m *Member) []byte {
	var j uint16
	if m.Joiner {
		j = 1
	}
	b = le.AppendUint32(b, uint32(m.VNN))
	b = le.AppendUint16(b, uint16(m.PNN))
	b = le.AppendUint16(b, j)
	b = le.AppendUint16(b, m.Port)
	b = le.AppendUint16(b, 0)
	b = append(b, m.Addr[:]...)
	b = le.AppendUint64(b, m.Incarnation)
	return le.AppendUint64(b, m.Life)
}

// NextMember takes the first row off a map.
func NextMember(b []byte) (m Member, rest []byte, ok bool) {
	if len(b) < memberSize {
		return m, nil, false
	}
	m.VNN, m.PNN = VNN(le.Uint32(b)), PNN(le.Uint16(b[4:]))
	j := le.Uint16(b[6:])
	m.Joiner, m.Port = j == 1, le.Uint16(b[8:])
	copy(m.Addr[:], b[12:])
	m.Incarnation, m.Life = le.Uint64(b[28:]), le.Uint64(b[36:])
	return m, b[memberSize:], j <= 1 && m.PNN < MaxNodes && le.Uint16(b[10:]) == 0
}

// Claim is one line of a CLAIM: what a member has, or waits for, of one key.
type Claim struct {
	Kind  uint32
	DBID  uint32
	RSN   uint64
	Bound PNN
	ReqID ReqID
	Token uint64
	Key   []byte
}

// AppendClaim adds a row.
func AppendClaim(b []byte, c *Claim) []byte {
	b = le.AppendUint32(b, c.Kind)
	b = le.AppendUint32(b, c.DBID)
	b = le.AppendUint64(b, c.RSN)
	b = le.AppendUint32(b, uint32(c.Bound))
	b = le.AppendUint32(b, uint32(c.ReqID))
	b = le.AppendUint64(b, c.Token)
	return appendBytes(b, c.Key)
}

// NextClaim takes the first row off.
func NextClaim(b []byte) (c Claim, rest []byte, ok bool) {
	if len(b) < 32 {
		return c, nil, false
	}
	bound := le.Uint32(b[16:])
	c = Claim{Kind: le.Uint32(b), DBID: le.Uint32(b[4:]), RSN: le.Uint64(b[8:]), Bound: PNN(bound),
		ReqID: ReqID(le.Uint32(b[20:])), Token: le.Uint64(b[24:])}
	c.Key, rest, ok = takeKey(b[32:])
	return c, rest, ok && c.Kind >= ClaimOwner && c.Kind <= ClaimWant && bound < MaxNodes
}

// Verdict answers a claim of kind carried.
type Verdict struct {
	Token uint64
	Keep  bool
}

const verdictSize = 12

// AppendVerdict adds a row.
func AppendVerdict(b []byte, v Verdict) []byte {
	b = le.AppendUint64(b, v.Token)
	return le.AppendUint32(b, b2u(v.Keep))
}

// NextVerdict takes the first row off.
func NextVerdict(b []byte) (v Verdict, rest []byte, ok bool) {
	if len(b) < verdictSize {
		return v, nil, false
	}
	k := le.Uint32(b[8:])
	return Verdict{le.Uint64(b), k == 1}, b[verdictSize:], k <= 1
}

// Piece is one line of a RESUPPLY.
type Piece struct {
	DBID uint32
	OPID OPID
	Key  []byte
	Data []byte
}

// AppendPiece adds a row.
func AppendPiece(b []byte, p *Piece) []byte {
	b = le.AppendUint32(b, p.DBID)
	b = appendOPID(b, p.OPID)
	return appendBytes(appendBytes(b, p.Key), p.Data)
}

// NextPiece takes the first row off.
func NextPiece(b []byte) (p Piece, rest []byte, ok bool) {
	if len(b) < 4+opidSize {
		return p, nil, false
	}
	p.DBID = le.Uint32(b)
	if p.OPID, ok = opidAt(b[4:]); !ok {
		return p, nil, false
	}
	if p.Key, rest, ok = takeKey(b[4+opidSize:]); !ok {
		return p, nil, false
	}
	p.Data, rest, ok = takeBytes(rest, MaxData)
	return p, rest, ok
}

// Entry is one record of a TRAVERSE batch.
type Entry struct {
	RSN  uint64
	Key  []byte
	Data []byte
}

// AppendEntry adds a row.
func AppendEntry(b []byte, e *Entry) []byte {
	return appendBytes(appendBytes(le.AppendUint64(b, e.RSN), e.Key), e.Data)
}

// NextEntry takes the first row off.
func NextEntry(b []byte) (e Entry, rest []byte, ok bool) {
	if len(b) < 8 {
		return e, nil, false
	}
	e.RSN = le.Uint64(b)
	if e.Key, rest, ok = takeKey(b[8:]); !ok {
		return e, nil, false
	}
	e.Data, rest, ok = takeBytes(rest, MaxData)
	return e, rest, ok
}

// Cond says which version of a condition function a node has.
type Cond struct {
	ID, Version uint32
}

const condSize = 8

// AppendCond adds a row.
func AppendCond(b []byte, c Cond) []byte {
	return le.AppendUint32(le.AppendUint32(b, c.ID), c.Version)
}

// NextCond takes the first row off.
func NextCond(b []byte) (c Cond, rest []byte, ok bool) {
	if len(b) < condSize {
		return c, nil, false
	}
	return Cond{le.Uint32(b), le.Uint32(b[4:])}, b[condSize:], true
}

func appendBytes(b, v []byte) []byte { return append(le.AppendUint32(b, uint32(len(v))), v...) }

// takeKey reads a key, which has at least one byte.
func takeKey(b []byte) (v, rest []byte, ok bool) {
	v, rest, ok = takeBytes(b, MaxKey)
	return v, rest, ok && len(v) > 0
}

// takeBytes reads a u32 length and that many bytes.
func takeBytes(b []byte, limit int) (v, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := le.Uint32(b)
	if n > uint32(limit) || int(n) > len(b)-4 {
		return nil, nil, false
	}
	return b[4 : 4+n : 4+n], b[4+n:], true
}

func b2u(v bool) uint32 {
	if v {
		return 1
	}
	return 0
}
