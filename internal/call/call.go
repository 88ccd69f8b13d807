package call

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mainzdb/mainz/protocol/wire"
	"github.com/mainzdb/mainz/ring"
	"github.com/mainzdb/mainz/shm"
)

// Cells of a slot's two rings, which share 32 KiB.
const (
	RequestCells = 256
	ReplyCells   = 128
	ringSpace    = 32 << 10
)

// MaxCalls is how many calls of one client can be under way.
const MaxCalls = 4096

// Limits of a request.
const (
	MaxKey     = 1024
	MaxPayload = 1<<24 - 1 // of a request or reply, by the format
)

// NoLimit is the timeout of a request that waits for as long as it takes.
const NoLimit = ^uint32(0)

// Rings returns where the rings of a client's slot are; false: there is no room
// for them, or no such slot.
func Rings(seg *shm.Segment, slot uint32) (request, reply shm.Offset, ok bool) {
	off, size := seg.Area(shm.AreaRings)
	if slot < 1 || slot > seg.Slots() || uint64(slot)*ringSpace > size {
		return 0, 0, false
	}
	request = off + shm.Offset(slot-1)*ringSpace
	return request, request + shm.Offset(ring.Size(RequestCells)), true
}

// Kind says what a cell is about.
type Kind uint8

const (
	Request Kind = iota + 1
	Abandon
	Nop
	Synced
	Reply
	Abandoned
	Started
	Opened
)

// Head is what the head of a cell says.
type Head struct {
	Kind   Kind
	Call   uint32
	Total  uint32 // bytes of the whole payload
	Offset uint32 // of this cell's part
	// Dispatcher is the incarnation that the cell is meant for, or comes from
	// (Started). Replies have Status and Why in its place.
	Dispatcher uint32
	Status     wire.Status
	Why        uint32
}

// Put fills a cell with a head and the part of the payload that it is about,
// and returns how many bytes that are.
func (h *Head) Put(m *ring.Message, payload []byte) int {
	x := h.Dispatcher
	if h.Kind == Reply {
		x = uint32(h.Status)<<8 | h.Why&0xff
	}
	m.Head = [2]uint64{uint64(h.Call)<<32 | uint64(h.Total), uint64(x)<<32 | uint64(h.Kind)<<24 | uint64(h.Offset)}
	return copy(m.Inline[:], payload[h.Offset:])
}

// Get reads the head of a cell, which may hold anything, and returns the part
// of the payload in it; nil if that contradicts the head.
func (h *Head) Get(m *ring.Message) []byte {
	x := uint32(m.Head[1] >> 32)
	*h = Head{Kind: Kind(m.Head[1] >> 24), Call: uint32(m.Head[0] >> 32), Total: uint32(m.Head[0]),
		Offset: uint32(m.Head[1]) & (1<<24 - 1), Dispatcher: x}
	if h.Kind == Reply {
		h.Status, h.Why = wire.Status(x>>8), x&0xff
	}
	if h.Total > MaxPayload || h.Offset > h.Total || h.Offset%ring.InlineSize != 0 {
		return nil
	}
	return m.Inline[:min(ring.InlineSize, h.Total-h.Offset)]
}

// Last reports whether the part is the payload's last.
func (h *Head) Last(part []byte) bool { return int(h.Offset)+len(part) == int(h.Total) }

var le = binary.LittleEndian

// ErrRequest: it is no request.
var ErrRequest = errors.New("call: not a request")

const (
	withCond = 1 << iota
	withRSN
	withPiece
	withLock
)

// AppendRequest encodes the fields of a request that a client fills in: Op,
// DBID, Timeout, Key, Data, and those that the operation has of Cond, RSN, Piece
// and LockTimeout.
func AppendRequest(b []byte, m *wire.Message) []byte {
	flags := byte(0)
	if m.Cond != 0 {
		flags |= withCond
	}
	if m.RSN != 0 {
		flags |= withRSN
	}
	if m.Piece != (wire.OPID{}) {
		flags |= withPiece
	}
	if m.LockTimeout != 0 {
		flags |= withLock
	}
	b = append(b, byte(m.Op), flags)
	b = le.AppendUint16(b, uint16(len(m.Key)))
	b = le.AppendUint32(b, m.Timeout)
	b = le.AppendUint32(b, m.DBID)
	if flags&withCond != 0 {
		b = le.AppendUint32(b, m.Cond)
	}
	if flags&withRSN != 0 {
		b = le.AppendUint64(b, m.RSN)
	}
	if flags&withPiece != 0 {
		b = le.AppendUint32(b, uint32(m.Piece.PNN))
		b = le.AppendUint64(b, m.Piece.Life)
		b = le.AppendUint64(b, m.Piece.Counter)
	}
	if flags&withLock != 0 {
		b = le.AppendUint32(b, m.LockTimeout)
	}
	return append(append(b, m.Key...), m.Data...)
}

// DecodeRequest fills m, whose slices borrow from b. It takes nothing but what
// AppendRequest makes of an operation of a client.
func DecodeRequest(b []byte, m *wire.Message) error {
	*m = wire.Message{}
	if len(b) < 12 {
		return fmt.Errorf("%w: cut off", ErrRequest)
	}
	op, flags, klen := wire.Op(b[0]), b[1], int(le.Uint16(b[2:]))
	m.Op, m.Timeout, m.DBID = op, le.Uint32(b[4:]), le.Uint32(b[8:])
	b = b[12:]
	need := klen + int(flags&withCond)*4 + int(flags&withRSN)/withRSN*8 + int(flags&withPiece)/withPiece*20 +
		int(flags&withLock)/withLock*4
	switch op {
	case wire.ReqFetch, wire.ReqFetchLocked, wire.ReqStoreUnlock, wire.ReqDelete, wire.ReqConditionalAppend,
		wire.ReqRemoveTrigger, wire.ReqWatch:
	default:
		return fmt.Errorf("%w: operation %d", ErrRequest, op)
	}
	if flags&^(withCond|withRSN|withPiece|withLock) != 0 || klen < 1 || klen > MaxKey || need > len(b) {
		return fmt.Errorf("%w: impossible lengths", ErrRequest)
	}
	if flags&withCond != 0 {
		m.Cond, b = le.Uint32(b), b[4:]
	}
	if flags&withRSN != 0 {
		m.RSN, b = le.Uint64(b), b[8:]
	}
	if flags&withPiece != 0 {
		if pnn := le.Uint32(b); pnn >= wire.MaxNodes {
			return fmt.Errorf("%w: node %d", ErrRequest, pnn)
		}
		m.Piece, b = wire.OPID{PNN: wire.PNN(le.Uint32(b)), Life: le.Uint64(b[4:]), Counter: le.Uint64(b[12:])}, b[20:]
	}
	if flags&withLock != 0 {
		m.LockTimeout, b = le.Uint32(b), b[4:]
	}
	m.Key, m.Data = b[:klen:klen], b[klen:len(b):len(b)]
	return nil
}

// OpenedSize is the size of what Opened says: one cell.
const OpenedSize = 40

// AppendOpened encodes that an epoch has opened: its number, its members, those who
// came and those who left, and whether this node kept its records. Sets have bit i for
// node i.
func AppendOpened(b []byte, epoch, members, joined, left uint64, kept bool) []byte {
	for _, v := range []uint64{epoch, members, joined, left} {
		b = le.AppendUint64(b, v)
	}
	if kept {
		return le.AppendUint64(b, 1)
	}
	return le.AppendUint64(b, 0)
}

// DecodeOpened is the other way.
func DecodeOpened(b []byte) (epoch, members, joined, left uint64, kept, ok bool) {
	if len(b) != OpenedSize {
		return 0, 0, 0, 0, false, false
	}
	return le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:]), b[32] == 1, true
}

// ReplyHead is the size of what stands in front of a reply's data: the RSN.
const ReplyHead = 8

// AppendReply encodes a reply.
func AppendReply(b []byte, rsn uint64, data []byte) []byte {
	return append(le.AppendUint64(b, rsn), data...)
}

// DecodeReply is the other way.
func DecodeReply(b []byte) (rsn uint64, data []byte, ok bool) {
	if len(b) < ReplyHead {
		return 0, nil, false
	}
	return le.Uint64(b), b[ReplyHead:], true
}
