package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz/daemon"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is main but for the end of the process.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	// Cobra's own mistakes (unknown commands, flags, arguments) come before
	// any command is entered; all that comes later is a command's.
	entered := false
	root := rootCommand(func() { entered = true })
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[daemon.Exit](err); ok {
		return int(code) // it has said why
	}
	if !entered {
		err = &problem{kind: usage, err: err, hint: fmt.Sprintf("see %s --help", cmd.CommandPath())}
	}
	return printError(stderr, err, wantsJSON(args))
}

func rootCommand(entered func()) *cobra.Command {
	root := &cobra.Command{
		Use:   "mainz",
		Short: "Records in shared memory that survive the death of any process",
		Long: `mainz serves, shows, measures and inspects a store of records that processes
share in memory, and that the death of any of them leaves whole.`,
		Example: `  mainz demo
  mainz demo --seconds 5 -o json
  mainz daemon --dir /dev/shm/mainz-node
  mainz version`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if o := outputOf(cmd); o != outputTable && o != outputJSON {
				return fmt.Errorf("-o %s: the output is %s or %s", o, outputTable, outputJSON)
			}
			entered()
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringP("output", "o", outputTable, "`format` of the result: table or json")
	root.AddCommand(
		appendCommand(),
		checkCommand(),
		daemon.Command(daemon.WithVersion(version)),
		configCommand(),
		deleteCommand(),
		dumpCommand(),
		getCommand(),
		locksCommand(),
		putCommand(),
		removeCommand(),
		sizeCommand(),
		statCommand(),
		statusCommand(),
		traverseCommand(),
		wipeCommand(),
		benchCommand(),
		demoCommand(),
		demoClientCommand(),
		doctorCommand(),
		netCommand(),
		simCommand(),
		versionCommand(),
	)
	return root
}

const (
	outputTable = "table"
	outputJSON  = "json"
)

func outputOf(cmd *cobra.Command) string {
	o, err := cmd.Flags().GetString("output")
	if err != nil {
		panic(err) // the flag is the root's, so every command has it
	}
	return o
}

// jsonOutput tells whether the command was called with -o json.
func jsonOutput(cmd *cobra.Command) bool { return outputOf(cmd) == outputJSON }

// wantsJSON tells the same from the arguments alone. An error may be about
// them, and then they were not parsed to the end.
func wantsJSON(args []string) bool {
	if n := slices.Index(args, "--"); n >= 0 {
		args = args[:n]
	}
	want := false
	for i, a := range args {
		switch {
		case (a == "-o" || a == "--output") && i+1 < len(args):
			want = args[i+1] == outputJSON
		case strings.HasPrefix(a, "--output="):
			want = a == "--output="+outputJSON
		case strings.HasPrefix(a, "-o") && a != "-o":
			want = a == "-o"+outputJSON || a == "-o="+outputJSON
		}
	}
	return want
}
