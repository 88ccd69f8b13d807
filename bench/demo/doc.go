// Package demo shows the store at the plan's own example, the database of open
// files, on a recorded trace of a real program (package trace).
//
// # What it does
//
// Several client processes share one segment. The traced processes are
// goroutines, spread over the clients; each replays its own opens and closes
// in order, as fast as it can, over and over. The key of a record is a file,
// its value the list of those who have the file open. An open locks the
// record, looks at the share modes of the others, and stores the list with its
// own entry added; a close stores it with the entry taken out, and deletes the
// record with the last one. An open that conflicts unlocks, tries again for
// GiveUp at most, and is then left out with its close.
//
// Halfway one client is killed with SIGKILL. What it held locked is freed by
// the store; its entries are taken out by the other clients, who walk over the
// records as Samba does for a dead smbd; and it is started again, as a new
// client that begins the pass anew.
//
// # What it checks
//
//   - A living client finds each entry that it was told is stored, when it
//     closes the file, as it was stored.
//   - Of the killed client all entries are found that it was told are stored,
//     and none whose removal it was told of. It keeps a journal of that in a
//     file of its own, which outlives it as the segment does.
//   - Every list that is read is sound: each entry has a checksum.
//   - After each pass the database is empty.
//   - At the end the store's own Check finds every invariant unbroken.
//
// # Who may call what
//
// Run is the parent's, Serve the client's; they talk JSON, one message a line,
// over the client's standard input and output. A client ends when its input
// does, so none outlives its parent.
package demo
