package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz/bench/demo"
)

func demoCommand() *cobra.Command {
	var (
		secs      float64
		ramdisk   string
		traceFile string
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Processes share the database of open files; one is killed and nothing is lost",
		Long: fmt.Sprintf(`demo replays the opens and closes of a real build, recorded with all its
processes, against the plan's own example: the database of open files. The
traced processes are goroutines, spread over %d client processes that share one
segment in a ramdisk. Each open locks the record of its file, looks at the share
modes of those who have it open, and stores its own entry; each close takes the
entry out. Opening for writing denies other writers, making a file anew denies
all, reading denies nobody.

Halfway one client is killed with SIGKILL. Its locks are freed, the other
clients take its entries out, and it is started again.

The exit code is 0 if nothing was lost, damaged or left behind, 7 if something
was, and the output says what.`, demo.Clients),
		Example: `  mainz demo
  mainz demo --seconds 60
  mainz demo --dir /mnt/ramdisk
  mainz demo --seconds 5 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !(secs > 0 && secs < 1e6) {
				return &problem{kind: usage, err: fmt.Errorf("--seconds %v: want a time to replay", secs)}
			}
			t, err := demo.LoadTrace(traceFile)
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			o := demo.Options{
				Ramdisk:  ramdisk,
				Duration: time.Duration(secs * float64(time.Second)),
				Trace:    t,
				Command: func(dir string, client int, start uint64) *exec.Cmd {
					return exec.Command(self, demoClient, "--dir", dir, "--client", strconv.Itoa(client),
						"--start", strconv.FormatUint(start, 10), "--trace", traceFile)
				},
			}
			var line *progressLine
			if !jsonOutput(cmd) {
				line = newProgressLine(cmd.ErrOrStderr())
				o.Progress = func(p demo.Progress) { line.print(p.String(), p.Note != "") }
			}
			res, err := demo.Run(cmd.Context(), o)
			line.end()
			if err != nil {
				return err
			}
			if jsonOutput(cmd) {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(res)
			} else {
				err = res.Print(cmd.OutOrStdout())
			}
			if err == nil && len(res.Problems) > 0 {
				err = &problem{kind: degraded, err: errors.New(res.Problems[0]), hint: "the store lost or damaged something: please report it with the output above"}
			}
			return err
		},
	}
	cmd.Flags().Float64Var(&secs, "seconds", 20, "how long to replay")
	cmd.Flags().StringVar(&ramdisk, "dir", "/dev/shm", "`directory` for the segment, in a ramdisk; what the demo makes there it removes")
	cmd.Flags().StringVar(&traceFile, "trace", "", "replay the trace in this `file` instead of the built-in one")
	return cmd
}

// demoClient is what the demo's clients are started as.
const demoClient = "demo-client"

func demoClientCommand() *cobra.Command {
	var (
		o         demo.ClientOptions
		traceFile string
	)
	cmd := &cobra.Command{
		Use:    demoClient,
		Short:  "One of the demo's clients; the demo starts it",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			o.Clients = demo.Clients
			if o.Trace, err = demo.LoadTrace(traceFile); err != nil {
				return err
			}
			return demo.Serve(cmd.Context(), o, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.Dir, "dir", "", "the segment's directory")
	cmd.Flags().IntVar(&o.Client, "client", 0, "which client this is")
	cmd.Flags().Uint64Var(&o.Start, "start", 0, "which life of it")
	cmd.Flags().StringVar(&traceFile, "trace", "", "the trace's file")
	return cmd
}

// progressLine shows progress on standard error: on a terminal in one line
// that changes, else in a line every two seconds. A nil one shows nothing.
type progressLine struct {
	w        io.Writer
	terminal bool
	last     time.Time
	shown    int // columns on the line
}

func newProgressLine(w io.Writer) *progressLine {
	l := &progressLine{w: w}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		l.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return l
}

// print shows the text; news gets a line of its own at once.
func (l *progressLine) print(text string, news bool) {
	now := time.Now()
	if !l.terminal {
		if news || now.Sub(l.last) >= 2*time.Second {
			l.last = now
			fmt.Fprintln(l.w, text)
		}
		return
	}
	if !news && now.Sub(l.last) < 100*time.Millisecond {
		return
	}
	l.last = now
	fmt.Fprintf(l.w, "\r%-*s", l.shown, text)
	l.shown = len(text)
	if news {
		fmt.Fprintln(l.w)
		l.shown = 0
	}
}

func (l *progressLine) end() {
	if l != nil && l.shown > 0 {
		fmt.Fprintf(l.w, "\r%-*s\r", l.shown, "")
	}
}
