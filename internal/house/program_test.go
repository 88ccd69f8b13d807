//go:build verify

package house

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
)

// The directories that README.md names.
const (
	programDir = `"/dev/shm/mainz-hello"`
	nodeDir    = "/dev/shm/mainz-node"
)

// build builds a package or a file into dir, as go build names it.
func build(t *testing.T, dir, what string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", dir+"/", what)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// buildProgram builds one of README.md's programs.
func buildProgram(t *testing.T, text string) (exe string) {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(t.TempDir(), "hello.go")
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	build(t, dir, source)
	return filepath.Join(dir, "hello")
}

// counts starts a program however many times at once, and some times one after the
// other: it says each visit once.
func counts(t *testing.T, exe string, env ...string) {
	t.Helper()
	run := func() (string, error) {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	visit := func(n int) string { return fmt.Sprintf("visit %d: %s\n", n, strings.Repeat("|", n)) }
	const together, then = 8, 3
	outs := make(chan string, together)
	for range together {
		go func() {
			out, err := run()
			if err != nil {
				out += err.Error()
			}
			outs <- out
		}()
	}
	seen := map[string]bool{}
	for range together {
		seen[<-outs] = true
	}
	for n := 1; n <= together; n++ {
		if !seen[visit(n)] {
			t.Fatalf("%d runs at once: no %q in %q", together, visit(n), slices.Sorted(maps.Keys(seen)))
		}
	}
	for n := together + 1; n <= together+then; n++ {
		if out, err := run(); err != nil || out != visit(n) {
			t.Fatalf("run %d: %v, says %q, want %q", n, err, out, visit(n))
		}
	}
}

// The program without a daemon does what README.md says, the store not being there
// yet when it is started.
func TestProgramRuns(t *testing.T) {
	testenv.Need(t, testenv.NoRace)
	dir := testenv.ShmDir(t)
	p := programs(t)[alone]
	if strings.Count(p, programDir) != 1 {
		t.Fatalf("the program does not name %s once", programDir)
	}
	counts(t, buildProgram(t, strings.Replace(p, programDir, fmt.Sprintf("%q", filepath.Join(dir, "store")), 1)))
}

// The commands of README.md do what it says, with the one program that it tells to
// install; then the program for a node runs on the node that they have started.
func TestTrialCommands(t *testing.T) {
	testenv.Need(t, testenv.NoRace)
	dir := filepath.Join(testenv.ShmDir(t), "node")
	bin := t.TempDir()
	build(t, bin, "./cmd/mainz")
	env := []string{"PATH=" + bin + ":/usr/bin:/bin", "MAINZ_CONFIG=/dev/null"}

	var block string
	for _, b := range readme(t, "") {
		if strings.Contains(b, "mainz daemon") {
			block = b
		}
	}
	if strings.Count(block, nodeDir) != 2 {
		t.Fatalf("README.md has no commands that name %s twice:\n%s", nodeDir, block)
	}
	// A person looks whether the daemon is there before the next command; so does this.
	const open = "until mainz status >/dev/null 2>&1; do sleep 0.05; done\n"
	script := "set -eu\n"
	for line := range strings.Lines(strings.ReplaceAll(block, nodeDir, dir)) {
		script += line
		if strings.HasPrefix(line, "export") {
			script += open
		}
	}
	script += "echo ready\nwait\n"
	cmd := exec.Command("bash", "-c", script)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() }) // its daemon then ends with the segment
	defer func() {
		os.RemoveAll(dir) // ends the daemon, and so the script
		_ = cmd.Wait()
		stop.Stop()
	}()
	var said strings.Builder
	for b := make([]byte, 4096); !strings.Contains(said.String(), "ready\n"); {
		n, err := out.Read(b)
		said.Write(b[:n])
		if err != nil {
			t.Fatalf("the commands end: %v\n%s", err, &said)
		}
	}
	for _, want := range []string{"open", "healthy"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("the commands do not say %q:\n%s", want, &said)
		}
	}
	counts(t, buildProgram(t, programs(t)[withDaemon]), append(env, "MAINZ_DIR="+dir)...)
}

// The demo needs nothing beside the one program, as go run and go install make it.
func TestDemoAlone(t *testing.T) {
	testenv.Need(t, testenv.NoRace)
	bin := t.TempDir()
	build(t, bin, "./cmd/mainz")
	cmd := exec.Command(filepath.Join(bin, "mainz"), "demo", "--seconds", "1", "--dir", testenv.ShmDir(t))
	cmd.Env = append(os.Environ(), "PATH=/nowhere")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "all is well") {
		t.Errorf("%v\n%s", err, out)
	}
}
