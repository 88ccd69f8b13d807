package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/bench/trace"
)

// recorder takes what follow writes, as text.
type recorder struct{ lines []string }

func (r *recorder) Write(e trace.Event) error {
	if e.Kind == trace.Close {
		r.lines = append(r.lines, fmt.Sprintf("%d close %d", e.TimeUS, e.Open))
		return nil
	}
	r.lines = append(r.lines, fmt.Sprintf("%d open %d: process %d, thread %d, file %d, %v",
		e.TimeUS, e.Open, e.Process, e.Thread, e.File, e.Mode))
	return nil
}

// stamp puts a time behind the process id of each line, one microsecond after
// that of the line before.
func stamp(log string) string {
	var b strings.Builder
	for i, line := range strings.Split(strings.TrimSpace(log), "\n") {
		pid, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		fmt.Fprintf(&b, "%s 1700000000.%06d %s\n", pid, i, rest)
	}
	return b.String()
}

// TestFollow gives follow hand-written logs. Files under /w are the regular
// ones; a line's time is its number in the log, counted from the first open.
func TestFollow(t *testing.T) {
	const r, w, rw = "read, deny none", "write, deny write", "read+write, deny write"
	for _, c := range []struct {
		name string
		log  string
		want string
		not  doubts // what is not right with the log
	}{
		{
			name: "open and close",
			log: `
				1 openat(AT_FDCWD</w>, "a", O_RDONLY|O_CLOEXEC) = 3</w/a>
				1 close(3</w/a>) = 0
				1 openat(AT_FDCWD</w>, "a", O_RDWR) = -1 ENOENT (No such file or directory)
				1 open("/w/b", O_WRONLY|O_CREAT, 0666) = 3</w/b>
				1 creat("/w/c", 0600) = 4</w/c>
				1 openat2(AT_FDCWD</w>, "a", {flags=O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, mode=0600, resolve=RESOLVE_NO_SYMLINKS}, 24) = 5</w/a>
				1 close(4</w/c>) = -1 EIO (Input/output error)
				1 close(3</w/b>) = 0
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 close 0
				3 open 1: process 0, thread 0, file 1, ` + w + `
				4 open 2: process 0, thread 0, file 2, write, deny all
				5 open 3: process 0, thread 0, file 0, read+write, deny all
				6 close 2
				7 close 1
				8 close 3`,
		},
		{
			name: "what is no regular file",
			log: `
				1 openat(AT_FDCWD</w>, "/dev/null", O_RDWR) = 3</dev/null<char 1:3>>
				1 openat(AT_FDCWD</w>, "/dev/sda", O_RDONLY) = 4</dev/sda<block 8:0>>
				1 openat(AT_FDCWD</w>, "d", O_RDONLY|O_DIRECTORY) = 5</w/d>
				1 openat(AT_FDCWD</w>, "a", O_RDONLY|O_PATH) = 6</w/a>
				1 openat(AT_FDCWD</w>, "/w", O_RDWR|O_TMPFILE, 0600) = 7</w/#7>(deleted)
				1 openat(AT_FDCWD</w>, "/other", O_RDONLY) = 8</other>
				1 openat(AT_FDCWD</w>, "a", O_ACCMODE) = 9</w/a>
				1 pipe2([10<pipe:[1]>, 11<pipe:[1]>], O_CLOEXEC) = 0
				1 dup2(12<TCP:[127.0.0.1:80->127.0.0.1:81]>, 13) = 13<TCP:[127.0.0.1:80->127.0.0.1:81]>
				1 close(12<TCP:[127.0.0.1:80->127.0.0.1:81]>) = 0
				1 close(3</dev/null<char 1:3>>) = 0
				1 close(-1) = -1 EBADF (Bad file descriptor)
				1 +++ exited with 0 +++`,
		},
		{
			name: "dup",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 dup(3</w/a>) = 4</w/a>
				1 close(3</w/a>) = 0
				1 dup(4</w/a>) = 3</w/a>
				1 close(4</w/a>) = 0
				1 close(3</w/a>) = 0
				1 dup(3) = -1 EBADF (Bad file descriptor)
				1 +++ exited with 0 +++`,
			want: "0 open 0: process 0, thread 0, file 0, " + r + "\n5 close 0",
		},
		{
			name: "dup2 closes what was there, but not itself",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 open("/w/b", O_RDONLY) = 4</w/b>
				1 dup2(3</w/a>, 3</w/a>) = 3</w/a>
				1 dup2(3</w/a>, 4</w/b>) = 4</w/a>
				1 dup2(1</dev/pts/0<char 136:0>>, 3</w/a>) = 3</dev/pts/0<char 136:0>>
				1 dup2(9<TCP:[127.0.0.1:80->127.0.0.1:81]>, 4</w/a>) = 4<TCP:[127.0.0.1:80->127.0.0.1:81]>
				1 open("/w/c", O_RDONLY|O_CLOEXEC) = 5</w/c>
				1 dup2(5</w/c>, 5</w/c>) = 5</w/c>
				1 execve("/bin/x", ["x"], 0x7ffc /* 2 vars */) = 0
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 open 1: process 0, thread 0, file 1, ` + r + `
				3 close 1
				5 close 0
				6 open 2: process 0, thread 0, file 2, ` + r + `
				8 close 2`,
		},
		{
			name: "fcntl dups from a number on, dup3 and others mark close-on-exec",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 open("/w/b", O_RDONLY) = 4</w/b>
				1 open("/w/c", O_RDONLY|O_CLOEXEC) = 5</w/c>
				1 fcntl(3</w/a>, F_DUPFD, 10) = 10</w/a>
				1 fcntl(3</w/a>, F_DUPFD_CLOEXEC, 10) = 11</w/a>
				1 dup3(4</w/b>, 12, O_CLOEXEC) = 12</w/b>
				1 fcntl(5</w/c>, F_DUPFD, 0) = 6</w/c>
				1 close(3</w/a>) = 0
				1 close(4</w/b>) = 0
				1 fcntl(10</w/a>, F_GETFL) = 0x8000 (flags O_RDONLY|O_LARGEFILE)
				1 execve("/no", ["no"], 0x7ffc /* 2 vars */) = -1 ENOENT (No such file or directory)
				1 execve("/bin/x", ["x", "a, b)"], 0x7ffc /* 2 vars */) = 0
				1 close(10</w/a>) = 0
				1 close(6</w/c>) = 0
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 open 1: process 0, thread 0, file 1, ` + r + `
				2 open 2: process 0, thread 0, file 2, ` + r + `
				11 close 1
				12 close 0
				13 close 2`,
		},
		{
			name: "close-on-exec set and unset later",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 open("/w/b", O_RDONLY) = 4</w/b>
				1 open("/w/c", O_RDONLY|O_CLOEXEC) = 5</w/c>
				1 open("/w/d", O_RDONLY|O_CLOEXEC) = 6</w/d>
				1 fcntl(3</w/a>, F_SETFD, FD_CLOEXEC) = 0
				1 ioctl(4</w/b>, FIOCLEX) = 0
				1 ioctl(5</w/c>, FIONCLEX) = 0
				1 fcntl(6</w/d>, F_SETFD, 0) = 0
				1 execve("/bin/x", ["x"], 0x7ffc /* 2 vars */) = 0
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 open 1: process 0, thread 0, file 1, ` + r + `
				2 open 2: process 0, thread 0, file 2, ` + r + `
				3 open 3: process 0, thread 0, file 3, ` + r + `
				8 close 0
				8 close 1
				9 close 2
				9 close 3`,
		},
		{
			name: "fork copies the table",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 open("/w/b", O_RDONLY) = 4</w/b>
				1 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x7f) = 2
				2 close(3</w/a>) = 0
				2 open("/w/a", O_RDWR) = 3</w/a>
				1 close(3</w/a>) = 0
				1 close(4</w/b>) = 0
				2 +++ exited with 0 +++
				1 fork() = -1 EAGAIN (Resource temporarily unavailable)
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 open 1: process 0, thread 0, file 1, ` + r + `
				4 open 2: process 1, thread 1, file 0, ` + rw + `
				5 close 0
				7 close 2
				7 close 1`,
		},
		{
			name: "vfork, the child's lines come before the return",
			log: `
				1 open("/w/a", O_RDONLY|O_CLOEXEC) = 3</w/a>
				1 vfork( <unfinished ...>
				2 dup2(3</w/a>, 0</dev/null<char 1:3>>) = 0</w/a>
				2 execve("/bin/x", ["x"], 0x7ffc /* 2 vars */ <unfinished ...>
				1 <... vfork resumed>) = 2
				1 close(3</w/a> <unfinished ...>
				2 <... execve resumed>) = 0
				1 <... close resumed>) = 0
				2 close(0</w/a>) = 0
				2 +++ exited with 0 +++
				1 +++ exited with 0 +++`,
			want: "0 open 0: process 0, thread 0, file 0, " + r + "\n8 close 0",
		},
		{
			name: "clone for a new program, with pidfd",
			log: `
				1 open("/w/a", O_RDONLY|O_CLOEXEC) = 3</w/a>
				1 clone(child_stack=NULL, flags=CLONE_VM|CLONE_PIDFD|CLONE_VFORK|SIGCHLD <unfinished ...>
				2 execve("/bin/x", ["x"], 0x7ffc /* 2 vars */) = 0
				1 <... clone resumed>, parent_tid=[12<pid:2>]) = 2
				2 open("/w/a", O_RDONLY) = 3</w/a>
				1 +++ exited with 0 +++
				2 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				4 open 1: process 1, thread 1, file 0, ` + r + `
				5 close 0
				6 close 1`,
		},
		{
			name: "threads share the table",
			log: `
				1 clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD|CLONE_SYSVSEM, exit_signal=0, stack=0x7f, stack_size=0x80} => {parent_tid=[2]}, 88) = 2
				2 open("/w/a", O_RDONLY) = 3</w/a>
				1 open("/w/b", O_RDONLY) = 4</w/b>
				1 close(3</w/a>) = 0
				1 +++ exited with 0 +++
				2 close(4</w/b>) = 0
				2 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 open 1: process 0, thread 1, file 1, ` + r + `
				2 close 0
				4 close 1`,
		},
		{
			name: "processes that share the table",
			log: `
				1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|SIGCHLD) = 2
				2 open("/w/a", O_RDONLY) = 3</w/a>
				2 +++ exited with 0 +++
				1 close(3</w/a>) = 0
				1 +++ exited with 0 +++`,
			want: "0 open 0: process 0, thread 0, file 0, " + r + "\n2 close 0",
		},
		{
			name: "a number is used again before close returns",
			log: `
				1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 2
				1 openat(AT_FDCWD</w>, "a", O_RDONLY <unfinished ...>
				1 <... openat resumed>) = 3</w/a>
				1 close(3</w/a> <unfinished ...>
				2 openat(AT_FDCWD</w>, "b", O_WRONLY <unfinished ...>
				2 <... openat resumed>) = 3</w/b>
				1 <... close resumed>) = 0
				2 close(3</w/b>) = 0
				1 +++ exited with 0 +++
				2 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 close 0
				3 open 1: process 0, thread 1, file 1, ` + w + `
				5 close 1`,
		},
		{
			name: "a dup holds what another thread closes meanwhile",
			log: `
				1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 2
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 open("/w/b", O_RDONLY) = 4</w/b>
				1 dup(3</w/a> <unfinished ...>
				2 close(3</w/a>) = 0
				1 <... dup resumed>) = 5</w/a>
				1 close(5</w/a>) = 0
				1 dup(4</w/b> <unfinished ...>
				2 close(4</w/b>) = 0
				1 <... dup resumed>) = -1 EBADF (Bad file descriptor)
				1 +++ exited with 0 +++
				2 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 open 1: process 0, thread 0, file 1, ` + r + `
				5 close 0
				8 close 1`,
		},
		{
			name: "exec ends the sharing of the table",
			log: `
				1 open("/w/a", O_RDONLY|O_CLOEXEC) = 3</w/a>
				1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|SIGCHLD) = 2
				2 execve("/bin/x", ["x"], 0x7ffc /* 2 vars */) = 0
				2 open("/w/b", O_RDONLY) = 3</w/b>
				1 close(3</w/a>) = 0
				1 +++ exited with 0 +++
				2 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				3 open 1: process 1, thread 1, file 1, ` + r + `
				4 close 0
				6 close 1`,
		},
		{
			name: "exec by a thread that is not the leader",
			log: `
				1 open("/w/a", O_RDONLY|O_CLOEXEC) = 3</w/a>
				1 open("/w/b", O_RDONLY) = 4</w/b>
				1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 2
				1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 3
				2 execve("/bin/x", ["x"], 0x7ffc /* 2 vars */ <pid changed to 1 ...>
				3 +++ exited with 0 +++
				1 +++ superseded by execve in pid 2 +++
				1 <... execve resumed>) = 0
				1 open("/w/c", O_RDONLY) = 3</w/c>
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 open 1: process 0, thread 0, file 1, ` + r + `
				7 close 0
				8 open 2: process 0, thread 1, file 2, ` + r + `
				9 close 2
				9 close 1`,
		},
		{
			name: "the same, with a result that strace got wrong",
			log: `
				1 open("/w/a", O_RDONLY|O_CLOEXEC) = 3</w/a>
				1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 2
				2 execve("/bin/x", ["x"], 0x7ffc /* 2 vars */ <pid changed to 1 ...>
				1 +++ superseded by execve in pid 2 +++
				1 <... execve resumed>) = -1 (errno 18446744073709551359)
				1 +++ exited with 0 +++`,
			want: "0 open 0: process 0, thread 0, file 0, " + r + "\n4 close 0",
		},
		{
			name: "close_range",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 open("/w/b", O_RDONLY) = 4</w/b>
				1 open("/w/c", O_RDONLY) = 5</w/c>
				1 open("/w/d", O_RDONLY) = 6</w/d>
				1 close_range(4, 5, 0) = 0
				1 close_range(7, 6, 0) = -1 EINVAL (Invalid argument)
				1 close_range(6, 4294967295, CLOSE_RANGE_CLOEXEC) = 0
				1 execve("/bin/x", ["x"], 0x7ffc /* 2 vars */) = 0
				1 close_range(3, 4294967295, 0) = 0
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 open 1: process 0, thread 0, file 1, ` + r + `
				2 open 2: process 0, thread 0, file 2, ` + r + `
				3 open 3: process 0, thread 0, file 3, ` + r + `
				4 close 1
				4 close 2
				7 close 3
				8 close 0`,
		},
		{
			name: "tables that are no longer shared",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 2
				1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 3
				2 unshare(CLONE_FS|CLONE_FILES) = 0
				3 close_range(3, 4294967295, CLOSE_RANGE_UNSHARE) = 0
				1 close(3</w/a>) = 0
				1 open("/w/b", O_RDONLY) = 3</w/b>
				2 close(3</w/a>) = 0
				2 +++ exited with 0 +++
				3 +++ exited with 0 +++
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				6 open 1: process 0, thread 0, file 1, ` + r + `
				7 close 0
				10 close 1`,
		},
		{
			name: "exit and death close everything, with the last thread",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 clone(child_stack=0x7f, flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 2
				1 fork() = 3
				3 open("/w/b", O_RDWR) = 4</w/b>
				3 --- SIGSEGV {si_signo=SIGSEGV, si_code=SI_TKILL, si_pid=3, si_uid=0} ---
				3 +++ killed by SIGSEGV (core dumped) +++
				1 openat(AT_FDCWD</w>, "c", O_RDONLY <unfinished ...>
				2 exit_group(0) = ?
				1 <... openat resumed> <unfinished ...>) = ?
				1 +++ exited with 0 +++
				2 ???( <unfinished ...>
				2 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				3 open 1: process 1, thread 1, file 1, ` + rw + `
				5 close 1
				11 close 0`,
		},
		{
			name: "death inside of calls",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 fork() = 2
				1 fork() = 3
				1 close(3</w/a>) = 0
				2 dup(3</w/a> <unfinished ...>
				2 +++ killed by SIGKILL +++
				3 close(3</w/a> <unfinished ...>
				3 +++ killed by SIGKILL +++
				1 +++ exited with 0 +++`,
			want: "0 open 0: process 0, thread 0, file 0, " + r + "\n6 close 0",
		},
		{
			name: "process ids are used again",
			log: `
				1 fork() = 2
				2 open("/w/a", O_RDONLY) = 3</w/a>
				2 +++ exited with 0 +++
				1 fork() = 2
				2 open("/w/a", O_RDONLY) = 3</w/a>
				1 fork( <unfinished ...>
				2 +++ exited with 0 +++
				1 <... fork resumed>) = 2
				2 open("/w/a", O_RDONLY) = 3</w/a>
				2 +++ exited with 0 +++
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 close 0
				3 open 1: process 1, thread 1, file 0, ` + r + `
				5 close 1
				7 open 2: process 2, thread 2, file 0, ` + r + `
				8 close 2`,
		},
		{
			name: "a clone that never returns",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 clone(child_stack=NULL, flags=SIGCHLD <unfinished ...>
				1 +++ killed by SIGKILL +++
				2 close(3</w/a>) = 0
				2 +++ exited with 0 +++`,
			want: "0 open 0: process 0, thread 0, file 0, " + r + "\n3 close 0",
		},
		{
			name: "a log that is cut off",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 fork() = 2
				2 open("/w/b", O_RDONLY) = 4</w/b>
				2 close(4</w/b> <unfinished ...>
				1 open("/w/c", O_RDONLY <unfinished ...>`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				2 open 1: process 1, thread 1, file 1, ` + r + `
				3 close 1
				4 close 0`,
			not: doubts{unclosed: 1},
		},
		{
			name: "names are escaped",
			log: `
				1 openat(AT_FDCWD</w>, "a<b>\"), c", O_RDONLY) = 3</w/a\74b\76\"), c>
				1 close(3</w/a\74b\76\"), c>(deleted)) = 0
				1 openat(AT_FDCWD</w/->, "passwd-", O_RDONLY) = 3</w/-/passwd->
				1 dup2(3</w/-/passwd->, 4</w/->) = 4</w/-/passwd->
				1 close(3</w/-/passwd->) = 0
				1 close(4</w/-/passwd->) = 0
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 close 0
				2 open 1: process 0, thread 0, file 1, ` + r + `
				5 close 1`,
		},
		{
			name: "what should not happen is counted",
			log: `
				1 open("/w/a", O_RDONLY) = 3</w/a>
				1 open("/w/b", O_RDONLY) = 3</w/b>
				1 dup(3</w/b>) = 3</w/b>
				1 close(4</w/c>) = 0
				1 close(2</w/inherited>) = 0
				1 close(3</w/renamed>) = 0
				9 open("/w/b", O_RDONLY) = 3</w/b>
				9 +++ exited with 0 +++
				1 +++ exited with 0 +++`,
			want: `
				0 open 0: process 0, thread 0, file 0, ` + r + `
				1 close 0
				1 open 1: process 0, thread 0, file 1, ` + r + `
				5 close 1
				6 open 2: process 1, thread 1, file 1, ` + r + `
				7 close 2`,
			not: doubts{strangers: 1, taken: 2, unopened: 1, renamed: 1},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			steps, err := parse(strings.NewReader(stamp(c.log)))
			if err != nil {
				t.Fatal(err)
			}
			var got recorder
			not, err := follow(steps, &got, func(p string) bool { return strings.HasPrefix(p, "/w/") })
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for line := range strings.SplitSeq(c.want, "\n") {
				if line = strings.TrimSpace(line); line != "" {
					want = append(want, line)
				}
			}
			if g, w := strings.Join(got.lines, "\n"), strings.Join(want, "\n"); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
			if not != c.not {
				t.Errorf("doubts %+v, want %+v", not, c.not)
			}
		})
	}
}

func TestFollowClockSetBack(t *testing.T) {
	const log = `1 1700000005.000100 open("/w/a", O_RDONLY) = 3</w/a>
1     1700000004.000000 open("/w/b", O_RDONLY) = 4</w/b>
1 1700000006.000101 +++ exited with 0 +++
`
	steps, err := parse(strings.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	var got recorder
	if _, err := follow(steps, &got, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	want := "0 open 0: process 0, thread 0, file 0, read, deny none\n" +
		"0 open 1: process 0, thread 0, file 1, read, deny none\n" +
		"1000001 close 0\n1000001 close 1"
	if g := strings.Join(got.lines, "\n"); g != want {
		t.Errorf("got\n%s\nwant\n%s", g, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, log, want string }{
		{"no process id", "openat(AT_FDCWD, \"a\", O_RDONLY) = 3\n", "line 1"},
		{"no time", "1 17.000000 fork() = 2\n1 close(3) = 0\n", "line 2"},
		{"time of -tt", "1 12:00:00.123456 close(3) = 0\n", "no time in microseconds"},
		{"time of -ttt in ns", "1 17.123456789 close(3) = 0\n", "no time in microseconds"},
		{"open quote", "1 17.000000 open(\"a\n", "open quote"},
		{"open bracket", "1 17.000000 close(3</a\n", "open angle bracket"},
		{"result", "1 17.000000 close(3) = zero\n", "result"},
		{"superseded", "1 17.000000 +++ superseded by execve in pid x +++\n", "line 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(strings.NewReader(c.log))
			if !errors.Is(err, errLog) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

type fakeInfo struct {
	fs.FileInfo
	mode fs.FileMode
}

func (i fakeInfo) Mode() fs.FileMode { return i.mode }

func TestRegularFiles(t *testing.T) {
	steps, err := parse(strings.NewReader(stamp(`
		1 open("/w/a/file", O_RDONLY) = 3</w/a/file>
		1 open("/w/b", O_RDONLY|O_DIRECTORY) = 4</w/b>
		1 open("/w/c", O_RDONLY) = 5</w/c>
		1 getdents64(5</w/c>, 0x7f /* 3 entries */, 32768) = 80
		1 getdents64(5</w/c>, 0x7f /* 0 entries */, 32768) = 0`)))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]fs.FileMode{
		"/w/kept":     0o644,
		"/w/fifo":     fs.ModeNamedPipe,
		"/w/dir":      fs.ModeDir,
		"/w/<odd>":    fs.ModeNamedPipe,
		"/proc/7/fd":  0o444,
		"/sys/kernel": 0o444,
	}
	regular := regularFiles(steps, func(p string) (fs.FileInfo, error) {
		if mode, ok := there[p]; ok {
			return fakeInfo{mode: mode}, nil
		}
		return nil, os.ErrNotExist
	})
	for p, want := range map[string]bool{
		"/w/a/file": true, "/w/gone": true, "/w/kept": true,
		"/": false, "/w": false, "/w/a": false, "/w/b": false, "/w/c": false,
		"/w/fifo": false, "/w/dir": false, `/w/\74odd\76`: false,
		"/proc/7/fd": false, "/sys/kernel": false,
	} {
		for range 2 { // the answer is kept
			if got := regular(p); got != want {
				t.Errorf("regular(%q) = %v", p, got)
			}
		}
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		`plain`:         "plain",
		`a\74b\76`:      "a<b>",
		`\303\251\0x`:   "\u00e9\x00x",
		`\0011`:         "\x011",
		`tab\tnl\n\"\\`: "tab\tnl\n\"\\",
		`end\`:          `end\`,
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzLog: whatever a log says, it is refused, or becomes a valid trace.
func FuzzLog(f *testing.F) {
	f.Add("1 17.000000 open(\"/w/a\", O_RDONLY) = 3</w/a>\n1 17.000001 fork( <unfinished ...>\n" +
		"2 17.000002 dup2(3</w/a>, 4) = 4</w/a>\n1 17.000003 <... fork resumed>) = 2\n1 17.000004 +++ superseded by execve in pid 2 +++\n")
	f.Add("1 17.000000 clone(flags=CLONE_FILES|CLONE_THREAD) = 1\n1 17.000000 open(\"/w/a\", O_RDWR) = 3</w/a>\n" +
		"1 17.000001 +++ superseded by execve in pid 1 +++\n1 17.000001 close_range(3, 9, CLOSE_RANGE_UNSHARE) = 0\n1 17.000009 +++ exited with 0 +++\n")
	f.Fuzz(func(t *testing.T, log string) {
		steps, err := parse(strings.NewReader(log))
		if err != nil {
			return
		}
		var sink discard
		w, err := trace.NewWriter(sink)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := follow(steps, w, func(string) bool { return true }); err != nil {
			if strings.Contains(err.Error(), "beyond the limit") {
				return // a log of years is refused, too
			}
			t.Fatal(err)
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
	})
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
