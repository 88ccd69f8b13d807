package mainz

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/ltdb"
)

// What a program must not do, as it meets it through this package; package ltdb has the
// tests of what becomes of the segment.

func panicOf(f func()) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text = fmt.Sprint(p)
		}
	}()
	f()
	return ""
}

func within(t *testing.T, what string, f func()) {
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

// Nil options and functions, and options that contradict each other, have an error.
func TestWrongOptions(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	always := Condition{ID: 20, Name: "always", Holds: func(Snapshot, []byte) bool { return true }}
	for what, opts := range map[string][]Option{
		"option 2 ":     {WithName("x"), nil},
		"WithEvents":    {WithEvents(nil)},
		"WithCondition": {ReadOnly(), WithCondition(always)},
		"ThroughRing":   {ReadOnly(), ThroughRing()},
		"is for who":    {ReadOnly(), WithEvents(func(Epoch) {})},
	} {
		c, err := Attach(ctx, n.dir, opts...)
		if c != nil || !errors.Is(err, ErrMisuse) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var none context.Context
	if _, err := Attach(none, n.dir); !errors.Is(err, ErrMisuse) {
		t.Error("Attach without a context: ", err)
	}
	c := n.attach()
	db := c.open(t, "db", KV)
	o := n.attach(ReadOnly())
	resupply := Resupply(func(context.Context, func(key, data []byte) error) error { return nil })
	for what, got := range map[string]struct {
		c    *Client
		opts []OpenOption
		want error
	}{
		"nil":              {c, []OpenOption{nil}, ErrMisuse},
		"Resupply(nil)":    {c, []OpenOption{Resupply(nil)}, ErrMisuse},
		"LockTimeout(0)":   {c, []OpenOption{LockTimeout(0)}, ErrMisuse},
		"Records(-1)":      {c, []OpenOption{Records(-1)}, ErrMisuse},
		"observer's Clear": {o, []OpenOption{Clear()}, ErrMode},
		"Resupply":         {o, []OpenOption{resupply}, ErrMode},
	} {
		if db, err := got.c.Open(ctx, "db", KV, got.opts...); db != nil || !errors.Is(err, got.want) {
			t.Errorf("Open with %s: %v, want %v", what, err, got.want)
		}
	}
	for what, f := range map[string]func(*DB) error{
		"Ping":        func(db *DB) error { return db.c.Ping(none) },
		"Watch":       func(db *DB) error { return watchError(db, none) },
		"Traverse":    func(db *DB) error { return traverseError(db, none) },
		"FetchBatch":  func(db *DB) error { _, err := db.FetchBatch(ctx, nil); return err },
		"FetchLocked": func(db *DB) error { _, err := db.FetchLocked(none, []byte("held")); return err },
	} {
		held, err := db.FetchLocked(ctx, []byte("held"))
		if err != nil {
			t.Fatal(err)
		}
		within(t, what, func() {
			if p := panicOf(func() {
				if err := f(db); !errors.Is(err, ErrMisuse) {
					t.Errorf("%s: %v", what, err)
				}
			}); p != "" {
				t.Errorf("%s panics: %s", what, p)
			}
		})
		if err := held.Unlock(); err != nil {
			t.Error(err)
		}
	}
	ring := n.attach(ThroughRing()).open(t, "db", KV)
	pieces := n.attach(ThroughRing()).open(t, "pieces", Pieces)
	for what, f := range map[string]func() error{
		"Fetch": func() error { _, err := ring.Fetch(none, []byte("k")); return err },
		"FetchBatch": func() error {
			_, err := ring.FetchBatch(none, &Batch{Keys: [][]byte{[]byte("k")}})
			return err
		},
		"no batch":    func() error { _, err := ring.FetchBatch(ctx, nil); return err },
		"FetchLocked": func() error { _, err := ring.FetchLocked(none, []byte("k")); return err },
		"Store":       func() error { return ring.Store(none, []byte("k"), []byte("v")) },
		"Delete":      func() error { return ring.Delete(none, []byte("k")) },
		"ConditionalAppend": func() error {
			_, err := ring.ConditionalAppend(none, Always, []byte("k"), []byte("v"))
			return err
		},
		"RemoveAndTrigger": func() error { return pieces.RemoveAndTrigger(none, []byte("k"), Piece{}) },
		"RemoveMatching":   func() error { return ring.RemoveMatching(none, Always, []byte("k"), []byte("v")) },
	} {
		if p := panicOf(func() {
			if err := f(); !errors.Is(err, ErrMisuse) {
				t.Errorf("%s through the ring: %v", what, err)
			}
		}); p != "" {
			t.Errorf("%s through the ring panics: %s", what, p)
		}
	}
}

func watchError(db *DB, ctx context.Context) error {
	for _, err := range db.Watch(ctx, []byte("k")) {
		return err
	}
	return nil
}

func traverseError(db *DB, ctx context.Context) error {
	for _, err := range db.Traverse(ctx) {
		return err
	}
	return nil
}

// Close ends what is locked, by bypass and through the ring, through open Handles and
// without them.
func TestCloseWithOpenHandle(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	other := n.attach().open(t, "db", KV)
	for name, opts := range map[string][]Option{"bypass": nil, "ring": {ThroughRing()}} {
		t.Run(name, func(t *testing.T) {
			c := n.attach(opts...)
			db := c.open(t, "db", KV)
			h, err := db.Handle()
			if err != nil {
				t.Fatal(err)
			}
			var held []Record
			for key, o := range map[string]Ops{"by handle": h, "by db": db} {
				r, err := o.FetchLocked(ctx, []byte(key))
				if err != nil {
					t.Fatal(err)
				}
				held = append(held, r)
			}
			within(t, "Close", func() {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
			for _, r := range held {
				for what, err := range map[string]error{"Store": r.Store([]byte("late")),
					"StoreUnlock": r.StoreUnlock([]byte("late")), "Unlock": r.Unlock()} {
					if !errors.Is(err, ErrClosed) {
						t.Errorf("%s after Close: %v", what, err)
					}
				}
			}
			for _, o := range []Ops{h, db} {
				_, err := o.Fetch(ctx, []byte("k"))
				_, err2 := o.FetchLocked(ctx, []byte("k"))
				for _, err := range []error{err, err2, o.Store(ctx, []byte("k"), []byte("v"))} {
					if !errors.Is(err, ErrClosed) {
						t.Errorf("%T after Close: %v", o, err)
					}
				}
			}
			if err := h.Close(); err != nil {
				t.Error("Handle.Close: ", err)
			}
			for _, key := range []string{"by handle", "by db"} {
				r, err := other.FetchLocked(ctx, []byte(key))
				if err != nil {
					t.Fatal(key, err)
				}
				if len(r.Data()) != 0 {
					t.Errorf("%s: a call after Close stored %q", key, r.Data())
				}
				if err := r.Unlock(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Panics of the caller's functions, as many as an HTTP server recovers from, leave the
// client as it was.
func TestPanicsRecovered(t *testing.T) {
	boom := Condition{ID: 30, Name: "boom", Version: 1, Holds: func(Snapshot, []byte) bool { panic("boom") }}
	n := startNode(t)
	ctx := minute(t)
	c := n.attach(WithCondition(boom))
	db := c.open(t, "db", KV)
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Store(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	within(t, "panics", func() {
		for range 40 {
			for what, f := range map[string]func(){
				"condition":          func() { db.ConditionalAppend(ctx, 30, []byte("k"), []byte("v")) },
				"Handle's condition": func() { h.ConditionalAppend(ctx, 30, []byte("k"), []byte("v")) },
				"Traverse": func() {
					for range db.Traverse(ctx) {
						panic("boom")
					}
				},
				"Watch": func() {
					for range db.Watch(ctx, []byte("k")) {
						panic("boom")
					}
				},
			} {
				if p := panicOf(f); p != "boom" {
					t.Errorf("%s: panic %q", what, p)
				}
			}
		}
	})
	for _, o := range []Ops{db, h} {
		if v, err := o.Fetch(ctx, []byte("k")); err != nil || string(v) != "v" {
			t.Errorf("Fetch: %q, %v", v, err)
		}
		if err := o.Store(ctx, []byte("k"), []byte("v")); err != nil {
			t.Error("Store: ", err)
		}
	}
	within(t, "Close", func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := ltdb.Open(ctx, n.dir, ltdb.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	report, err := s.Check(ctx)
	if err != nil || len(report.Errors) > 0 {
		t.Error(err, report)
	}
}
