package ltdb

import (
	"fmt"
	"math/bits"
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

// An entry is one word of a bucket. It names a block and carries the record's
// lock, so that the lock stays where it is while blocks come and go:
//
//	63        52 51 50 49 48     37 36   32 31                0
//	| owner 12  | W| D| S| tag 12  | class 5 | block ref 32     |
//
// owner is the slot that holds the record's lock, 0 for nobody. W: somebody
// sleeps on the upper half. D: the dispatcher waits and gets the lock next.
// S on an owned word: goroutines of the owner's process stand in line for it.
// S on a free word: it was left to one who has slept for it. The low 49 bits
// are the entry's identity. A non-zero entry changes by CAS alone; 0 becomes
// an entry under the bucket's latch.
const (
	refBits    = 32
	classBits  = 5
	tagBits    = 12
	classShift = refBits
	tagShift   = classShift + classBits
	bitS       = uint64(1) << (tagShift + tagBits)
	bitD       = bitS << 1
	bitW       = bitS << 2
	ownerShift = tagShift + tagBits + 3
	identity   = bitS - 1
	homeMask   = uint64(1)<<tagShift - 1 // class and ref
	tagMask    = (uint64(1)<<tagBits - 1) << tagShift
	ownerMask  = uint64(1<<64 - 1<<ownerShift)
	lockBits   = ownerMask | bitW | bitD | bitS
)

// DispatcherSlot owns what the dispatcher locks. Clients have slots 1 to 4,094.
const DispatcherSlot = 4095

func entryRef(e uint64) uint32        { return uint32(e) }
func entryClass(e uint64) int         { return int(e >> classShift & (1<<classBits - 1)) }
func entryOwner(e uint64) uint32      { return uint32(e >> ownerShift) }
func ownedBy(slot uint32) uint64      { return uint64(slot) << ownerShift }
func makeID(ref uint32, c int) uint64 { return uint64(ref) | uint64(c)<<classShift }
func tagOf(hash uint64) uint64        { return hash >> (64 - tagBits) << tagShift }
func refOffset(ref uint32) shm.Offset { return uint64(ref) * unitSize }
func offsetRef(off shm.Offset) uint32 { return uint32(off / unitSize) }
func dataOffset(klen int) shm.Offset  { return blockHeaderSize + uint64(klen+7)&^7 }
func blockSize(klen, dlen int) uint64 { return dataOffset(klen) + uint64(dlen) }
func alignUp(n, to uint64) uint64     { return (n + to - 1) &^ (to - 1) }
func ceilPow2(n uint64) uint64        { return 1 << bits.Len64(n-1) }

const (
	unitSize = 64 // what a block ref counts
	maxKey   = 1024
	// MaxKey is the longest key in bytes; the shortest is 1.
	MaxKey = maxKey
	// MaxValueLimit is the largest Config.MaxValue.
	MaxValueLimit = 1 << 20

	entriesPerBucket = 7
)

// bucket is one line of a database's hash table. The latch covers inserts
// into the whole chain. overflow is the ref of a block whose second line is
// the next bucket; it is never unlinked. The holder of the latch stores
// overflow and turns a zero entry into one; everybody loads.
type bucket struct {
	latch    shm.Latch
	overflow shm.Word32
	entry    [entriesPerBucket]shm.Word64
}

const bucketSize = 64

// block is the head of a record, at the start of a piece of memory of its
// class; the key stands behind it, and behind the key, at the next multiple
// of 8, the data; in a database of mode pieces behind that, at the next
// multiple of 8, the tags. (Not in front of it: so a read is the same in both
// modes.) Blocks are type-stable: memory that was a block of a class
// stays one until its whole span is free, and seq never repeats at an
// address.
//
//	 0  seq     odd while being written
//	 8  rsn     updates since the record's life began; link of a free block
//	16  acc     LACCESSOR, LACOUNT << 32
//	24  size    data length, low half of the hash << 32
//	32  meta    key length 16, class 8, flags 8, tags 24, more flags 8
//	40  epoch   in which a provisional record was made
//	48  key
//
// Who holds the block's entry locked, or has the block in its journal, stores
// all of them; everybody loads, and validates by seq and entry.
type block struct {
	seq, rsn, acc, size, meta, epoch shm.Word64
}

const blockHeaderSize = 48

// Flags of a block, in the top byte of meta's low word.
const (
	flagOwn         = 1 << iota // this node is the DMASTER
	flagAway                    // the LMASTER's location line
	flagDone                    // the done list names the record
	flagEmpty                   // no data: as good as absent
	flagAttended                // the dispatcher wants to hear of changes
	flagOwnerDied               // the last holder died with the lock
	flagProvisional             // made by a recovery that has not opened
	flagBucket                  // not a record: an overflow bucket, or histograms
)

// keptFlags are what a commit passes on to the record's next block. Who was told
// of a holder's death has taken that flag off before (actor.clearOwnerDied).
const keptFlags = flagAttended | flagDone | flagOwnerDied

func makeMeta(klen, class int, flags uint64) uint64 {
	return uint64(klen) | uint64(class)<<16 | flags<<24
}
func metaKeyLen(m uint64) int { return int(m & 0xffff) }
func metaClass(m uint64) int  { return int(m >> 16 & 0xff) }

// metaWaited is a flag in the top byte of meta's high word: clients wait for a
// change of the record. A commit does not keep it, as it wakes them all.
const metaWaited = uint64(1) << 56

// metaTags is how many tags a block of a database of mode pieces has.
func metaTags(m uint64) int { return int(m >> 32 & 0xffffff) }

const maxTags = 0xffffff

// tagsOffset is where the tags of a block begin, pieceSize what it takes in all.
func tagsOffset(klen, dlen int) shm.Offset  { return (dataOffset(klen) + uint64(dlen) + 7) &^ 7 }
func pieceSize(klen, dlen, tags int) uint64 { return tagsOffset(klen, dlen) + uint64(tags)*tagSize }

// metaShape is key length and class in one, as shapeOf makes it.
func metaShape(m uint64) uint64      { return m & 0xffffff }
func shapeOf(klen, class int) uint64 { return uint64(klen) | uint64(class)<<16 }
func metaFlags(m uint64) uint64      { return m >> 24 & 0xff }

// overflowBucketAt is where an overflow bucket stands in its block.
const overflowBucketAt = 64

// Block sizes by class. Classes below smallClasses have magazines.
var classSizes = [classes]uint32{
	128, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096,
	6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072, 196608, 262144,
	393216, 524288, 1048576 - 1024, 1114112,
}

const (
	classes      = 1 << classBits
	smallClasses = 16
	magazineSize = 16 // refs: one cache line a class
	bigSlots     = 4
)

// classOf returns the smallest class with blocks of n bytes.
//
// Preconditions: n is at most the largest class's size.
func classOf(n uint64) int {
	if n <= 1024 {
		return int((n+127)/128) - 1
	}
	return classOfSlow(n)
}

func classOfSlow(n uint64) int {
	for c := 8; c < classes; c++ {
		if n <= uint64(classSizes[c]) {
			return c
		}
	}
	panic(fmt.Sprintf("ltdb: no block class for %d bytes", n))
}

// classLine is the head of one class's free list.
type classLine struct {
	latch shm.Latch
	head  shm.Word32 // ref of the first free block, 0: none; its rsn is the next one's
	cur   shm.Word32 // span that blocks are carved from, + 1
	_     [52]byte
}

const classLineSize = 64

// spanLine is one span's line in the span table. word: class + 1 in the low
// byte (0: free, bucketSpan: a database's buckets), blocks carved so far
// << 8; for bucketSpan the database's place << 8. Free becomes taken by CAS;
// the holder of the class's latch stores the rest.
type spanLine struct {
	word    shm.Word64
	seqBase shm.Word64 // seq of a block carved here for the first time
}

const (
	spanLineSize = 16
	bucketSpan   = 0xff
)

func spanClass(w uint64) int     { return int(w&0xff) - 1 }
func spanCarved(w uint64) uint64 { return w >> 8 }

// databaseLine is one line of the table of databases. The holder of the
// table's latch stores it, ready last.
type databaseLine struct {
	ready   shm.Word32 // 0: free or half made
	mode    shm.Word32
	id      shm.Word32
	nameLen shm.Word32
	buckets shm.Word64 // offset of the first bucket
	count   shm.Word64 // buckets: a power of two
	name    [maxName]byte
	_       [160]byte
}

const (
	maxName          = 64
	databaseLineSize = 256
	databasesHeader  = 64
)

// databasesHead opens the table of databases.
type databasesHead struct {
	latch shm.Latch
	_     [60]byte
}

// handle is a handle's part of its slot: what its owner was about to do, so
// that whoever repairs the slot can finish it or take it back. The owner
// stores, the repairer loads and stores after the owner's death.
type handle struct {
	// journal line
	bucketIntent shm.Word64 // offset of the bucket whose latch is wanted or held
	// offset of the entry about to change; with j.new a piece and no j.old, of its word in an index
	jEntry        shm.Word64
	opid          shm.Word64 // counter of the handle's OPIDs; never reset
	jNew          shm.Word32 // block in nobody's hands but ours
	jOld          shm.Word32 // block that the entry had: ours once the entry has another
	classIntent   shm.Word32 // class whose latch is wanted or held, + 1
	carveIntent   shm.Word32 // span being taken for it, + 1
	reclaimIntent shm.Word32 // span being given back, + 1
	tableIntent   shm.Word32 // 1: the latch of the table of databases
	busy          shm.Word32 // an append is between lock and commit (mode pieces)
	jDone         shm.Word32 // place in the dispatcher's done table (dispatcher only)
	orphanIntent  shm.Word32 // 1: the latch of the orphan indexes
	spareIntent   shm.Word32 // 1: the latch of the spare

	big [bigSlots]shm.Word32 // free blocks of the large classes, on their way
	_   [48]byte

	counters [counterLines * 8]shm.Counter

	magazine [smallClasses][magazineSize]shm.Word32 // free blocks by class, a queue each; 0: no block
}

const (
	counterLines = 4
	handleSize   = 64 + 64 + counterLines*64 + smallClasses*magazineSize*4
	cellsPerSlot = 1024
)

// body is what ltdb keeps in a slot behind shm's head.
type body struct {
	handles [shm.HandlesPerSlot]handle
	cells   [cellsPerSlot]shm.Word64 // offset of an entry locked or waited for; 0: unused
	pieces  shm.Word32               // first page of the piece index
	stats   shm.Word32               // first block of the sampled histograms
	// The last page of the index: the first that was made. Stored behind pieces by
	// who made it, and by who repairs the slot; 0: nobody knows.
	lastPage shm.Word32
	_        [52]byte
}

var (
	_ [bucketSize]byte        = [unsafe.Sizeof(bucket{})]byte{}
	_ [blockHeaderSize]byte   = [unsafe.Sizeof(block{})]byte{}
	_ [classLineSize]byte     = [unsafe.Sizeof(classLine{})]byte{}
	_ [spanLineSize]byte      = [unsafe.Sizeof(spanLine{})]byte{}
	_ [databaseLineSize]byte  = [unsafe.Sizeof(databaseLine{})]byte{}
	_ [databasesHeader]byte   = [unsafe.Sizeof(databasesHead{})]byte{}
	_ [conditionLineSize]byte = [unsafe.Sizeof(conditionLine{})]byte{}
	_ [handleSize]byte        = [unsafe.Sizeof(handle{})]byte{}
)

const (
	_ = -(unsafe.Offsetof(block{}.epoch) ^ 40)
	_ = -(unsafe.Offsetof(databaseLine{}.name) ^ 32)
	_ = -(unsafe.Offsetof(conditionLine{}.name) ^ 16)
	_ = -(unsafe.Offsetof(handle{}.opid) ^ 16)
	_ = -(unsafe.Offsetof(handle{}.jDone) ^ 52)
	_ = -(unsafe.Offsetof(handle{}.spareIntent) ^ 60)
	_ = -(unsafe.Offsetof(handle{}.big) ^ 64)
	_ = -(unsafe.Offsetof(handle{}.counters) ^ 128)
	_ = -(unsafe.Offsetof(handle{}.magazine) ^ (128 + counterLines*64))
	_ = uint(shm.SlotSize - shm.SlotHeadSize - unsafe.Sizeof(body{})) // it fits
)

// layout describes every structure above; its hash stands in the header, so
// that two builds which lay memory out differently never share a segment.
func layout() string {
	return fmt.Sprint("ltdb 2 ", maxDamage, builtinVersions(),
		bucketSize, blockHeaderSize, classLineSize, spanLineSize, databaseLineSize, conditionLineSize, MaxConditions,
		handleSize, unsafe.Sizeof(body{}),
		ringsSize, nodeCommon, rungBits, changeWords, tagSize, pageClass, stateShift, stampShift, metaWaited,
		unsafe.Offsetof(handle{}.jNew), unsafe.Offsetof(handle{}.magazine), unsafe.Offsetof(handle{}.spareIntent),
		unsafe.Offsetof(nodeArea{}.spare), unsafe.Offsetof(body{}.cells),
		unsafe.Offsetof(databaseLine{}.buckets), unsafe.Offsetof(databaseLine{}.name),
		tagShift, ownerShift, bitW, maxKey, magazineSize, classSizes)
}

// builtinVersions are those of the built-in conditions: programs that have others
// don't share a segment.
func builtinVersions() (v []uint32) {
	for i := range builtin {
		v = append(v, builtin[i].Version)
	}
	return v
}

// ringsSize is what a client has in shm.AreaRings: two rings of 256 cells, each
// with the words before its cells, as package ring lays them out.
const ringsSize = 2 * (512 + 256*64)

// Places in the header's parameters.
const (
	paramSpanShift = iota
	paramMaxValue
	paramDatabases
	paramReserve
)
