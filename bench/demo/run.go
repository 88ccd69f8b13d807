package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/bench/trace"
	"github.com/mainzdb/mainz/internal/histogram"
	"github.com/mainzdb/mainz/ltdb"
)

// Clients is how many client processes share the node.
const Clients = 4

// victim is killed. It is one that replays many small processes, so that it
// has files open at any moment.
const victim = Clients - 1

// DaemonFlags are mainzd's for a demo in dir. The segment is plenty for the
// records of a pass, and small enough for the /dev/shm of a container; each
// client takes two slots, and one more time when it is started again.
func DaemonFlags(dir string) []string {
	return []string{"--config", os.DevNull, "--dir", dir, "--size", "32MiB", "--slots", "32", "--max-value", "64KiB",
		"--databases", "2", "--log-level", "error"}
}

// Options of a run.
type Options struct {
	Ramdisk  string        // a temporary directory is made there; "": /dev/shm
	Duration time.Duration // of the replay
	Trace    *trace.Trace

	// Daemon is the command line of a mainzd with DaemonFlags.
	Daemon func(dir string) *exec.Cmd
	// Command is the command line of a client, whose main calls Serve.
	Command func(dir string, client, life uint16) *exec.Cmd

	// Progress, if set, is called some times a second.
	Progress func(Progress)
}

// Progress is where a run has got to.
type Progress struct {
	Elapsed, Duration time.Duration
	Pass              int
	Events            uint64
	Note              string // what just happened, if anything did
}

func (p Progress) String() string {
	s := fmt.Sprintf("%s of %s, pass %d, %d events", seconds(p.Elapsed), seconds(p.Duration), p.Pass, p.Events)
	if p.Note != "" {
		s += ": " + p.Note
	}
	return s
}

// process is one life of a client, as the parent sees it.
type process struct {
	owner
	cmd    *exec.Cmd
	stdin  io.Closer
	in     *json.Encoder
	stderr tail

	ready, busy, killed, ended bool
	counts                     counts // as last heard
}

// event is a reply of a process, or its end, or a call from what runs beside
// the loop.
type event struct {
	p      *process
	reply  reply
	exited bool
	err    error
	call   func() error
}

// run is the parent's state. One goroutine has it, the loop; the others send
// events.
type run struct {
	Options
	dir     string // of the node, beside which the journals lie
	launch  launcher
	daemon  *mainzd // belongs to what kills and starts it
	client  *mainz.Client
	db      *mainz.DB
	store   *ltdb.Store // for looking: no slot, no lock
	records *ltdb.DB

	events  chan event
	beside  sync.WaitGroup
	procs   [Clients]*process
	running int // lives that have not exited

	began     time.Time
	passing   bool
	passBegan uint64 // what was stored by then
	plan      []kill
	killAt    <-chan time.Time
	endAt     <-chan time.Time
	looks     int // for the moment of the next kill
	overdue   <-chan time.Time
	latest    <-chan time.Time // the end of everything

	looksAtMost int // for what is to be cleaned up

	killing  bool
	killedAt time.Time
	woken    chan struct{} // closed when the opener that waits for the victim has the file
	timeUp   bool
	draining bool

	gone  counts // of killed clients, as last heard
	times map[string]*histogram.Histogram
	res   Result
}

// kill is one of those that are planned.
type kill struct {
	at  float64                                                 // part of the time
	try func(*run, context.Context, bool) (did bool, err error) // now, at whatever moment if it must
}

// kills: a client halfway, mainzd before and after.
var kills = []kill{{0.25, (*run).killDaemon}, {0.5, (*run).killClient}, {0.75, (*run).killDaemon}}

// Run runs the demo. An error means that it could not be run to its end; what
// it found wrong is in the result's Problems.
func Run(ctx context.Context, o Options) (_ *Result, err error) {
	if o.Ramdisk == "" {
		o.Ramdisk = "/dev/shm"
	}
	tmp, err := os.MkdirTemp(o.Ramdisk, "mainz-demo-")
	if err != nil {
		return nil, fmt.Errorf("make a directory in the ramdisk: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()

	r := &run{Options: o, dir: filepath.Join(tmp, "v1"), launch: newLauncher(), events: make(chan event), plan: kills,
		looksAtMost: manyLooks, times: map[string]*histogram.Histogram{}}
	defer r.launch.close()
	late := o.Duration + latestEnd
	r.latest = time.After(late)
	ctx, cancel := context.WithTimeoutCause(ctx, late+time.Minute,
		fmt.Errorf("the demo has not ended %v after its time: look what keeps this machine busy, or run it again with more --seconds", latestEnd+time.Minute))
	defer func() {
		cancel()
		err = errors.Join(err, r.clear())
	}()
	r.res = Result{Clients: Clients, TraceEvents: len(o.Trace.Events), Processes: o.Trace.Processes,
		Records: o.Trace.Files}
	if err := r.createNode(ctx); err != nil {
		return nil, err
	}
	if err := r.replay(ctx); err != nil {
		return nil, err
	}
	if err := r.finish(ctx); err != nil {
		return nil, err
	}
	r.res.judge()
	return &r.res, nil
}

// replay makes passes until the time is up and the kills are dealt with.
func (r *run) replay(ctx context.Context) error {
	for i := range r.procs {
		if err := r.start(i, 1); err != nil {
			return err
		}
	}
	if err := r.until(ctx, r.allReady); err != nil {
		return err
	}
	r.began = time.Now()
	r.nextKill()
	r.endAt = time.After(r.Duration)
	for !r.draining {
		r.res.Passes++
		r.passing, r.passBegan = true, r.stored()
		for _, p := range r.procs {
			r.sendPass(p)
		}
		if err := r.until(ctx, r.passIsOver); err != nil {
			return err
		}
		r.passing = false
		if err := r.checkEmpty(ctx); err != nil {
			return err
		}
	}
	r.res.Seconds = time.Since(r.began).Seconds()
	return nil
}

func (r *run) allReady() bool {
	for _, p := range r.procs {
		if !p.ready {
			return false
		}
	}
	return true
}

func (r *run) allBusy() bool {
	for _, p := range r.procs {
		if !p.busy {
			return false
		}
	}
	return true
}

func (r *run) passIsOver() bool {
	for _, p := range r.procs {
		if !p.ready || p.busy {
			return false
		}
	}
	return !r.killing
}

func (r *run) sendPass(p *process) {
	p.busy = true
	p.send(command{Do: doPass})
	if r.draining {
		p.send(command{Do: doDrain})
	}
}

// send ignores errors: a process that doesn't listen has exited, and that is
// an event.
func (p *process) send(c command) { _ = p.in.Encode(c) }

// until handles what happens until done.
func (r *run) until(ctx context.Context, done func() bool) error {
	for !done() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case e := <-r.events:
			if err := r.handle(ctx, e); err != nil {
				if ctx.Err() != nil {
					err = context.Cause(ctx)
				}
				return err
			}
		case <-r.killAt:
			if err := r.tryKill(ctx); err != nil {
				return err
			}
		case <-r.endAt:
			r.timeUp = true
		case <-r.overdue:
			return r.stuck()
		case <-r.latest:
			return r.stuck()
		}
		if (r.timeUp && len(r.plan) == 0 || len(r.res.Problems) > 0) && !r.killing && !r.draining {
			r.drain()
		}
	}
	return nil
}

// drain ends the replay: not before the kills have been dealt with, however
// short the time is, but at once if something is wrong.
func (r *run) drain() {
	r.draining = true
	r.killAt, r.overdue = nil, time.After(drainLimit)
	for _, p := range r.procs {
		p.send(command{Do: doDrain})
	}
}

// drainLimit is how long clients may take to close what they have open, and
// then to leave. It takes some milliseconds.
const drainLimit = 2 * time.Minute

// latestEnd is how long after its time the demo may end. It takes some seconds, and
// some ten on a machine that is busy with other things.
const latestEnd = 4 * time.Minute

// stuck is the error for what does not come to an end: it says what was waited for.
func (r *run) stuck() error {
	var start, pass, exit []string
	for _, p := range r.procs {
		switch {
		case p == nil || p.ended:
		case !p.ready:
			start = append(start, fmt.Sprint(p.Client))
		case p.busy:
			pass = append(pass, fmt.Sprint(p.Client))
		case r.draining:
			exit = append(exit, fmt.Sprint(p.Client))
		}
	}
	all := r.res.Problems
	say := func(who []string, what string) {
		if len(who) > 0 {
			all = append(all, what+": "+strings.Join(who, ", "))
		}
	}
	say(start, "clients that are not ready")
	say(pass, "clients that do not end their pass")
	say(exit, "clients that do not end")
	if r.killing {
		all = append(all, "what the last kill has left is not cleaned up")
	}
	if len(r.plan) > 0 && r.killAt != nil {
		all = append(all, fmt.Sprintf("there was no moment for a kill in %d looks", r.looks))
	}
	if len(all) == 0 {
		all = []string{"processes that do not end"}
	}
	return fmt.Errorf("the demo waits in vain: %s", strings.Join(all, "\n  "))
}

func (r *run) handle(ctx context.Context, e event) error {
	p := e.p
	switch {
	case e.call != nil:
		return e.call()
	case e.exited:
		return r.exited(ctx, p, e.err)
	}
	switch e.reply.Is {
	case isReady:
		p.ready = true
		if r.passing {
			r.sendPass(p)
		}
	case isProgress:
		p.counts = e.reply.Counts
		r.report("")
	case isPassed:
		p.counts = e.reply.Counts
		p.busy = false
	case isTrouble:
		r.problem(fmt.Sprintf("client %d: %s", p.Client, e.reply.Text))
	case isFailed:
		return fmt.Errorf("client %d: %s", p.Client, e.reply.Text)
	case isEnded:
		p.counts = e.reply.Counts
		p.ended = true
		for name, got := range e.reply.Latency {
			if r.times[name] == nil {
				r.times[name] = &histogram.Histogram{}
			}
			if err := r.times[name].Merge(got.Buckets, got.Max); err != nil {
				return fmt.Errorf("client %d: %w", p.Client, err)
			}
		}
	default:
		return fmt.Errorf("client %d says %q, which means nothing", p.Client, e.reply.Is)
	}
	return nil
}

// problem notes what is wrong, unless there is so much of it that nobody would
// read on.
func (r *run) problem(text string) {
	if len(r.res.Problems) < 20 {
		r.res.Problems = append(r.res.Problems, text)
	}
}

func (r *run) exited(ctx context.Context, p *process, err error) error {
	r.running--
	switch {
	case p.ended && err == nil:
		return nil
	case p.killed:
		r.gone.add(p.counts)
		r.spawn(func() error { return r.watchCleanup(ctx, p.owner) })
		return r.start(victim, p.Life+1)
	}
	return fmt.Errorf("client %d ended in a bad way: %w%s", p.Client, errOr(err, "status 0"), p.stderr.quoted())
}

func errOr(err error, text string) error {
	if err == nil {
		return errors.New(text)
	}
	return err
}

// spawn runs f beside the loop, which f's error ends.
func (r *run) spawn(f func() error) {
	r.beside.Go(func() {
		if err := f(); err != nil {
			r.do(func() error { return err })
		}
	})
}

// do lets the loop call f; for what runs beside it.
func (r *run) do(f func() error) { r.events <- event{call: f} }

// note tells what has just happened; for what runs beside the loop.
func (r *run) note(text string) {
	r.do(func() error {
		r.report(text)
		return nil
	})
}

// finish ends the clients and mainzd, and checks the store.
func (r *run) finish(ctx context.Context) error {
	for _, p := range r.procs {
		p.send(command{Do: doEnd})
	}
	if err := r.until(ctx, func() bool { return r.running == 0 }); err != nil {
		return err
	}
	total := r.gone
	for _, p := range r.procs {
		total.add(p.counts)
	}
	r.res.count(&total, r.times)

	client := r.client
	r.client = nil
	if err := client.Close(); err != nil {
		return fmt.Errorf("leave the node: %w", err)
	}
	d := r.daemon
	if err := d.end(ctx); err != nil {
		return err
	}
	r.res.Problems = append(r.res.Problems, d.complaints()...)
	report, err := r.store.Check(ctx)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	r.res.check(report)
	return nil
}

func (r *run) report(note string) {
	if r.Progress == nil {
		return
	}
	events := r.gone.Events
	for _, p := range r.procs {
		events += p.counts.Events
	}
	r.Progress(Progress{time.Since(r.began), r.Duration, r.res.Passes, events, note})
}

// checkEmpty counts what a pass has left behind. Pieces that nobody could say
// the fate of are taken back in the background: they have a moment.
func (r *run) checkEmpty(ctx context.Context) error {
	for look := 1; ; look++ {
		u, err := r.records.Usage(ctx)
		if err != nil {
			return fmt.Errorf("look whether pass %d left anything: %w", r.res.Passes, err)
		}
		if u.Records == 0 || look >= r.looksAtMost || len(r.res.Problems) > 0 {
			r.res.RecordsLeft += u.Records
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// start begins a new life of a client.
func (r *run) start(client int, life uint16) error {
	p := &process{owner: owner{uint16(client), life}}
	p.cmd = r.Command(r.dir, p.Client, p.Life)
	p.cmd.Stderr = &p.stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := r.launch.start(p.cmd); err != nil {
		return fmt.Errorf("start client %d: %w", client, err)
	}
	p.stdin, p.in = stdin, json.NewEncoder(stdin)
	r.procs[client] = p
	r.running++
	go r.listen(p, stdout)
	return nil
}

func (r *run) listen(p *process, stdout io.Reader) {
	dec := json.NewDecoder(stdout)
	for {
		var m reply
		if err := dec.Decode(&m); err != nil {
			break // its end, or a message that the kill cut off
		}
		r.events <- event{p: p, reply: m}
	}
	io.Copy(io.Discard, stdout)
	r.events <- event{p: p, exited: true, err: p.cmd.Wait()}
}

// clear ends what is still there, after an error as well. The context of what
// runs beside the loop has ended.
func (r *run) clear() error {
	for _, p := range r.procs {
		if p != nil {
			_ = p.cmd.Process.Kill()
			_ = p.stdin.Close()
		}
	}
	quiet := make(chan struct{})
	go func() {
		r.beside.Wait()
		close(quiet)
	}()
	for wait := quiet; r.running > 0 || wait != nil; {
		select {
		case e := <-r.events:
			if e.exited {
				r.running--
			}
		case <-wait:
			wait = nil
		}
	}
	var errs []error
	if r.client != nil {
		errs = append(errs, r.client.Close())
	}
	if r.store != nil {
		errs = append(errs, r.store.Close())
	}
	if r.daemon != nil {
		r.daemon.kill()
	}
	return errors.Join(errs...)
}

// tail keeps the end of what a process said on standard error.
type tail struct{ b []byte }

func (t *tail) Write(b []byte) (int, error) {
	const most = 8 << 10
	t.b = append(t.b, b...)
	if n := len(t.b) - most; n > 0 {
		t.b = t.b[n:]
	}
	return len(b), nil
}

func (t *tail) quoted() string {
	if b := bytes.TrimSpace(t.b); len(b) > 0 {
		return "\n" + strings.ReplaceAll(string(b), "\n", "\n  ")
	}
	return ""
}
