package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("gotest", flag.ContinueOnError)
	flags.SetOutput(stderr)
	file := flags.String("skips", "", "fail on a skip that is not listed in this `file`")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	var expected *skipList
	if *file != "" {
		var err error
		if expected, err = readSkips(*file); err != nil {
			fmt.Fprintln(stderr, "gotest:", err)
			return 2
		}
	}
	runs := groups(flags.Args())
	if len(runs) == 0 {
		fmt.Fprintln(stderr, "gotest: nothing to run; give the arguments of go test after --")
		return 2
	}
	var sum summary
	for _, group := range runs {
		fmt.Fprintln(stdout, "== go test", strings.Join(group, " "))
		if err := goTest(group, &sum, stdout, stderr); err != nil {
			fmt.Fprintln(stderr, "gotest:", err)
			sum.failed++
		}
	}
	if !sum.report(stdout, expected) {
		return 1
	}
	return 0
}

// groups splits at each "--"; empty groups are dropped.
func groups(args []string) (out [][]string) {
	for len(args) > 0 {
		n := slices.Index(args, "--")
		if n < 0 {
			n = len(args)
		}
		if n > 0 {
			out = append(out, args[:n])
		}
		args = args[min(n+1, len(args)):]
	}
	return out
}

// goTest adds one run to sum. An error means that go test failed without
// saying so in its output, which then is no evidence of anything.
func goTest(args []string, sum *summary, stdout, stderr io.Writer) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	failed := sum.failed
	readErr := sum.read(out, stdout)
	if readErr != nil {
		// Let go test go on writing to nobody, or it would never end.
		io.Copy(io.Discard, out)
	}
	err = cmd.Wait()
	switch {
	case readErr != nil:
		return readErr
	case err != nil && sum.failed == failed:
		return fmt.Errorf("go test %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
