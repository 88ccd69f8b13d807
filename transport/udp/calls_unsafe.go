//go:build linux

package udp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/transport"
)

// The calls here are raw ones: on a non-blocking socket they return at once, so
// the scheduler need not hear of them (77 ns each). All memory they point at is
// on the heap, reachable through the Conn, and Go's heap does not move.

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

const _ = -(unsafe.Sizeof(mmsghdr{}) ^ 64) // on amd64 and arm64

// sockaddr is a struct sockaddr_in or sockaddr_in6.
type sockaddr struct {
	b unix.RawSockaddrInet6
	n uint32
}

func (s *sockaddr) set(a netip.AddrPort, zone uint32) {
	raw := (*[unix.SizeofSockaddrInet6]byte)(unsafe.Pointer(&s.b))
	*raw = [unix.SizeofSockaddrInet6]byte{}
	binary.BigEndian.PutUint16(raw[2:], a.Port())
	if ip := a.Addr().Unmap(); ip.Is4() {
		binary.NativeEndian.PutUint16(raw[0:], unix.AF_INET)
		*(*[4]byte)(raw[4:]) = ip.As4()
		s.n = unix.SizeofSockaddrInet4
	} else {
		binary.NativeEndian.PutUint16(raw[0:], unix.AF_INET6)
		*(*[16]byte)(raw[8:]) = ip.As16()
		binary.NativeEndian.PutUint32(raw[24:], zone)
		s.n = unix.SizeofSockaddrInet6
	}
}

func (s *sockaddr) source() transport.Source {
	raw := (*[unix.SizeofSockaddrInet6]byte)(unsafe.Pointer(&s.b))
	port := binary.BigEndian.Uint16(raw[2:])
	if s.b.Family == unix.AF_INET {
		return transport.Source4(raw[4:8], port)
	}
	return transport.Source6(raw[8:24], port)
}

type receiver struct {
	hdrs  [rxSlots]mmsghdr
	iovs  [rxSlots]unix.Iovec
	names [rxSlots]sockaddr
	lens  [rxSlots]int
	mem   []byte
}

const rxSlotBytes = 64 << 10

func (r *receiver) init() {
	// Pages that are never used are never touched: 2 MiB in name, mostly.
	r.mem = make([]byte, rxSlots*rxSlotBytes)
	for i := range r.hdrs {
		r.iovs[i] = unix.Iovec{Base: &r.mem[i*rxSlotBytes], Len: rxSlotBytes}
		r.hdrs[i].hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&r.names[i].b)), Iov: &r.iovs[i], Iovlen: 1}
	}
}

// receive takes up to want datagrams. It returns none and the reason, or some.
func (r *receiver) receive(fd, want int) (int, unix.Errno) {
	if want == 1 {
		name := &r.names[0]
		name.n = unix.SizeofSockaddrInet6
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(&r.mem[0])), rxSlotBytes, unix.MSG_DONTWAIT,
			uintptr(unsafe.Pointer(&name.b)), uintptr(unsafe.Pointer(&name.n)))
		if errno != 0 {
			return 0, errno
		}
		r.lens[0] = int(n)
		return 1, 0
	}
	for i := range want {
		r.hdrs[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&r.hdrs[0])), uintptr(want), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	for i := range int(n) {
		r.lens[i] = int(r.hdrs[i].n)
	}
	return int(n), 0
}

func (r *receiver) datagram(i int) ([]byte, transport.Source) {
	at := i * rxSlotBytes
	return r.mem[at : at+r.lens[i] : at+r.lens[i]], r.names[i].source()
}

// sender is a queue of datagrams, one after the other in one piece of memory.
type sender struct {
	hdrs       [txSlots]mmsghdr
	iovs       [txSlots]unix.Iovec
	tos        [txSlots]int // indexes of peers
	head, tail int          // hdrs[head:tail] are queued
	mem        []byte
	used       int
	open, to   int // bytes that buf gave away at used, -1: none
}

func (s *sender) init() {
	s.mem = make([]byte, arenaBytes)
	s.open = -1
	for i := range s.hdrs {
		s.hdrs[i].hdr = unix.Msghdr{Iov: &s.iovs[i], Iovlen: 1}
	}
}

func (s *sender) queued() int { return s.tail - s.head }

func (s *sender) buf(to, n int) []byte {
	if s.tail == txSlots || n > len(s.mem)-s.used {
		return nil
	}
	s.open, s.to = n, to
	return s.mem[s.used : s.used+n : s.used+n]
}

func (s *sender) commit(n int, name *sockaddr) {
	if n < 0 || n > s.open {
		panic(fmt.Sprintf("udp: commit of %d bytes, Buf gave %d", n, s.open))
	}
	i := s.tail
	// An empty datagram at the very end of the memory must point somewhere.
	s.iovs[i] = unix.Iovec{Base: &s.mem[min(s.used, len(s.mem)-1)]}
	s.iovs[i].SetLen(n)
	s.hdrs[i].hdr.Name = (*byte)(unsafe.Pointer(&name.b))
	s.hdrs[i].hdr.Namelen = name.n
	s.tos[i] = s.to
	// The next one begins on a cache line.
	s.used = min(s.used+(n+63)&^63, len(s.mem))
	s.tail++
	s.open = -1
}

// send gives the queue, or its beginning, to the kernel.
func (s *sender) send(fd int, connected bool) (sent, bytes int, errno unix.Errno) {
	n := s.queued()
	if connected {
		for i := s.head; i < s.tail; i++ {
			s.hdrs[i].hdr.Name, s.hdrs[i].hdr.Namelen = nil, 0
		}
	}
	var r uintptr
	h := &s.hdrs[s.head]
	if n == 1 {
		iov := &s.iovs[s.head]
		_, _, errno = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
			uintptr(unsafe.Pointer(iov.Base)), uintptr(iov.Len), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL,
			uintptr(unsafe.Pointer(h.hdr.Name)), uintptr(h.hdr.Namelen))
		r = 1
	} else {
		r, _, errno = unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
			uintptr(unsafe.Pointer(h)), uintptr(n), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	}
	if errno != 0 {
		return 0, 0, errno
	}
	for range int(r) {
		bytes += int(s.iovs[s.head].Len)
		s.head++
	}
	s.rewind()
	return int(r), bytes, 0
}

// drop takes the first datagram out and returns whom it was for.
func (s *sender) drop() int {
	to := s.tos[s.head]
	s.head++
	s.rewind()
	return to
}

func (s *sender) rewind() {
	if s.head == s.tail {
		s.head, s.tail, s.used = 0, 0, 0
	}
}

// clear drops what is queued, and counts it.
func (s *sender) clear(stats *transport.Stats) {
	stats.Drops[transport.DropUnsent] += uint64(s.queued())
	s.head, s.tail, s.used = 0, 0, 0
}

// sendOne sends past the queue, and tells whether the kernel took it.
func (s *sender) sendOne(fd int, p []byte, name *sockaddr) bool {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
		uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL,
		uintptr(unsafe.Pointer(&name.b)), uintptr(name.n))
	return errno == 0
}

// socketDrops is how many datagrams the kernel dropped because the socket's
// buffer was full.
func socketDrops(fd int) uint64 {
	var info [9]uint32 // SK_MEMINFO_VARS; the last is SK_MEMINFO_DROPS
	n := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(info[8])
}
