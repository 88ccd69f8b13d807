package demo

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/ltdb"
)

// Waits of the parent end after a number of looks, not at a time: a machine
// that stands still for a while does not make the demo fail.
const (
	lookEvery   = time.Millisecond
	manyLooks   = 20_000
	answerLimit = 2 * time.Minute // for mainzd's first words, populating the segment included

	// downOps is how many opens the clients grant each other before mainzd is
	// started again. They may have no more to do in this pass, so there is a
	// limit to that.
	downOps   = 1000
	downLooks = 500
)

// mainzd is one life of mainzd.
type mainzd struct {
	cmd    *exec.Cmd
	stderr tail
	exited chan struct{}
	err    error // of Wait, when exited is closed
	killed bool
}

func (r *run) startDaemon() (*mainzd, error) {
	d := &mainzd{cmd: r.Daemon(r.dir), exited: make(chan struct{})}
	d.cmd.Stderr = &d.stderr
	if err := r.launch.start(d.cmd); err != nil {
		return nil, fmt.Errorf("start mainzd: %w", err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	r.daemon = d
	return d, nil
}

// gone is the error for a mainzd that has exited without being asked to.
func (d *mainzd) gone() error {
	return fmt.Errorf("mainzd ended in a bad way: %w%s", errOr(d.err, "status 0"), d.stderr.quoted())
}

func (d *mainzd) kill() {
	d.killed = true
	_ = d.cmd.Process.Kill() // an error means that it has exited
	<-d.exited
}

// end ends mainzd as a service manager does.
func (d *mainzd) end(ctx context.Context) error {
	if err := terminate(d.cmd.Process); err != nil {
		<-d.exited
		return d.gone()
	}
	select {
	case <-d.exited:
		if d.err != nil {
			return d.gone()
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// complaints are what it has logged; it is told to log errors alone.
func (d *mainzd) complaints() (all []string) {
	for line := range strings.Lines(string(d.stderr.b)) {
		all = append(all, "mainzd: "+strings.TrimSpace(line))
	}
	return all
}

// createNode starts mainzd, and makes the database as its first client.
func (r *run) createNode(ctx context.Context) error {
	d, err := r.startDaemon()
	if err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	for {
		r.client, err = mainz.Attach(limit, r.dir, mainz.WithName("demo"))
		if err == nil {
			break
		}
		select {
		case <-d.exited:
			if d.cmd.ProcessState.ExitCode() == noSpaceCode {
				return fmt.Errorf("%w: %w", d.gone(), ltdb.ErrNoSpace)
			}
			return d.gone()
		case <-limit.Done():
			return fmt.Errorf("mainzd does not answer: %w", err)
		case <-time.After(lookEvery):
		}
		if errors.Is(err, mainz.ErrNotSupported) {
			return err
		}
	}
	if r.db, err = r.client.Open(ctx, database, mainz.Pieces, mainz.Records(r.Trace.Files)); err != nil {
		return err
	}
	// What looks needs no slot, and no mainzd.
	if r.store, err = ltdb.Open(ctx, r.dir, ltdb.Options{ReadOnly: true}); err != nil {
		return err
	}
	r.records, err = r.store.Database(ctx, database, ltdb.Pieces, ltdb.DatabaseOptions{MustExist: true})
	return err
}

// noSpaceCode is mainzd's exit code for a full ramdisk.
const noSpaceCode = 10

// stored counts the values that clients have stored by bypass.
func (r *run) stored() (n uint64) {
	for _, c := range r.store.Clients() {
		n += c.Stats.Stores
	}
	return n
}

// restartDaemon kills mainzd, lets the clients go on without one for a while,
// and starts another over the same segment. A call that comes in when nobody
// is there is answered by the next one. busy says that the clients have much to
// do. It runs beside the loop.
func (r *run) restartDaemon(ctx context.Context, busy bool) error {
	before, old := r.stored(), r.daemon
	old.kill()
	killed := time.Now()
	r.note("mainzd is killed")
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- r.client.Ping(ctx) }()
	for range downLooks {
		if r.stored()-before >= downOps {
			break
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	down := r.stored() - before
	d, err := r.startDaemon()
	if err != nil {
		return err
	}
	started := time.Now()
	select {
	case err = <-answer:
		if err != nil {
			return fmt.Errorf("mainzd does not answer after it was started again: %w", err)
		}
	case <-d.exited:
		return d.gone()
	}
	now := time.Now()
	r.do(func() error {
		r.res.Problems = append(r.res.Problems, old.complaints()...)
		r.res.DaemonKills++
		if busy && down == 0 {
			r.res.stoodStill++
		}
		r.res.DaemonDownOps += down
		r.res.DaemonAnsweredMS = max(r.res.DaemonAnsweredMS, milliseconds(now.Sub(killed)))
		r.res.DaemonRestartMS = max(r.res.DaemonRestartMS, milliseconds(now.Sub(started)))
		return nil
	})
	r.note(fmt.Sprintf("mainzd answers again; meanwhile clients have opened %d files without it", down))
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// pause is the time between two looks.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(lookEvery):
		return nil
	}
}
