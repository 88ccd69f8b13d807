package ring

import "encoding/binary"

// word and setWord are single moves on little-endian machines.

func word(m *Message, i int) uint64 { return binary.LittleEndian.Uint64(m.Inline[8*i:]) }

func setWord(m *Message, i int, x uint64) { binary.LittleEndian.PutUint64(m.Inline[8*i:], x) }
