package mainz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mainzdb/mainz/dispatcher"
	"github.com/mainzdb/mainz/ltdb"
)

// node is a dispatcher in this process.
type node struct {
	tb   testing.TB
	dir  string
	opts dispatcher.Options
	stop context.CancelFunc
	done chan error
}

// minute is a context that no test reaches the end of.
func minute(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	tb.Cleanup(cancel)
	return ctx
}

// startNode makes a node of its own for a test.
func startNode(tb testing.TB, conds ...Condition) *node {
	tb.Helper()
	return newNode(tb, ltdb.Config{Size: 32 << 20, Slots: 16}, conds...)
}

func newNode(tb testing.TB, cfg ltdb.Config, conds ...Condition) *node {
	tb.Helper()
	base := os.TempDir()
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "mainz-test-*")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{tb: tb, dir: filepath.Join(dir, "v1")}
	n.opts = dispatcher.Options{Dir: n.dir, Store: ltdb.Options{Create: true, Conditions: conds, Config: cfg}}
	if testing.Verbose() {
		n.opts.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	n.start()
	tb.Cleanup(n.end)
	return n
}

func (n *node) start() {
	n.tb.Helper()
	d, err := dispatcher.Open(minute(n.tb), n.opts)
	if err != nil {
		n.tb.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.done = stop, make(chan error, 1)
	go func() { n.done <- errors.Join(d.Run(ctx), d.Close()) }()
}

func (n *node) end() {
	n.tb.Helper()
	if n.stop == nil {
		return
	}
	n.stop()
	n.stop = nil
	if err := <-n.done; err != nil {
		n.tb.Error(err)
	}
}

func (n *node) attach(opts ...Option) *Client {
	n.tb.Helper()
	c, err := Attach(minute(n.tb), n.dir, opts...)
	if err != nil {
		n.tb.Fatal(err)
	}
	n.tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			n.tb.Error(err)
		}
	})
	return c
}

func (c *Client) open(tb testing.TB, name string, mode Mode) *DB {
	tb.Helper()
	db, err := c.Open(minute(tb), name, mode)
	if err != nil {
		tb.Fatal(err)
	}
	return db
}

// both runs a test by bypass and through the ring.
func both(t *testing.T, f func(t *testing.T, n *node, opts ...Option)) {
	t.Run("bypass", func(t *testing.T) { f(t, startNode(t)) })
	t.Run("ring", func(t *testing.T) { f(t, startNode(t), ThroughRing()) })
}

func want(tb testing.TB, err, target error) {
	tb.Helper()
	if !errors.Is(err, target) || target == nil && err != nil {
		tb.Fatalf("error %v, not %v", err, target)
	}
}

func TestOperations(t *testing.T) {
	both(t, func(t *testing.T, n *node, opts ...Option) {
		ctx := minute(t)
		c := n.attach(opts...)
		db := c.open(t, "db", KV)
		h, err := db.Handle()
		want(t, err, nil)
		defer h.Close()
		for _, ops := range []Ops{db, h} {
			key := []byte("key")
			_, err := ops.Fetch(ctx, key)
			want(t, err, ErrNotFound)
			want(t, ops.Delete(ctx, key), ErrNotFound)
			for _, size := range []int{1, 30, 100, 100_000} {
				data := make([]byte, size)
				for i := range data {
					data[i] = byte(i)
				}
				want(t, ops.Store(ctx, key, data), nil)
				got, err := ops.Fetch(ctx, key)
				want(t, err, nil)
				if !slices.Equal(got, data) {
					t.Fatalf("stored %d bytes, fetched %d", len(data), len(got))
				}
			}
			r, err := ops.FetchLocked(ctx, key)
			want(t, err, nil)
			if len(r.Data()) != 100_000 {
				t.Errorf("locked %d bytes", len(r.Data()))
			}
			_, err = ops.TryFetchLocked(ctx, key)
			want(t, err, ErrLocked)
			short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			want(t, ops.Store(short, key, nil), context.DeadlineExceeded)
			cancel()
			want(t, r.StoreUnlock([]byte("new")), nil)
			want(t, r.Unlock(), ErrNotLocked)
			got, err := ops.AppendFetch(ctx, []byte("a "), key)
			want(t, err, nil)
			if string(got) != "a new" {
				t.Errorf("fetched %q", got)
			}
			_, err = ops.ConditionalAppend(ctx, IfAbsent, key, []byte("x"))
			want(t, err, ErrCondition)
			_, err = ops.ConditionalAppend(ctx, Always, key, []byte("er"))
			want(t, err, nil)
			want(t, ops.RemoveMatching(ctx, Always, key, []byte("ew")), nil)
			want(t, ops.RemoveMatching(ctx, Always, key, []byte("ew")), ErrNotFound)
			b := Batch{Keys: [][]byte{key, []byte("none")}}
			k, err := ops.FetchBatch(ctx, &b)
			want(t, err, nil)
			if k != 1 || string(b.Value[0]) != "ner" || !errors.Is(b.Err[1], ErrNotFound) {
				t.Errorf("batch: %d, %q, %v", k, b.Value, b.Err)
			}
			want(t, ops.Delete(ctx, key), nil)
			_, err = ops.Fetch(ctx, key)
			want(t, err, ErrNotFound)
			_, err = ops.ConditionalAppend(ctx, 999, key, []byte("x"))
			want(t, err, ErrNoCondition)
			want(t, ops.Store(ctx, nil, nil), ErrTooBig)
			want(t, ops.RemoveAndTrigger(ctx, key, Piece{}), ErrMode)
		}
		if ring := c.Stats().Ring; (ring > 10) != (len(opts) > 0) {
			t.Errorf("%d calls through the ring", ring)
		}
	})
}

func TestPieces(t *testing.T) {
	both(t, func(t *testing.T, n *node, opts ...Option) {
		ctx := minute(t)
		c := n.attach(opts...)
		db := c.open(t, "opens", Pieces)
		key := []byte("file")
		a, err := db.ConditionalAppend(ctx, IfAbsent, key, []byte("first"))
		want(t, err, nil)
		_, err = db.ConditionalAppend(ctx, IfAbsent, key, []byte("second"))
		want(t, err, ErrCondition)
		b, err := db.ConditionalAppend(ctx, Always, key, []byte("third"))
		want(t, err, nil)
		got, err := db.Fetch(ctx, key)
		want(t, err, nil)
		if string(got) != "firstthird" {
			t.Errorf("fetched %q", got)
		}
		want(t, db.Store(ctx, key, []byte("x")), ErrMode)
		want(t, db.Delete(ctx, key), ErrMode)
		waited := make(chan error, 1)
		go func() {
			_, err := db.ConditionalAppendWait(ctx, IfAbsent, key, []byte("last"))
			waited <- err
		}()
		want(t, db.RemoveAndTrigger(ctx, key, a), nil)
		want(t, db.RemoveAndTrigger(ctx, key, a), ErrNotFound)
		want(t, db.RemoveAndTrigger(ctx, key, b), nil)
		want(t, <-waited, nil)
		got, err = db.Fetch(ctx, key)
		want(t, err, nil)
		if string(got) != "last" {
			t.Errorf("fetched %q", got)
		}
		// A client that leaves takes its pieces along.
		other := n.attach(opts...)
		_, err = other.open(t, "opens", Pieces).ConditionalAppend(ctx, Always, key, []byte("other"))
		want(t, err, nil)
		want(t, c.Close(), nil)
		for {
			got, err = other.open(t, "opens", Pieces).Fetch(ctx, key)
			want(t, err, nil)
			if string(got) == "other" {
				break
			}
		}
	})
}

// A condition that the client doesn't have: the dispatcher's is asked.
func TestForeignCondition(t *testing.T) {
	cond := Condition{ID: 16, Name: "even", Version: 1,
		Holds: func(rec Snapshot, _ []byte) bool { return len(rec.Data())%2 == 0 }}
	n := startNode(t, cond)
	ctx := minute(t)
	c := n.attach()
	db := c.open(t, "db", KV)
	key := []byte("k")
	_, err := db.ConditionalAppend(ctx, 16, key, []byte("x"))
	want(t, err, nil)
	_, err = db.ConditionalAppend(ctx, 16, key, []byte("x"))
	want(t, err, ErrCondition)
	waited := make(chan error, 1)
	go func() {
		_, err := db.ConditionalAppendWait(ctx, 16, key, []byte("y"))
		waited <- err
	}()
	want(t, db.Store(ctx, key, []byte("zz")), nil) // by bypass: it rings
	want(t, <-waited, nil)
	got, err := db.Fetch(ctx, key)
	want(t, err, nil)
	if string(got) != "zzy" {
		t.Errorf("fetched %q", got)
	}
	cond.Version = 2
	_, err = Attach(ctx, n.dir, WithCondition(cond))
	want(t, err, ErrIncompatible)
}

func TestWatch(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	db := n.attach().open(t, "db", KV)
	key := []byte("k")
	var seen []string
	for ev, err := range db.Watch(ctx, key) {
		want(t, err, nil)
		data, _ := db.Fetch(ctx, key)
		seen = append(seen, fmt.Sprint(ev, " ", string(data)))
		if len(seen) == 4 {
			break
		}
		want(t, db.Store(ctx, key, fmt.Append(nil, len(seen))), nil)
	}
	if want := []string{"1 ", "2 1", "2 2", "2 3"}; !slices.Equal(seen, want) {
		t.Errorf("seen %q, not %q", seen, want)
	}
	end, cancel := context.WithCancel(ctx)
	defer cancel()
	for ev, err := range db.Watch(end, key) {
		if ev == Armed {
			cancel()
			continue
		}
		want(t, err, context.Canceled)
	}
}

// The dispatcher goes and comes: who waits goes on waiting, and what is done is
// done once.
func TestRestart(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	c := n.attach(ThroughRing())
	fast := n.attach()
	db := c.open(t, "db", KV)
	key := []byte("k")
	want(t, db.Store(ctx, key, []byte("0")), nil)
	r, err := fast.open(t, "db", KV).FetchLocked(ctx, key)
	want(t, err, nil)
	var wg sync.WaitGroup
	var mu sync.Mutex
	failures := 0
	for range 20 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := db.ConditionalAppendWait(ctx, Always, key, []byte("x")); err != nil {
				mu.Lock()
				failures++
				mu.Unlock()
				t.Error(err)
			}
		}()
	}
	for range 3 {
		n.end()
		n.start()
	}
	n.end()
	want(t, r.StoreUnlock([]byte("1")), nil) // by bypass, with no dispatcher there
	n.start()
	wg.Wait()
	got, err := db.Fetch(ctx, key)
	want(t, err, nil)
	if string(got) != "1xxxxxxxxxxxxxxxxxxxx" && failures == 0 {
		t.Errorf("fetched %q", got)
	}
}

func TestAttachErrors(t *testing.T) {
	ctx := minute(t)
	_, err := Attach(ctx, t.TempDir())
	want(t, err, ErrNotRunning)
	n := startNode(t)
	if _, err := dispatcher.Open(ctx, n.opts); !errors.Is(err, ltdb.ErrInUse) {
		t.Errorf("a second dispatcher: %v", err)
	}
	c, err := Attach(ctx, n.dir, ReadOnly())
	want(t, err, nil)
	defer c.Close()
	n.attach().open(t, "db", KV)
	db := c.open(t, "db", KV)
	_, err = db.Fetch(ctx, []byte("k"))
	want(t, err, ErrNotFound)
	want(t, db.Store(ctx, []byte("k"), nil), ErrMode)
	n.end()
	_, err = Attach(ctx, n.dir)
	want(t, err, ErrNotRunning)
	_, err = c.open(t, "db", KV).Fetch(ctx, []byte("k"))
	want(t, err, ErrNotFound)
}

// Thousands wait for one record through the ring, and each gets it.
func TestCrowd(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	key := []byte("k")
	var wg sync.WaitGroup
	const crowd, clients = 1000, 3
	for range clients {
		db := n.attach(ThroughRing()).open(t, "db", KV)
		for range crowd {
			wg.Add(1)
			go func() {
				defer wg.Done()
				r, err := db.FetchLocked(ctx, key)
				if err == nil {
					err = r.StoreUnlock(append(r.Data(), 'x'))
				}
				if err != nil {
					t.Error(err)
				}
			}()
		}
	}
	wg.Wait()
	got, err := n.attach().open(t, "db", KV).Fetch(ctx, key)
	want(t, err, nil)
	if len(got) != crowd*clients {
		t.Errorf("%d of %d got the record", len(got), crowd*clients)
	}
}

// Calls with values as large as they can be, more than the rings hold.
func TestFullRings(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	db := n.attach(ThroughRing()).open(t, "db", KV)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			key, value := fmt.Append(nil, "key", i%4), make([]byte, 100_000)
			for range 2 {
				if err := db.Store(ctx, key, value); err != nil {
					t.Error(err)
				}
				if got, err := db.Fetch(ctx, key); err != nil || len(got) != len(value) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		}()
	}
	wg.Wait()
	want(t, db.Store(ctx, []byte("k"), make([]byte, 9<<20)), ErrTooBig)
}

// A call that its context ends has done nothing, if the dispatcher is there to
// say so, and is unknown if it is not.
func TestGivenUp(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	db := n.attach(ThroughRing()).open(t, "db", KV)
	key := []byte("k")
	want(t, db.Store(ctx, key, []byte("v")), nil)
	for range 20 {
		short, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() {
			_, err := db.ConditionalAppendWait(short, IfAbsent, key, []byte("w"))
			ended <- err
		}()
		cancel()
		err := <-ended
		want(t, err, context.Canceled)
		if errors.Is(err, ErrUnknown) {
			t.Fatal(err)
		}
	}
	n.end()
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	want(t, db.Store(short, key, []byte("w")), ErrUnknown)
	short2, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	_, err := db.FetchLocked(short2, []byte("other"))
	want(t, err, ErrUnknown)
	n.start()
	// What was given up does not stay: neither the lock, nor a call.
	r, err := db.FetchLocked(ctx, []byte("other"))
	want(t, err, nil)
	want(t, r.Unlock(), nil)
	want(t, db.Delete(ctx, key), nil)
}

// A malformed piece is an error of its own, on each path, and no wait for a change.
func TestMalformed(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	for _, c := range []*Client{n.attach(), n.attach(ThroughRing())} {
		for _, mode := range []Mode{KV, Pieces} {
			db := c.open(t, fmt.Sprint("malformed ", mode), mode)
			good := AppendByteRange(nil, 0, 1, RangeExclusive, [16]byte{1})
			if _, err := db.ConditionalAppendWait(ctx, ByteRanges, []byte("new"), []byte("x")); !errors.Is(err,
				ErrMalformed) {
				t.Error(mode, err)
			}
			if _, err := db.ConditionalAppend(ctx, Always, []byte("there"), []byte("x")); err != nil {
				t.Fatal(err)
			}
			_, err := db.ConditionalAppendWait(ctx, ByteRanges, []byte("there"), good)
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), `"there"`) {
				t.Error(mode, err)
			}
		}
	}
}

// until polls for a condition that others bring about, for a minute at most.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute in vain: %s", what)
		}
	}
}
