//go:build !race && !shmsim

package ltdb

import (
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

// vectors: quickRead may be called.
var vectors = shm.HasAVX2

// quickRead is quick for keys of 8 to 16 bytes and values of 8 to 1,024, in
// assembler: it returns the length of the value that it has copied behind dst,
// or -1 if quick would say no.
//
// Why not in Go: what a read costs is two cache misses, one after the other, and
// what the CPU does meanwhile is the next read, as far as its window of some 300
// instructions reaches. With this function, which looks at all tags of a bucket at
// once and keeps everything in registers, a Fetch has 190 instructions in place
// of 350. docs/performance.md has the figures.
//
// The slices go by reference: where they are arguments of the caller, it has to
// keep them in memory during the call anyway, and writes them only once so.
//
//go:noescape
func quickRead(p *probe, dst, key *[]byte, hash uint64) int

// quickFetch is quickRead for keys of 9 to 16 bytes, whose hash it makes itself. It
// counts the call, unless it returns refused: h is closed, the key has another length,
// or the call is one of those whose time is taken.
//
//go:noescape
func quickFetch(h *Handle, dst, key *[]byte) int

// quick tries to read a record in one go; see quickGo for what that means.
func (db *DB) quick(dst, key []byte, hash uint64) ([]byte, bool) {
	if uint(len(key)-8) > 8 || !vectors {
		return db.quickGo(dst, key, hash)
	}
	n := quickRead(&db.probe, &dst, &key, hash)
	if n < 0 {
		return dst, false
	}
	return dst[:len(dst)+n], true
}

// quickFind is find for keys of 8 to 16 bytes that stand in the first entry with
// their tag; entry is nil otherwise.
//
//go:noescape
func quickFind(p *probe, key unsafe.Pointer, klen int, hash uint64) (entry *shm.Word64, e uint64, b *block, seq,
	meta uint64)

// seek is find for the usual case; false says nothing.
func (db *DB) seek(hash uint64, key []byte, at *spot) bool {
	if uint(len(key)-8) > 8 || !vectors {
		return false
	}
	entry, e, b, seq, meta := quickFind(&db.probe, start(key), len(key), hash)
	if entry == nil {
		return false
	}
	at.entry, at.e, at.b, at.seq, at.meta = entry, e, b, seq, meta
	return true
}

func start(b []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b)) }
