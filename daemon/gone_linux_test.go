package daemon

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The segment is deleted under a daemon: it says so and ends, as a failure.
func TestSegmentDeleted(t *testing.T) {
	log, has := logFile(t)
	p := start(t, log, nil)
	if err := os.Remove(filepath.Join(p.dir, "segment")); err != nil {
		t.Fatal(err)
	}
	if s := p.ends(); s.ExitCode() != 1 {
		t.Errorf("it ends with %v", s)
	}
	if has("the segment's file was deleted") == 0 || has("level=ERROR") == 0 {
		t.Error("the log does not say why")
	}
}

// A segment that is there keeps what it was made with; what is configured otherwise is
// said, in the log and by Settings.
func TestNotInForce(t *testing.T) {
	log, has := logFile(t)
	p := start(t, log, nil)
	if has("not in force") != 0 {
		t.Error("a new segment has all that is configured")
	}
	p.until("it does not open", func() bool { return has("node is open") == 1 })
	args := []string{"--config", os.DevNull, "--dir", p.dir, "--size", "32MiB", "--slots", "20", "--databases", "16"}
	all, err := Settings(args)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if want := map[string]string{"size": "16MiB", "slots": "16"}[s.Name]; s.InForce != want {
			t.Errorf("%s is %s, in force %q, want %q", s.Name, s.Value, s.InForce, want)
		}
	}
	p.signal(os.Interrupt)
	if s := p.ends(); s.ExitCode() != 0 {
		t.Fatal(s)
	}
	q := p.again(log, args...)
	q.until("it does not open", func() bool { return has("node is open") == 2 })
	for _, words := range []string{"setting=size configured=32MiB in_force=16MiB",
		"setting=slots configured=20 in_force=16"} {
		if has(words) != 1 {
			t.Errorf("the log does not say %q", words)
		}
	}
	if has("not in force") != 2 {
		t.Error("the log says more than two")
	}
}

// again starts another daemon, for the directory of p.
func (p *process) again(stderr *os.File, args ...string) *process {
	p.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	q := &process{t: p.t, dir: p.dir, done: make(chan struct{}), cmd: exec.Command(exe, args...)}
	q.cmd.Env = append(os.Environ(), "MAINZD_TEST=1")
	q.cmd.Stderr = stderr
	if err := q.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		_ = q.cmd.Wait()
		close(q.done)
	}()
	p.t.Cleanup(func() {
		_ = q.cmd.Process.Kill()
		<-q.done
	})
	return q
}
