// Package dispatcher is the loop of one node: calls of local clients in, the
// protocol's core in the middle, and what that decides out, into the segment and
// to the clients.
//
//	d, err := dispatcher.Open(ctx, dispatcher.Options{Dir: dir, Store: ltdb.Options{Create: true}})
//	…
//	err = d.Run(ctx) // until ctx ends
//	…
//	err = d.Close()
//
// One node only, so far: nothing is sent to others.
//
// # What it promises
//
// It owns the directory, the dispatcher's slot of the segment, the socket that
// clients come in by, and the doorbell. A second one is an ErrInUse.
//
// A client that has died is noticed by the end of its connection, and by a look
// at its slot each 100 ms in any case. Then its locks are released, its memory is
// reclaimed, its pieces are removed, and who waits for any of it is told.
//
// It may die at any instant. The next one over the same segment answers each
// call that was not answered, and runs no operation twice (package call says
// how). Clients work on the segment by themselves meanwhile.
//
// What clients write into rings, tables and records is input: garbage ends the
// client's calls, and never the dispatcher.
//
// At the end of Run's context it answers what has come in and can be answered,
// leaves the segment open, and forgets what waits: clients ask again when the
// next one is there.
//
// # Who may call what
//
// All methods belong to one goroutine. Nothing here starts another, but for the
// guardian of package shm.
package dispatcher
