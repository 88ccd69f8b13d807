package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is one line of go test -json, as cmd/test2json documents it, with the
// lines about builds that go test adds.
type event struct {
	Action      string
	Package     string
	ImportPath  string // build-output and build-fail: what was built
	Test        string
	Output      string
	FailedBuild string // fail of a package: it was never run
}

type testName struct{ pkg, test string }

type skip struct {
	testName
	reason string
}

// summary is what the runs so far came to.
type summary struct {
	passed, failed int
	skips          []skip
	badBuilds      []string
}

// read takes in one run and prints what is to be seen at once: failures and
// the closing lines of packages. Lines that are not JSON are passed on.
func (s *summary) read(r io.Reader, w io.Writer) error {
	output := map[testName]*strings.Builder{}
	failedIn := map[string]bool{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				s.take(e, output, failedIn, w)
			} else {
				w.Write(line)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) take(e event, output map[testName]*strings.Builder, failedIn map[string]bool, w io.Writer) {
	name := testName{e.Package, e.Test}
	switch e.Action {
	case "output":
		if e.Test == "" && isClosing(e.Output) {
			io.WriteString(w, e.Output)
			return
		}
		if output[name] == nil {
			output[name] = new(strings.Builder)
		}
		output[name].WriteString(e.Output)
	case "build-output":
		io.WriteString(w, e.Output)
	case "build-fail":
		s.failed++
		s.badBuilds = append(s.badBuilds, e.ImportPath)
	case "pass":
		if e.Test != "" {
			s.passed++
		}
		delete(output, name)
	case "skip":
		if e.Test != "" {
			s.skips = append(s.skips, skip{name, reason(text(output[name]))})
		}
		delete(output, name)
	case "fail":
		if e.Test == "" {
			if !s.unended(e.Package, output, w) && !failedIn[e.Package] && e.FailedBuild == "" {
				s.failed++ // in no test at all: TestMain, or a panic outside tests
			}
			return
		}
		s.failed++
		failedIn[e.Package] = true
		fmt.Fprintf(w, "%s", text(output[name]))
		delete(output, name)
	}
}

// unended prints what is left of a package that failed: its own output, and
// that of tests that never ended because the process did. It tells whether
// there are such tests.
func (s *summary) unended(pkg string, output map[testName]*strings.Builder, w io.Writer) (some bool) {
	for _, name := range slices.SortedFunc(maps.Keys(output),
		func(a, b testName) int { return cmp.Compare(a.test, b.test) }) {
		if name.pkg != pkg {
			continue
		}
		if name.test != "" {
			some = true
			s.failed++
			fmt.Fprintf(w, "=== %s did not end\n", name.test)
		}
		io.WriteString(w, text(output[name]))
		delete(output, name)
	}
	return some
}

// report prints the end of the log, and tells whether all is well.
func (s *summary) report(w io.Writer, expected *skipList) bool {
	for _, b := range s.badBuilds {
		fmt.Fprintln(w, "does not build:", b)
	}
	unexpected := 0
	// Gates close for many tests at once: one line for each package and reason.
	type line struct{ mark, pkg, reason string }
	tests := map[line][]string{}
	for _, k := range s.skips {
		l := line{"skipped", k.pkg, k.reason}
		if expected != nil && !expected.has(k) {
			l.mark = "SKIPPED, AND NOT EXPECTED TO BE"
			unexpected++
		}
		tests[l] = append(tests[l], k.test)
	}
	for _, l := range slices.SortedFunc(maps.Keys(tests), func(a, b line) int {
		return cmp.Or(cmp.Compare(a.mark, b.mark), cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.reason, b.reason))
	}) {
		fmt.Fprintf(w, "%s: %s %s: %s\n", l.mark, l.pkg, strings.Join(tests[l], ", "), l.reason)
	}
	if unexpected > 0 {
		fmt.Fprintf(w, "%d skips are not in %s: make them run, or list them there with the reason\n", unexpected,
			expected.file)
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", s.passed, s.failed, len(s.skips))
	return s.failed == 0 && unexpected == 0
}

func text(b *strings.Builder) string {
	if b == nil {
		return ""
	}
	return b.String()
}

// isClosing tells the lines with which go test closes a package. The bare
// PASS and FAIL of the test binary say the same again.
func isClosing(line string) bool {
	return strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "FAIL\t") ||
		strings.HasPrefix(line, "?   \t") || strings.HasPrefix(line, "\t")
}

var place = regexp.MustCompile(`^\s+[\w.-]+\.go:\d+: `)

// reason is what a skipped test said last.
func reason(output string) string {
	said := ""
	for line := range strings.Lines(output) {
		if at := place.FindString(line); at != "" {
			said = strings.TrimSpace(line[len(at):])
		}
	}
	if said == "" {
		return "no reason given"
	}
	return said
}
