// Package trace reads and writes recorded file opens and closes, the real
// input that the open-file database is shown on.
//
// A trace is what one program, with all its processes and threads, did to
// regular files: it opened one, with an access and a deny mode (see ModeOf),
// or it closed an open. An open lasts until the last descriptor that refers
// to it is gone, through dup, fork, exec and exit; the command in capture
// makes traces from the output of strace and says how it follows descriptors.
//
// # What a trace promises
//
// A Reader hands out nothing else, and a Writer takes nothing else:
//
//   - events are in time order; times are microseconds since the first event;
//   - opens are numbered 0, 1, 2, … in trace order, and so are files, threads
//     and processes, each in the order of its first open;
//   - a thread belongs to one process for the whole trace;
//   - every close names an earlier open that is still open, and at the end
//     every open is closed: a full replay ends with nothing open;
//   - there are at most MaxEvents events.
//
// File names are not in a trace, nor are process ids of the captured machine:
// a file is the number that its resolved name got when it was first opened. A
// name that is removed and made again keeps its number.
//
// # Replaying with several actors
//
// The process that lets the last descriptor go need not be the one that
// opened the file, and its goroutine in a replay may run ahead of the
// opener's. So a close carries the process and thread of its open, and not
// those that closed it: ByProcess and ByThread give each actor the opens it
// made and the closes of these, in trace order, and no actor ever waits for
// another to have opened something first. What is lost is who closed, which
// an open-file database need not know.
//
// # The file, byte for byte
//
// All fixed-width fields are little-endian.
//
//	offset  size  field
//	0       8     magic "mainztrc"
//	8       2     version, 1
//	10      2     size of this header, 16
//	12      4     zero
//	16      …     gzip stream (RFC 1952), one member without a file name,
//	              comment or extra field: the body
//
// Nothing follows the gzip stream; its CRC-32 and length guard the body. The
// body is a sequence of events. Every number in it is an unsigned varint as in
// encoding/binary, except the mode, which is one byte.
//
//	head    microseconds since the event before << 2 | kind
//
//	kind 0, an open
//	thread  threads so far - thread, so 0 is a new one
//	process processes so far - process, so 0 is a new one; new threads only
//	file    files so far - file, so 0 is a new one
//	mode    access | deny << 2 (access: 1 read, 2 write, 3 both;
//	        deny: 0 none, 2 write, 3 all)
//
//	kind 1, a close
//	open    opens so far - open, so 1 is the newest one
//
//	kind 2, the end; its microseconds are 0 and nothing follows
//	events  number of events before this one
//
// A bad file is an error that wraps ErrFormat and names the offset, either in
// the file or in the unpacked body; it is never a panic, and never more memory
// than MaxEvents events need.
package trace
