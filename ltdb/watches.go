package ltdb

// The Keeper's book of the records that it wants to hear of, in memory of this process
// alone: nothing in this file reads or writes the segment. An entry is known here by
// its offset.

// watchKey names a record.
type watchKey struct {
	db  uint32
	key string
}

// watch is a record that the Keeper wants to hear of, and why. It is kept as long as
// there is a reason.
type watch struct {
	db       *DB
	key      []byte
	entry    uint64 // its offset, as it was when the watch was last put under a bit
	bit      uint
	listed   bool // under bit
	attended bool // the node wants to hear of commits
	waits    bool // the Keeper waits for the lock
	later    bool // it is told at the next Rung in any case
	overdue  bool // it was left to a sleeper when it was last tried
	left     bool // what an earlier dispatcher has left there is still to be taken off
}

// seenAt is a record as it was looked at.
type seenAt struct {
	entry, id, seq uint64
}

// maxSeen bounds how many looks of one turn are remembered.
const maxSeen = 256

// burst counts how often in a row an entry was served while clients slept for it.
type burst struct {
	entry uint64
	n     int
}

// localBurst is how often in a row the Keeper serves a record for which local clients
// sleep, before it lets one of them go first.
const localBurst = 4

// watches is the book. The zero watches is ready.
type watches struct {
	of     map[watchKey]*watch
	bits   [rungBits][]*watch // by bit, what to tell when it is rung
	later  []*watch           // what could not be had for a reason that passes by itself
	undone []watchKey         // to be removed as soon as a latch is free; locked until then
	seen   []seenAt           // what was looked at since the last Rung
	bursts [64]burst          // by the entry's offset
}

// find returns the record's watch, nil if there is none.
func (b *watches) find(db uint32, key []byte) *watch { return b.of[watchKey{db, string(key)}] }

// get returns the record's watch, and makes it if there is none.
func (b *watches) get(db *DB, key []byte) *watch {
	w := b.find(db.id, key)
	if w == nil {
		name := watchKey{db.id, string(key)}
		w = &watch{db: db, key: []byte(name.key)}
		if b.of == nil {
			b.of = map[watchKey]*watch{}
		}
		b.of[name] = w
	}
	return w
}

// at returns the record's watch, under the bit of its entry.
func (b *watches) at(db *DB, key []byte, entry uint64) *watch {
	w := b.get(db, key)
	w.entry = entry
	bit := rungBit(entry)
	if w.listed && w.bit == bit {
		return w
	}
	b.unlist(w)
	w.bit, w.listed = bit, true
	b.bits[bit] = append(b.bits[bit], w)
	return w
}

func (b *watches) unlist(w *watch) {
	if !w.listed {
		return
	}
	l := b.bits[w.bit]
	for i := range l {
		if l[i] == w {
			l[i] = l[len(l)-1]
			b.bits[w.bit] = l[:len(l)-1]
			break
		}
	}
	w.listed = false
}

// drop forgets a watch that has no reason any more.
func (b *watches) drop(w *watch) {
	if w.attended || w.waits || w.later || w.overdue || w.left {
		return
	}
	b.unlist(w)
	if b.find(w.db.id, w.key) == w {
		delete(b.of, watchKey{w.db.id, string(w.key)})
	}
}

// clear forgets all watches.
func (b *watches) clear() {
	clear(b.of)
	b.bits, b.later = [rungBits][]*watch{}, nil
}

// tellLater has the record told at the next Rung.
func (b *watches) tellLater(db *DB, key []byte) *watch {
	w := b.get(db, key)
	if !w.later {
		w.later = true
		b.later = append(b.later, w)
	}
	return w
}

// waited reports whether the Keeper has asked for the lock of an entry.
func (b *watches) waited(entry uint64) bool {
	for _, w := range b.bits[rungBit(entry)] {
		if w.entry == entry && w.waits {
			return true
		}
	}
	return false
}

// overdue reports whether a free record that was left to a sleeper has been left to him
// once already by this Keeper: he may be gone. If not, it is told at the next Rung.
func (b *watches) overdue(db *DB, key []byte) bool {
	if w := b.find(db.id, key); w != nil && w.overdue {
		w.overdue = false
		return true
	}
	b.tellLater(db, key).overdue = true
	return false
}

// note remembers the first look at each record since the last Rung.
func (b *watches) note(l seenAt) {
	for i := range b.seen {
		if b.seen[i].entry == l.entry {
			return
		}
	}
	if len(b.seen) < maxSeen {
		b.seen = append(b.seen, l)
	}
}

// changed reports whether a record is not as it was when it was looked at.
func (b *watches) changed(now seenAt) bool {
	for _, l := range b.seen {
		if l.entry == now.entry && l != now {
			return true
		}
	}
	return false
}

// burstOf returns the count of an entry for which clients sleep: 0 if another one was
// served since.
func (b *watches) burstOf(entry uint64) *burst {
	c := &b.bursts[entry/8%uint64(len(b.bursts))]
	if c.entry != entry {
		c.entry, c.n = entry, 0
	}
	return c
}
