package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
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

// WithVersion says which version the program is: --version prints it. "" is what the
// Go tool has put into the program.
func WithVersion(v string) Option { return func(d *daemon) { d.version = v } }

type daemon struct {
	conditions []ltdb.Condition
	version    string
	reload     <-chan os.Signal // read the configuration again; may be nil
}

// openLimit is how long it may take until the node is open: a large segment
// takes its time to be populated.
const openLimit = 2 * time.Minute

// Run is Main for who ends it by a context: a test. Flags are as on the command
// line; ready is called when the node is open. The log is written to stderr by a
// goroutine that has ended when Run returns, unless a write takes longer than a
// second then.
func Run(ctx context.Context, args []string, stderr io.Writer, ready func(), opts ...Option) error {
	d := newDaemon(opts)
	p, err := parse("mainzd", args, os.LookupEnv)
	if err != nil {
		return err
	}
	log := newSink(stderr)
	defer log.close()
	return d.serve(ctx, p, log, ready)
}

func newDaemon(opts []Option) *daemon {
	d := new(daemon)
	for _, o := range opts {
		o(d)
	}
	return d
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

func (d *daemon) serve(ctx context.Context, p *parsed, to *sink, ready func()) error {
	log, level, err := p.logger(to)
	if err != nil {
		return err
	}
	to.note = p.note()
	cfg, err := p.store()
	if err != nil {
		return err
	}
	idle, err := ring.ParseStrategy(p.Idle)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	m := newManager(os.LookupEnv)
	defer m.close()
	stall, err := p.stallLimit()
	if err != nil {
		return err
	}
	opening, cancel := context.WithTimeout(ctx, openLimit)
	n, err := dispatcher.Open(opening, dispatcher.Options{Dir: p.Dir, Idle: idle, Log: log, StallLimit: stall,
		Alive: m.alive, AliveEvery: m.every,
		Store: ltdb.Options{Create: true, Wipe: p.wipe, Config: cfg, Name: "mainzd", Conditions: d.conditions,
			Log: log}})
	cancel()
	if err != nil {
		return err
	}
	m.say("READY=1")
	if ready != nil {
		ready()
	}
	stop := d.reloads(p, log, level, m)
	err = n.Run(ctx)
	stop()
	m.say("STOPPING=1")
	log.Info("node is closed", "dir", p.Dir, "error", err)
	return errors.Join(err, n.Close())
}

// reloads reads the configuration again whenever somebody asks for it, until stop is
// called.
func (d *daemon) reloads(p *parsed, log *slog.Logger, level *slog.LevelVar, m *manager) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-d.reload:
			}
			m.say(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic()))
			p.reload(log, level)
			m.say("READY=1")
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// reload takes the log level of the configuration as it is now. Nothing else can
// change while the daemon runs, and what has changed is said.
func (p *parsed) reload(log *slog.Logger, level *slog.LevelVar) {
	now, err := p.flags.resolve(p.env)
	if err != nil {
		log.Error("the configuration is not read again; mend it, and send SIGHUP once more", "error", err)
		return
	}
	to, _ := now.level()              // parse has looked at it
	level.Set(min(to, level.Level())) // said at the lower of the two levels
	log.Info("configuration is read again", "log_level", now.LogLevel, "before", p.LogLevel)
	level.Set(to)
	p.LogLevel, p.source["log_level"] = now.LogLevel, now.source["log_level"]
	for i := range fields {
		if f := &fields[i]; f.get(&now.Config) != f.get(&p.Config) {
			log.Warn("a changed setting needs a restart", "setting", f.name, "value", f.get(&p.Config), "configured",
				f.get(&now.Config))
		}
	}
}
