package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/bench/trace"
	"github.com/mainzdb/mainz/internal/histogram"
)

// GiveUp is how long an open that conflicts waits for its trigger.
const GiveUp = 50 * time.Millisecond

const (
	database = "locking"

	progressEvery = 100 * time.Millisecond

	// So many traced processes of a client are under way at a time. In the
	// recorded builds up to 63 files were open at once, in all of them.
	alive = 16

	// One traced process in so many sends all its calls through the ring, as a
	// program has to that lacks the condition function: so mainzd has work, also
	// at the moment when it is killed.
	ringEvery = 32

	// attachLimit bounds an attach on a busy machine. mainzd is there by then.
	attachLimit = time.Minute
)

// ClientOptions say which client of a demo a process is.
type ClientOptions struct {
	Dir     string // of the node
	Client  uint16 // 0 to Clients-1
	Clients int
	Life    uint16 // of the client
	Trace   *trace.Trace
}

// Serve is a client's main: it does what its input says until that ends.
func Serve(ctx context.Context, o ClientOptions, in io.Reader, out io.Writer) (err error) {
	c := &client{me: owner{o.Client, o.Life}, actors: share(o.Trace, int(o.Client), o.Clients),
		out: json.NewEncoder(out)}
	defer func() {
		for i := range c.lanes {
			if e := c.lanes[i].close(); e != nil {
				err = errors.Join(err, fmt.Errorf("leave the node: %w", e))
			}
		}
	}()
	for i := range c.lanes {
		if err := c.lanes[i].attach(ctx, o.Dir, c.me, i == throughRing); err != nil {
			return err
		}
	}
	if c.journal, err = createJournal(journalPath(o.Dir, c.me), o.Trace.Opens); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return c.serve(ctx, in)
}

// journalPath lies beside the node's directory.
func journalPath(dir string, o owner) string {
	return filepath.Join(filepath.Dir(dir), fmt.Sprintf("journal-%d-%d", o.Client, o.Life))
}

// client replays a share of the trace for as many traced processes.
type client struct {
	me      owner
	lanes   [2]lane
	actors  [][]trace.Event
	journal journal

	outMu sync.Mutex
	out   *json.Encoder

	draining                                            atomic.Bool
	events, conflicts, gaveUp, triggered, lost, damaged atomic.Uint64

	idleMu sync.Mutex
	idle   []*tally
}

// lane is one way into the database. A client has two: it is attached twice.
type lane struct {
	c     *mainz.Client
	db    mainz.Ops
	ring  int           // added to an operation's number
	calls atomic.Uint64 // operations begun
}

const throughRing = 1 // of the lanes; the other works by bypass where it can

func (l *lane) attach(ctx context.Context, dir string, me owner, ring bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	opts := []mainz.Option{mainz.WithName(fmt.Sprintf("demo-client-%d", me.Client))}
	if ring {
		opts = append(opts, mainz.WithName(fmt.Sprintf("demo-client-%d-ring", me.Client)), mainz.ThroughRing())
		l.ring = operations
	}
	if l.c, err = mainz.Attach(ctx, dir, opts...); err != nil {
		return err
	}
	l.db, err = l.c.Open(ctx, database, mainz.Pieces, mainz.MustExist())
	return err
}

func (l *lane) close() error {
	if l.c == nil {
		return nil
	}
	return l.c.Close()
}

// count adds what the lane has done. An operation went by bypass unless the
// ring's own counter has it.
func (l *lane) count(n *counts) {
	st := l.c.Stats()
	n.Waits += st.Waits
	n.Late += st.Late
	n.Ring += st.Ring
	if calls := l.calls.Load(); calls > st.Ring { // what was asked again counts in the ring alone
		n.Bypass += calls - st.Ring
	}
}

// The operations whose times are kept, and the same through the ring behind
// them. A wait is that of an open that was refused, until it was granted.
const (
	opOpen = iota
	opFetch
	opClose
	opWait
	operations
)

var operationNames = [2 * operations]string{"open", "fetch", "close", "wait", "ring_open", "ring_fetch", "ring_close",
	"ring_wait"}

// tally is what one goroutine counts for itself, and its buffers.
type tally struct {
	times      [2 * operations]histogram.Histogram
	buf, piece []byte
	pieces     map[uint32]mainz.Piece // of the opens of this run that were granted
}

func (c *client) serve(ctx context.Context, in io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var busy sync.WaitGroup
	c.send(reply{Is: isReady})
	for commands := json.NewDecoder(in); ; {
		var cmd command
		if err := commands.Decode(&cmd); err != nil {
			return fmt.Errorf("the demo's parent is gone: %w", err)
		}
		switch cmd.Do {
		case doPass: // beside the reading of further commands
			busy.Go(func() {
				if err := c.pass(ctx); err != nil {
					c.send(reply{Is: isFailed, Text: err.Error()})
					return
				}
				c.send(reply{Is: isPassed, Counts: c.counts()})
			})
		case doDrain:
			c.draining.Store(true)
		case doEnd:
			busy.Wait()
			c.send(reply{Is: isEnded, Counts: c.counts(), Latency: c.latency()})
			return nil
		default:
			return fmt.Errorf("unknown command %q", cmd.Do)
		}
	}
}

// send ignores errors: a parent that no longer reads has closed our input, too.
func (c *client) send(r reply) {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	_ = c.out.Encode(r)
}

func (c *client) counts() counts {
	n := counts{
		Events: c.events.Load(), Conflicts: c.conflicts.Load(), GaveUp: c.gaveUp.Load(), Triggered: c.triggered.Load(),
		Lost: c.lost.Load(), Damaged: c.damaged.Load(),
	}
	for i := range c.lanes {
		c.lanes[i].count(&n)
	}
	return n
}

func (c *client) latency() map[string]times {
	all := map[string]times{}
	for op, name := range operationNames {
		var h histogram.Histogram
		for _, t := range c.idle {
			of := &t.times[op]
			if err := h.Merge(of.Buckets(), of.Max); err != nil {
				panic(err) // of this program's own buckets
			}
		}
		all[name] = times{h.Max, h.Buckets()}
	}
	return all
}

// pass replays the client's share once.
func (c *client) pass(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	var progress sync.WaitGroup
	progress.Go(func() { c.progress(done) })

	var actors sync.WaitGroup
	places := make(chan struct{}, alive)
	for i, events := range c.actors {
		l := &c.lanes[0]
		if i%ringEvery == 1 { // not the first: that one may be as large as all others together
			l = &c.lanes[throughRing]
		}
		places <- struct{}{}
		actors.Go(func() {
			if err := c.replay(ctx, l, events); err != nil {
				cancel(err)
			}
			<-places
		})
	}
	actors.Wait()
	close(done)
	progress.Wait()
	return context.Cause(ctx)
}

func (c *client) progress(done <-chan struct{}) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			c.send(reply{Is: isProgress, Counts: c.counts()})
		}
	}
}

// replay is one traced process.
func (c *client) replay(ctx context.Context, l *lane, events []trace.Event) error {
	t := c.takeTally()
	defer c.giveTally(t)
	clear(t.pieces)
	for i := range events {
		// The traced processes ran side by side. Without this each goroutine
		// would run alone until it blocks, and hardly an open would meet another.
		runtime.Gosched()
		e := &events[i]
		if e.Kind == trace.Open {
			if err := c.openFile(ctx, l, t, e); err != nil {
				return fmt.Errorf("open %d of file %d: %w", e.Open, e.File, err)
			}
		} else if p, open := t.pieces[e.Open]; open {
			if err := c.closeFile(ctx, l, t, e, p); err != nil {
				return fmt.Errorf("close %d of file %d: %w", e.Open, e.File, err)
			}
		}
	}
	return nil
}

// openFile adds the open's entry to its file's record as soon as the share
// modes of the others allow, or gives up. The first attempt does not wait: so
// the opens that conflict are counted, and the others need no timer.
func (c *client) openFile(ctx context.Context, l *lane, t *tally, e *trace.Event) error {
	if c.draining.Load() {
		return nil
	}
	c.journal[e.Open] = journalOpening
	key := fileKey(e.File)
	t.piece = appendEntry(t.piece[:0], e.File, c.entry(e))
	op, start := opOpen, time.Now()
	l.calls.Add(1)
	p, err := l.db.ConditionalAppend(ctx, mainz.ShareModes, key[:], t.piece)
	if errors.Is(err, mainz.ErrCondition) {
		c.conflicts.Add(1)
		op = opWait
		waiting, cancel := context.WithTimeout(ctx, GiveUp)
		defer cancel()
		l.calls.Add(1)
		p, err = l.db.ConditionalAppendWait(waiting, mainz.ShareModes, key[:], t.piece)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			// Where nobody can say whether it was granted (mainzd is dead), the
			// piece is taken back as soon as somebody can.
			c.gaveUp.Add(1)
			return nil
		}
	}
	if err != nil {
		return err
	}
	t.pieces[e.Open] = p
	c.journal[e.Open] = journalOpened
	t.times[op+l.ring].Add(uint64(time.Since(start)))
	if op == opWait {
		c.triggered.Add(1)
	}
	c.events.Add(1)
	return nil
}

func (c *client) entry(e *trace.Event) entry { return entry{c.me, e.Open, e.Mode} }

// closeFile looks whether the entry that openFile has added is there still, and
// removes it, which triggers who waits for the file.
func (c *client) closeFile(ctx context.Context, l *lane, t *tally, e *trace.Event, p mainz.Piece) (err error) {
	key := fileKey(e.File)
	start := time.Now()
	l.calls.Add(1)
	t.buf, err = l.db.AppendFetch(ctx, t.buf[:0], key[:])
	t.times[opFetch+l.ring].Add(uint64(time.Since(start)))
	if err != nil && !errors.Is(err, mainz.ErrNotFound) {
		return err
	}
	found, damaged := verify(t.buf, e.File, c.entry(e))
	if damaged != nil {
		c.damaged.Add(1)
		c.send(reply{Is: isTrouble, Text: damaged.Error()})
	}

	c.journal[e.Open] = journalClosing
	start = time.Now()
	l.calls.Add(1)
	err = l.db.RemoveAndTrigger(ctx, key[:], p)
	if errors.Is(err, mainz.ErrNotFound) {
		found, err = false, nil
	}
	if err != nil {
		return err
	}
	if !found && damaged == nil {
		c.lost.Add(1)
		c.send(reply{Is: isTrouble, Text: fmt.Sprintf("acknowledged open %d of file %d is lost", e.Open, e.File)})
	}
	c.journal[e.Open] = journalClosed
	t.times[opClose+l.ring].Add(uint64(time.Since(start)))
	c.events.Add(1)
	return nil
}

func (c *client) takeTally() *tally {
	c.idleMu.Lock()
	defer c.idleMu.Unlock()
	if n := len(c.idle); n > 0 {
		t := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return t
	}
	return &tally{pieces: map[uint32]mainz.Piece{}}
}

func (c *client) giveTally(t *tally) {
	c.idleMu.Lock()
	c.idle = append(c.idle, t)
	c.idleMu.Unlock()
}

// LoadTrace reads the trace in a file, or the one that is part of this
// program if there is no name.
func LoadTrace(file string) (*trace.Trace, error) {
	if file == "" {
		return trace.GoBuild()
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := trace.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return t, nil
}

// seconds shortens a duration for people.
func seconds(d time.Duration) string {
	return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Seconds()), ".0") + " s"
}
