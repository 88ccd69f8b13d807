//go:build verify

package house

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The rules for the packages that there are: they ask go list, and so stand in make
// verify.

// What a process that uses the store links besides the standard library.
var (
	clients       = []string{"", "shm", "ring", "ltdb", "internal/attach", "internal/call"}
	clientModules = []string{module, sys, mmap, xxh3, cpuid}
)

type pkg struct {
	ImportPath string
	Dir        string
	Standard   bool
	Module     *struct{ Path string }
	Imports    []string

	GoFiles, IgnoredGoFiles, CgoFiles, TestGoFiles, XTestGoFiles []string
}

// rel is the path of one of our packages below the module.
func (p *pkg) rel() string { return rel(p.ImportPath) }

func goList(t *testing.T, args ...string) []*pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json"}, args...)...)
	cmd.Dir = "../.."
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, &errs)
	}
	var all []*pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		p := new(pkg)
		err := dec.Decode(p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImportTable(t *testing.T) {
	modules := map[string]string{}
	for _, p := range goList(t, "-deps", "./...") {
		if p.Module != nil {
			modules[p.ImportPath] = p.Module.Path
		}
	}
	moduleOf := func(imp string) string { return modules[imp] }
	all := goList(t, "./...")
	if len(all) == 0 {
		t.Fatal("go list sees no packages")
	}
	for _, p := range all {
		r, ok := lookup(rules, p.rel())
		if !ok {
			t.Errorf("package %q has no line in the table: add it here and to docs/architecture.md", p.rel())
			continue
		}
		for _, imp := range p.Imports {
			if !r.allows(imp, moduleOf) {
				t.Errorf("package %q may not import %s", p.rel(), imp)
			}
			if ours(imp) && !mayBeImported(p.rel(), rel(imp)) {
				t.Errorf("package %q may not be imported, and %q does", rel(imp), p.rel())
			}
		}
	}
}

// A process on the hot path links what is listed here and nothing else. Every
// system is looked at: a dependency that only one of them pulls in counts too.
func TestClientDependencies(t *testing.T) {
	var present []string
	for _, p := range goList(t, "./...") {
		if slices.Contains(clients, p.rel()) {
			present = append(present, p.ImportPath)
		}
	}
	if len(present) == 0 {
		t.Fatal("no client package is there")
	}
	for _, goos := range []string{"linux", "darwin", "windows"} {
		t.Run(goos, func(t *testing.T) {
			t.Setenv("GOOS", goos)
			t.Setenv("GOARCH", "arm64")
			t.Setenv("CGO_ENABLED", "0")
			for _, p := range goList(t, append([]string{"-deps"}, present...)...) {
				switch {
				case p.Standard:
					if p.ImportPath == "net" {
						t.Error("a client links package net")
					}
				case !slices.Contains(clientModules, p.Module.Path):
					t.Errorf("a client links %s", p.ImportPath)
				case ours(p.ImportPath) && !slices.Contains(clients, p.rel()) && p.rel() != "protocol/wire":
					t.Errorf("a client links our %s", p.rel())
				}
			}
		})
	}
}

// Sharp tools stay where their comments are: unsafe in shm and xdp, elsewhere
// in layout files for proofs of sizes and offsets; system calls in the packages
// of the table and in files for one system; cgo nowhere.
func TestSharpTools(t *testing.T) {
	for _, p := range goList(t, "./...") {
		if len(p.CgoFiles) > 0 {
			t.Errorf("package %q uses cgo: %v", p.rel(), p.CgoFiles)
		}
		for _, name := range slices.Concat(p.GoFiles, p.IgnoredGoFiles) {
			file := filepath.Join(p.Dir, name)
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Error(err)
				continue
			}
			for _, spec := range f.Imports {
				imp, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Error(err)
				}
				if reason := sharp(p.rel(), name, imp); reason != "" {
					t.Errorf("%s imports %s: %s", filepath.Join(p.rel(), name), imp, reason)
				}
			}
		}
	}
}

// Each package says in doc.go what it promises.
func TestPackagesHaveDoc(t *testing.T) {
	for _, p := range goList(t, "./...") {
		if !slices.Contains(p.GoFiles, "doc.go") {
			t.Errorf("package %q has no doc.go", p.rel())
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, "doc.go"), nil,
			parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Error(err)
		} else if f.Doc == nil {
			t.Errorf("doc.go of package %q does not say what it promises", p.rel())
		}
	}
}
