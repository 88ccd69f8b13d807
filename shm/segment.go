package shm

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// HugePages says whether a segment shall use 2 MiB pages.
type HugePages uint32

// Auto takes them if the file system gives them, Never doesn't ask, Require
// makes it an error not to get them.
const (
	HugeAuto HugePages = iota
	HugeNever
	HugeRequire
)

// Config describes a new segment.
type Config struct {
	Cluster   string
	PNN       uint32
	Size      uint64 // bytes; 0: what the areas take
	Slots     uint32 // clients at a time, 1 to MaxSlots
	HugePages HugePages
	Areas     []AreaSpec
	Layout    string      // describes the structs of the layers above; hashed
	Params    [8]uint64   // the upper layer's own; kept in the header
	Mode      os.FileMode // of the file; 0: 0660. The directory gets the x bits with it
	Group     string      // name or number of the group; "": as the system does
	DataAlign uint64      // of AreaData; 0: a page
}

// Segment is one node's shared memory, mapped here. It is safe for many
// goroutines.
type Segment struct {
	r    *Region
	h    *Header // a checked copy in private memory
	dir  string
	file *os.File // nil in the heap; carries the slots' OFD locks
	ro   bool
	fs   fsInfo
	boot [16]byte

	ending ending
	id     fileID         // of file
	root   fileID         // of "/" as it was: whether the path still means the same
	spare  unsafe.Pointer // memory for a gate of this process's own; nil in the heap
	timer  *time.Timer    // an observer's looks

	warnings []string // from its creation

	mu      sync.Mutex
	clients int
	tenants map[uint32]bool // slots of clients of this Segment
	closed  atomic.Bool
}

// NewHeap makes a segment in the Go heap, for this process alone: for tests,
// for the race detector, and for systems without shared memory. Death is
// simulated there (Client.SimulateDeath).
func NewHeap(cfg Config, fill func(*Segment) error) (*Segment, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	h, err := newHeader(&cfg, [16]byte{}, HeaderSize, HeaderSize)
	if err != nil {
		return nil, err
	}
	s := &Segment{r: Heap(h.Size), h: h, ending: newEnding()}
	if err := s.init(fill); err != nil {
		return nil, err
	}
	return s, nil
}

// init fills a new segment: the header last.
func (s *Segment) init(fill func(*Segment) error) error {
	s.Lease().Ticks.Store(NoLease)
	if fill != nil {
		if err := fill(s); err != nil {
			return err
		}
	}
	if s.Gate().Gate.Load() == 0 {
		s.Gate().Gate.Store(1<<2 | GateOpen)
	}
	s.h.seal()
	s.r.CopyIn(0, s.h.bytes())
	return nil
}

// Region returns the memory of the segment.
func (s *Segment) Region() *Region { return s.r }

// Header returns the header as it was checked when the segment was attached:
// a copy, which nobody else can change.
func (s *Segment) Header() *Header { return s.h }

// Params returns the upper layer's part of the header.
func (s *Segment) Params() [8]uint64 { return s.h.Params }

// Area returns where an area lies; 0, 0 if the segment has none such.
func (s *Segment) Area(id AreaID) (off Offset, size uint64) {
	a := s.h.Areas[id]
	return a.Off, a.Size
}

// Gate returns the gate line.
func (s *Segment) Gate() *GateLine { return At[GateLine](s.r, gateOffset) }

// Lease returns the lease line.
func (s *Segment) Lease() *LeaseLine { return At[LeaseLine](s.r, leaseOffset) }

// Slots returns how many client slots there are: 1 to Slots.
func (s *Segment) Slots() uint32 { return s.h.Slots }

// Slot returns the head of slot i, nil if there is no such slot. The
// dispatcher's lies before the clients'.
func (s *Segment) Slot(i uint32) *Slot {
	off := s.slotOffset(i)
	if off == 0 {
		return nil
	}
	return At[Slot](s.r, off)
}

// SlotBody returns where the upper layer's part of slot i begins, 0 if there
// is no such slot. It has SlotSize - SlotHeadSize bytes.
func (s *Segment) SlotBody(i uint32) Offset {
	off := s.slotOffset(i)
	if off == 0 {
		return 0
	}
	return off + SlotHeadSize
}

func (s *Segment) slotOffset(i uint32) Offset {
	if i == DispatcherSlot {
		i = 0
	} else if i-1 >= s.h.Slots {
		return 0
	}
	return s.h.Areas[AreaSlots].Off + uint64(i)*SlotSize
}

// Dead reports whether the client in a slot has died and was not recovered yet. Who
// only looks sees it as well.
func (s *Segment) Dead(slot uint32) bool {
	sl := s.Slot(slot)
	return sl != nil && sl.Live.Load()&liveDied != 0
}

// SlotName returns the name that the client in slot i gave itself.
func (s *Segment) SlotName(i uint32) string {
	off := s.slotOffset(i)
	if off == 0 {
		return ""
	}
	var b [nameSize]byte
	s.r.CopyOut(b[:], off+slotNameOffset)
	return text(b[:])
}

// eachSlot calls f for the dispatcher's slot and every client's.
func (s *Segment) eachSlot(f func(i uint32, sl *Slot)) {
	f(DispatcherSlot, s.Slot(DispatcherSlot))
	for i := uint32(1); i <= s.h.Slots; i++ {
		f(i, s.Slot(i))
	}
}

// Dir returns the segment's directory, "" in the heap.
func (s *Segment) Dir() string { return s.dir }

// InHeap reports whether the segment is in the Go heap.
func (s *Segment) InHeap() bool { return s.file == nil }

// ReadOnly reports whether the segment was attached for looking only.
func (s *Segment) ReadOnly() bool { return s.ro }

// OnRamdisk reports whether the segment lies on a ramdisk, and the file
// system's name.
func (s *Segment) OnRamdisk() (bool, string) { return s.fs.ram, s.fs.name }

// Warning returns what the caller should log about the segment's place, "" if
// all is well.
func (s *Segment) Warning() string {
	if s.InHeap() || s.fs.ram {
		return ""
	}
	return fmt.Sprintf("segment %s is on %s, not on a ramdisk: write-back will stall stores; put it on tmpfs (/dev/shm)", s.dir, s.fs.name)
}

// HugeReport says which pages a segment has.
type HugeReport struct {
	Asked    HugePages
	PageSize uint64 // bytes
	Bytes    uint64 // in huge pages; 0: none
}

// Close gives the segment up. It is unmapped when the last client has left,
// and then private zero pages take its place, so that who still looks reads a
// dead gate and does not fault. Close is idempotent.
func (s *Segment) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Swap(true) || s.clients > 0 {
		return nil
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	return s.unmap()
}

// enter and leave count the clients inside.
func (s *Segment) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return fmt.Errorf("shm: join: segment: %w; attach again", ErrClosed)
	}
	s.clients++
	return nil
}

func (s *Segment) leave() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients--; s.clients > 0 || !s.closed.Load() {
		return nil
	}
	return s.unmap()
}

// addTenant is called before the slot says who its tenant is.
func (s *Segment) addTenant(slot uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tenants == nil {
		s.tenants = make(map[uint32]bool)
	}
	s.tenants[slot] = true
}

// dropTenant ends the tenancy. The slot's lock stays until the slot is free or
// marked dead.
func (s *Segment) dropTenant(slot uint32) {
	s.mu.Lock()
	delete(s.tenants, slot)
	s.mu.Unlock()
}

// hasTenant reports whether the tenant of a slot is a client of this Segment,
// whose locks the kernel does not show to it.
func (s *Segment) hasTenant(slot uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tenants[slot]
}
