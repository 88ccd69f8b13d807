package protocol_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/protocol/sim"
)

var rewrite = flag.Bool("rewrite", false, "write the transcripts in testdata anew; read the diff before committing")

// TestScripts runs the scenarios in testdata. A file is its own golden transcript:
// commands stand behind "> ", comments behind "#", all else is what happened.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var commands []string
			for _, line := range strings.Split(string(b), "\n") {
				if c, ok := strings.CutPrefix(line, "> "); ok {
					commands = append(commands, c)
				} else if strings.HasPrefix(line, "#") {
					commands = append(commands, line)
				}
			}
			got, failures := sim.Script(strings.Join(commands, "\n"))
			for _, f := range failures {
				t.Error(f)
			}
			if *rewrite {
				if err := os.WriteFile(name, []byte(got), 0o666); err != nil {
					t.Fatal(err)
				}
			} else if got != string(b) {
				t.Errorf("the transcript has changed (go test ./protocol -run Scripts -rewrite, then git diff):\n%s",
					firstDiff(string(b), got))
			}
		})
	}
}

func firstDiff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return "was: " + w[i] + "\nis:  " + g[i]
		}
	}
	return "one is longer"
}
