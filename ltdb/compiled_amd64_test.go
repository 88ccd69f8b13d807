//go:build verify && !race && !shmsim

package ltdb

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/shm"
)

// losesAStore shows that the test below can see what it looks for: nobody can
// tell the first store from none, so the compiler drops it.
//
//go:noinline
func losesAStore(w *shm.Word32) {
	w.Store(1)
	w.Store(2)
}

// storeInstruction is a move from a register or a constant to memory that is
// not the stack's.
var storeInstruction = regexp.MustCompile(`^MOV\w* (?:\$\S+|[A-Z][A-Z0-9]*), [-0-9a-fx]*\((\w+)\)(?:\([A-Z0-9*]+\))?$`)

// stores counts, by function of shm and ltdb, the instructions in a program
// that come from the plain assignments of shm's store_tso.go.
func stores(t *testing.T, program string) map[string]int {
	t.Helper()
	cmd := exec.Command("go", "tool", "objdump", "-s", `mainz/(shm|ltdb)\.`, program)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("objdump: %v", err)
	}
	n, function := map[string]int{}, ""
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if rest, ok := strings.CutPrefix(line, "TEXT "); ok {
			function, _, _ = strings.Cut(rest, "(SB)")
			continue
		}
		if !strings.Contains(line, "store_tso.go:") {
			continue
		}
		column := strings.FieldsFunc(line, func(r rune) bool { return r == '\t' })
		if m := storeInstruction.FindStringSubmatch(strings.TrimSpace(column[len(column)-1])); m != nil &&
			m[1] != "SP" {
			n[function]++
		}
	}
	return n
}

// TestCompilerKeepsStores: on amd64 a shared store is a plain assignment, and
// the order and number of a journal's stores is what repair relies on. The
// compiler has one pass that drops stores; a build without it must have as many.
func TestCompilerKeepsStores(t *testing.T) {
	testenv.Need(t, testenv.Long) // builds the package twice
	losesAStore(new(shm.Word32))  // else the linker drops all of it
	if _, err := exec.LookPath("go"); err != nil {
		t.Fatal("the test needs the go command: ", err)
	}
	build := func(name string, flags ...string) map[string]int {
		program := filepath.Join(t.TempDir(), name)
		cmd := exec.Command("go", append(append([]string{"test", "-c", "-tags", "verify", "-o", program}, flags...),
			".")...)
		cmd.Env = append(os.Environ(), "GOFLAGS=", "GOOS="+runtime.GOOS, "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
		return stores(t, program)
	}
	with := build("with")
	without := build("without", "-gcflags=github.com/mainzdb/mainz/...=-d=ssa/dse/off")
	const us = "github.com/mainzdb/mainz/ltdb."
	total := 0
	for function, n := range without {
		if function == us+"losesAStore" {
			continue
		}
		total += n
		if with[function] != n {
			t.Errorf("%s: %d of %d stores to shared words are left", function, with[function], n)
		}
	}
	if with[us+"losesAStore"] != 1 || without[us+"losesAStore"] != 2 {
		t.Errorf("of two stores that shadow each other %d are left, and %d without the pass: the test is blind",
			with[us+"losesAStore"], without[us+"losesAStore"])
	}
	// publish: j.entry, j.old; after the commit j.new, j.old, and the cell.
	// They may be fewer if the compiler merges neighbours, which is harmless.
	if n := with[us+"(*actor).publish"]; n < 4 {
		t.Errorf("publish has %d stores, want at least 4", n)
	}
	t.Logf("%d stores in %d functions", total, len(without)-1)
}
