package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mainzdb/mainz/ltdb"
)

// kind is a kind of error: its exit code, the name in JSON, and the next step
// if the error itself has none.
type kind struct {
	code int
	name string
	hint string
}

var (
	failure      = &kind{1, "failure", ""}
	usage        = &kind{2, "usage", "see mainz --help"}
	notRunning   = &kind{3, "not_running", "start mainzd for it; or is this not the directory of the node? see --dir and MAINZ_DIR"}
	permission   = &kind{4, "permission", ""}
	incompatible = &kind{5, "incompatible", "upgrade the side that the message names, or create the segment anew"}
	copied       = &kind{5, "incompatible", ""} // the message says what to do
	timeout      = &kind{6, "timeout", ""}
	degraded     = &kind{7, "degraded", ""}
	notFound     = &kind{8, "not_found", ""}
	noDatabase   = &kind{8, "not_found", "mainz size lists the databases; mainz put --create makes one"}
	busy         = &kind{9, "busy", "try again when the holder is done"}
	noSpace      = &kind{10, "no_space", ""} // which limit it is, and what to do, the message says
	full         = &kind{10, "no_space", "delete records; or dump them (mainz dump), and start mainzd with --wipe and a larger --size"}
	noSlots      = &kind{11, "no_slots", "end some clients (mainz stat lists them); or dump the records (mainz dump), and start mainzd with --wipe and more --slots"}
	databases    = &kind{10, "no_space", "use one of the databases that are there (mainz size lists them); or dump them, and start mainzd with --wipe and more --databases"}
)

// Kinds of their own for the next step alone.
var (
	tooBig      = &kind{1, "failure", "mainz config shows max_value, which mainzd --wipe --max-value changes; a key has 1 to 1,024 bytes"}
	wrongMode   = &kind{1, "failure", "mainz size shows the mode of each database; append --hold is for mode pieces, all else for mode kv"}
	noCondition = &kind{1, "failure", "the command line has conditions 0 to 3: see docs/conditions.md"}
)

// kinds says what an error that wraps one of these is. The first match counts.
var kinds = []struct {
	target error
	kind   *kind
}{
	{ltdb.ErrNotRunning, notRunning},
	{ltdb.ErrStale, notRunning},
	{ltdb.ErrPermission, permission},
	{ltdb.ErrIncompatible, incompatible},
	{ltdb.ErrCopied, copied},
	{ltdb.ErrCorrupt, degraded},
	{ltdb.ErrNotFound, notFound},
	{ltdb.ErrNoDatabase, noDatabase},
	{ltdb.ErrLocked, busy},
	{ltdb.ErrCondition, busy},
	{ltdb.ErrInUse, busy},
	{ltdb.ErrFull, full},
	{ltdb.ErrTooManyDatabases, databases},
	{ltdb.ErrNoSpace, noSpace},
	{ltdb.ErrNoSlots, noSlots},
	{ltdb.ErrNoHandles, noSpace},
	{ltdb.ErrTooManyLocks, noSpace},
	{context.DeadlineExceeded, timeout},
	{os.ErrDeadlineExceeded, timeout},
	{fs.ErrPermission, permission},
	{ltdb.ErrTooBig, tooBig},
	{ltdb.ErrMode, wrongMode},
	{ltdb.ErrNoCondition, noCondition},
}

// problem is an error whose kind the command itself knows, or that has a next
// step of its own.
type problem struct {
	kind *kind
	err  error
	hint string
}

func (p *problem) Error() string { return p.err.Error() }
func (p *problem) Unwrap() error { return p.err }

// classify finds an error's kind and next step.
func classify(err error) (*kind, string) {
	if p, ok := errors.AsType[*problem](err); ok {
		if p.hint == "" {
			return p.kind, p.kind.hint
		}
		return p.kind, p.hint
	}
	for _, k := range kinds {
		if errors.Is(err, k.target) {
			return k.kind, k.kind.hint
		}
	}
	return failure, failure.hint
}

// printError prints the error and returns the exit code.
func printError(w io.Writer, err error, asJSON bool) int {
	k, hint := classify(err)
	message := strings.TrimPrefix(err.Error(), "mainz: ") // the client's errors say that as well
	if asJSON {
		type body struct {
			Code    int    `json:"code"`
			Name    string `json:"name"`
			Message string `json:"message"`
			Hint    string `json:"hint"`
		}
		out := map[string]body{"error": {k.code, k.name, message, hint}}
		if newEncoder(w).Encode(out) == nil {
			return k.code
		}
	}
	fmt.Fprintln(w, "mainz:", lines(message))
	if hint != "" {
		fmt.Fprintln(w, "hint:", lines(hint))
	}
	return k.code
}

// visible returns text as a terminal may have it, quoted if it is not printable. Names
// and keys come out of a segment that any member of the group writes to.
func visible(text string) string {
	if utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return text
	}
	return strconv.Quote(text)
}

// lines is visible for each line of a message of several.
func lines(text string) string {
	all := strings.Split(text, "\n")
	for i, line := range all {
		if v := visible(strings.ReplaceAll(line, "\t", " ")); v != line {
			all[i] = v
		}
	}
	return strings.Join(all, "\n")
}
