package demo

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/bench/trace"
	"github.com/mainzdb/mainz/internal/histogram"
	"github.com/mainzdb/mainz/mainztest"
)

// actors is enough that some of each client's go through the ring.
const actors = 2 * Clients * ringEvery

// randomTrace has processes that open few files, in modes that conflict.
func randomTrace(seed uint64, opens int) *trace.Trace {
	rng := rand.New(rand.NewPCG(seed, 1))
	t := &trace.Trace{Opens: opens, Files: 12, Processes: actors, Threads: actors}
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
			e.Open, e.Process, e.File = next, rng.Uint32N(actors), rng.Uint32N(12)
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

// nodeClients are clients in this process, on a node of the test's own.
type nodeClients struct {
	t    *testing.T
	node *mainztest.Node
	db   *mainz.DB
	all  []*nodeClient
	done sync.WaitGroup
}

type nodeClient struct {
	owner
	in      *json.Encoder
	input   io.Closer
	replies chan reply
}

func newNode(t *testing.T) *nodeClients {
	t.Helper()
	h := &nodeClients{t: t, node: mainztest.Start(t)}
	var err error
	if h.db, err = h.node.Attach().Open(t.Context(), database, mainz.Pieces, mainz.Records(100)); err != nil {
		t.Fatal(err)
	}
	return h
}

func newNodeClients(t *testing.T, n int, tr *trace.Trace) *nodeClients {
	t.Helper()
	h := newNode(t)
	for i := range n {
		c := &nodeClient{owner: owner{uint16(i), 1}, replies: make(chan reply, 1000)}
		inR, inW := io.Pipe()
		outR, outW := io.Pipe()
		c.in, c.input = json.NewEncoder(inW), inW
		h.done.Go(func() {
			// An error ends the replies, which the test is waiting for.
			if err := Serve(context.Background(),
				ClientOptions{Dir: h.node.Dir(), Client: c.Client, Clients: n, Life: c.Life, Trace: tr}, inR,
				outW); err != nil && !errors.Is(err, io.EOF) {
				t.Log(err)
			}
			outW.Close()
			inR.Close()
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
	})
	return h
}

// await returns the next reply of that kind. Troubles on the way are appended
// to its text.
func (h *nodeClients) await(c *nodeClient, is string) reply {
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

func (h *nodeClients) journal(c *nodeClient) journal {
	h.t.Helper()
	b, err := os.ReadFile(journalPath(h.node.Dir(), c.owner))
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

func (h *nodeClients) pass() (total counts, troubles string) {
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

// empty waits until nothing is left; what was given up may take a moment.
func (h *nodeClients) empty() {
	h.t.Helper()
	for limit := time.Now().Add(time.Minute); ; time.Sleep(lookEvery) {
		u, err := h.db.Usage(h.t.Context())
		if err != nil {
			h.t.Fatal(err)
		}
		if u.Records == 0 {
			return
		}
		if time.Now().After(limit) {
			h.t.Fatalf("%d records are left", u.Records)
		}
	}
}

func TestReplay(t *testing.T) {
	tr := randomTrace(newSeed(t), 3000)
	h := newNodeClients(t, 2, tr) // with at least ringEvery processes each
	const passes = 3
	var total counts
	for range passes {
		total, _ = h.pass() // counts go on from pass to pass
		h.empty()
	}
	if want := passes*uint64(len(tr.Events)) - 2*total.GaveUp; total.Events != want {
		t.Errorf("%d events, want %d: %d × %d without the %d that gave up and their closes",
			total.Events, want, passes, len(tr.Events), total.GaveUp)
	}
	if total.Lost != 0 || total.Damaged != 0 {
		t.Errorf("%+v", total)
	}
	if total.Conflicts == 0 || total.Conflicts != total.Triggered+total.GaveUp {
		t.Errorf("%d opens met others, %d of them were triggered and %d gave up", total.Conflicts, total.Triggered,
			total.GaveUp)
	}
	if total.Bypass == 0 || total.Ring == 0 {
		t.Errorf("%d operations by bypass, %d through the ring", total.Bypass, total.Ring)
	}
	timed := map[string]uint64{}
	for _, c := range h.all {
		c.in.Encode(command{Do: doEnd})
		for name, got := range h.await(c, isEnded).Latency {
			var times histogram.Histogram
			if err := times.Merge(got.Buckets, got.Max); err != nil {
				t.Fatal(err)
			}
			timed[name] += times.N
		}
		for open, state := range h.journal(c) {
			if state != journalOpening && state != journalClosed {
				t.Errorf("client %d ends with open %d in state %d", c.Client, open, state)
			}
		}
	}
	opens := timed["open"] + timed["wait"] + timed["ring_open"] + timed["ring_wait"]
	if timed["wait"]+timed["ring_wait"] != total.Triggered || opens*2 != total.Events ||
		timed["close"]+timed["ring_close"] != opens || timed["fetch"]+timed["ring_fetch"] != opens {
		t.Errorf("timed are %v, counted %+v", timed, total)
	}
}

// An open that finds its file denied waits; if nobody closes the file it gives
// up, is skipped with its close, and leaves the other's entry as it was.
func TestGivesUp(t *testing.T) {
	tr := &trace.Trace{Opens: 1, Files: 1, Processes: 1, Threads: 1, Events: []trace.Event{
		{Kind: trace.Open, Mode: writing},
		{Kind: trace.Close, Mode: writing},
	}}
	h := newNodeClients(t, 1, tr)
	ctx := t.Context()
	key := fileKey(0)
	other := listOf(0, entry{owner{9, 9}, 0, making})
	p, err := h.db.ConditionalAppend(ctx, mainz.ShareModes, key[:], other)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := h.pass()
	if want := (counts{Conflicts: 1, GaveUp: 1, Bypass: 2, Waits: got.Waits}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if b, err := h.db.Fetch(ctx, key[:]); err != nil || string(b) != string(other) {
		t.Errorf("the record is %x, %v", b, err)
	}
	if j := h.journal(h.all[0]); j[0] != journalOpening {
		t.Errorf("the journal says %d of an open that was refused", j[0])
	}
	if err := h.db.RemoveAndTrigger(ctx, key[:], p); err != nil {
		t.Fatal(err)
	}
	if got, _ := h.pass(); got.Events != 2 || got.Conflicts != 1 {
		t.Errorf("when the file is free: %+v", got)
	}
}

// faulty is a database that loses or changes what is in file 2.
type faulty struct {
	mainz.Ops
	fetched func(list []byte) []byte
	removed error
}

func (f *faulty) AppendFetch(ctx context.Context, dst, key []byte) ([]byte, error) {
	list, err := f.Ops.AppendFetch(ctx, dst, key)
	if file, _ := keyFile(key); file == 2 && err == nil {
		if list = f.fetched(list); len(list) == 0 {
			err = mainz.ErrNotFound
		}
	}
	return list, err
}

func (f *faulty) RemoveAndTrigger(ctx context.Context, key []byte, p mainz.Piece) error {
	err := f.Ops.RemoveAndTrigger(ctx, key, p)
	if file, _ := keyFile(key); file == 2 && err == nil {
		err = f.removed
	}
	return err
}

// What the demo is there to see is seen: a store that loses or changes entries,
// or lets in what excludes each other.
func TestFaultsAreSeen(t *testing.T) {
	const opens = 4
	var events []trace.Event
	for k := range 2 {
		for open := range uint32(opens) {
			events = append(events, trace.Event{Kind: trace.Kind(k), Open: open, File: open, Mode: writing,
				TimeUS: int64(len(events))})
		}
	}
	same := func(b []byte) []byte { return b }
	h := newNode(t)
	for _, c := range []struct {
		name    string
		fetched func(list []byte) []byte
		removed error
		want    counts
		trouble string
	}{
		{"none", same, nil, counts{}, ""},
		{"record lost", func([]byte) []byte { return nil }, nil, counts{Lost: 1},
			"acknowledged open 2 of file 2 is lost"},
		{"piece lost", same, mainz.ErrNotFound, counts{Lost: 1}, "acknowledged open 2 of file 2 is lost"},
		{"record of before", func([]byte) []byte { return listOf(2, entry{owner{0, 9}, 2, reading}) }, nil,
			counts{Lost: 1}, "lost"},
		{"torn", func(b []byte) []byte { b[4] ^= 0x40; return b }, nil, counts{Damaged: 1}, "checksum"},
		{"cut", func(b []byte) []byte { return b[:8] }, nil, counts{Damaged: 1}, "8 bytes"},
		{"not alone", func(b []byte) []byte { return appendEntry(b, 2, entry{owner{9, 9}, 3, writing}) }, nil,
			counts{Damaged: 1}, "excludes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			cl := &client{journal: make(journal, opens), out: json.NewEncoder(&out), actors: [][]trace.Event{events}}
			for i := range cl.lanes {
				cl.lanes[i].c = h.node.Attach()
				cl.lanes[i].db = &faulty{h.db, c.fetched, c.removed}
			}
			if err := cl.pass(t.Context()); err != nil {
				t.Fatal(err)
			}
			got := cl.counts()
			c.want.Events, c.want.Bypass = 2*opens, 3*opens
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if !strings.Contains(out.String(), c.trouble) || c.trouble == "" && out.Len() > 0 {
				t.Errorf("troubles: %s", &out)
			}
		})
	}
	h.empty()
}

// A client that is told to drain closes what it has open and opens no more.
func TestDrain(t *testing.T) {
	tr := randomTrace(3, 500)
	h := newNodeClients(t, 1, tr)
	c := h.all[0]
	c.in.Encode(command{Do: doDrain})
	if got, _ := h.pass(); got.Events != 0 {
		t.Errorf("%d events after drain", got.Events)
	}
	h.empty()
}

func TestUnknownCommandEndsClient(t *testing.T) {
	h := newNodeClients(t, 1, randomTrace(4, 10))
	h.all[0].in.Encode(command{Do: "dance"})
	for r := range h.all[0].replies {
		t.Errorf("it says %+v", r)
	}
}
