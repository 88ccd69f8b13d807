// Package call is what passes between a client and the dispatcher of its node: the
// format of the cells, which ring is where, the tables in the segment that a restarted
// dispatcher finds again, and the client's half of the calls, [Client]. The other half
// is package dispatcher's.
//
// A Client may be used by many goroutines. Its calls wait for the dispatcher; they end
// with their contexts, with the client, or with the segment. The formats have no state.
//
// # Calls
//
// A client names each of its calls by a number that no other call under way has.
// A request or reply is a number of bytes, cut into cells of 40; the first one
// is enough for a fetch of a key of up to 28. A copy in private memory is made
// of what comes before anything of it is believed: the other side can't change
// it afterwards. The segment's memory of records is not used for it.
//
//	client → dispatcher                dispatcher → client
//	Request   an operation             Reply      how it ended
//	Abandon   nobody waits any more    Reply, or Abandoned: it has not run and will not
//	Nop       nothing, for measuring   Reply
//	Synced    all was asked again      Started    a dispatcher is there, with a number
//	                                   Opened     a recovery has passed
//
// # A dispatcher that dies
//
// Each dispatcher has a number, its incarnation, which stands in every cell that
// is meant for it. What was meant for another is dropped. The first thing that a
// client hears of a new dispatcher is Started; all replies of the one before
// stand in front of that. So the client knows then which of its calls have no
// answer, asks these again, under their old numbers, and says Synced.
//
// What a call has changed is noted in a Line before it changes anything, and
// the line is freed when the reply has been given. An operation that is asked
// again and has a line that says done is answered from the line. The one that
// was under way is the Intent: its record is still locked by the dispatcher that
// died, so its sequence number tells whether it happened.
package call
