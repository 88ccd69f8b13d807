// Package transport is what stands between the dispatcher's loop and the
// network: datagrams in batches, to and from a known set of peers.
//
// # What a transport promises
//
//   - A datagram arrives whole or not at all. It may be lost, come twice, come
//     late or out of order; protocol/link makes up for that.
//   - Only datagrams from peers are handed over. All others are dropped and
//     counted under a reason, as is everything else that gets lost in our hands.
//   - Poll, Buf, Commit and Flush never block and never allocate.
//   - It never fragments: what is larger than MTU finds no buffer.
//
// # What it never does
//
// It does not know what the bytes mean, keeps nothing to send again, verifies
// no checksum (on AF_XDP a datagram from the same host carries none), and
// authenticates nobody: a source address can be forged.
//
// # Who may call it
//
// One thread, the dispatcher's, which is locked to its goroutine. Nothing here
// is safe for a second one.
//
// Implementations: transport/udp (the kernel's stack), transport/xdp (AF_XDP,
// with the kernel's stack beside it), and [Memory] for tests. Package
// transporttest holds what all of them must pass.
package transport
