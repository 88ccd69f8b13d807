package shm

import "unsafe"

// Offset is a place in a region, in bytes from its start.
type Offset = uint64

// Region is a block of memory that several processes share, or that stands in
// for one: a mapped file, or the Go heap. It never moves and never changes its
// size. A Region is used by pointer only.
type Region struct {
	base unsafe.Pointer
	size uint64
	mem  []byte       // keeps a heap region alive, or is the mapping
	done func() error // unmaps; nil for a heap region
}

// Size returns the size of the region in bytes.
func (r *Region) Size() uint64 { return r.size }

// InHeap reports whether the region is in the Go heap and so in this process
// alone.
func (r *Region) InHeap() bool { return r.done == nil }

// Heap returns a zeroed region of size bytes in the Go heap, aligned to a
// page. The race detector understands it, which it does not a mapped file.
func Heap(size uint64) *Region {
	const page = 4096
	mem := make([]byte, size+page)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(mem))) % page
	mem = mem[skip : uint64(skip)+size : uint64(skip)+size]
	return &Region{base: unsafe.Pointer(unsafe.SliceData(mem)), size: size, mem: mem}
}
