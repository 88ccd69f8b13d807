package ltdb

import (
	"fmt"

	"github.com/mainzdb/mainz/shm"
)

// Who meets damage that it can leave out, or take out of use, notes it in the
// segment: so that the log and the status name it, also after a restart. A note
// is kind << 56 | number. The table is input like any other.

type damageKind uint8

const (
	damagedList   damageKind = iota + 1 // number: class. Its free blocks are lost
	damagedCarve                        // class. It carves another span
	damagedLatch                        // latchOf << 48 | what it covers. It was taken from nobody
	damagedPages                        // slot. Its index was cut
	damagedLine                         // line of the table of databases. Rewritten
	damagedSpan                         // span of a hash table. Rewritten
	damagedCond                         // line of the table of conditions. Rewritten
	damagedLease                        // the lease, or the gate's line but for its word. Rewritten
	lostBlocks                          // slot
	lostLine                            // line of the table of databases. Out of use
	damagedLastly                       // none such
)

var damageTexts = [damagedLastly]string{
	damagedList:  "the free list of class %d is out of use; its blocks are lost",
	damagedCarve: "class %d carved a span that was not its own; it has another one",
	damagedPages: "the index of slot %d was cut; some pieces may stay",
	damagedLine:  "line %d of the table of databases was overwritten; rewritten",
	damagedSpan:  "the line of span %d, of a hash table, was overwritten; rewritten",
	damagedCond:  "line %d of the table of conditions was overwritten; rewritten",
	damagedLease: "the lease or the words beside the gate's were overwritten; rewritten",
	lostLine:     "line %d of the table of databases was overwritten while no dispatcher had a copy: its database is out of use, until the node is made anew (--wipe)",
	lostBlocks:   "free memory that the last client in slot %d had was given up: others hold the latches of its classes",
}

// maxDamage is how many notes there is room for.
const maxDamage = 32

// noteDamage notes damage. It is nothing if that is noted already, or if there is
// no more room.
func (s *Store) noteDamage(kind damageKind, n uint64) {
	if s.c == nil {
		return // an observer can't
	}
	v := uint64(kind)<<56 | n&(1<<56-1)
	for i := range s.node.damage {
		w := &s.node.damage[i]
		if w.Load() == v || w.Load() == 0 && w.CAS(0, v) {
			return
		}
	}
}

// Damage lists the damage that was noted since the segment was made: what is out
// of use because of it, or was put right. What is not in it is served.
func (s *Store) Damage() []string {
	if s.enter() != nil {
		return nil
	}
	defer s.exit()
	var all []string
	for i := range s.node.damage {
		v := s.node.damage[i].Load()
		kind, n := damageKind(v>>56), v&(1<<56-1)
		switch {
		case v == 0:
		case kind == damagedLatch:
			what, n := latchOf(n>>48), n&(1<<48-1)
			all = append(all, fmt.Sprintf("%s was held by nobody; it was taken over", what.describe(n)))
		case kind == damagedLease:
			all = append(all, damageTexts[kind])
		case kind > 0 && kind < damagedLastly:
			all = append(all, fmt.Sprintf(damageTexts[kind], n))
		default:
			all = append(all, fmt.Sprintf("note %#x says nothing", v))
		}
	}
	return all
}

func (w latchOf) describe(n uint64) string {
	switch w {
	case classLatch:
		return fmt.Sprintf("the latch of class %d", n-1)
	case bucketLatch:
		return fmt.Sprintf("the latch of the bucket at %d", n)
	case tableLatch:
		return "the latch of the table of databases"
	case orphanLatch:
		return "the latch of the orphans"
	}
	return "a latch"
}

// dropList takes a class's free list out of use: its blocks are lost, and the
// class goes on with what it carves. The class's latch is held.
func (s *Store) dropList(c int, cl *classLine) {
	s.noteDamage(damagedList, uint64(c))
	cl.head.Store(0)
}

// Mend rewrites what only the dispatcher and the maker of the segment store, where
// somebody has overwritten it: the lease, the gate's line, databases with their hash
// tables' spans, and conditions. It has a copy of these in private memory. Call it some
// times a second.
func (k *Keeper) Mend() {
	s := k.s
	fix := func(w *shm.Word64, v uint64, kind damageKind, n int) {
		if w.Load() != v {
			s.noteDamage(kind, uint64(n))
			w.Store(v)
		}
	}
	fix32 := func(w *shm.Word32, v uint32, kind damageKind, n int) {
		if w.Load() != v {
			s.noteDamage(kind, uint64(n))
			w.Store(v)
		}
	}
	if m := &k.mapped; m.known {
		fix(&s.gate.Epoch, m.epoch, damagedLease, 0)
		fix32(&s.gate.VNN, m.vnn, damagedLease, 0)
		fix32(&s.gate.MapLen, m.members, damagedLease, 0)
		fix32(&s.gate.MapPlace, m.place, damagedLease, 0)
		fix(&s.gate.Life, s.life, damagedLease, 0)
		fix(&s.gate.OpenedEpoch, m.opened, damagedLease, 0)
		fix(&s.leas.Boot, m.boot, damagedLease, 0)
		fix(&s.leas.Ticks, m.ticks, damagedLease, 0)
	}
	for i := range s.dbs {
		if s.dbs[i].ready.Load() != 0 {
			k.db(s.dbs[i].id.Load()) // so that there is a copy
		}
	}
	k.noteLost()
	for _, db := range k.dbs {
		l, n := &s.dbs[db.place], db.place
		fix32(&l.mode, uint32(db.mode), damagedLine, n)
		fix32(&l.id, db.id, damagedLine, n)
		fix32(&l.nameLen, uint32(len(db.name)), damagedLine, n)
		start := shm.OffsetOf(s.r, db.table)
		fix(&l.buckets, start, damagedLine, n)
		fix(&l.count, uint64(len(db.buckets)), damagedLine, n)
		if !s.r.Equal(shm.OffsetOf(s.r, &l.name), []byte(db.name)) {
			s.noteDamage(damagedLine, uint64(n))
			s.r.CopyIn(shm.OffsetOf(s.r, &l.name), []byte(db.name))
		}
		fix32(&l.ready, 1, damagedLine, n)
		first, _ := s.spanOf(start)
		for i := range uint64(len(db.buckets)) * bucketSize >> s.spanShift {
			at := first + int(i)
			fix(&s.spans[at].word, bucketSpan|uint64(n)<<8, damagedSpan, at)
		}
	}
	k.mendConditions()
}

// noteLost notes the lines that make no sense and of which there is no copy.
func (k *Keeper) noteLost() {
	s := k.s
	for i := range s.dbs {
		if s.dbs[i].ready.Load() == 0 {
			continue
		}
		if _, err := s.database(i); err == nil {
			continue
		}
		known := false
		for _, db := range k.dbs {
			known = known || db.place == i
		}
		if !known {
			s.noteDamage(lostLine, uint64(i))
		}
	}
}

func (k *Keeper) mendConditions() {
	s := k.s
	for i := range s.condLines {
		l := &s.condLines[i]
		known, ok := k.conds[i]
		if !ok && l.ready.Load() == 1 {
			if c, err := s.conditionAt(i); err == nil {
				k.conds[i] = c
			}
			continue
		}
		if !ok {
			continue
		}
		if c, err := s.conditionAt(i); err != nil || c != known || l.ready.Load() != 1 {
			s.noteDamage(damagedCond, uint64(i))
			s.putCondition(i, known)
		}
	}
}

// mendBuiltin writes the lines of the built-in conditions anew if they are others.
// The header's layout hash has their versions: who has others can't be attached.
func (s *Store) mendBuiltin() {
	for i := range builtin {
		if c, err := s.conditionAt(i); err != nil || c != builtin[i].info() || s.condLines[i].ready.Load() != 1 {
			s.noteDamage(damagedCond, uint64(i))
			s.putCondition(i, builtin[i].info())
		}
	}
}
