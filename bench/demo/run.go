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
	"time"

	"github.com/mainzdb/mainz/bench/trace"
	"github.com/mainzdb/mainz/ltdb"
)

// Clients is how many client processes share the store.
const Clients = 4

// victim is killed. It is one that replays many small processes, so that it
// has files open at any moment.
const victim = Clients - 1

// segmentSize is plenty for the records of a pass, and small enough for the
// /dev/shm of a container.
const segmentSize = 32 << 20

// Options of a run.
type Options struct {
	Ramdisk  string        // a temporary directory is made there; "": /dev/shm
	Duration time.Duration // of the replay
	Trace    *trace.Trace

	// Command is the command line of a client, whose main calls Serve.
	Command func(dir string, client int, start uint64) *exec.Cmd

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

// event is a reply of a process, or its end.
type event struct {
	p      *process
	reply  reply
	exited bool
	err    error
}

// run is the parent's state. One goroutine has it; the others send events.
type run struct {
	Options
	dir   string // of the segment, beside which the journals lie
	store *ltdb.Store
	db    *ltdb.DB

	events  chan event
	procs   [Clients]*process
	running int // lives that have not exited

	began    time.Time
	passing  bool
	killAt   <-chan time.Time
	endAt    <-chan time.Time
	looks    int // for the moment to kill
	killedAt time.Time
	dead     *process
	cleaning int // clients that have not finished their part of it
	found    []uint32
	cleaned  bool // the killed client's entries are out
	timeUp   bool
	draining bool

	gone        counts // of killed clients, as last heard
	open, close histogram
	res         Result
}

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

	r := &run{Options: o, dir: filepath.Join(tmp, "segment"), events: make(chan event)}
	r.res = Result{Clients: Clients, TraceEvents: len(o.Trace.Events), Processes: o.Trace.Processes, Records: o.Trace.Files, BypassShare: 1}
	if err := r.createStore(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.store.Close()) }()
	defer r.killAll()
	if err := r.replay(ctx); err != nil {
		return nil, err
	}
	if err := r.finish(ctx); err != nil {
		return nil, err
	}
	r.res.judge()
	return &r.res, nil
}

func (r *run) createStore(ctx context.Context) (err error) {
	r.store, err = ltdb.Open(ctx, r.dir, ltdb.Options{
		Create: true,
		Config: ltdb.Config{Size: segmentSize, Slots: 4 * Clients, MaxValue: 64 << 10},
		Name:   "demo",
	})
	if err != nil {
		return err
	}
	r.db, err = r.store.Database(ctx, database, ltdb.KV, ltdb.DatabaseOptions{Records: r.Trace.Files})
	if err != nil {
		return errors.Join(err, r.store.Close())
	}
	return nil
}

// replay makes passes until the time is up and the kill is dealt with.
func (r *run) replay(ctx context.Context) error {
	for i := range r.procs {
		if err := r.start(i); err != nil {
			return err
		}
	}
	if err := r.until(ctx, r.allReady); err != nil {
		return err
	}
	r.began = time.Now()
	r.killAt = time.After(r.Duration / 2)
	r.endAt = time.After(r.Duration)
	for !r.draining {
		r.res.Passes++
		r.passing = true
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

func (r *run) passIsOver() bool {
	for _, p := range r.procs {
		if !p.ready || p.busy {
			return false
		}
	}
	return r.dead == nil || r.cleaned
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
				return err
			}
		case <-r.killAt:
			r.kill()
		case <-r.endAt:
			r.timeUp = true
		}
		if r.timeUp && r.cleaned && !r.draining {
			r.drain()
		}
	}
	return nil
}

// drain ends the replay; not before the kill has been dealt with, however
// short the time is.
func (r *run) drain() {
	r.draining = true
	for _, p := range r.procs {
		p.send(command{Do: doDrain})
	}
}

func (r *run) handle(ctx context.Context, e event) error {
	p := e.p
	if e.exited {
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
	case isCleaned:
		r.found = append(r.found, e.reply.Found...)
		if r.cleaning--; r.cleaning == 0 {
			return r.cleanedUp(ctx)
		}
	case isTrouble:
		if len(r.res.Problems) < 20 {
			r.res.Problems = append(r.res.Problems, fmt.Sprintf("client %d: %s", p.Client, e.reply.Text))
		}
	case isFailed:
		return fmt.Errorf("client %d: %s", p.Client, e.reply.Text)
	case isEnded:
		p.counts = e.reply.Counts
		p.ended = true
		r.open.addSparse(e.reply.Open)
		r.close.addSparse(e.reply.Close)
	default:
		return fmt.Errorf("client %d says %q, which means nothing", p.Client, e.reply.Is)
	}
	return nil
}

func (r *run) exited(ctx context.Context, p *process, err error) error {
	r.running--
	switch {
	case p.ended && err == nil:
		return nil
	case p.killed:
		return r.cleanUp(ctx, p)
	}
	return fmt.Errorf("client %d ended in a bad way: %w%s", p.Client, errOr(err, "status 0"), p.stderr.quoted())
}

func errOr(err error, text string) error {
	if err == nil {
		return errors.New(text)
	}
	return err
}

// kill kills the victim in the middle of a pass, when there is something to
// clean up after it; if that is not so now, then a little later. A trace so
// small that this never happens must not keep the demo from its end.
func (r *run) kill() {
	const looks = 1000
	p := r.procs[victim]
	r.looks++
	if !p.busy || r.looks < looks && !r.caught(p) {
		r.killAt = time.After(time.Millisecond)
		return
	}
	r.killedAt = time.Now()
	p.killed = true
	_ = p.cmd.Process.Kill() // an error means that it has exited: then it was not us, and that is an event
	r.res.Kills++
	r.report(fmt.Sprintf("client %d is killed", p.Client))
}

// hasFilesOpen looks into the client's journal.
func (r *run) hasFilesOpen(p *process) bool {
	b, err := os.ReadFile(journalPath(r.dir, p.owner))
	return err == nil && bytes.IndexByte(b, journalOpened) >= 0
}

// cleanUp frees the dead client's locks, lets the others take its entries
// out, and starts it again meanwhile.
func (r *run) cleanUp(ctx context.Context, p *process) error {
	r.dead = p
	r.gone.add(p.counts)
	// Whoever waits for one of the locks has done it already.
	if _, err := r.store.Recover(ctx); err != nil {
		return fmt.Errorf("free the locks of killed client %d: %w", p.Client, err)
	}
	for i, other := range r.procs {
		if i != victim {
			other.send(command{Do: doClean, Dead: p.owner, Part: r.cleaning, Parts: Clients - 1})
			r.cleaning++
		}
	}
	return r.start(victim)
}

// cleanedUp holds what the others took out against what the killed client was
// told.
func (r *run) cleanedUp(ctx context.Context) error {
	r.res.CleanupMS = float64(time.Since(r.killedAt)) / float64(time.Millisecond)
	r.cleaned = true
	r.report(fmt.Sprintf("client %d is cleaned up after", r.dead.Client))
	r.res.EntriesCleaned = len(r.found)
	b, err := os.ReadFile(journalPath(r.dir, r.dead.owner))
	if err != nil {
		return fmt.Errorf("read the killed client's journal: %w", err)
	}
	lost, resurrected := journal(b).verdict(r.found)
	r.res.AckedLost += uint64(lost)
	r.res.Damaged += uint64(resurrected)

	left := 0
	for e, err := range r.db.Traverse(ctx) {
		if err != nil {
			return fmt.Errorf("look for entries of the killed client: %w", err)
		}
		file, err := keyFile(e.Key)
		if err == nil {
			err = scan(e.Data, file, func(_ int, e entry) bool {
				if e.owner == r.dead.owner {
					left++
				}
				return true
			})
		}
		if err != nil {
			r.res.Damaged++
			r.res.Problems = append(r.res.Problems, err.Error())
		}
	}
	if left > 0 {
		r.res.Problems = append(r.res.Problems, fmt.Sprintf("%d entries of the killed client were not found by those who took them out", left))
	}
	return nil
}

// checkEmpty counts what a pass left behind.
func (r *run) checkEmpty(ctx context.Context) error {
	u, err := r.db.Usage(ctx)
	if err != nil {
		return fmt.Errorf("look whether pass %d left anything: %w", r.res.Passes, err)
	}
	r.res.RecordsLeft += u.Records
	return nil
}

// finish ends the clients and checks the store.
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
	r.res.Events, r.res.Conflicts, r.res.GaveUp, r.res.Waits = total.Events, total.Conflicts, total.GaveUp, total.Waits
	r.res.OwnerDied = total.OwnerDied
	r.res.AckedLost += total.Lost
	r.res.Damaged += total.Damaged
	r.res.OpsPerS = float64(total.Events) / r.res.Seconds
	r.res.Latency = map[string]Quantiles{"open": quantiles(&r.open), "close": quantiles(&r.close)}

	report, err := r.store.Check(ctx)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	r.res.CheckErrors = report.Broken
	r.res.Problems = append(r.res.Problems, report.Errors...)
	if report.Locked > 0 {
		r.res.CheckErrors++
		r.res.Problems = append(r.res.Problems, fmt.Sprintf("%d records are still locked", report.Locked))
	}
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

// start begins a new life of a client.
func (r *run) start(client int) error {
	p := &process{owner: owner{uint32(client), uint64(time.Now().UnixNano())}}
	p.cmd = r.Command(r.dir, client, p.Start)
	p.cmd.Stderr = &p.stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
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

// killAll ends what is still running after an error.
func (r *run) killAll() {
	for _, p := range r.procs {
		if p != nil {
			_ = p.cmd.Process.Kill()
			_ = p.stdin.Close()
		}
	}
	for r.running > 0 {
		if e := <-r.events; e.exited {
			r.running--
		}
	}
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
