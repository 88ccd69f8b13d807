package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/mainzdb/mainz/bench/trace"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "capture:", err)
		}
		os.Exit(1)
	}
}

var errNoStrace = errors.New("strace is not installed: install it (Debian: apt-get install strace) on a Linux system")

func run(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("capture", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("o", "", "write the trace to `FILE`")
	keep := flags.String("log", "", "keep the output of strace as `LOG`; it names paths of this machine")
	from := flags.String("from", "", "read `LOG`, do not run anything")
	stat := flags.String("stat", "", "print the figures of the trace in `FILE`")
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: capture -o FILE [-log LOG] PROGRAM [ARGUMENT...]\n"+
			"       capture -o FILE -from LOG\n"+
			"       capture -stat FILE")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	program := flags.Args()
	switch {
	case *stat != "" && *out == "" && *from == "" && len(program) == 0:
		return printStats(*stat, stdout)
	case *out != "" && *from != "" && *keep == "" && len(program) == 0:
		return convert(*from, *out, stdout)
	case *out != "" && *from == "" && len(program) > 0:
		return capture(program, *keep, *out, stdout)
	}
	flags.Usage()
	return errors.New("say what to do in one of these three ways")
}

// capture runs a program and writes its trace. A program that fails is an
// error: half a build would be a trace of something else.
func capture(program []string, log, out string, stdout io.Writer) error {
	if log == "" {
		tmp, err := os.CreateTemp("", "capture-*.strace")
		if err != nil {
			return err
		}
		defer os.Remove(tmp.Name())
		if err := tmp.Close(); err != nil {
			return err
		}
		log = tmp.Name()
	}
	if err := strace(program, log); err != nil {
		return err
	}
	return convert(log, out, stdout)
}

// strace runs a program under strace, with two things left undone on purpose.
// The option --seccomp-bpf would make it faster, but strace 6.1 then loses the
// first call after an exec by another thread than the leader. And signals that
// are filtered out are also missing as causes of death, so the filter names only
// those that kill nobody: the Go runtime sends itself many SIGURG.
func strace(program []string, log string) error {
	path, err := exec.LookPath("strace")
	if err != nil {
		return fmt.Errorf("%w (%w)", errNoStrace, err)
	}
	args := []string{
		"-f", "-yy", "-ttt", "-q", "-o", log, "-e", "signal=!SIGURG,SIGCHLD",
		"-e", "trace=?" + strings.Join(traced, ",?"), "--",
	}
	cmd := exec.Command(path, append(args, program...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s under strace: %w", program[0], err)
	}
	return nil
}

// convert makes a trace of a log.
func convert(log, out string, stdout io.Writer) error {
	in, err := os.Open(log)
	if err != nil {
		return err
	}
	defer in.Close()
	steps, err := parse(in)
	if err != nil {
		return fmt.Errorf("%s: %w", log, err)
	}
	var buf bytes.Buffer
	w, err := trace.NewWriter(&buf)
	if err != nil {
		return err
	}
	doubts, err := follow(steps, w, regularFiles(steps, os.Lstat))
	if err != nil {
		return err
	}
	if err := w.Finish(); err != nil {
		return err
	}
	if err := os.WriteFile(out, buf.Bytes(), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "doubts: %d unknown threads, %d numbers taken, %d closes of files nobody opened, %d closes under another name, %d opens not closed\n",
		doubts.strangers, doubts.taken, doubts.unopened, doubts.renamed, doubts.unclosed)
	return printStats(out, stdout)
}

func printStats(file string, stdout io.Writer) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	t, err := trace.ReadAll(in)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	info, err := in.Stat()
	if err != nil {
		return err
	}
	s := t.Stats()
	fmt.Fprintf(stdout, "%s: %d bytes, %.1f s\n", file, info.Size(), float64(s.DurationUS)/1e6)
	for _, row := range []struct {
		name  string
		count int
	}{
		{"events", s.Events},
		{"opens", s.Opens},
		{"closes", s.Closes},
		{"processes that open", s.Processes},
		{"threads that open", s.Threads},
		{"files", s.Files},
		{"most open at a time", s.MaxOpen},
		{"conflicting opens", s.Conflicts},
		{"  within one process", s.SameProcess},
		{"  within one thread", s.SameThread},
		{"  if those before are skipped", s.Refused},
	} {
		fmt.Fprintf(stdout, "%-32s %8d\n", row.name, row.count)
	}
	for _, m := range s.Modes {
		fmt.Fprintf(stdout, "opens: %-25s %8d\n", m.Mode, m.Opens)
	}
	for _, c := range s.Classes {
		fmt.Fprintf(stdout, "conflicts: %v against %v: %d\n", c.New, c.Held, c.Opens)
	}
	return nil
}
