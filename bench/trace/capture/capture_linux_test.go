package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mainzdb/mainz/bench/trace"
)

// The test binary is also the program that is captured: the variable holds the
// part to play, and the directory to play it in.
const roleVariable = "CAPTURE_TEST_ROLE"

func TestMain(m *testing.M) {
	role, dir, _ := strings.Cut(os.Getenv(roleVariable), ":")
	var err error
	switch role {
	case "":
		os.Exit(m.Run())
	case "parent":
		err = playParent(dir)
	case "child":
		err = playChild(dir)
	}
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Exit(0)
}

// playParent opens a, duplicates it and closes the first descriptor, opens b
// and leaves it to a child, waits for the child's death, opens d, and exits
// with the duplicate of a and d open.
func playParent(dir string) error {
	a, err := os.OpenFile(filepath.Join(dir, "a"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := syscall.Dup(int(a.Fd())); err != nil {
		return err
	}
	if err := a.Close(); err != nil {
		return err
	}
	b, err := os.OpenFile(filepath.Join(dir, "b"), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	child := exec.Command(exe)
	child.Env = append(os.Environ(), roleVariable+"=child:"+dir)
	child.ExtraFiles = []*os.File{b}
	child.Stderr = os.Stderr
	// The child goes on when the pipe is closed, so b ends with the child.
	pipe, err := child.StdinPipe()
	if err != nil {
		return err
	}
	if err := child.Start(); err != nil {
		return err
	}
	if err := b.Close(); err != nil {
		return err
	}
	if err := pipe.Close(); err != nil {
		return err
	}
	var died *exec.ExitError
	if err := child.Wait(); !errors.As(err, &died) || died.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		return errors.New("the child was to be killed, not: " + child.ProcessState.String())
	}
	_, err = syscall.Open(filepath.Join(dir, "d"), syscall.O_WRONLY|syscall.O_CREAT, 0o600)
	return err
}

// playChild waits for its parent, opens c and dies with b and c open.
func playChild(dir string) error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	if _, err := os.OpenFile(filepath.Join(dir, "c"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return err
	}
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

// needStrace skips the test where strace is not installed or may not trace.
func needStrace(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace: ", err)
	}
	if out, err := exec.Command(path, "-f", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		t.Skipf("needs to trace processes: %v: %s", err, out)
	}
}

func TestCaptureProgram(t *testing.T) {
	needStrace(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(roleVariable, "parent:"+dir)
	log := filepath.Join(t.TempDir(), "log")
	if err := strace([]string{exe}, log); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	steps, err := parse(in)
	if err != nil {
		t.Fatal(err)
	}
	// What the Go runtime opens beside it differs from machine to machine.
	isRegular := regularFiles(steps, os.Lstat)
	var file bytes.Buffer
	w, err := trace.NewWriter(&file)
	if err != nil {
		t.Fatal(err)
	}
	not, err := follow(steps, w, func(p string) bool {
		return strings.HasPrefix(p, dir+"/") && isRegular(p)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if not != (doubts{}) {
		t.Errorf("doubts %+v", not)
	}
	tr, err := trace.ReadAll(&file)
	if err != nil {
		t.Fatal(err)
	}
	type event struct {
		kind    trace.Kind
		open    uint32
		process uint32
		mode    trace.Mode
	}
	var got []event
	for _, e := range tr.Events {
		got = append(got, event{e.Kind, e.Open, e.Process, e.Mode})
	}
	const a, b, c, d = 0, 1, 2, 3
	var (
		modeA = trace.MakeMode(trace.Read|trace.Write, trace.DenyAll)
		modeB = trace.MakeMode(trace.Read, trace.DenyNone)
		modeC = trace.MakeMode(trace.Write, trace.DenyAll)
		modeD = trace.MakeMode(trace.Write, trace.DenyWrite)
	)
	want := []event{
		{trace.Open, a, 0, modeA},
		{trace.Open, b, 0, modeB},
		{trace.Open, c, 1, modeC},
		{trace.Close, b, 0, modeB}, // the child's death closes b and c
		{trace.Close, c, 1, modeC},
		{trace.Open, d, 0, modeD},
	}
	// The exit closes by descriptor; which number the duplicate of a has is
	// not for us to say.
	if len(got) != 8 {
		t.Fatalf("%d events, want 8: %+v", len(got), got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("event %d is %+v, want %+v", i, got[i], want[i])
		}
	}
	last := map[event]bool{got[6]: true, got[7]: true}
	if !last[event{trace.Close, a, 0, modeA}] || !last[event{trace.Close, d, 0, modeD}] {
		t.Errorf("the last events are %+v, %+v, want the closes of a and d", got[6], got[7])
	}
}

// The command as a whole: capture, print, and read the kept log again.
func TestRunCaptures(t *testing.T) {
	needStrace(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file, log := filepath.Join(dir, "t.trace"), filepath.Join(dir, "t.log")
	// The shell opens the file, cat inherits it.
	script := "echo x > '" + dir + "/x'; cat < '" + dir + "/x' > '" + dir + "/y'"
	var first, second, stat bytes.Buffer
	if err := run([]string{"-o", file, "-log", log, "sh", "-c", script}, &first, io.Discard); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(first.String(), "doubts: 0 unknown threads, 0 numbers taken,") {
		t.Errorf("printed %s", first.String())
	}
	if !strings.Contains(first.String(), "opens: write, deny all") {
		t.Errorf("printed %s", first.String())
	}
	captured, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"-o", file, "-from", log}, &second, io.Discard); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(captured, again) || first.String() != second.String() {
		t.Error("the same log gives another trace")
	}
	if bytes.Contains(captured, []byte(dir)) {
		t.Error("the trace names a path")
	}
	if err := run([]string{"-stat", file}, &stat, io.Discard); err != nil {
		t.Fatal(err)
	}
	if _, figures, _ := strings.Cut(first.String(), "\n"); figures != stat.String() {
		t.Errorf("-stat prints\n%s\nwant\n%s", stat.String(), figures)
	}
	// A program that fails leaves no trace behind.
	failed := filepath.Join(dir, "failed.trace")
	if err := run([]string{"-o", failed, "sh", "-c", "exit 3"}, io.Discard, io.Discard); err == nil {
		t.Error("no error from a program that exits with 3")
	}
	if _, err := os.Stat(failed); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a trace was written: %v", err)
	}
}
