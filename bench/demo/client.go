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

	"github.com/mainzdb/mainz/bench/trace"
	"github.com/mainzdb/mainz/ltdb"
)

// GiveUp is how long an open that conflicts is tried again.
const GiveUp = 50 * time.Millisecond

const (
	database     = "locking"
	longestPause = time.Millisecond // between two tries

	progressEvery = 100 * time.Millisecond

	// So many traced processes of a client are under way at a time. In the
	// recorded builds up to 44 files were open at once, in all of them.
	alive = 16
)

// ClientOptions say which client of a demo a process is.
type ClientOptions struct {
	Dir     string // of the segment
	Client  int    // 0 to Clients-1
	Clients int
	Start   uint64 // names this life of the client
	Trace   *trace.Trace
}

// Serve is a client's main: it does what its input says until that ends.
func Serve(ctx context.Context, o ClientOptions, in io.Reader, out io.Writer) (err error) {
	store, err := ltdb.Open(ctx, o.Dir, ltdb.Options{Name: fmt.Sprintf("demo-client-%d", o.Client)})
	if err != nil {
		return err
	}
	defer func() {
		if e := store.Close(); e != nil {
			err = errors.Join(err, fmt.Errorf("close the store: %w", e))
		}
	}()
	me := owner{uint32(o.Client), o.Start}
	j, err := createJournal(journalPath(o.Dir, me), o.Trace.Opens)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return serve(ctx, store, j, me, o.Clients, o.Trace, in, out)
}

// journalPath lies beside the segment's own files.
func journalPath(dir string, o owner) string {
	return filepath.Join(filepath.Dir(dir), fmt.Sprintf("journal-%d-%d", o.Client, o.Start))
}

// client replays a share of the trace for as many traced processes.
type client struct {
	me      owner
	store   *ltdb.Store
	db      *ltdb.DB
	actors  [][]trace.Event
	journal journal

	outMu sync.Mutex
	out   *json.Encoder

	draining                                              atomic.Bool
	events, conflicts, gaveUp, lost, damaged, ownersFound atomic.Uint64

	idleMu sync.Mutex
	idle   []*tally
}

// tally is what one goroutine counts for itself, and its buffers.
type tally struct {
	open, close histogram
	buf         []byte
	skipped     map[uint32]bool // opens of this run that were not granted
}

func serve(ctx context.Context, store *ltdb.Store, j journal, me owner, clients int, t *trace.Trace, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	db, err := store.Database(ctx, database, ltdb.KV, ltdb.DatabaseOptions{MustExist: true})
	if err != nil {
		return err
	}
	c := &client{
		me: me, store: store, db: db, journal: j, out: json.NewEncoder(out),
		actors: share(t, int(me.Client), clients),
	}
	// What the parent asks for runs beside the reading of further commands:
	// a dead client is cleaned up in the middle of a pass.
	var busy sync.WaitGroup
	work := func(f func() (reply, error)) {
		busy.Go(func() {
			r, err := f()
			if err != nil {
				r = reply{Is: isFailed, Text: err.Error()}
			}
			c.send(r)
		})
	}
	c.send(reply{Is: isReady})
	for commands := json.NewDecoder(in); ; {
		var cmd command
		if err := commands.Decode(&cmd); err != nil {
			return fmt.Errorf("the demo's parent is gone: %w", err)
		}
		switch cmd.Do {
		case doPass:
			work(func() (reply, error) {
				err := c.pass(ctx)
				return reply{Is: isPassed, Counts: c.counts()}, err
			})
		case doClean:
			work(func() (reply, error) {
				found, err := c.clean(ctx, cmd.Dead, cmd.Part, cmd.Parts)
				return reply{Is: isCleaned, Found: found}, err
			})
		case doDrain:
			c.draining.Store(true)
		case doEnd:
			busy.Wait()
			c.send(c.totals())
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
	return counts{
		Events: c.events.Load(), Conflicts: c.conflicts.Load(), GaveUp: c.gaveUp.Load(), Lost: c.lost.Load(),
		Damaged: c.damaged.Load(), OwnerDied: c.ownersFound.Load(), Waits: c.store.Stats().Waits,
	}
}

func (c *client) totals() reply {
	var all tally
	for _, t := range c.idle {
		all.open.merge(&t.open)
		all.close.merge(&t.close)
	}
	return reply{Is: isEnded, Counts: c.counts(), Open: all.open.sparse(), Close: all.close.sparse()}
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
	for _, events := range c.actors {
		places <- struct{}{}
		actors.Go(func() {
			if err := c.replay(ctx, events); err != nil {
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
func (c *client) replay(ctx context.Context, events []trace.Event) error {
	t := c.takeTally()
	defer c.giveTally(t)
	clear(t.skipped)
	for i := range events {
		// The traced processes ran side by side. Without this each goroutine
		// would run alone until it blocks, and hardly an open would meet another.
		runtime.Gosched()
		e := &events[i]
		if e.Kind == trace.Close {
			if t.skipped[e.Open] {
				continue
			}
			if err := c.closeFile(ctx, t, e); err != nil {
				return fmt.Errorf("close %d of file %d: %w", e.Open, e.File, err)
			}
			continue
		}
		granted, err := c.openFile(ctx, t, e)
		if err != nil {
			return fmt.Errorf("open %d of file %d: %w", e.Open, e.File, err)
		}
		if !granted {
			t.skipped[e.Open] = true
		}
	}
	return nil
}

// openFile opens a file as soon as its share mode allows, or gives up.
func (c *client) openFile(ctx context.Context, t *tally, e *trace.Event) (granted bool, err error) {
	var began time.Time
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, longestPause) {
		if c.draining.Load() {
			return false, nil
		}
		if granted, err := c.tryOpen(ctx, t, e); granted || err != nil {
			return granted, c.trouble(err)
		}
		now := time.Now()
		if began.IsZero() {
			began = now
			c.conflicts.Add(1)
		}
		left := GiveUp - now.Sub(began)
		if left <= 0 {
			c.gaveUp.Add(1)
			return false, nil
		}
		select {
		case <-time.After(min(pause, left)):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// tryOpen is the plan's pattern: lock, look, store and unlock.
func (c *client) tryOpen(ctx context.Context, t *tally, e *trace.Event) (granted bool, err error) {
	c.journal[e.Open] = journalOpening
	key := fileKey(e.File)
	start := time.Now()
	rec, err := c.db.FetchLocked(ctx, key[:])
	if err != nil {
		return false, err
	}
	if rec.OwnerDied() {
		c.ownersFound.Add(1)
	}
	list := rec.Data()
	conflict, err := conflicts(list, e.File, e.Mode)
	if conflict || err != nil {
		return false, errors.Join(err, rec.Unlock())
	}
	t.buf = appendEntry(append(t.buf[:0], list...), e.File, c.entry(e))
	if err := rec.StoreUnlock(t.buf); err != nil {
		return false, err
	}
	c.journal[e.Open] = journalOpened
	t.open.add(uint64(time.Since(start)))
	c.events.Add(1)
	return true, nil
}

func (c *client) entry(e *trace.Event) entry { return entry{c.me, e.Open, e.Mode} }

// closeFile takes the entry out that openFile stored.
func (c *client) closeFile(ctx context.Context, t *tally, e *trace.Event) error {
	c.journal[e.Open] = journalClosing
	key := fileKey(e.File)
	start := time.Now()
	rec, err := c.db.FetchLocked(ctx, key[:])
	if err != nil {
		return err
	}
	if rec.OwnerDied() {
		c.ownersFound.Add(1)
	}
	rest, found, err := remove(rec.Data(), e.File, c.entry(e))
	if err != nil {
		return c.trouble(errors.Join(err, rec.Unlock()))
	}
	if !found {
		c.lost.Add(1)
		c.send(reply{Is: isTrouble, Text: fmt.Sprintf("acknowledged open %d of file %d is lost", e.Open, e.File)})
	}
	if err := storeRest(rec, rest); err != nil {
		return err
	}
	c.journal[e.Open] = journalClosed
	t.close.add(uint64(time.Since(start)))
	c.events.Add(1)
	return nil
}

// storeRest stores what is left of a list; nothing left deletes the record.
func storeRest(rec ltdb.Record, rest []byte) error {
	if len(rest) == 0 {
		rest = nil
	}
	return rec.StoreUnlock(rest)
}

// trouble counts a damaged record and lets the replay go on; any other error
// ends it.
func (c *client) trouble(err error) error {
	if d, ok := errors.AsType[*damage](err); ok {
		c.damaged.Add(1)
		c.send(reply{Is: isTrouble, Text: d.Error()})
		return nil
	}
	return err
}

// clean takes the entries of a dead client out of a part of the records. The
// store has freed its locks by then, so no entry of it can appear behind the
// walk.
func (c *client) clean(ctx context.Context, dead owner, part, parts int) (found []uint32, err error) {
	for e, err := range c.db.Traverse(ctx) {
		if err != nil {
			return nil, err
		}
		file, err := keyFile(e.Key)
		if err == nil && int(file)%parts != part {
			continue
		}
		if err == nil {
			var opens []uint32
			opens, err = c.cleanFile(ctx, e.Data, file, dead)
			found = append(found, opens...)
		}
		if c.trouble(err) != nil {
			return nil, fmt.Errorf("clean file %d: %w", file, err)
		}
	}
	return found, nil
}

// cleanFile looks at the list as the walk saw it, and locks the record only if
// there is something to take out.
func (c *client) cleanFile(ctx context.Context, list []byte, file uint32, dead owner) ([]uint32, error) {
	mine := false
	err := scan(list, file, func(_ int, e entry) bool {
		mine = mine || e.owner == dead
		return !mine
	})
	if !mine || err != nil {
		return nil, err
	}
	key := fileKey(file)
	rec, err := c.db.FetchLocked(ctx, key[:])
	if err != nil {
		return nil, err
	}
	if rec.OwnerDied() {
		c.ownersFound.Add(1)
	}
	rest, opens, err := removeOwner(rec.Data(), file, dead)
	if err != nil {
		return nil, errors.Join(err, rec.Unlock())
	}
	return opens, storeRest(rec, rest)
}

func (c *client) takeTally() *tally {
	c.idleMu.Lock()
	defer c.idleMu.Unlock()
	if n := len(c.idle); n > 0 {
		t := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return t
	}
	return &tally{skipped: map[uint32]bool{}}
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
