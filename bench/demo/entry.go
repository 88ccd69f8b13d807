package demo

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/mainzdb/mainz/bench/trace"
)

// owner is one life of one client: a client that is started again is another
// owner.
type owner struct {
	Client uint32 `json:"client"`
	Start  uint64 `json:"start"` // nanoseconds since 1970
}

// entry says that somebody has the file open.
type entry struct {
	owner
	open uint32 // number of the open in the trace
	mode trace.Mode
}

// An entry in a record, little-endian:
//
//	0   8  start
//	8   4  client
//	12  4  open
//	16  1  mode
//	17  3  zero
//	20  4  CRC-32C of the file's number and the bytes above
//
// The checksum is there to see what the store must never do: hand out bytes
// that nobody stored together.
const (
	entrySize = 24
	sumOffset = 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendEntry(list []byte, file uint32, e entry) []byte {
	n := len(list)
	list = append(list, make([]byte, entrySize)...)
	b := list[n:]
	le := binary.LittleEndian
	le.PutUint64(b, e.Start)
	le.PutUint32(b[8:], e.Client)
	le.PutUint32(b[12:], e.open)
	b[16] = byte(e.mode)
	le.PutUint32(b[sumOffset:], sum(b, file))
	return list
}

func sum(b []byte, file uint32) uint32 {
	var f [4]byte
	binary.LittleEndian.PutUint32(f[:], file)
	return crc32.Update(crc32.Checksum(f[:], castagnoli), castagnoli, b[:sumOffset])
}

// readEntry reads the entry at the start of b, which has at least entrySize bytes.
func readEntry(b []byte, file uint32) (entry, bool) {
	le := binary.LittleEndian
	e := entry{owner{le.Uint32(b[8:]), le.Uint64(b)}, le.Uint32(b[12:]), trace.Mode(b[16])}
	return e, le.Uint32(b[sumOffset:]) == sum(b, file)
}

// damage is a list that nobody can have stored.
type damage struct {
	file uint32
	what string
}

func (d *damage) Error() string { return fmt.Sprintf("record of file %d: %s", d.file, d.what) }

// scan calls f with each entry and its place, until f returns false.
func scan(list []byte, file uint32, f func(at int, e entry) bool) error {
	if len(list)%entrySize != 0 {
		return &damage{file, fmt.Sprintf("%d bytes, not a multiple of %d", len(list), entrySize)}
	}
	for at := 0; at < len(list); at += entrySize {
		e, ok := readEntry(list[at:], file)
		if !ok {
			return &damage{file, fmt.Sprintf("entry at %d of %d bytes: checksum is wrong", at, len(list))}
		}
		if !f(at, e) {
			return nil
		}
	}
	return nil
}

// conflicts tells whether an open with that mode is against the share mode of
// one that is in the list.
func conflicts(list []byte, file uint32, mode trace.Mode) (yes bool, err error) {
	err = scan(list, file, func(_ int, e entry) bool {
		yes = yes || trace.Conflict(e.mode, mode)
		return true // the rest is still looked at for damage
	})
	return yes, err
}

// remove takes the entry out, in place. found is false if it is not there.
func remove(list []byte, file uint32, e entry) (rest []byte, found bool, err error) {
	where := -1
	err = scan(list, file, func(at int, other entry) bool {
		if other.owner == e.owner && other.open == e.open {
			if where >= 0 || other.mode != e.mode {
				where = -2
			} else {
				where = at
			}
		}
		return where != -2
	})
	switch {
	case err != nil:
		return list, false, err
	case where == -2:
		return list, false, &damage{file, fmt.Sprintf("open %d is there twice, or with another mode", e.open)}
	case where < 0:
		return list, false, nil
	}
	return slices.Delete(list, where, where+entrySize), true, nil
}

// removeOwner takes all entries of one owner out, in place, and returns the
// numbers of their opens.
func removeOwner(list []byte, file uint32, dead owner) (rest []byte, opens []uint32, err error) {
	rest = list[:0] // never longer than what was read already
	err = scan(list, file, func(at int, e entry) bool {
		if e.owner == dead {
			opens = append(opens, e.open)
		} else {
			rest = append(rest, list[at:at+entrySize]...)
		}
		return true
	})
	if err != nil {
		return list, nil, err
	}
	return rest, opens, nil
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
