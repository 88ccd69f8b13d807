package main

import (
	"fmt"
	"os"
	"path"
	"strings"
)

// skipList is the skips that are all right.
type skipList struct {
	file  string
	gates []string
	tests []testName
}

func readSkips(file string) (*skipList, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseSkips(file, string(b))
}

func parseSkips(file, content string) (*skipList, error) {
	l := &skipList{file: file}
	n := 0
	for line := range strings.Lines(content) {
		n++
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "gate" && len(f) > 2:
			l.gates = append(l.gates, f[1])
		case f[0] == "test" && len(f) > 3:
			if _, err := path.Match(f[2], ""); err != nil {
				return nil, fmt.Errorf("%s:%d: pattern %q: %w", file, n, f[2], err)
			}
			l.tests = append(l.tests, testName{strings.TrimPrefix(f[1], "./"), f[2]})
		default:
			return nil, fmt.Errorf("%s:%d: want «gate NAME REASON» or «test PACKAGE TEST REASON»", file, n)
		}
	}
	return l, nil
}

const module = "github.com/mainzdb/mainz"

// has tells whether the skip is listed. Package testenv opens the message of
// each of its skips with its own name and the gate's.
func (l *skipList) has(k skip) bool {
	for _, g := range l.gates {
		if strings.HasPrefix(k.reason, "testenv: "+g+": ") {
			return true
		}
	}
	pkg := strings.TrimPrefix(strings.TrimPrefix(k.pkg, module), "/")
	top, _, _ := strings.Cut(k.test, "/")
	for _, t := range l.tests {
		if t.pkg != pkg {
			continue
		}
		for _, test := range []string{top, k.test} {
			if ok, _ := path.Match(t.test, test); ok {
				return true
			}
		}
	}
	return false
}
