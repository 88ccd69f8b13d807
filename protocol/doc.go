// Package protocol decides what one CTDB node does: on a packet, on a request of a
// local client, and as time goes by. docs/protocol.md and docs/recovery.md say
// what it does and why; this page says how to use it.
//
// A [Node] is a pure state machine. It owns no socket, clock, goroutine, lock or
// random source, and never ranges over a map where the order could show. Two nodes
// that get the same calls do the same.
//
// Package host is its only caller outside of tests. The caller's duties:
//  1. Hand in what happens, with the time: Step (a packet), Submit, Abandon,
//     Released, Frozen, ClientGone, Peer, Acked, Refused, Tick; and what an
//     administrator or the arbiter says: Suspect, Drain, Reconfigure, Arbiter.
//     One goroutine.
//  2. After each of them, or after several: Take, and carry out the [Effects] in the
//     order that package host gives.
//  3. Call Tick at Effects.Next, or earlier.
//  4. Acknowledge a packet only if Step said Handled, and not before the effects of
//     that step are in the segment.
//  5. Keep [Stable] and the [Store] over a restart of the dispatcher, which may die
//     before any of its calls of either or of the shell, and hand them
//     to [New] together; or neither. Name a client's call by the same cookie when it
//     is asked again after a restart, and let every call that had no answer be asked
//     again, or its client be gone.
//
// The core never waits for a record: Store.TryLock says Held, the request is
// parked, and Released comes when the record is free.
//
// Tables and their bounds: pending operations [Config.MaxPending] (Submit: ErrFull),
// and as many more that give remote locks back: the others may wait for these;
// requests parked for other nodes [Config.MaxParked] (NO_MEMORY to them, or, if they
// wait for a record to arrive, they come again); done
// lists [Config.MaxDone] a record (requests wait); databases [Config.MaxDBs] and
// traverses [Config.MaxWalks] (NO_MEMORY), with [Config.MaxMoved] bytes of records
// that move (the traverse ends with NO_MEMORY); questions about
// databases [Config.MaxAsks] (messages of others come again). What is known about keys is one entry for each
// key that has any of these, a carried copy or a remote lock. An LMASTER has one place
// for each record of its keys that another node owns, of 128 bytes at most with a key of
// 16; [Config.Hints] places of other LMASTERs' records are remembered. Carried copies are
// bounded by the store's room, see Node.room: an LMASTER lets one through at a time if
// there is none.
package protocol
