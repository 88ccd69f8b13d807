package house

import (
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The Go programs in README.md, in this order, and where each is an example.
const (
	withDaemon = iota
	alone
)

var examples = [...]string{withDaemon: "../../example_test.go", alone: "../../ltdb/example_test.go"}

// readme returns what stands in README.md in blocks of this kind.
func readme(t *testing.T, kind string) (blocks []string) {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?sm)^```([a-z]*)\n(.*?)^```").FindAllStringSubmatch(string(b), -1) {
		if m[1] == kind {
			blocks = append(blocks, m[2])
		}
	}
	return blocks
}

// programs returns the Go programs in README.md.
func programs(t *testing.T) []string {
	t.Helper()
	blocks := readme(t, "go")
	if len(blocks) != len(examples) {
		t.Fatalf("README.md has %d blocks of Go, want %d", len(blocks), len(examples))
	}
	return blocks
}

// body returns a function's body as gofmt writes it, comments included.
func body(t *testing.T, name, source, function string) string {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, name, source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		if d, ok := d.(*ast.FuncDecl); ok && d.Recv == nil && d.Name.Name == function {
			return source[fset.Position(d.Body.Pos()).Offset:fset.Position(d.Body.End()).Offset]
		}
	}
	t.Fatalf("%s has no function %s", name, function)
	return ""
}

func TestProgramIsFormatted(t *testing.T) {
	for _, p := range programs(t) {
		formatted, err := format.Source([]byte(p))
		if err != nil {
			t.Fatal(err)
		}
		if string(formatted) != p {
			t.Errorf("gofmt would write the program in README.md as\n%s", formatted)
		}
	}
}

// Each program is its package's example, too, so that godoc shows the same.
func TestProgramIsExample(t *testing.T) {
	for i, p := range programs(t) {
		file := examples[i]
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("%v: it has to have func Example with the body of main in README.md", err)
		}
		readme, example := body(t, "README.md", p, "main"), body(t, file, string(b), "Example")
		if readme != example {
			t.Errorf("README.md has\n%s\nand %s has\n%s", readme, file, example)
		}
	}
}

// What README.md says was measured stands in docs/performance.md, which says how.
func TestReadmeFigures(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\|.*\| ([0-9.]+) \| ([0-9.]+) \| ([0-9.]+) \| ([0-9.]+ \[[0-9., ]+\]) \|$`).FindAllStringSubmatch(string(b), -1)
	if len(rows) == 0 {
		t.Fatal("README.md has no table of figures: the pattern is wrong")
	}
	for _, row := range rows {
		measured := regexp.MustCompile(`(?m)^\| .* \| ` + regexp.QuoteMeta(row[1]) + ` · .* \| ` +
			regexp.QuoteMeta(row[2]) + ` · .* \| ` +
			regexp.QuoteMeta(row[3]) + ` · .* \| ` + regexp.QuoteMeta(row[4]) + ` \|`)
		if !measured.Match(pages) {
			t.Errorf("docs/performance.md has no row with %q", row[0])
		}
	}
}

// pages are our own documents.
func pages(t *testing.T) (files []string) {
	t.Helper()
	for _, pattern := range []string{"../../*.md", "../../docs/*.md", "../../docs/decisions/*.md"} {
		some, err := filepath.Glob(pattern)
		if err != nil || len(some) == 0 {
			t.Fatalf("%s: %v, %v", pattern, some, err)
		}
		files = append(files, some...)
	}
	return files
}

// Links between our own documents lead somewhere, to a heading as well.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]*)(#[^)]*)?\)`)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	anchors := func(file string) map[string]bool {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil
		}
		all := map[string]bool{}
		for _, m := range heading.FindAllSubmatch(b, -1) {
			name := regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(strings.ToLower(string(m[1])), "")
			all["#"+strings.ReplaceAll(name, " ", "-")] = true
		}
		return all
	}
	seen := 0
	for _, file := range pages(t) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(b, -1) {
			to, anchor := string(m[1]), string(m[2])
			if strings.Contains(to, "://") {
				continue
			}
			seen++
			target := file
			if to != "" {
				target = filepath.Join(filepath.Dir(file), to)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", file, err)
			} else if anchor != "" && !anchors(target)[anchor] {
				t.Errorf("%s: %s has no heading %s", file, target, anchor)
			}
		}
	}
	if seen == 0 {
		t.Error("no link was seen: the pattern is wrong")
	}
}

// The source files that the decisions and CONTRIBUTING.md name are there.
func TestPlaces(t *testing.T) {
	place := regexp.MustCompile("`([a-z_]+/[a-z0-9_/]+\\.(?:go|s))`")
	seen := 0
	for _, file := range pages(t) {
		if dir := filepath.Base(filepath.Dir(file)); dir != "decisions" && filepath.Base(file) != "CONTRIBUTING.md" {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range place.FindAllSubmatch(b, -1) {
			seen++
			if _, err := os.Stat(filepath.Join("../..", string(m[1]))); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	if seen == 0 {
		t.Error("no place was seen: the pattern is wrong")
	}
}

// The first thing that a reader does are the two commands.
func TestReadmeCommands(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```\nmake demo\nmake test\n```") {
		t.Error("README.md does not say make demo and make test")
	}
	contributing, err := os.ReadFile("../../CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`make ([a-z -]+)").FindAllStringSubmatch(string(readme)+string(contributing), -1) {
		for target := range strings.FieldsSeq(m[1]) {
			if !strings.Contains(string(makefile), "\n"+target+": ") {
				t.Errorf("make %s is in the documents and not in the Makefile", target)
			}
		}
	}
}
