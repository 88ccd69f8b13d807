package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/mainzdb/mainz/bench/trace"
	"github.com/mainzdb/mainz/ltdb"
)

// randomTrace has processes that open few files, in modes that conflict.
func randomTrace(seed uint64, opens int) *trace.Trace {
	rng := rand.New(rand.NewPCG(seed, 1))
	t := &trace.Trace{Opens: opens, Files: 12, Processes: 40, Threads: 40}
	var held []trace.Event
	next := uint32(0)
	for int(next) < opens || len(held) > 0 {
		e := trace.Event{TimeUS: int64(len(t.Events))}
		if n := len(held); n > 0 && (n == 30 || int(next) == opens || rng.IntN(2) == 0) {
			i := rng.IntN(n)
			e = held[i]
			held = slices.Delete(held, i, i+1)
			e.Kind, e.TimeUS = trace.Close, int64(len(t.Events))
		} else {
			e.Open, e.Process, e.File = next, rng.Uint32N(40), rng.Uint32N(12)
			e.Thread = e.Process
			e.Mode = []trace.Mode{reading, reading, reading, writing, making}[rng.IntN(5)]
			held = append(held, e)
			next++
		}
		t.Events = append(t.Events, e)
	}
	return t
}

// newSeed returns the seed of a random test: $MAINZ_SEED, or a new one.
func newSeed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if v := os.Getenv("MAINZ_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("MAINZ_SEED=%d", seed)
	return seed
}

// heapClients are clients in this process, on a store in its heap: what the
// race detector understands.
type heapClients struct {
	t     *testing.T
	store *ltdb.Store
	db    *ltdb.DB
	all   []*heapClient
	done  sync.WaitGroup
}

type heapClient struct {
	owner
	store   *ltdb.Store
	journal journal
	in      *json.Encoder
	input   io.Closer
	replies chan reply
}

func newHeapClients(t *testing.T, n int, tr *trace.Trace) *heapClients {
	t.Helper()
	ctx := context.Background()
	store, err := ltdb.OpenHeap(ltdb.Config{Size: 8 << 20, Slots: 8, MaxValue: 16 << 10, Databases: 1})
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Database(ctx, database, ltdb.KV, ltdb.DatabaseOptions{Records: 100})
	if err != nil {
		t.Fatal(err)
	}
	h := &heapClients{t: t, store: store, db: db}
	for i := range n {
		c := &heapClient{owner: owner{uint32(i), 1}, journal: make(journal, tr.Opens), replies: make(chan reply, 1000)}
		if c.store, err = store.Join(ctx, fmt.Sprint("client ", i)); err != nil {
			t.Fatal(err)
		}
		inR, inW := io.Pipe()
		outR, outW := io.Pipe()
		c.in, c.input = json.NewEncoder(inW), inW
		h.done.Go(func() {
			// An error ends the replies, which the test is waiting for.
			if err := serve(ctx, c.store, c.journal, c.owner, n, tr, inR, outW); err != nil && err != io.EOF {
				t.Log(err)
			}
			outW.Close()
			if err := c.store.Close(); err != nil {
				t.Errorf("client %d: close: %v", i, err)
			}
		})
		h.done.Go(func() {
			defer close(c.replies)
			for dec := json.NewDecoder(outR); ; {
				var r reply
				if dec.Decode(&r) != nil {
					return
				}
				c.replies <- r
			}
		})
		h.all = append(h.all, c)
		h.await(c, isReady)
	}
	t.Cleanup(func() {
		for _, c := range h.all {
			c.input.Close()
		}
		h.done.Wait()
		report, err := store.Check(ctx)
		if err != nil || !report.OK() || report.Locked > 0 {
			t.Errorf("check: %+v, %v", report, err)
		}
		store.Close()
	})
	return h
}

// await returns the next reply of that kind. Troubles on the way are appended
// to its text.
func (h *heapClients) await(c *heapClient, is string) reply {
	h.t.Helper()
	var troubles []string
	for r := range c.replies {
		switch r.Is {
		case is:
			r.Text = strings.Join(troubles, "; ")
			return r
		case isTrouble:
			troubles = append(troubles, r.Text)
		case isProgress:
		default:
			h.t.Fatalf("client %d says %+v, want %s", c.Client, r, is)
		}
	}
	h.t.Fatalf("client %d ended, want %s", c.Client, is)
	return reply{}
}

func (h *heapClients) pass() (total counts, troubles string) {
	h.t.Helper()
	for _, c := range h.all {
		c.in.Encode(command{Do: doPass})
	}
	for _, c := range h.all {
		r := h.await(c, isPassed)
		total.add(r.Counts)
		troubles += r.Text
	}
	return total, troubles
}

func (h *heapClients) records() int {
	h.t.Helper()
	u, err := h.db.Usage(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return u.Records
}

func TestReplay(t *testing.T) {
	tr := randomTrace(newSeed(t), 3000)
	h := newHeapClients(t, 3, tr)
	const passes = 3
	var total counts
	for range passes {
		total, _ = h.pass() // counts go on from pass to pass
		if n := h.records(); n != 0 {
			t.Fatalf("a pass leaves %d records", n)
		}
	}
	if want := passes*uint64(len(tr.Events)) - 2*total.GaveUp; total.Events != want {
		t.Errorf("%d events, want %d: %d × %d without the %d that gave up and their closes",
			total.Events, want, passes, len(tr.Events), total.GaveUp)
	}
	if total.Lost != 0 || total.Damaged != 0 {
		t.Errorf("%+v", total)
	}
	if total.Conflicts == 0 {
		t.Error("no open met another: the trace is no test")
	}
	var ops uint64
	for _, c := range h.all {
		c.in.Encode(command{Do: doEnd})
		r := h.await(c, isEnded)
		var open, close histogram
		open.addSparse(r.Open)
		close.addSparse(r.Close)
		if open.n != close.n {
			t.Errorf("client %d: %d opens are timed and %d closes", c.Client, open.n, close.n)
		}
		ops += open.n + close.n
		for open, state := range c.journal {
			if state != journalOpening && state != journalClosed {
				t.Errorf("client %d ends with open %d in state %d", c.Client, open, state)
			}
		}
	}
	if ops != total.Events {
		t.Errorf("%d operations are timed, %d were counted", ops, total.Events)
	}
}

// An open that finds its file denied gives up, is skipped with its close, and
// leaves the other's entry as it was.
func TestGivesUp(t *testing.T) {
	tr := &trace.Trace{Opens: 1, Files: 1, Processes: 1, Threads: 1, Events: []trace.Event{
		{Kind: trace.Open, Mode: writing},
		{Kind: trace.Close, Mode: writing},
	}}
	h := newHeapClients(t, 1, tr)
	ctx := context.Background()
	key := fileKey(0)
	other := entry{owner{9, 9}, 0, making}
	if err := h.db.Store(ctx, key[:], listOf(0, other)); err != nil {
		t.Fatal(err)
	}
	got, _ := h.pass()
	got.Waits = 0
	if want := (counts{Conflicts: 1, GaveUp: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if b, err := h.db.Fetch(ctx, key[:]); err != nil || string(b) != string(listOf(0, other)) {
		t.Errorf("the record is %x, %v", b, err)
	}
	if h.all[0].journal[0] != journalOpening {
		t.Errorf("the journal says %d of an open that was refused", h.all[0].journal[0])
	}
}

// What the demo is there to see is seen: a store that loses, changes or keeps
// entries. The store is as good as ever; the test does it behind its back.
func TestFaultsAreSeen(t *testing.T) {
	const opens = 4
	events := func() (all []trace.Event) {
		for k := range 2 {
			for open := range uint32(opens) {
				all = append(all, trace.Event{Kind: trace.Kind(k), Open: open, File: open, Mode: writing, TimeUS: int64(len(all))})
			}
		}
		return all
	}()
	for _, c := range []struct {
		name    string
		fault   func(list []byte) []byte // between open and close of file 2
		want    counts
		trouble string
	}{
		{"none", func(b []byte) []byte { return b }, counts{Events: 2 * opens}, ""},
		{"record lost", func([]byte) []byte { return nil }, counts{Events: 2 * opens, Lost: 1}, "acknowledged open 2 of file 2 is lost"},
		{"record of before", func([]byte) []byte { return listOf(2, entry{owner{0, 0}, 2, writing}) }, counts{Events: 2 * opens, Lost: 1}, "lost"},
		{"torn", func(b []byte) []byte { b[4] ^= 0x40; return b }, counts{Events: 2*opens - 1, Damaged: 1}, "checksum"},
		{"cut", func(b []byte) []byte { return b[:8] }, counts{Events: 2*opens - 1, Damaged: 1}, "8 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := &trace.Trace{Opens: opens, Files: opens, Processes: 1, Threads: 1, Events: events[:opens]}
			h := newHeapClients(t, 1, tr)
			h.pass() // opens all four
			ctx := context.Background()
			key := fileKey(2)
			rec, err := h.db.FetchLocked(ctx, key[:])
			if err != nil {
				t.Fatal(err)
			}
			if err := rec.StoreUnlock(c.fault(slices.Clone(rec.Data()))); err != nil {
				t.Fatal(err)
			}
			// The closes are a pass of their own, by the same client: the
			// trace is shared with it and read anew at each pass.
			var out strings.Builder
			cl := &client{
				me: h.all[0].owner, store: h.all[0].store, journal: h.all[0].journal,
				out: json.NewEncoder(&out), actors: [][]trace.Event{events[opens:]},
			}
			if cl.db, err = cl.store.Database(ctx, database, ltdb.KV, ltdb.DatabaseOptions{MustExist: true}); err != nil {
				t.Fatal(err)
			}
			cl.events.Store(opens)
			if err := cl.pass(ctx); err != nil {
				t.Fatal(err)
			}
			got := cl.counts()
			got.Waits = 0
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if !strings.Contains(out.String(), c.trouble) || c.trouble == "" && out.Len() > 0 {
				t.Errorf("troubles: %s", &out)
			}
			if left, want := h.records(), min(int(c.want.Damaged)+strings.Count(c.name, "before"), 1); left != want {
				t.Errorf("%d records are left, want %d", left, want)
			}
		})
	}
}

// The other clients take out the entries of one that died, and only these.
func TestClean(t *testing.T) {
	const files = 50
	tr := &trace.Trace{Opens: 1, Files: files, Processes: 1, Threads: 1}
	h := newHeapClients(t, 3, tr)
	ctx := context.Background()
	dead, again := owner{7, 1}, owner{7, 2}
	want := map[uint32]string{}
	var opens []uint32
	for file := range uint32(files) {
		var list []byte
		for open := file * 10; open < file*10+file%4; open++ {
			list = appendEntry(list, file, entry{dead, open, reading})
			opens = append(opens, open)
			if file%3 == 0 {
				e := entry{again, open, reading}
				list = appendEntry(list, file, e)
				want[file] += string(listOf(file, e))
			}
		}
		key := fileKey(file)
		if err := h.db.Store(ctx, key[:], list); err != nil {
			t.Fatal(err)
		}
	}
	var found []uint32
	for i, c := range h.all {
		c.in.Encode(command{Do: doClean, Dead: dead, Part: i, Parts: len(h.all)})
		found = append(found, h.await(c, isCleaned).Found...)
	}
	slices.Sort(found)
	if !slices.Equal(found, opens) {
		t.Errorf("took out %v, want %v", found, opens)
	}
	for file := range uint32(files) {
		key := fileKey(file)
		b, err := h.db.Fetch(ctx, key[:])
		if string(b) != want[file] || (err != nil) != (want[file] == "") {
			t.Errorf("file %d: %x, %v; want %x", file, b, err, want[file])
		}
	}
}

// A client that is told to drain closes what it has open and opens no more.
func TestDrain(t *testing.T) {
	tr := randomTrace(3, 500)
	h := newHeapClients(t, 1, tr)
	c := h.all[0]
	c.in.Encode(command{Do: doDrain})
	if got, _ := h.pass(); got.Events != 0 {
		t.Errorf("%d events after drain", got.Events)
	}
	if n := h.records(); n != 0 {
		t.Errorf("%d records", n)
	}
}

func TestUnknownCommandEndsClient(t *testing.T) {
	h := newHeapClients(t, 1, randomTrace(4, 10))
	h.all[0].in.Encode(command{Do: "dance"})
	for r := range h.all[0].replies {
		t.Errorf("it says %+v", r)
	}
}
