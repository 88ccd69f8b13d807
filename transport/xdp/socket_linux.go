package xdp

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Sizes of the rings. The fill ring is twice the RX ring: then the kernel,
// which takes its entries in advance, does not run dry while a full RX ring
// waits for us. The completion ring holds all frames there are to send.
const (
	rxSize   = 1024
	fillSize = 2 * rxSize
	txSize   = 1024
	compSize = txSize

	// Frames of each queue. A driver that copies nothing may take all of the
	// fill ring in advance. One that copies takes a frame when it has a packet,
	// and needs only what a full RX ring holds.
	rxFramesZeroCopy = fillSize
	rxFramesCopy     = rxSize + 64
	txFrames         = txSize
	// So many of them go round in copy mode while little comes: the fewer, the more
	// are still in a cache. A round trip of 1 KiB takes 5 % less with 128 than with
	// all. When half of them wait for us, all go round, and then fewer by and by.
	rxFramesLeast = 128

	maxQueues = 16

	// maxPacket is the largest that one can receive, over all its frames.
	maxPacket = ethLen + vlanLen + 1<<16

	// rxOffset is where the kernel puts a packet into a frame.
	rxOffset = unix.XDP_PACKET_HEADROOM
	// txPayload is where we put the payload of one.
	txPayload = 64
)

// bindPatience is how long a bind is tried again: the kernel frees a queue
// some time after its last socket was closed, 1 to 66 ms when measured on a
// machine that was not busy.
const bindPatience = 5 * time.Second

// socket is an AF_XDP socket on one receive queue.
type socket struct {
	fd    int
	queue int
	fill  ring
	rx    ring
	tx    ring // of queue 0 in zero-copy mode; else it stays empty
	comp  ring

	round int      // frames that go round
	most  int      // that waited for us at one time, since the last look at round
	spare []uint64 // frames that do not

	parts  []byte // of a packet that comes in several frames, one after the other
	more   bool   // its last frame is still to come
	tooBig bool   // for parts
}

// giveBack gives a frame back to the kernel, if it is to go round.
func (s *socket) giveBack(frame uint64) {
	if int(s.fill.prod-s.rx.cons) >= s.round {
		s.spare = append(s.spare, frame)
		return
	}
	s.fill.addrs[s.fill.prod&s.fill.mask] = frame
	s.fill.prod++
}

// waiting notes how many frames waited for us at one time.
func (s *socket) waiting(n int) {
	if s.most = max(s.most, n); 2*n < s.round || len(s.spare) == 0 {
		return
	}
	s.round = cap(s.spare)
	for _, frame := range s.spare {
		s.fill.addrs[s.fill.prod&s.fill.mask] = frame
		s.fill.prod++
	}
	s.spare = s.spare[:0]
}

// calm lets fewer frames go round if that many were not needed since the last call.
func (s *socket) calm(least int) {
	if 8*s.most < s.round {
		s.round = max(s.round/2, least)
	}
	s.most = 0
}

// gather adds a frame to the packet that it is a part of. It returns the packet with
// its last frame, valid until the next call, or nil if it is too large.
func (s *socket) gather(b []byte, more bool) []byte {
	if !s.more {
		s.parts, s.tooBig = s.parts[:0], false
	}
	if s.more = more; len(b) > maxPacket-len(s.parts) {
		s.tooBig = true
	}
	if !s.tooBig {
		s.parts = append(s.parts, b...)
	}
	if more || s.tooBig {
		return nil
	}
	return s.parts
}

// socketOptions are what all sockets of one interface have in common.
type socketOptions struct {
	ifindex  int
	frame    uint32 // size of a frame
	zeroCopy bool
	sg       bool // packets over several frames
	queues   int
}

// umem is the frames and the sockets that share them.
type umem struct {
	socketOptions
	rxFrames int // of each queue
	mem      []byte
	sockets  []*socket
	out      *socket  // whose TX ring is in use
	free     []uint64 // frames for sending
}

// rxFramesOf is how many frames a queue has.
func rxFramesOf(zeroCopy bool) int {
	if zeroCopy {
		return rxFramesZeroCopy
	}
	return rxFramesCopy
}

// umemBytes is how much memory all frames take, which is locked.
func umemBytes(frame uint32, queues int, zeroCopy bool) int {
	return int(frame) * (queues*rxFramesOf(zeroCopy) + txFrames)
}

// openUMEM opens a socket on each of the queues; those above the interface's
// last one are left out.
func openUMEM(o socketOptions) (*umem, error) {
	u := &umem{socketOptions: o}
	u.queues = min(o.queues, maxQueues)
	u.rxFrames = rxFramesOf(o.zeroCopy)
	size := umemBytes(o.frame, u.queues, o.zeroCopy)
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %d MiB of frames: %w", size>>20, err)
	}
	u.mem = mem
	for q := range u.queues {
		s, err := u.openSocket(q)
		if q > 0 && errors.Is(err, unix.EINVAL) {
			break // the interface has no such queue
		}
		if err != nil {
			u.close()
			return nil, fmt.Errorf("queue %d: %w", q, err)
		}
		u.sockets = append(u.sockets, s)
	}
	u.queues = len(u.sockets)
	if u.out, err = u.openSender(); err != nil {
		u.close()
		return nil, fmt.Errorf("socket to send by: %w", err)
	}
	u.free = make([]uint64, 0, txFrames)
	for i := range txFrames {
		u.free = append(u.free, uint64(len(mem))-uint64(i+1)*uint64(o.frame))
	}
	return u, nil
}

func (u *umem) openSocket(queue int) (s *socket, err error) {
	s = &socket{fd: -1, queue: queue}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return s, fmt.Errorf("AF_XDP socket: %w", err)
	}
	s.fd = fd
	first := len(u.sockets) == 0
	if first {
		if err := registerUMEM(fd, u.mem, u.frame); err != nil {
			if err == unix.ENOBUFS {
				return s, fmt.Errorf("register %d MiB of frames: %w: raise RLIMIT_MEMLOCK (LimitMEMLOCK= in the unit) or grant CAP_IPC_LOCK", len(u.mem)>>20, err)
			}
			return s, fmt.Errorf("register frames: %w", err)
		}
	}
	err = errors.Join(
		ringSize(fd, unix.XDP_UMEM_FILL_RING, fillSize),
		ringSize(fd, unix.XDP_UMEM_COMPLETION_RING, compSize),
		ringSize(fd, unix.XDP_RX_RING, rxSize),
		ringSize(fd, unix.XDP_TX_RING, txSize))
	if err != nil {
		return s, fmt.Errorf("make rings: %w", err)
	}
	off, err := ringOffsets(fd)
	if err != nil {
		return s, fmt.Errorf("offsets of the rings: %w", err)
	}
	for _, m := range []struct {
		to    *ring
		page  int64
		off   unix.XDPRingOffset
		size  uint32
		descs bool
	}{
		{&s.fill, unix.XDP_UMEM_PGOFF_FILL_RING, off.Fr, fillSize, false},
		{&s.comp, unix.XDP_UMEM_PGOFF_COMPLETION_RING, off.Cr, compSize, false},
		{&s.rx, unix.XDP_PGOFF_RX_RING, off.Rx, rxSize, true},
		{&s.tx, unix.XDP_PGOFF_TX_RING, off.Tx, txSize, true},
	} {
		if *m.to, err = mapRing(fd, m.page, m.off, m.size, m.descs); err != nil {
			return s, fmt.Errorf("map ring: %w", err)
		}
	}
	s.round, s.spare = u.least(), make([]uint64, 0, u.rxFrames)
	for i := range u.rxFrames {
		s.giveBack(uint64(queue*u.rxFrames+i) * uint64(u.frame))
	}
	s.fill.publish()
	return s, u.bind(s, first)
}

// openSender opens the socket that is sent by. Where the kernel copies it is one of its
// own: the CPU of a sender at the other end runs the receiving half of a socket, and it
// and our sending half would take the same cache lines from each other.
func (u *umem) openSender() (s *socket, err error) {
	if u.zeroCopy {
		return u.sockets[0], nil
	}
	s = &socket{fd: -1}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return s, err
	}
	if err := ringSize(s.fd, unix.XDP_TX_RING, txSize); err != nil {
		return s, err
	}
	// How many datagrams one call sends, from Linux 6.17 on. Before it is 32, and we
	// call again.
	_ = ringSize(s.fd, unix.XDP_MAX_TX_SKB_BUDGET, txSize)
	off, err := ringOffsets(s.fd)
	if err != nil {
		return s, err
	}
	if s.tx, err = mapRing(s.fd, unix.XDP_PGOFF_TX_RING, off.Tx, txSize, true); err != nil {
		return s, err
	}
	return s, u.bind(s, false)
}

// least is how many frames of a queue go round at least.
func (u *umem) least() int {
	if u.zeroCopy {
		return u.rxFrames
	}
	return rxFramesLeast
}

func (u *umem) bind(s *socket, first bool) error {
	sa := &unix.SockaddrXDP{Ifindex: uint32(u.ifindex), QueueID: uint32(s.queue)}
	if first {
		sa.Flags = unix.XDP_USE_NEED_WAKEUP | unix.XDP_COPY
		if u.zeroCopy {
			sa.Flags = unix.XDP_USE_NEED_WAKEUP | unix.XDP_ZEROCOPY
		}
		if u.sg {
			sa.Flags |= unix.XDP_USE_SG
		}
	} else {
		sa.Flags, sa.SharedUmemFD = unix.XDP_SHARED_UMEM, uint32(u.sockets[0].fd)
	}
	var err error
	for end := time.Now().Add(bindPatience); ; time.Sleep(5 * time.Millisecond) {
		err = unix.Bind(s.fd, sa)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			break
		}
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("bind: %w: another AF_XDP socket holds this queue", err)
	case err != nil:
		return fmt.Errorf("bind: %w", err)
	case u.zeroCopy && !isZeroCopy(s.fd):
		return errors.New("bind: the driver copies all the same")
	}
	return nil
}

func (s *socket) close() {
	for _, r := range []*ring{&s.fill, &s.rx, &s.tx, &s.comp} {
		r.unmap()
	}
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// close gives everything back. The socket that the frames belong to goes last.
func (u *umem) close() {
	if u == nil {
		return
	}
	if u.out != nil && u.out.fd >= 0 {
		u.out.close()
	}
	u.out = nil
	for i := len(u.sockets) - 1; i >= 0; i-- {
		u.sockets[i].close()
	}
	u.sockets = nil
	if u.mem != nil {
		_ = unix.Munmap(u.mem)
		u.mem = nil
	}
}

// base is where the frame begins that addr lies in.
func (u *umem) base(addr uint64) uint64 { return addr &^ (uint64(u.frame) - 1) }

// capacity is the largest frame content that one descriptor can carry, sent or
// received.
func (u *umem) capacity() int { return int(u.frame) - rxOffset }

// inPlace tells whether a payload of n bytes is written into the frame that it
// is sent from. A longer one, or one for which there is room only if the
// headers begin with the frame, is put together elsewhere.
func (u *umem) inPlace(n int) bool { return n <= int(u.frame)-txPayload }

// reap takes back the frames that have been sent.
func (u *umem) reap() {
	s := u.sockets[0]
	n := s.comp.available()
	for range n {
		u.free = append(u.free, u.base(s.comp.addrs[s.comp.cons&s.comp.mask]))
		s.comp.cons++
	}
	if n > 0 {
		s.comp.consumed()
	}
}
