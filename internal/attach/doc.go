// Package attach is the way of a client to the dispatcher of its node, by a unix
// socket in the node's directory: who may come in, which segment it is, which
// conditions the node knows, and that the client's rings are served.
//
//	client                                       dispatcher
//	Dial                                         Listen, Accept (credentials)
//	Hello: version, name, conditions         →
//	                                         ←   Welcome: version, cluster, node, conditions
//	joins the segment, gets a slot
//	Joined: segment, slot, generation        →   opens the slot's rings
//	                                         ←   Ready
//
// The connection stays open: its end tells the dispatcher at once to look
// whether the client is dead. No request goes this way.
//
// A client whose dispatcher has died is served by the next one without a word: that
// finds it in the segment. It dials all the same, so that the kernel names it for its
// slot. After the Welcome:
//
//	Again: segment, slot, generation         →
//	                                         ←   Prove: a random number
//	makes its slot's lock longer by that number
//	Proven                                   →   asks the kernel how long the lock is
//	                                         ←   Ready
//	shortens the lock again
//
// Who has not got the lock can't stretch it, so nobody proves that of another's slot.
//
// # What it promises
//
// The socket has mode 0660 and the node's group before anybody can connect,
// whatever the umask is. A peer must be root, the dispatcher's user, or of the
// dispatcher's group; the kernel tells who it is, in any PID namespace.
//
// Every message is one datagram of at most 8 KiB (SOCK_SEQPACKET): a peer can
// neither send half of one nor make the other side wait. What doesn't decode is
// an ErrProtocol, and never a panic.
//
// The dispatcher's side never waits. The client's side waits with its context: up to
// 4,096 clients stand in the kernel's queue, in the order in which they came.
//
// It uses x/sys alone: package net would come into every client otherwise.
//
// # Who may call what
//
// A Conn belongs to one goroutine at a time, and so does a Listener with all its
// Peers.
package attach
