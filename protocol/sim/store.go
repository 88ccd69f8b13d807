package sim

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

// record is one entry of a simulated segment.
type record struct {
	db       uint32
	key      string
	rsn      uint64
	accessor protocol.PNN
	count    uint32
	data     []byte
	tags     []byte
	holder   protocol.ClientID
	waits    bool // the dispatcher waits for the lock
	attended bool
	prov     protocol.Epoch // provisional in this epoch
	arriving bool           // made for a record that is not published yet: nobody's
	place    int            // in the segment's order
}

// segment is a node's shared memory in one life: records, gate and lease.
type segment struct {
	h      *host
	life   uint64
	gate   protocol.Gate
	word   uint64 // change counter of the gate
	lease  protocol.Instant
	recs   map[string]*record
	order  []*record // where each stands while it is there; nil: free
	free   []int     // places of order
	waited []*record // those that the dispatcher has waited for
	provs  []*record // provisional ones, and some that have gone
	busy   int       // handles inside an update
	more   int       // bytes that re-supply put here
	name   []byte    // of the record that is looked for
	key    []byte    // of the record that a walk is at
}

func newSegment(h *host, life uint64) *segment {
	return &segment{h: h, life: life, gate: protocol.Gate{State: protocol.GateFrozen}, recs: map[string]*record{}}
}

func name(db uint32, key []byte) string { return string([]byte{byte(db)}) + string(key) }

// at finds a record without making its name anew.
func (s *segment) at(db uint32, key []byte) *record {
	s.name = append(append(s.name[:0], byte(db)), key...)
	return s.recs[string(s.name)]
}

// add a record that is not there.
func (s *segment) add(r *record) {
	s.recs[name(r.db, []byte(r.key))] = r
	if n := len(s.free); n > 0 {
		r.place, s.free = s.free[n-1], s.free[:n-1]
		s.order[r.place] = r
		return
	}
	r.place = len(s.order)
	s.order = append(s.order, r)
}

func (s *segment) remove(r *record) {
	delete(s.recs, name(r.db, []byte(r.key)))
	s.order[r.place] = nil
	s.free = append(s.free, r.place)
}

// sorted is the segment's records in a fixed order.
func (s *segment) sorted() []*record {
	rs := make([]*record, 0, len(s.recs))
	for _, r := range s.recs {
		rs = append(rs, r)
	}
	slices.SortFunc(rs, func(a, b *record) int {
		return cmp.Or(cmp.Compare(a.db, b.db), cmp.Compare(a.key, b.key))
	})
	return rs
}

// set replaces the value; readers keep what they have.
func (r *record) set(data, tags []byte, rsn uint64) {
	r.data, r.tags, r.rsn = bytes.Clone(data), bytes.Clone(tags), rsn
}

// hostStore is protocol.Store over whatever segment the host has now.
type hostStore struct{ h *host }

func (s hostStore) rec(db uint32, key []byte) *record {
	s.h.bill.calls++
	return s.h.seg.at(db, key)
}

func (s hostStore) Look(db uint32, key []byte, v *protocol.Record) bool {
	r := s.rec(db, key)
	if r == nil || r.arriving {
		return false
	}
	*v = protocol.Record{RSN: r.rsn, LAccessor: r.accessor, LACount: r.count, Data: r.data, Tags: r.tags}
	return true
}

func (s hostStore) TryLock(db uint32, key []byte, arriving bool) protocol.LockResult {
	s.h.point()
	r := s.rec(db, key)
	if r != nil && r.holder == 0 {
		s.h.aside(db, key)
	}
	if r == nil {
		if s.h.room == 0 && !arriving {
			return protocol.NoSpace
		}
		r = &record{db: db, key: string(key), accessor: wire.NoPNN, arriving: arriving}
		s.h.seg.add(r)
		if !arriving {
			s.h.c.check.owns(s.h, r)
		}
	}
	if r.holder == 0 {
		r.holder = protocol.Dispatcher
	}
	if r.holder != protocol.Dispatcher {
		if !r.waits {
			r.waits = true
			s.h.seg.waited = append(s.h.seg.waited, r)
		}
		return protocol.Held
	}
	return protocol.Locked
}

func (s hostStore) Holder(db uint32, key []byte) protocol.ClientID {
	if r := s.rec(db, key); r != nil {
		return r.holder
	}
	return 0
}

// held is the record, which the dispatcher must hold.
func (s hostStore) held(db uint32, key []byte) *record {
	r := s.rec(db, key)
	if r == nil || r.holder != protocol.Dispatcher {
		panic("sim: the dispatcher uses a record that it does not hold")
	}
	return r
}

func (s hostStore) Unlock(db uint32, key []byte) {
	s.h.point()
	s.held(db, key).holder = 0
}

func (s hostStore) UnlockTo(db uint32, key []byte, c protocol.ClientID, _ uint64) {
	s.h.point()
	s.held(db, key).holder = c
}

func (s hostStore) Publish(db uint32, key []byte, v *protocol.Record, arriving bool) protocol.LockResult {
	s.h.point()
	r := s.held(db, key)
	if !arriving && s.h.refuses(len(v.Data)-len(r.data)) {
		return protocol.NoSpace
	}
	if arriving && s.h.brim {
		return protocol.NoSpace
	}
	if c := s.h.c; arriving && c.mix.Cap > 0 {
		if used := s.h.seg.used() - len(r.data) + len(v.Data); used > c.mix.Cap+s.h.seg.more+64 {
			c.check.fail("room", "node %d has %d bytes of %d when %q arrives", s.h.pnn, used, c.mix.Cap, r.key)
		}
	}
	r.accessor, r.count, r.arriving = v.LAccessor, v.LACount, false
	r.set(v.Data, v.Tags, v.RSN)
	s.h.c.check.published(s.h, r)
	return protocol.Locked
}

func (s hostStore) Remove(db uint32, key []byte) {
	s.h.point()
	r := s.held(db, key)
	s.h.c.check.removed(s.h, r)
	s.h.seg.remove(r)
}

func (s hostStore) Touch(db uint32, key []byte, accessor protocol.PNN, count uint32) {
	s.h.point()
	if r := s.rec(db, key); r != nil {
		r.accessor, r.count = accessor, count
	}
}

func (s hostStore) Attend(db uint32, key []byte, on bool) {
	if r := s.rec(db, key); r != nil {
		r.attended = on
	}
}

func (s hostStore) Room() uint32 {
	if limit := s.h.c.mix.Cap; limit > 0 {
		return min(s.h.room, uint32(max(0, limit-s.h.seg.used())))
	}
	return s.h.room
}

func (s hostStore) Scan(db uint32, cursor uint64, f func(key []byte, r *protocol.Record) bool) uint64 {
	rs := s.h.seg.sorted()
	at := func(r *record) uint64 { return hashKey(r.db, []byte(r.key)) }
	slices.SortFunc(rs, func(a, b *record) int { return cmp.Compare(at(a), at(b)) })
	for _, r := range rs {
		if r.db != db || at(r) < cursor {
			continue
		}
		if !f([]byte(r.key), &protocol.Record{RSN: r.rsn, Data: r.data}) {
			return at(r) + 1
		}
	}
	return 0
}

// some calls f for the records of some places of the order.
func (s hostStore) some(cursor uint64, records int, f func(r *record)) uint64 {
	seg := s.h.seg
	from := min(int(cursor), len(seg.order))
	to := min(from+records, len(seg.order))
	s.h.bill.walked += to - from
	for _, r := range seg.order[from:to] {
		if r != nil {
			f(r)
		}
	}
	if to == len(seg.order) {
		return 0
	}
	return uint64(to)
}

func (s hostStore) Each(cursor uint64, records int, f func(db uint32, key []byte, rsn uint64, empty bool)) uint64 {
	return s.some(cursor, records, func(r *record) {
		if r.arriving {
			return
		}
		s.h.seg.key = append(s.h.seg.key[:0], r.key...)
		f(r.db, s.h.seg.key, r.rsn, len(r.data) == 0)
	})
}

func (s hostStore) Sweep(cursor uint64, records int, keep func(o protocol.OPID) bool) uint64 {
	s.h.point()
	return s.some(cursor, records, func(r *record) {
		if len(r.tags) == 0 {
			return
		}
		var data, tags []byte
		at := 0
		for rest := r.tags; len(rest) > 0; {
			t, next, _ := wire.NextTag(rest)
			if keep(t.OPID) {
				data, tags = append(data, r.data[at:at+int(t.Len)]...), wire.AppendTag(tags, t)
			}
			at += int(t.Len)
			rest = next
		}
		if len(tags) != len(r.tags) {
			r.set(data, tags, r.rsn+1)
		}
	})
}

func (s hostStore) Provisional(db uint32, key []byte, o protocol.OPID, piece []byte, epoch protocol.Epoch) bool {
	s.h.point()
	r := s.rec(db, key)
	if r == nil {
		r = &record{db: db, key: string(key), accessor: wire.NoPNN, prov: epoch, rsn: 1}
		s.h.seg.add(r)
		s.h.seg.provs = append(s.h.seg.provs, r)
	}
	var data, tags []byte
	at, placed := 0, false
	place := func() {
		data, tags, placed = append(data, piece...), wire.AppendTag(tags, wire.Tag{OPID: o, Len: uint32(len(piece))}), true
	}
	for rest := r.tags; len(rest) > 0; {
		t, next, _ := wire.NextTag(rest)
		if t.OPID == o {
			return true
		}
		if !placed && less(o, t.OPID) {
			place()
		}
		data, tags = append(data, r.data[at:at+int(t.Len)]...), wire.AppendTag(tags, t)
		at += int(t.Len)
		rest = next
	}
	if !placed {
		place()
	}
	s.h.seg.more += len(piece)
	r.set(data, tags, r.rsn)
	return true
}

func less(a, b protocol.OPID) bool {
	return cmp.Or(cmp.Compare(a.PNN, b.PNN), cmp.Compare(a.Life, b.Life), cmp.Compare(a.Counter, b.Counter)) < 0
}

func (s hostStore) DropProvisional(cursor uint64, records int) uint64 {
	s.h.point()
	return s.some(cursor, records, func(r *record) {
		if r.prov != 0 {
			s.h.seg.remove(r)
		}
	})
}

func (s hostStore) OpenProvisional() {
	s.h.point()
	s.h.c.check.opened(s.h) // before anything that waited runs
	for _, r := range s.h.seg.provs {
		r.prov = 0
	}
	s.h.seg.provs = s.h.seg.provs[:0]
}

func (s hostStore) IsProvisional(db uint32, key []byte) bool {
	r := s.rec(db, key)
	return r != nil && r.prov != 0
}

func (s hostStore) Life() uint64 { return s.h.seg.life }

func (s hostStore) Reset(life uint64) {
	s.h.point()
	s.h.newLife(life)
}
