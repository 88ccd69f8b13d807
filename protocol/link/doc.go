// Package link makes datagrams reliable: unordered, delivered to the handler
// exactly once per incarnation of either side, acknowledged only after they have
// been handled.
//
// It is pure. It owns no socket and no clock: the caller hands in datagrams and
// the time, and takes datagrams out. Everything is called from one goroutine.
//
// What it promises, between two incarnations, within one epoch of DATA:
//   - A message is handed to [Handler.Step] until that answers Handled, and then
//     never again, however often the network repeats it. NotYet and Refused are
//     not remembered.
//   - [Handler.Acked] for a message comes after the peer's handler said Handled.
//   - A datagram that is repeated is repeated byte for byte, under the same packet
//     number; a packet number is never used for other bytes.
//   - Messages may overtake each other.
//   - A higher ballot cancels what CONTROL still has to say of lower ones, in its
//     sender; that is why a receiver may drop their fragments.
//
// What it never does: give a message up while both incarnations and the epoch
// last; deliver to another incarnation than the one addressed.
//
// Two channels have windows of their own: the closed window of a frozen node's
// DATA must not hold up the CONTROL messages of the recovery that thaws it.
// Beacons (PING, PONG, RECOVERY_WANTED, PREPARE, PROMISE, NACK) are outside both:
// their senders repeat them by the clock, with fresh contents, for as long as
// they mean anything, also to nodes that may never have existed. A sequence for
// them would only pile up old ones.
//
// Bounds: per peer and channel [Window] frames on their way and [Config.MaxQueue]
// waiting; [Config.MaxHeld] datagrams kept for a handler that said NotYet (the
// sender repeats what does not fit); [Config.MaxParts] messages being put together
// from fragments, per peer and channel.
package link
