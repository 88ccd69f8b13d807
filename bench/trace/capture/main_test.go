package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/bench/trace"
)

func TestRunUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"-o", "x"}, {"true"}, {"-stat", "x", "true"}, {"-stat", "x", "-o", "y"},
		{"-o", "x", "-from", "y", "true"}, {"-o", "x", "-from", "y", "-log", "z"}, {"-from", "y"},
	} {
		if err := run(args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "three ways") {
			t.Errorf("run(%q): %v", args, err)
		}
	}
	if err := run([]string{"-h"}, io.Discard, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("run(-h): %v", err)
	}
}

func TestRunBadFiles(t *testing.T) {
	dir := t.TempDir()
	bad, out := filepath.Join(dir, "bad"), filepath.Join(dir, "out")
	if err := os.WriteFile(bad, []byte("no such thing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"-stat", bad}, io.Discard, io.Discard); !errors.Is(err, trace.ErrFormat) ||
		!strings.Contains(err.Error(), bad) {
		t.Errorf("-stat: %v", err)
	}
	if err := run([]string{"-from", bad, "-o", out}, io.Discard, io.Discard); !errors.Is(err, errLog) ||
		!strings.Contains(err.Error(), "line 1") {
		t.Errorf("-from: %v", err)
	}
	if err := run([]string{"-stat", out}, io.Discard, io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a trace was written: %v", err)
	}
}

func TestRunWithoutStrace(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := run([]string{"-o", filepath.Join(t.TempDir(), "out"), "true"}, io.Discard, io.Discard)
	if !errors.Is(err, errNoStrace) || !strings.Contains(err.Error(), "apt-get install strace") {
		t.Errorf("error %v, want a hint", err)
	}
}

// The figures that README.md gives are those of the trace.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var stat bytes.Buffer
	if err := run([]string{"-stat", "../gobuild.trace"}, &stat, io.Discard); err != nil {
		t.Fatal(err)
	}
	_, figures, _ := strings.Cut(stat.String(), "\n")
	for line := range strings.Lines(figures) {
		if !bytes.Contains(readme, []byte(line)) {
			t.Errorf("README.md does not have the line %q: print it with -stat", line)
		}
	}
}
