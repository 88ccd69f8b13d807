package ltdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// The built-in conditions. What they answer is part of the cluster's format:
// a change needs another version, and then nodes of both can't share a
// database. Layouts and truth tables are in docs/conditions.md, and the tests
// read them there.
var builtin = [...]Condition{
	{ID: Always, Name: "always", Version: 1, Holds: alwaysHolds, Find: alwaysFind},
	{ID: IfAbsent, Name: "if absent", Version: 1, Holds: ifAbsentHolds, Find: ifAbsentFind},
	{ID: ShareModes, Name: "share modes", Version: 1, Holds: shareModesHold, Find: shareModesFind,
		WellFormed: wellFormedShareModes},
	{ID: ByteRanges, Name: "byte ranges", Version: 1, Holds: byteRangesHold, Find: byteRangesFind,
		WellFormed: wellFormedByteRanges},
}

func alwaysHolds(Snapshot, []byte) bool { return true }

// alwaysFind finds the first place that has the bytes.
func alwaysFind(rec Snapshot, data []byte) (off, n int) {
	if off = bytes.Index(rec.data, data); off < 0 || len(data) == 0 {
		return 0, -1
	}
	return off, len(data)
}

func ifAbsentHolds(rec Snapshot, _ []byte) bool { return len(rec.data) == 0 }

// ifAbsentFind finds the value if it is the one that was appended.
func ifAbsentFind(rec Snapshot, data []byte) (off, n int) {
	if len(data) == 0 || !bytes.Equal(rec.data, data) {
		return 0, -1
	}
	return 0, len(data)
}

// entriesHold reports whether piece consists of whole good entries, and none
// of them conflicts with any entry of the record. What is in the record and
// is not whole or not good conflicts with everything: nobody knows what it
// was to forbid.
func entriesHold(rec Snapshot, piece []byte, size int, good func([]byte) bool, conflict func(a, b []byte) bool) bool {
	if len(piece) == 0 || len(piece)%size != 0 {
		return false
	}
	for p := piece; len(p) > 0; p = p[size:] {
		if !good(p[:size]) {
			return false
		}
	}
	for there := range rec.Pieces() {
		if len(there)%size != 0 {
			return false
		}
		for ; len(there) > 0; there = there[size:] {
			if !good(there[:size]) {
				return false
			}
			for p := piece; len(p) > 0; p = p[size:] {
				if conflict(there[:size], p[:size]) {
					return false
				}
			}
		}
	}
	return true
}

// wellFormed says what is wrong with a piece of entries.
func wellFormed(piece []byte, size int, wrong func([]byte) error) error {
	if len(piece) == 0 || len(piece)%size != 0 {
		return fmt.Errorf("%d bytes are no whole entries of %d", len(piece), size)
	}
	for i := 0; i < len(piece); i += size {
		if err := wrong(piece[i : i+size]); err != nil {
			return fmt.Errorf("entry %d: %w", i/size+1, err)
		}
	}
	return nil
}

// entriesFind finds whole entries that have exactly the bytes.
func entriesFind(rec Snapshot, data []byte, size int) (off, n int) {
	if len(data) == 0 || len(data)%size != 0 {
		return 0, -1
	}
	for off := 0; off+len(data) <= len(rec.data); off += size {
		if bytes.Equal(rec.data[off:off+len(data)], data) {
			return off, len(data)
		}
	}
	return 0, -1
}

// ShareModesEntry is the size of an entry of ShareModes in bytes: access u32,
// share u32, who 16.
const ShareModesEntry = 24

// Bits of access and share in an entry of ShareModes.
const (
	ShareRead   = 1 << iota // reads; others may read
	ShareWrite              // writes; others may write
	ShareDelete             // deletes; others may delete
)

const shareAll = ShareRead | ShareWrite | ShareDelete

// AppendShareMode appends an entry of ShareModes to a piece: what its owner
// does with the file, what it lets others do, and who it is. It looks at
// nothing: an append of a piece with bits other than the three is ErrMalformed.
func AppendShareMode(b []byte, access, share uint32, who [16]byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, access)
	b = binary.LittleEndian.AppendUint32(b, share)
	return append(b, who[:]...)
}

func shareModesHold(rec Snapshot, piece []byte) bool {
	return entriesHold(rec, piece, ShareModesEntry, goodShareMode, shareConflict)
}

func shareModesFind(rec Snapshot, data []byte) (off, n int) {
	return entriesFind(rec, data, ShareModesEntry)
}

func wellFormedShareModes(piece []byte) error {
	return wellFormed(piece, ShareModesEntry, func(e []byte) error {
		if goodShareMode(e) {
			return nil
		}
		return fmt.Errorf("access %#x and share %#x have bits that mean nothing", binary.LittleEndian.Uint32(e),
			binary.LittleEndian.Uint32(e[4:]))
	})
}

func goodShareMode(e []byte) bool {
	return (binary.LittleEndian.Uint32(e)|binary.LittleEndian.Uint32(e[4:]))&^shareAll == 0
}

// shareConflict is the rule of SMB: each does only what the other lets it. Who
// does nothing of the three (it looks at attributes) is in nobody's way.
func shareConflict(a, b []byte) bool {
	accessA, shareA := binary.LittleEndian.Uint32(a), binary.LittleEndian.Uint32(a[4:])
	accessB, shareB := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	return accessA != 0 && accessB != 0 && (accessA&^shareB != 0 || accessB&^shareA != 0)
}

// ByteRangesEntry is the size of an entry of ByteRanges in bytes: start u64,
// length u64, kind u32, 4 bytes of 0, owner 16.
const ByteRangesEntry = 40

// Kinds of an entry of ByteRanges.
const (
	RangeShared    = iota // several may have it
	RangeExclusive        // only one
)

// AppendByteRange appends an entry of ByteRanges to a piece: length bytes from
// start on, at least one, of kind RangeShared or RangeExclusive. It looks at
// nothing: an append of a piece with another kind, without a byte, or with one
// behind 2^64 - 1 is ErrMalformed.
func AppendByteRange(b []byte, start, length uint64, kind uint32, owner [16]byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, start)
	b = binary.LittleEndian.AppendUint64(b, length)
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return append(b, owner[:]...)
}

func byteRangesHold(rec Snapshot, piece []byte) bool {
	return entriesHold(rec, piece, ByteRangesEntry, goodByteRange, rangeConflict)
}

func byteRangesFind(rec Snapshot, data []byte) (off, n int) {
	return entriesFind(rec, data, ByteRangesEntry)
}

func wellFormedByteRanges(piece []byte) error {
	return wellFormed(piece, ByteRangesEntry, func(e []byte) error {
		start, length := binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint64(e[8:])
		switch kind := binary.LittleEndian.Uint32(e[16:]); {
		case goodByteRange(e):
			return nil
		case length == 0:
			return errors.New("a range of no bytes")
		case start+(length-1) < start:
			return fmt.Errorf("a range of %d bytes from %d on ends behind 2^64 - 1", length, start)
		case kind > RangeExclusive:
			return fmt.Errorf("kind %d: it must be 0, shared, or 1, exclusive", kind)
		}
		return errors.New("its bytes 20 to 23 are not 0")
	})
}

// goodByteRange: at least one byte, the last one not behind 2^64 - 1, a known
// kind.
func goodByteRange(e []byte) bool {
	start, length := binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint64(e[8:])
	return length != 0 && start+(length-1) >= start &&
		binary.LittleEndian.Uint32(e[16:]) <= RangeExclusive && binary.LittleEndian.Uint32(e[20:]) == 0
}

func rangeConflict(a, b []byte) bool {
	if a[16] != RangeExclusive && b[16] != RangeExclusive || bytes.Equal(a[24:], b[24:]) {
		return false
	}
	startA, startB := binary.LittleEndian.Uint64(a), binary.LittleEndian.Uint64(b)
	lastA, lastB := startA+(binary.LittleEndian.Uint64(a[8:])-1), startB+(binary.LittleEndian.Uint64(b[8:])-1)
	return startA <= lastB && startB <= lastA
}
