package ltdb

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/shm"
)

// ramdisk returns a directory for a segment on a ramdisk, removed when the
// test ends.
func ramdisk(t testing.TB) string {
	t.Helper()
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	return filepath.Join(testenv.ShmDir(t), "cluster", "0", "v1")
}

func TestOpenShares(t *testing.T) {
	dir := ramdisk(t)
	if _, err := Open(bg, dir, Options{}); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("open of nothing: %v", err)
	}
	opts := Options{Create: true, Config: Config{Size: 16 << 20, Slots: 4, MaxValue: 10000}}
	a, err := Open(bg, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	da, err := a.Database(bg, "files", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := da.Store(bg, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	b, err := Open(bg, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dbb, err := b.Database(bg, "files", KV, DatabaseOptions{MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := dbb.Fetch(bg, []byte("k")); string(v) != "v" || err != nil {
		t.Fatalf("%q %v", v, err)
	}
	if _, err := b.Database(bg, "files", Pieces, DatabaseOptions{}); !errors.Is(err, ErrMode) {
		t.Fatalf("open with another mode: %v", err)
	}
	ro, err := Open(bg, dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	dro, err := ro.Database(bg, "files", KV, DatabaseOptions{MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := dro.Fetch(bg, []byte("k")); string(v) != "v" || err != nil {
		t.Fatalf("%q %v", v, err)
	}
	if err := dro.Store(bg, []byte("k"), []byte("w")); !errors.Is(err, ErrMode) {
		t.Fatalf("store into a read-only store: %v", err)
	}
	mustCheck(t, a)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := da.Store(bg, []byte("k"), []byte("w")); !errors.Is(err, ErrClosed) {
		t.Fatalf("store after Close: %v", err)
	}
	mustCheck(t, b)
	t.Log(b.Clients())
}

// TestOpenOnDisk: a local disk is allowed, and the log says what that means.
func TestOpenOnDisk(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	top, err := os.MkdirTemp(".", "disk-") // /tmp may be a ramdisk
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	if top, err = filepath.Abs(top); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, "v1")
	var log bytes.Buffer
	opts := Options{Create: true, Config: small(), Log: slog.New(slog.NewTextHandler(&log, nil))}
	for _, ro := range []bool{false, true} {
		log.Reset()
		if opts.ReadOnly = ro; ro {
			opts.Create = false
		}
		s, err := Open(bg, dir, opts)
		if err != nil {
			t.Fatal(err)
		}
		ram, name := s.Segment().OnRamdisk()
		if warned := strings.Contains(log.String(), "write-back will stall stores"); warned == ram {
			t.Errorf("on %s, a ramdisk: %v; the log says %q", name, ram, &log)
		}
		if !ro {
			db := database(t, s, "db", 10)
			wantErr(t, "store", db.Store(bg, []byte("k"), []byte("v")), nil)
			mustCheck(t, s)
			defer s.Close() // and with it its slot, after the observer
			continue
		}
		wantErr(t, "close", s.Close(), nil)
	}
}

// TestSecondOwner: while a dispatcher owns the directory, clients share its
// segment and replace nothing.
func TestSecondOwner(t *testing.T) {
	dir := ramdisk(t)
	first, err := Open(bg, dir, Options{Create: true, Config: small()})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	owner, err := shm.LockOwner(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(bg, dir, Options{Wipe: true, Config: small()})
	wantErr(t, "wipe what is owned", err, ErrInUse)
	if err == nil || !strings.Contains(err.Error(), "attach to its segment") {
		t.Errorf("no next step in %v", err)
	}
	second, err := Open(bg, dir, Options{Create: true, Config: small()})
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "close", second.Close(), nil)
	wantErr(t, "release", owner.Release(), nil)
	// Nobody owns it: who wipes does, for the moment; the old one is closed.
	db := database(t, first, "db", 10)
	wiped, err := Open(bg, dir, Options{Wipe: true, Config: small()})
	if err != nil {
		t.Fatal(err)
	}
	defer wiped.Close()
	err = db.Store(bg, []byte("k"), []byte("v"))
	wantErr(t, "store into what was replaced", err, ErrClosed)
	if err == nil || !strings.Contains(err.Error(), "attach again") {
		t.Errorf("no next step in %v", err)
	}
	mustCheck(t, wiped)
}

func openSmall(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(bg, dir, Options{Create: true, Config: small()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A database is cleared by who opens it while no other client has it open.
func TestClear(t *testing.T) {
	dir := ramdisk(t)
	open := func() *Store { return openSmall(t, dir) }
	records := func(s *Store, name string, opts DatabaseOptions) int {
		db, err := s.Database(bg, name, KV, opts)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, err := range db.Traverse(bg) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	first := open()
	for _, name := range []string{"a", "b"} {
		db, err := first.Database(bg, name, KV, DatabaseOptions{Records: 100, Clear: true})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if err := db.Store(bg, []byte{byte(i)}, []byte("v")); err != nil {
				t.Fatal(err)
			}
		}
	}
	second := open()
	defer second.Close()
	if n := records(second, "a", DatabaseOptions{Clear: true}); n != 20 {
		t.Errorf("%d records after another client wanted them cleared", n)
	}
	if n := records(first, "a", DatabaseOptions{Clear: true}); n != 20 {
		t.Errorf("%d records after opening twice", n)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	third := open()
	defer third.Close()
	if n := records(third, "a", DatabaseOptions{Clear: true}); n != 20 {
		t.Errorf("%d records: the second client has it open", n)
	}
	if n := records(third, "b", DatabaseOptions{}); n != 20 {
		t.Errorf("%d records, not cleared by who did not ask", n)
	}
	if n := records(second, "b", DatabaseOptions{Clear: true}); n != 20 {
		t.Errorf("%d records: the third client has it open", n)
	}
	if err := errors.Join(second.Close(), third.Close()); err != nil {
		t.Fatal(err)
	}
	last := open()
	defer last.Close()
	if n := records(last, "b", DatabaseOptions{Clear: true}); n != 0 {
		t.Errorf("%d records after clearing", n)
	}
	mustCheck(t, last)
}

// Who opens a database waits while another clears it.
func TestClearWaits(t *testing.T) {
	dir := ramdisk(t)
	s := openSmall(t, dir)
	defer s.Close()
	db, err := s.Database(bg, "db", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if alone, err := s.seg.TryAlone(db.place); !alone || err != nil {
		t.Fatalf("alone: %v %v", alone, err)
	}
	other, err := Open(bg, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ctx, cancel := context.WithTimeout(bg, 20*time.Millisecond)
	defer cancel()
	if _, err := other.Database(ctx, "db", KV, DatabaseOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("opened while it was being cleared: %v", err)
	}
	if shared, err := s.seg.TryShare(db.place); !shared || err != nil {
		t.Fatalf("shared: %v %v", shared, err)
	}
	if _, err := other.Database(bg, "db", KV, DatabaseOptions{}); err != nil {
		t.Fatal(err)
	}
}

// A database that is empty is filled by the first that opens it, before others see it.
func TestResupply(t *testing.T) {
	dir := ramdisk(t)
	open := func() *Store { return openSmall(t, dir) }
	a, b := open(), open()
	defer a.Close()
	defer b.Close()
	key := []byte("key")
	calls, inside, fail := 0, make(chan struct{}), errors.New("nothing known")
	options := func(end error) DatabaseOptions {
		return DatabaseOptions{Records: 100, Resupply: func(_ context.Context, put func(key, data []byte) error) error {
			calls++
			if err := put(key, []byte("known")); err != nil {
				return err
			}
			if calls == 2 {
				close(inside)
				time.Sleep(10 * time.Millisecond) // the other one may come meanwhile
			}
			return end
		}}
	}
	if _, err := a.Database(bg, "db", KV, options(fail)); !errors.Is(err, fail) {
		t.Fatalf("opened in spite of an error: %v", err)
	}
	if _, err := a.Database(bg, "pieces", Pieces, options(nil)); !errors.Is(err, ErrMode) {
		t.Fatalf("pieces put back: %v", err)
	}
	seen := make(chan string, 1)
	go func() {
		<-inside
		db, err := b.Database(bg, "db", KV, DatabaseOptions{Resupply: func(context.Context,
			func(key, data []byte) error) error {
			panic("a second time")
		}})
		if err != nil {
			seen <- err.Error()
			return
		}
		v, _ := db.Fetch(bg, key)
		seen <- string(v)
	}()
	if _, err := a.Database(bg, "db", KV, options(nil)); err != nil {
		t.Fatal(err)
	}
	if got := <-seen; got != "known" {
		t.Errorf("the second that opened saw %q", got)
	}
	if calls != 2 {
		t.Errorf("called %d times", calls)
	}
	mustCheck(t, a)
}
