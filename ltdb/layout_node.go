package ltdb

import (
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

// nodeArea is what all clients and the dispatcher know together. The rest of
// the area is the dispatcher's own (NodeArea).
type nodeArea struct {
	// A bit for each entry that the dispatcher has to look at, by its offset.
	// Who hands a record to it, or changes one that is attended, sets it; the
	// dispatcher takes them, a word at a time.
	rung [rungWords]shm.Word64

	// The latch of the orphan indexes, and nothing else on its line.
	orphanLatch shm.Latch
	_           [60]byte

	// Who waits for a record to change sleeps on one of these, by the entry's
	// offset. Who changes a record that is waited for adds 1 and wakes all.
	changes [changeWords]shm.Word32

	// First page of the indexes that dead clients have left, by slot. Stored
	// by who repairs the slot; the holder of the latch takes pages away.
	orphan [DispatcherSlot + 1]shm.Word32

	// The way of an update that finds no free block. Stored by the holder of
	// its latch, and by who repairs a dead one.
	spare spareLine

	// Notes of damage, from 0 by CAS. Whoever meets it stores, all load.
	damage [maxDamage]shm.Word64
}

// spareLine says which record is on its way through the spare (spare.go).
type spareLine struct {
	latch shm.Latch
	_     [4]byte
	entry shm.Word64 // offset of the record's entry; 0: none is on its way
	home  shm.Word64 // class and ref of the record's own block, as in an entry
	_     [40]byte
}

const (
	rungBits    = 4096
	rungWords   = rungBits / 64
	changeWords = 1024
	// nodeCommon is the size of what stands before the dispatcher's own part.
	nodeCommon = 32 << 10
)

const (
	_ = -(unsafe.Offsetof(nodeArea{}.orphanLatch) ^ 512)
	_ = -(unsafe.Offsetof(nodeArea{}.changes) ^ 576)
	_ = -(unsafe.Offsetof(nodeArea{}.orphan) ^ 4672)
	_ = -(unsafe.Offsetof(nodeArea{}.spare) ^ 21056)
	_ = -(unsafe.Offsetof(nodeArea{}.damage) ^ 21120)
	_ = -(unsafe.Sizeof(spareLine{}) ^ 64)
	_ = -(unsafe.Offsetof(spareLine{}.entry) ^ 8)
	_ = uint(nodeCommon - unsafe.Sizeof(nodeArea{})) // it fits
)

// indexPage is what stands in a page's block behind the header. The header's
// rsn is the ref of the next page.
type indexPage struct {
	word [pageWords]shm.Word64
}

const (
	pageClass = 7 // blocks of 1,024 bytes
	pageWords = 122
)

var _ [1024 - blockHeaderSize]byte = [unsafe.Sizeof(indexPage{})]byte{}
