package ring

import (
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

// head is the start of a ring.
type head struct {
	magic shm.Word64 // Init stores, then constant
	cells shm.Word64 // the same
	_     [112]byte

	// The next position to claim. Producers store by CAS; it publishes
	// nothing. Loaded by producers and by Repair.
	claimed shm.Word64
	_       [120]byte

	// All cells before this position are free again. The consumer stores when
	// it is done with them; producers load when they think that the ring is
	// full, and the next consumer to know where to go on.
	released shm.Word64
	_        [120]byte

	// The consumer stores when it goes to sleep and has woken; producers CAS
	// odd to even. All load.
	asleep shm.Word32
	_      [60]byte

	// The same for producers that wait for room: they CAS even to odd, the
	// consumer odd to even.
	full shm.Word32
	_    [60]byte
}

const headSize = 512

var _ [headSize]byte = [unsafe.Sizeof(head{})]byte{}

const (
	_ = -(unsafe.Offsetof(head{}.claimed) ^ 128)
	_ = -(unsafe.Offsetof(head{}.released) ^ 256)
	_ = -(unsafe.Offsetof(head{}.asleep) ^ 384)
	_ = -(unsafe.Offsetof(head{}.full) ^ 448)
)

// cell is one line. The producer that has claimed it stores head and data, and
// then seq, which publishes them; the consumer loads.
type cell struct {
	seq  shm.Word64
	head [2]shm.Word64
	data [InlineSize / 8]shm.Word64
}

const cellSize = 64

var _ [cellSize]byte = [unsafe.Sizeof(cell{})]byte{}

const _ = -(unsafe.Offsetof(cell{}.head) ^ 8)
const _ = -(unsafe.Offsetof(cell{}.data) ^ 24)

// bell is a line of its own: see Bell.
type bell struct {
	asleep shm.Word32
	_      [124]byte
}

// BellSize is what a Bell takes in a region, in bytes.
const BellSize = 128

var _ [BellSize]byte = [unsafe.Sizeof(bell{})]byte{}

// Layout describes the structs for a segment's layout hash.
const Layout = "ring 1: head 512 claimed@128 released@256 asleep@384 full@448, cell 64 seq@0 head@8 data@24, bell 128"
