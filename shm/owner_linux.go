package shm

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// OwnerLock makes this process the owner of a segment's directory: the one
// that creates, replaces or serves the segment. The kernel releases it when
// the process ends, however it ends.
type OwnerLock struct {
	f   *os.File
	key [2]uint64 // device and inode
}

// owned holds the locks of this process, so that an owner can create.
var owned struct {
	sync.Mutex
	m map[[2]uint64]bool
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
		owned.m = make(map[[2]uint64]bool)
	}
	owned.m[l.key] = true
	return l, nil
}

// Release gives the directory up. It is idempotent.
func (l *OwnerLock) Release() error {
	if l == nil || l.f == nil {
		return nil
	}
	owned.Lock()
	delete(owned.m, l.key)
	owned.Unlock()
	f := l.f
	l.f = nil
	return f.Close()
}

func (p *place) lockOwner() (*OwnerLock, error) {
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
		return &OwnerLock{f: f, key: [2]uint64{uint64(st.Dev), st.Ino}}, nil
	}
	return nil, fmt.Errorf("shm: lock %s: the file is being replaced all the time: %w; stop whoever does that", at, ErrInUse)
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
	var st unix.Stat_t
	if unix.Fstatat(p.fd, lockName, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		owned.Lock()
		mine := owned.m[[2]uint64{uint64(st.Dev), st.Ino}]
		owned.Unlock()
		if mine {
			return nil, nil
		}
	}
	return p.lockOwner()
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
