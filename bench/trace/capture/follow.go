package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/mainzdb/mainz/bench/trace"
)

// process is what threads have in common in the trace.
type process struct {
	id       uint32
	numbered bool
}

// thread is one thread of the program, from its clone to its end.
type thread struct {
	proc     *process
	table    *table
	id       uint32
	numbered bool

	// held is the description that a dup in progress duplicates. It must not
	// end by a close in another thread before the dup is known to have worked.
	held *description
}

// doubts count what should not happen, if every descriptor was followed.
type doubts struct {
	strangers int // threads in the log that nobody made, without the first one
	taken     int // opens and dups that returned a number which had not been closed
	unopened  int // closes of a regular file that nobody had opened, of 3 and above: 0 to 2 are inherited
	renamed   int // closes that name another file than the open did
	unclosed  int // opens left at the end of the log
}

// follower walks over the steps of a log and writes the trace.
type follower struct {
	out interface{ Write(trace.Event) error }

	// regular tells whether a path that was opened is a regular file.
	regular func(path string) bool

	threads map[int]*thread // by process id, those alive
	unborn  map[int]*thread // their id is still that of another one, which is about to end
	orphans []*thread       // of clones that never returned, oldest first

	files       map[string]uint32 // their numbers in the trace
	opens       uint32            // so far, as the next two: the next number
	nextProcess uint32
	nextThread  uint32
	closes      int
	startUS     int64 // of the first open
	nowUS       int64
	doubts      doubts
}

// follow writes the opens and closes among steps to out. The paths that
// regular refuses are left out.
func follow(steps []step, out interface{ Write(trace.Event) error }, regular func(path string) bool) (doubts, error) {
	f := &follower{
		out:     out,
		regular: regular,
		threads: map[int]*thread{},
		unborn:  map[int]*thread{},
		files:   map[string]uint32{},
	}
	for i := range steps {
		if err := f.step(&steps[i]); err != nil {
			return f.doubts, err
		}
	}
	f.doubts.strangers-- // the first thread was made by strace
	err := f.end()
	return f.doubts, err
}

func (f *follower) step(s *step) error {
	f.nowUS = max(f.nowUS, s.timeUS) // the wall clock may have been set back
	switch s.kind {
	case exited:
		t := f.thread(s.pid)
		delete(f.threads, s.pid)
		if next := f.unborn[s.pid]; next != nil {
			delete(f.unborn, s.pid)
			f.threads[s.pid] = next
		}
		return f.drop(t)
	case superseded:
		leader, t := f.thread(s.pid), f.thread(s.old)
		delete(f.threads, s.old)
		f.threads[s.pid] = t
		return f.drop(leader)
	case enter:
		return f.enter(f.thread(s.pid), s.call)
	}
	return f.leave(f.thread(s.pid), s.call)
}

// thread returns the thread that now has the id pid.
func (f *follower) thread(pid int) *thread {
	if t := f.threads[pid]; t != nil {
		return t
	}
	var t *thread
	switch {
	case len(f.orphans) > 0:
		t, f.orphans = f.orphans[0], f.orphans[1:]
	default:
		t = &thread{proc: &process{}, table: newTable()}
		f.doubts.strangers++
	}
	f.threads[pid] = t
	return t
}

// enter does what calls do that have to be taken at their entry.
func (f *follower) enter(t *thread, c *call) error {
	switch c.name {
	case "close":
		return f.close(t, c)
	case "close_range":
		return f.closeRange(t, c)
	case "clone", "clone3", "fork", "vfork":
		f.clone(t, c)
	case "dup", "dup2", "dup3", "fcntl":
		if c.name == "fcntl" && !strings.HasPrefix(arg(c, 1), "F_DUPFD") {
			return nil
		}
		if s, ok := t.table.slots[number(arg(c, 0))]; ok {
			s.desc.refs++
			t.held = s.desc
		}
	}
	return nil
}

// leave does what calls do that have to be taken at their exit.
func (f *follower) leave(t *thread, c *call) error {
	switch c.name {
	case "open", "openat", "openat2", "creat":
		return f.open(t, c)
	case "dup", "dup2", "dup3":
		return f.dup(t, c, strings.Contains(arg(c, 2), "O_CLOEXEC"))
	case "fcntl":
		switch cmd := arg(c, 1); cmd {
		case "F_DUPFD", "F_DUPFD_CLOEXEC":
			return f.dup(t, c, cmd == "F_DUPFD_CLOEXEC")
		case "F_SETFD":
			setCloseOnExec(t, c, strings.Contains(arg(c, 2), "FD_CLOEXEC"))
		}
	case "ioctl":
		switch arg(c, 1) {
		case "FIOCLEX":
			setCloseOnExec(t, c, true)
		case "FIONCLEX":
			setCloseOnExec(t, c, false)
		}
	case "unshare":
		if c.ret.ok() && strings.Contains(arg(c, 0), "CLONE_FILES") {
			f.unshare(t)
		}
	case "execve", "execveat":
		return f.exec(t, c)
	}
	return nil
}

func (f *follower) open(t *thread, c *call) error {
	if !c.ret.ok() {
		return nil
	}
	if _, taken := t.table.slots[c.ret.value]; taken {
		f.doubts.taken++
	}
	if err := f.free(t, c.ret.value); err != nil {
		return err
	}
	flag, follow, closeOnExec := openFlags(c)
	if !follow || c.ret.fd.path == "" || !f.regular(c.ret.fd.path) {
		return nil
	}
	d := &description{refs: 1, open: f.opens, path: c.ret.fd.path}
	t.table.slots[c.ret.value] = slot{d, closeOnExec}
	f.opens++
	file, known := f.files[d.path]
	if !known {
		file = uint32(len(f.files))
		f.files[d.path] = file
	}
	if !t.numbered {
		if !t.proc.numbered {
			t.proc.id, t.proc.numbered = f.nextProcess, true
			f.nextProcess++
		}
		t.id, t.numbered = f.nextThread, true
		f.nextThread++
	}
	return f.write(trace.Event{
		Kind: trace.Open, Open: d.open, File: file,
		Process: t.proc.id, Thread: t.id, Mode: trace.ModeOf(flag),
	})
}

// openFlags translates strace's names. An open that gives no access to a file
// with a name is not followed.
func openFlags(c *call) (flag int, follow, closeOnExec bool) {
	var text string
	switch c.name {
	case "creat":
		return os.O_WRONLY | os.O_CREATE | os.O_TRUNC, true, false
	case "open":
		text = arg(c, 1)
	case "openat":
		text = arg(c, 2)
	case "openat2":
		_, text, _ = strings.Cut(arg(c, 2), "flags=")
		text, _, _ = strings.Cut(strings.TrimRight(text, "}"), ",")
	}
	access := false
	for name := range strings.SplitSeq(text, "|") {
		switch name {
		case "O_RDONLY":
			access = true
		case "O_WRONLY":
			access, flag = true, flag|os.O_WRONLY
		case "O_RDWR":
			access, flag = true, flag|os.O_RDWR
		case "O_CREAT":
			flag |= os.O_CREATE
		case "O_EXCL":
			flag |= os.O_EXCL
		case "O_TRUNC":
			flag |= os.O_TRUNC
		case "O_CLOEXEC":
			closeOnExec = true
		case "O_PATH", "O_DIRECTORY", "O_TMPFILE":
			return 0, false, false
		}
	}
	return flag, access, closeOnExec
}

func (f *follower) close(t *thread, c *call) error {
	// The result does not matter: Linux lets go of the descriptor even if it
	// returns an error, unless it was none.
	named, err := parseDescriptor(arg(c, 0))
	if err != nil {
		return nil // a close of -1
	}
	s, ok := t.table.slots[named.number]
	switch {
	case !ok && named.number > 2 && named.path != "" && f.regular(named.path):
		f.doubts.unopened++
	case ok && named.path != s.desc.path:
		f.doubts.renamed++
	}
	return f.free(t, named.number)
}

func (f *follower) closeRange(t *thread, c *call) error {
	if c.ret.known && c.ret.value < 0 {
		return nil
	}
	first, last := number(arg(c, 0)), number(arg(c, 1))
	if strings.Contains(arg(c, 2), "CLOSE_RANGE_UNSHARE") {
		f.unshare(t)
	}
	closeOnExec := strings.Contains(arg(c, 2), "CLOSE_RANGE_CLOEXEC")
	for _, n := range t.table.numbers() {
		switch {
		case n < first || n > last:
		case closeOnExec:
			t.table.slots[n] = slot{t.table.slots[n].desc, true}
		default:
			if err := f.free(t, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// clone makes the thread or process that a clone or fork is about to make. Its
// id is known already, as the whole log has been parsed.
func (f *follower) clone(t *thread, c *call) {
	if c.ret.known && c.ret.value < 0 {
		return
	}
	flags := strings.Join(c.args, " ")
	child := &thread{proc: t.proc, table: t.table}
	if !strings.Contains(flags, "CLONE_THREAD") {
		child.proc = &process{}
	}
	if strings.Contains(flags, "CLONE_FILES") {
		t.table.refs++
	} else {
		child.table = t.table.clone()
	}
	switch {
	case !c.ret.known:
		f.orphans = append(f.orphans, child)
	case f.threads[c.ret.value] != nil:
		f.unborn[c.ret.value] = child
	default:
		f.threads[c.ret.value] = child
	}
}

// dup installs the description that t has held since the call's entry.
func (f *follower) dup(t *thread, c *call, closeOnExec bool) error {
	held := t.held
	t.held = nil
	if !c.ret.ok() {
		return f.release(held)
	}
	n := c.ret.value
	onto := c.name == "dup2" || c.name == "dup3"
	if onto && n == number(arg(c, 0)) {
		return f.release(held) // dup2 of a descriptor onto itself
	}
	if _, taken := t.table.slots[n]; taken && !onto {
		f.doubts.taken++
	}
	if err := f.free(t, n); err != nil {
		return err
	}
	if held != nil {
		t.table.slots[n] = slot{held, closeOnExec}
	}
	return nil
}

func setCloseOnExec(t *thread, c *call, on bool) {
	n := number(arg(c, 0))
	if s, ok := t.table.slots[n]; ok && c.ret.ok() {
		t.table.slots[n] = slot{s.desc, on}
	}
}

func (f *follower) exec(t *thread, c *call) error {
	if !c.ret.ok() {
		return nil
	}
	f.unshare(t)
	for _, n := range t.table.numbers() {
		if t.table.slots[n].closeOnExec {
			if err := f.free(t, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// unshare gives t a table of its own.
func (f *follower) unshare(t *thread) {
	if t.table.refs > 1 {
		t.table.refs--
		t.table = t.table.clone()
	}
}

// free empties a number in the table of t.
func (f *follower) free(t *thread, n int) error {
	s, ok := t.table.slots[n]
	if !ok {
		return nil
	}
	delete(t.table.slots, n)
	return f.release(s.desc)
}

// release gives up one reference to d, which may be nil, and writes the close
// if it was the last one.
func (f *follower) release(d *description) error {
	if d == nil {
		return nil
	}
	if d.refs--; d.refs > 0 {
		return nil
	}
	return f.write(trace.Event{Kind: trace.Close, Open: d.open})
}

// drop ends a thread.
func (f *follower) drop(t *thread) error {
	if err := f.release(t.held); err != nil {
		return err
	}
	if t.table.refs--; t.table.refs > 0 {
		return nil
	}
	for _, n := range t.table.numbers() {
		if err := f.free(t, n); err != nil {
			return err
		}
	}
	return nil
}

// end closes what is still open.
func (f *follower) end() error {
	rest := f.orphans
	for _, m := range []map[int]*thread{f.threads, f.unborn} {
		for _, pid := range slices.Sorted(maps.Keys(m)) {
			rest = append(rest, m[pid])
		}
	}
	before := f.closes
	for _, t := range rest {
		if err := f.drop(t); err != nil {
			return err
		}
	}
	f.doubts.unclosed = f.closes - before
	return nil
}

func (f *follower) write(e trace.Event) error {
	if e.Kind == trace.Close {
		f.closes++
	} else if e.Open == 0 {
		f.startUS = f.nowUS
	}
	e.TimeUS = f.nowUS - f.startUS
	if err := f.out.Write(e); err != nil {
		return fmt.Errorf("write trace: %w", err)
	}
	return nil
}

// arg returns argument i, or "" if the call has fewer.
func arg(c *call, i int) string {
	if i >= len(c.args) {
		return ""
	}
	return c.args[i]
}

// number reads the number that a descriptor or plain argument begins with. What
// is no number, as -1, is none that a table has.
func number(s string) int {
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	n, err := strconv.Atoi(s[:end])
	if err != nil {
		return -1
	}
	return n
}
