// Package ltdb is the local store of CTDB: records in memory that the processes of one
// machine share. Each record has a lock, and none is hurt by a process that dies. The
// store is of use alone, as a tdb of today.
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
// A value is replaced as a whole. A reader sees the old value or the new one, never a
// part of either, and so does whoever comes after a death. Every later read sees an
// update that returned nil. An update that returned an error did not happen, with two
// exceptions: ErrLeaseLost leaves open whether it did, and ErrCorrupt leaves everything
// open.
//
// A process may die at any instant, even while it repairs what another one left behind.
// The lock of a record that it held is free again as soon as somebody wants it, and
// whoever gets it is told (Record.OwnerDied). Blocks that the dead process had not
// published are reclaimed when somebody opens the store, waits, or runs out of memory,
// before any call fails for want of memory.
//
// Fetch stores nothing in shared memory but a count on a line of its own, and makes no
// system call. FetchLocked, Store, Append, StoreUnlock and Delete make none either while
// nobody waits for anybody. Once warmed up, none of these calls allocates if the
// destination has room; Fetch makes its result. One call in 256 reads the CPU's
// time-stamp counter (Latencies).
//
// A call looks at its context only when it has to wait: for a record, a latch, a handle
// or the gate. A call that its context ended has done nothing, and returns the context's
// error.
//
// A call that finds too little memory returns ErrNoSpace before it has changed anything.
//
// # What it never does
//
// The store never takes a lock from a process that lives, however long that has held it.
// Whoever waits sets the limit, by a context. So what a stopped process holds stays held.
//
// The store calls no function of the caller's (a condition), and waits for no other
// process, while it holds a latch. It keeps no reference to keys and values that it is
// given.
//
// The store starts no goroutine or thread but the guardian of package shm. It makes
// nothing durable: a segment is gone when the machine boots.
//
// What stands in the segment is input. Garbage there is ErrCorrupt, never a panic or an
// access outside of the segment; Check says what is broken. Whoever may write the segment
// may, of course, falsify the data in it.
//
// # Lock order
//
// Record locks come first, in whatever order the caller takes them. The store detects no
// deadlock between records; contexts end one. With any number of record locks held, a
// handle takes one latch at a time, and gives it back before it does anything else:
//
//	record locks  >  one of: bucket latch | class latch | latch of the table of databases | latch of the spare
//
// The latch of the orphan indexes comes before all of these. Its holder takes only record
// locks that are free, and waits only for class latches and the spare. So a holder of
// record locks may wait for it.
//
// No latch is taken under another. An insert gets its blocks, for which it may need a
// class latch, before it latches the bucket. A magazine that is
// full gives blocks back, under their class's latch, before the commit or after the
// record was unlocked. A waiter for a latch holds no latch. So it may repair a dead client meanwhile, which takes class
// latches one by one in the dead client's name.
//
// Of the mutexes of the process, Store.mu (open, databases, handles, close) is the
// outermost, and may be held while a latch is taken. The others (turns, the pool of
// locks, histograms) are leaves: nothing is taken under them. The one exception is the
// mutex of the histograms, which covers a class latch and is only tried.
//
// # Who may call what
//
// A Store is one client: one slot of the segment, 16 handles, 1,024 lock cells. A Store
// and a DB are safe for many goroutines. Each call of a DB borrows a handle, and waits
// while all are taken, as long as its context allows. A Handle reserves one of them, 14
// at most. It belongs to one goroutine at a time, together with all records that were
// locked through it; Handle.Close unlocks what is still locked. A Record that was locked
// through the DB belongs to one goroutine at a time as well, but may be handed on.
//
// A program that breaks these rules damages nothing, in any build:
//
//   - A call that changes something through a Handle, and finds another call of the same
//     Handle under way, panics before it has touched anything. A condition that uses the
//     Handle which runs it is such a call. Fetch, AppendFetch and FetchBatch are not
//     looked at, unless they have to wait.
//   - Of two calls that end one Record, one ends it and the other returns ErrNotLocked.
//     A call that meets Record.Store in another goroutine panics. All methods of a stale
//     Record return ErrNotLocked.
//   - A panic of the caller's own function (a condition, Resupply, the body of a loop)
//     gives back all that its call had borrowed.
//
// Close may be called while other goroutines work. It waits for calls under way. Calls
// that wait end with ErrClosed, within a time slice of 20 ms. Close releases what is
// locked, also through Handles that are open. Whatever is called later, through the DB, a
// Handle or a Record, returns ErrClosed and no longer reaches the segment. A condition
// that does not return keeps Close waiting.
//
// All of it works only in the process that opened it. A forked child must open the store
// anew, and so must a program after execve. The child does not have the segment: if it
// uses a store of its parent, it ends with a fault.
//
// A goroutine that locks a record twice waits for itself.
//
// OpenHeap and Join are for tests, and for systems without shared memory.
//
// The layout of the segment is in layout.go. docs/memory.md describes it with every step
// of every operation.
package ltdb
