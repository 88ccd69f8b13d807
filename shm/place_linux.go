package shm

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Names in a segment's directory.
const (
	segmentName = "segment"
	newName     = "segment.new" // while it is being filled; under the owner lock
	lockName    = "owner.lock"
)

// place is an open directory, found safe.
type place struct {
	path string
	fd   int
	gid  int // trusted besides our own groups; -1: none
}

func (p *place) close() { _ = unix.Close(p.fd) }

func (p *place) file(name string) string { return filepath.Join(p.path, name) }

// MakeDir makes the directory of a segment and what is missing above it, with
// the mode and group of the configuration: 2770 if that doesn't say otherwise.
// Create does it as well.
func MakeDir(dir string, cfg Config) error {
	p, err := openPlace(dir, &cfg)
	if err != nil {
		return err
	}
	p.close()
	return nil
}

var errNoDir = errors.New("shm: the name of the directory is empty; name the node's directory")

// openPlace walks to dir, component by component and through no symlink, and
// checks that nobody but its users can have put it there. With a cfg it makes
// the directories that are missing.
func openPlace(dir string, cfg *Config) (*place, error) {
	if dir == "" {
		// Not the working directory: nobody means that by nothing.
		return nil, errNoDir
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("shm: %s: %w", dir, err)
	}
	p := &place{path: path, gid: -1}
	if cfg != nil && cfg.Group != "" {
		if p.gid, err = groupID(cfg.Group); err != nil {
			return nil, fmt.Errorf("shm: %s: %w", path, err)
		}
	}
	p.fd, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("shm: open /: %w", err)
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for i, name := range parts {
		at := "/" + strings.Join(parts[:i+1], "/")
		if err := p.step(name, at, cfg, i == len(parts)-1); err != nil {
			p.close()
			return nil, err
		}
	}
	return p, nil
}

// step goes down one component.
func (p *place) step(name, at string, cfg *Config, last bool) error {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(p.fd, name, flags, 0)
	if err == unix.ENOENT && cfg != nil {
		if err = p.mkdir(name, cfg, last); err == nil {
			fd, err = unix.Openat(p.fd, name, flags, 0)
		}
	}
	if err != nil {
		return p.openError(err, name, at)
	}
	p.close()
	p.fd = fd
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("shm: %s: %w", at, err)
	}
	open := st.Mode&0o002 != 0
	switch {
	case last && open:
		return permissionError(at, "anybody may write there", "chmod o-w "+at)
	case open && st.Mode&unix.S_ISVTX == 0:
		return permissionError(at, "anybody may write there, and it has no sticky bit", "chmod o-w "+at)
	case !open && !p.trusted(&st):
		return permissionError(at, fmt.Sprintf("owned by %s, group %s", userName(st.Uid), groupName(st.Gid)),
			membership(st.Gid))
	}
	return nil
}

// trusted reports whether a file's owner is root, we, or one of our group.
func (p *place) trusted(st *unix.Stat_t) bool {
	if st.Uid == 0 || int(st.Uid) == os.Geteuid() {
		return true
	}
	if int(st.Gid) == p.gid || int(st.Gid) == os.Getegid() {
		return true
	}
	groups, err := os.Getgroups()
	return err == nil && slices.Contains(groups, int(st.Gid))
}

// mkdir makes a directory that only the group of cfg may use. What root makes above
// the segment's own lets everybody pass, and nobody else make anything there: nodes of
// other groups may lie beside this one. A directory that another user made is trusted
// by his own group only, so there it would help nobody.
func (p *place) mkdir(name string, cfg *Config, last bool) error {
	if err := unix.Mkdirat(p.fd, name, 0o700); err == unix.EEXIST {
		return nil
	} else if err != nil {
		return err
	}
	fd, err := unix.Openat(p.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	mode := uint32(cfg.fileMode())
	mode |= mode >> 2 & 0o111 // who may read may enter
	if !last && os.Geteuid() == 0 {
		mode = mode&^0o022 | 0o011
	}
	return own(fd, mode|unix.S_ISGID, p.gid)
}

func (cfg *Config) fileMode() fs.FileMode {
	if cfg.Mode == 0 {
		return 0o660
	}
	return cfg.Mode.Perm()
}

// own sets the group, if there is one, and the mode whatever the umask is.
func own(fd int, mode uint32, gid int) error {
	if gid >= 0 {
		if err := unix.Fchown(fd, -1, gid); err != nil {
			return err
		}
	}
	return unix.Fchmod(fd, mode)
}

// openError explains why name, at the path at, can't be opened.
func (p *place) openError(err error, name, at string) error {
	var st unix.Stat_t
	haveStat := unix.Fstatat(p.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
	switch {
	case haveStat && st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return permissionError(at, "a symbolic link, which is not followed", "give the real path")
	case err == unix.ENOENT:
		return fmt.Errorf("shm: %s: %w; start its owner, or create it", at, ErrNotRunning)
	case err == unix.EACCES || err == unix.EPERM || err == unix.EROFS:
		fix := "run as a user who may"
		if haveStat || unix.Fstat(p.fd, &st) == nil { // else of the directory that hides it
			fix = membership(st.Gid)
		}
		return permissionError(at, err.Error(), fix)
	case err == unix.ENOSPC:
		return noSpace(p.fd, at, HeaderSize)
	}
	return fmt.Errorf("shm: open %s: %w", at, err)
}

func permissionError(path, why, fix string) error {
	return fmt.Errorf("shm: %s: %w: %s; %s", path, ErrPermission, why, fix)
}

// membership is the next step for who is not of a file's group. Nobody joins root's:
// there the node is what is to be changed.
func membership(gid uint32) string {
	if gid == 0 {
		return "it belongs to group root, which nobody should join: start its owner with a group for its clients (mainzd --group NAME, or group in its configuration), or run as root"
	}
	return fmt.Sprintf("run as its owner, or join its group: usermod -aG %s %s, and log in again", groupName(gid),
		userName(uint32(os.Geteuid())))
}

func userName(uid uint32) string {
	id := strconv.Itoa(int(uid))
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func groupName(gid uint32) string {
	id := strconv.Itoa(int(gid))
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// GroupNumber is the number of a group, whose name or number is given.
func GroupNumber(name string) (int, error) { return groupID(name) }

// Group returns the number of the group of the segment's file; false in the heap.
func (s *Segment) Group() (gid uint32, ok bool) {
	if s.InHeap() {
		return 0, false
	}
	var st unix.Stat_t
	if unix.Fstat(int(s.file.Fd()), &st) != nil {
		return 0, false
	}
	return st.Gid, true
}

func groupID(name string) (int, error) {
	if id, err := strconv.Atoi(name); err == nil {
		return id, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w; create it with groupadd, or choose another", name, err)
	}
	return strconv.Atoi(g.Gid)
}

// open opens a regular file in the directory and checks whose it is.
func (p *place) open(name string, flags int, perm uint32) (*os.File, *unix.Stat_t, error) {
	at := p.file(name)
	// O_NONBLOCK: a FIFO of that name shall not block us.
	fd, err := unix.Openat(p.fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, perm)
	if err != nil {
		return nil, nil, p.openError(err, name, at)
	}
	f := os.NewFile(uintptr(fd), at)
	var st unix.Stat_t
	switch err := unix.Fstat(fd, &st); {
	case err != nil:
		err = fmt.Errorf("shm: %s: %w", at, err)
		f.Close()
		return nil, nil, err
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		f.Close()
		return nil, nil, fmt.Errorf("shm: %s: not a regular file: %w; remove it", at, ErrCorrupt)
	case st.Mode&0o002 != 0:
		f.Close()
		return nil, nil, permissionError(at, "anybody may write it", "chmod o-w "+at)
	case !p.trusted(&st):
		f.Close()
		return nil, nil, permissionError(at, fmt.Sprintf("owned by %s, group %s", userName(st.Uid),
			groupName(st.Gid)), membership(st.Gid))
	}
	return f, &st, nil
}

// fsInfo is what we know of a file system.
type fsInfo struct {
	name  string
	ram   bool
	unit  uint64 // files have a multiple of this
	free  uint64 // bytes
	bound bool   // free means something
	mount string
	opts  string
}

// page is the size of the pages in a mapping of its files.
func (fi *fsInfo) page() uint64 { return max(fi.unit, uint64(os.Getpagesize())) }

func fileSystem(fd int, path string) (fsInfo, error) {
	var sf unix.Statfs_t
	if err := unix.Fstatfs(fd, &sf); err != nil {
		return fsInfo{}, fmt.Errorf("shm: %s: %w", path, err)
	}
	fi := fsInfo{unit: HeaderSize, free: sf.Bavail * uint64(sf.Bsize), bound: sf.Blocks != 0}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fsInfo{}, fmt.Errorf("shm: %s: %w", path, err)
	}
	fi.mount, fi.name, fi.opts = mountOf(uint64(st.Dev), path)
	switch int64(sf.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		fi.ram = true
	case unix.HUGETLBFS_MAGIC:
		fi.ram, fi.unit = true, uint64(sf.Bsize)
	}
	if fi.name == "" {
		fi.name = fmt.Sprintf("a file system of type %#x", sf.Type)
	}
	return fi, nil
}

// mountOf looks a path up in the list of mounts. Nothing is decided by it but
// the order of allocation and the text of messages.
func mountOf(dev uint64, path string) (mount, fstype, opts string) {
	mount = path
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mount, "", ""
	}
	defer f.Close()
	want := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	best := -1
	for sc := bufio.NewScanner(f); sc.Scan(); {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		a, b := strings.Fields(left), strings.Fields(right)
		if !ok || len(a) < 5 || len(b) < 3 || a[2] != want {
			continue
		}
		at := a[4]
		if under := at == "/" || path == at || strings.HasPrefix(path, at+"/"); under && len(at) > best {
			best, mount, fstype, opts = len(at), at, b[0], b[2]
		}
	}
	return mount, fstype, opts
}

// noSpace builds the error of a file system that can't hold need bytes.
func noSpace(fd int, path string, need uint64) error {
	fi, err := fileSystem(fd, path)
	if err != nil {
		return errors.Join(&NoSpaceError{Need: need, Mount: path, Fix: "make room there"}, err)
	}
	e := &NoSpaceError{Need: need, Have: fi.free, Mount: fi.mount}
	switch fi.name {
	case "hugetlbfs":
		e.Fix = fmt.Sprintf("reserve pages: sysctl vm.nr_hugepages=%d", (need+fi.unit-1)/fi.unit)
	case "tmpfs":
		var sf unix.Statfs_t
		_ = unix.Fstatfs(fd, &sf)
		total := (sf.Blocks-min(sf.Blocks, sf.Bavail))*uint64(sf.Bsize) + need
		e.Fix = fmt.Sprintf("mount -o remount,size=%dM %s (a container: --shm-size), or choose a smaller segment",
			total>>20+1, fi.mount)
	default:
		e.Fix = "make room there, or choose a smaller segment"
	}
	return e
}
