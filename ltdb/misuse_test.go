package ltdb

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// What must not be done with a store, and is: each costs who does it an error or a
// panic that names it, and nobody else anything.

// panics returns what f panics with, "" if it does not.
func panics(f func()) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text = fmt.Sprint(p)
		}
	}()
	f()
	return ""
}

func wantPanic(t testing.TB, what, part string, f func()) {
	t.Helper()
	if got := panics(f); !strings.Contains(got, part) {
		t.Errorf("%s: panic %q, want one with %q", what, got, part)
	}
}

// ends fails the test if f does not return within a minute.
func ends(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal(what, "does not end")
	}
}

// guest adds a client that is closed at the end of the test.
func guest(t testing.TB, s *Store, name string) *Store {
	t.Helper()
	g, err := s.Join(bg, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func handleOf(t testing.TB, db *DB) *Handle {
	t.Helper()
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

const twoGoroutines = "two goroutines at once"

// Each call of a Handle that finds another one under way panics, and leaves that alone.
func TestHandleInUse(t *testing.T) {
	s := heap(t, small())
	db, other := database(t, s, "test", 10), database(t, guest(t, s, "other"), "test", 10)
	pieces := piecesDB(t, s, "pieces")
	h := handleOf(t, db)
	blocker := lockedBy(t, other, "blocked")
	mine, err := h.FetchLocked(bg, []byte("mine"))
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error)
	go func() {
		r, err := h.FetchLocked(bg, []byte("blocked"))
		waiting <- errors.Join(err, r.Unlock())
	}()
	for h.seat.Load() != seatBusy {
		time.Sleep(time.Millisecond)
	}
	key, v := []byte("key"), []byte("value")
	for what, f := range map[string]func(){
		"Store":                 func() { h.Store(bg, key, v) },
		"Append":                func() { h.Append(bg, key, v) },
		"Delete":                func() { h.Delete(bg, key) },
		"FetchLocked":           func() { h.FetchLocked(bg, key) },
		"TryFetchLocked":        func() { h.TryFetchLocked(bg, key) },
		"ConditionalAppend":     func() { h.ConditionalAppend(bg, Always, key, v) },
		"ConditionalAppendWait": func() { h.ConditionalAppendWait(bg, Always, key, v) },
		"RemoveAndTrigger":      func() { h.RemoveAndTrigger(bg, key, Piece{}) },
		"RemoveMatching":        func() { h.RemoveMatching(bg, Always, key, v) },
		"Announce":              func() { h.Announce(bg, key) },
		"Close":                 func() { h.Close() },
		"Record.Store":          func() { mine.Store(v) },
		"Record.StoreUnlock":    func() { mine.StoreUnlock(v) },
		"Record.Unlock":         func() { mine.Unlock() },
		"Record.Delete":         func() { mine.Delete() },
	} {
		wantPanic(t, what, twoGoroutines, f)
	}
	if _, err := h.Fetch(bg, key); err != ErrNotFound {
		t.Error("Fetch: ", err)
	}
	wantErr(t, "unlock", blocker.Unlock(), nil)
	if err := <-waiting; err != nil {
		t.Error("the call under way: ", err)
	}
	wantErr(t, "StoreUnlock", mine.StoreUnlock(v), nil)
	wantErr(t, "Close", h.Close(), nil)
	_ = pieces
}

// However goroutines share a Handle, the segment stays whole, and each call either
// happens or panics.
func TestHandleShared(t *testing.T) {
	s := heap(t, Config{Size: 16 << 20, Slots: 4, MaxValue: 3000, SpanSize: 16 << 10})
	db := database(t, s, "test", 100)
	h := handleOf(t, db)
	var met atomic.Int64
	const rounds = 200
	for n := 0; met.Load() == 0 || n < 20; n++ { // until two have met
		if n == 10_000 {
			t.Fatal("no two calls have met")
		}
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for i := range rounds {
					// Its own: else one would wait, with the Handle, for what another
					// one holds through the Handle.
					key := fmt.Appendf(nil, "key %d.%d", g, i%3)
					p := panics(func() {
						var err error
						switch i % 4 {
						case 0:
							err = h.Store(bg, key, make([]byte, 16+i*37%900))
						case 1:
							if err = h.Delete(bg, key); err == ErrNotFound {
								err = nil
							}
						default:
							var r Record
							if r, err = h.TryFetchLocked(bg, key); err == ErrLocked {
								err = nil
								break
							} else if err == nil {
								for panics(func() { err = r.StoreUnlock(make([]byte, 8+i)) }) != "" {
									runtime.Gosched()
								}
							}
						}
						if err != nil {
							t.Error(err)
						}
					})
					if strings.Contains(p, twoGoroutines) {
						met.Add(1)
					} else if p != "" {
						t.Error(p)
					}
				}
			})
		}
		wg.Wait()
	}
	t.Logf("%d calls met another", met.Load())
	mustCheck(t, s)
	wantErr(t, "Close", h.Close(), nil)
}

// Of two calls that end a record at once one does.
func TestRecordEndedTwice(t *testing.T) {
	s := heap(t, Config{Size: 16 << 20, Slots: 4, MaxValue: 3000, SpanSize: 16 << 10})
	db := database(t, s, "test", 100)
	other := database(t, guest(t, s, "other"), "test", 100)
	h := handleOf(t, db)
	defer h.Close()
	for name, lock := range map[string]func(context.Context, []byte) (Record, error){"db": db.FetchLocked,
		"handle": h.FetchLocked} {
		t.Run(name, func(t *testing.T) {
			stop := make(chan struct{})
			var beside sync.WaitGroup
			beside.Go(func() { // takes the lock as soon as it is free
				for {
					select {
					case <-stop:
						return
					default:
					}
					if err := other.Store(bg, []byte("key"), []byte("other")); err != nil {
						t.Error(err)
					}
				}
			})
			for i := range 3000 {
				r, err := lock(bg, []byte("key"))
				if err != nil {
					t.Fatal(err)
				}
				var ended atomic.Int32
				end := func(f func() error) {
					p := panics(func() {
						switch err := f(); err {
						case nil:
							ended.Add(1)
						case ErrNotLocked:
						default:
							t.Error(err)
						}
					})
					if p != "" && (name == "db" || !strings.Contains(p, twoGoroutines)) {
						t.Error(p)
					}
				}
				var wg sync.WaitGroup
				wg.Go(func() { end(func() error { return r.StoreUnlock(make([]byte, 8+i%300)) }) })
				end(r.Unlock)
				wg.Wait()
				if ended.Load() != 1 {
					t.Fatal("ended ", ended.Load(), " times")
				}
				if err := r.Unlock(); err != ErrNotLocked {
					t.Fatal(err)
				}
			}
			close(stop)
			beside.Wait()
			mustCheck(t, s)
		})
	}
}

// A call that would end a record while another goroutine stores in it panics, and the
// store goes on.
func TestRecordStoreMet(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "test", 10)
	r := lockedBy(t, db, "key")
	if !r.l.state.CompareAndSwap(r.live, r.live-lockLive+lockBusy) { // as Store does
		t.Fatal("not live")
	}
	for what, f := range map[string]func(){
		"Store":       func() { r.Store([]byte("x")) },
		"StoreUnlock": func() { r.StoreUnlock([]byte("x")) },
		"Unlock":      func() { r.Unlock() },
	} {
		wantPanic(t, what, twoGoroutines, f)
	}
	if r.Data() != nil || r.Held() {
		t.Error("it says that nobody stores")
	}
	r.l.state.Store(r.live)
	wantErr(t, "Unlock", r.Unlock(), nil)
}

// A stale copy does nothing to a lock that its client has taken anew.
func TestRecordStale(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "test", 10)
	h := handleOf(t, db)
	defer h.Close()
	old, err := h.FetchLocked(bg, []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Unlock", old.Unlock(), nil)
	for _, lock := range []func(context.Context, []byte) (Record, error){db.FetchLocked, h.FetchLocked} {
		for range 20 { // the same locks come again
			r, err := lock(bg, []byte("key"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range []func() error{old.Unlock, old.Delete, func() error { return old.Store([]byte("x")) }} {
				if err := f(); err != ErrNotLocked {
					t.Fatal(err)
				}
			}
			if !r.Held() || old.Held() || old.Data() != nil {
				t.Fatal("the stale one counts")
			}
			old = r
			wantErr(t, "StoreUnlock", r.StoreUnlock([]byte("y")), nil)
		}
	}
}

// Close releases what is held, through open Handles as well, and everything that comes
// later says that it is closed.
func TestCloseEndsAll(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "test", 10)
	c := guest(t, s, "closed")
	cdb := database(t, c, "test", 10)
	h := handleOf(t, cdb)
	byHandle, err := h.FetchLocked(bg, []byte("by handle"))
	if err != nil {
		t.Fatal(err)
	}
	byDB := lockedBy(t, cdb, "by db")
	ended := lockedBy(t, cdb, "ended")
	wantErr(t, "Unlock", ended.Unlock(), nil)
	waiting := make(chan error)
	w := handleOf(t, cdb)
	go func() {
		_, err := w.FetchLocked(bg, []byte("by db"))
		waiting <- err
	}()
	for w.seat.Load() != seatBusy {
		time.Sleep(time.Millisecond)
	}
	ends(t, "Close", func() { wantErr(t, "Close", c.Close(), nil) })
	wantErr(t, "who waited", <-waiting, ErrClosed)
	for _, key := range []string{"by handle", "by db"} {
		r := lockedBy(t, db, key)
		if !r.OwnerDied() {
			t.Error(key, ": nobody says that its owner has ended with it")
		}
		defer r.Unlock()
	}
	for what, r := range map[string]Record{"by handle": byHandle, "by db": byDB} {
		wantErr(t, what+" Store", r.Store([]byte("late")), ErrClosed)
		wantErr(t, what+" StoreUnlock", r.StoreUnlock([]byte("late")), ErrClosed)
		wantErr(t, what+" Unlock", r.Unlock(), ErrClosed)
		if r.Held() || r.Data() != nil || r.Header() != (Header{}) || r.OwnerDied() {
			t.Error(what, " counts still")
		}
	}
	if err := ended.Unlock(); err != ErrNotLocked {
		t.Error("a record that was unlocked before: ", err)
	}
	key, v := []byte("key"), []byte("v")
	for what, f := range map[string]func(Ops) error{
		"Fetch":             func(o Ops) error { _, err := o.Fetch(bg, key); return err },
		"FetchBatch":        func(o Ops) error { _, err := o.FetchBatch(bg, &Batch{Keys: [][]byte{key}}); return err },
		"FetchLocked":       func(o Ops) error { _, err := o.FetchLocked(bg, key); return err },
		"TryFetchLocked":    func(o Ops) error { _, err := o.TryFetchLocked(bg, key); return err },
		"Store":             func(o Ops) error { return o.Store(bg, key, v) },
		"Append":            func(o Ops) error { return o.Append(bg, key, v) },
		"Delete":            func(o Ops) error { return o.Delete(bg, key) },
		"ConditionalAppend": func(o Ops) error { _, err := o.ConditionalAppend(bg, Always, key, v); return err },
		"RemoveMatching":    func(o Ops) error { return o.RemoveMatching(bg, Always, key, v) },
	} {
		wantErr(t, "Handle."+what, f(h), ErrClosed)
		wantErr(t, "DB."+what, f(cdb), ErrClosed)
	}
	wantErr(t, "Handle.Close", h.Close(), nil)
	wantErr(t, "Handle.Close again", h.Close(), nil)
	_, err = cdb.Handle()
	wantErr(t, "DB.Handle", err, ErrClosed)
	wantErr(t, "Close again", c.Close(), nil)
}

// Ops is what DB and Handle have in common.
type Ops interface {
	Fetch(ctx context.Context, key []byte) ([]byte, error)
	FetchBatch(ctx context.Context, b *Batch) (int, error)
	FetchLocked(ctx context.Context, key []byte) (Record, error)
	TryFetchLocked(ctx context.Context, key []byte) (Record, error)
	Store(ctx context.Context, key, data []byte) error
	Append(ctx context.Context, key, data []byte) error
	Delete(ctx context.Context, key []byte) error
	ConditionalAppend(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error)
	ConditionalAppendWait(ctx context.Context, cond ConditionID, key, piece []byte) (Piece, error)
	RemoveMatching(ctx context.Context, cond ConditionID, key, data []byte) error
}

// A condition that panics, as often as there are handles and more, gives everything back.
func TestConditionPanics(t *testing.T) {
	const boom = 30
	calls := 0
	cond := Condition{ID: boom, Name: "boom", Version: 1,
		Holds: func(rec Snapshot, _ []byte) bool {
			if calls++; calls%2 == 0 && len(rec.Data()) == 0 {
				return false // and panic when it is asked again
			}
			panic("boom")
		},
		Find: func(Snapshot, []byte) (int, int) { panic("boom") },
	}
	s, err := OpenHeap(small(), cond)
	if err != nil {
		t.Fatal(err)
	}
	kv, pieces := database(t, s, "kv", 10), piecesDB(t, s, "pieces")
	used := mustCheck(t, s)
	for _, db := range []*DB{kv, pieces} {
		h := handleOf(t, db)
		for _, o := range []Ops{db, h} {
			for i := range 3 * shm.HandlesPerSlot {
				key := fmt.Appendf(nil, "key %d", i)
				calls = 0
				wantPanic(t, "append", "boom", func() { o.ConditionalAppend(bg, boom, key, []byte("x")) })
				if db == kv {
					wantPanic(t, "remove", "boom", func() { o.RemoveMatching(bg, boom, key, []byte("x")) })
				}
				if i%shm.HandlesPerSlot > 0 {
					continue
				}
				calls = 1 // false, which arms the record, then the panic
				done := make(chan struct{})
				go func() {
					defer close(done)
					wantPanic(t, "append and wait", "boom",
						func() { o.ConditionalAppendWait(bg, boom, key, []byte("x")) })
				}()
				<-done
			}
			if db == kv {
				wantErr(t, "Store", o.Store(bg, []byte("key"), []byte("value")), nil)
				wantErr(t, "Delete", o.Delete(bg, []byte("key")), nil)
			} else if _, err := o.ConditionalAppend(bg, Always, []byte("after"), []byte("x")); err != nil {
				t.Error(err)
			}
		}
		wantErr(t, "Handle.Close", h.Close(), nil)
	}
	r := mustCheck(t, s)
	if r.Locked != 0 || r.Empty != 0 {
		t.Errorf("left behind: %+v, at first %+v", r, used)
	}
	ends(t, "Close", func() { wantErr(t, "Close", s.Close(), nil) })
}

// Who waits for one of the client's handles waits as long as its context allows.
func TestBorrowObeysContext(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "test", 10)
	db.Store(bg, []byte("key"), []byte("value"))
	for i := range s.actors {
		if !s.actors[i].use.CompareAndSwap(actorIdle, actorBusy) {
			t.Fatal("handle ", i, " is taken")
		}
	}
	defer func() {
		for i := range s.actors {
			s.giveBack(&s.actors[i])
		}
	}()
	key, v := []byte("key"), []byte("v")
	for what, f := range map[string]func(context.Context) error{
		"Fetch":       func(ctx context.Context) error { _, err := db.Fetch(ctx, key); return err },
		"FetchBatch":  func(ctx context.Context) error { _, err := db.FetchBatch(ctx, &Batch{}); return err },
		"FetchLocked": func(ctx context.Context) error { _, err := db.FetchLocked(ctx, key); return err },
		"Store":       func(ctx context.Context) error { return db.Store(ctx, key, v) },
		"Append":      func(ctx context.Context) error { return db.Append(ctx, key, v) },
		"Delete":      func(ctx context.Context) error { return db.Delete(ctx, key) },
		"ConditionalAppend": func(ctx context.Context) error {
			_, err := db.ConditionalAppend(ctx, Always, key, v)
			return err
		},
		"RemoveMatching": func(ctx context.Context) error { return db.RemoveMatching(ctx, Always, key, v) },
		"Database": func(ctx context.Context) error {
			_, err := s.Database(ctx, "new", KV, DatabaseOptions{})
			return err
		},
	} {
		ends(t, what, func() {
			ctx, cancel := context.WithTimeout(bg, 5*time.Millisecond)
			defer cancel()
			wantErr(t, what, f(ctx), context.DeadlineExceeded)
		})
	}
}

// Nil contexts, batches and functions, and options that contradict each other, have an
// error that names them.
func TestWrongCalls(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "test", 10)
	h := handleOf(t, db)
	defer h.Close()
	var none context.Context
	key, v := []byte("key"), []byte("v")
	r := lockedBy(t, db, "key")
	for what, f := range map[string]func() error{
		"Open":           func() error { _, err := Open(none, "/nowhere", Options{}); return err },
		"Database":       func() error { _, err := s.Database(none, "x", KV, DatabaseOptions{}); return err },
		"records":        func() error { _, err := s.Database(bg, "x", KV, DatabaseOptions{Records: -1}); return err },
		"name":           func() error { _, err := s.Database(bg, "a\nb", KV, DatabaseOptions{}); return err },
		"name in UTF-8":  func() error { _, err := s.Database(bg, "\xff", KV, DatabaseOptions{}); return err },
		"FetchLocked":    func() error { _, err := db.FetchLocked(none, key); return err },
		"Handle":         func() error { _, err := h.FetchLocked(none, key); return err },
		"Store":          func() error { return db.Store(none, key, v) },
		"Delete":         func() error { return db.Delete(none, key) },
		"Append":         func() error { return db.Append(none, key, v) },
		"append":         func() error { _, err := db.ConditionalAppend(none, Always, key, v); return err },
		"wait":           func() error { return waitsWith(none, db) },
		"Traverse":       func() error { return lastError(db.Traverse(none)) },
		"Locked":         func() error { _, err := s.Locked(none); return err },
		"Usage":          func() error { _, err := db.Usage(none); return err },
		"Check":          func() error { _, err := s.Check(none); return err },
		"FetchBatch":     func() error { _, err := db.FetchBatch(bg, nil); return err },
		"Handle's batch": func() error { _, err := h.FetchBatch(bg, nil); return err },
		"Create": func() error {
			_, err := Open(bg, "/nowhere", Options{ReadOnly: true, Create: true})
			return err
		},
		"Wipe": func() error {
			_, err := Open(bg, "/nowhere", Options{ReadOnly: true, Wipe: true})
			return err
		},
		"Conditions": func() error {
			_, err := Open(bg, "/nowhere", Options{ReadOnly: true, Conditions: []Condition{{ID: 20}}})
			return err
		},
		"Doorbell": func() error {
			_, err := Open(bg, "/nowhere", Options{ReadOnly: true, Doorbell: func() {}})
			return err
		},
	} {
		ends(t, what, func() {
			if p := panics(func() { wantErr(t, what, f(), ErrMisuse) }); p != "" {
				t.Errorf("%s: panic %s", what, p)
			}
		})
	}
	wantErr(t, "Unlock", r.Unlock(), nil)
	// Where nothing has to wait, nobody looks at the context.
	wantErr(t, "Store", db.Store(none, key, v), nil)
	ends(t, "FetchLocked", func() {
		r, err := db.FetchLocked(bg, key)
		wantErr(t, "FetchLocked", err, nil)
		wantErr(t, "Unlock", r.Unlock(), nil)
	})
}

func lastError(seq func(func(Entry, error) bool)) (err error) {
	seq(func(_ Entry, e error) bool {
		err = e
		return true
	})
	return err
}

// A Resupply that panics, or opens databases, leaves the database to others.
func TestResupplyMisused(t *testing.T) {
	s := heap(t, small())
	resupply := func(f func(context.Context, func(key, data []byte) error) error) DatabaseOptions {
		return DatabaseOptions{Records: 10, Resupply: f}
	}
	wantPanic(t, "Resupply", "boom", func() {
		s.Database(bg, "test", KV, resupply(func(_ context.Context, put func(key, data []byte) error) error {
			wantErr(t, "put", put([]byte("key"), []byte("half")), nil)
			panic("boom")
		}))
	})
	ends(t, "a Resupply that opens databases", func() {
		_, err := s.Database(bg, "other", KV, resupply(func(ctx context.Context, _ func(key, data []byte) error) error {
			_, err := s.Database(ctx, "test", KV, DatabaseOptions{})
			return err
		}))
		wantErr(t, "a Resupply that opens databases", err, ErrMisuse)
	})
	ends(t, "Database", func() {
		db := database(t, s, "test", 10)
		_, err := db.Fetch(bg, []byte("key"))
		wantErr(t, "what was put before the panic", err, ErrNotFound)
	})
	// Who opens meanwhile waits as long as its context allows.
	ends(t, "Database beside a Resupply", func() {
		_, err := s.Database(bg, "third", KV, resupply(func(context.Context, func(key, data []byte) error) error {
			ctx, cancel := context.WithTimeout(bg, 5*time.Millisecond)
			defer cancel()
			_, err := s.Database(ctx, "test", KV, DatabaseOptions{})
			wantErr(t, "Database", err, context.DeadlineExceeded)
			return nil
		}))
		wantErr(t, "Database", err, nil)
	})
}

// A lock without an owner, as a program leaves it that has stored where it must not, is
// taken off by the next dispatcher's walk; one that somebody has stays.
func TestNobodysLock(t *testing.T) {
	n := newNode(t, KV)
	other := database(t, guest(t, n.s, "other"), "db", 10)
	held := lockedBy(t, other, "held")
	var slot uint32
	for _, asked := range []bool{false, true} { // by a dispatcher that has died over it
		key := fmt.Sprintf("nobody's %v", asked)
		wantErr(t, "Store", other.Store(bg, []byte(key), []byte("value")), nil)
		r := lockedBy(t, other, key)
		slot = r.l.s.slot
		r.l.cell.Store(0)
		if asked {
			e := r.l.at.entry.Load()
			r.l.at.entry.CAS(e, e|bitD)
		}
		// What the process knows of it goes as well.
		r.l.state.Store(r.live - lockLive + lockTenant)
	}
	if got := n.holder("held"); got != slot {
		t.Fatal("held by ", got)
	}
	n.d.ReleaseUnlisted(nil)
	for _, asked := range []bool{false, true} {
		r, err := n.db.TryFetchLocked(bg, fmt.Appendf(nil, "nobody's %v", asked))
		if err != nil || !r.OwnerDied() {
			t.Errorf("asked %v: %v, owner died: %v", asked, err, r.OwnerDied())
		}
		r.Unlock()
	}
	if _, err := n.db.TryFetchLocked(bg, []byte("held")); err != ErrLocked {
		t.Error("held: ", err)
	}
	wantErr(t, "Unlock", held.Unlock(), nil)
	n.wantRung()
}

// However often the walk meets locks that come and go, it takes none of them off.
func TestNobodysLockBesideOthers(t *testing.T) {
	n := newNode(t, KV)
	other := database(t, guest(t, n.s, "other"), "db", 10)
	var walks atomic.Int64
	var wg sync.WaitGroup
	for g, db := range []*DB{n.db, other, other} {
		wg.Go(func() {
			var before Record // so that the cell is another one each time
			for i := 0; i < 2000 || walks.Load() < 100; i++ {
				r, err := db.FetchLocked(bg, fmt.Appendf(nil, "key %d", g/2))
				if err != nil {
					t.Error(err)
					return
				}
				wantErr(t, "StoreUnlock", r.StoreUnlock(fmt.Append(nil, g, i)), nil)
				if before.Held() {
					wantErr(t, "Unlock", before.Unlock(), nil)
				}
				if before, err = db.FetchLocked(bg, fmt.Appendf(nil, "own %d", g)); err != nil {
					t.Error(err)
					return
				}
			}
			wantErr(t, "Unlock", before.Unlock(), nil)
		})
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	for {
		select {
		case <-done:
			n.rung()
			return
		default:
			n.d.ReleaseUnlisted(nil)
			n.rung()
			walks.Add(1)
		}
	}
}

// TestDeferredUnlock is the idiom of the documentation, in many goroutines: none of it is
// a data race (make test-race).
func TestDeferredUnlock(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "test", 10)
	for name, lock := range map[string]func() (func(context.Context, []byte) (Record, error), func() error){
		"db": func() (func(context.Context, []byte) (Record, error), func() error) {
			return db.FetchLocked, func() error { return nil }
		},
		"handle": func() (func(context.Context, []byte) (Record, error), func() error) {
			h, err := db.Handle()
			if err != nil {
				t.Error(err)
			}
			return h.FetchLocked, h.Close
		},
	} {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			for g := range 8 {
				wg.Go(func() {
					lock, end := lock()
					for i := range 200 {
						func() {
							r, err := lock(bg, fmt.Appendf(nil, "key %d", (g+i)%3))
							if err != nil {
								t.Error(err)
								return
							}
							defer r.Unlock()
							if err := r.StoreUnlock(append(r.Data(), byte(i))[:1]); err != nil {
								t.Error(err)
							}
						}()
					}
					wantErr(t, "Close", end(), nil)
				})
			}
			wg.Wait()
		})
	}
	// So is the end of the store beside all of that.
	c := guest(t, s, "closed")
	cdb := database(t, c, "test", 10)
	var wg sync.WaitGroup
	for g := range 4 {
		h := handleOf(t, cdb)
		wg.Go(func() {
			for {
				r, err := h.FetchLocked(bg, fmt.Appendf(nil, "own %d", g))
				if err == nil {
					_, err = h.Fetch(bg, []byte("key 0"))
					r.Unlock()
				}
				if errors.Is(err, ErrClosed) {
					return
				} else if err != nil && err != ErrNotFound {
					t.Error(err)
				}
			}
		})
	}
	for c.Stats().Locks < 10 {
		runtime.Gosched()
	}
	wantErr(t, "Close", c.Close(), nil)
	wg.Wait()
}

// waitsWith waits for a record to be empty.
func waitsWith(ctx context.Context, db *DB) error {
	if err := db.Store(bg, []byte("full"), []byte("x")); err != nil {
		return err
	}
	_, err := db.ConditionalAppendWait(ctx, IfAbsent, []byte("full"), []byte("y"))
	return err
}
