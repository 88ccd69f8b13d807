//go:build shmsim

package ltdb

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/mainzdb/mainz/internal/explore"
	"github.com/mainzdb/mainz/shm"
)

// The explorer runs this package's code under a scheduler that decides, at
// each access to shared memory, which client goes on and which one dies
// (internal/explore). After each run the dead are recovered by somebody else,
// and then: the calls that were made and what they returned must make sense
// one by one in some order; the value of each record must be the last in that
// order; Check must be clean, which accounts for every block; every lock must
// be free; and the next client must get on with every record.

var (
	exploreFull = flag.Bool("explore.full", false, "explore: the long form, some hours")
	exploreTime = flag.Duration("explore.time", 2*time.Minute, "explore: limit of one case in the long form")
)

// shortParts is into how many parts the explorer's work is cut. The short form
// does one of them, in seconds; without -short every run does all.
const shortParts = 16

var explorePart = flag.Int("explore.part", -1,
	fmt.Sprintf("explore: with -short, which of the %d parts of the work to do; -1: one by chance", shortParts))

// parts returns into how many parts the work is cut in this run, and which of
// them is to be done.
func parts(t *testing.T) (n, part int) {
	if !testing.Short() {
		return 1, 0
	}
	part = *explorePart
	if part < 0 {
		part = rand.IntN(shortParts)
	}
	t.Logf("part %d of %d (-explore.part=%d)", part, shortParts, part)
	return shortParts, part % shortParts
}

func TestMain(m *testing.M) {
	flag.Parse()
	// A run leaves some hundred small objects behind; by default the collector
	// would start every few runs.
	debug.SetGCPercent(800)
	os.Exit(m.Run())
}

// world is a segment as it is at the beginning of each run of a case.
type world struct {
	seg   *shm.Segment
	image []byte
	names *placeNames
}

// The smallest segment that has all parts. Spans of a page make buckets one
// span of 64, and let a few records fill a class's span.
func tiny(spans, slots int) Config {
	c := Config{Slots: slots, MaxValue: 200, SpanSize: 4096, Databases: 2, Size: 1 << 20}
	for {
		s, err := segmentConfig(c)
		if err != nil {
			panic(err)
		}
		for _, a := range s.Areas {
			if a.ID == shm.AreaData && a.Size <= uint64(spans)*c.SpanSize {
				return c
			}
		}
		c.Size -= 4096
	}
}

const worldDB = "db"

// makeWorld makes a segment, with a database, on which prepare has worked:
// through a client that has left again.
func makeWorld(t testing.TB, cfg Config, prepare func(*Handle)) *world {
	t.Helper()
	s, err := OpenHeap(cfg)
	if err != nil {
		t.Fatal(err)
	}
	db, err := s.Database(bg, worldDB, KV, DatabaseOptions{Records: 1})
	if err != nil {
		t.Fatal(err)
	}
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(h)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.c.Leave(); err != nil { // not Close, which would close the segment as well
		t.Fatal(err)
	}
	w := &world{seg: s.seg}
	w.image = bytes.Clone(shm.Slice[byte](s.r, 0, int(s.r.Size())))
	w.names = namesOf(s, db)
	return w
}

// run is one run of a case: its clients and what they did.
type run struct {
	*explore.Run
	w       *world
	clients []*client
	calls   []call
	keys    []string
	start   map[string]string // values at the start
}

// client is one client of the store and what stands for its process.
type client struct {
	run  *run
	s    *Store
	db   *DB
	h    *Handle
	p    *explore.Process
	name string
	t    *explore.Task
}

// call is one call of a client on a record.
type call struct {
	key        string
	who        string
	begin, end int
	apply      func(value) (value, bool)
	what       string
}

// value is a record, as far as the calls' order goes.
type value struct {
	data   string
	holder string // of the lock between calls, "" for nobody
	died   bool   // the last holder did
}

// scenario is a case of the store.
type scenario struct {
	name    string
	cfg     Config
	prepare func(h *Handle)
	start   map[string]string // keys and values that prepare leaves
	keys    []string          // further keys that the clients use
	clients []actorDef
	// setup runs with the clients joined, before the exploration.
	setup func(r *run)
	// after is a check beside the usual ones.
	after func(r *run, s *Store) error
	// picky limits deaths to those before an access of an offset for which die,
	// which setup makes, says yes.
	picky bool
	die   func(off uint64) bool
	c     explore.Case
}

// actorDef is a client's part in a scenario.
type actorDef struct {
	name string
	dies bool
	do   func(c *client)
	warm func(c *client) // before the exploration
	raw  bool            // it attaches by itself
	// attach is how it attaches before the exploration, if not as a client.
	attach func(c *client)
	// joins makes it a goroutine of the first client's, with a handle of its own.
	joins bool
}

func (sc *scenario) explore(t *testing.T) explore.Result {
	t.Helper()
	c := sc.makeCase(t)
	r := explore.Exhaust(t, c)
	return sc.report(t, c, r)
}

func (sc *scenario) random(t *testing.T, seed uint64) explore.Result {
	t.Helper()
	c := sc.makeCase(t)
	t.Logf("seed %d", seed)
	return sc.report(t, c, explore.Random(t, c, seed))
}

func (sc *scenario) report(t *testing.T, c explore.Case, r explore.Result) explore.Result {
	t.Helper()
	t.Logf("%s: %v", sc.name, r)
	return r
}

// sound fails the test if there was a violation.
func sound(t *testing.T, r explore.Result) explore.Result {
	t.Helper()
	if r.Violation != nil {
		t.Fatal(r.Violation)
	}
	if r.Diverged > 0 {
		t.Error("runs did not repeat")
	}
	return r
}

func (sc *scenario) makeCase(t *testing.T) explore.Case {
	t.Helper()
	if sc.cfg.Size == 0 {
		sc.cfg = tiny(12, len(sc.clients)+1)
	}
	w := makeWorld(t, sc.cfg, sc.prepare)
	c := sc.c
	c.Forget = true
	c.FewBytes = !*exploreFull && !c.EveryAccess
	c.Name = sc.name
	c.NamePlace = w.names.name
	c.Setup = func(er *explore.Run) { sc.setupRun(w, er) }
	if sc.picky {
		c.DieAt = func(off uint64) bool { return sc.die(off) }
	}
	return c
}

func (sc *scenario) setupRun(w *world, er *explore.Run) {
	bug := Plant
	Plant = ""
	defer func() { Plant = bug }()
	r := &run{Run: er, w: w, start: map[string]string{}}
	maps.Copy(r.start, sc.start)
	r.keys = slices.Sorted(maps.Keys(r.start))
	r.keys = append(r.keys, sc.keys...)
	er.MemoryFrom(unsafe.Pointer(shm.At[byte](w.seg.Region(), 0)), w.image)
	er.Ignore(unsafe.Pointer(&w.seg.Slot(DispatcherSlot).Progress))
	for i := uint32(1); i <= w.seg.Slots(); i++ {
		// Steps of a recovery: they tell a slow one from a stopped one, by the
		// clock, which stands still here.
		er.Ignore(unsafe.Pointer(&w.seg.Slot(i).Progress))
	}
	for _, def := range sc.clients {
		r.add(def)
	}
	if sc.setup != nil {
		sc.setup(r)
	}
	er.Check(func() error { return r.check(sc) })
	// Waits may be short of a wake-up only while somebody is dead whom nobody
	// had reason to recover: the slice's end recovers him.
	unrecovered := func() bool {
		if *(*uint32)(unsafe.Pointer(&w.seg.Slot(DispatcherSlot).Live))&(1<<30) != 0 {
			return true
		}
		for i := uint32(1); i <= w.seg.Slots(); i++ {
			const died = 1 << 30
			// Not by Load, which is an access: the kernel looks, not a task.
			if *(*uint32)(unsafe.Pointer(&w.seg.Slot(i).Live))&died != 0 {
				return true
			}
		}
		return false
	}
	er.AllowSlices(unrecovered)
	er.AllowLostWakes(unrecovered)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// add makes one client and its task.
func (r *run) add(def actorDef) {
	c := &client{run: r, name: def.name}
	var died func()
	if def.joins {
		first := r.clients[0]
		c.s, c.db, c.p = first.s, first.db, first.p
		at := 1
		for _, o := range r.clients {
			if o.s == first.s {
				at++
			}
		}
		c.s.actors[at].use.Store(actorIdle)
		c.h = must(c.db.Handle())
		if def.warm != nil {
			def.warm(c)
		}
		c.p.Go(func(t *explore.Task) { c.t = t; def.do(c) })
		r.clients = append(r.clients, c)
		return
	}
	if def.attach != nil {
		def.attach(c)
	} else if !def.raw {
		c.attach()
		if def.warm != nil {
			def.warm(c)
		}
	}
	if def.dies {
		died = func() {
			if c.s == nil || c.s.c == nil {
				r.killJoiner()
			} else {
				c.s.c.SimulateDeath()
			}
		}
	}
	c.p = r.Process(def.name, died)
	c.p.Go(func(t *explore.Task) {
		c.t = t
		def.do(c)
	})
	r.clients = append(r.clients, c)
}

func (c *client) attach() {
	c.s = must(join(bg, c.run.w.seg, Options{Name: c.name}))
	c.open()
}

func (c *client) open() {
	c.db = must(c.s.Database(bg, worldDB, KV, DatabaseOptions{MustExist: true}))
	c.h = must(c.db.Handle())
	// Calls that borrow a handle get the same one in each run.
	for i := range c.s.actors[2:] {
		c.s.actors[i+2].use.Store(actorBusy)
	}
	// Latencies go by the CPU's clock, which is another one in each run: none
	// are taken. Counters are no accesses, so their pages are marked here.
	c.s.histMu.Lock()
	c.s.body.handles[0].busy.Store(0)
	c.s.body.handles[1].busy.Store(0)
}

// killJoiner does what the kernel does at the death of a process that was
// about to attach: the slot that it had made its own is marked.
func (r *run) killJoiner() {
	seg := r.w.seg
	for i := uint32(1); i <= seg.Slots(); i++ {
		known := false
		for _, c := range r.clients {
			known = known || c.s != nil && c.s.c != nil && c.s.slot == i
		}
		const waiters, died = 1 << 31, 1 << 30
		if live := &seg.Slot(i).Live; !known && live.Load() != 0 && live.Load()&died == 0 {
			live.Store(waiters | died)
			live.Wake(1)
		}
	}
}

// begin and end note a call, so that the order of calls is part of the
// schedule.
func (c *client) begin(key, what string, apply func(value) (value, bool)) int {
	r := c.run
	n := c.t.Event(uint64(len(r.calls)))
	r.calls = append(r.calls, call{key: key, who: c.name, begin: n, apply: apply, what: what})
	return len(r.calls) - 1
}

func (c *client) end(i int, what uint64, apply func(value) (value, bool)) {
	r := c.run
	n := c.t.Event(1<<32 | what)
	r.calls[i].end = n
	if apply != nil {
		r.calls[i].apply = apply
	}
}

// The calls, with what they mean for the record's value.

func (c *client) store(key, data string) {
	i := c.begin(key, "store "+brief(data), func(v value) (value, bool) {
		return value{data: data}, v.holder == ""
	})
	if err := c.h.Store(bg, []byte(key), []byte(data)); err != nil {
		c.t.Failf("store: %v", err)
	}
	c.end(i, 0, nil)
}

// tryStore is store that may find no space.
func (c *client) tryStore(key, data string) bool {
	i := c.begin(key, "store "+brief(data), func(v value) (value, bool) {
		return value{data: data}, v.holder == ""
	})
	err := c.h.Store(bg, []byte(key), []byte(data))
	if err == nil {
		c.end(i, 0, nil)
		return true
	}
	if !errors.Is(err, ErrNoSpace) {
		c.t.Failf("store: %v", err)
	}
	c.end(i, 1, func(v value) (value, bool) { return v, true })
	return false
}

func (c *client) delete(key string) {
	i := c.begin(key, "delete", func(v value) (value, bool) { return value{}, v.holder == "" })
	switch err := c.h.Delete(bg, []byte(key)); {
	case err == nil:
		c.end(i, 1, func(v value) (value, bool) { return value{}, v.holder == "" && v.data != "" })
	case errors.Is(err, ErrNotFound):
		c.end(i, 2, func(v value) (value, bool) { return v, v.data == "" })
	default:
		c.t.Failf("delete: %v", err)
	}
}

func (c *client) append(key, data string) {
	i := c.begin(key, "append "+brief(data), func(v value) (value, bool) {
		return value{data: v.data + data}, v.holder == ""
	})
	if err := c.h.Append(bg, []byte(key), []byte(data)); err != nil {
		c.t.Failf("append: %v", err)
	}
	c.end(i, 0, nil)
}

func (c *client) fetch(key string) string {
	i := c.begin(key, "fetch", func(v value) (value, bool) { return v, true })
	got, err := c.h.Fetch(bg, []byte(key))
	if err != nil && !errors.Is(err, ErrNotFound) {
		c.t.Failf("fetch: %v", err)
	}
	c.saw(i, string(got))
	return string(got)
}

func (c *client) saw(i int, got string) {
	c.run.calls[i].what += " → " + brief(got)
	c.end(i, hash64(got), func(v value) (value, bool) { return v, v.data == got })
}

func (c *client) fetchBatch(keys ...string) {
	b := Batch{}
	var is []int
	for _, k := range keys {
		b.Keys = append(b.Keys, []byte(k))
		is = append(is, c.begin(k, "fetch of batch", func(v value) (value, bool) { return v, true }))
	}
	if _, err := c.h.FetchBatch(bg, &b); err != nil {
		c.t.Failf("batch: %v", err)
	}
	for n, i := range is {
		if err := b.Err[n]; err != nil && !errors.Is(err, ErrNotFound) {
			c.t.Failf("batch: %v", err)
		}
		c.saw(i, string(b.Value[n]))
	}
}

// lock is FetchLocked.
func (c *client) lock(key string) Record {
	i := c.begin(key, "lock", func(v value) (value, bool) { return v, false })
	rec, err := c.h.FetchLocked(bg, []byte(key))
	if err != nil {
		c.t.Failf("lock: %v", err)
	}
	c.locked(i, rec)
	return rec
}

// tryLock is TryFetchLocked.
func (c *client) tryLock(key string) (Record, bool) {
	i := c.begin(key, "trylock", func(v value) (value, bool) { return v, true })
	rec, err := c.h.TryFetchLocked(bg, []byte(key))
	if errors.Is(err, ErrLocked) {
		c.end(i, 3, nil)
		return rec, false
	}
	if err != nil {
		c.t.Failf("trylock: %v", err)
	}
	c.locked(i, rec)
	return rec, true
}

func (c *client) locked(i int, rec Record) {
	got, died := string(rec.Data()), rec.OwnerDied()
	c.run.calls[i].what += " → " + brief(got)
	c.end(i, hash64(got), func(v value) (value, bool) {
		// A holder's death must be told. That of a client in the middle of a
		// call may be told.
		if v.holder != "" || v.data != got || v.died && !died {
			return v, false
		}
		return value{data: got, holder: c.name}, true
	})
}

func (c *client) storeUnlock(key string, rec Record, data string) {
	i := c.begin(key, "storeunlock "+brief(data), func(v value) (value, bool) {
		return value{data: data}, v.holder == c.name
	})
	if err := rec.StoreUnlock([]byte(data)); err != nil {
		c.t.Failf("storeunlock: %v", err)
	}
	c.end(i, 0, nil)
}

func (c *client) storeLocked(key string, rec Record, data string) {
	i := c.begin(key, "store locked "+brief(data), func(v value) (value, bool) {
		return value{data: data, holder: c.name}, v.holder == c.name
	})
	if err := rec.Store([]byte(data)); err != nil {
		c.t.Failf("store locked: %v", err)
	}
	c.end(i, 0, nil)
}

func (c *client) unlock(key string, rec Record) {
	i := c.begin(key, "unlock", func(v value) (value, bool) {
		return value{data: v.data}, v.holder == c.name
	})
	if err := rec.Unlock(); err != nil {
		c.t.Failf("unlock: %v", err)
	}
	c.end(i, 0, nil)
}

// add is the read-modify-write that loses nothing: the value grows by data.
func (c *client) add(key, data string) {
	rec := c.lock(key)
	c.storeUnlock(key, rec, string(rec.Data())+data)
}

func (c *client) recover() {
	if _, err := c.s.Recover(bg); err != nil {
		c.t.Failf("recover: %v", err)
	}
}

func hash64(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h >> 32
}

func brief(s string) string {
	if len(s) > 12 {
		return fmt.Sprintf("%q… (%d)", s[:8], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// check is what has to hold after every run.
func (r *run) check(sc *scenario) error {
	s, err := join(bg, r.w.seg, Options{Name: "after"})
	if err != nil {
		return fmt.Errorf("the next client can't attach: %w", err)
	}
	if _, err := s.Recover(bg); err != nil {
		return fmt.Errorf("recovery: %w", err)
	}
	if sc.after != nil {
		if err := sc.after(r, s); err != nil {
			return err
		}
	}
	if _, err := clean(s, "after recovery"); err != nil {
		return err
	}
	db, err := s.Database(bg, worldDB, KV, DatabaseOptions{MustExist: true})
	if err != nil {
		return err
	}
	h, err := db.Handle()
	if err != nil {
		return err
	}
	for _, key := range r.keys {
		if err := r.checkKey(h, key); err != nil {
			return err
		}
	}
	for e, err := range db.Traverse(bg) {
		if err != nil {
			return err
		}
		if !slices.Contains(r.keys, string(e.Key)) {
			return fmt.Errorf("record %q has come from nowhere", e.Key)
		}
	}
	// The next client gets on: everything is replaced, then deleted.
	for _, key := range r.keys {
		if err := h.Store(bg, []byte(key), []byte("next")); err != nil {
			return fmt.Errorf("next store: %w", err)
		}
		if v, err := h.Fetch(bg, []byte(key)); err != nil || string(v) != "next" {
			return fmt.Errorf("next fetch: %q, %w", v, err)
		}
		if err := h.Delete(bg, []byte(key)); err != nil {
			return fmt.Errorf("next delete: %w", err)
		}
	}
	if err := hearTheRest(s); err != nil {
		return err
	}
	// When all have left, every block is on a list.
	if err := h.Close(); err != nil {
		return err
	}
	for _, c := range r.clients {
		if !c.p.Dead() && c.s != nil {
			if err := c.s.c.Leave(); err != nil {
				return fmt.Errorf("leave: %w", err)
			}
		}
	}
	if err := s.c.Leave(); err != nil {
		return err
	}
	rep, err := clean(s, "at the end")
	if err == nil && (rep.Records != 0 || rep.Empty != 0 || rep.Locked != 0 || rep.AtHand != 0) {
		err = fmt.Errorf("%d records, %d empty ones, %d locks and %d blocks at hand are left", rep.Records, rep.Empty,
			rep.Locked, rep.AtHand)
	}
	return err
}

// hearTheRest ends the empty records that stay for one reason: the next holder is to
// be told that somebody died with the lock.
func hearTheRest(s *Store) error {
	for i := range s.dbs {
		if s.dbs[i].ready.Load() == 0 {
			continue
		}
		db, err := s.database(i)
		if err != nil {
			return err
		}
		for n := range db.buckets {
			for k := range db.buckets[n].entry {
				e := db.buckets[n].entry[k].Load()
				b := s.blockAt(entryRef(e), entryClass(e))
				if e == 0 || b == nil {
					continue
				}
				meta := b.meta.Load()
				if f := metaFlags(meta); f&flagEmpty == 0 || f&flagOwnerDied == 0 {
					continue
				}
				key := make([]byte, metaKeyLen(meta))
				s.r.CopyOut(key, refOffset(entryRef(e))+blockHeaderSize)
				if err := db.Delete(bg, key); !errors.Is(err, ErrNotFound) {
					return fmt.Errorf("delete of the empty record %q: %w", key, err)
				}
			}
		}
	}
	return nil
}

func clean(s *Store, when string) (*Report, error) {
	sim := shm.Sim
	shm.Sim = nil // it is faster without, and changes nothing
	defer func() { shm.Sim = sim }()
	rep, err := s.Check(bg)
	if err == nil && !rep.OK() {
		err = fmt.Errorf("Check %s: %s", when, strings.Join(rep.Errors, "; "))
	}
	return rep, err
}

// checkKey reads a record's value and compares it with what was done to it.
func (r *run) checkKey(h *Handle, key string) error {
	var calls []explore.Call[value]
	for _, c := range r.calls {
		if c.key == key {
			calls = append(calls, explore.Call[value]{Begin: c.begin, End: c.end, Apply: c.apply})
		}
	}
	// A death releases what the dead held, at any time after it.
	for _, c := range r.clients {
		if c.p.Dead() {
			calls = append(calls, explore.Call[value]{Begin: 1, Apply: func(v value) (value, bool) {
				return value{data: v.data, died: true}, v.holder == c.name
			}})
		}
	}
	rec, err := h.TryFetchLocked(bg, []byte(key))
	if err != nil {
		return fmt.Errorf("record %q after recovery: %w", key, err)
	}
	got := string(rec.Data())
	if err := rec.Unlock(); err != nil {
		return err
	}
	if !explore.Linearizable(value{data: r.start[key]}, calls, func(v value) bool {
		return v.data == got && v.holder == ""
	}) {
		return fmt.Errorf("record %q: began as %s, is %s now; no order explains that:\n%s", key, brief(r.start[key]),
			brief(got), r.history(key))
	}
	return nil
}

func (r *run) history(key string) string {
	var b strings.Builder
	for _, c := range r.calls {
		if c.key == key {
			end := fmt.Sprint(c.end)
			if c.end == 0 {
				end = "…"
			}
			fmt.Fprintf(&b, "  %d to %s: %s: %s\n", c.begin, end, c.who, c.what)
		}
	}
	return b.String()
}

// placeNames names the words of a segment.
type placeNames struct {
	s  *Store
	db *DB
}

func namesOf(s *Store, db *DB) *placeNames { return &placeNames{s, db} }

func (n *placeNames) name(off uint64) (string, int) {
	s := n.s
	in := func(start, size uint64) bool { return off >= start && off < start+size }
	for i := uint32(1); i <= s.seg.Slots(); i++ {
		body := s.seg.SlotBody(i)
		if in(body-shm.SlotHeadSize, shm.SlotHeadSize) {
			return slotWord(i, off-(body-shm.SlotHeadSize))
		}
		if in(body, shm.SlotSize-shm.SlotHeadSize) {
			return bodyWord(i, off-body)
		}
	}
	if at := shm.OffsetOf(s.r, s.gate); in(at, 64) {
		return fmt.Sprintf("gate +%d", off-at), 8
	}
	if at := shm.OffsetOf(s.r, s.leas); in(at, 64) {
		return fmt.Sprintf("lease +%d", off-at), 8
	}
	if at := shm.OffsetOf(s.r, &s.classes[0]); in(at, classes*classLineSize) {
		return fmt.Sprintf("class %d %s", (off-at)/classLineSize,
			field((off-at)%classLineSize, "latch", "head", "cur")), 4
	}
	if at := shm.OffsetOf(s.r, &s.spans[0]); in(at, uint64(len(s.spans))*spanLineSize) {
		return fmt.Sprintf("span %d %s", (off-at)/spanLineSize,
			[]string{"word", "seq base"}[(off-at)%spanLineSize/8]), 8
	}
	if at := shm.OffsetOf(s.r, s.dbHead); in(at, databasesHeader) {
		return "table of databases latch", 4
	}
	if at := shm.OffsetOf(s.r, &s.dbs[0]); in(at, uint64(len(s.dbs))*databaseLineSize) {
		return fmt.Sprintf("database %d +%d", (off-at)/databaseLineSize, (off-at)%databaseLineSize), 4
	}
	if at := shm.OffsetOf(s.r, &n.db.buckets[0]); in(at, uint64(len(n.db.buckets))*bucketSize) {
		bucket, in := (off-at)/bucketSize, (off-at)%bucketSize
		if in < 8 {
			return fmt.Sprintf("bucket %d %s", bucket, field(in, "latch", "overflow")), 4
		}
		half := ""
		if off&4 != 0 {
			return fmt.Sprintf("bucket %d entry %d hi", bucket, in/8-1), 4
		}
		return fmt.Sprintf("bucket %d entry %d%s", bucket, in/8-1, half), 8
	}
	if off >= s.dataStart {
		i, sp := s.spanOf(off)
		if sp == nil {
			return fmt.Sprintf("data %#x", off), 8
		}
		if c := spanClass(sp.word.Load()); c >= 0 && c < classes {
			size := uint64(classSizes[c])
			at := (off - s.spanStart(i)) / size
			ref := offsetRef(s.spanStart(i) + at*size)
			in := (off - s.spanStart(i)) % size
			if in < blockHeaderSize && off&7 == 0 {
				return fmt.Sprintf("block %d %s", ref, []string{"seq", "rsn", "acc", "size", "meta", "epoch"}[in/8]), 8
			}
			return fmt.Sprintf("block %d +%d", ref, in), 4
		}
		return fmt.Sprintf("span %d +%d", i, off-s.spanStart(i)), 8
	}
	return fmt.Sprintf("%#x", off), 8
}

func field(at uint64, names ...string) string {
	if i := int(at / 4); i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("+%d", at)
}

func slotWord(slot uint32, at uint64) (string, int) {
	var z shm.Slot
	switch uintptr(at) {
	case unsafe.Offsetof(z.PID):
		return fmt.Sprintf("slot %d PID", slot), 4
	case unsafe.Offsetof(z.Generation):
		return fmt.Sprintf("slot %d generation", slot), 8
	}
	return fmt.Sprintf("slot %d %s", slot, field(at, "live", "", "claim", "", "progress")), 4
}

func bodyWord(slot uint32, at uint64) (string, int) {
	if at >= shm.HandlesPerSlot*handleSize {
		return fmt.Sprintf("slot %d cell %d", slot, (at-shm.HandlesPerSlot*handleSize)/8), 8
	}
	who := fmt.Sprintf("handle %d.%d", slot, at/handleSize)
	at %= handleSize
	var h handle
	for name, f := range map[string]uintptr{"bucket intent": unsafe.Offsetof(h.bucketIntent),
		"j.entry": unsafe.Offsetof(h.jEntry)} {
		if uintptr(at) == f {
			return who + " " + name, 8
		}
	}
	for name, f := range map[string]uintptr{
		"j.new": unsafe.Offsetof(h.jNew), "j.old": unsafe.Offsetof(h.jOld),
		"class intent": unsafe.Offsetof(h.classIntent),
		"carve intent": unsafe.Offsetof(h.carveIntent), "reclaim intent": unsafe.Offsetof(h.reclaimIntent),
		"table intent": unsafe.Offsetof(h.tableIntent), "busy": unsafe.Offsetof(h.busy),
	} {
		if uintptr(at) == f {
			return who + " " + name, 4
		}
	}
	if m := uint64(unsafe.Offsetof(h.magazine)); at >= m {
		return fmt.Sprintf("%s magazine %d place %d", who, (at-m)/(magazineSize*4), (at-m)%(magazineSize*4)/4), 4
	}
	if m := uint64(unsafe.Offsetof(h.big)); at >= m && at < m+4*bigSlots {
		return fmt.Sprintf("%s big %d", who, (at-m)/4), 4
	}
	return fmt.Sprintf("%s +%d", who, at), 8
}

// tally sums up what was explored.
type tally struct {
	searches, complete, random, runs, accesses, deaths, slices int
}

func (y *tally) add(r explore.Result) {
	switch {
	case r.Random:
		y.random += r.Runs
	case r.Complete:
		y.complete++
		fallthrough
	default:
		y.searches++
	}
	y.runs += r.Runs
	y.accesses += r.Accesses
	y.deaths += r.Deaths
	y.slices += r.Slices
}

func (y tally) String() string {
	return fmt.Sprintf("%d searches, %d complete: %d runs (%d random), %d accesses, %d deaths, %d waits ended by their slice", y.searches, y.complete, y.runs, y.random, y.accesses, y.deaths, y.slices)
}
