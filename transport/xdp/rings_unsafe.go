//go:build linux

package xdp

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/shm"
)

// ring is one of the four rings that a socket shares with the kernel. Of the
// two positions one is ours to store and the other one the kernel's. Atomic
// accesses order them with the entries: what is stored before a position is
// there for whoever loads the position.
type ring struct {
	mem      []byte
	producer *uint32 // fill, TX: we store; RX, completion: the kernel
	consumer *uint32 // the other way round
	flags    *uint32
	descs    []unix.XDPDesc // RX, TX
	addrs    []uint64       // fill, completion
	mask     uint32
	prod     uint32 // our copies
	cons     uint32
}

const (
	_ = -(unsafe.Sizeof(unix.XDPDesc{}) ^ 16)
	_ = -(unsafe.Offsetof(unix.XDPDesc{}.Options) ^ 12)
)

// mapRing maps a ring of size entries.
//
// Preconditions: the ring was made with this size, a power of two, and off
// came from the kernel for this socket.
func mapRing(fd int, page int64, off unix.XDPRingOffset, size uint32, descs bool) (r ring, err error) {
	entry := unsafe.Sizeof(uint64(0))
	if descs {
		entry = unsafe.Sizeof(unix.XDPDesc{})
	}
	r.mem, err = unix.Mmap(fd, page, int(off.Desc)+int(size)*int(entry),
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return r, err
	}
	base := unsafe.Pointer(&r.mem[0])
	r.producer = (*uint32)(unsafe.Add(base, off.Producer))
	r.consumer = (*uint32)(unsafe.Add(base, off.Consumer))
	r.flags = (*uint32)(unsafe.Add(base, off.Flags))
	if descs {
		r.descs = unsafe.Slice((*unix.XDPDesc)(unsafe.Add(base, off.Desc)), size)
	} else {
		r.addrs = unsafe.Slice((*uint64)(unsafe.Add(base, off.Desc)), size)
	}
	r.mask = size - 1
	return r, nil
}

func (r *ring) unmap() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
	}
	*r = ring{}
}

// publish lets the kernel see what was produced.
func (r *ring) publish() { atomic.StoreUint32(r.producer, r.prod) }

// unseen is how many published entries the kernel has not consumed.
func (r *ring) unseen() int {
	r.cons = atomic.LoadUint32(r.consumer)
	return int(atomic.LoadUint32(r.producer) - r.cons)
}

// available is how many entries there are to consume.
func (r *ring) available() int {
	if n := r.prod - r.cons; n > 0 {
		return int(n)
	}
	r.prod = atomic.LoadUint32(r.producer)
	return int(r.prod - r.cons)
}

// consumed lets the kernel use again what was consumed.
func (r *ring) consumed() { atomic.StoreUint32(r.consumer, r.cons) }

// needsWakeup tells whether the kernel sleeps.
func (r *ring) needsWakeup() bool {
	return atomic.LoadUint32(r.flags)&unix.XDP_RING_NEED_WAKEUP != 0
}

// setNear stores what the program finds without its hash table. It may look at any
// moment: a slot that changes is empty meanwhile.
func (p *filterProgram) setNear(near *[nearSlots][16]byte) {
	slots := (*[nearSlots][2]uint64)(unsafe.Pointer(unsafe.SliceData(p.nearMem)))
	for i, a := range near {
		s := &slots[i]
		first, second := binary.NativeEndian.Uint64(a[:]), binary.NativeEndian.Uint64(a[8:])
		if atomic.LoadUint64(&s[0]) == first && atomic.LoadUint64(&s[1]) == second {
			continue
		}
		atomic.StoreUint64(&s[1], 0)
		atomic.StoreUint64(&s[0], first)
		atomic.StoreUint64(&s[1], second)
	}
}

// passed is how many of our datagrams the program has passed to the kernel.
func (p *filterProgram) passed() uint64 {
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(unsafe.SliceData(p.mapped))))
}

func setsockopt(fd, name int, p unsafe.Pointer, n uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(name), uintptr(p), n, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func getsockopt(fd, name int, p unsafe.Pointer, n uintptr) error {
	size := uint32(n)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(name), uintptr(p),
		uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func ringSize(fd, name int, size uint32) error {
	return setsockopt(fd, name, unsafe.Pointer(&size), unsafe.Sizeof(size))
}

func registerUMEM(fd int, mem []byte, frame uint32) error {
	reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&mem[0]))), Len: uint64(len(mem)), Size: frame}
	return setsockopt(fd, unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg))
}

func ringOffsets(fd int) (o unix.XDPMmapOffsets, err error) {
	err = getsockopt(fd, unix.XDP_MMAP_OFFSETS, unsafe.Pointer(&o), unsafe.Sizeof(o))
	return o, err
}

func xdpStatistics(fd int) (s unix.XDPStatistics, err error) {
	err = getsockopt(fd, unix.XDP_STATISTICS, unsafe.Pointer(&s), unsafe.Sizeof(s))
	return s, err
}

func isZeroCopy(fd int) bool {
	var o uint32
	err := getsockopt(fd, unix.XDP_OPTIONS, unsafe.Pointer(&o), unsafe.Sizeof(o))
	return err == nil && o&unix.XDP_OPTIONS_ZEROCOPY != 0
}

// prefetch asks for the first two cache lines of a packet, if there is one.
func (u *umem) prefetch(addr uint64) {
	if n := uint64(len(u.mem)); addr < n-min(n, 64) {
		shm.Prefetch(unsafe.Pointer(&u.mem[addr]))
		shm.Prefetch(unsafe.Pointer(&u.mem[addr+64]))
	}
}

// kick makes the kernel look at the TX ring. The raw call is right: the socket
// does not block.
func kick(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), 0, 0, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return errno
}

// wake makes a sleeping driver look at the fill ring.
func wake(fd int) {
	_, _, _ = unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
}
