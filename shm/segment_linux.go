package shm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/edsrzf/mmap-go"
	"golang.org/x/sys/unix"
)

// allocateChunk is how much is reserved in one system call: tmpfs undoes all
// of a call that a signal interrupts.
const allocateChunk = 32 << 20

// Create makes the segment of dir, with all its memory, lets fill write the
// upper layers' part and gives it its name. A segment that was there is
// closed for good; its clients see a dead gate. Create holds the owner lock
// meanwhile, if this process does not hold it already (LockOwner).
func Create(ctx context.Context, dir string, cfg Config, fill func(*Segment) error) (*Segment, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	p, err := openPlace(dir, &cfg)
	if err != nil {
		return nil, err
	}
	defer p.close()
	lock, err := p.lockForCreate()
	if err != nil {
		return nil, err
	}
	defer lock.Release()
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	fi, err := fileSystem(p.fd, p.path)
	if err != nil {
		return nil, err
	}
	unit := fi.unit
	if cfg.HugePages == HugeRequire {
		unit = max(unit, hugeUnit)
	}
	h, err := newHeader(&cfg, boot, unit, fi.page())
	if err != nil {
		return nil, err
	}
	old := p.openOld(boot)
	defer func() { old.close() }()
	// What a creator that died has left, nobody uses.
	if err := unix.Unlinkat(p.fd, newName, 0); err != nil && err != unix.ENOENT {
		return nil, p.openError(err, newName, p.file(newName))
	}
	m, need := ReadMachine("/"), Need{Dir: p.path, Size: h.Size, Slots: h.Slots, Create: true, Ram: fi.ram &&
		fi.name != "hugetlbfs"}
	tight := fi.bound && fi.free < h.Size
	if !old.hasClients() && (tight || m.refuses(need) != nil) {
		if !tight {
			if err := m.without(old.size()).refuses(need); err != nil {
				return nil, err // the old one may stay: it would not help
			}
		}
		// Nobody misses the old segment, and its space may be enough.
		old.bury()
		old.close()
		old = oldSegment{}
		_ = unix.Unlinkat(p.fd, segmentName, 0)
		if fi, err = fileSystem(p.fd, p.path); err != nil {
			return nil, err
		}
		m = ReadMachine("/")
	}
	if fi.bound && fi.free < h.Size {
		return nil, noSpace(p.fd, p.path, h.Size)
	}
	warnings, err := m.Check(need)
	if err != nil {
		return nil, err
	}
	s, err := p.create(ctx, &cfg, h, &fi, fill)
	if err != nil {
		_ = unix.Unlinkat(p.fd, newName, 0)
		return nil, err
	}
	s.warnings = warnings
	// Closed first, so that nobody finds two segments open.
	old.bury()
	if err := unix.Renameat(p.fd, newName, p.fd, segmentName); err != nil {
		_ = unix.Unlinkat(p.fd, newName, 0)
		_ = s.Close()
		return nil, fmt.Errorf("shm: %s: %w", p.file(segmentName), err)
	}
	return s, nil
}

// create makes and fills the file, under its temporary name.
func (p *place) create(ctx context.Context, cfg *Config, h *Header, fi *fsInfo, fill func(*Segment) error) (*Segment,
	error) {
	f, _, err := p.open(newName, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	s := &Segment{h: h, dir: p.path, file: f, fs: *fi, boot: h.BootID, ending: newEnding()}
	if err := s.setFile(); err != nil {
		_ = f.Close()
		return nil, err
	}
	if err := p.fillFile(ctx, s, cfg, fill); err != nil {
		if s.r != nil {
			_ = s.Close()
		} else {
			_ = f.Close()
		}
		return nil, err
	}
	return s, nil
}

func (p *place) fillFile(ctx context.Context, s *Segment, cfg *Config, fill func(*Segment) error) error {
	at, size := p.file(segmentName), s.h.Size
	if err := own(int(s.file.Fd()), uint32(cfg.fileMode()), p.gid); err != nil {
		return p.openError(err, newName, at)
	}
	// Huge pages that the mount gives on advice only need the advice before
	// the pages; else reserving first is twice as fast.
	advise := cfg.HugePages == HugeRequire || cfg.HugePages == HugeAuto && strings.Contains(s.fs.opts, "huge=advise")
	if advise {
		if err := s.file.Truncate(int64(size)); err != nil {
			return fmt.Errorf("shm: %s: %w", at, err)
		}
	} else if err := p.allocate(s.file, size); err != nil {
		return err
	}
	if err := s.mapFile(p, true); err != nil {
		return err
	}
	if advise {
		if err := p.allocate(s.file, size); err != nil {
			return err
		}
	}
	if cfg.HugePages == HugeRequire {
		if got := s.Huge(); got.Bytes < size/hugeUnit*hugeUnit {
			return fmt.Errorf("shm: %s: %d of %d bytes in huge pages: %w; mount -o remount,huge=always %s, or use a hugetlbfs mount, or don't require them",
				at, got.Bytes, size, ErrNotSupported, s.fs.mount)
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("shm: create %s: %w", at, err)
	}
	if err := s.init(fill); err != nil {
		return fmt.Errorf("shm: create %s: %w", at, err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("shm: create %s: %w", at, err)
	}
	return nil
}

// allocate reserves the file in full: a store to it can't fail any more.
func (p *place) allocate(f *os.File, size uint64) error {
	for off := uint64(0); off < size; off += allocateChunk {
		n := min(size-off, allocateChunk)
		err := unix.EINTR
		for try := 0; err == unix.EINTR && try < 1000; try++ {
			err, _ = unix.Fallocate(int(f.Fd()), 0, int64(off), int64(n)).(unix.Errno)
		}
		switch err {
		case 0:
		case unix.ENOSPC, unix.ENOMEM, unix.EDQUOT:
			return noSpace(p.fd, p.path, size)
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return fmt.Errorf("shm: %s: the file system can't reserve space: %w; use tmpfs (/dev/shm)", p.path,
				ErrNotSupported)
		default:
			return fmt.Errorf("shm: reserve %d bytes in %s: %w", size, p.path, err)
		}
	}
	return nil
}

// mapFile maps the whole file. The owner touches every page: what fallocate has
// reserved is filled with zeros then, and its own first accesses are quick.
//
// Nobody else does. It costs 0.1 to 0.4 µs a page, so that an attach would take
// longer the larger the segment is, and it would make nothing safer. An access gets
// SIGBUS if the file has no page there and can't get one. In a file that is reserved
// in full (reserved) every page is there already: the file system has counted it,
// and the memory cgroup has charged it to the owner, who made it. What a fault has
// to do is to enter it into the page table, for which the kernel needs a page of its
// own for each 2 MiB; without memory for that the process gets the OOM killer and no
// SIGBUS, whoever touches it and when. Pages that were swapped out are read again,
// touched before or not. A hole that somebody punches later, or a file that he cuts,
// takes touched pages away as well.
func (s *Segment) mapFile(p *place, owner bool) error {
	prot, populate := mmap.RDWR, unix.MADV_POPULATE_WRITE
	if s.ro {
		prot, populate = mmap.RDONLY, unix.MADV_POPULATE_READ
	}
	m, err := mmap.MapRegion(s.file, int(s.h.Size), prot, 0, 0)
	if errors.Is(err, unix.ENOMEM) {
		return noAddress(s.h.Size)
	}
	if err != nil {
		return fmt.Errorf("shm: map %s: %w", p.file(segmentName), err)
	}
	switch HugePages(s.h.Huge) {
	case HugeNever:
		_ = unix.Madvise(m, unix.MADV_NOHUGEPAGE)
	default:
		// Whether it helps, smaps tells later: success says nothing.
		_ = unix.Madvise(m, unix.MADV_HUGEPAGE)
	}
	// A core dump of shared memory would delay the news of a death by 1.5 s
	// per GiB.
	// A forked child has the slot's locks, handles and journals as its parent has
	// them, and both would use them: it faults where it would damage all that others
	// have. It costs the fork no page tables either.
	for _, advice := range []int{unix.MADV_DONTDUMP, unix.MADV_DONTFORK} {
		if err := unix.Madvise(m, advice); err != nil {
			_ = m.Unmap()
			return fmt.Errorf("shm: madvise: %w", err)
		}
	}
	err = nil
	if owner || !s.reserved() {
		err = unix.EINTR
	}
	for try := 0; err == unix.EINTR && try < 1000; try++ {
		err = unix.Madvise(m, populate)
	}
	if err != nil {
		_ = m.Unmap()
		switch {
		case errors.Is(err, unix.EFAULT), errors.Is(err, unix.ENOMEM):
			// EFAULT stands for the SIGBUS that an access would get: no
			// space, or the file was cut meanwhile.
			var st unix.Stat_t
			if unix.Fstat(int(s.file.Fd()), &st) == nil && uint64(st.Size) < s.h.Size {
				return fmt.Errorf("shm: %s: truncated to %d bytes: %w; create the segment anew", p.file(segmentName),
					st.Size, ErrCorrupt)
			}
			if errors.Is(err, unix.ENOMEM) {
				// The kernel's tables for the pages, or a control group.
				if err := ReadMachine("/").refuses(Need{Dir: p.path, Size: besides(s.h.Size), Create: true,
					Ram: true}); err != nil {
					return err
				}
			}
			return noSpace(p.fd, p.path, s.h.Size)
		case errors.Is(err, unix.EINVAL):
			return fmt.Errorf("shm: MADV_POPULATE_WRITE: %w: Linux 5.16 or newer is needed", ErrNotSupported)
		}
		return fmt.Errorf("shm: populate %s: %w", p.file(segmentName), err)
	}
	if err := s.makeSpare(); err != nil {
		_ = m.Unmap()
		return err
	}
	s.r = &Region{base: unsafe.Pointer(unsafe.SliceData(m)), size: s.h.Size, mem: m}
	s.r.done = func() error {
		// Not unmapped: private zero pages take its place. They cost address
		// space only, and who still looks finds a dead gate.
		_, err := unix.MmapPtr(-1, 0, s.r.base, uintptr(s.r.size), unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED|unix.MAP_NORESERVE)
		return err
	}
	return nil
}

// reserved reports whether the file system has memory for the whole file, in pages
// of its own: then no access to it can fail.
func (s *Segment) reserved() bool {
	var st unix.Stat_t
	return s.fs.ram && unix.Fstat(int(s.file.Fd()), &st) == nil && uint64(st.Size) >= s.h.Size &&
		uint64(st.Blocks)*512 >= s.h.Size
}

// noAddress is the error of a mapping for which the kernel has no place: no memory
// was touched, so the file system is not the reason.
func noAddress(size uint64) error {
	if err := ReadMachine("/").refuses(Need{Size: size}); err != nil {
		return err
	}
	return &LimitError{size, 0, "the kernel's accounting of address space",
		"see vm.overcommit_memory, vm.max_map_count and ulimit -v, or choose a smaller segment"}
}

// Warnings are what the caller should log about the segment's place and about the
// machine's limits. owner: the process serves the clients. It reads files.
func (s *Segment) Warnings(owner bool) []string {
	if s.InHeap() {
		return nil
	}
	all := append([]string(nil), s.warnings...)
	if w := s.Warning(); w != "" {
		all = append(all, w)
	}
	more, err := ReadMachine("/").Check(Need{Dir: s.dir, Slots: s.h.Slots, Owner: owner})
	if err != nil {
		more = []string{err.Error()}
	}
	return append(all, more...)
}

// unmap ends the segment's use here.
func (s *Segment) unmap() error {
	if s.InHeap() {
		return nil
	}
	err := s.r.done()
	s.dropSpare()
	if e := s.file.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("shm: close %s: %w", s.dir, err)
	}
	return nil
}

// Attach maps the segment of dir. Layout describes the upper layers' structs
// as in Config. It waits only while an owner is replacing the segment, until the
// context's deadline, or for 2 s if it has none.
func Attach(ctx context.Context, dir string, layout string) (*Segment, error) {
	return attachUntil(ctx, dir, layout, false)
}

// AttachReadOnly maps the segment of dir for looking only: it takes no slot
// and no lock, and can't change anything.
func AttachReadOnly(ctx context.Context, dir string, layout string) (*Segment, error) {
	return attachUntil(ctx, dir, layout, true)
}

func attachUntil(ctx context.Context, dir, layout string, ro bool) (*Segment, error) {
	if err := checkKernel(); err != nil {
		return nil, err
	}
	ctx, cancel := limited(ctx)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("shm: attach %s: %w", dir, err)
	}
	for {
		s, err := attach(dir, layout, ro)
		if s != nil || !errors.Is(err, errBeingReplaced) {
			return s, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w (%w)", err, ctx.Err())
		}
	}
}

var errBeingReplaced = fmt.Errorf("its owner is replacing it: %w", ErrNotRunning)

func attach(dir, layout string, ro bool) (*Segment, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	p, err := openPlace(dir, nil)
	if err != nil {
		return nil, err
	}
	defer p.close()
	flags := unix.O_RDWR
	if ro {
		flags = unix.O_RDONLY
	}
	f, st, err := p.open(segmentName, flags, 0)
	if err != nil {
		return nil, err
	}
	s := &Segment{dir: p.path, file: f, ro: ro, boot: boot, ending: newEnding()}
	if s.h, err = readHeader(f, uint64(st.Size), layout, boot); err == nil {
		err = s.checkFile()
	}
	if err == nil {
		if s.fs, err = fileSystem(int(f.Fd()), p.path); err == nil {
			err = s.mapFile(p, p.ours())
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	if state, _ := s.Gate().State(); state != GateDead {
		if ro {
			s.observe()
		}
		return s, nil
	}
	_ = s.Close()
	var now unix.Stat_t
	// an owner does not wait for itself
	if unix.Fstatat(p.fd, segmentName, &now, unix.AT_SYMLINK_NOFOLLOW) == nil && now.Ino == st.Ino &&
		(p.ours() || !p.ownerLives()) {
		return nil, fmt.Errorf("shm: %s: its owner has closed it: %w; start the owner, or create the segment anew",
			p.file(segmentName), ErrNotRunning)
	}
	return nil, fmt.Errorf("shm: %s: %w", p.file(segmentName), errBeingReplaced)
}

// readHeader reads page 0 by a system call: nothing of a file that may be
// foreign or cut is mapped before it was checked.
func readHeader(f *os.File, size uint64, layout string, boot [16]byte) (*Header, error) {
	page := make([]byte, HeaderSize)
	n, err := f.ReadAt(page, 0)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("shm: read %s: %w", f.Name(), err)
	}
	return parseHeader(f.Name(), page[:n], size, layout, boot)
}

// bootID is the kernel's name for this boot.
var bootID = sync.OnceValues(func() (id [16]byte, err error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, fmt.Errorf("shm: the kernel's boot id: %w; mount /proc", err)
	}
	n := 0
	for _, c := range []byte(strings.TrimSpace(string(b))) {
		d := strings.IndexByte("0123456789abcdef", c)
		if d < 0 {
			continue
		}
		if n == 32 {
			n++
			break
		}
		id[n/2] |= byte(d << (4 * (1 - n%2)))
		n++
	}
	if n != 32 {
		return id, fmt.Errorf("shm: the kernel's boot id is %q: %w", b, ErrNotSupported)
	}
	return id, nil
})

// oldSegment is the one that Create replaces, as far as it is one.
type oldSegment struct {
	s *Segment
	// copied: its slots are those of the original's clients, who are not here.
	copied bool
}

func (p *place) openOld(boot [16]byte) oldSegment {
	f, st, err := p.open(segmentName, unix.O_RDWR, 0)
	if err != nil {
		return oldSegment{}
	}
	s := &Segment{dir: p.path, file: f, ending: newEnding()}
	s.h, err = readHeader(f, uint64(st.Size), anyLayout, boot)
	copied := err == nil && s.checkFile() != nil
	if err == nil {
		if s.fs, err = fileSystem(int(f.Fd()), p.path); err == nil {
			err = s.mapFile(p, false)
		}
	}
	if err != nil {
		// Another boot's, another version's, or garbage: it has no clients
		// that we could tell anything.
		f.Close()
		return oldSegment{}
	}
	return oldSegment{s, copied}
}

func (o oldSegment) close() {
	if o.s != nil {
		_ = o.s.Close()
	}
}

// size is what goes with it.
func (o oldSegment) size() uint64 {
	if o.s == nil {
		return 0
	}
	return o.s.h.Size
}

func (o oldSegment) hasClients() bool {
	if o.s == nil || o.copied {
		return false
	}
	n := 0
	o.s.eachSlot(func(_ uint32, sl *Slot) {
		if v := sl.Live.Load(); v != 0 && v&liveDied == 0 {
			n++
		}
	})
	return n > 0
}

func (o oldSegment) bury() {
	if o.s != nil {
		o.s.bury()
	}
}
