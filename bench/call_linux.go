package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/dispatcher"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/ring"
)

// callWorker is a node's dispatcher, or the client that calls it.
func callWorker(ctx context.Context, o RingWorkerOptions, in io.Reader, out io.Writer) (err error) {
	dir := filepath.Join(o.Dir, "node", "v1")
	if o.Server {
		idle, err := ring.ParseStrategy(o.Idle)
		if err != nil {
			return err
		}
		d, err := dispatcher.Open(ctx, dispatcher.Options{Dir: dir, Idle: idle,
			Store: ltdb.Options{Create: true, Config: ltdb.Config{Size: 16 << 20, Slots: 2, MaxValue: 4096}}})
		if err != nil {
			return err
		}
		if err := pin(o.CPU); err != nil {
			return errors.Join(err, d.Close())
		}
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		go func() {
			_, _ = io.Copy(io.Discard, in)
			stop()
		}()
		fmt.Fprintln(out, "ready")
		return errors.Join(d.Run(ctx), d.Close())
	}
	ctx, cancel := context.WithTimeout(ctx, o.Slice+20*time.Second)
	defer cancel()
	c, err := mainz.Attach(ctx, dir, mainz.ThroughRing())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := pin(o.CPU); err != nil {
		return err
	}
	db, err := c.Open(ctx, "bench", mainz.KV)
	if err != nil {
		return err
	}
	ctx = context.Background() // that of a caller who waits as long as it takes
	key, value, buf := []byte("0123456789abcdef"), make([]byte, 64), make([]byte, 0, 64)
	if err := db.Store(ctx, key, value); err != nil {
		return err
	}
	trip := map[string]func() error{
		"nop": func() error { return c.Ping(ctx) },
		"fetch": func() error {
			_, err := db.AppendFetch(ctx, buf, key)
			return err
		},
		"rmw": func() error {
			r, err := db.FetchLocked(ctx, key)
			if err != nil {
				return err
			}
			return r.StoreUnlock(value)
		},
	}[o.Call]
	if trip == nil {
		return fmt.Errorf("call %q: there are nop, fetch and rmw", o.Call)
	}
	s, err := measureTrips(o.Slice, trip)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(s)
}
