// Package mainz gives a process its databases: records in memory that all
// processes of a node share. It works on them directly where it can (the bypass,
// package ltdb), and asks the node's dispatcher, mainzd, where it must (the
// ring).
//
//	c, err := mainz.Attach(ctx, dir)
//	…
//	defer c.Close()
//	db, err := c.Open(ctx, "locking", mainz.KV)
//	…
//	rec, err := db.FetchLocked(ctx, key) // waits while somebody else has it
//	…
//	defer rec.Unlock() // harmless after StoreUnlock
//	err = rec.StoreUnlock(append(rec.Data(), entry...))
//
// # What it promises
//
// All that package ltdb promises about values, locks and deaths holds, whichever
// way a call takes.
//
// A call that goes through the ring is answered once and runs once, also if
// mainzd is killed and started again meanwhile: it waits for the next one as long
// as its context allows. A call that its context ends has done nothing, unless it
// says ErrUnknown: then mainzd was not there to tell.
//
// The bypass does not need mainzd to live, once the client is attached.
//
// What the ring is for, on one node: conditional appends and removals whose
// condition function this process does not have, and Watch. Records at other
// nodes come with the cluster.
//
// # What it never does
//
// It starts the guardian of package shm. Beside that it starts goroutines only
// when mainzd was started again, or was not there when a call was given up, until
// that is settled, and one that stays if it is to be told of recoveries
// (WithEvents). It logs nothing.
//
// # Who may call what
//
// A Client and a DB are safe for many goroutines. A Handle belongs to one at a
// time, with the records locked through it. Who breaks that damages nothing: a call
// that finds the Handle in use panics before it has touched anything, and of two that
// end one Record the second returns ErrNotLocked. After Close everything returns
// ErrClosed, open Handles and Records as well. A call that makes no sense, with a nil
// context where it has to wait, a nil option or function, or options that contradict
// each other, returns ErrMisuse and says what is wrong. All of it is of use only in the
// process that attached; a forked child does not have the segment.
package mainz
