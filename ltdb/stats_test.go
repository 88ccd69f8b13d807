package ltdb

import (
	"fmt"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// TestStats: what the counters and the sampled times say is what was done, and
// another client sees it.
func TestStats(t *testing.T) {
	s := heap(t, small())
	other, err := s.Join(bg, "worker")
	if err != nil {
		t.Fatal(err)
	}
	db := database(t, other, "db", 10)
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	const n = 4 * sampleEvery
	key, v := []byte("key"), []byte("value")
	for range n {
		wantErr(t, "store", h.Store(bg, key, v), nil)
		_, err := h.Fetch(bg, key)
		wantErr(t, "fetch", err, nil)
		r, err := h.FetchLocked(bg, key)
		wantErr(t, "lock", err, nil)
		wantErr(t, "store and unlock", r.StoreUnlock(v), nil)
	}
	wantErr(t, "delete", h.Delete(bg, key), nil)
	st := other.Stats()
	if want := (Stats{Fetches: n, Stores: 2 * n, Inserts: 1, Deletes: 1, Locks: n}); st != want {
		t.Errorf("counted %+v, want %+v", st, want)
	}
	var seen *Client
	for _, c := range s.Clients() {
		if c.Slot == other.Slot() {
			seen = &c
		}
	}
	if seen == nil || seen.Name != "worker" || seen.Dead || seen.Stats != st {
		t.Errorf("another client sees %+v", seen)
	}
	if r := mustCheck(t, s); r.Histograms != 1 {
		t.Errorf("%d blocks of histograms", r.Histograms)
	}
	all := s.Latencies()
	for _, name := range latencyNames {
		l := all[name]
		if l == nil {
			t.Fatalf("no times of %q", name)
		}
		p50, p99, most := l.Quantile(0.5), l.Quantile(0.99), l.Quantile(1)
		t.Logf("%-5s %d samples, p50 %v, p99 %v", name, l.N, p50, p99)
		switch {
		case name == "wait":
			if l.N != 0 || p50 != 0 {
				t.Errorf("%d waits, though nobody held a lock", l.N)
			}
		case l.N < n/sampleEvery || l.N > 4*n/sampleEvery:
			t.Errorf("%s: %d samples of %d calls", name, l.N, n)
		case p50 <= 0 || p99 < p50 || most < p99 && most != 0:
			t.Errorf("%s: p50 %v, p99 %v, most %v", name, p50, p99, most)
		}
	}
	// They go with the client.
	wantErr(t, "close", h.Close(), nil)
	wantErr(t, "close", other.Close(), nil)
	if r := mustCheck(t, s); r.Histograms != 0 {
		t.Errorf("%d blocks of histograms of a client that has left", r.Histograms)
	}
}

// TestHistogramBuckets: every time lies below the top of its own bucket and
// above that of the one before, 12 % wide at most.
func TestHistogramBuckets(t *testing.T) {
	last := -1
	for ticks := uint64(0); ticks < 1<<33; ticks += 1 + ticks/100 {
		i := histogramBucket(ticks)
		if i < last || i > last+1 || i >= histogramBuckets {
			t.Fatalf("%d ticks are in bucket %d, after %d", ticks, i, last)
		}
		last = i
		if i == histogramBuckets-1 {
			continue // all that is longer
		}
		top := histogramTop(i)
		if ticks > top || i > 0 && ticks <= histogramTop(i-1) || i >= histogramFirst &&
			float64(top-histogramTop(i-1)) > 0.125*float64(top) {
			t.Fatalf("%d ticks are in bucket %d, up to %d", ticks, i, top)
		}
	}
	if last != histogramBuckets-1 {
		t.Errorf("the longest time is in bucket %d of %d", last, histogramBuckets)
	}
}

// TestLatchWanted: a latch that another handle holds or waits for was not
// forgotten by whoever released it.
func TestLatchWanted(t *testing.T) {
	s := heap(t, small())
	b, err := s.Join(bg, "other")
	if err != nil {
		t.Fatal(err)
	}
	db := database(t, s, "db", 10)
	bk := &db.buckets[3]
	for name, c := range map[string]struct {
		latch *shm.Latch
		want  func(h *handle, on bool)
	}{
		"bucket": {&bk.latch, func(h *handle, on bool) {
			h.bucketIntent.Store(map[bool]uint64{true: shm.OffsetOf(s.r, bk)}[on])
		}},
		"class": {&s.classes[7].latch, func(h *handle, on bool) { h.classIntent.Store(map[bool]uint32{true: 8}[on]) }},
		"table": {&s.dbHead.latch, func(h *handle, on bool) { h.tableIntent.Store(map[bool]uint32{true: 1}[on]) }},
	} {
		word := shm.At[shm.Word32](s.r, shm.OffsetOf(s.r, c.latch))
		mine, theirs := &s.body.handles[3], &b.body.handles[5]
		for i, step := range []struct {
			h    *handle
			on   bool
			want bool
		}{{mine, true, false}, {theirs, true, true}, {theirs, false, false}, {&s.body.handles[4], true, true}} {
			c.want(step.h, step.on)
			if got := s.shared(s.c, word); got != step.want {
				t.Errorf("latch of a %s, step %d: wanted by another is %v", name, i, got)
			}
		}
		c.want(mine, false)
		c.want(&s.body.handles[4], false)
	}
	wantErr(t, "close", b.Close(), nil)
}

// Counters belong to the client and not to its slot: the next tenant begins at 0, and
// so it is seen from outside.
func TestStatsOfTheNextTenant(t *testing.T) {
	s := heap(t, small())
	var slot uint32
	for round := range 3 {
		other, err := s.Join(bg, "worker")
		if err != nil {
			t.Fatal(err)
		}
		if round > 0 && other.Slot() != slot {
			t.Fatalf("slot %d after %d", other.Slot(), slot)
		}
		slot = other.Slot()
		db := database(t, other, "db", 10)
		for range round + 1 {
			wantErr(t, "store", db.Store(bg, []byte("key"), []byte("value")), nil)
		}
		if st := other.Stats(); st.Stores != uint64(round+1) {
			t.Errorf("tenant %d counts %+v", round, st)
		}
		for _, c := range s.Clients() {
			if c.Slot == slot && c.Stats.Stores != uint64(round+1) {
				t.Errorf("tenant %d is seen with %+v", round, c.Stats)
			}
		}
		wantErr(t, "close", other.Close(), nil)
	}
}

// Who waits for a lock holds none.
func TestClientsTellHeldFromWaiting(t *testing.T) {
	s := heap(t, small())
	other, err := s.Join(bg, "waits")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	r, err := database(t, s, "db", 10).FetchLocked(bg, []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	theirs := database(t, other, "db", 10)
	done := make(chan error, 1)
	go func() {
		r, err := theirs.FetchLocked(bg, []byte("key"))
		if err == nil {
			err = r.Unlock()
		}
		done <- err
	}()
	for limit := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		held, waits := map[string]int{}, map[string]int{}
		for _, c := range s.Clients() {
			held[c.Name], waits[c.Name] = c.Locks, c.Waiting
		}
		if waits["waits"] == 1 {
			if held["waits"] != 0 || held[s.c.Name()] != 1 {
				t.Errorf("held: %v", held)
			}
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("nobody waits: %v", s.Clients())
		}
	}
	wantErr(t, "unlock", r.Unlock(), nil)
	wantErr(t, "the other", <-done, nil)
}

// Room is full when a store is refused, and not any more when the records are gone.
func TestRoom(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "db", 10)
	if r := s.Room(); r.Full || r.FreeSpans == 0 || r.Spans == 0 {
		t.Fatalf("of a new store: %+v", r)
	}
	key := func(i int) []byte { return fmt.Appendf(nil, "key %d", i) }
	n := 0
	for ; ; n++ {
		if err := db.Store(bg, key(n), make([]byte, 500)); err != nil {
			wantErr(t, "store", err, ErrFull)
			break
		}
	}
	if r := s.Room(); !r.Full || r.FreeSpans != 0 {
		t.Errorf("a store is refused, and %+v", r)
	}
	for i := range n {
		wantErr(t, "delete", db.Delete(bg, key(i)), nil)
	}
	if r := s.Room(); r.Full {
		t.Errorf("all is deleted, and %+v", r)
	}
}
