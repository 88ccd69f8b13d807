// Package host drives one node: it owns a protocol.Node and its link.Link, is fed with
// what happens, and performs what the node wants done, in one order. The simulator and
// the dispatcher are its two users, and drive their nodes by nothing else: so the order
// that the simulator's seeds have tried is the one that runs.
//
// It is pure, as the node and the link are: no socket, clock, goroutine or lock. What
// it does to the world it does through a [Shell].
//
// # What may be batched
//
// A turn is any number of calls, and then one [Host.Flush]. The calls are Receive, Tick,
// Submit, Abandon, Released, Frozen, ClientGone, AskedAll, Saved, Arbiter, Suspect, Drain
// and Reconfigure, in any order. Their readings of the clock never decrease; all may be
// the same.
//
// However many calls are in a turn, what the last Flush gives the Shell is what as many
// turns would have given, in the same order within each kind. The simulator draws turns
// of 1 to 64 calls.
//
// What waits for Flush: everything that others are to see. Until then no datagram goes
// out, so nothing is acknowledged; no client gets a reply or an event; and the gate
// stands as the last Flush left it. A gate that the node has closed stays open in the
// segment until then. That is allowed because of the pass: the node promises nothing
// before Frozen, and Frozen tells of a pass that began behind the closing of the gate.
//
// What does not wait: the Store and the Stable, which the node changes inside its
// steps. So a record that a turn has changed is changed before the reply says so and
// before the acknowledgement that frees its copy elsewhere.
//
// # The order of a Flush
//
//  1. Gate, if it is not open now and differs: clients are kept out before anything
//     tells the world that they are.
//  2. Pass, if the node asks for one. It begins behind 1.
//  3. Save, if what a promise file keeps has changed. It only begins: the node itself
//     keeps back what relies on it, a PROMISE and that a map is taken, until Host.Saved;
//     all else goes on. No step waits for a disk.
//  4. Databases, if the table has grown: before a reply can say that one is there.
//  5. Event, for each: clients learn of an epoch before its gate opens and before any
//     reply that was given in it.
//  6. Lease, and Gate if it is open and differs: the lease is good before a client can
//     ask for it. It only grows, and belongs to whatever gate is open; hence behind 1.
//  7. Reply, for each, in the order of the steps.
//  8. Doorbell, if there was anything in 5 or 7: once for all of them.
//  9. The link takes the node's orders, in the order of the steps: messages, and the
//     ends of epochs and ballots.
//  10. Lock, whenever what the node wants of the arbiter's lock has changed.
//  11. Datagram, for each, the acknowledgements of the turn among them. They come last:
//     a peer frees its copy of a record when it reads the acknowledgement.
//
// If the node can take now what it could not take before, the link hands that in again,
// and Flush begins anew, at most [MaxRounds] times; what is left then is left to its
// sender, who repeats it.
//
// A Shell does not call the Host back from inside its methods.
package host
