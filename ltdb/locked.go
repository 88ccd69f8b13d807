package ltdb

import "context"

// LockedRecord is a record that somebody holds.
type LockedRecord struct {
	DB      *DB
	Key     []byte
	Slot    uint32 // of the client, or DispatcherSlot
	Waiters bool   // somebody sleeps until it is free
	Asked   bool   // the dispatcher waits for it
}

// Locked lists the records that are locked, by walking all databases. It takes
// no lock and waits for nobody: what is locked or released meanwhile may be
// missing or not.
func (s *Store) Locked(ctx context.Context) ([]LockedRecord, error) {
	if ctx == nil {
		return nil, errNoContext
	}
	dbs, damaged := s.Databases() // those that are sound
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.exit()
	var all []LockedRecord
	for _, db := range dbs {
		for n := range db.buckets {
			if n%1024 == 0 && ctx.Err() != nil {
				return nil, ctx.Err()
			}
			c := s.chainOf(&db.buckets[n])
			for ; c.bk != nil; c.next() {
				for i := range c.bk.entry {
					e := c.bk.entry[i].Load()
					if entryOwner(e) == 0 {
						continue
					}
					b := s.blockAt(entryRef(e), entryClass(e))
					if b == nil {
						return all, errBadBlock
					}
					seq, klen := b.seq.Load(), metaKeyLen(b.meta.Load())
					if klen < 1 || klen > maxKey || blockHeaderSize+uint64(klen) > uint64(classSizes[entryClass(e)]) {
						continue // it was replaced just now
					}
					l := LockedRecord{DB: db, Key: make([]byte, klen), Slot: entryOwner(e), Waiters: e&bitW != 0,
						Asked: e&bitD != 0}
					s.r.CopyOut(l.Key, refOffset(entryRef(e))+blockHeaderSize)
					if b.seq.Load() == seq && entryOwner(c.bk.entry[i].Load()) == l.Slot {
						all = append(all, l)
					}
				}
			}
			if c.err != nil {
				return all, c.err
			}
		}
	}
	return all, damaged
}
