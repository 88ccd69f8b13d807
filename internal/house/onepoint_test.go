package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// storeDir is where the record store is.
const storeDir = "../../ltdb"

// calls returns, by name, the functions of a package that call a method of a field,
// and how often each does. With skipZero a call whose argument is 0 does not count.
func calls(t *testing.T, dir, field, method string, skipZero bool) map[string]int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no Go files in %s: %v", dir, err)
	}
	found := map[string]int{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				countCalls(fn, field, method, skipZero, found)
			}
		}
	}
	return found
}

func countCalls(fn *ast.FuncDecl, field, method string, skipZero bool, found map[string]int) {
	ast.Inspect(fn, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || sel.Sel.Name != method {
			return true
		}
		x, ok := sel.X.(*ast.SelectorExpr)
		if !ok || x.Sel.Name != field {
			return true
		}
		if skipZero && len(call.Args) == 1 {
			if lit, ok := call.Args[0].(*ast.BasicLit); ok && lit.Value == "0" {
				return true
			}
		}
		found[fn.Name.Name]++
		return true
	})
}

// A record's change becomes visible in one function: it is the only one that puts a
// record's block into the journal as the old one. A second commit would have to keep
// the same order of stores, and nothing would hold it to that.
func TestOneCommitPoint(t *testing.T) {
	got := calls(t, storeDir, "jOld", "Store", true)
	// Twice: the second time under the planted bug that stores it too late.
	if want := map[string]int{"publish": 2}; !maps.Equal(got, want) {
		t.Errorf("j.old is stored in %v, want %v: commit by publish", got, want)
	}
}

// A bucket's chain is walked by one iterator. Beside it stand the look-up, which is in
// a hurry, and the check, which believes no link.
func TestOneBucketWalk(t *testing.T) {
	got := slices.Sorted(maps.Keys(calls(t, storeDir, "overflow", "Load", false)))
	if want := []string{"database", "find", "next"}; !slices.Equal(got, want) {
		t.Errorf("links of a bucket's chain are read in %v, want %v: walk by chainOf", got, want)
	}
}
