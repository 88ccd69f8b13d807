//go:build !shmsim

package ltdb

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// A member writes into the handles of all slots that they are in the middle of an
// append. Who lives is not ended for it, and works on; who joins works as well. A pass
// names who would have to come to an end, and is over when the clients are gone.
func TestForgedBusy(t *testing.T) {
	dir := ramdisk(t)
	d, err := OpenKeeper(bg, dir, Options{Create: true, Config: small()})
	wantErr(t, "open", err, nil)
	d.Open()
	s, err := Open(bg, dir, Options{})
	wantErr(t, "open", err, nil)
	forge := func() {
		for i := uint32(1); i <= s.seg.Slots(); i++ {
			b := shm.At[body](s.r, s.seg.SlotBody(i))
			for k := range b.handles {
				b.handles[k].busy.Store(1)
			}
		}
	}
	forge()
	works := func(s *Store) {
		t.Helper()
		endsSoon(t, "the client's work", func() {
			ctx, stop := context.WithTimeout(bg, 30*time.Second)
			defer stop()
			db, err := s.Database(ctx, "pieces", Pieces, DatabaseOptions{Records: 10})
			wantErr(t, "open", err, nil)
			for range 40 { // more than there are handles
				p, err := db.ConditionalAppend(ctx, Always, []byte("k"), []byte("piece"))
				wantErr(t, "append", err, nil)
				wantErr(t, "remove", db.RemoveAndTrigger(ctx, []byte("k"), p), nil)
			}
		})
	}
	works(s)
	o, err := Open(bg, dir, Options{})
	wantErr(t, "open", err, nil)
	works(o)
	forge()
	seen := map[uint32]bool{}
	soon(t, "they are seen", func() bool {
		d.Stuck(time.Millisecond, func() bool { return true }, func(c Stuck) {
			seen[c.Slot] = true
			if ended, err := d.Evict(c.Slot, c.Generation); ended || err != nil || d.Stopped(c.Slot) {
				t.Fatalf("slot %d was evicted: %v, %v", c.Slot, ended, err)
			}
		})
		return seen[s.slot] && seen[o.slot]
	})
	var p Pass
	busy, err := d.Pass(&p)
	if want := fmt.Sprint([]uint32{s.slot, o.slot}); err != nil || fmt.Sprint(busy) != want {
		t.Errorf("busy are %v, %v, want %s", busy, err, want)
	}
	wantErr(t, "close", errorsOf(s.Close(), o.Close()), nil)
	if busy, err := d.Pass(&p); err != nil || len(busy) > 0 {
		t.Errorf("busy are %v, %v", busy, err)
	}
	wantErr(t, "close", d.Close(), nil)
}

// A client that runs has a latch, and keeps it for ever. Calls that need it end with
// their contexts, and say whose it is; a death is recovered as far as it can be, others
// leave and join, and the client is not evicted: slow is not stopped.
func TestHeldForEver(t *testing.T) {
	for what, take := range map[string]func(s *Store, db *DB) func(){
		"class": func(s *Store, _ *DB) func() { return holdClass(t, s, classOf(blockSize(3, 100))) },
		"bucket": func(s *Store, db *DB) func() {
			bk := &db.buckets[db.hash([]byte("new"))&db.mask]
			return hold(t, s, bucketLatch, shm.OffsetOf(s.r, bk), &bk.latch)
		},
		"table":   func(s *Store, _ *DB) func() { return hold(t, s, tableLatch, 1, &s.dbHead.latch) },
		"orphans": func(s *Store, _ *DB) func() { return hold(t, s, orphanLatch, 1, &s.node.orphanLatch) },
	} {
		t.Run(what, func(t *testing.T) {
			dir := ramdisk(t)
			d, err := OpenKeeper(bg, dir, Options{Create: true, Config: small()})
			wantErr(t, "open", err, nil)
			d.Open()
			greedy, err := Open(bg, dir, Options{Name: "greedy"})
			wantErr(t, "open", err, nil)
			s, err := Open(bg, dir, Options{})
			wantErr(t, "open", err, nil)
			db := database(t, s, "db", 10)
			wantErr(t, "store", db.Store(bg, []byte("old"), make([]byte, 100)), nil)
			release := take(greedy, database(t, greedy, "db", 10))
			endsSoon(t, what, func() {
				ctx, stop := context.WithTimeout(bg, 50*time.Millisecond)
				defer stop()
				var last error
				for last == nil && ctx.Err() == nil { // as long as there is memory of its own
					if last = db.Store(ctx, []byte("new"), make([]byte, 100)); last == nil {
						last = db.Delete(ctx, []byte("new"))
					}
				}
				if last != nil {
					wantErr(t, "store", last, context.DeadlineExceeded)
				}
				for range 3 {
					wantErr(t, "recover", recoverAll(d, func(uint32) { t.Error("recovered") }), nil)
				}
				_, _ = d.RemoveOrphans(nil, func() bool { return true })
				_, err := db.Fetch(bg, []byte("old"))
				wantErr(t, "fetch", err, nil)
				d.Stuck(0, func() bool { return true }, func(c Stuck) {
					if ended, err := d.Evict(c.Slot, c.Generation); ended || err != nil || d.Stopped(c.Slot) {
						t.Errorf("slot %d was evicted: %v, %v", c.Slot, ended, err)
					}
				})
				wantErr(t, "close", s.Close(), nil)
				s, err = Open(bg, dir, Options{})
				wantErr(t, "open", err, nil)
			})
			release()
			db = database(t, s, "db", 10)
			wantErr(t, "store", db.Store(bg, []byte("new"), make([]byte, 100)), nil)
			mustCheck(t, s)
			wantErr(t, "close", errorsOf(s.Close(), greedy.Close(), d.Close()), nil)
		})
	}
}
