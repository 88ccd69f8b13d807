package mainz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/ring"
	"github.com/mainzdb/mainz/shm"
)

// DefaultDir is the directory of a node that has no other.
const DefaultDir = "/dev/shm/mainz/default/0/v1"

// stepLimit bounds each of the four steps of Attach where the context sets no
// deadline: to be let in, to be welcomed, to map the segment and get a slot, to be
// served. Whoever gets on is not given up: of many that attach at once on a busy
// machine each waits for its turn.
const stepLimit = 5 * time.Second

// Option changes how Attach works.
type Option func(*options)

type options struct {
	name       string
	readOnly   bool
	conditions []Condition
	forceRing  bool // nothing by bypass
	events     func(Epoch)
	noEvents   bool          // WithEvents without a function
	lookEvery  time.Duration // ltdb.Options.LookEvery, for tests
}

// check says which options make no sense, alone or together.
func (o *options) check() error {
	switch {
	case o.noEvents:
		return wrong("WithEvents has no function; leave the option away, or give one")
	case o.readOnly && len(o.conditions) > 0:
		return wrong("WithCondition is for who appends, and ReadOnly does not")
	case o.readOnly && o.forceRing:
		return wrong("ThroughRing is for who has a ring, and ReadOnly has none")
	case o.readOnly && o.events != nil:
		return wrong("WithEvents is for who has a ring, and ReadOnly has none")
	}
	return nil
}

// WithCondition registers a condition function (the plan's set_conditional).
// Attach fails with ErrIncompatible if the node knows the id under another name
// or version.
func WithCondition(c Condition) Option {
	return func(o *options) { o.conditions = append(o.conditions, c) }
}

// WithName labels the client in status output; default is the base name of
// argv[0].
func WithName(name string) Option { return func(o *options) { o.name = name } }

// WithEvents calls f once for each recovery, before the first call that sees the new
// epoch returns. f is called by one goroutine at a time, which may be that of any call;
// others wait for it, so it has to return soon, and must not call the client. If it
// panics, the goroutine that called it does, and that epoch counts as told. An observer
// is not told.
func WithEvents(f func(Epoch)) Option {
	return func(o *options) { o.events, o.noEvents = f, f == nil }
}

// ReadOnly attaches an observer: no slot, no locks, Fetch and Traverse by bypass
// only. It needs no dispatcher. Options for who does more go not with it (ErrMisuse).
func ReadOnly() Option { return func(o *options) { o.readOnly = true } }

// ThroughRing sends every operation through the ring to the dispatcher: to
// measure that way, and to test it.
func ThroughRing() Option { return func(o *options) { o.forceRing = true } }

// Client is one process's place on a node. Safe for many goroutines.
type Client struct {
	opts  options
	store *ltdb.Store
	conn  *attach.Conn
	door  *shm.Doorbell
	bell  *ring.Bell
	ring  *call.Client  // nil for an observer
	watch chan struct{} // closed when watchNode has ended; nil: it never began
	shut  atomic.Bool
}

var errNoDir = errors.New("mainz: MAINZ_DIR is set and empty; name the node's directory in it, or unset it")

// Attach joins the segment in dir; "" means $MAINZ_DIR, then DefaultDir. ctx
// bounds the attach alone; if it has no deadline, each of the four steps of an attach
// may take 5 s, on an idle machine they take some milliseconds together.
// ErrNotRunning comes at once. It, ErrPermission, ErrIncompatible and ErrNoSpace say
// what to do next.
func Attach(ctx context.Context, dir string, opts ...Option) (*Client, error) {
	if ctx == nil {
		return nil, errNoContext
	}
	c := &Client{}
	for i, o := range opts {
		if o == nil {
			return nil, wrong(fmt.Sprintf("option %d of Attach is nil", i+1))
		}
		o(&c.opts)
	}
	if err := c.opts.check(); err != nil {
		return nil, err
	}
	if c.opts.name == "" {
		c.opts.name = filepath.Base(os.Args[0])
	}
	if dir == "" {
		var set bool
		if dir, set = os.LookupEnv("MAINZ_DIR"); set && dir == "" {
			return nil, errNoDir
		}
	}
	if dir == "" {
		dir = DefaultDir
	}
	var err error
	if c.opts.readOnly {
		c.store, err = ltdb.Open(ctx, dir, ltdb.Options{ReadOnly: true})
		if err != nil {
			return nil, fmt.Errorf("mainz: %w", err)
		}
		return c, nil
	}
	if err := c.attach(ctx, dir); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// oneStep is the context of one step of an attach.
func oneStep(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, stepLimit)
}

// dial is the first step.
func (c *Client) dial(ctx context.Context, dir string) (err error) {
	ctx, cancel := oneStep(ctx)
	defer cancel()
	c.conn, err = attach.Dial(ctx, dir)
	return attachError(err)
}

// ask is the second step, and the last.
func (c *Client) ask(ctx context.Context, m, answer *attach.Message) error {
	ctx, cancel := oneStep(ctx)
	defer cancel()
	return attachError(c.conn.Call(ctx, m, answer))
}

// join is the third.
func (c *Client) join(ctx context.Context, dir string, opts ltdb.Options) (err error) {
	ctx, cancel := oneStep(ctx)
	defer cancel()
	if c.store, err = ltdb.Open(ctx, dir, opts); err != nil {
		return fmt.Errorf("mainz: %w", err)
	}
	return nil
}

// hello is the first message to a dispatcher.
func (c *Client) hello() attach.Message {
	m := attach.Message{Kind: attach.Hello, Version: attach.Version, Name: c.opts.name}
	for _, k := range c.opts.conditions {
		m.Conditions = append(m.Conditions, attach.Condition{ID: uint32(k.ID), Version: k.Version, Name: k.Name})
	}
	return m
}

func (c *Client) attach(ctx context.Context, dir string) error {
	var err error
	if err := c.dial(ctx, dir); err != nil {
		return err
	}
	hello := c.hello()
	var answer attach.Message
	if err := c.ask(ctx, &hello, &answer); err != nil {
		return err
	}
	if answer.Kind != attach.Welcome || answer.Version != attach.Version {
		return fmt.Errorf("mainz: %s: the dispatcher speaks version %d, this program %d: %w; upgrade the older one",
			dir, answer.Version, attach.Version, ErrIncompatible)
	}
	if c.door, err = shm.OpenDoorbell(dir); err != nil {
		return fmt.Errorf("mainz: %w", err)
	}
	wake := func() {
		if b := c.bell; b != nil {
			b.Wake()
		}
	}
	if err := c.join(ctx, dir, ltdb.Options{Name: c.opts.name, Conditions: c.opts.conditions, Doorbell: wake,
		LookEvery: c.opts.lookEvery}); err != nil {
		return err
	}
	seg := c.store.Segment()
	node, bell, err := call.NodeOf(seg)
	if err != nil {
		return fmt.Errorf("mainz: %w", err)
	}
	if c.bell, err = ring.OpenBell(seg.Region(), bell, c.door); err != nil {
		return fmt.Errorf("mainz: %w", err)
	}
	generation := uint32(seg.Slot(c.store.Slot()).Generation.Load())
	if err := c.ask(ctx, &attach.Message{Kind: attach.Joined, Version: attach.Version, Segment: seg.Header().ID,
		Slot: c.store.Slot(), Generation: generation}, &answer); err != nil {
		return err
	}
	if c.ring, err = call.Open(seg, c.store.Slot(), c.bell, node.Spin.Load(), c.opts.teller()); err != nil {
		return fmt.Errorf("mainz: %w", err)
	}
	c.watch = make(chan struct{})
	go c.watchNode(seg, node)
	return nil
}

// lookEvery is how often a client looks at its doorbell, and whether to dial again.
const lookEvery = 500 * time.Millisecond

// watchNode ends the calls through the ring with the segment, looks from time to
// time at what a node has besides, and dials again when the dispatcher has ended. The
// segment itself is looked at by the guardian of the client's slot.
func (c *Client) watchNode(seg *shm.Segment, node *call.Node) {
	defer close(c.watch)
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	lost := false
	// The guardian, which sleeps in the kernel anyway, sees the connection's end at
	// once, and looks at the segment: mainzd may have ended with it.
	hungUp := make(chan struct{}, 1)
	alarm := func() {
		select {
		case hungUp <- struct{}{}:
		default:
		}
	}
	c.store.Alarm(c.conn.FD(), alarm)
	defer c.store.Alarm(-1, nil)
	ctx, cancel := context.WithCancel(c.ring.Context())
	var dialled chan *attach.Conn // the answer of dialAgain, while it runs
	defer func() {
		cancel()
		if dialled != nil {
			if conn := <-dialled; conn != nil {
				_ = conn.Close()
			}
		}
	}()
	retry := backoff{}
	for {
		select {
		case <-c.ring.Ended():
			return
		case <-seg.Done():
			c.ring.End(fmt.Errorf("mainz: %w", seg.Ended()))
			return
		case conn := <-dialled:
			dialled = nil
			if conn == nil {
				retry.again()
				break
			}
			c.store.Alarm(conn.FD(), alarm)
			_ = c.conn.Close()
			c.conn, lost, retry = conn, false, backoff{}
		case <-hungUp:
			lost = c.conn.Lost() // dialled again when there is somebody: see below
		case <-t.C:
			// A doorbell that was deleted reaches nobody. On an error it is as
			// it was: mainzd hears us a little later.
			_ = c.door.Renew()
			lost = lost || c.conn.Lost()
			if lost && dialled == nil && retry.due(node.Incarnation.Load()) {
				answer := make(chan *attach.Conn)
				dialled = answer
				go func() { answer <- c.dialAgain(ctx) }()
			}
		}
	}
}

// backoff says when to dial again: at once where another dispatcher is there, then at
// every look, at every second one, and so on up to maxWait.
type backoff struct {
	met   uint32 // the incarnation of the dispatcher that was met last
	wait  int    // looks to let pass
	after int    // looks to let pass when it fails once more
}

const maxWait = 16 // looks: 8 s

func (b *backoff) due(incarnation uint32) bool {
	if incarnation != b.met {
		*b = backoff{met: incarnation}
	}
	b.wait--
	return b.wait < 0
}

// again notes that dialling has failed.
func (b *backoff) again() {
	b.wait = b.after
	b.after = min(2*b.after+1, maxWait)
}

// dialAgain connects to the dispatcher that serves the client since another one has
// died, so that the kernel names this process for its slot. It returns nil if there is
// none, or it does not take the client: calls go on by ring all the same.
func (c *Client) dialAgain(ctx context.Context) *attach.Conn {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	conn, err := attach.Dial(ctx, c.store.Dir())
	if err != nil {
		return nil
	}
	if err := c.prove(ctx, conn); err != nil {
		_ = conn.Close()
		return nil
	}
	return conn
}

// prove shows the dispatcher that this process is the tenant of its slot.
func (c *Client) prove(ctx context.Context, conn *attach.Conn) error {
	hello, slot := c.hello(), c.store.Slot()
	var m attach.Message
	if err := conn.Call(ctx, &hello, &m); err != nil {
		return err
	}
	seg := c.store.Segment()
	generation := uint32(seg.Slot(slot).Generation.Load())
	if err := conn.Call(ctx, &attach.Message{Kind: attach.Again, Version: attach.Version, Segment: seg.Header().ID,
		Slot: slot, Generation: generation}, &m); err != nil {
		return err
	}
	if m.Kind != attach.Prove {
		return ErrIncompatible
	}
	err := c.store.Stretch(m.Stretch)
	if err == nil {
		err = conn.Call(ctx, &attach.Message{Kind: attach.Proven, Version: attach.Version}, &m)
	}
	if err == nil && m.Kind != attach.Ready {
		err = ErrIncompatible
	}
	return errors.Join(err, c.store.Stretch(0))
}

// Ping asks the dispatcher for nothing. It returns when that has answered.
func (c *Client) Ping(ctx context.Context) error {
	if ctx == nil {
		return errNoContext
	}
	if c.ring == nil {
		return errObserver
	}
	return c.ring.Nop(ctx)
}

// Dir is the directory that the client has attached to.
func (c *Client) Dir() string { return c.store.Dir() }

// Close ends the client as its death would: locks are released, pieces removed,
// waits end with ErrClosed. Idempotent.
func (c *Client) Close() error {
	if c.shut.Swap(true) {
		return nil
	}
	var errs []error
	if c.ring != nil {
		c.ring.Close(ErrClosed)
	}
	if c.watch != nil {
		<-c.watch // it uses what is closed now
	}
	if c.store != nil {
		errs = append(errs, c.store.Close())
	}
	if c.conn != nil {
		errs = append(errs, c.conn.Close())
	}
	if c.door != nil {
		errs = append(errs, c.door.Close())
	}
	return errors.Join(errs...)
}

// Mode is fixed when a database is created.
type Mode = ltdb.Mode

// KV: values are overwritten, appended bytes are plain data. Pieces: values are
// the pieces of living clients; no Store.
const (
	KV     = ltdb.KV
	Pieces = ltdb.Pieces
)

// OpenOption changes how Open works.
type OpenOption func(*openOptions)

type openOptions struct {
	ltdb.DatabaseOptions
	lockTimeout time.Duration
	noResupply  bool // Resupply without a function
}

// MustExist makes it an ErrNoDatabase if there is no such database.
func MustExist() OpenOption { return func(o *openOptions) { o.MustExist = true } }

// Clear deletes all records of a kv database if no other client has it open, and this
// one opens it for the first time: what clients that ended have left is of no use to
// many applications. Pieces need no clearing, they end with their clients. ErrMode for
// an observer.
func Clear() OpenOption { return func(o *openOptions) { o.Clear = true } }

// Resupply (the plan's callback) rebuilds a kv database whose records are gone, as
// they are when a node starts anew: f is called by Open if no other client has the
// database open and nothing is in it, and puts back what this client knows; others who
// open wait for that. Its error ends Open, and leaves the database empty. f must not
// open databases, nor close the client. ErrMode for an observer.
func Resupply(f func(ctx context.Context, put func(key, data []byte) error) error) OpenOption {
	return func(o *openOptions) { o.DatabaseOptions.Resupply, o.noResupply = f, f == nil }
}

// LockTimeout (the plan's LCKTIMEOUT) is how long a record's lock may be held by a
// client of another node than the record's; default 10 s. After that the record is
// unlocked, and its holder's calls say ErrNotLocked. It is more than 0. On one node it has no effect: who
// holds a lock there is known to live.
func LockTimeout(d time.Duration) OpenOption { return func(o *openOptions) { o.lockTimeout = d } }

// Records says how many records to expect, which sizes a new database's hash
// table; default 100,000.
func Records(n int) OpenOption { return func(o *openOptions) { o.Records = n } }

// Open attaches to the named database, and creates it with the given mode if it
// is new; ErrMode if it exists with another one.
func (c *Client) Open(ctx context.Context, name string, mode Mode, opts ...OpenOption) (*DB, error) {
	o := openOptions{lockTimeout: 10 * time.Second}
	for i, f := range opts {
		if f == nil {
			return nil, wrong(fmt.Sprintf("option %d of Open is nil", i+1))
		}
		f(&o)
	}
	switch {
	case o.noResupply:
		return nil, wrong("Resupply has no function; leave the option away, or give one")
	case o.lockTimeout <= 0:
		return nil, wrong(fmt.Sprintf("LockTimeout of %v: a lock must be held for some time", o.lockTimeout))
	}
	l, err := c.store.Database(ctx, name, mode, o.DatabaseOptions)
	if err != nil {
		return nil, fmt.Errorf("mainz: %w", err)
	}
	limit := uint32(min(max(o.lockTimeout, time.Millisecond)/time.Millisecond, 1<<31))
	return &DB{c: c, l: l, lockTimeout: limit, special: c.opts.forceRing || c.opts.events != nil && c.ring != nil}, nil
}

// Stats holds counters since the attach; the histograms stay in shared memory
// (mainz stat).
type Stats struct {
	ltdb.Stats        // of the bypass
	Ring       uint64 // calls through the ring
}

// Stats reads this client's counters.
func (c *Client) Stats() Stats {
	s := Stats{Stats: c.store.Stats()}
	if c.ring != nil {
		s.Ring = c.ring.Count()
	}
	return s
}
