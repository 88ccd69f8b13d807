// Package demo shows a node at the plan's own example, the database of open
// files, on a recorded trace of a real program (package trace).
//
// # What it does
//
// It starts mainzd, with a directory of its own in a ramdisk, and client
// processes that attach to it. The traced processes are goroutines, spread over
// the clients; each replays its own opens and closes in order, as fast as it
// can, over and over. The key of a record is a file, its pieces are those who
// have the file open. An open is a conditional append with the built-in
// condition ShareModes: one that conflicts waits for the trigger, GiveUp at
// most, and is then left out with its close. A close is a RemoveAndTrigger.
//
// Most of that goes by bypass, waiting included. Of the traced processes one in
// ringEvery goes through the ring, so that both ways meet on the same records
// and mainzd has work.
//
// Halfway one client is killed with SIGKILL. mainzd frees what it held locked,
// removes its pieces and triggers who waits for them, and it is started again,
// as a new client that begins the pass anew. Before and after that mainzd itself
// is killed with SIGKILL, in the first half of a pass. The clients go on for a
// while without it, and then another one starts over the same segment.
//
// # What it checks
//
//   - A living client finds each entry that it was told is stored, when it
//     closes the file, as it was stored, and nothing beside it that it excludes.
//   - Of the killed client all entries are found that it was told are stored,
//     and none whose removal it was told of: it is stopped, and looked at,
//     before it is killed. It keeps a journal of what it was told in a file of
//     its own, which outlives it as the segment does.
//   - mainzd removes these entries, and an opener that waits for one of them
//     gets its file.
//   - While there is no mainzd the clients go on, and a call that comes in then
//     is answered by the next one.
//   - Everything that is read is sound: each entry has a checksum.
//   - After each pass the database is empty, and at the end so are the indexes
//     of pieces.
//   - No wait ends by its time slice because its wake-up was lost.
//   - At the end, when all have left, the store's own Check finds every
//     invariant unbroken.
//
// # Who may call what
//
// Run is the parent's, Serve the client's; they talk JSON, one message a line,
// over the client's standard input and output. Neither a client nor mainzd
// outlives the parent, however that ends.
package demo
