package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mainzdb/mainz/internal/version"
)

// Exit is the error of a daemon that has ended with this exit code, and has said why
// on standard error.
type Exit int

func (e Exit) Error() string { return fmt.Sprintf("the daemon has ended with exit code %d", int(e)) }

// Main is the main function of a dispatcher's program. It does not return.
func Main(opts ...Option) {
	// Who reads standard error may go away: that is an error of a write, and no reason to die.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(execute(filepath.Base(os.Args[0]), os.Args[1:], os.Stdout, os.Stderr, opts...))
}

// execute is Main but for the end of the process.
func execute(name string, args []string, stdout, stderr io.Writer, opts ...Option) int {
	cmd := command(name, opts)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.Execute()
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[Exit](err); ok {
		return int(code)
	}
	return lastWords(name, usageError(err, name), stderr) // cobra's own: RunE was not entered
}

// Command is the daemon as one command of several of a program, with the same flags.
// It returns nil or an [Exit] when it has ended; other errors are about the command
// line, and nothing was started. A second SIGTERM or SIGINT ends the program at once,
// whatever else it has asked for.
func Command(opts ...Option) *cobra.Command { return command("mainz daemon", opts) }

// command is the command that people call by this name.
func command(name string, opts []Option) *cobra.Command {
	d, f := newDaemon(opts), new(flags)
	cmd := &cobra.Command{
		Use:   name[strings.LastIndexByte(name, ' ')+1:],
		Short: "Serve one node until SIGTERM",
		Long: `Makes the node's segment if it is not there, lets clients in, and serves what they
can't do by themselves, until SIGTERM or SIGINT. The log goes to standard error.

A value comes from the first of: the flag, the environment variable, the file, the
default. SIGHUP reads them again, and takes the log level.`,
		Example: fmt.Sprintf(`  %[1]s --dir /dev/shm/mainz/prod/0/v1 --group mainz
  %[1]s --wipe --size 1GiB`, name),
		Args: func(_ *cobra.Command, args []string) error { return noArguments(args) },
		RunE: func(cmd *cobra.Command, _ []string) error { return d.command(name, cmd, f) },
	}
	f.add(cmd.Flags())
	return cmd
}

// command serves by flags that are parsed, and has the last words.
func (d *daemon) command(name string, cmd *cobra.Command, f *flags) error {
	if f.version {
		if err := version.Read(d.version).Print(cmd.OutOrStdout(), name); err != nil {
			return Exit(1)
		}
		return nil
	}
	signal.Ignore(syscall.SIGPIPE)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	d.reload = hup
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The second signal ends the process at once, as if nobody had asked for the first:
	// not the program around this command either.
	context.AfterFunc(ctx, func() { signal.Reset(os.Interrupt, syscall.SIGTERM) })

	p, err := f.resolve(os.LookupEnv)
	if err != nil {
		if !errors.Is(err, errUsage) && errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", errUsage, err)
		}
		return Exit(lastWords(name, err, cmd.ErrOrStderr()))
	}
	log := newSink(cmd.ErrOrStderr())
	defer log.close()
	if err := d.serve(ctx, p, log, nil); err != nil {
		return Exit(say(log, name, err))
	}
	return nil
}

// lastWords says the error to whom may not be there to read it, and returns the exit code.
func lastWords(name string, err error, stderr io.Writer) int {
	log := newSink(stderr)
	defer log.close()
	return say(log, name, err)
}

func say(log *sink, name string, err error) int {
	fmt.Fprintf(log, "%s: %v\n", name, err)
	return exitCode(err)
}
