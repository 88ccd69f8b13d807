package bench

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/mainzdb/mainz/internal/histogram"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/shm"
)

// chunk is how many calls there are between two looks at the clock.
const chunk = 32

// Worker is one process of ours: it obeys the commands on in until they end,
// and answers on out.
func Worker(ctx context.Context, in io.Reader, out io.Writer) error {
	return newWorker(ctx, openSegment).serve(in, out)
}

// worker is what measures our side. Its thread is its own, so that it can be
// pinned to a CPU.
type worker struct {
	ctx    context.Context
	open   opener
	store  *ltdb.Store
	handle *ltdb.Handle

	records uint64
	format  format

	// The slice being run. key, keys and value live here, off the stack: a
	// call must not allocate.
	random  random
	hot     bool
	calls   uint64
	errors  uint64
	why     string
	key     [keyBytes]byte
	keys    [batchSize][keyBytes]byte
	batch   ltdb.Batch
	value   []byte // what is stored
	fetched []byte

	clock clock
	hist  histogram.Histogram
}

// opener gives the store and the database that an open command names.
type opener func(context.Context, openCommand) (*ltdb.Store, *ltdb.DB, error)

func newWorker(ctx context.Context, open opener) *worker {
	w := &worker{
		ctx: ctx, open: open, clock: startClock(),
		value:   make([]byte, maxValueBytes),
		fetched: make([]byte, 0, maxValueBytes),
	}
	for i := range w.keys {
		w.batch.Keys = append(w.batch.Keys, w.keys[i][:])
	}
	return w
}

// openSegment is the opener for use between processes.
func openSegment(ctx context.Context, c openCommand) (*ltdb.Store, *ltdb.DB, error) {
	store, err := ltdb.Open(ctx, c.path, ltdb.Options{Create: c.create, Wipe: c.create, Name: "bench",
		Config: configFor(c)})
	if err != nil {
		return nil, nil, err
	}
	db, err := store.Database(ctx, databaseName, ltdb.KV,
		ltdb.DatabaseOptions{Records: c.records, MustExist: !c.create})
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return store, db, nil
}

const databaseName = "bench"

// configFor reserves four times what the records need, rounded up by the
// store to its classes. Small pages, because tdb has no other.
func configFor(c openCommand) ltdb.Config {
	perRecord := c.format.bytes() + 256
	return ltdb.Config{
		Size:      64<<20 + 4*uint64(c.records)*uint64(perRecord),
		HugePages: ltdb.HugeNever,
	}
}

func (w *worker) serve(in io.Reader, out io.Writer) (err error) {
	runtime.LockOSThread()
	defer func() {
		if w.store != nil {
			err = errors.Join(err, w.store.Close())
		}
	}()
	reply := json.NewEncoder(out)
	if err := reply.Encode(greeting{Protocol: protocolVersion, Peer: ours}); err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		a, err := w.obey(lines.Text())
		if err != nil {
			a = answer{Error: err.Error()}
		}
		if err := reply.Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (w *worker) obey(line string) (answer, error) {
	c, err := parseCommand(line)
	if err != nil {
		return answer{}, err
	}
	switch c := c.(type) {
	case openCommand:
		return answer{}, w.openStore(c)
	case pinCommand:
		return answer{}, pin(c.cpu)
	case sampleCommand:
		return sample(c), nil
	}
	if w.handle == nil {
		return answer{}, errors.New("no store is open")
	}
	switch c := c.(type) {
	case runCommand:
		if (c.op == opAppend) != (w.format == growing) && c.op != opNop {
			return answer{}, errors.New("append needs records that grow, the others values of one size")
		}
		return w.run(c), nil
	case sumCommand:
		return w.sum(), nil
	}
	panic(fmt.Sprintf("bench: command %T is parsed but not obeyed", c))
}

func (w *worker) openStore(c openCommand) error {
	if w.store != nil {
		return errors.New("a store is open already")
	}
	store, db, err := w.open(w.ctx, c)
	if err != nil {
		return err
	}
	handle, err := db.Handle()
	if err != nil {
		return errors.Join(err, store.Close())
	}
	w.store, w.handle, w.records, w.format = store, handle, uint64(c.records), c.format
	if !c.create {
		return nil
	}
	for i := range w.records {
		makeKey(&w.key, i)
		if err := handle.Store(w.ctx, w.key[:], preloaded(w.value, i, &w.key, c.format)); err != nil {
			return fmt.Errorf("preload record %d: %w", i, err)
		}
	}
	return nil
}

// ---- a slice ----

func (w *worker) run(c runCommand) answer {
	w.clock.calibrate()
	w.random, w.hot = seeded(c.seed), c.hot
	w.errors, w.why = 0, ""
	w.hist = histogram.Histogram{}
	if w.format != growing {
		w.value = w.value[:w.format]
		fillValue(w.value, c.seed)
	}
	var late uint64
	if c.start > 0 {
		now := monotonicNS()
		for now < c.start {
			now = monotonicNS()
		}
		late = uint64(now - c.start)
	}
	a := answer{LateNS: late}
	if c.limit == 0 {
		from := shm.Ticks()
		w.measure(c, c.calls)
		a.NS = w.clock.ns(shm.Ticks() - from)
		a.Ops, a.AllOps = c.calls, c.calls
	} else {
		a.Ops, a.AllOps, a.NS = w.runFor(c, late)
	}
	a.Ops *= c.op.keysPerCall()
	a.AllOps *= c.op.keysPerCall()
	a.Errors, a.Why = w.errors, w.why
	if c.latency {
		a.MaxNS, a.Histogram = w.hist.Max, w.hist.Buckets()
	}
	return a
}

// runFor measures until the slice's time is over; its first tenth warms caches
// and branch predictors up.
func (w *worker) runFor(c runCommand, late uint64) (calls, all, ns uint64) {
	limit := uint64(c.limit)
	now := shm.Ticks()
	start := now - w.clock.ticks(late)
	end := now + w.clock.ticks(limit-min(late, limit))
	for warm := w.clock.ticks(limit / 10); now-start < warm; now = shm.Ticks() {
		w.measure(c, chunk)
		all += chunk
	}
	if c.latency {
		w.hist = histogram.Histogram{}
	}
	from := shm.Ticks()
	for {
		w.measure(c, chunk)
		calls += chunk
		if now = shm.Ticks(); int64(end-now) <= 0 {
			return calls, all + calls, w.clock.ns(now - from)
		}
	}
}

func (w *worker) measure(c runCommand, n uint64) {
	if c.latency {
		w.callsTimed(c.op, n)
	} else {
		w.callsPlain(c.op, n)
	}
}

// callsPlain has a loop of its own for each operation, so that nothing is
// decided inside.
func (w *worker) callsPlain(o op, n uint64) {
	switch o {
	case opNop:
		for range n {
			w.nextKey()
			w.calls++
		}
	case opFetch:
		for range n {
			w.nextKey()
			w.fetch()
		}
	case opBatch8:
		for range n {
			w.nextKeys()
			w.fetchBatch()
		}
	case opRMW:
		for range n {
			w.nextKey()
			w.readModifyWrite()
		}
	case opStore:
		for range n {
			w.nextKey()
			w.blindStore()
		}
	case opAppend:
		for range n {
			w.nextKey()
			w.append()
		}
	}
}

func (w *worker) callsTimed(o op, n uint64) {
	for range n {
		if o == opBatch8 {
			w.nextKeys()
		} else {
			w.nextKey()
		}
		from := shm.FencedTicks()
		switch o {
		case opFetch:
			w.fetch()
		case opBatch8:
			w.fetchBatch()
		case opRMW:
			w.readModifyWrite()
		case opStore:
			w.blindStore()
		case opAppend:
			w.append()
		}
		w.hist.Add(w.clock.ns(shm.FencedTicks() - from))
	}
}

// ---- one operation ----

func (w *worker) nextKey() { makeKey(&w.key, w.nextIndex()) }

func (w *worker) nextKeys() {
	for i := range w.keys {
		makeKey(&w.keys[i], w.nextIndex())
	}
}

func (w *worker) nextIndex() uint64 {
	if w.hot {
		return 0
	}
	return w.random.draw(w.records)
}

// fetch verifies in place, as the peers do in C: a call more each time would be
// a tenth of what a hot Fetch takes.
func (w *worker) fetch() {
	value, err := w.handle.AppendFetch(w.ctx, w.fetched, w.key[:])
	if err != nil {
		w.failed("fetch", err)
	} else if len(value) != int(w.format) || w.calls%fullCheck == 0 || !valueOK(value, &w.key) {
		w.check(value, &w.key)
	}
	w.calls++
}

func (w *worker) fetchBatch() {
	if _, err := w.handle.FetchBatch(w.ctx, &w.batch); err != nil {
		w.failed("fetch batch", err)
	}
	for i := range w.keys {
		if err := w.batch.Err[i]; err != nil {
			w.failed("fetch batch", err)
		} else {
			w.check(w.batch.Value[i], &w.keys[i])
		}
	}
	w.calls++
}

func (w *worker) readModifyWrite() {
	record, err := w.handle.FetchLocked(w.ctx, w.key[:])
	if err != nil {
		w.failed("fetch locked", err)
		return
	}
	value := record.Data()
	if w.check(value, &w.key); len(value) >= minValueBytes {
		stampValue(value, &w.key, counterOf(value)+1)
	}
	if err := record.StoreUnlock(value); err != nil {
		w.failed("store and unlock", err)
	}
	w.calls++
}

func (w *worker) blindStore() {
	stampValue(w.value, &w.key, w.calls)
	if err := w.handle.Store(w.ctx, w.key[:], w.value); err != nil {
		w.failed("store", err)
	}
	w.calls++
}

func (w *worker) append() {
	record, err := w.handle.FetchLocked(w.ctx, w.key[:])
	if err != nil {
		w.failed("fetch locked", err)
		return
	}
	value := record.Data()
	number := uint64(0)
	if entriesLenOK(len(value)) && entryOK(value[len(value)-entryBytes:], &w.key) {
		number = counterOf(value[len(value)-entryBytes:]) + 1
	} else {
		w.failed("append", errWrong)
		value = nil
	}
	if len(value)+entryBytes > appendBytes {
		value = value[:0]
	}
	longer := w.value[:len(value)+entryBytes]
	copy(longer, value)
	makeEntry(longer[len(value):], &w.key, number)
	if err := record.StoreUnlock(longer); err != nil {
		w.failed("store and unlock", err)
	}
	w.calls++
}

var (
	errWrong = errors.New("value is wrong")
	errTorn  = errors.New("value is torn")
)

// check verifies a value of one size that was read for key.
func (w *worker) check(value []byte, key *[keyBytes]byte) {
	if len(value) != int(w.format) || !valueOK(value, key) {
		w.failed("read", errWrong)
	} else if w.calls%fullCheck == 0 && !bodyOK(value) {
		w.failed("read", errTorn)
	}
}

func (w *worker) failed(doing string, err error) {
	if w.errors++; w.why == "" {
		w.why = fmt.Sprintf("%s: %v", doing, err)
	}
}

// ---- the store as a whole ----

// sum reads and checks every record. The sum of the counters (of the numbers
// of the last entries, where records grow) tells how many updates there were:
// none may be lost.
func (w *worker) sum() answer {
	var a answer
	for i := range w.records {
		makeKey(&w.key, i)
		value, err := w.handle.AppendFetch(w.ctx, w.fetched, w.key[:])
		counter, ok := wholeOK(value, &w.key, w.format)
		if err != nil || !ok {
			a.Bad++
			continue
		}
		a.Sum += counter
	}
	return a
}

// sample shows what this side makes of a seed and an index, for the
// comparison with peers/driver.c.
func sample(c sampleCommand) answer {
	var key [keyBytes]byte
	makeKey(&key, c.index)
	a := answer{
		Key:    string(key[:]),
		Value:  hex.EncodeToString(preloaded(make([]byte, maxValueBytes), c.index, &key, c.format)),
		Bucket: histogram.Bucket(mix(c.index) >> (c.index & 63)),
	}
	r := seeded(c.seed)
	for range 8 {
		a.Draws = append(a.Draws, r.draw(100000))
	}
	return a
}
