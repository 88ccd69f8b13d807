// Package ltdb is the local store of CTDB: records in memory that processes of
// one machine share, each with a lock, and none of them hurt by a process that
// dies. It is of use alone, as a tdb of today.
//
//	s, err := ltdb.Open(ctx, "/dev/shm/mainz/prod/0/v1", ltdb.Options{Create: true})
//	…
//	defer s.Close()
//	db, err := s.Database(ctx, "locking", ltdb.KV, ltdb.DatabaseOptions{})
//	…
//	r, err := db.FetchLocked(ctx, key) // waits while somebody else has it
//	…
//	defer r.Unlock() // harmless after StoreUnlock
//	if r.OwnerDied() {
//		… // the value is whole; what it guards may be half done
//	}
//	err = r.StoreUnlock(append(r.Data(), entry...))
//	…
//	value, err := db.Fetch(ctx, key) // takes no lock, writes nothing
//
// # What it promises
//
// A value is replaced as a whole. Readers, and whoever comes after a death, see
// the old one or the new one, never a part of either; an update that returned
// nil is seen by every later read. One that returned an error did not happen,
// but for ErrLeaseLost, which leaves it open, and ErrCorrupt, which leaves
// everything open.
//
// A process may die at any instant, also while it repairs what another one
// left behind. The lock of a record that it held is free again as soon as
// somebody wants it, and tells him (Record.OwnerDied). Blocks that it had not
// published are reclaimed when somebody opens the store, waits, or runs out of
// memory, before anything fails.
//
// Fetch stores nothing to shared memory but a count on a line of its own, and
// makes no system call. FetchLocked, Store, Append, StoreUnlock and Delete make
// none either while nobody waits for anybody. None of these allocates once it
// has warmed up, if the destination has room; Fetch makes its result. One call
// in 256 reads the CPU's time-stamp counter (Latencies).
//
// A context is looked at when a call has to wait, for a record, a latch, a handle
// or the gate, and only then. A call that its context ended has done nothing and
// returns the context's error.
//
// If memory runs out, ErrNoSpace comes before anything has been changed.
//
// # What it never does
//
// It never takes a lock from a process that lives, at whatever age: deadlines
// belong to waiters. So it never frees what a stopped process holds.
//
// It never calls the caller's code (a condition), and never waits for another process, with a
// latch held. It keeps no reference to keys and values that it is given.
//
// It starts no goroutine or thread but the guardian of package shm, and makes
// nothing durable: a segment is gone with the boot of the kernel that it was
// made under.
//
// What it finds in the segment is input. Garbage there is ErrCorrupt, and never
// a panic or an access outside of the segment; Check says what is broken. Who
// may write the segment may of course lie about the data in it.
//
// # Lock order
//
// Record locks come first, in whatever order the caller takes them: the store
// detects no deadlock between records, that is what contexts are for. With any
// number of record locks held, a handle takes one latch at a time, and gives it
// back before it does anything else:
//
//	record locks  >  one of: bucket latch | class latch | latch of the table of databases | latch of the spare
//
// The latch of the orphan indexes comes before all of it. Who holds it takes
// record locks that are free, and waits for class latches and the spare only; so who holds
// record locks may wait for it.
//
// No latch is taken under another. An insert gets its blocks, which may take a
// class latch, before it latches the bucket, and a block that a commit freed
// goes to a full free list after the record was unlocked or before the commit.
// Who waits for a latch holds none, so he may repair a dead client meanwhile,
// which takes class latches one by one in the dead one's name.
//
// Of the mutexes of the process Store.mu (open, databases, handles, close) is
// outermost, and may be held while a latch is taken. The others (turns, the
// pool of locks, histograms) are leaves: but for the histograms' one, which
// covers a class latch and is only tried, nothing is taken under them.
//
// # Who may call what
//
// A Store is one client: one slot of the segment, 16 handles, 1,024 lock cells.
// A Store and a DB are safe for many goroutines; each call of a DB borrows a
// handle, and waits while all are taken, as long as its context allows. A Handle
// reserves one, 14 at most, and belongs to one goroutine at a time, together with all
// records that were locked through it; Handle.Close unlocks what is still locked. A
// Record that was locked through the DB belongs to one goroutine at a time as well,
// but any: it may be handed on.
//
// Who breaks that damages nothing, in any build. A call that changes something through
// a Handle, and finds another one of the same Handle under way, panics before it has
// touched anything; a condition that uses the Handle which runs it is one. Fetch,
// AppendFetch and FetchBatch are not looked at, unless they have to wait. Of two calls
// that end one Record one does, and the other returns ErrNotLocked. One that meets
// Record.Store in another goroutine panics. All methods of a stale Record return
// ErrNotLocked. A panic of the caller's own function, a condition or Resupply or the
// body of a loop, gives back all that its call had borrowed.
//
// Close may be called while other goroutines work: it waits for calls under way, and
// those that wait end with ErrClosed, within a time slice of 20 ms. It releases what is
// locked, also through Handles that are open; what is called later, through the DB, a
// Handle or a Record, returns ErrClosed and reaches the segment no more. A condition
// that does not return keeps Close waiting.
//
// All of it is of use only in the process that opened it. A child that was
// forked must open the store anew, and so must a program after execve: the child does
// not have the segment, so what it does with a store of its parent ends it with a fault.
//
// A goroutine that locks a record twice waits for itself.
//
// OpenHeap and Join are for tests, and for systems without shared memory.
//
// The layout of the segment is in layout.go, and with every step of every
// operation in docs/memory.md.
package ltdb
