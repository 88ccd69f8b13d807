package shm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watcher tells that somebody has deleted, replaced, moved or cut a file. Stores to its
// mapping say nothing.
type watcher struct{ inotify int }

// watchFile returns nil if nothing can be told: of a file system, by a limit.
func watchFile(f *os.File) *watcher {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	// By the descriptor: the path may be another file's by now. IN_ATTRIB comes when
	// the number of links changes, IN_MODIFY when the file is cut.
	const what = unix.IN_ATTRIB | unix.IN_MODIFY | unix.IN_MOVE_SELF | unix.IN_DELETE_SELF
	if _, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), what); err != nil {
		_ = unix.Close(fd)
		return nil
	}
	return &watcher{fd}
}

func (w *watcher) fd() int {
	if w == nil {
		return -1
	}
	return w.inotify
}

// drain forgets what was told: what became of the file is to be looked at.
func (w *watcher) drain() {
	var b [4096]byte
	for range 16 {
		if n, err := unix.Read(w.inotify, b[:]); err != nil || n <= 0 {
			return
		}
	}
}

func (w *watcher) close() {
	if w != nil {
		_ = unix.Close(w.inotify)
	}
}
