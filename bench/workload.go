package bench

import (
	"encoding/binary"
	"math/bits"
)

// Keys, values and the random sequence: the same as in peers/workload.h, byte
// for byte, so that no contestant has easier records than another.

const (
	keyBytes      = 16
	minValueBytes = 64
	maxValueBytes = 4096
	entryBytes    = 32  // one append
	appendBytes   = 512 // a record that grows starts again after this much
	batchSize     = 8
	fullCheck     = 64 // every so many reads all words of a value are looked at
)

// mix is the finalizer of splitmix64: a bijection, so different indexes never
// meet.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// random is the random sequence: xorshift64, scaled by a multiplication.
type random uint64

func seeded(seed uint64) random { return random(mix(seed) | 1) }

func (r *random) draw(below uint64) uint64 {
	x := uint64(*r)
	x ^= x << 13
	x ^= x >> 7
	x ^= x << 17
	*r = random(x)
	hi, _ := bits.Mul64(x, below)
	return hi
}

// letters spreads 32 bits over 8 letters from a to p, four bits each.
func letters(x uint64) uint64 {
	x = (x | x<<16) & 0x0000ffff0000ffff
	x = (x | x<<8) & 0x00ff00ff00ff00ff
	x = (x | x<<4) & 0x0f0f0f0f0f0f0f0f
	return x + 0x6161616161616161
}

// makeKey writes the key of record index: printable, and cheap to make
// without vector instructions.
func makeKey(key *[keyBytes]byte, index uint64) {
	x := mix(index)
	binary.LittleEndian.PutUint64(key[:8], letters(x&0xffffffff))
	binary.LittleEndian.PutUint64(key[8:], letters(x>>32))
}

func get64(b []byte) uint64    { return binary.LittleEndian.Uint64(b) }
func put64(b []byte, x uint64) { binary.LittleEndian.PutUint64(b, x) }

// A value is 64-bit words: key (2), counter, pattern, pattern again up to the
// last word, and the trailer, which binds all of them together. A value of
// another key, a mixture of two values or a short copy is noticed.

func fillValue(value []byte, pattern uint64) {
	for at := 24; at < len(value); at += 8 {
		put64(value[at:], pattern)
	}
}

func stampValue(value []byte, key *[keyBytes]byte, counter uint64) {
	copy(value, key[:])
	put64(value[16:], counter)
	put64(value[len(value)-8:], counter^get64(value[24:])^get64(key[:]))
}

func counterOf(value []byte) uint64 { return get64(value[16:]) }

// valueOK looks at key, counter, pattern and trailer.
//
// Preconditions: value has at least minValueBytes.
func valueOK(value []byte, key *[keyBytes]byte) bool {
	return [keyBytes]byte(value) == *key &&
		get64(value[len(value)-8:]) == get64(value[16:])^get64(value[24:])^get64(key[:])
}

// bodyOK looks at all the rest.
func bodyOK(value []byte) bool {
	pattern, differs := get64(value[24:]), uint64(0)
	for at := 32; at < len(value)-8; at += 8 {
		differs |= get64(value[at:]) ^ pattern
	}
	return differs == 0
}

// A record that grows is entries of 32 bytes: key (2 words), number, check.

func makeEntry(entry []byte, key *[keyBytes]byte, number uint64) {
	copy(entry, key[:])
	put64(entry[16:], number)
	put64(entry[24:], mix(number^get64(key[:])))
}

func entryOK(entry []byte, key *[keyBytes]byte) bool {
	return [keyBytes]byte(entry) == *key && get64(entry[24:]) == mix(get64(entry[16:])^get64(key[:]))
}

func entriesLenOK(n int) bool { return n > 0 && n <= appendBytes && n%entryBytes == 0 }

// preloadedEntries is how many entries record index has at first.
func preloadedEntries(index uint64) int {
	return 1 + int(mix(^index)%(appendBytes/entryBytes))
}

// preloaded makes the value that record index is preloaded with, in room.
func preloaded(room []byte, index uint64, key *[keyBytes]byte, f format) []byte {
	if f != growing {
		value := room[:f]
		fillValue(value, index)
		stampValue(value, key, 0)
		return value
	}
	n := preloadedEntries(index)
	for i := range n {
		makeEntry(room[i*entryBytes:(i+1)*entryBytes], key, uint64(i))
	}
	return room[:n*entryBytes]
}

// wholeOK looks at every byte of a value; counter is its counter, or the
// number of the last entry.
func wholeOK(value []byte, key *[keyBytes]byte, f format) (counter uint64, ok bool) {
	if f != growing {
		if len(value) != int(f) || !valueOK(value, key) || !bodyOK(value) {
			return 0, false
		}
		return counterOf(value), true
	}
	if !entriesLenOK(len(value)) {
		return 0, false
	}
	for at := 0; at < len(value); at += entryBytes {
		if !entryOK(value[at:at+entryBytes], key) {
			return 0, false
		}
	}
	return counterOf(value[len(value)-entryBytes:]), true
}
