package mainz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainzdb/mainz/ltdb"
)

// Appends are given up while mainzd is killed and started again: whatever has
// become of them, no piece stays that nobody knows of.
func TestGivenUpWhileKilled(t *testing.T) {
	d := startKillable(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var clients []*Client
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		c := attachTo(t, d.dir, ThroughRing())
		clients = append(clients, c)
		opens, err := c.Open(ctx, "opens", Pieces)
		want(t, err, nil)
		for w := range 8 {
			wg.Go(func() {
				key := fmt.Append(nil, "file", w%2)
				for i := 0; !stop.Load(); i++ {
					short, cancel := context.WithTimeout(ctx, time.Duration(1+i%20)*time.Millisecond)
					p, err := opens.ConditionalAppendWait(short, IfAbsent, key, []byte("mine"))
					cancel()
					if errors.Is(err, context.DeadlineExceeded) {
						continue
					}
					if err == nil {
						err = opens.RemoveAndTrigger(ctx, key, p)
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	short := 25
	if testing.Short() {
		short = 6
	}
	for k := range kills(short) {
		time.Sleep(time.Duration(k%7*5) * time.Millisecond) // another moment each time, not a wait
		d.kill()
		d.start()
		want(t, clients[0].Ping(ctx), nil)
		if t.Failed() {
			break
		}
	}
	stop.Store(true)
	wg.Wait()
	s, err := ltdb.Open(ctx, d.dir, ltdb.Options{ReadOnly: true})
	want(t, err, nil)
	defer s.Close()
	opens, err := s.Database(ctx, "opens", ltdb.Pieces, ltdb.DatabaseOptions{MustExist: true})
	want(t, err, nil)
	for { // those whose fate was unknown are taken back in the background
		u, err := opens.Usage(ctx)
		want(t, err, nil)
		if u.Records == 0 {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("left: %+v", u)
		case <-time.After(time.Millisecond):
		}
	}
	for _, c := range clients {
		want(t, c.Close(), nil)
	}
	want(t, d.cmd.Process.Signal(os.Interrupt), nil)
	want(t, d.cmd.Wait(), nil)
	rep, err := s.Check(ctx)
	want(t, err, nil)
	if !rep.OK() || rep.Pieces+rep.Orphans > 0 {
		t.Errorf("check: %+v", rep)
	}
}
