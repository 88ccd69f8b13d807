package shm

import (
	"fmt"
	"unsafe"
)

// At returns the T at off. It panics if T does not fit there: offsets that
// came from shared memory are checked by the caller first, or got by Window.
//
// Preconditions: off is aligned for T.
func At[T any](r *Region, off Offset) *T {
	var t T
	if off > r.size || uint64(unsafe.Sizeof(t)) > r.size-off {
		panicOutside(off, uint64(unsafe.Sizeof(t)), r.size)
	}
	return (*T)(unsafe.Add(r.base, off))
}

// Window returns the T at off if the n bytes there lie inside the region,
// else nil. It is for offsets read from shared memory.
//
// Preconditions: off is aligned for T, n is at least the size of T.
func Window[T any](r *Region, off Offset, n uint64) *T {
	if off > r.size || n > r.size-off {
		return nil
	}
	return (*T)(unsafe.Add(r.base, off))
}

// Unchecked returns the T at off.
//
// Preconditions: the caller has made sure that T fits there; off is aligned
// for T.
func Unchecked[T any](r *Region, off Offset) *T { return (*T)(unsafe.Add(r.base, off)) }

// Slice returns the n consecutive Ts at off. It panics if they don't fit.
//
// Preconditions: off is aligned for T.
func Slice[T any](r *Region, off Offset, n int) []T {
	var t T
	if n < 0 || off > r.size || uint64(n) > (r.size-off)/uint64(unsafe.Sizeof(t)) {
		panicOutside(off, uint64(n)*uint64(unsafe.Sizeof(t)), r.size)
	}
	return unsafe.Slice((*T)(unsafe.Add(r.base, off)), n)
}

// OffsetOf returns where in the region p points.
//
// Preconditions: p points into the region.
func OffsetOf[T any](r *Region, p *T) Offset {
	return uint64(uintptr(unsafe.Pointer(p)) - uintptr(r.base))
}

//go:noinline
func panicOutside(off, n, size uint64) {
	panic(fmt.Sprintf("shm: %d bytes at %d are outside a region of %d", n, off, size))
}

// Hi returns the upper half of w as a word to wait on.
func (w *Word64) Hi() *Word32 {
	if littleEndian {
		return (*Word32)(unsafe.Add(unsafe.Pointer(w), 4))
	}
	return (*Word32)(unsafe.Pointer(w))
}

var littleEndian = func() bool {
	x := uint32(1)
	return *(*byte)(unsafe.Pointer(&x)) == 1
}()

// PrefetchAt asks for the cache line at off, which must lie in the region.
func (r *Region) PrefetchAt(off Offset) {
	if off < r.size {
		Prefetch(unsafe.Add(r.base, off))
	}
}

// bytes is the n bytes at off. It panics if they are not in the region.
func (r *Region) bytes(off Offset, n int) []byte { return r.mem[off : off+uint64(n)] }

// Lo returns the lower half of w as a word to wait on.
func (w *Word64) Lo() *Word32 {
	if littleEndian {
		return (*Word32)(unsafe.Pointer(w))
	}
	return (*Word32)(unsafe.Add(unsafe.Pointer(w), 4))
}

// PrefetchOf asks for the cache line of t.
func PrefetchOf[T any](t *T) { Prefetch(unsafe.Pointer(t)) }

// address is where the region lies in this process.
func (r *Region) address() uint64 { return uint64(uintptr(r.base)) }
