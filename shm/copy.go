//go:build !race && !shmsim

package shm

import (
	"bytes"
	"unsafe"
)

// CopyOut copies len(dst) bytes at off into dst. Other processes may be
// writing there: the caller validates afterwards, and throws the copy away
// if it must.
func (r *Region) CopyOut(dst []byte, off Offset) { copy(dst, r.bytes(off, len(dst))) }

// CopyIn copies src to off.
func (r *Region) CopyIn(off Offset, src []byte) { copy(r.bytes(off, len(src)), src) }

// Equal compares key with the bytes at off. As with CopyOut, the caller
// validates afterwards.
func (r *Region) Equal(off Offset, key []byte) bool {
	b := r.bytes(off, len(key))
	if len(key) == 16 { // the most usual key, without a call
		return *(*[16]byte)(key) == *(*[16]byte)(b)
	}
	return bytes.Equal(key, b)
}

// Copy copies n bytes from one place of the region to another that does not
// overlap it.
func (r *Region) Copy(to, from Offset, n int) { copy(r.bytes(to, n), r.bytes(from, n)) }

// CopyOutUnchecked is CopyOut for few bytes. It is inlined where it is used:
// a call would cost as much as the copy of a usual value, and make the caller
// keep all it has in its stack frame meanwhile.
//
// Preconditions: the caller has made sure that the bytes are in the region.
func (r *Region) CopyOutUnchecked(dst []byte, off Offset) {
	if n := uintptr(len(dst)); n-16 <= 256-16 { // not if n < 16
		copyFew(unsafe.Pointer(unsafe.SliceData(dst)), unsafe.Add(r.base, off), n)
		return
	}
	copy(dst, r.bytes(off, len(dst)))
}

// CopyInUnchecked is CopyIn for few bytes, likewise.
func (r *Region) CopyInUnchecked(off Offset, src []byte) {
	if n := uintptr(len(src)); n-16 <= 256-16 {
		copyFew(unsafe.Add(r.base, off), unsafe.Pointer(unsafe.SliceData(src)), n)
		return
	}
	copy(r.bytes(off, len(src)), src)
}

// CopyUnchecked is Copy for few bytes, likewise.
func (r *Region) CopyUnchecked(to, from Offset, n int) {
	if n := uintptr(n); n-16 <= 256-16 {
		copyFew(unsafe.Add(r.base, to), unsafe.Add(r.base, from), n)
		return
	}
	r.Copy(to, from, n)
}

// copyFew copies n bytes, at least 16, in sixteens; the last ones may be
// copied twice.
func copyFew(to, from unsafe.Pointer, n uintptr) {
	for i := uintptr(0); i < n-16; i += 16 {
		*(*[16]byte)(unsafe.Add(to, i)) = *(*[16]byte)(unsafe.Add(from, i))
	}
	*(*[16]byte)(unsafe.Add(to, n-16)) = *(*[16]byte)(unsafe.Add(from, n-16))
}

// EqualUnchecked is Equal.
//
// Preconditions: the caller has made sure that the bytes are in the region.
func (r *Region) EqualUnchecked(off Offset, key []byte) bool {
	p := unsafe.Add(r.base, off)
	if len(key) == 16 { // the most usual key, without a call
		return *(*[2]uint64)(p) == *(*[2]uint64)(unsafe.Pointer(unsafe.SliceData(key)))
	}
	return bytes.Equal(key, unsafe.Slice((*byte)(p), len(key)))
}
