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
// them would only pile up old ones. Each is handed in once at most, and not if 64
// newer ones have overtaken it.
//
// Incarnations are random and have no order, so a datagram of one that we do not
// know may be a late one of the dead. It is dropped, and its sender challenged:
// only a living dispatcher can answer with the packet number of the challenge.
// This costs a restarted peer one round trip.
//
// Sealing ([Config.Sealer]) replaces the checksum. A frame is sealed once, at its
// first sending, and repeated as it is; a cancelled frame has other contents and
// gets another packet number. So no packet number, which is the nonce, ever meets
// two contents. What is not sealed with the cluster's key is counted and dropped
// without an answer. An attacker who records and repeats datagrams reaches nobody:
// the channels drop what was handled, beacons are handed in once, and a dead
// incarnation can't answer a challenge. Only a node that has just started, and has
// heard no peer yet, takes a recorded first PING for the peer, until that speaks.
//
// Bounds, per peer and channel:
//   - [Window] frames on their way. What waits behind them is bounded by the core's
//     tables (DATA) and by the records of a node (the claims of a recovery);
//     [Config.MaxQueue] asserts it.
//   - Fewer than [Window] messages being put together from fragments: each lacks a
//     sequence inside the window. A sender's sequences are in the order of its
//     fragments, so all of them take one message and one window of datagrams.
//     A packet has at most [MaxMessage] bytes.
//
// And per link [Config.MaxHeld] datagrams kept for a handler that said NotYet; the
// sender repeats what does not fit. Buffers are kept and used again: in the steady
// state nothing is allocated, in fragments or sealed neither.
package link
