package protocol

import (
	"bytes"
	"encoding/binary"

	"github.com/mainzdb/mainz/protocol/wire"
)

// location is where the LMASTER believes a record to be.
type location struct {
	pnn   PNN
	reqid ReqID
	rsn   uint64
}

// places is an LMASTER's table of the records that other nodes own: one entry a
// record, so it is what grows with the cluster. An entry with a key of 16 bytes takes
// 44 bytes and its share of an index, 80 to 100 bytes in all. There is no pointer in
// it, so the collector walks none of it, however many records there are.
//
// The table has shards by the hash's high bits, and each grows by itself: no step
// copies more than a shard.
type places struct {
	shards [placeShards]placeShard
	gen    uint64 // the epoch's; a shard of an older one is empty
	n      int
}

const placeShards = 256

// placeShard is an open-addressing table: index has the low half of a hash and where
// its entry begins; entries lie behind one another, dead ones among them.
type placeShard struct {
	index []uint64 // tag << 32 | offset+1; 0: free
	arena []byte
	n     int
	dead  int // bytes
	gen   uint64
}

// An entry: u32 tag, u32 database, u32 length of the key, u32 REQID, u64 RSN, u16 PNN
// (NoPNN: dead), u16 0, the key.
const (
	placeHead  = 28
	placeIndex = 8   // slots of the smallest index
	placeArena = 512 // bytes of the smallest arena
)

var le = binary.LittleEndian

// reset forgets all, in no time: a shard is emptied when it is used next.
func (t *places) reset() { t.gen, t.n = t.gen+1, 0 }

func (t *places) shard(hash uint64) *placeShard {
	s := &t.shards[hash>>56]
	if s.gen != t.gen {
		if s.n*8 < len(s.index) || cap(s.arena) > placeArena && 8*len(s.arena) < cap(s.arena) {
			s.index, s.arena = nil, nil // it was large once
		}
		clear(s.index)
		s.gen, s.n, s.dead, s.arena = t.gen, 0, 0, s.arena[:0]
	}
	return s
}

// find an entry: its slot in the index, and where it begins; -1: it is not there.
func (s *placeShard) find(tag, db uint32, key []byte) (slot uint32, at int) {
	if s.n == 0 {
		return 0, -1
	}
	mask := uint32(len(s.index) - 1)
	for i := tag & mask; s.index[i] != 0; i = (i + 1) & mask {
		if uint32(s.index[i]>>32) != tag {
			continue
		}
		at := int(uint32(s.index[i]) - 1)
		e := s.arena[at:]
		if n := le.Uint32(e[8:]); le.Uint32(e[4:]) == db && int(n) == len(key) && bytes.Equal(e[placeHead:placeHead+int(n)], key) {
			return i, at
		}
	}
	return 0, -1
}

func (t *places) get(hash uint64, db uint32, key []byte) (l location, ok bool) {
	s := t.shard(hash)
	_, at := s.find(uint32(hash), db, key)
	if at < 0 {
		return location{pnn: wire.NoPNN}, false
	}
	e := s.arena[at : at+placeHead]
	return location{PNN(le.Uint16(e[24:])), ReqID(le.Uint32(e[12:])), le.Uint64(e[16:])}, true
}

func (t *places) set(hash uint64, db uint32, key []byte, l location) { t.swap(hash, db, key, l) }

// swap sets a place and tells what it was; NoPNN: there was none.
func (t *places) swap(hash uint64, db uint32, key []byte, l location) (old location) {
	s, tag := t.shard(hash), uint32(hash)
	_, at := s.find(tag, db, key)
	old.pnn = wire.NoPNN
	if at < 0 {
		at = s.add(tag, db, key)
		t.n++
	} else {
		e := s.arena[at : at+placeHead]
		old = location{PNN(le.Uint16(e[24:])), ReqID(le.Uint32(e[12:])), le.Uint64(e[16:])}
	}
	e := s.arena[at : at+placeHead]
	le.PutUint32(e[12:], uint32(l.reqid))
	le.PutUint64(e[16:], l.rsn)
	le.PutUint16(e[24:], uint16(l.pnn))
	return old
}

// add an entry that is not there.
func (s *placeShard) add(tag, db uint32, key []byte) (at int) {
	if 4*(s.n+1) > 3*len(s.index) {
		old := s.index
		s.index = make([]uint64, max(placeIndex, 2*len(old)))
		for _, x := range old {
			if x != 0 {
				s.link(x)
			}
		}
	}
	need := placeHead + len(key)
	if len(s.arena)+need > cap(s.arena) && 2*s.dead >= len(s.arena) {
		s.compact()
	}
	if len(s.arena)+need > cap(s.arena) {
		s.arena = append(make([]byte, 0, max(placeArena, len(s.arena)+len(s.arena)/4+need)), s.arena...)
	}
	at = len(s.arena)
	s.arena = s.arena[:at+need]
	e := s.arena[at:]
	le.PutUint32(e, tag)
	le.PutUint32(e[4:], db)
	le.PutUint32(e[8:], uint32(len(key)))
	le.PutUint32(e[24:], 0)
	copy(e[placeHead:], key)
	s.link(uint64(tag)<<32 | uint64(at+1))
	s.n++
	return at
}

// link puts a word into the first free slot of its chain.
func (s *placeShard) link(x uint64) {
	mask := uint32(len(s.index) - 1)
	i := uint32(x>>32) & mask
	for s.index[i] != 0 {
		i = (i + 1) & mask
	}
	s.index[i] = x
}

// each calls f for every entry. Keys last until the table changes.
func (t *places) each(f func(hash32, db uint32, key []byte, l location)) {
	for i := range t.shards {
		s := &t.shards[i]
		if s.gen != t.gen {
			continue
		}
		for at := 0; at < len(s.arena); {
			e := s.arena[at:]
			n := int(le.Uint32(e[8:]))
			if to := PNN(le.Uint16(e[24:])); to != wire.NoPNN {
				f(le.Uint32(e), le.Uint32(e[4:]), e[placeHead:placeHead+n], location{to, ReqID(le.Uint32(e[12:])), le.Uint64(e[16:])})
			}
			at += placeHead + n
		}
	}
}

func (t *places) remove(hash uint64, db uint32, key []byte) {
	s := t.shard(hash)
	slot, at := s.find(uint32(hash), db, key)
	if at < 0 {
		return
	}
	le.PutUint16(s.arena[at+24:], uint16(wire.NoPNN))
	s.dead += placeHead + len(key)
	s.n--
	t.n--
	// What stands behind it in its chain moves up, so that no search stops too early.
	mask := uint32(len(s.index) - 1)
	free := slot
	for i := (slot + 1) & mask; s.index[i] != 0; i = (i + 1) & mask {
		if home := uint32(s.index[i]>>32) & mask; (i-home)&mask >= (i-free)&mask {
			s.index[free], free = s.index[i], i
		}
	}
	s.index[free] = 0
	if s.n == 0 {
		s.arena, s.dead = s.arena[:0], 0
	}
}

// compact moves the living entries to the front.
func (s *placeShard) compact() {
	mask, to := uint32(len(s.index)-1), 0
	for at := 0; at < len(s.arena); {
		e := s.arena[at:]
		size := placeHead + int(le.Uint32(e[8:]))
		if PNN(le.Uint16(e[24:])) != wire.NoPNN {
			tag := le.Uint32(e)
			was, i := uint64(tag)<<32|uint64(at+1), tag&mask
			for s.index[i] != was {
				i = (i + 1) & mask
			}
			s.index[i] = uint64(tag)<<32 | uint64(to+1)
			copy(s.arena[to:], e[:size])
			to += size
		}
		at += size
	}
	s.arena, s.dead = s.arena[:to], 0
}

// marks is a set of hashes: the records of a node that it is the LMASTER of itself, in a
// recovery. It has no false no, so it tells which claims of others need no look at the
// store: nearly all. 4 to 11 bytes a record, freed at SETTLE.
type marks struct {
	shards [placeShards]struct {
		slots []uint32
		n     int
	}
}

func (m *marks) add(hash uint64) {
	s := &m.shards[hash>>56]
	if 4*(s.n+1) > 3*len(s.slots) {
		old := s.slots
		s.slots = make([]uint32, max(8, 2*len(old)))
		for _, x := range old {
			if x != 0 {
				put(s.slots, x)
			}
		}
	}
	if put(s.slots, uint32(hash)|1) {
		s.n++
	}
}

func put(slots []uint32, x uint32) (added bool) {
	mask := uint32(len(slots) - 1)
	i := x >> 1 & mask
	for slots[i] != 0 && slots[i] != x {
		i = (i + 1) & mask
	}
	added, slots[i] = slots[i] == 0, x
	return added
}

func (m *marks) has(hash uint64) bool {
	slots := m.shards[hash>>56].slots
	if len(slots) == 0 {
		return false
	}
	x, mask := uint32(hash)|1, uint32(len(slots)-1)
	for i := x >> 1 & mask; slots[i] != 0; i = (i + 1) & mask {
		if slots[i] == x {
			return true
		}
	}
	return false
}

// hints are the locations that a node which is not the LMASTER remembers: who answered
// last for a key. Few, and a new one takes the place of an old one: a wrong or a
// forgotten one costs a redirect.
type hints []hint

type hint struct {
	hash uint64
	to   PNN
	set  bool
}

func (h hints) at(hash uint64) *hint { return &h[hash&uint64(len(h)-1)] }

func (h hints) get(hash uint64) PNN {
	if e := h.at(hash); e.set && e.hash == hash {
		return e.to
	}
	return wire.NoPNN
}

func (h hints) put(hash uint64, to PNN) { *h.at(hash) = hint{hash, to, true} }

func (h hints) drop(hash uint64) {
	if e := h.at(hash); e.hash == hash {
		e.set = false
	}
}

// hint remembers where a record of another LMASTER was.
func (n *Node) hint(hash uint64, to PNN) {
	if e := n.hints.at(hash); e.set && e.hash != hash {
		n.reached(LimitHints)
	}
	n.hints.put(hash, to)
}
