//go:build verify

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A module made here has a test of every outcome, and go test runs it: a
// release of Go that prints something else is noticed here.
func TestOutcomes(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"go.mod":            "module " + module + "\n\ngo 1.26\n",
		"good/good_test.go": "package good\nimport \"testing\"\nfunc TestGood(t *testing.T) { t.Log(\"hidden\"); t.Run(\"sub\", func(t *testing.T) {}) }\nfunc TestGate(t *testing.T) { t.Skip(\"testenv: root: run as root\") }\n",
		"bad/bad_test.go":   "package bad\nimport \"testing\"\nfunc TestBad(t *testing.T) { t.Error(\"shown in full\") }\n",
		"dead/dead_test.go": "package dead\nimport (\"os\"; \"testing\")\nfunc TestDead(t *testing.T) { t.Log(\"last words\"); os.Exit(3) }\n",
		"wrong/wrong.go":    "package wrong\nvar x int = \"\"\n",
		"skips":             "test good TestGat? a pattern # and a comment\n",
		"gates":             "gate root we are not root here\n",
		"other":             "test bad TestGate the wrong package\ngate roo the wrong gate",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("GOFLAGS", "")
	t.Setenv("GOWORK", "off")

	for _, c := range []struct {
		name   string
		args   []string
		status int
		want   []string // in this order
		not    []string
	}{
		{"good", []string{"--", "-count=1", "./good"}, 0,
			[]string{"ok  \t" + module + "/good\t", "\nskipped: " + module +
				"/good TestGate: testenv: root: run as root\n", "2 passed, 0 failed, 1 skipped\n"},
			[]string{"hidden", "{"}},
		{"expected skip", []string{"-skips", "skips", "--", "./good"}, 0, []string{"skipped: "},
			[]string{"NOT EXPECTED"}},
		{"expected gate", []string{"-skips", "gates", "--", "./good"}, 0, []string{"skipped: "},
			[]string{"NOT EXPECTED"}},
		{"unexpected skip", []string{"-skips", "other", "--", "./good"}, 1,
			[]string{"SKIPPED, AND NOT EXPECTED TO BE", "1 skips are not in other", "2 passed, 0 failed, 1 skipped"},
			nil},
		{"two runs", []string{"--", "./good", "--", "-run", "TestGood", "./good"}, 0,
			[]string{"== go test ./good\n", "== go test -run TestGood ./good\n", "4 passed, 0 failed, 1 skipped"}, nil},
		{"bad", []string{"--", "./bad"}, 1, []string{"shown in full", "FAIL\t" + module + "/bad",
			"0 passed, 1 failed"}, nil},
		{"dead", []string{"--", "./dead"}, 1, []string{"last words", "0 passed, 1 failed"}, nil},
		{"wrong", []string{"--", "./wrong"}, 1,
			[]string{"wrong.go:2:", "does not build: " + module + "/wrong", "0 passed, 1 failed"}, nil},
		{"none", []string{"--", "./none"}, 1, nil, []string{" 0 failed"}},
		{"no arguments", nil, 2, nil, nil},
		{"no list", []string{"-skips", "absent", "--", "./good"}, 2, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs strings.Builder
			if got := run(c.args, &out, &errs); got != c.status {
				t.Errorf("status %d, want %d", got, c.status)
			}
			rest := out.String()
			for _, w := range c.want {
				_, after, ok := strings.Cut(rest, w)
				if !ok {
					t.Errorf("%q is not there, or too early", w)
				}
				rest = after
			}
			for _, n := range c.not {
				if strings.Contains(out.String(), n) {
					t.Errorf("%q is there", n)
				}
			}
			if t.Failed() {
				t.Logf("output:\n%s\nerrors:\n%s", &out, &errs)
			}
		})
	}
}
