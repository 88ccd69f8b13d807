package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz/bench/demo"
)

func demoCommand() *cobra.Command {
	var (
		secs      float64
		ramdisk   string
		traceFile string
		mainzd    string
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Processes share the database of open files; a client and mainzd are killed, and nothing is lost",
		Long: fmt.Sprintf(`demo replays the opens and closes of a real build, recorded with all its
processes, against the plan's own example: the database of open files. It starts
mainzd on a ramdisk, and %d client processes that attach to it; the traced
processes are goroutines, spread over them. An open appends an entry to the
record of its file, on the condition that the share modes of those who have it
open allow that, and waits for their trigger if not, up to %s; a close removes
the entry and triggers who waits. Opening for writing denies other writers,
making a file anew denies all, reading denies nobody. Most of it goes by bypass;
one traced process in some goes through the ring, so that mainzd has work.

Halfway one client is killed with SIGKILL. mainzd frees its locks and removes its
entries, and it is started again. Before and after that, mainzd is killed with
SIGKILL; the clients go on, and it is started again over its own segment.

The exit code is 0 if nothing was lost, damaged or left behind, 7 if something
was, and the output says what.`, demo.Clients, demo.GiveUp),
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
			program := []string{self, "daemon"}
			if mainzd != "" {
				if mainzd, err = exec.LookPath(mainzd); err != nil {
					return &problem{kind: failure, err: fmt.Errorf("the demo needs mainzd: %w", err),
						hint: "without --mainzd the demo runs mainz daemon"}
				}
				program = []string{mainzd}
			}
			o := demo.Options{
				Ramdisk:  ramdisk,
				Duration: time.Duration(secs * float64(time.Second)),
				Trace:    t,
				Daemon: func(dir string) *exec.Cmd {
					c := exec.Command(program[0],
						append(program[1:len(program):len(program)], demo.DaemonFlags(dir)...)...)
					c.Env = withoutSettings(os.Environ())
					return c
				},
				Command: func(dir string, client, life uint16) *exec.Cmd {
					return exec.Command(self, demoClient, "--dir", dir, "--client", strconv.Itoa(int(client)),
						"--life", strconv.Itoa(int(life)), "--trace", traceFile)
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
				err = newEncoder(cmd.OutOrStdout()).Encode(res)
			} else {
				err = res.Print(cmd.OutOrStdout())
			}
			if err == nil && len(res.Problems) > 0 {
				err = &problem{kind: degraded, err: errors.New(res.Problems[0]),
					hint: "the store lost or damaged something: please report it with the output above"}
			}
			return err
		},
	}
	cmd.Flags().Float64Var(&secs, "seconds", 20, "how long to replay")
	cmd.Flags().StringVar(&ramdisk, "dir", "/dev/shm",
		"a `directory` in a ramdisk; what the demo makes there it removes")
	cmd.Flags().StringVar(&traceFile, "trace", "", "replay the trace in this `file` instead of the built-in one")
	cmd.Flags().StringVar(&mainzd, "mainzd", "", "`program` of the daemon; default: mainz daemon")
	return cmd
}

// withoutSettings leaves out what would set up a daemon that serves somebody
// else.
func withoutSettings(env []string) []string {
	return slices.DeleteFunc(env, func(v string) bool {
		return strings.HasPrefix(v, "MAINZ_") || strings.HasPrefix(v, "NOTIFY_SOCKET=")
	})
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
	cmd.Flags().StringVar(&o.Dir, "dir", "", "the node's directory")
	cmd.Flags().Uint16Var(&o.Client, "client", 0, "which client this is")
	cmd.Flags().Uint16Var(&o.Life, "life", 1, "which life of it")
	cmd.Flags().StringVar(&traceFile, "trace", "", "the trace's file")
	return cmd
}
