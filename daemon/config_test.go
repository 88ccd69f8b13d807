package daemon

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/mainzdb/mainz/ltdb"
)

func TestSources(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte("size = \"1GiB\"\nslots = 7\nidle = \"busy\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := func(name string) (string, bool) {
		v, ok := map[string]string{"MAINZ_SLOTS": "8", "MAINZ_IDLE": "sleep", "MAINZ_CONFIG": file}[name]
		return v, ok
	}
	p, err := parse("mainzd", []string{"--slots", "9"}, env)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"size": "1GiB " + file, "idle": "sleep MAINZ_IDLE", "slots": "9 --slots",
		"databases": "16 default"}
	for _, s := range p.settings() {
		if w := want[s.Name]; w != "" && w != s.Value+" "+s.Source {
			t.Errorf("%s is %s from %s, not %s", s.Name, s.Value, s.Source, w)
		}
	}
	if s, err := p.store(); err != nil || s.Size != 1<<30 || s.Slots != 9 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestBadConfiguration(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	dir := t.TempDir()
	for text, want := range map[string]string{
		"sise = 1":             "sise",
		"slots = \"many\"":     "slots",
		"idle = \"often\"":     "idle",
		"size = \"1 mile\"":    "size",
		"log_level = \"loud\"": "log_level",
		"dir = \"\"":           "directory is empty",
	} {
		file := filepath.Join(dir, "c.toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := parse("mainzd", []string{"--config", file}, none)
		if !errors.Is(err, errUsage) || !strings.Contains(strings.ToLower(err.Error()), want) {
			t.Errorf("%s: %v", text, err)
		}
		if exitCode(err) != 2 {
			t.Errorf("%s: exit code %d", text, exitCode(err))
		}
	}
	empty := func(name string) (string, bool) { return "", name == "MAINZ_DIR" }
	if _, err := parse("mainzd", nil, empty); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "MAINZ_DIR") {
		t.Errorf("an empty MAINZ_DIR: %v", err)
	}
	for _, args := range [][]string{{"extra"}, {"--slots", "x"}, {"--dir", ""}, {"-dir", "x"}, {"-v"}} {
		if _, err := parse("mainzd", args, none); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if _, err := parse("mainzd", []string{"--help"}, none); !errors.Is(err, pflag.ErrHelp) {
		t.Error(err)
	}
	if exitCode(ltdb.ErrFull) != 10 || exitCode(ltdb.ErrInUse) != 9 || exitCode(io.EOF) != 1 {
		t.Error("exit codes")
	}
}

func TestSizes(t *testing.T) {
	for s, want := range map[string]uint64{"0": 0, "17": 17, "2KiB": 2048, "3 MiB": 3 << 20, "1GiB": 1 << 30} {
		if n, err := parseSize(s); err != nil || n != want {
			t.Errorf("%q is %d, %v", s, n, err)
		}
	}
	for _, s := range []string{"", "x", "-1", "1TB", "99999999999999GiB"} {
		if n, err := parseSize(s); err == nil {
			t.Errorf("%q is %d", s, n)
		}
	}
}
