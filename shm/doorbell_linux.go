package shm

import (
	"fmt"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// doorbellName is the FIFO's name in a segment's directory.
const doorbellName = "doorbell"

// Doorbell is a FIFO in a segment's directory. Who sleeps on it with other file
// descriptors polls FD for reading; whoever may write the segment rings. It
// outlives all processes: the owner that was restarted finds it in the same
// place, and those who have it open ring the new owner.
//
// Every side opens it for reading and writing, which Linux allows: so opening
// never waits, and ringing while nobody listens is no error and no SIGPIPE.
type Doorbell struct {
	fd   int
	path string
	shut atomic.Bool
}

// MakeDoorbell makes the doorbell of dir, with the mode and group of cfg (0660
// if that doesn't say otherwise), unless there is one. Only the owner of the
// directory calls it.
func MakeDoorbell(dir string, cfg Config) error {
	p, err := openPlace(dir, &cfg)
	if err != nil {
		return err
	}
	defer p.close()
	if fd, err := p.openFIFO(doorbellName); err == nil {
		return unix.Close(fd)
	}
	// Under another name first: it must not be there with the wrong mode.
	const fresh = doorbellName + ".new"
	_ = unix.Unlinkat(p.fd, fresh, 0)
	if err := unix.Mknodat(p.fd, fresh, unix.S_IFIFO|0o600, 0); err != nil {
		return p.openError(err, fresh, p.file(fresh))
	}
	fd, err := p.openFIFO(fresh)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := own(fd, uint32(cfg.fileMode()), p.gid); err != nil {
		return fmt.Errorf("shm: %s: %w", p.file(fresh), err)
	}
	if err := unix.Renameat(p.fd, fresh, p.fd, doorbellName); err != nil {
		return p.openError(err, doorbellName, p.file(doorbellName))
	}
	return nil
}

// OpenDoorbell opens the doorbell of dir, for ringing or for listening.
func OpenDoorbell(dir string) (*Doorbell, error) {
	p, err := openPlace(dir, nil)
	if err != nil {
		return nil, err
	}
	defer p.close()
	fd, err := p.openFIFO(doorbellName)
	if err != nil {
		return nil, err
	}
	return &Doorbell{fd: fd, path: p.file(doorbellName)}, nil
}

// openFIFO opens a FIFO of the directory and checks whose it is.
func (p *place) openFIFO(name string) (int, error) {
	at := p.file(name)
	fd, err := unix.Openat(p.fd, name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, p.openError(err, name, at)
	}
	var st unix.Stat_t
	switch err = unix.Fstat(fd, &st); {
	case err != nil:
		err = fmt.Errorf("shm: %s: %w", at, err)
	case st.Mode&unix.S_IFMT != unix.S_IFIFO:
		err = fmt.Errorf("shm: %s: not a FIFO: %w; remove it", at, ErrCorrupt)
	case st.Mode&0o002 != 0:
		err = permissionError(at, "anybody may write it", "chmod o-w "+at)
	case !p.trusted(&st):
		err = permissionError(at, fmt.Sprintf("owned by %s, group %s", userName(st.Uid), groupName(st.Gid)),
			membership(st.Gid))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Renew opens the doorbell that is in the directory now, if that is another one
// than this: somebody deleted it and the owner has made it again, or both have been
// replaced. FD stays the same number. Others may ring at the same time.
func (d *Doorbell) Renew() error {
	if d.shut.Load() {
		return nil
	}
	same, err := sameFile(d.fd, d.path)
	if same || err != nil {
		return err
	}
	f, err := OpenDoorbell(filepath.Dir(d.path))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Dup3(f.fd, d.fd, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("shm: %s: %w", d.path, err)
	}
	return nil
}

// Keep makes the doorbell again, with the mode and group of cfg, if it is not in the
// directory any more, or another one is, and reports whether it did. Those who have
// the old one open ring it in vain until they look (Renew). Only the owner of the
// directory calls it.
func (d *Doorbell) Keep(cfg Config) (made bool, err error) {
	if same, err := sameFile(d.fd, d.path); same || err != nil {
		return false, err
	}
	if err := MakeDoorbell(filepath.Dir(d.path), cfg); err != nil {
		return false, err
	}
	return true, d.Renew()
}

// sameFile reports whether an open file is the one at the path.
func sameFile(fd int, path string) (bool, error) {
	var st, at unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("shm: %s: %w", path, err)
	}
	if err := unix.Lstat(path, &at); err != nil && err != unix.ENOENT {
		return false, fmt.Errorf("shm: %s: %w", path, err)
	} else if err != nil {
		return false, nil
	}
	return st.Ino == at.Ino && st.Dev == at.Dev, nil
}

// FD is the file descriptor to poll for reading. It belongs to the Doorbell.
func (d *Doorbell) FD() int { return d.fd }

var ding = [1]byte{1}

// Ring makes the descriptor readable until the next Drain. It never waits: a
// FIFO that is full is readable already.
func (d *Doorbell) Ring() {
	for range 16 { // a signal may come in between, but not for ever
		if _, err := unix.Write(d.fd, ding[:]); err != unix.EINTR {
			return
		}
	}
}

// Drain takes out all that was rung so far. Only who listens calls it.
func (d *Doorbell) Drain() {
	var b [512]byte
	for range 1 << 10 { // a FIFO has 64 KiB; who rings faster than we read is heard the next time
		n, err := unix.Read(d.fd, b[:])
		if err == nil && n < len(b) || err != nil && err != unix.EINTR {
			return
		}
	}
}

// Close closes the file descriptor. It is idempotent; nobody may use the
// Doorbell at the same time.
func (d *Doorbell) Close() error {
	if d.shut.Swap(true) {
		return nil
	}
	if err := unix.Close(d.fd); err != nil {
		return fmt.Errorf("shm: close %s: %w", d.path, err)
	}
	return nil
}
