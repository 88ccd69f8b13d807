package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// call is one system call, joined from its one or two lines.
type call struct {
	name string
	args []string
	ret  result
}

// result is what a call returned. It is not known if the thread died in the
// call, or the log ends there.
type result struct {
	known bool
	value int
	fd    descriptor // what the value refers to, if it is a descriptor
}

func (r result) ok() bool { return r.known && r.value >= 0 }

// descriptor is strace's notation for one: a number with what it refers to in
// angle brackets.
type descriptor struct {
	number int
	path   string // as strace escapes it; empty unless it refers to a path
}

// stepKind says what happens at a place in the log.
type stepKind uint8

const (
	enter      stepKind = iota // a call begins
	leave                      // a call returns
	exited                     // a thread ends
	superseded                 // a thread goes on under its leader's id, by exec
)

// step is one thing that happens, in the order of the log. A call on one line
// makes two steps.
type step struct {
	kind   stepKind
	pid    int
	old    int // the id until now, of superseded
	timeUS int64
	call   *call
}

// traced are the calls that capture wants from strace. Not every architecture
// has all of them; strace ignores names behind a question mark that it does not
// know.
var traced = []string{
	"open", "openat", "openat2", "creat",
	"close", "close_range",
	"dup", "dup2", "dup3", "fcntl", "ioctl",
	"getdents", "getdents64",
	"fork", "vfork", "clone", "clone3", "unshare",
	"execve", "execveat",
}

var errLog = errors.New("not the output of strace -f -yy -ttt")

// parse reads a log of strace -f -yy -ttt -o.
func parse(r io.Reader) ([]step, error) {
	wanted := map[string]bool{}
	for _, name := range traced {
		wanted[name] = true
	}
	type half struct {
		text string
		call *call
		exec bool // of a thread that was superseded
	}
	var steps []step
	halves := map[int]half{} // interrupted calls by thread
	in := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := in.ReadString('\n')
		if err == io.EOF && line == "" {
			break
		}
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("read log: %w", err)
		}
		pid, timeUS, text, err := splitLine(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w: %w", n, errLog, err)
		}
		add := func(k stepKind, c *call) {
			steps = append(steps, step{kind: k, pid: pid, timeUS: timeUS, call: c})
		}
		switch {
		case strings.HasPrefix(text, "+++ superseded by execve in pid "):
			old, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(text, "+++ superseded by execve in pid "), " +++"))
			if err != nil {
				return nil, fmt.Errorf("line %d: %w: %w", n, errLog, err)
			}
			// The exec goes on under the new id. That it worked is certain, and
			// strace has been seen to print a wrong result here.
			if h := halves[old]; h.call != nil {
				h.exec = true
				halves[pid] = h
			}
			delete(halves, old)
			steps = append(steps, step{kind: superseded, pid: pid, old: old, timeUS: timeUS})
		case strings.HasPrefix(text, "+++ "):
			delete(halves, pid)
			add(exited, nil)
		case strings.HasPrefix(text, "--- "): // a signal
		case strings.HasPrefix(text, "<... "):
			h := halves[pid]
			delete(halves, pid)
			_, rest, found := strings.Cut(text, " resumed>")
			if h.call == nil || !found {
				continue // a call that is not ours, or one cut off by the start of the log
			}
			if *h.call, err = parseCall(h.text + rest); err != nil {
				return nil, fmt.Errorf("line %d: %w: %w", n, errLog, err)
			}
			if h.exec {
				h.call.ret = result{known: true}
			}
			add(leave, h.call)
		default:
			name, _, found := strings.Cut(text, "(")
			if !found || !wanted[name] {
				delete(halves, pid)
				continue
			}
			c := &call{}
			first, cut := cutOff(text)
			if *c, err = parseCall(first); err != nil {
				return nil, fmt.Errorf("line %d: %w: %w", n, errLog, err)
			}
			add(enter, c)
			if cut && !c.ret.known {
				halves[pid] = half{text: first, call: c}
			} else {
				add(leave, c)
			}
		}
	}
	return steps, nil
}

// splitLine takes the thread and the time off a line.
func splitLine(line string) (pid int, timeUS int64, text string, err error) {
	first, rest, _ := strings.Cut(line, " ")
	if pid, err = strconv.Atoi(first); err != nil {
		return 0, 0, "", fmt.Errorf("no process id in %.60q", line)
	}
	stamp, text, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
	sec, frac, _ := strings.Cut(stamp, ".")
	s, err1 := strconv.ParseInt(sec, 10, 40)
	us, err2 := strconv.ParseInt(frac, 10, 32)
	if err1 != nil || err2 != nil || len(frac) != 6 || s < 0 || us < 0 {
		return 0, 0, "", fmt.Errorf("no time in microseconds in %.60q", line)
	}
	return pid, s*1e6 + us, text, nil
}

// cutOff takes the remark off a line that stops inside a call, because another
// thread had something to say or because an exec changed the thread's id.
func cutOff(text string) (first string, cut bool) {
	// Behind the remark may stand ") = ?": then the thread died in the call.
	t := strings.TrimRight(strings.TrimSuffix(text, "= ?"), " )")
	if f, ok := strings.CutSuffix(t, " <unfinished ...>"); ok {
		return f, true
	}
	if i := strings.LastIndex(t, " <pid changed to "); i >= 0 && strings.HasSuffix(t, " ...>") {
		return t[:i], true
	}
	return text, false
}

// parseCall reads name(arguments) = result. The text may end early, in the
// arguments: then the result is not known.
func parseCall(text string) (call, error) {
	name, rest, _ := strings.Cut(text, "(")
	args, rest, err := splitArgs(rest)
	if err != nil {
		return call{}, fmt.Errorf("%w in %.80q", err, text)
	}
	c := call{name: name, args: args}
	rest = strings.TrimLeft(rest, " ")
	value, ok := strings.CutPrefix(rest, "= ")
	if !ok || strings.HasPrefix(value, "?") {
		return c, nil
	}
	if strings.HasPrefix(value, "-") {
		c.ret = result{known: true, value: -1}
		return c, nil
	}
	if strings.HasPrefix(value, "0x") {
		c.ret = result{known: true} // flags of F_GETFD and F_GETFL: nobody asks
		return c, nil
	}
	d, err := parseDescriptor(value)
	if err != nil {
		return call{}, fmt.Errorf("%w in result of %.80q", err, text)
	}
	c.ret = result{known: true, value: d.number, fd: d}
	return c, nil
}

// splitArgs splits at the commas of the outermost level, up to the closing
// parenthesis, and returns what follows it. Quoted strings, and what descriptors
// refer to, are taken as they are: strace writes the characters that would end
// them as octal escapes, or behind a backslash.
func splitArgs(s string) (args []string, rest string, err error) {
	start, depth := 0, 0
	add := func(end int) {
		if a := strings.TrimSpace(s[start:end]); a != "" || len(args) > 0 {
			args = append(args, a)
		}
		start = end + 1
	}
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			n := quoted(s[i:])
			if n < 0 {
				return nil, "", errors.New("open quote")
			}
			i += n - 1
		case '<':
			// A shift, as in 1<<CAP_CHOWN, opens nothing.
			if strings.HasPrefix(s[i:], "<<") {
				i++
				continue
			}
			n := angled(s[i:])
			if n < 0 {
				return nil, "", errors.New("open angle bracket")
			}
			i += n - 1
		case '(', '[', '{':
			depth++
		case ')', ']', '}':
			if depth == 0 {
				add(i)
				return args, s[i+1:], nil
			}
			depth--
		case ',':
			if depth == 0 {
				add(i)
			}
		}
	}
	add(len(s))
	return args, "", nil
}

// quoted returns the length of the string in double quotes that s begins with.
func quoted(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// angled returns the length of the descriptor's target in angle brackets that s
// begins with. They nest (</dev/null<char 1:3>>), and a socket's has an arrow; a
// path's has none, but may end in a dash.
func angled(s string) int {
	arrows := !strings.HasPrefix(s, "</")
	depth := 0
	for i := range len(s) {
		switch s[i] {
		case '<':
			depth++
		case '>':
			if arrows && s[i-1] == '-' {
				continue
			}
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// parseDescriptor reads 3, 3</a/b>, 3</a/b>(deleted) or 3<socket:[17]>.
func parseDescriptor(s string) (descriptor, error) {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	number, err := strconv.Atoi(s[:n])
	if err != nil {
		return descriptor{}, fmt.Errorf("no number in %.40q", s)
	}
	d := descriptor{number: number}
	s = s[n:]
	if !strings.HasPrefix(s, "</") {
		return d, nil
	}
	end := angled(s)
	if end < 0 {
		return descriptor{}, errors.New("open angle bracket")
	}
	target := s[1 : end-1]
	if strings.Contains(target, "<") {
		return d, nil // a device; in a path the bracket would be escaped
	}
	d.path = target
	return d, nil
}
