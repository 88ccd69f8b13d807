package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is exported is listed, and nothing else.
func TestExports(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"a.go": `package mainz

// Comment.
type T struct {
	Field  int // of everybody
	hidden int
}

func (t T) Method() int { return t.hidden }
func (t T) quiet()      {}
func (h hidden) Of()    {}
func Func(
	a int,
	b, c string) error {
	return nil
}

type hidden struct{}

const (
	One = iota + 1
	Two
)

var Err, other = f()
`,
		"a_test.go":           "package mainz\n\nfunc Tested() {}\n",
		"a_windows.go":        "package mainz\n\nfunc Elsewhere() {}\n",
		"sub/b.go":            "package sub\n\nfunc Sub() {}\n",
		"internal/c.go":       "package internal\n\nfunc Internal() {}\n",
		"bench/d.go":          "package bench\n\nfunc Bench() {}\n",
		"cmd/x/main.go":       "package main\n\nfunc Main() {}\n",
		"sub/testdata/e/e.go": "package e\n\nfunc Data() {}\n",
		"docs/api/gone.txt":   "package gone\n",
	} {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := write(root); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(root, listings))
	if err != nil || len(entries) != 2 {
		t.Fatalf("there are %v, %v", entries, err)
	}
	b, err := os.ReadFile(filepath.Join(root, listings, "mainz.txt"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, want := range []string{"package mainz // github.com/mainzdb/mainz\n", "func (t T) Method() int\n",
		"func Func(a int, b, c string) error\n", "Field int", "One = iota + 1\n\tTwo\n", "var Err = f()\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for _, not := range []string{"quiet", "hidden int", "Tested", "Elsewhere", "Comment", "everybody",
		"func (h hidden)"} {
		if strings.Contains(text, not) {
			t.Errorf("%q is in\n%s", not, text)
		}
	}
}
