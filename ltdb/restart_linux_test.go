//go:build !shmsim

package ltdb_test

import (
	"context"
	"errors"
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
