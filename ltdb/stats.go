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
	Fetches   uint64 // reads, by key
	Retries   uint64 // reads that others' changes made look again, or that waited
	Stores    uint64 // values stored, those of new records included
	Inserts   uint64 // records made
	Deletes   uint64 // records removed
	Locks     uint64 // record locks handed to callers
	Waits     uint64 // locks that were waited for in the kernel
	OwnerDied uint64 // locks whose last holder had died
	Overflows uint64 // buckets added to chains
	Late      uint64 // waits that ended by their time slice though a wake-up was due: always 0
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
	Records int    // with a value
	Bytes   uint64 // of keys and values
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
	Slot  uint32
	Name  string
	PID   uint32
	Dead  bool
	Locks int // record locks held or waited for
	Stats Stats
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
		c := Client{Slot: i, Name: s.seg.SlotName(i), PID: slot.PID.Load(), Dead: s.c != nil && s.c.Dead(i)}
		for k := range b.cells {
			if b.cells[k].Load() != 0 {
				c.Locks++
			}
		}
		for k := range b.handles {
			c.Stats.add(&b.handles[k])
		}
		all = append(all, c)
	}
	return all
}
