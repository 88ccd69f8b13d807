package dispatcher

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/protocol/wire"
	"github.com/mainzdb/mainz/ring"
	"github.com/mainzdb/mainz/shm"
)

// Options say which node it is and how it behaves.
type Options struct {
	Dir   string        // of the node
	Store ltdb.Options  // Create, Wipe, Config, Conditions, Log
	Idle  ring.Strategy // what to do when there is nothing to do
	Log   *slog.Logger  // nil: nowhere; it must not wait for its reader

	// StallLimit is for how long a client may be stopped in the middle of a call; then
	// it is ended. 0: DefaultStallLimit; negative: for ever.
	StallLimit time.Duration

	// Alive is called by the loop itself once in AliveEvery, so that a loop that
	// hangs is noticed. It must not wait. 0 or nil: never.
	Alive      func()
	AliveEvery time.Duration
}

// Stats count since Open. They belong to the dispatcher's goroutine.
type Stats struct {
	Turns, Sleeps, Cells, Requests, Replies, Rung, Attached, Gone, Broken, Evicted uint64
}

// Dispatcher is the loop of one node.
type Dispatcher struct {
	opts     Options
	log      *slog.Logger
	keeper   *ltdb.Keeper
	seg      *shm.Segment
	node     *call.Node
	door     *shm.Doorbell
	bell     *ring.Bell
	listener *attach.Listener
	core     *protocol.Node
	stable   *protocol.Memory
	store    *store
	calls    *calls
	clients  []*client
	bySlot   map[uint32]*client
	conns    []*conn

	incarnation uint32
	maxRequest  int
	start       time.Time
	now         protocol.Instant
	next        protocol.Instant // when the core has something to do
	scanAt      protocol.Instant // when to look for the dead
	socketsAt   protocol.Instant
	keepAt      protocol.Instant // when to look at the node's files
	lacks       map[string]bool  // files that could not be made again
	aliveAt     protocol.Instant
	acceptAt    protocol.Instant // when to look at the listener again, after an error
	unfinished  int              // of conns, those that have no slot yet
	acceptLog   quiet
	pollLog     quiet
	eff         protocol.Effects
	msg         wire.Message
	gate        protocol.Gate // as it stands in the segment
	passNum     uint64
	passing     bool
	left        ltdb.Left        // of the dispatchers before this one
	leftOver    bool             // nothing of it is to be done any more
	sliceAt     protocol.Instant // when to go on with what can be interrupted, if there are requests
	orphans     bool             // the dead may have left pieces
	tidying     bool             // a walk over them is under way
	victims     victims
	complained  uint32 // slot of a stopped client of which the log has spoken
	first       int    // of clients, whose ring comes first
	stuck       int    // sleeps since a client that is behind with its replies took some
	rung        func(db uint32, key []byte)
	polls       pollSet
	stopping    atomic.Bool
	complaints  complaints
	undead      map[uint32]*undead // by slot
	noted       map[string]bool    // damage that the log has named
	headerAt    protocol.Instant   // when to look at the header

	Stats Stats
}

const (
	scanEvery    = 100 * link.Millisecond
	socketsEvery = link.Millisecond
	retryEvery   = 100 * link.Millisecond // after an error of the system
	complainFor  = 5 * link.Second        // of the same error there is one line in this time
	stopLimit    = link.Second            // for answering what runs
)

// Open takes the node: the directory, the segment in it, which is made if there
// is none and the options allow it, the dispatcher's slot, and the socket.
func Open(ctx context.Context, opts Options) (*Dispatcher, error) {
	if opts.Store.Config.PNN != 0 {
		return nil, fmt.Errorf("dispatcher: node %d: a single node has number 0", opts.Store.Config.PNN)
	}
	d := &Dispatcher{opts: opts, log: opts.Log, bySlot: map[uint32]*client{}, start: time.Now()}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.opts.StallLimit == 0 {
		d.opts.StallLimit = DefaultStallLimit
	}
	if d.opts.Alive == nil {
		d.opts.AliveEvery = 0
	}
	if err := d.guarded(func() error { return d.open(ctx) }); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Dispatcher) open(ctx context.Context) (err error) {
	opts := d.opts.Store
	opts.Peer, opts.Conditions = d.dialled, nil
	if d.keeper, err = ltdb.OpenKeeper(ctx, d.opts.Dir, opts); err != nil {
		return err
	}
	d.victims = d.keeper
	d.seg = d.keeper.Store().Segment()
	if err := d.register(ctx); err != nil {
		return err
	}
	var bell shm.Offset
	if d.node, bell, err = call.NodeOf(d.seg); err != nil {
		return err
	}
	if err := shm.MakeDoorbell(d.opts.Dir, shm.Config{Group: d.opts.Store.Config.Group}); err != nil {
		return err
	}
	if d.door, err = shm.OpenDoorbell(d.opts.Dir); err != nil {
		return err
	}
	if d.bell, err = ring.OpenBell(d.seg.Region(), bell, d.door); err != nil {
		return err
	}
	d.node.Spin.Store(ring.SpinTicks()) // takes some milliseconds: before anybody waits for us
	var seed [12]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return err
	}
	d.incarnation = binary.LittleEndian.Uint32(seed[:]) | 1
	d.maxRequest = d.keeper.Store().MaxValue() + call.MaxKey + 64
	d.calls = &calls{seg: d.seg, node: d.node}
	d.store = newStore(d.keeper, d.calls)

	// What the dispatcher before us has left. The gate stays open: a node that is
	// alone gives no record away, so nothing that a client is in the middle of has
	// to be over before the node opens, and a client that is stopped there keeps
	// nobody. (Where other nodes are, a promise to them needs that: ltdb's Freeze
	// and Pass.) Locks and flags of that dispatcher are released by the loop.
	warm := d.node.Magic.Load() == call.Magic
	d.calls.settle(d.store, func(slot, generation uint32) bool {
		return slot >= 1 && slot <= d.seg.Slots() && d.node.Attached[slot].Load() == generation &&
			d.store.alive(slot, generation)
	})
	d.load(warm)
	d.core = protocol.New(d.readClock(), protocol.Config{
		Self: 0, Nodes: 1, Incarnation: uint64(d.incarnation), Seed: binary.LittleEndian.Uint64(seed[4:]),
		WallMS: d.start.UnixMilli(), Hash: d.store.hash, Mode: d.store.mode, Conditions: d.store,
		Heartbeat: link.Second, // there is nobody to ask
		Fault:     func(what string) { d.complain("broken promise", errors.New(what)) },
	}, d.stable, d.store)
	d.rung = func(db uint32, key []byte) {
		d.Stats.Rung++
		d.core.Released(d.now, db, key)
	}
	d.node.PID.Store(uint32(os.Getpid()))
	d.node.Started.Store(uint64(d.start.UnixNano()))
	d.node.Incarnation.Store(d.incarnation)
	d.node.Magic.Store(call.Magic)
	for slot := uint32(1); slot <= d.seg.Slots(); slot++ {
		g := d.node.Attached[slot].Load()
		if g == 0 {
			continue
		}
		if d.store.alive(slot, g) {
			if _, err := d.serve(slot, g, true); err == nil {
				continue
			} else {
				d.log.Warn("client can't be taken over; it has to attach again", "slot", slot, "error", err)
			}
		}
		d.node.Attached[slot].Store(0)
	}
	d.orphans = true
	if d.listener, err = attach.Listen(d.opts.Dir, d.opts.Store.Config.Group); err != nil {
		return err
	}
	// Until the core has opened nobody is served: it takes a few turns.
	for d.gate.State != protocol.GateOpen {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("dispatcher: opening the node: %w", err)
		}
		if err := d.whole(); err != nil {
			return err
		}
		if !d.turn() {
			time.Sleep(100 * time.Microsecond)
		}
	}
	d.log.Info("node is open", "dir", d.opts.Dir, "warm", warm, "clients", len(d.clients), "epoch",
		uint64(d.gate.Epoch))
	return nil
}

// register makes the conditions known to the segment. A client that is stopped may have
// the latch of their table: it is ended as the loop would do it, or waited for.
func (d *Dispatcher) register(ctx context.Context) error {
	for {
		put, err := d.keeper.Register(d.opts.Store.Conditions)
		if !put {
			return err
		}
		if end := d.whole(); end != nil {
			return end
		}
		d.readClock()
		d.evict()
		if _, err := d.keeper.RecoverDead(func(uint32) {}, slice()); err != nil {
			d.complain("recovery of a dead client", err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("dispatcher: %s: conditions: %w (%w)", d.opts.Dir, err, ctx.Err())
		}
		time.Sleep(time.Millisecond)
	}
}

// load gives the core the memory that it has in the segment. A segment that no
// dispatcher was in yet belongs to this node as well: a single node keeps what
// is there.
func (d *Dispatcher) load(warm bool) {
	s := protocol.Words{Memory: wire.MemoryFull}
	s.Life = d.seg.Gate().Life.Load()
	if warm {
		s.Promised, s.Taken, s.Opened = protocol.Epoch(d.node.Promised.Load()), protocol.Epoch(d.node.Taken.Load()),
			protocol.Epoch(d.node.Opened.Load())
		s.HighVNN = protocol.VNN(d.node.HighVNN.Load())
	}
	// A node that is alone can take any epoch: what can't be one is left out.
	if max(s.Promised.Counter(), s.Taken.Counter(), s.Opened.Counter()) > lastCounter || s.HighVNN > lastVNN {
		d.complain("damage", errors.New("the epochs of the last dispatcher make no sense; this one begins anew"))
		s.Promised, s.Taken, s.Opened, s.HighVNN = 0, 0, 0, 0
	}
	if s.Taken != 0 {
		s.Map.Members = []wire.Member{{VNN: s.HighVNN, PNN: 0, Life: s.Life}}
		s.Told, s.ToldLife = 1, s.Life
	}
	if n := d.node.OpCount.Load(); n <= lastOPID {
		s.OPIDs = n
	}
	d.stable = protocol.WithWords(s, protocol.Lines{})
	d.node.OpCount.Store(s.OPIDs + opidStep)
}

// What no node comes to: the rest of the range is there to count on.
const (
	lastCounter = 1 << 46
	lastVNN     = 1 << 31
	lastOPID    = 1 << 60
)

// opidStep is how many OPIDs are taken from the segment at a time.
const opidStep = 1 << 20

// save keeps what the core must find again.
func (d *Dispatcher) save() {
	n, s := d.node, d.stable
	for _, v := range []struct {
		w *shm.Word64
		x uint64
	}{{&n.Promised, uint64(s.Promised)}, {&n.Taken, uint64(s.Taken)}, {&n.Opened, uint64(s.Opened)},
		{&n.Life, s.Life}, {&n.HighVNN, uint64(s.HighVNN)}} {
		if v.w.Load() != v.x {
			v.w.Store(v.x)
		}
	}
	if left := n.OpCount.Load() - s.OPIDs; left < opidStep/2 {
		n.OpCount.Store(s.OPIDs + opidStep)
	}
}

// readClock sets the time of this turn by the clock, and returns it.
func (d *Dispatcher) readClock() protocol.Instant {
	d.now = protocol.Instant(time.Since(d.start)) + link.Second
	return d.now
}

// Run serves until ctx ends, and answers then what has come in.
func (d *Dispatcher) Run(ctx context.Context) error {
	return d.guarded(func() error { return d.run(ctx) })
}

func (d *Dispatcher) run(ctx context.Context) error {
	rung := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		d.stopping.Store(true)
		d.door.Ring()
		close(rung)
	})
	defer func() {
		if !stop() {
			<-rung // it uses the doorbell
		}
	}()
	// The guardian is told of the end of the segment by the kernel; the loop may sleep.
	over, told := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		select {
		case <-d.seg.Done():
			d.door.Ring()
		case <-over:
		}
	}()
	defer func() { close(over); <-told }()
	idle := d.opts.Idle.Start()
	worked := true // since the last sleep: else there is nothing to spin for
	for !d.stopping.Load() {
		if d.turn() {
			worked = true
			idle.Reset()
		} else if !(worked || d.opts.Idle == ring.Busy) || !idle.Again() {
			if err := d.sleep(); err != nil {
				return err
			}
			worked = false
			idle.Reset()
		}
		if err := d.whole(); err != nil {
			return err
		}
	}
	for limit := d.readClock() + stopLimit; d.turn() && d.now < limit; {
	}
	// Clients that left just before us: nobody may come after us for long.
	for d.scan(); d.scanAt <= d.now; d.scan() {
	}
	for limit := d.readClock() + stopLimit; d.tidying && d.readClock() < limit; {
		d.tidy()
	}
	d.perform()
	return nil
}

// turn is one turn of the loop; it reports whether there was anything to do.
func (d *Dispatcher) turn() bool {
	d.readClock()
	d.Stats.Turns++
	if d.opts.AliveEvery > 0 && d.now >= d.aliveAt {
		d.aliveAt = d.now + protocol.Instant(d.opts.AliveEvery)
		d.opts.Alive()
	}
	// Records that were handed over first: those who wait for them are before
	// those who ask now.
	rung := d.Stats.Rung
	d.keeper.Rung(d.rung)
	did := d.rings()
	if d.now >= d.socketsAt {
		did = d.sockets() || did
	}
	if d.now >= d.scanAt {
		d.scan()
	}
	if d.now >= d.next {
		d.core.Tick(d.now)
	}
	if d.passing {
		d.goOn()
	}
	replies := d.Stats.Replies
	d.perform()
	// What can be interrupted gets half of the time while there are requests.
	if (!d.leftOver || d.tidying) && (!did || d.now >= d.sliceAt) {
		if !d.leftOver {
			d.leftOver = d.keeper.ReleaseLeft(&d.left, nil, slice())
		} else {
			d.tidy()
		}
		d.sliceAt = d.readClock() + 2*protocol.Instant(sliceLimit)
		did = true
	}
	return did || d.Stats.Rung != rung || d.Stats.Replies != replies
}

// rings takes what the clients ask: a bounded number of cells of each, and of all
// together, so that a turn is short however many there are. The next turn begins with
// who comes after the last one.
func (d *Dispatcher) rings() bool {
	n, left := 0, d.turnCells()
	for i := range d.clients {
		at := (d.first + i) % len(d.clients)
		c := d.clients[at]
		if len(c.queue) > 0 && d.pump(c) {
			d.stuck = 0
			n++
		}
		if !c.broken && len(c.queue) < maxQueue && c.in.Ready() {
			did := c.in.Poll(min(ringBudget, left), c.take)
			n += did
			if left -= did; left <= 0 {
				d.first = at + 1
				return true
			}
		}
	}
	return n > 0
}

// turnCells is how many cells are taken in a turn. One that abandons a call has the core
// look through all that are under way, so it is fewer when these are very many.
func (d *Dispatcher) turnCells() int {
	return max(turnBudget/16, turnBudget*call.MaxCalls/max(call.MaxCalls, len(d.calls.states)))
}

// perform carries out what the core wants done.
func (d *Dispatcher) perform() {
	e := &d.eff
	d.core.Take(e)
	d.next = e.Next
	if e.Freeze {
		d.passNum, d.passing = e.PassNum, true
	}
	if e.Gate != d.gate {
		d.setGate(e.Gate)
	}
	d.save()
	for i := range e.Events {
		v := &e.Events[i]
		for _, c := range d.clients {
			d.say(c, call.Opened, 0, call.AppendOpened(nil, uint64(v.Epoch), uint64(v.Members), uint64(v.Joined),
				uint64(v.Left), v.Kept))
		}
	}
	for i := range e.Replies {
		r := &e.Replies[i]
		if st := d.calls.find(r.Cookie); st != nil && !st.answered {
			d.Stats.Replies++
			d.answer(st, r.Status, r.Why, r.RSN, r.Data)
		}
	}
}

func (d *Dispatcher) setGate(g protocol.Gate) {
	if g.State == protocol.GateOpen {
		d.keeper.Mapped(uint64(g.Epoch), uint32(g.VNN), 1, 0)
		d.keeper.Lease(shm.NoLease, shm.NoLease)
		d.keeper.Open()
	}
	d.gate = g
}

// goOn ends the pass that the core has asked for: see open.
func (d *Dispatcher) goOn() {
	d.passing = false
	d.core.Frozen(d.now, d.passNum)
}

// sliceLimit is how long the loop works in a row on what can be interrupted, while
// requests wait.
const sliceLimit = 500 * time.Microsecond

// slice returns a function that says, when the work on it is to be interrupted.
func slice() (goOn func() bool) {
	limit := time.Now().Add(sliceLimit)
	return func() bool { return time.Now().Before(limit) }
}

// tidy goes on with the removal of dead clients' pieces.
func (d *Dispatcher) tidy() {
	switch _, left := d.keeper.RemoveOrphans(nil, slice()); left {
	case ltdb.NoOrphans:
		d.orphans, d.tidying = false, false
	case ltdb.OrphansHeld:
		d.tidying = false // until the next scan
	}
}

// scan looks for clients that are dead or have left. How many of them there may be
// at once has no bound that a request could wait for: then it goes on in the next
// turn.
func (d *Dispatcher) scan() {
	d.scanAt = d.now + scanEvery
	d.keep()
	d.mend()
	goOn := slice()
	more, err := d.keeper.RecoverDead(func(uint32) { d.orphans = true }, goOn)
	if err != nil {
		d.complain("recovery of a dead client", err)
	}
	for i := len(d.clients) - 1; i >= 0; i-- {
		if c := d.clients[i]; !d.store.alive(c.slot, c.generation) {
			d.Stats.Gone++
			d.gone(c)
			if !goOn() {
				more = true
				break
			}
		}
	}
	if more {
		d.scanAt = d.now
	}
	d.evict()
	d.unproven()
	// Another client may have recovered a dead one after this loop has looked for its
	// pieces: they come to the orphans with the recovery's last steps.
	d.orphans = d.orphans || d.keeper.Orphaned()
	if d.orphans && d.gate.State == protocol.GateOpen {
		d.tidying = true
	}
}

// Close gives the node up and leaves its segment for the next dispatcher. It is
// idempotent.
func (d *Dispatcher) Close() error { return d.guarded(d.close) }

func (d *Dispatcher) close() error {
	var errs []error
	if d.listener != nil {
		errs = append(errs, d.listener.Close())
		d.listener = nil
	}
	for len(d.conns) > 0 {
		d.closePeer(d.conns[0].Peer)
	}
	for _, c := range d.clients {
		if c.peer != nil {
			d.closePeer(c.peer)
		}
	}
	if d.keeper != nil {
		if d.node != nil {
			d.node.Incarnation.Store(0)
			d.keeper.Leave()
		}
		errs = append(errs, d.keeper.Close())
		d.keeper = nil
	}
	if d.door != nil {
		errs = append(errs, d.door.Close())
		d.door = nil
	}
	return errors.Join(errs...)
}
