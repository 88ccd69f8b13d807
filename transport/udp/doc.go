// Package udp moves datagrams through the kernel's UDP stack, as fast as that
// goes: raw system calls on the caller's locked thread, no poller and no
// goroutine between.
//
//   - Poll takes one datagram with recvfrom, and many with recvmmsg once single
//     looks kept finding something: recvmmsg costs more where there is one and
//     less where there are several.
//   - Flush sends one datagram with sendto, several with one sendmmsg.
//   - With exactly one peer both go through a connected socket, which saves
//     the route look-up. With more of them that would take a look at each
//     socket, which costs more than it saves.
//   - The DF bit is set. The MTU is that of the route, asked again every
//     second, and at once when a send fails for its size.
//
// UDP GSO and GRO are not used. A GSO datagram that crosses a veth pair reaches
// a generic XDP program there as one packet, and the AF_XDP socket behind it
// gets several datagrams glued together: the sender cannot know what the
// receiver runs, and a wrong datagram is worse than a slow one.
//
// A [Conn] is for one thread. On other systems than Linux, Open returns
// transport.ErrNotSupported.
package udp
