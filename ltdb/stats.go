package ltdb

import (
	"context"

	"github.com/mainzdb/mainz/shm"
)

// Counters of a handle. Only its owner adds; anybody reads.
const (
	countFetches = iota
	countRetries
	countStores
	countInserts
	countDeletes
	countLocks
	countWaits
	countOwnerDied
	countOverflows
)

// Stats holds one client's counters since it opened the store.
type Stats struct {
	Fetches   uint64 `json:"fetches"`    // reads, by key
	Retries   uint64 `json:"retries"`    // reads that others' changes made look again, or that waited
	Stores    uint64 `json:"stores"`     // values stored, those of new records included
	Inserts   uint64 `json:"inserts"`    // records made
	Deletes   uint64 `json:"deletes"`    // records removed
	Locks     uint64 `json:"locks"`      // record locks handed to callers
	Waits     uint64 `json:"waits"`      // locks that were waited for in the kernel
	OwnerDied uint64 `json:"owner_died"` // locks whose last holder had died
	Overflows uint64 `json:"overflows"`  // buckets added to chains
	Late      uint64 `json:"late"`       // waits that ended by their time slice though a wake-up was due: always 0
}

// Stats sums up this client's counters.
func (s *Store) Stats() Stats {
	var st Stats
	if s.c == nil || s.enter() != nil {
		return st
	}
	defer s.exit()
	for i := range s.body.handles {
		st.add(&s.body.handles[i])
	}
	st.Late = s.c.Slices().Lost
	return st
}

// countAnew makes the counters the new tenant's own: the slot's last one has left its
// behind. Nobody else stores them.
func (s *Store) countAnew() {
	for i := range s.body.handles {
		for k := range s.body.handles[i].counters {
			c := &s.body.handles[i].counters[k]
			c.Add(-c.Load())
		}
	}
}

func (st *Stats) add(h *handle) {
	c := func(i int) uint64 { return h.counters[i].Load() }
	st.Fetches += c(countFetches)
	st.Retries += c(countRetries)
	st.Stores += c(countStores)
	st.Inserts += c(countInserts)
	st.Deletes += c(countDeletes)
	st.Locks += c(countLocks)
	st.Waits += c(countWaits)
	st.OwnerDied += c(countOwnerDied)
	st.Overflows += c(countOverflows)
}

// Usage is how much a database holds.
type Usage struct {
	Records int    `json:"records"` // with a value
	Bytes   uint64 `json:"bytes"`   // of keys and values
}

// Usage walks the database and counts. It takes no lock.
func (db *DB) Usage(ctx context.Context) (Usage, error) {
	var u Usage
	for e, err := range db.Traverse(ctx) {
		if err != nil {
			return u, err
		}
		u.Records++
		u.Bytes += uint64(len(e.Key) + len(e.Data))
	}
	return u, nil
}

// Client is what the store knows of one attached client.
type Client struct {
	Slot    uint32
	Name    string
	PID     uint32
	Dead    bool // and not yet cleaned up after
	Locks   int  // record locks that it holds
	Waiting int  // record locks that it waits for, or has just released
	Stats   Stats
}

// Clients lists the clients that have a slot, the dead ones too.
func (s *Store) Clients() []Client {
	var all []Client
	if s.enter() != nil {
		return nil
	}
	defer s.exit()
	for i := uint32(1); i <= s.seg.Slots(); i++ {
		slot := s.seg.Slot(i)
		live := slot.Live.Load()
		if live == 0 {
			continue
		}
		b := shm.At[body](s.r, s.seg.SlotBody(i))
		c := Client{Slot: i, Name: s.seg.SlotName(i), PID: slot.PID.Load(), Dead: s.seg.Dead(i)}
		for k := range b.cells {
			off := b.cells[k].Load()
			if off == 0 {
				continue
			}
			// A cell names what the client wants; whether it has it, the entry says.
			if entry := s.entryAt(off); entry != nil && entryOwner(entry.Load()) == i {
				c.Locks++
			} else {
				c.Waiting++
			}
		}
		for k := range b.handles {
			c.Stats.add(&b.handles[k])
		}
		all = append(all, c)
	}
	return all
}

// Room is how much of the segment's memory for records is given away.
type Room struct {
	Spans     int    // that there are
	FreeSpans int    // that ordinary writes may still take
	SpanBytes uint64 // of each
	// Full says that no span is left, and that some size of block that is in use has
	// none free: a record of that size is refused. What lies in the magazines of
	// clients does not count.
	Full bool
}

// Room looks how much room there is. It takes no lock: what changes meanwhile may be
// counted or not. If few spans are left it walks the lists of free blocks, for spans
// that have nothing but these: a client that needs one gets them back.
func (s *Store) Room() Room {
	r := Room{Spans: len(s.spans), SpanBytes: 1 << s.spanShift}
	if s.enter() != nil {
		return r
	}
	defer s.exit()
	free := 0
	var used, room [classes]bool
	for i := range s.spans {
		w := s.spans[i].word.Load()
		c := spanClass(w)
		switch {
		case w == 0:
			free++
		case c >= 0 && c < classes: // else a database's buckets
			used[c] = true
			room[c] = room[c] || s.classes[c].head.Load() != 0 || spanCarved(w) < s.blocksPerSpan(c) &&
				s.classes[c].cur.Load() == uint32(i+1)
		}
	}
	for c := range classes {
		if free > s.reserve || !used[c] {
			continue
		}
		lists, err := s.countFree(c, &s.classes[c])
		if err != nil {
			continue // it changes just now, or check has more to say
		}
		for i, n := range lists {
			if w := s.spans[i].word.Load(); spanClass(w) == c && n == spanCarved(w) {
				free++
			}
		}
	}
	r.FreeSpans = max(0, free-s.reserve)
	r.Full = r.FreeSpans == 0 && used != room
	return r
}
