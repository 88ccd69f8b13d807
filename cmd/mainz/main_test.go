package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz/daemon"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"mainz": main, "mainzd": func() { daemon.Main() }})
}

// Each script in testdata is a test; those in testdata/ramdisk get a directory
// of their own there, $RAMDISK.
func TestScripts(t *testing.T) { runScripts(t, "testdata", "") }

func TestRamdiskScripts(t *testing.T) {
	testenv.Need(t, testenv.NoRace)
	runScripts(t, "testdata/ramdisk", testenv.ShmDir(t))
}

// A node with its daemon.
func TestNodeScripts(t *testing.T) {
	testenv.Need(t, testenv.NoRace)
	runScripts(t, "testdata/node", testenv.ShmDir(t))
}

// Both ends of a ring spin.
func TestRingScripts(t *testing.T) {
	testenv.Need(t, testenv.NoRace, testenv.TwoCPUs)
	runScripts(t, "testdata/ring", testenv.ShmDir(t))
}

func runScripts(t *testing.T, dir, ramdisk string) {
	testscript.Run(t, testscript.Params{
		Dir: dir,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":    exits,
			"json":     checkJSON,
			"awaits":   awaits,
			"fill":     fill,
			"leftover": leftover,
			"signal":   signalTo,
			"until":    until,
		},
		Setup: func(e *testscript.Env) error {
			if ramdisk == "" {
				return nil
			}
			dir := filepath.Join(ramdisk, filepath.Base(e.WorkDir)) // scripts run side by side
			e.Setenv("RAMDISK", dir)
			return os.Mkdir(dir, 0o700)
		},
	})
}

// exits CODE COMMAND...: runs the command, which has to end with that code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	got := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit interface{ ExitCode() int }
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = fmt.Sprint(exit.ExitCode())
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// until COMMAND...: runs the command again and again until it succeeds, for a
// minute at most.
func until(ts *testscript.TestScript, _ bool, args []string) {
	for limit := time.Now().Add(time.Minute); ts.Exec(args[0], args[1:]...) != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			ts.Fatalf("%v does not succeed", args)
		}
	}
}

// awaits CODE COMMAND...: runs the command again and again until it ends with that
// code, for a minute at most.
func awaits(ts *testscript.TestScript, _ bool, args []string) {
	for limit := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		got := "0"
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			var exit interface{ ExitCode() int }
			if errors.As(err, &exit) {
				got = fmt.Sprint(exit.ExitCode())
			}
		}
		if got == args[0] {
			return
		}
		if time.Now().After(limit) {
			ts.Fatalf("%v ends with %s, not with %s", args[1:], got, args[0])
		}
	}
}

// fill DATABASE: stores values until one is refused.
func fill(ts *testscript.TestScript, _ bool, args []string) {
	value := strings.Repeat("x", 100_000)
	for i := range 10_000 {
		if ts.Exec("mainz", "put", "--create", args[0], fmt.Sprint("key ", i), value) != nil {
			return
		}
	}
	ts.Fatalf("it is never full")
}

// signals are those of this system.
var signals = map[string]os.Signal{}

// signal STOP|CONT FILE: sends a signal to the process whose pid the JSON in FILE has.
func signalTo(ts *testscript.TestScript, _ bool, args []string) {
	var doc struct {
		PID int `json:"pid"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &doc))
	if doc.PID <= 1 {
		ts.Fatalf("there is no pid")
	}
	p, err := os.FindProcess(doc.PID)
	ts.Check(err)
	ts.Check(p.Signal(signals[args[0]]))
}

// json FILE PATH VALUE [PATH VALUE]...: FILE (stdout or stderr, too) is one
// JSON value that has these; a path is names joined by dots. A value of "*" is
// any but zero, "+" any number above it, and "?" any at all.
func checkJSON(ts *testscript.TestScript, _ bool, args []string) {
	if len(args)%2 != 1 {
		ts.Fatalf("usage: json FILE PATH VALUE...")
	}
	var doc any
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	dec.UseNumber()
	if err := dec.Decode(&doc); err != nil {
		ts.Fatalf("%s is not JSON: %v", args[0], err)
	}
	if dec.More() {
		ts.Fatalf("%s has more than one value", args[0])
	}
	for args = args[1:]; len(args) > 0; args = args[2:] {
		v := doc
		for name := range strings.SplitSeq(args[0], ".") {
			m, _ := v.(map[string]any) // nil has no fields, too
			field, ok := m[name]
			if !ok {
				ts.Fatalf("there is no %s", args[0])
			}
			v = field
		}
		got, want := fmt.Sprint(v), args[1]
		ok := got == want
		switch want {
		case "?":
			ok = true
		case "*":
			ok = got != "" && got != "0"
		case "+":
			n, isNumber := v.(json.Number)
			f, err := n.Float64()
			ok = isNumber && err == nil && f > 0
		}
		if !ok {
			ts.Fatalf("%s is %s, want %s", args[0], got, want)
		}
	}
}

// leftover DIR fails if the directory is not empty.
func leftover(ts *testscript.TestScript, _ bool, args []string) {
	entries, err := os.ReadDir(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(entries) > 0 {
		ts.Fatalf("left over: %v", entries)
	}
}

// Everybody finds his way from --help.
func TestEveryCommandHasHelpAndExamples(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Name() == "help" || cmd.Name() == "completion" {
			return // cobra's own
		}
		if cmd.Hidden {
			return // nobody calls it by hand
		}
		if cmd.Short == "" || cmd.Runnable() && cmd.Example == "" {
			t.Errorf("%s: no short help, or no example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Example) {
			if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "mainz ") {
				t.Errorf("%s: example %q does not call mainz", cmd.CommandPath(), line)
			}
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(rootCommand(func() {}))
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		kind *kind
	}{
		{ltdb.ErrNotRunning, notRunning},
		{fmt.Errorf("open: %w", ltdb.ErrStale), notRunning},
		{ltdb.ErrPermission, permission},
		{fs.ErrPermission, permission},
		{ltdb.ErrIncompatible, incompatible},
		{context.DeadlineExceeded, timeout},
		{ltdb.ErrCorrupt, degraded},
		{ltdb.ErrNotFound, notFound},
		{ltdb.ErrNoDatabase, noDatabase},
		{ltdb.ErrLocked, busy},
		{ltdb.ErrInUse, busy},
		{ltdb.ErrNoSpace, noSpace},
		{ltdb.ErrFull, full},
		{ltdb.ErrNoSlots, noSlots},
		{fmt.Errorf("open: %w", ltdb.ErrTooManyDatabases), databases},
		{ltdb.ErrTooBig, tooBig},
		{ltdb.ErrMode, wrongMode},
		{errors.Join(ltdb.ErrNoSpace, errors.New("and more")), noSpace},
		{errors.New("anything"), failure},
		{fmt.Errorf("demo: %w", &problem{kind: degraded, err: ltdb.ErrNotFound}), degraded},
	} {
		if k, _ := classify(c.err); k != c.kind {
			t.Errorf("%v is %s, want %s", c.err, k.name, c.kind.name)
		}
	}
	if _, hint := classify(&problem{kind: usage, err: errors.New("x"), hint: "do y"}); hint != "do y" {
		t.Errorf("the error's own hint became %q", hint)
	}
}

func TestPrintError(t *testing.T) {
	err := &problem{kind: busy, err: errors.New("lock is held"), hint: "wait"}
	var b strings.Builder
	if code := printError(&b, err, true); code != 9 {
		t.Errorf("code %d", code)
	}
	var got map[string]map[string]any
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]any{"error": {"code": 9.0, "name": "busy", "message": "lock is held", "hint": "wait"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	b.Reset()
	if printError(&b, err, false); b.String() != "mainz: lock is held\nhint: wait\n" {
		t.Errorf("got %q", b.String())
	}
	b.Reset()
	if code := printError(&b, fmt.Errorf("mainz: database \"x\": %w", ltdb.ErrNoDatabase), false); code != 8 ||
		!strings.HasPrefix(b.String(), "mainz: database \"x\": ") || !strings.Contains(b.String(), "\nhint: ") {
		t.Errorf("code %d, %q", code, b.String())
	}
}

func TestWantsJSON(t *testing.T) {
	for args, want := range map[string]bool{
		"":                      false,
		"demo -o json":          true,
		"demo -ojson --bad":     true,
		"--output=json demo":    true,
		"--output json":         true,
		"-o=json":               true,
		"-o table":              false,
		"-o json -o table":      false,
		"demo -- -o json":       false,
		"demo --bad -o":         false,
		"demo --seconds 3 json": false,
	} {
		if got := wantsJSON(strings.Fields(args)); got != want {
			t.Errorf("%q: %v", args, got)
		}
	}
}

func TestProgressLine(t *testing.T) {
	var b strings.Builder
	l := newProgressLine(&b)
	l.print("one", false)
	l.print("too soon", false)
	l.print("news", true)
	l.end()
	if want := "one\nnews\n"; b.String() != want {
		t.Errorf("in a file: %q, want %q", b.String(), want)
	}

	b.Reset()
	l = &progressLine{w: &b, terminal: true}
	l.print("longer", false)
	l.print("news", true)
	l.end()
	if want := "\rlonger\rnews  \n"; b.String() != want {
		t.Errorf("on a terminal: %q, want %q", b.String(), want)
	}
	(*progressLine)(nil).end()
}

// Nothing is no name of a directory, least of all of the working directory.
func TestEmptyDir(t *testing.T) {
	for _, args := range [][]string{{"status", "--dir", ""}, {"get", "--dir=", "db", "key"}} {
		var stderr strings.Builder
		if code := run(args, strings.NewReader(""), io.Discard, &stderr); code != 2 ||
			!strings.Contains(stderr.String(), "directory is empty") {
			t.Errorf("%q: code %d, %s", args, code, stderr.String())
		}
	}
	t.Setenv("MAINZ_DIR", "")
	var stderr strings.Builder
	if code := run([]string{"size"}, strings.NewReader(""), io.Discard, &stderr); code != 2 ||
		!strings.Contains(stderr.String(), "MAINZ_DIR") {
		t.Errorf("code %d, %s", code, stderr.String())
	}
}
