package dispatcher

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/ring"
)

// Eight clients have filled their rings. A turn takes a bounded number of cells in all;
// after as many turns as one round needs everybody has been served.
func TestTurnIsBounded(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	const clients = 8
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := Open(ctx, Options{Dir: filepath.Join(testenv.ShmDir(t), "v1"),
		Store: ltdb.Options{Create: true, Config: ltdb.Config{Size: 16 << 20, Slots: clients}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	var all [clients]*mainz.Client
	come := make(chan error, 1)
	go func() {
		var err error
		for i := range all {
			if err == nil {
				all[i], err = mainz.Attach(ctx, d.opts.Dir)
			}
		}
		come <- err
	}()
	d.turnUntil(ctx, t, "they do not attach", func() bool {
		select {
		case err = <-come:
			return true
		default:
			return false
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// The rings are filled with cells that need no answer, and filled again.
	rings := map[*client]*ring.Producer{}
	fill := func(c *client) (n int) {
		h, m := call.Head{Kind: call.Synced, Dispatcher: d.incarnation}, ring.Message{}
		h.Put(&m, nil)
		for ; ; n++ {
			claim, err := rings[c].TryClaim()
			if err == ring.ErrFull {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			claim.Commit(&m)
		}
	}
	for _, c := range d.clients {
		in, _, _ := call.Rings(d.seg, c.slot)
		if rings[c], err = ring.OpenProducer(d.seg.Region(), in, call.RequestCells, ring.Options{}); err != nil {
			t.Fatal(err)
		}
		fill(c)
	}
	served := map[*client]bool{}
	for turn := 0; len(served) < clients; turn++ {
		if turn > clients*call.RequestCells/turnBudget {
			t.Fatalf("after %d turns %d of %d clients have been served", turn, len(served), clients)
		}
		was := d.Stats.Cells
		d.turn()
		if n := d.Stats.Cells - was; n > turnBudget {
			t.Errorf("turn %d took %d cells", turn, n)
		}
		for c := range rings {
			if fill(c) > 0 {
				served[c] = true
			}
		}
	}
	over := make(chan error, 1)
	go func() {
		var errs []error
		for _, c := range all {
			errs = append(errs, c.Close())
		}
		over <- errors.Join(errs...)
	}()
	d.turnUntil(ctx, t, "they do not leave", func() bool {
		select {
		case err = <-over:
			return true
		default:
			return false
		}
	})
	if err != nil {
		t.Error(err)
	}
}
