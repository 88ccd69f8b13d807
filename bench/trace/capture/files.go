package main

import (
	"io/fs"
	"path"
	"strings"
)

// regularFiles returns a function that tells whether a path in the log is that
// of a regular file, see the comment of the command. It asks lstat about the
// paths that the log leaves open.
func regularFiles(steps []step, lstat func(string) (fs.FileInfo, error)) func(string) bool {
	known := map[string]bool{}
	directory := func(p string) {
		for {
			if regular, seen := known[p]; seen && !regular {
				return // and so its parents are known, too
			}
			known[p] = false
			p = path.Dir(p)
		}
	}
	for i := range steps {
		s := &steps[i]
		if s.kind != leave || !s.call.ret.ok() {
			continue
		}
		switch c := s.call; c.name {
		case "open", "openat", "openat2", "creat":
			p := c.ret.fd.path
			if p == "" {
				continue
			}
			directory(path.Dir(p))
			if c.name != "creat" && strings.Contains(strings.Join(c.args[1:], " "), "O_DIRECTORY") {
				directory(p)
			}
		case "getdents", "getdents64":
			if d, err := parseDescriptor(arg(c, 0)); err == nil && d.path != "" {
				directory(d.path)
			}
		}
	}
	return func(p string) bool {
		regular, seen := known[p]
		if !seen {
			info, err := lstat(unescape(p))
			regular = (err != nil || info.Mode().IsRegular()) &&
				!strings.HasPrefix(p, "/proc/") && !strings.HasPrefix(p, "/sys/")
			known[p] = regular
		}
		return regular
	}
}

// unescape undoes strace's escapes: octal ones of one to three digits, and
// those of C.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		if j := strings.IndexByte("abtnvfr", s[i]); j >= 0 {
			b.WriteByte("\a\b\t\n\v\f\r"[j])
			continue
		}
		value, digits := 0, 0
		for digits < 3 && i+digits < len(s) && '0' <= s[i+digits] && s[i+digits] <= '7' {
			value = value<<3 | int(s[i+digits]-'0')
			digits++
		}
		if digits == 0 {
			b.WriteByte(s[i]) // a quote or backslash
			continue
		}
		b.WriteByte(byte(value))
		i += digits - 1
	}
	return b.String()
}
