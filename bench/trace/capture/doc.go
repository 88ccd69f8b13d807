// Capture runs a program under strace and writes its opens and closes of
// regular files as a trace, in the format of package trace.
//
//	capture -o FILE [-log LOG] PROGRAM [ARGUMENT...]
//	capture -o FILE -from LOG
//	capture -stat FILE
//
// The first form captures; -log keeps the output of strace, which names paths
// of the machine and is else a temporary file that is removed. The second form
// reads such a log again. The third form prints the figures of a trace.
//
// # How descriptors are followed
//
// The log is read as a whole and taken in two steps. First parse joins the
// halves of interrupted lines, so that every call is known with its result
// before anything is decided. Then follow walks over the entries and exits of
// the calls in the order of the log and keeps, as the kernel does, tables of
// descriptors that refer to open file descriptions:
//
//   - open, openat, openat2 and creat make a description when they return;
//     dup, dup2, dup3, F_DUPFD and F_DUPFD_CLOEXEC add a descriptor to it;
//   - close and close_range take effect when they are entered, since another
//     thread may get the same number before they return;
//   - clone, clone3, fork and vfork share the table with CLONE_FILES and else
//     copy it, when they are entered: the child's first lines may stand before
//     the parent's return. unshare and CLOSE_RANGE_UNSHARE copy it, too;
//   - execve ends the sharing of the table and closes what is close-on-exec
//     (O_CLOEXEC, F_SETFD, FIOCLEX, CLOSE_RANGE_CLOEXEC). If another thread
//     than the leader did it, it goes on under the leader's process id;
//   - the end of a thread, by exit or signal, drops its reference to the table,
//     and the last one closes everything in it;
//   - process ids are used again, so a thread is known by its id from its
//     clone to its end only.
//
// An open ends when the last descriptor of its description goes. What is open
// when the log ends is closed then; if the program ran to its end that is
// nothing.
//
// Not followed: descriptors sent over sockets, pidfd_getfd, io_uring,
// open_by_handle_at, and descriptors that the program inherited. The figures
// that capture prints at its end show whether any of it mattered: an open that
// returns a number which should still be taken, and a close of a regular file
// that nobody has opened, or that names another file than its open did.
//
// # Which files are regular
//
// strace -yy says what a descriptor refers to: sockets, pipes, devices and
// anonymous inodes are told from paths there. Of the paths, those count as
// directories that were opened with O_DIRECTORY, read with getdents64, or are
// the parent of another path in the log. Files of /proc and /sys are left out:
// they are the kernel's, not stored ones. What is left is looked up after the
// program has ended, and dropped if it is there and not a regular file (a named
// FIFO, say); a path that is gone by then counts as a regular file. Opens with
// O_PATH give no access and are left out, and so are O_TMPFILE ones: these files
// have no name under which anybody could meet them.
//
// A file is its path with symbolic links resolved, as the kernel shows it right
// after the open. It is not followed through rename or unlink.
package main
