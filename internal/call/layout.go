package call

import (
	"fmt"
	"unsafe"

	"github.com/mainzdb/mainz/ring"
	"github.com/mainzdb/mainz/shm"
)

// nodeOwn is where the dispatcher's part of the node's area begins: what clients
// and dispatcher share without calls, which is package ltdb's, stands before it.
const nodeOwn = 32 << 10

// MaxUnproven is how many slots Node.Unproven has room for.
const MaxUnproven = 8

// Lines is how many lines there are.
const Lines = 4096

// Node is the dispatcher's part of the node's area. The dispatcher alone
// stores, but for the bell.
type Node struct {
	Magic       shm.Word64 // 0: no dispatcher was here yet
	Incarnation shm.Word32 // of the dispatcher that serves; 0: none does
	PID         shm.Word32
	Started     shm.Word64 // nanoseconds since 1970
	Spin        shm.Word64 // ring.SpinTicks, so that no client has to measure it; 0: not known
	// Unproven are slots that are marked dead and can't be recovered, as nothing
	// says that their processes run no more: slot << 40 | seconds since 1970 when
	// that was first seen; 0: none.
	Unproven [MaxUnproven]shm.Word64
	_        [32]byte

	bell [ring.BellSize]byte

	// What a restarted node must find again.
	Promised, Taken, Opened, Life, HighVNN, OpCount shm.Word64
	_                                               [208]byte

	// Intent is the one change that is under way.
	IntentLine shm.Word32 // of which line, + 1; 0: none. Stored last
	IntentDB   shm.Word32
	IntentRSN  shm.Word64 // what the record's will be
	IntentLen  shm.Word32
	_          [44]byte
	IntentKey  [MaxKey]byte
	_          [2432]byte

	// Attached is the generation of each slot's client whose rings are served;
	// 0: none.
	Attached [shm.DispatcherSlot + 1]shm.Word32

	Line [Lines]Line
}

// Magic is what stands in Node.Magic.
const Magic = 0x31444e5a4e49414d // "MAINZND1"

// Line says how a call has ended whose reply may not have been given. It is
// free if State is 0.
type Line struct {
	State      shm.Word32 // LineIntent, LineDone; stored last
	Slot       shm.Word32
	Generation shm.Word32
	Call       shm.Word32
	Status     shm.Word32
	_          [4]byte
	RSN        shm.Word64
}

// States of a line.
const (
	LineFree   = 0
	LineIntent = 1
	LineDone   = 2
)

const (
	_ = -(unsafe.Offsetof(Node{}.bell) ^ 128)
	_ = -(unsafe.Offsetof(Node{}.Promised) ^ 256)
	_ = -(unsafe.Offsetof(Node{}.IntentLine) ^ 512)
	_ = -(unsafe.Offsetof(Node{}.IntentKey) ^ 576)
	_ = -(unsafe.Offsetof(Node{}.Attached) ^ 4032)
	_ = -(unsafe.Sizeof(Line{}) ^ 32)
	_ = uint(224<<10 - unsafe.Sizeof(Node{})) // it fits
	_ = uint(ringSpace - 2*512 - 64*(RequestCells+ReplyCells))
)

// NodeOf returns the dispatcher's part of a segment, and where its bell is.
func NodeOf(seg *shm.Segment) (*Node, shm.Offset, error) {
	off, size := seg.Area(shm.AreaNode)
	if size < nodeOwn+uint64(unsafe.Sizeof(Node{})) {
		return nil, 0, fmt.Errorf("call: the node's area has %d bytes, too few: %w; create the segment anew", size,
			shm.ErrIncompatible)
	}
	n := shm.At[Node](seg.Region(), off+nodeOwn)
	return n, off + nodeOwn + shm.Offset(unsafe.Offsetof(Node{}.bell)), nil
}

// IntentKeyOffset is where the intent's key stands in the region.
func IntentKeyOffset(seg *shm.Segment) shm.Offset {
	off, _ := seg.Area(shm.AreaNode)
	return off + nodeOwn + shm.Offset(unsafe.Offsetof(Node{}.IntentKey))
}
