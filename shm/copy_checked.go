//go:build race || shmsim

package shm

import (
	"sync/atomic"
	"unsafe"
)

// Under the race detector the bytes of a block are moved by atomic words:
// readers copy while writers write, validate, and throw torn copies away,
// which the detector can't know. Under the explorer each word is an access of
// its own, so that torn copies do happen.

// CopyOut copies len(dst) bytes at off into dst. Other processes may be
// writing there: the caller validates afterwards, and throws the copy away
// if it must.
func (r *Region) CopyOut(dst []byte, off Offset) {
	for i := 0; i < len(dst); {
		w, at := r.word(off + uint64(i))
		access(OpRead, w)
		v := atomic.LoadUint32(w)
		for ; at < 4 && i < len(dst); at, i = at+1, i+1 {
			dst[i] = byte(v >> (8 * at))
		}
	}
}

// CopyIn copies src to off.
func (r *Region) CopyIn(off Offset, src []byte) {
	for i := 0; i < len(src); {
		w, at := r.word(off + uint64(i))
		access(OpWrite, w)
		v := atomic.LoadUint32(w)
		for ; at < 4 && i < len(src); at, i = at+1, i+1 {
			v = v&^(0xff<<(8*at)) | uint32(src[i])<<(8*at)
		}
		atomic.StoreUint32(w, v)
	}
}

// Copy copies n bytes from one place of the region to another that does not
// overlap it.
func (r *Region) Copy(to, from Offset, n int) {
	b := make([]byte, n)
	r.CopyOut(b, from)
	r.CopyIn(to, b)
}

// Equal compares key with the bytes at off. As with CopyOut, the caller
// validates afterwards.
func (r *Region) Equal(off Offset, key []byte) bool {
	for i := 0; i < len(key); {
		w, at := r.word(off + uint64(i))
		access(OpRead, w)
		v := atomic.LoadUint32(w)
		for ; at < 4 && i < len(key); at, i = at+1, i+1 {
			if key[i] != byte(v>>(8*at)) {
				return false
			}
		}
	}
	return true
}

// word is the aligned word that holds the byte at off, and the byte's place in it.
func (r *Region) word(off Offset) (*uint32, uint) {
	return (*uint32)(unsafe.Pointer(unsafe.SliceData(r.bytes(off&^3, 4)))), uint(off & 3)
}

// CopyOutUnchecked is CopyOut.
func (r *Region) CopyOutUnchecked(dst []byte, off Offset) { r.CopyOut(dst, off) }

// CopyInUnchecked is CopyIn.
func (r *Region) CopyInUnchecked(off Offset, src []byte) { r.CopyIn(off, src) }

// CopyUnchecked is Copy.
func (r *Region) CopyUnchecked(to, from Offset, n int) { r.Copy(to, from, n) }

// EqualUnchecked is Equal.
func (r *Region) EqualUnchecked(off Offset, key []byte) bool { return r.Equal(off, key) }
