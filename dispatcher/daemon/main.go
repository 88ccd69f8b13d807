package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/mainzdb/mainz/dispatcher"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/ring"
)

// Option changes the daemon.
type Option func(*daemon)

// WithCondition gives the daemon a condition function besides the built-in ones.
func WithCondition(c ltdb.Condition) Option {
	return func(d *daemon) { d.conditions = append(d.conditions, c) }
}

type daemon struct{ conditions []ltdb.Condition }

// openLimit is how long it may take until the node is open: a large segment
// takes its time to be populated.
const openLimit = 2 * time.Minute

// Main is the main function of a dispatcher's program. It does not return.
func Main(opts ...Option) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, filepath.Base(os.Args[0]), os.Args[1:], os.Stderr, opts...)
	stop()
	os.Exit(code)
}

// Run is Main for who ends it by a context: a test. Flags are as on the command
// line; ready is called when the node is open.
func Run(ctx context.Context, args []string, stderr io.Writer, ready func(), opts ...Option) error {
	p, err := parse("mainzd", args, os.LookupEnv, stderr)
	if err != nil {
		return err
	}
	return p.serve(ctx, stderr, ready, opts)
}

func run(ctx context.Context, name string, args []string, stderr io.Writer, opts ...Option) int {
	p, err := parse(name, args, os.LookupEnv, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil {
		err = p.serve(ctx, stderr, nil, opts)
	} else if !errors.Is(err, errUsage) && errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", errUsage, err)
	}
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "%s: %v\n", name, err)
	return exitCode(err)
}

// exitCode is that of mainz for the same error.
func exitCode(err error) int {
	for _, k := range []struct {
		target error
		code   int
	}{
		{errUsage, 2}, {ltdb.ErrNotRunning, 3}, {ltdb.ErrStale, 3}, {ltdb.ErrPermission, 4}, {os.ErrPermission, 4},
		{ltdb.ErrIncompatible, 5}, {ltdb.ErrCopied, 5}, {ltdb.ErrInUse, 9}, {ltdb.ErrNoSpace, 10},
	} {
		if errors.Is(err, k.target) {
			return k.code
		}
	}
	return 1
}

func (p *parsed) serve(ctx context.Context, stderr io.Writer, ready func(), opts []Option) error {
	var d daemon
	for _, o := range opts {
		o(&d)
	}
	log, err := p.logger(stderr)
	if err != nil {
		return err
	}
	cfg, err := p.store()
	if err != nil {
		return err
	}
	idle, err := ring.ParseStrategy(p.Idle)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	opening, cancel := context.WithTimeout(ctx, openLimit)
	n, err := dispatcher.Open(opening, dispatcher.Options{Dir: p.Dir, Idle: idle, Log: log,
		Store: ltdb.Options{Create: true, Wipe: p.wipe, Config: cfg, Name: "mainzd", Conditions: d.conditions, Log: log}})
	cancel()
	if err != nil {
		return err
	}
	notify("READY=1")
	if ready != nil {
		ready()
	}
	err = n.Run(ctx)
	notify("STOPPING=1")
	log.Info("node is closed", "dir", p.Dir, "error", err)
	return errors.Join(err, n.Close())
}
