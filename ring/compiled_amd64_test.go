//go:build verify && !race && !shmsim

package ring

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCompiled: a message is filled by one plain store a word, all of them, and
// published by an exchange, which is a barrier, before the consumer's word is
// looked at. Without a hook between them.
func TestCompiled(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package once more")
	}
	program := filepath.Join(t.TempDir(), "program")
	build := exec.Command("go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "GOFLAGS=", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	code := func(function string) []string {
		out, err := exec.Command("go", "tool", "objdump", "-s", `mainz/ring\.`+function+`$`, program).Output()
		if err != nil {
			t.Fatalf("objdump: %v", err)
		}
		return strings.Split(string(out), "\n")
	}
	count := func(lines []string, all ...string) (n, first int) {
		first = -1
		for i, line := range lines {
			has := true
			for _, s := range all {
				has = has && strings.Contains(line, s)
			}
			if has {
				if n++; first < 0 {
					first = i
				}
			}
		}
		return n, first
	}
	put := code(`\(\*cell\)\.put`)
	if n, _ := count(put, "store_tso.go", "MOVQ"); n != cellSize/8-1 {
		t.Errorf("put has %d stores, want %d:\n%s", n, cellSize/8-1, strings.Join(put, "\n"))
	}
	if n, _ := count(code(`\(\*cell\)\.get`), "word.go", "MOVQ"); n != cellSize/8-1 {
		t.Errorf("get has %d loads, want %d: each word once", n, cellSize/8-1)
	}
	publish := code(`Claim\.publish`)
	swaps, swap := count(publish, "word.go", "XCHGQ")
	looks, look := count(publish, "word.go", "MOVL")
	if swaps != 1 || looks != 1 || swap > look {
		t.Errorf("publish is not one exchange and then one look:\n%s", strings.Join(publish, "\n"))
	}
	claim := code(`\(\*Producer\)\.TryClaim`)
	if n, _ := count(claim, "LOCK CMPXCHGQ"); n != 1 {
		t.Errorf("a claim has %d atomic instructions", n)
	}
	for name, lines := range map[string][]string{"put": put, "publish": publish, "TryClaim": claim} {
		if n, _ := count(lines, "CALL", "shm."); n != 0 {
			t.Errorf("%s calls package shm", name)
		}
	}
}
