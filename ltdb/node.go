package ltdb

import "github.com/mainzdb/mainz/shm"

// changeOf is the word that who waits for a change of the entry at off sleeps on.
func (s *Store) changeOf(off shm.Offset) *shm.Word32 { return &s.node.changes[off/8%changeWords] }

// changed tells those who wait for a change of the record, which has just been
// committed: at is the spot as it was under the lock. It comes before the cell
// forgets the entry; if we die before, the repair of the cell does it. A change beneath
// a lock is the dispatcher's own: it needs no bell.
func (s *Store) changed(at *spot, how release) {
	off := shm.OffsetOf(s.r, at.entry)
	if at.meta&metaWaited != 0 {
		s.bump(off)
	}
	if at.meta&(flagAttended<<24) != 0 && how != beneath && s.served() {
		s.rung(at.entry)
	}
}

// rungBit is the bit of the entry at off.
func rungBit(off shm.Offset) uint { return uint(off / 8 % rungBits) }

// rung tells the dispatcher to look at an entry. The bell is rung even if the
// bit is set already: who has set it may have died before it rang.
func (s *Store) rung(entry *shm.Word64) {
	bit := rungBit(shm.OffsetOf(s.r, entry))
	w, set := &s.node.rung[bit/64], uint64(1)<<(bit%64)
	for v := w.Load(); v&set == 0 && !w.CAS(v, v|set); v = w.Load() {
	}
	if s.doorbell != nil {
		s.doorbell()
	}
}

func (s *Store) bump(off shm.Offset) {
	w := s.changeOf(off)
	for v := w.Load(); !w.CAS(v, v+1); v = w.Load() {
	}
	w.Wake(shm.All)
}
