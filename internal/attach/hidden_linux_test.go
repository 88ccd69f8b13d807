package attach

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mainzdb/mainz/internal/testenv"
)

// Who is kept out is told by what, and the group that would help.
func TestHiddenBy(t *testing.T) {
	if dir := os.Getenv("MAINZ_HIDDEN"); dir != "" {
		os.Stdout.WriteString(hiddenBy(dir) + "\n")
		return
	}
	testenv.Need(t, testenv.Root)
	base, err := os.MkdirTemp("", "mainz-hidden-*")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	outer := filepath.Join(base, "outer")
	dir := filepath.Join(outer, "v1")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(base, "program") // where everybody may run it
	if err := os.WriteFile(program, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	ask := func(group int, path string, mode os.FileMode) string {
		t.Helper()
		if err := os.Chown(path, 0, group); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(program, "-test.run=^TestHiddenBy$")
		cmd.Dir = "/"
		cmd.Env = append(os.Environ(), "MAINZ_HIDDEN="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54322, Gid: 54323}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if text := ask(54321, outer, 0o770); !strings.Contains(text, outer+" keeps") ||
		!strings.Contains(text, "usermod -aG 54321 54322") {
		t.Errorf("the directory above: %s", text)
	}
	if text := ask(0, outer, 0o770); !strings.Contains(text, outer+" keeps") || strings.Contains(text, "usermod") ||
		!strings.Contains(text, "--group") {
		t.Errorf("the directory above, root's: %s", text)
	}
	ask(0, outer, 0o755)
	if text := ask(54321, dir, 0o770); !strings.Contains(text, dir+" keeps") || !strings.Contains(text, "54321") {
		t.Errorf("the node's directory: %s", text)
	}
	ask(0, dir, 0o755)
	socket := filepath.Join(dir, SocketName)
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if text := ask(54321, socket, 0o660); !strings.Contains(text, socket+" keeps") || !strings.Contains(text, "54321") {
		t.Errorf("the socket: %s", text)
	}
}
