package demo

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/mainzdb/mainz/bench/trace"
	"github.com/mainzdb/mainz/ltdb"
)

// owner is one life of one client: a client that is started again is another
// owner.
type owner struct {
	Client uint16 `json:"client"`
	Life   uint16 `json:"life"` // 1 is the first
}

// entry says that somebody has the file open.
type entry struct {
	owner
	open uint32 // number of the open in the trace
	mode trace.Mode
}

// An entry is one piece of a record, and an entry of the built-in condition
// ShareModes (docs/conditions.md). That leaves 16 bytes for who it is,
// little-endian:
//
//	8   2  client
//	10  2  life
//	12  4  open
//	16  4  file
//	20  4  CRC-32C of the bytes above
//
// The checksum is there to see what the store must never do: hand out bytes
// that nobody stored together.
const (
	entrySize = ltdb.ShareModesEntry
	whoOffset = 8
	sumOffset = entrySize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Access and deny modes of a trace have the same bits as the condition, which
// wants to know what is not denied. Deleting was not recorded: nobody does it,
// and all let others do it.
const shareAll = ltdb.ShareRead | ltdb.ShareWrite | ltdb.ShareDelete

func appendEntry(list []byte, file uint32, e entry) []byte {
	n := len(list)
	list = ltdb.AppendShareMode(list, uint32(e.mode.Access()), shareAll&^uint32(e.mode.Deny()), [16]byte{})
	b := list[n:]
	le := binary.LittleEndian
	le.PutUint16(b[8:], e.Client)
	le.PutUint16(b[10:], e.Life)
	le.PutUint32(b[12:], e.open)
	le.PutUint32(b[16:], file)
	le.PutUint32(b[sumOffset:], crc32.Checksum(b[:sumOffset], castagnoli))
	return list
}

// readEntry reads the entry at the start of b, which has at least entrySize bytes.
func readEntry(b []byte, file uint32) (entry, bool) {
	le := binary.LittleEndian
	mode := trace.MakeMode(trace.Access(le.Uint32(b)), trace.Deny(shareAll&^le.Uint32(b[4:])))
	e := entry{owner{le.Uint16(b[8:]), le.Uint16(b[10:])}, le.Uint32(b[12:]), mode}
	return e, le.Uint32(b[16:]) == file && le.Uint32(b[sumOffset:]) == crc32.Checksum(b[:sumOffset], castagnoli)
}

// damage is a record that nobody can have stored.
type damage struct {
	file uint32
	what string
}

func (d *damage) Error() string { return fmt.Sprintf("record of file %d: %s", d.file, d.what) }

// scan calls f with each entry of a record.
func scan(list []byte, file uint32, f func(e entry)) error {
	if len(list)%entrySize != 0 {
		return &damage{file, fmt.Sprintf("%d bytes, not a multiple of %d", len(list), entrySize)}
	}
	for at := 0; at < len(list); at += entrySize {
		e, ok := readEntry(list[at:], file)
		if !ok {
			return &damage{file, fmt.Sprintf("entry at %d of %d bytes: checksum is wrong", at, len(list))}
		}
		f(e)
	}
	return nil
}

// verify looks whether the entry is in the record, and whether all that is
// there could be together: no open twice, and no two that exclude each other.
func verify(list []byte, file uint32, e entry) (found bool, err error) {
	var mine, against int
	var odd bool
	err = scan(list, file, func(other entry) {
		switch {
		case other.owner == e.owner && other.open == e.open:
			mine++
			odd = odd || other.mode != e.mode
		case trace.Conflict(other.mode, e.mode):
			against++
		}
	})
	switch {
	case err != nil:
		return false, err
	case mine > 1 || odd:
		return false, &damage{file, fmt.Sprintf("open %d is there twice, or with another mode", e.open)}
	case mine == 1 && against > 0:
		return true, &damage{file, fmt.Sprintf("open %d and %d that it excludes are there together", e.open, against)}
	}
	return mine == 1, nil
}

const keySize = 16

// fileKey is what a file server would use: the device and the inode.
func fileKey(file uint32) (key [keySize]byte) {
	binary.LittleEndian.PutUint64(key[:], 1)
	binary.LittleEndian.PutUint64(key[8:], uint64(file))
	return key
}

func keyFile(key []byte) (file uint32, err error) {
	if len(key) == keySize {
		file = uint32(binary.LittleEndian.Uint64(key[8:]))
		if want := fileKey(file); string(want[:]) == string(key) {
			return file, nil
		}
	}
	return 0, &damage{file, fmt.Sprintf("key %x is no file's", key)}
}
