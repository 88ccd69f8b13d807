package mainz

import "github.com/mainzdb/mainz/ltdb"

// Entries of the built-in conditions; docs/conditions.md has their layouts and what
// conflicts with what.
const (
	ShareRead   = ltdb.ShareRead   // ShareModes, access and share: reads; others may read
	ShareWrite  = ltdb.ShareWrite  // writes; others may write
	ShareDelete = ltdb.ShareDelete // deletes; others may delete

	RangeShared    = ltdb.RangeShared    // ByteRanges, kind: several may have it
	RangeExclusive = ltdb.RangeExclusive // only one
)

// AppendShareMode appends an entry of ShareModes to a piece: what its owner does
// with the file, what it lets others do, and who it is. It looks at nothing: an
// append of a piece with bits other than the three is ErrMalformed.
func AppendShareMode(b []byte, access, share uint32, who [16]byte) []byte {
	return ltdb.AppendShareMode(b, access, share, who)
}

// AppendByteRange appends an entry of ByteRanges to a piece: length bytes from start
// on, at least one, of kind RangeShared or RangeExclusive. It looks at nothing: an
// append of a piece with another kind, without a byte, or with one behind 2^64 - 1 is
// ErrMalformed.
func AppendByteRange(b []byte, start, length uint64, kind uint32, owner [16]byte) []byte {
	return ltdb.AppendByteRange(b, start, length, kind, owner)
}
