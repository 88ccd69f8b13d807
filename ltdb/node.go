package ltdb

import "github.com/mainzdb/mainz/shm"

// changeOf is the word that who waits for a change of the entry at off sleeps on.
func (s *Store) changeOf(off shm.Offset) *shm.Word32 { return &s.node.changes[off/8%changeWords] }

// changed tells those who wait for a change of the record, which has just been
// committed: at is the spot as it was under the lock. It comes before the cell
// forgets the entry; if we die before, the repair of the cell does it.
func (s *Store) changed(at *spot) {
	off := shm.OffsetOf(s.r, at.entry)
	if at.meta&metaWaited != 0 {
		s.bump(off)
	}
}

func (s *Store) bump(off shm.Offset) {
	w := s.changeOf(off)
	for v := w.Load(); !w.CAS(v, v+1); v = w.Load() {
	}
	w.Wake(shm.All)
}
