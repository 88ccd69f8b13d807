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

	"github.com/mainzdb/mainz/internal/testenv"
)

const programDir = `"/dev/shm/mainz-hello"`

// The program in README.md does what README.md says.
func TestProgramRuns(t *testing.T) {
	testenv.Need(t, testenv.NoRace)
	dir := testenv.ShmDir(t)
	p := program(t)
	if strings.Count(p, programDir) != 1 {
		t.Fatalf("the program does not name %s once", programDir)
	}
	p = strings.Replace(p, programDir, fmt.Sprintf("%q", filepath.Join(dir, "store")), 1)
	source, exe := filepath.Join(t.TempDir(), "main.go"), filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(source, []byte(p), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", exe, source)
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	visit := func(n int) string { return fmt.Sprintf("visit %d: %s\n", n, strings.Repeat("|", n)) }
	// However many are started at once, the store not being there yet, and
	// some one after the other.
	const together, then = 8, 3
	outs := make(chan string, together)
	for range together {
		go func() {
			out, err := exec.Command(exe).CombinedOutput()
			if err != nil {
				out = fmt.Appendf(out, "%v", err)
			}
			outs <- string(out)
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
		if out, err := exec.Command(exe).CombinedOutput(); err != nil || string(out) != visit(n) {
			t.Fatalf("run %d: %v, says %q, want %q", n, err, out, visit(n))
		}
	}
}
