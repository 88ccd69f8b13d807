// Package xdp moves datagrams round the kernel's network stack, with AF_XDP
// sockets, and keeps the kernel's stack beside it for everything else.
//
// # What it promises
//
//   - The kernel's UDP socket is always open on the port. It reserves the port,
//     makes the kernel resolve the peers' addresses, and takes fragments,
//     datagrams of receive queues without a socket, and those of peers that
//     cannot be reached the other way.
//   - Nothing but our port on our address is touched: the XDP program passes
//     all the rest on. It is attached by a bpf_link, so the kernel detaches it
//     when this process ends, however it ends. Nothing is pinned.
//   - A way is used for a peer only once that peer has answered a probe over
//     it (transport.Probe). A successful bind proves nothing.
//   - With Mode Auto a way that cannot be had, or that dies, is followed by the
//     next best one and in the end by the kernel's; Path tells why. With a
//     forced mode that is an error, never a silent fallback.
//   - An empty look is a load from memory, and no system call. The kernel's
//     socket is looked at for a reason only: the program's word that it passed
//     something on, a sleep, a tick, a peer behind another interface.
//
// # What it does not do
//
// It verifies no checksum of what it receives: a datagram from the same host
// has none, and the link carries its own. It sends IPv4 datagrams without UDP
// checksum, which is allowed, and IPv6 ones with it, which must be.
//
// A [Conn] is for one thread.
//
// # Memory shared with the kernel
//
// One UMEM, mapped once: for each receive queue a block of frames that go
// round between fill ring, driver and RX ring, and one block for sending, which
// go round between our free list, TX ring and completion ring of queue 0. No
// frame ever changes its block, so a leak shows in check.go's sums.
//
//	frame     0                64-h    64                     size
//	sending   | unused         | h     | payload              |   h: Ethernet, IP, UDP
//	frame     0                256                            size
//	receiving | kernel's       | Ethernet, IP, UDP, payload   |
package xdp
