package mainz

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/dispatcher"
	"github.com/mainzdb/mainz/shm"
)

// fails waits for the end of a node that can't go on.
func (n *node) fails(words string) {
	n.tb.Helper()
	select {
	case err := <-n.done:
		if !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), words) {
			n.tb.Errorf("the node ended with %v, want %q", err, words)
		}
	case <-time.After(time.Minute):
		n.tb.Fatalf("waited a minute in vain for the end of a node: %s", words)
	}
	n.stop()
	n.stop = nil
}

// ended is how a call of waitForEver has ended.
type ended struct {
	what string
	err  error
}

// waitForEver begins what waits without a limit of its own: a watch, which is armed when
// it returns, and a lock of a record that somebody holds.
func waitForEver(db *DB) chan ended {
	bg := context.Background()
	ends, armed := make(chan ended, 2), make(chan struct{})
	go func() {
		var err error
		for e, watchErr := range db.Watch(bg, []byte("k")) {
			if e == Armed {
				close(armed)
			}
			err = watchErr
		}
		ends <- ended{"an armed watch", err}
	}()
	go func() { _, err := db.FetchLocked(bg, []byte("held")); ends <- ended{"a sleeping lock", err} }()
	<-armed
	return ends
}

// Whatever happens to the segment's file, every call of every client ends with the
// reason: by bypass, asleep for a lock, and through the ring.
func TestSegmentGone(t *testing.T) {
	for name, tc := range map[string]struct {
		words string
		spoil func(n *node) error
	}{
		"deleted":           {"deleted", func(n *node) error { return os.Remove(filepath.Join(n.dir, "segment")) }},
		"directory deleted": {"deleted", func(n *node) error { return os.RemoveAll(n.dir) }},
		"replaced": {"replaced", func(n *node) error {
			b, err := os.ReadFile(filepath.Join(n.dir, "segment"))
			other := filepath.Join(n.dir, "other")
			return errors.Join(err, os.WriteFile(other, b, 0o600), os.Rename(other, filepath.Join(n.dir, "segment")))
		}},
		"moved away and copied back": {"replaced", func(n *node) error {
			file := filepath.Join(n.dir, "segment")
			err := os.Rename(file, file+".old")
			b, e := os.ReadFile(file + ".old")
			return errors.Join(err, e, os.WriteFile(file, b, 0o600))
		}},
		"wiped": {"replaced", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t)
			a, b := n.attach(), n.attach()
			o, err := Attach(minute(t), n.dir, ReadOnly())
			want(t, err, nil)
			defer o.Close()
			db, other := a.open(t, "m", KV), b.open(t, "m", KV)
			oDB, err := o.Open(minute(t), "m", KV)
			want(t, err, nil)
			want(t, db.Store(minute(t), []byte("k"), []byte("v")), nil)
			held, err := other.FetchLocked(minute(t), []byte("held"))
			want(t, err, nil)
			ends := waitForEver(db)
			if tc.spoil != nil {
				want(t, tc.spoil(n), nil)
				n.fails(tc.words)
			} else {
				n.end()
				n.opts.Store.Wipe = true
				n.start()
			}
			// Each client looks for itself where the gate in shared memory says
			// nothing.
			for _, c := range []*Client{a, b} {
				select {
				case <-c.store.Segment().Done():
				case <-time.After(time.Minute):
					t.Fatal("a client does not see the end")
				}
			}
			closed := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), tc.words) {
					t.Errorf("%s ended with %v, want %q", what, err, tc.words)
				}
			}
			for range cap(ends) {
				select {
				case e := <-ends:
					closed(e.what, e.err)
				case <-time.After(time.Minute):
					t.Fatal("a call does not end")
				}
			}
			// The observer looks by itself; the gate in shared memory is only
			// dead for it if that is everybody's.
			for err = nil; err == nil; {
				_, err = oDB.Fetch(minute(t), []byte("k"))
			}
			closed("an observer's fetch", err)
			closed("a held record", held.StoreUnlock([]byte("late")))
			closed("a ping", a.Ping(minute(t)))
			for _, err := range db.Watch(minute(t), []byte("k")) {
				closed("a new watch", err)
			}
			_, err = db.ConditionalAppend(minute(t), 77, []byte("k"), []byte("x"))
			if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrNoCondition) {
				t.Errorf("an append through mainzd: %v", err)
			}
			_, err = db.Fetch(minute(t), []byte("k"))
			closed("a fetch", err)
			closed("a store", db.Store(minute(t), []byte("k"), []byte("lost")))
			_, err = a.Open(minute(t), "new", KV)
			closed("an open", err)
		})
	}
}

// Nobody has to wait for the next look to see that the segment is gone: mainzd's kernel
// tells it, and ends the connections of those who only wait. The first looks would be in
// an hour.
func TestSegmentGoneAtOnce(t *testing.T) {
	n := startNode(t)
	n.end()
	n.opts.Store.LookEvery = time.Hour
	n.start()
	c := n.attach(func(o *options) { o.lookEvery = time.Hour })
	db := c.open(t, "m", KV)
	ended, armed := make(chan error, 1), make(chan struct{})
	go func() {
		for e, err := range db.Watch(context.Background(), []byte("k")) {
			if e == Armed {
				close(armed)
			}
			if err != nil {
				ended <- err
			}
		}
	}()
	<-armed
	want(t, os.Remove(filepath.Join(n.dir, "segment")), nil)
	n.fails("deleted")
	select {
	case err := <-ended:
		want(t, err, ErrClosed)
	case <-time.After(time.Minute):
		t.Fatal("a watch goes on")
	}
}

// A daemon whose directory was deleted ends, and leaves its successor's files alone.
func TestForgottenDaemon(t *testing.T) {
	n := startNode(t)
	c := n.attach()
	want(t, os.RemoveAll(n.dir), nil)
	next := &node{tb: t, dir: n.dir, opts: n.opts}
	next.start()
	defer next.end()
	n.fails("")
	for _, name := range []string{"segment", "owner.lock", "doorbell"} {
		if _, err := os.Stat(filepath.Join(n.dir, name)); err != nil {
			t.Error(err)
		}
	}
	d := next.attach()
	want(t, d.Ping(minute(t)), nil)
	if err := c.Ping(minute(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("the old client's ping: %v", err)
	}
}

// Any file of the node but the segment may be deleted alone: it is made again, who is
// attached goes on, and no second daemon can start.
func TestFilesMadeAgain(t *testing.T) {
	n := startNode(t)
	c := n.attach(ThroughRing())
	db := c.open(t, "m", KV)
	for _, name := range []string{"owner.lock", "doorbell", "mainzd.sock"} {
		file := filepath.Join(n.dir, name)
		for _, spoil := range []func() error{
			func() error { return os.Remove(file) },
			func() error { return errors.Join(os.Rename(file, file+".old"), os.WriteFile(file, nil, 0o600)) },
		} {
			old, err := os.Lstat(file)
			want(t, err, nil)
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			for _, wipe := range []bool{false, true} {
				opts := n.opts
				opts.Store.Wipe = wipe
				d, err := dispatcher.Open(minute(t), opts)
				if !errors.Is(err, shm.ErrInUse) {
					t.Errorf("without %s, wipe %v: a second daemon: %v", name, wipe, err)
				}
				if d != nil {
					_ = d.Close()
				}
			}
			want(t, db.Store(minute(t), []byte("k"), []byte(name)), nil)
			if name == "doorbell" && old.Mode()&os.ModeNamedPipe != 0 {
				if st, err := os.Lstat(file); err == nil && st.Mode().IsRegular() {
					// Somebody's file: it is not ours to remove.
					want(t, os.Remove(file), nil)
				}
			}
			until(t, name+" is made again", func() bool {
				st, err := os.Lstat(file)
				return err == nil && st.Mode().Type() == old.Mode().Type() && !os.SameFile(st, old)
			})
			until(t, "a client can attach", func() bool {
				d, err := Attach(minute(t), n.dir)
				return err == nil && d.Ping(minute(t)) == nil && d.Close() == nil
			})
			want(t, db.Store(minute(t), []byte("k"), []byte(name)), nil)
		}
	}
}
