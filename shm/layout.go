package shm

import (
	"fmt"
	"math"
	"unsafe"
)

// The segment from its start: page 0 the header, page 1 the gate and lease
// lines, then the areas in the order of their ids. Everything is little
// endian and has the same place on every architecture.

// Versions and sizes of the format.
const (
	ABIMajor = 2 // another major is another format: refused
	ABIMinor = 0 // a higher minor adds what older programs may ignore

	HeaderSize   = 4096
	gateOffset   = HeaderSize
	leaseOffset  = HeaderSize + 64
	firstArea    = 2 * HeaderSize
	SlotHeadSize = 1024
	SlotSize     = 36 << 10

	// MaxSlots is the most clients at a time.
	MaxSlots = 4094
	// The place of a slot's lock in the segment's file: the slot's number, some bits of
	// the generation, and room for the length, which tells whose it is. 12 + 6 + 45
	// bits are all that a place can have. Of the room 23 bits are the PID (Linux has
	// 22), 8 are of its namespaces, and 14 are the number by which a client proves
	// that it has the lock.
	lockGenerationBits = 6
	lockRoomBits       = 45
	lockPIDBits        = 23
	lockProofBit       = lockPIDBits + 8                          // that number's first
	slotLocks          = 1 << (lockGenerationBits + lockRoomBits) // the locks of one slot
	// DispatcherSlot is the slot of the dispatcher. It exists in every segment.
	DispatcherSlot = 4095

	maxAreas = 16
	nameSize = 64
)

// A handle's id has to fit 16 bits of a latch.
const _ uint16 = DispatcherSlot<<4 | (HandlesPerSlot - 1)

// magic opens every segment: "MAINZSHM", read as little endian.
const magic = 'M' | 'A'<<8 | 'I'<<16 | 'N'<<24 | 'Z'<<32 | 'S'<<40 | 'H'<<48 | 'M'<<56

// AreaID names a part of the segment.
type AreaID int

// The areas. AreaSlots belongs to this package, all others to the layers above.
const (
	AreaSlots AreaID = iota
	AreaRings
	AreaNode
	AreaDatabases
	AreaClasses
	AreaSpans
	AreaData
)

// AreaSpec asks for an area. Offsets are given out in the order of the specs.
type AreaSpec struct {
	ID   AreaID
	Size uint64 // bytes; for the last area 0 means all that is left
}

// Header is page 0. Its creator writes it before the file gets its name, and
// nobody changes it afterwards; who attaches works with a checked copy.
type Header struct {
	Magic         uint64
	ABIMajor      uint32
	ABIMinor      uint32
	HeaderSize    uint32
	ready         uint32 // 1; stored last
	Checksum      uint64 // of the page, with ready and Checksum as 0
	LayoutHash    uint64 // of the structs of all layers
	MustFeatures, // bits that a program has to know
	MayFeatures uint64 // bits that it may ignore
	Size         uint64    // of the segment in bytes
	Created      uint64    // nanoseconds since 1970
	BootID       [16]byte  // the kernel's, when it was created
	PNN          uint32    // the node's number
	Slots        uint32    // client slots
	SlotSize     uint32    // bytes
	SlotHeadSize uint32    // bytes
	Handles      uint32    // per slot
	Huge         uint32    // HugePages asked for
	Params       [8]uint64 // the upper layer's own
	Areas        [maxAreas]struct{ Off, Size uint64 }
	cluster      [nameSize]byte
	creator      [nameSize]byte
	// Which file this is: a copy has these words of the original, and another
	// inode. All 0 in the heap.
	Device uint64   // st_dev
	Inode  uint64   // st_ino
	Birth  uint64   // of the inode, nanoseconds since 1970; 0: the file system does not say
	ID     [16]byte // random: no two segments that were created have the same
	_      [HeaderSize - 600]byte
}

var _ [HeaderSize]byte = [unsafe.Sizeof(Header{})]byte{}

const _ = -(unsafe.Offsetof(Header{}.ready) ^ 20)
const _ = -(unsafe.Offsetof(Header{}.Checksum) ^ 24)
const _ = -(unsafe.Offsetof(Header{}.Params) ^ 112)
const _ = -(unsafe.Offsetof(Header{}.Areas) ^ 176)
const _ = -(unsafe.Offsetof(Header{}.cluster) ^ 432)
const _ = -(unsafe.Offsetof(Header{}.Device) ^ 560)
const _ = -(unsafe.Offsetof(Header{}.ID) ^ 584)

// Features that this program knows. There are none yet.
const knownFeatures = 0

// States of the gate.
const (
	GateDead    = 0
	gateDamaged = 1<<2 | GateDead // the whole word: dead because of damage
	gateGivenUp = 2<<2 | GateDead // the whole word: dead, as a client is stopped that can't be ended
	GateFrozen  = 1
	GateOpen    = 2
)

// GateLine is one cache line that every operation looks at. The owner of the
// segment (the dispatcher, or who creates or replaces it) stores, all load.
type GateLine struct {
	Gate        Word64 // generation << 2 | state; a store opens or closes the bypass
	Epoch       Word64 // of the cluster, while the gate is not open maybe the next one
	OpenedEpoch Word64 // the last one that opened; makes provisional records normal
	Life        Word64 // changes when the node starts a new life
	VNN         Word32 // our own
	MapLen      Word32 // VNNs in the map
	MapPlace    Word32 // our place in it
	_           [20]byte
}

var _ [64]byte = [unsafe.Sizeof(GateLine{})]byte{}

const _ = -(unsafe.Offsetof(GateLine{}.VNN) ^ 32)

// State returns the gate's state and generation.
func (g *GateLine) State() (state uint32, generation uint64) {
	v := g.Gate.Load()
	return uint32(v & 3), v >> 2
}

// LeaseLine is one cache line: until when this node may trust its records.
// The dispatcher stores, all load.
type LeaseLine struct {
	Ticks Word64 // in Ticks; all ones: no lease, and no look at the clock
	Boot  Word64 // the same in nanoseconds of CLOCK_BOOTTIME
	_     [48]byte
}

var _ [64]byte = [unsafe.Sizeof(LeaseLine{})]byte{}

// NoLease in LeaseLine.Ticks means that no other node can own the records.
const NoLease = math.MaxUint64

// Slot is the head of a client's slot. The upper layer's part follows at
// SlotHeadSize.
//
// Live is a robust futex: 0 free; the TID of the client's guardian and
// FUTEX_WAITERS; FUTEX_OWNER_DIED, stored by the kernel when it dies.
type Slot struct {
	// Stored by its guardian, by the kernel at its death, by its recoverer
	// (0, last of all). All load and wait on it.
	Live Word32
	_    uint32
	// Who recovers this slot: the number of a client's slot, or a joiner, or 0.
	// Stored by recoverers by CAS. A joiner has no slot yet. Its claim is a robust
	// futex as Live is: the TID of its guardian and FUTEX_WAITERS; the kernel
	// stores FUTEX_OWNER_DIED when it dies. All load and wait on it.
	Claim Word32
	_     uint32
	// Counts the claimer's steps, so that others can tell slow from stopped. The
	// explorer ignores its 8 bytes, so they hold nothing else.
	Progress Word32
	_        uint32
	// When somebody last looked whether this tenant's process still runs: the low bits
	// of the milliseconds of CLOCK_MONOTONIC. Stored by who looks, by CAS; who waits
	// loads it, and leaves the look to others if it is recent.
	Looked Word32
	_      [36]byte

	// Who lives here. Stored by the client after Live, PID last, and zeroed
	// before Live is: PID 0 means that it can't have done anything yet. They say
	// at whom to look; nobody is killed because of them.
	PID    Word32
	UID    Word32
	Place  Word64 // inodes of its PID and time namespaces: where PID and Start mean this process
	Start  Word64 // its start in clock ticks since boot, against a PID's reuse
	Joined Word64 // nanoseconds since 1970
	// Generation tells the clients of this slot apart: each has a higher one. Stored
	// by the client.
	Generation Word64
	_          [24]byte

	name [nameSize]byte // stored by the client before PID
	_    [SlotHeadSize - 192]byte
}

var _ [SlotHeadSize]byte = [unsafe.Sizeof(Slot{})]byte{}

const _ = -(unsafe.Offsetof(Slot{}.PID) ^ 64)
const _ = -(unsafe.Offsetof(Slot{}.Generation) ^ 96)
const slotNameOffset = 128

const _ = -(unsafe.Offsetof(Slot{}.name) ^ slotNameOffset)

const (
	liveWaiters = 1 << 31 // FUTEX_WAITERS
	liveDied    = 1 << 30 // FUTEX_OWNER_DIED
)

// The claim's place behind Live is as far as the nodes of a guardian's robust
// list are apart.
const _ = -(unsafe.Offsetof(Slot{}.Claim) ^ 8)

// joining reports whether a claim is one of a joiner that has not died.
func joining(claim uint32) bool {
	return claim&liveWaiters != 0 && claim&liveDied == 0 && claim&^liveWaiters != 0
}

// layoutHash is FNV-1a over the description of this package's structs and of
// the upper layer's.
func layoutHash(upper string) uint64 {
	own := fmt.Sprintf("shm locks %d+%d+%d header %d gate %d@%d lease %d@%d slot %d+%d areas %d@%d identity@%d live@%d claim@%d pid@%d handles %d; ",
		lockGenerationBits, lockRoomBits, lockPIDBits, unsafe.Sizeof(Header{}), unsafe.Sizeof(GateLine{}), gateOffset,
		unsafe.Sizeof(LeaseLine{}), leaseOffset,
		SlotHeadSize, SlotSize, maxAreas, unsafe.Offsetof(Header{}.Areas), unsafe.Offsetof(Header{}.Device),
		unsafe.Offsetof(Slot{}.Live),
		unsafe.Offsetof(Slot{}.Claim), unsafe.Offsetof(Slot{}.PID), HandlesPerSlot)
	return fnv(own + upper)
}

func fnv[T string | []byte](s T) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}
