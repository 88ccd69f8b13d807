//go:build !shmsim

package ltdb_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/dispatcher"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/shm"
)

// run is a dispatcher that serves.
type run struct {
	d    *dispatcher.Dispatcher
	stop context.CancelFunc
	done chan error
}

func serve(t *testing.T, dir string, limit time.Duration) *run {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d, err := dispatcher.Open(ctx, dispatcher.Options{Dir: dir, StallLimit: limit,
		Store: ltdb.Options{Create: true, Config: ltdb.Config{Size: 16 << 20, Slots: 8}}})
	if err != nil {
		t.Fatal(err)
	}
	r := &run{d: d, done: make(chan error, 1)}
	running, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.done <- d.Run(running) }()
	return r
}

func (r *run) end() error {
	r.stop()
	return errors.Join(<-r.done, r.d.Close())
}

// TestRestartBesideStopped: a client is stopped in the middle of a change, with a
// latch. The dispatcher ends and starts all the same, the gate is open, and who does
// not need that latch goes on. Then the client is ended by the limit.
func TestRestartBesideStopped(t *testing.T) {
	dir := ltdb.RamdiskForTest(t)
	r := serve(t, dir, -1)
	ctx := context.Background()
	s, err := ltdb.Open(ctx, dir, ltdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := s.Database(ctx, "db", ltdb.KV, ltdb.DatabaseOptions{Records: 10})
	if err == nil {
		err = db.Store(ctx, []byte("k"), make([]byte, 1000))
	}
	if err != nil {
		t.Fatal(err)
	}
	ltdb.StopInsideForTest(t, dir)
	for range 2 {
		if err := r.end(); err != nil {
			t.Fatal(err)
		}
		r = serve(t, dir, -1)
		if state, _ := s.Segment().Gate().State(); state != shm.GateOpen {
			t.Errorf("the gate is %d", state)
		}
		if _, err := db.Fetch(ctx, []byte("k")); err != nil {
			t.Error(err)
		}
	}
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	r = serve(t, dir, 200*time.Millisecond)
	// It needs blocks of the class whose latch the stopped one has, more than lie at hand.
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for i := range 100 {
		if err := db.Store(limited, []byte{byte(i)}, []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(s.Close(), r.end()); err != nil {
		t.Error(err)
	}
	if r.d.Stats.Evicted != 1 {
		t.Errorf("%d evicted", r.d.Stats.Evicted)
	}
}

// TestStartBesideStopped: a client is stopped with the latch of the table of
// conditions, and mainzd starts with a condition that is new. It waits within its
// context, and says then who has the latch; or it ends the client by the limit.
func TestStartBesideStopped(t *testing.T) {
	dir := ltdb.RamdiskForTest(t)
	r := serve(t, dir, -1)
	t.Setenv("STOPPED_WITH", "table")
	stopped := ltdb.StopInsideForTest(t, dir)
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	opts := dispatcher.Options{Dir: dir, StallLimit: -1,
		Store: ltdb.Options{Conditions: []ltdb.Condition{{ID: 77, Name: "new", Holds: func(ltdb.Snapshot, []byte) bool {
			return true
		}}}}}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := dispatcher.Open(ctx, opts)
	if !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), fmt.Sprintf("process %d ", stopped.Process.Pid)) {
		t.Fatalf("start beside a client that may not be ended: %v", err)
	}
	opts.StallLimit = 50 * time.Millisecond
	ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d, err := dispatcher.Open(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	if d.Stats.Evicted != 1 {
		t.Errorf("%d evicted", d.Stats.Evicted)
	}
	s, err := ltdb.Open(ctx, dir, ltdb.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all, err := s.Conditions()
	if err != nil || !slices.ContainsFunc(all, func(c ltdb.ConditionInfo) bool { return c.ID == 77 }) {
		t.Errorf("conditions: %v, %v", all, err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
