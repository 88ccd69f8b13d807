package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/ltdb"
)

// heap is an opener for this process alone.
func heap(ctx context.Context, c openCommand) (*ltdb.Store, *ltdb.DB, error) {
	store, err := ltdb.OpenHeap(ltdb.Config{Size: 32 << 20, Slots: 4})
	if err != nil {
		return nil, nil, err
	}
	db, err := store.Database(ctx, databaseName, ltdb.KV, ltdb.DatabaseOptions{Records: c.records})
	return store, db, err
}

func newHeapWorker(t testing.TB, f format) *worker {
	t.Helper()
	w := newWorker(t.Context(), heap)
	if err := w.openStore(openCommand{create: true, path: "heap", records: 1000, format: f}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// opsFor is what can be done with values of a format.
func opsFor(f format) []op {
	if f == growing {
		return []op{opNop, opAppend}
	}
	return []op{opNop, opFetch, opBatch8, opRMW, opStore}
}

func TestWorkerMeasures(t *testing.T) {
	for _, f := range []format{64, 1024, growing} {
		w := newHeapWorker(t, f)
		for _, o := range opsFor(f) {
			for _, hot := range []bool{false, true} {
				for _, latency := range []bool{false, true} {
					c := runCommand{op: o, hot: hot, calls: 500, latency: latency, seed: 3}
					a := w.run(c)
					want := 500 * o.keysPerCall()
					if a.Ops != want || a.AllOps != want || a.Errors != 0 || a.NS == 0 {
						t.Errorf("%v: %+v", c, a)
					}
					calls := uint32(0)
					for _, b := range a.Histogram {
						calls += b[1]
					}
					if latency && calls != 500 || !latency && calls != 0 {
						t.Errorf("%v: %d calls are in the histogram", c, calls)
					}
				}
			}
		}
		if a := w.sum(); a.Bad > 0 {
			t.Errorf("format %v: %d records are wrong afterwards", f, a.Bad)
		}
	}
}

func TestWorkerStopsWhenTheSliceIsOver(t *testing.T) {
	w := newHeapWorker(t, 64)
	a := w.run(runCommand{op: opFetch, limit: maxSliceLength / 20, seed: 3})
	if a.Errors != 0 || a.Ops == 0 || a.AllOps < a.Ops || a.NS > uint64(maxSlice) {
		t.Errorf("%+v", a)
	}
	// A worker that comes too late still does something, and says how late it was.
	a = w.run(runCommand{op: opFetch, limit: maxSliceLength / 20, seed: 3, start: 1})
	if a.Ops == 0 || a.LateNS == 0 {
		t.Errorf("%+v", a)
	}
}

// Updates are counted once each, in the store as in the answer.
func TestWorkerCountsUpdates(t *testing.T) {
	for f, o := range map[format]op{64: opRMW, growing: opAppend} {
		w := newHeapWorker(t, f)
		before := w.sum()
		made := uint64(0)
		for _, hot := range []bool{false, true} {
			a := w.run(runCommand{op: o, hot: hot, limit: maxSliceLength / 50, seed: 9})
			made += a.AllOps
		}
		if after := w.sum(); after.Sum-before.Sum != made || after.Bad != 0 {
			t.Errorf("%v: %d updates made, %d counted, %d records wrong", o, made, after.Sum-before.Sum, after.Bad)
		}
	}
}

func TestWorkerNoticesWrongValues(t *testing.T) {
	w := newHeapWorker(t, 64)
	makeKey(&w.key, 0)
	value := slices.Clone(preloaded(w.value, 0, &w.key, 64))
	value[60]++
	if err := w.handle.Store(t.Context(), w.key[:], value); err != nil {
		t.Fatal(err)
	}
	for _, o := range []op{opFetch, opBatch8} {
		a := w.run(runCommand{op: o, hot: true, calls: 10, seed: 1})
		if a.Errors != a.Ops || !strings.Contains(a.Why, errWrong.Error()) {
			t.Errorf("%v: %+v", o, a)
		}
	}
	if a := w.sum(); a.Bad != 1 {
		t.Errorf("%d records are wrong, not 1", a.Bad)
	}
}

// Nothing that is measured may be the allocator's.
func TestCallsDoNotAllocate(t *testing.T) {
	for _, f := range []format{64, 1024, growing} {
		w := newHeapWorker(t, f)
		w.clock.calibrate()
		w.random = seeded(1)
		if f != growing {
			w.value = w.value[:f]
			fillValue(w.value, 1)
		}
		for _, o := range opsFor(f) {
			w.callsPlain(o, 1000)
			if n := testing.AllocsPerRun(100, func() { w.callsPlain(o, 10) }); n > 0 {
				t.Errorf("%v, format %v: %v allocations in 10 calls", o, f, n)
			}
			if n := testing.AllocsPerRun(100, func() { w.callsTimed(o, 10) }); n > 0 {
				t.Errorf("%v, format %v: %v allocations in 10 timed calls", o, f, n)
			}
		}
		if w.errors > 0 {
			t.Errorf("format %v: %d errors: %s", f, w.errors, w.why)
		}
	}
}

// dialogue leads a worker by lines, as the runner does.
func dialogue(t *testing.T, lines ...string) (answers []answer) {
	t.Helper()
	in, toWorker := io.Pipe()
	fromWorker, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		defer out.Close()
		done <- newWorker(t.Context(), heap).serve(in, out)
	}()
	replies := bufio.NewReader(fromWorker)
	var g greeting
	if line, err := replies.ReadBytes('\n'); err != nil || json.Unmarshal(line, &g) != nil ||
		g.Protocol != protocolVersion || g.Peer != ours {
		t.Fatalf("greeting %s: %v", line, err)
	}
	for _, line := range lines {
		fmt.Fprintln(toWorker, line)
		text, err := replies.ReadBytes('\n')
		var a answer
		if err != nil || json.Unmarshal(text, &a) != nil {
			t.Fatalf("%s: answer %s: %v", line, text, err)
		}
		answers = append(answers, a)
	}
	toWorker.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	return answers
}

func TestWorkerDialogue(t *testing.T) {
	a := dialogue(t, "sum", "open create heap 100 64", "open create heap 100 64", "run append hot 1calls latency 1 0",
		"run fetch hot 5calls latency 1 0", "nonsense", "sum")
	for i, refused := range []bool{true, false, true, true, false, true, false} {
		if (a[i].Error != "") != refused {
			t.Errorf("answer %d: %+v", i, a[i])
		}
	}
	if a[4].Ops != 5 || a[6].Bad != 0 {
		t.Errorf("%+v", a)
	}
}
