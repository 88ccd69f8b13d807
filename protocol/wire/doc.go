// Package wire is the message format of a CTDB cluster: the eighteen packets of
// the 2006 plan, byte for byte, the additions the plan left open, and the
// envelope ([Header]) in which a link carries them.
//
// What it promises:
//   - Encoding and decoding allocate nothing. A decoded [Message] borrows its
//     keys, data and lists from the packet; they live as long as the packet.
//   - Everything is little-endian, on every machine.
//   - [Decode] accepts exactly what [Append] can produce. Any other packet is a
//     [PacketError], which wraps [ErrPacket] and names the message, the field and
//     the reason; it never panics and never reads past the packet's end.
//   - The numbers (opcodes, status codes, flags, port) stand in numbers.go and
//     nowhere else. The golden vectors in testdata hold them still.
//
// A packet is the plan's header, the plan's body, then what we add to it:
//
//	CTDB_REQ_*    OPERATION DESTNODE SRCNODE REQID REQTIMEOUT   5 x u32
//	CTDB_REPLY_*  OPERATION DESTNODE SRCNODE REQID              4 x u32
//	link, recovery OPERATION                                    1 x u32
//
// CTDB_REQUEST_DMASTER has the request header: the plan calls it a request, and
// it is sent as one. Messages of the link and of recovery know nodes by PNN and
// a ballot from the envelope; a VNN means nothing while the map is being made,
// so they carry the opcode alone.
//
// The database is named once, in the envelope (dbid). Body fields are the plan's
// in the plan's order; ours come last. The layout of every message is the table
// in layout.go: the encoder, the decoder and the field notes of the golden
// vectors all walk that one table, so they can't disagree.
package wire
