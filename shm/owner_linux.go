package shm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// OwnerLock makes this process the owner of a segment's directory: the one
// that creates, replaces or serves the segment. The kernel releases it when
// the process ends, however it ends.
//
// There are two locks. That of the directory itself (flock) is the one that counts:
// nobody can delete it without the segment. That of the file owner.lock says who the
// owner is, and keeps those out who know no other.
type OwnerLock struct {
	path string
	dir  int      // the open directory
	f    *os.File // owner.lock
	gid  int
	key  fileID // of the directory
}

// owned holds the locks of this process, so that an owner can create.
var owned struct {
	sync.Mutex
	m map[fileID]bool
}

// LockOwner takes the owner lock of dir, which must exist (MakeDir). It does
// not wait: ErrInUse names the owner.
func LockOwner(dir string) (*OwnerLock, error) {
	p, err := openPlace(dir, nil)
	if err != nil {
		return nil, err
	}
	defer p.close()
	l, err := p.lockOwner()
	if err != nil {
		return nil, err
	}
	owned.Lock()
	defer owned.Unlock()
	if owned.m == nil {
		owned.m = make(map[fileID]bool)
	}
	owned.m[l.key] = true
	return l, nil
}

// Release gives the directory up. It is idempotent. The file stays: it may be another
// owner's by now.
func (l *OwnerLock) Release() error {
	if l == nil || l.f == nil {
		return nil
	}
	owned.Lock()
	delete(owned.m, l.key)
	owned.Unlock()
	f := l.f
	l.f = nil
	return errors.Join(f.Close(), unix.Close(l.dir))
}

// InPlace reports whether the directory that is owned is still the one at its path.
func (l *OwnerLock) InPlace() bool {
	var st unix.Stat_t
	return unix.Stat(l.path, &st) == nil && fileID{device: uint64(st.Dev), inode: st.Ino} == l.key
}

// Keep makes owner.lock again if somebody has deleted or replaced it, and reports
// whether it did. Only the owner's goroutine calls it.
func (l *OwnerLock) Keep() (made bool, err error) {
	if same, err := sameFile(int(l.f.Fd()), filepath.Join(l.path, lockName)); same || err != nil {
		return false, err
	}
	p, err := openPlace(l.path, nil)
	if err != nil {
		return false, err
	}
	defer p.close()
	if id, err := dirID(p.fd); err != nil || id != l.key {
		return false, fmt.Errorf("shm: %s: another directory than the one that is owned: %w", l.path, ErrInUse)
	}
	p.gid = l.gid
	f, err := p.lockFile()
	if err != nil {
		return false, err
	}
	old := l.f
	l.f = f
	return true, old.Close()
}

func dirID(fd int) (fileID, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return fileID{device: uint64(st.Dev), inode: st.Ino}, err
}

func (p *place) lockOwner() (*OwnerLock, error) {
	l := &OwnerLock{path: p.path, gid: p.gid}
	var err error
	if l.key, err = dirID(p.fd); err != nil {
		return nil, fmt.Errorf("shm: %s: %w", p.path, err)
	}
	l.dir, err = unix.Openat(p.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, p.openError(err, ".", p.path)
	}
	switch err := unix.Flock(l.dir, unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
	case unix.EWOULDBLOCK:
		_ = unix.Close(l.dir)
		return nil, p.inUse()
	case unix.EBADF, unix.EINVAL, unix.ENOLCK, unix.EOPNOTSUPP, unix.ENOSYS, unix.EISDIR:
		// A file system that locks no directories: the file has to do.
	default:
		_ = unix.Close(l.dir)
		return nil, fmt.Errorf("shm: lock %s: %w", p.path, err)
	}
	if l.f, err = p.lockFile(); err != nil {
		_ = unix.Close(l.dir)
		return nil, err
	}
	return l, nil
}

// inUse names the owner.
func (p *place) inUse() error {
	e := &InUseError{Path: p.path}
	if f, _, err := p.open(lockName, unix.O_RDONLY, 0); err == nil {
		e.PID, e.Name = lockHolder(f)
		f.Close()
	}
	return e
}

// lockFile makes owner.lock if it is not there, locks it, and writes into it who
// we are.
func (p *place) lockFile() (*os.File, error) {
	at := p.file(lockName)
	for range 16 {
		f, st, err := p.open(lockName, unix.O_RDWR|unix.O_CREAT, 0o600)
		if err != nil {
			return nil, err
		}
		lk := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
			defer f.Close()
			if err == unix.EAGAIN || err == unix.EACCES {
				e := &InUseError{Path: p.path}
				e.PID, e.Name = lockHolder(f)
				return nil, e
			}
			return nil, fmt.Errorf("shm: lock %s: %w", at, err)
		}
		// Somebody may have removed the file between our open and our lock.
		var now unix.Stat_t
		if err := unix.Fstatat(p.fd, lockName, &now, unix.AT_SYMLINK_NOFOLLOW); err != nil || now.Ino != st.Ino {
			f.Close()
			continue
		}
		if int(st.Uid) == os.Geteuid() {
			// Who is of the group may own the directory at another time.
			_ = own(int(f.Fd()), 0o660, p.gid)
		}
		_ = f.Truncate(0)
		_, _ = f.WriteAt([]byte(fmt.Sprintf("%d %s\n", os.Getpid(), program())), 0)
		return f, nil
	}
	return nil, fmt.Errorf("shm: lock %s: the file is being replaced all the time: %w; stop whoever does that", at,
		ErrInUse)
}

// lockHolder reads who wrote itself into the lock file.
func lockHolder(f *os.File) (pid int, name string) {
	b, err := io.ReadAll(io.LimitReader(f, 128))
	if err != nil {
		return 0, ""
	}
	first, rest, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	pid, err = strconv.Atoi(first)
	if err != nil || pid < 1 {
		return 0, ""
	}
	return pid, text([]byte(rest))
}

// lockForCreate is lockOwner, or nothing if this process is the owner already.
func (p *place) lockForCreate() (*OwnerLock, error) {
	if p.ours() {
		return nil, nil
	}
	return p.lockOwner()
}

// ours reports whether this process holds the owner lock.
func (p *place) ours() bool {
	id, err := dirID(p.fd)
	if err != nil {
		return false
	}
	owned.Lock()
	defer owned.Unlock()
	return owned.m[id]
}

// ownerLives reports whether somebody holds the owner lock.
func (p *place) ownerLives() bool {
	f, _, err := p.open(lockName, unix.O_RDONLY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_RDLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk)
	return err == nil && lk.Type != unix.F_UNLCK
}
