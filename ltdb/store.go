package ltdb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// HugePages says whether the segment wants pages of 2 MiB.
type HugePages = shm.HugePages

// How to get pages of 2 MiB: if the file system gives them, never, or not
// without.
const (
	HugeAuto    = shm.HugeAuto
	HugeNever   = shm.HugeNever
	HugeRequire = shm.HugeRequire
)

// Config sizes a segment that is created. The zero Config works.
type Config struct {
	Size      uint64    // bytes of the whole segment; 0: 256 MiB
	Slots     int       // clients at a time, at most 4,094; 0: 256
	MaxValue  int       // longest value in bytes, at most MaxValueLimit, which 0 means too
	Databases int       // at most so many; 0: 16
	HugePages HugePages // the zero value is HugeAuto
	Cluster   string    // name of the cluster, for status output; "" means "default"
	PNN       uint32    // number of this node
	Group     string    // group of the files; "": the process's own
	// SpanSize is the unit of memory that belongs to one class of blocks, a power of two;
	// 0: fitted to Size and MaxValue.
	SpanSize uint64
}

// Options says how Open attaches. The zero Options attaches to a segment that
// is there.
type Options struct {
	Create   bool   // make the segment if there is none, or one of another boot of the machine
	Wipe     bool   // make a new segment whatever is there; ErrInUse while a dispatcher owns it
	Config   Config // used if a segment is made
	Name     string // of this client, in status output; "": the base name of argv[0]
	ReadOnly bool   // an observer: no slot, no locks, Fetch and Traverse only
	// Conditions are the caller's own condition functions, with ids from 16 on.
	// ErrIncompatible if the segment knows an id under another name or version.
	Conditions []Condition
	// Doorbell is called when a record was handed to the dispatcher, or one that
	// it attends has changed: it wakes the dispatcher if that sleeps. It must
	// neither block nor call the store. nil: the dispatcher looks by itself.
	Doorbell func()
	// Peer is shm.JoinOptions.Peer: who has dialled as the tenant of a slot.
	Peer func(slot uint32, generation uint64) (pidfd, pid int, ok bool)
	// LookEvery is shm.JoinOptions.LookEvery.
	LookEvery time.Duration
	Log       *slog.Logger // warnings about what was attached; nil: none

	dispatcher bool // the dispatcher's own store
}

// Store is one client's place in a segment: a process that shares its
// databases with others. It is safe for many goroutines.
type Store struct {
	seg  *shm.Segment
	r    *shm.Region
	c    *shm.Client // nil in a read-only store
	gate *shm.GateLine
	leas *shm.LeaseLine
	slot uint32
	me   uint64 // slot, as an entry's owner

	classes   []classLine
	spans     []spanLine
	dbs       []databaseLine
	dbHead    *databasesHead
	node      *nodeArea
	condLines []conditionLine
	conds     []Condition // this client's own
	doorbell  func()
	body      *body
	dataStart shm.Offset
	spanShift uint
	reserve   int // spans that ordinary writes leave alone
	maxValue  int
	maxBlock  uint64    // the largest block that fits a span
	topClass  int       // its class
	pnn       uint32    // of this node
	life      uint64    // of the node, when the store was opened
	handles   []*Handle // that are open

	actors [shm.HandlesPerSlot]actor
	idle   chan struct{} // nudged when an actor is given back and somebody waits
	wanted atomic.Int32  // calls that wait for an actor

	hist   atomic.Pointer[histograms]
	histMu sync.Mutex

	locks lockPool
	turns turns
	index pieceIndex
	waits changeWaits

	mu     sync.Mutex // opens, handles, close
	open   map[string]*DB
	closed atomic.Bool
	inside atomic.Int64 // calls that look at the segment without an actor
	left   bool         // the slot was given back
	guest  bool         // the segment is another Store's, which closes it
}

// OpenHeap makes a store in the Go heap, for this process alone: for tests,
// under the race detector, and on systems without shared memory. Join adds
// clients to it. The conditions are those of Options.
func OpenHeap(cfg Config, conds ...Condition) (*Store, error) {
	sc, err := segmentConfig(cfg)
	if err != nil {
		return nil, err
	}
	seg, err := shm.NewHeap(sc, fill)
	if err != nil {
		return nil, err
	}
	return join(context.Background(), seg, Options{Name: "heap", Conditions: conds})
}

// Join adds another client to a store's segment, as another process would.
// It serves tests over a heap store.
func (s *Store) Join(ctx context.Context, name string, conds ...Condition) (*Store, error) {
	j, err := join(ctx, s.seg, Options{Name: name, Conditions: conds})
	if err == nil {
		j.guest = true
	}
	return j, err
}

func join(ctx context.Context, seg *shm.Segment, opts Options) (*Store, error) {
	if opts.Name == "" {
		opts.Name = filepath.Base(os.Args[0])
	}
	s, err := newStore(seg)
	if err != nil {
		return nil, err
	}
	s.doorbell = opts.Doorbell
	s.c, err = seg.Join(ctx, shm.JoinOptions{Name: opts.Name, Dispatcher: opts.dispatcher, Repair: s.repair,
		Shared: s.shared, Peer: opts.Peer, LookEvery: opts.LookEvery})
	if err != nil {
		return nil, err
	}
	s.slot = s.c.Slot()
	s.me = ownedBy(s.slot)
	s.body = shm.At[body](s.r, seg.SlotBody(s.slot))
	for i := range s.actors {
		s.actors[i].init(s, i)
	}
	s.locks.init(s)
	s.countAnew()
	s.keepUsable()
	if opts.dispatcher {
		s.mendBuiltin()
	}
	// Who comes tidies up after the dead. Damage that he meets on the way keeps
	// nobody out of what is whole.
	if _, err = s.c.RecoverAll(); err == nil || errors.Is(err, ErrCorrupt) {
		err = s.register(ctx, opts.Conditions)
	}
	if err == nil {
		err = s.tidyBriefly(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.c.Leave())
	}
	return s, nil
}

// tidyBriefly is the tidy of who comes. Somebody who is stopped with a latch that it
// takes, or damage, keeps nobody out: whoever comes next does it.
func (s *Store) tidyBriefly(ctx context.Context) error {
	brief, stop := ctx, func() {}
	if !simulated() { // there a clock would not end the same run at the same place
		brief, stop = context.WithTimeout(ctx, leaveLimit)
	}
	defer stop()
	_, err := s.tidy(brief)
	if errors.Is(err, ErrCorrupt) || brief.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}

// withDefaults fills in what the zero Config leaves open.
func (c Config) withDefaults() Config {
	if c.Size == 0 {
		c.Size = 256 << 20
	}
	if c.Slots == 0 {
		c.Slots = 256
	}
	if c.MaxValue == 0 {
		c.MaxValue = MaxValueLimit
	}
	if c.Databases == 0 {
		c.Databases = 16
	}
	if c.Cluster == "" {
		c.Cluster = "default"
	}
	return c
}

// segmentConfig turns sizes into areas.
func segmentConfig(c Config) (shm.Config, error) {
	c = c.withDefaults()
	switch {
	case c.Slots < 1 || c.Slots >= DispatcherSlot:
		return shm.Config{}, fmt.Errorf("%d slots: must be 1 to %d", c.Slots, DispatcherSlot-1)
	case c.MaxValue < 0 || c.MaxValue > MaxValueLimit:
		return shm.Config{}, fmt.Errorf("values of %d bytes: must be at most %d: %w", c.MaxValue, MaxValueLimit,
			ErrTooBig)
	case c.Databases < 1 || c.Databases > 4096:
		return shm.Config{}, fmt.Errorf("%d databases: must be 1 to 4,096", c.Databases)
	}
	largest := uint64(classSizes[classOf(blockSize(maxKey, c.MaxValue))])
	if c.SpanSize == 0 {
		// 2 MiB, a huge page, if the store is large; small stores need more
		// spans than they have classes in use.
		c.SpanSize = min(2<<20, max(64<<10, ceilPow2(c.Size/512)))
		c.SpanSize = max(c.SpanSize, ceilPow2(largest))
	}
	if least := max(4096, largest); c.SpanSize&(c.SpanSize-1) != 0 || c.SpanSize < least || c.SpanSize > 1<<30 {
		return shm.Config{}, fmt.Errorf("spans of %d bytes: must be a power of two from %d, which holds the largest block, to %d", c.SpanSize, least, 1<<30)
	}
	const nodeSize = 256 << 10
	fixed := []shm.AreaSpec{
		{ID: shm.AreaRings, Size: uint64(c.Slots) * ringsSize},
		{ID: shm.AreaNode, Size: nodeSize},
		{ID: shm.AreaDatabases, Size: databasesSize(uint64(c.Databases))},
		{ID: shm.AreaClasses, Size: classes * classLineSize},
	}
	used := 2*shm.HeaderSize + alignUp(uint64(c.Slots+1)*shm.SlotSize, 4096)
	for _, a := range fixed {
		used += alignUp(a.Size, 4096)
	}
	spans := uint64(0)
	if c.Size > used {
		spans = (c.Size - used) / (c.SpanSize + spanLineSize)
	}
	for spans > 0 && alignUp(used+alignUp(spans*spanLineSize, 4096), c.SpanSize)+spans*c.SpanSize > c.Size {
		spans--
	}
	if spans < 4 {
		return shm.Config{}, fmt.Errorf("a segment of %d bytes has no room for %d slots (%d bytes) and 4 spans of %d: make it larger, or slots and values fewer and smaller: %w",
			c.Size, c.Slots, used, c.SpanSize, ErrNoSpace)
	}
	if spans<<bits.TrailingZeros64(c.SpanSize) > 256<<30 {
		return shm.Config{}, fmt.Errorf("a segment holds at most 256 GiB of records")
	}
	areas := append(fixed,
		shm.AreaSpec{ID: shm.AreaSpans, Size: spans * spanLineSize},
		shm.AreaSpec{ID: shm.AreaData, Size: spans * c.SpanSize})
	return shm.Config{
		Cluster: c.Cluster, PNN: c.PNN, Slots: uint32(c.Slots), HugePages: c.HugePages, Group: c.Group,
		Areas: areas, Layout: layout(), DataAlign: c.SpanSize,
		Params: [8]uint64{
			paramSpanShift: uint64(bits.TrailingZeros64(c.SpanSize)),
			paramMaxValue:  uint64(c.MaxValue),
			paramDatabases: uint64(c.Databases),
			paramReserve:   max(1, spans/32),
		},
	}, nil
}

// fill initialises a new segment's areas. They are zero, and zero is what
// they start from, but for the built-in conditions; the gate is opened last: a store without a dispatcher is
// its own cluster.
func fill(seg *shm.Segment) error {
	s, err := newStore(seg)
	if err != nil {
		return err
	}
	for i := range builtin {
		s.putCondition(i, builtin[i].info())
	}
	s.carveSpare()
	seg.Lease().Ticks.Store(^uint64(0))
	seg.Gate().Life.Store(1)
	seg.Gate().Gate.Store(1<<2 | shm.GateOpen)
	return nil
}

// newStore looks at the header's parameters as at any input.
func newStore(seg *shm.Segment) (*Store, error) {
	s := &Store{
		seg: seg, r: seg.Region(), gate: seg.Gate(), leas: seg.Lease(),
		open: map[string]*DB{}, idle: make(chan struct{}, 1),
	}
	p := seg.Params()
	classOff, classLen := seg.Area(shm.AreaClasses)
	spanOff, spanLen := seg.Area(shm.AreaSpans)
	dbOff, dbLen := seg.Area(shm.AreaDatabases)
	dataOff, dataLen := seg.Area(shm.AreaData)
	nodeOff, nodeLen := seg.Area(shm.AreaNode)
	shift := p[paramSpanShift]
	n := uint64(0)
	if shift >= 12 && shift <= 30 {
		n = dataLen >> shift
	}
	switch {
	case n == 0 || n<<shift != dataLen || dataOff > s.r.Size() || dataLen > s.r.Size()-dataOff ||
		spanLen < n*spanLineSize ||
		classLen < classes*classLineSize || nodeLen < nodeCommon || p[paramDatabases] > 4096 ||
		dbLen < databasesSize(p[paramDatabases]) || p[paramMaxValue] > MaxValueLimit || p[paramReserve] > n:
		return nil, damage("its header's sizes contradict each other")
	}
	s.life = s.gate.Life.Load()
	s.spanShift = uint(shift)
	s.maxValue = int(p[paramMaxValue])
	s.reserve = int(p[paramReserve])
	s.pnn = seg.Header().PNN
	for c, size := range classSizes {
		if uint64(size) <= 1<<shift {
			s.maxBlock, s.topClass = uint64(size), c
		}
	}
	s.dataStart = dataOff
	s.classes = shm.Slice[classLine](s.r, classOff, classes)
	s.spans = shm.Slice[spanLine](s.r, spanOff, int(n))
	s.dbHead = shm.At[databasesHead](s.r, dbOff)
	s.dbs = shm.Slice[databaseLine](s.r, dbOff+databasesHeader, int(p[paramDatabases]))
	s.node = shm.At[nodeArea](s.r, nodeOff)
	s.condLines = shm.Slice[conditionLine](s.r,
		dbOff+databasesSize(p[paramDatabases])-MaxConditions*conditionLineSize, MaxConditions)
	return s, nil
}

// databasesSize is the size of the tables of n databases and of conditions.
func databasesSize(n uint64) uint64 {
	return databasesHeader + n*databaseLineSize + MaxConditions*conditionLineSize
}

// Dir returns the segment's directory, "" for a store in the heap.
func (s *Store) Dir() string { return s.seg.Dir() }

// MaxValue returns the longest value in bytes that the store takes.
func (s *Store) MaxValue() int { return s.maxValue }

// Segment returns the segment that the store is in.
func (s *Store) Segment() *shm.Segment { return s.seg }

// Slot returns the client's slot, 0 for a read-only store.
func (s *Store) Slot() uint32 { return s.slot }

// Stretch is shm.Client.Stretch for the store's slot.
func (s *Store) Stretch(by uint32) error { return s.c.Stretch(by) }

// Alarm is shm.Client.Alarm.
func (s *Store) Alarm(fd int, f func()) { s.c.Alarm(fd, f) }

// enter begins a call that looks at the segment without an actor of its own;
// Close waits for its exit.
func (s *Store) enter() error {
	s.inside.Add(1)
	if s.closed.Load() {
		s.exit()
		return errClosed
	}
	return nil
}

func (s *Store) exit() { s.inside.Add(-1) }

// Recover repairs the slots of all clients that have died, as anybody does
// who meets one of them. It returns how many there were.
func (s *Store) Recover(ctx context.Context) (int, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.exit()
	if s.c == nil {
		return 0, errReadOnly
	}
	n, err := s.c.RecoverAll()
	if err == nil {
		_, err = s.tidy(ctx)
	}
	return n, err
}

// managed reports whether a dispatcher has ever had the segment. Then what the
// dead leave is for a dispatcher to clear up, the next one if need be: only it
// knows what is pending elsewhere.
func (s *Store) managed() bool { return s.seg.Slot(DispatcherSlot).Generation.Load() != 0 }

// served reports whether a dispatcher has the segment, be it a dead one that
// nobody has recovered yet.
func (s *Store) served() bool { return s.seg.Slot(DispatcherSlot).Live.Load() != 0 }

// Close ends the client as its death would: locks are released, waits end
// with ErrClosed, and so does whatever is called later, through Handles and Records as
// well. It waits for calls under way. Close may be called again.
func (s *Store) Close() error {
	s.closed.Store(true) // first: who waits with mu looks at it
	s.nudge()
	s.turns.prodAll()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left {
		return nil
	}
	if s.c != nil {
		s.shutHandles()
		for i := range s.actors {
			if !s.actors[i].retire() {
				return nil // the dispatcher's own, whose Close comes back here
			}
		}
	}
	// Who waits looks at closed at the end of its time slice.
	for s.inside.Load() > 0 {
		time.Sleep(50 * time.Microsecond)
	}
	s.left = true
	s.locks.close()
	var err error
	if s.c != nil {
		err = errors.Join(s.abandon(), s.c.Leave())
	}
	if !s.guest {
		err = errors.Join(err, s.seg.Close())
	}
	return err
}

// retire takes the actor out of use for good, and reports whether it could.
func (a *actor) retire() bool {
	for {
		switch a.use.Load() {
		case actorIdle:
			if a.use.CompareAndSwap(actorIdle, actorRetired) {
				return true
			}
		case actorRetired:
			return true
		case actorReserved:
			return false
		case actorBusy: // its call is short, or waits and looks at closed
			runtime.Gosched()
			time.Sleep(50 * time.Microsecond)
		}
	}
}
