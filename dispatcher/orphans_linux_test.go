package dispatcher

import (
	"bufio"
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/shm"
)

// A client dies, and another client is about to recover it. Meanwhile the dispatcher says
// good-bye to the dead one, finds nothing that it has left, and has nothing to do any
// more. Then the recovery ends. The pieces go all the same.
func TestRecoveredByAnother(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	dir := filepath.Join(testenv.ShmDir(t), "v1")
	d, err := Open(ctx, smallNode(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	other, err := ltdb.Open(ctx, dir, ltdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	who, out := unready(t, "pieces", dir, "MAINZ_PIECES=3")
	come := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(out).ReadByte()
		come <- err
	}()
	d.turnUntil(ctx, t, "it does not come", func() bool {
		select {
		case err = <-come:
			return true
		default:
			return false
		}
	})
	if err != nil || len(d.clients) != 1 {
		t.Fatalf("%d clients, %v", len(d.clients), err)
	}
	sl := d.seg.Slot(d.clients[0].slot)
	sl.Claim.Store(other.Slot())
	_ = who.Process.Kill()
	_ = who.Wait()
	d.turnUntil(ctx, t, "it does not go", func() bool { return len(d.clients) == 0 && !d.orphans })
	if sl.Live.Load() == 0 {
		t.Fatal("the claim keeps nobody off")
	}
	sl.Claim.Store(0)
	if n, err := other.Recover(ctx); n != 1 || err != nil {
		t.Fatalf("recovered %d, %v", n, err)
	}
	if !d.keeper.Orphaned() {
		t.Fatal("it has left nothing")
	}
	d.turnUntil(ctx, t, "its pieces stay", func() bool { return !d.keeper.Orphaned() })
	if r, err := other.Check(ctx); err != nil || r.Pieces != 0 {
		t.Errorf("%d pieces, %v", r.Pieces, err)
	}
	if d.seg.Slot(shm.DispatcherSlot).Live.Load() == 0 {
		t.Error("the dispatcher is gone")
	}
}
