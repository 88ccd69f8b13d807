package ltdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// wantErr fails unless err is of a kind; nil means no error.
func wantErr(t testing.TB, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v, want %v", what, err, kind)
	}
}

func lockedBy(t testing.TB, db *DB, key string) Record {
	t.Helper()
	r, err := db.FetchLocked(bg, []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestKeyLengths: every method takes keys of 1 to 1,024 bytes.
func TestKeyLengths(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "keys", 10)
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for n, kind := range map[int]error{0: ErrTooBig, 1: nil, MaxKey: nil, MaxKey + 1: ErrTooBig, 1 << 16: ErrTooBig} {
		key := bytes.Repeat([]byte("k"), n)
		b := Batch{Keys: [][]byte{key, []byte("other")}}
		for name, f := range map[string]func() error{
			"DB.Store":              func() error { return db.Store(bg, key, []byte("v")) },
			"DB.Store of nothing":   func() error { return db.Store(bg, key, nil) },
			"DB.Append":             func() error { return db.Append(bg, key, []byte("v")) },
			"DB.FetchLocked":        func() error { return unlocked(db.FetchLocked(bg, key)) },
			"DB.TryFetchLocked":     func() error { return unlocked(db.TryFetchLocked(bg, key)) },
			"Handle.Store":          func() error { return h.Store(bg, key, []byte("v")) },
			"Handle.Append":         func() error { return h.Append(bg, key, []byte("v")) },
			"Handle.FetchLocked":    func() error { return unlocked(h.FetchLocked(bg, key)) },
			"Handle.TryFetchLocked": func() error { return unlocked(h.TryFetchLocked(bg, key)) },
		} {
			wantErr(t, fmt.Sprintf("%s of a key of %d bytes", name, n), f(), kind)
		}
		wantErr(t, "store", db.Store(bg, key, []byte("v")), kind)
		for name, f := range map[string]func() error{
			"DB.Fetch":          func() error { _, err := db.Fetch(bg, key); return err },
			"Handle.Fetch":      func() error { _, err := h.Fetch(bg, key); return err },
			"DB.FetchBatch":     func() error { _, err := db.FetchBatch(bg, &b); return errors.Join(err, b.Err[0]) },
			"Handle.FetchBatch": func() error { _, err := h.FetchBatch(bg, &b); return errors.Join(err, b.Err[0]) },
		} {
			wantErr(t, fmt.Sprintf("%s of a key of %d bytes", name, n), f(), kind)
		}
		wantErr(t, "the other key of the batch", b.Err[1], ErrNotFound)
		wantErr(t, "DB.Delete", db.Delete(bg, key), kind)
		if kind == nil {
			kind = ErrNotFound
		}
		wantErr(t, "Handle.Delete", h.Delete(bg, key), kind)
	}
}

func unlocked(r Record, err error) error {
	if err == nil {
		err = r.Unlock()
	}
	return err
}

// TestValueLengths: values of up to Config.MaxValue, in every way to store.
func TestValueLengths(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "values", 10)
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	key := []byte("key")
	for extra, kind := range map[int]error{-1: nil, 0: nil, 1: ErrTooBig, 1 << 20: ErrTooBig} {
		v := bytes.Repeat([]byte("v"), s.MaxValue()+extra)
		for name, f := range map[string]func() error{
			"DB.Store":      func() error { return db.Store(bg, key, v) },
			"Handle.Store":  func() error { return h.Store(bg, key, v) },
			"DB.Append":     func() error { return db.Append(bg, key, v) },
			"Handle.Append": func() error { return h.Append(bg, key, v) },
			"Append in two": func() error {
				if err := db.Append(bg, key, v[:100]); err != nil {
					return err
				}
				return h.Append(bg, key, v[100:])
			},
			"StoreUnlock": func() error { return lockedBy(t, db, "key").StoreUnlock(v) },
			"Record.Store": func() error {
				r := lockedBy(t, db, "key")
				return errors.Join(r.Store(v), r.Unlock())
			},
		} {
			wantErr(t, fmt.Sprintf("%s, %+d", name, extra), f(), kind)
			got, err := db.Fetch(bg, key)
			switch {
			case kind == nil && (err != nil || !bytes.Equal(got, v)):
				t.Errorf("%s, %+d: %d bytes, %v", name, extra, len(got), err)
			case kind != nil && len(got) > s.MaxValue():
				t.Errorf("%s, %+d: %d bytes are there", name, extra, len(got))
			}
			if err := db.Store(bg, key, nil); err != nil {
				t.Fatal(err)
			}
			// Nobody has kept the lock.
			r, err := db.TryFetchLocked(bg, key)
			if err != nil || r.Data() != nil {
				t.Fatal(name, err)
			}
			if err := r.Unlock(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestStaleRecords: whatever ends a lock, each method of it and of its copies
// says so afterwards.
func TestStaleRecords(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "records", 10)
	stale := func(t *testing.T, r Record) {
		t.Helper()
		for name, err := range map[string]error{
			"Store": r.Store([]byte("x")), "StoreUnlock": r.StoreUnlock([]byte("x")), "Delete": r.Delete(),
			"Unlock": r.Unlock(),
		} {
			wantErr(t, name, err, ErrNotLocked)
		}
		if r.Data() != nil || r.Header() != (Header{}) || r.OwnerDied() {
			t.Error("a stale record knows something")
		}
	}
	stale(t, Record{})
	for name, end := range map[string]func(Record) error{
		"Unlock":      Record.Unlock,
		"Delete":      Record.Delete,
		"StoreUnlock": func(r Record) error { return r.StoreUnlock([]byte("new")) },
	} {
		t.Run(name, func(t *testing.T) {
			r := lockedBy(t, db, "key")
			twin := r
			wantErr(t, "end", end(r), nil)
			stale(t, r)
			stale(t, twin)
			again := lockedBy(t, db, "key") // may use the same memory
			stale(t, r)
			wantErr(t, "unlock", again.Unlock(), nil)
		})
	}
}

// allCalls is every call of a store, one of its databases, a Handle and a Record of it.
func allCalls(s *Store, db *DB, h *Handle, r Record) map[string]func() error {
	key, v := []byte("a"), []byte("v")
	b := Batch{Keys: [][]byte{key}}
	return map[string]func() error{
		"DB.Fetch":              func() error { _, err := db.Fetch(bg, key); return err },
		"DB.AppendFetch":        func() error { _, err := db.AppendFetch(bg, nil, key); return err },
		"DB.FetchBatch":         func() error { _, err := db.FetchBatch(bg, &b); return err },
		"DB.FetchLocked":        func() error { _, err := db.FetchLocked(bg, key); return err },
		"DB.TryFetchLocked":     func() error { _, err := db.TryFetchLocked(bg, key); return err },
		"DB.Store":              func() error { return db.Store(bg, key, v) },
		"DB.Append":             func() error { return db.Append(bg, key, v) },
		"DB.Delete":             func() error { return db.Delete(bg, key) },
		"DB.Handle":             func() error { _, err := db.Handle(); return err },
		"DB.Usage":              func() error { _, err := db.Usage(bg); return err },
		"DB.Traverse":           func() error { return traverseErr(db) },
		"Handle.Fetch":          func() error { _, err := h.Fetch(bg, key); return err },
		"Handle.AppendFetch":    func() error { _, err := h.AppendFetch(bg, nil, key); return err },
		"Handle.FetchBatch":     func() error { _, err := h.FetchBatch(bg, &b); return err },
		"Handle.FetchLocked":    func() error { _, err := h.FetchLocked(bg, key); return err },
		"Handle.TryFetchLocked": func() error { _, err := h.TryFetchLocked(bg, key); return err },
		"Handle.Store":          func() error { return h.Store(bg, key, v) },
		"Handle.Append":         func() error { return h.Append(bg, key, v) },
		"Handle.Delete":         func() error { return h.Delete(bg, key) },
		"Store.Database": func() error {
			_, err := s.Database(bg, "db", KV, DatabaseOptions{})
			return err
		},
		"Store.Databases":    func() error { _, err := s.Databases(); return err },
		"Store.Check":        func() error { _, err := s.Check(bg); return err },
		"Store.Recover":      func() error { _, err := s.Recover(bg); return err },
		"Record.Store":       func() error { return r.Store(v) },
		"Record.StoreUnlock": func() error { return r.StoreUnlock(v) },
		"Record.Unlock":      func() error { return r.Unlock() },
		"Record.Delete":      func() error { return r.Delete() },
	}
}

// TestAfterClose: every method of everything says ErrClosed.
func TestAfterClose(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			var s *Store
			if shared {
				var err error
				if s, err = Open(bg, ramdisk(t), Options{Create: true, Config: small()}); err != nil {
					t.Fatal(err)
				}
			} else {
				s = heap(t, small())
			}
			other, err := s.Join(bg, "other")
			if err != nil {
				t.Fatal(err)
			}
			db := database(t, other, "db", 10)
			if err := db.Store(bg, []byte("a"), []byte("b")); err != nil {
				t.Fatal(err)
			}
			h, err := db.Handle()
			if err != nil {
				t.Fatal(err)
			}
			byDB, err := db.FetchLocked(bg, []byte("locked"))
			if err != nil {
				t.Fatal(err)
			}
			byHandle, err := h.FetchLocked(bg, []byte("by handle"))
			if err != nil {
				t.Fatal(err)
			}
			if err := other.Close(); err != nil { // a Handle is open still
				t.Fatal(err)
			}
			for name, err := range map[string]error{
				"Handle.Store":  h.Store(bg, []byte("k"), []byte("v")),
				"Handle.Append": h.Append(bg, []byte("k"), []byte("v")),
				"Handle.Delete": h.Delete(bg, []byte("k")),
			} {
				wantErr(t, name+" with the store closed", err, ErrClosed)
			}
			wantErr(t, "Handle.Close", h.Close(), nil)
			wantErr(t, "Handle.Close again", h.Close(), nil)
			wantErr(t, "Store.Close again", other.Close(), nil)
			all := allCalls(other, db, h, byDB)
			for name, f := range all {
				if name == "Record.Unlock" || !strings.HasPrefix(name, "Record") {
					wantErr(t, name, f(), ErrClosed)
				} else if err := f(); !errors.Is(err, ErrClosed) && !errors.Is(err, ErrNotLocked) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if err := byHandle.Unlock(); !errors.Is(err, ErrClosed) && !errors.Is(err, ErrNotLocked) {
				t.Errorf("Unlock through a closed Handle: %v", err)
			}
			byDB.Data()
			byDB.Header()
			byDB.OwnerDied()
			other.Clients()
			other.Stats()
			other.Latencies()
			// Nothing of it is left in the store.
			if r := mustCheck(t, s); r.Locked != 0 || r.Records != 1 {
				t.Errorf("%+v", r)
			}
			if shared {
				wantErr(t, "close", s.Close(), nil)
				_, err := s.Join(bg, "late")
				wantErr(t, "join after close", err, ErrClosed)
			}
		})
	}
}

func traverseErr(db *DB) error {
	for _, err := range db.Traverse(bg) {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestHandles: 14 of the 16, and DB's own methods work with all of them taken.
func TestHandles(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "handles", 10)
	var all []*Handle
	for {
		h, err := db.Handle()
		if err != nil {
			wantErr(t, "one handle too many", err, ErrNoHandles)
			break
		}
		if all = append(all, h); len(all) > shm.HandlesPerSlot {
			t.Fatal("no end of handles")
		}
	}
	if len(all) != shm.HandlesPerSlot-pooled {
		t.Errorf("%d handles", len(all))
	}
	for i := range 100 {
		if err := db.Store(bg, numbered(i), []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, "close", all[3].Close(), nil)
	_, err := all[3].Fetch(bg, []byte("k"))
	wantErr(t, "use of a closed one", err, ErrClosed)
	h, err := db.Handle()
	wantErr(t, "the place of a closed one", err, nil)
	all[3] = h
	for _, h := range all {
		wantErr(t, "close", h.Close(), nil)
	}
}

// TestTooManyLocks: 1,008 locks, then an error, and all goes on when one is
// given back.
func TestTooManyLocks(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "locks", 2000)
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	for round, lock := range []func(key []byte) (Record, error){
		func(key []byte) (Record, error) { return h.FetchLocked(bg, key) },
		func(key []byte) (Record, error) { return db.FetchLocked(bg, key) },
		func(key []byte) (Record, error) { return db.TryFetchLocked(bg, key) },
		func(key []byte) (Record, error) { return h.TryFetchLocked(bg, key) },
	} {
		const most = cellsPerSlot - shm.HandlesPerSlot
		var held []Record
		for len(held) <= most {
			r, err := lock(numbered(len(held)))
			if err != nil {
				wantErr(t, "one lock too many", err, ErrTooManyLocks)
				break
			}
			held = append(held, r)
		}
		// Up to 8 may lie ready in each of the others' hands.
		if len(held) > most || len(held) < most-locksAtHand*shm.HandlesPerSlot || round == 0 && len(held) != most {
			t.Fatalf("round %d: %d locks", round, len(held))
		}
		if _, err := db.Fetch(bg, numbered(0)); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		// What needs no lock of its own works on.
		if err := db.Store(bg, []byte("another"), []byte("v")); err != nil {
			t.Fatal(err)
		}
		if err := held[0].Unlock(); err != nil {
			t.Fatal(err)
		}
		if held[0], err = lock(numbered(0)); err != nil {
			t.Fatalf("one given back, none to have: %v", err)
		}
		for _, r := range held {
			if err := r.StoreUnlock([]byte("v")); err != nil {
				t.Fatal(err)
			}
		}
		for i := range held {
			if err := db.Delete(bg, numbered(i)); err != nil {
				t.Fatal(err)
			}
		}
		mustCheck(t, s)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestModes: what a database of pieces and a read-only store refuse.
func TestModes(t *testing.T) {
	s := heap(t, small())
	db, err := s.Database(bg, "pieces", Pieces, DatabaseOptions{Records: 10})
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "store", db.Store(bg, []byte("k"), []byte("v")), ErrMode)
	wantErr(t, "append", db.Append(bg, []byte("k"), []byte("v")), ErrMode)
	wantErr(t, "delete", db.Delete(bg, []byte("k")), ErrNotFound)
	wantErr(t, "locked store", lockedBy(t, db, "k").StoreUnlock([]byte("v")), ErrMode)
	r := lockedBy(t, db, "k")
	wantErr(t, "record's store", r.Store([]byte("v")), ErrMode)
	wantErr(t, "unlock", r.Unlock(), nil)
	_, err = db.Fetch(bg, []byte("k"))
	wantErr(t, "fetch", err, ErrNotFound)
	_, err = s.Database(bg, "pieces", KV, DatabaseOptions{})
	wantErr(t, "other mode", err, ErrMode)
	for _, m := range []Mode{0, 3, 255} {
		_, err = s.Database(bg, "odd", m, DatabaseOptions{})
		wantErr(t, m.String(), err, ErrMode)
	}
	if KV.String() != "kv" || Pieces.String() != "pieces" {
		t.Error(KV, Pieces)
	}
}

// TestDatabaseErrors: names and numbers.
func TestDatabaseErrors(t *testing.T) {
	cfg := small()
	cfg.Databases = 3
	s := heap(t, cfg)
	for _, name := range []string{"", strings.Repeat("n", 65)} {
		_, err := s.Database(bg, name, KV, DatabaseOptions{})
		wantErr(t, fmt.Sprintf("name of %d bytes", len(name)), err, ErrTooBig)
	}
	_, err := s.Database(bg, "absent", KV, DatabaseOptions{MustExist: true})
	wantErr(t, "MustExist", err, ErrNoDatabase)
	// Two names with one number: by trying, some ten thousand suffice.
	seen := map[uint32]string{}
	one, two := "", ""
	for i := 0; two == ""; i++ {
		name := fmt.Sprintf("database %d", i)
		if one = seen[databaseID(name)]; one != "" {
			two = name
		}
		seen[databaseID(name)] = name
	}
	a := database(t, s, one, 10)
	_, err = s.Database(bg, two, KV, DatabaseOptions{Records: 10})
	wantErr(t, "a name whose number is taken", err, ErrMode)
	if err == nil || !strings.Contains(err.Error(), "choose another name") {
		t.Errorf("no next step in %v", err)
	}
	database(t, s, strings.Repeat("n", 64), 10)
	third := database(t, s, "third", 10)
	_, err = s.Database(bg, "fourth", KV, DatabaseOptions{Records: 10})
	wantErr(t, "one database too many", err, ErrNoSpace)
	all, err := s.Databases()
	if err != nil || len(all) != 3 || all[0].Name() != one || all[0].ID() != a.ID() || all[2].Mode() != third.Mode() {
		t.Errorf("%v %v", all, err)
	}
}

// TestConfigErrors: sizes out of range, each with a message that names them.
func TestConfigErrors(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{Slots: -1}, "-1 slots: must be 1 to 4094"},
		{Config{Slots: 4095}, "4095 slots: must be 1 to 4094"},
		{Config{MaxValue: -1}, "values of -1 bytes: must be"},
		{Config{MaxValue: MaxValueLimit + 1}, "values of 1048577 bytes: must be"},
		{Config{Databases: -1}, "-1 databases: must be 1 to 4,096"},
		{Config{Databases: 4097}, "4097 databases: must be 1 to 4,096"},
		{Config{SpanSize: 3 << 20}, "spans of 3145728 bytes: must be a power of two"},
		{Config{SpanSize: 1 << 16}, "spans of 65536 bytes: must be a power of two"},
		{Config{SpanSize: 2 << 30}, "spans of 2147483648 bytes: must be a power of two"},
		{Config{SpanSize: 2048, MaxValue: 100}, "spans of 2048 bytes: must be a power of two"},
		{Config{Size: 1 << 16}, "segment of 65536 bytes has no room"},
		{Config{Size: 1}, "segment of 1 bytes has no room"},
		{Config{Size: 8 << 20, Slots: 4000}, "has no room for 4000 slots"},
		{Config{Size: 1 << 40}, "at most 256 GiB"},
		{Config{Size: 1 << 63}, "at most 256 GiB"},
		{Config{Size: 8 << 20, Slots: 4, MaxValue: 100, Cluster: strings.Repeat("c", 64)}, "cluster name"},
	} {
		s, err := OpenHeap(c.cfg)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
	_, err := OpenHeap(Config{Size: 1 << 16})
	wantErr(t, "no room", err, ErrNoSpace)
	_, err = OpenHeap(Config{MaxValue: MaxValueLimit + 1})
	wantErr(t, "values too long", err, ErrTooBig)
}

// TestReadOnly: an observer reads and changes nothing.
func TestReadOnly(t *testing.T) {
	dir := ramdisk(t)
	s, err := Open(bg, dir, Options{Create: true, Config: small()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db := database(t, s, "db", 10)
	for i := range 20 {
		if err := db.Store(bg, numbered(i), filled(i, 100)); err != nil {
			t.Fatal(err)
		}
	}
	held := lockedBy(t, db, "record 000003")
	before, err := os.ReadFile(dir + "/segment")
	if err != nil {
		t.Log(err)
	}
	ro, err := Open(bg, dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	rdb := database(t, ro, "db", 0)
	key := numbered(3)
	b := Batch{Keys: [][]byte{key, []byte("absent")}}
	for name, f := range map[string]func() error{
		"Fetch":       func() error { _, err := rdb.Fetch(bg, key); return err },
		"AppendFetch": func() error { _, err := rdb.AppendFetch(bg, nil, key); return err },
		"FetchBatch":  func() error { _, err := rdb.FetchBatch(bg, &b); return errors.Join(err, b.Err[0]) },
		"Traverse":    func() error { return traverseErr(rdb) },
		"Usage":       func() error { _, err := rdb.Usage(bg); return err },
		"Check":       func() error { _, err := ro.Check(bg); return err },
		"Databases":   func() error { _, err := ro.Databases(); return err },
	} {
		wantErr(t, name, f(), nil)
	}
	for name, f := range map[string]func() error{
		"Store":           func() error { return rdb.Store(bg, key, key) },
		"Store of none":   func() error { return rdb.Store(bg, key, nil) },
		"Append":          func() error { return rdb.Append(bg, key, key) },
		"Delete":          func() error { return rdb.Delete(bg, key) },
		"FetchLocked":     func() error { _, err := rdb.FetchLocked(bg, key); return err },
		"TryFetchLocked":  func() error { _, err := rdb.TryFetchLocked(bg, key); return err },
		"Handle":          func() error { _, err := rdb.Handle(); return err },
		"Recover":         func() error { _, err := ro.Recover(bg); return err },
		"Database, a new": func() error { _, err := ro.Database(bg, "new", KV, DatabaseOptions{}); return err },
	} {
		wantErr(t, name, f(), ErrMode)
	}
	_, err = rdb.Fetch(bg, []byte("absent"))
	wantErr(t, "absent", err, ErrNotFound)
	if u, err := rdb.Usage(bg); err != nil || u.Records != 20 {
		t.Errorf("%+v %v", u, err)
	}
	if len(ro.Clients()) != 1 || ro.Slot() != 0 || ro.Stats() != (Stats{}) {
		t.Errorf("%+v", ro.Clients())
	}
	if _, err := ro.Join(bg, "writer"); err == nil {
		t.Error("a writer joined what was opened for reading")
	}
	wantErr(t, "close", ro.Close(), nil)
	_, err = rdb.Fetch(bg, key)
	wantErr(t, "fetch after close", err, ErrClosed)
	wantErr(t, "traverse after close", traverseErr(rdb), ErrClosed)
	if after, err := os.ReadFile(dir + "/segment"); err == nil && !bytes.Equal(before, after) {
		t.Error("an observer changed the segment")
	}
	wantErr(t, "unlock", held.Unlock(), nil)
	mustCheck(t, s)
}

// TestWaitEnds: a wait for a lock ends with its context, in every method, and
// ErrLocked is for those who do not want to wait.
func TestWaitEnds(t *testing.T) {
	s := heap(t, small())
	other, err := s.Join(bg, "holder")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	db, odb := database(t, s, "db", 10), database(t, other, "db", 10)
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	key := []byte("key")
	if err := db.Store(bg, key, []byte("v")); err != nil {
		t.Fatal(err)
	}
	r := lockedBy(t, odb, "key")
	over, stop := context.WithCancel(bg)
	stop()
	for name, f := range map[string]func(context.Context) error{
		"DB.FetchLocked":     func(ctx context.Context) error { return unlocked(db.FetchLocked(ctx, key)) },
		"DB.Store":           func(ctx context.Context) error { return db.Store(ctx, key, key) },
		"DB.Store, large":    func(ctx context.Context) error { return db.Store(ctx, key, make([]byte, 2000)) },
		"DB.Append":          func(ctx context.Context) error { return db.Append(ctx, key, key) },
		"DB.Delete":          func(ctx context.Context) error { return db.Delete(ctx, key) },
		"Handle.FetchLocked": func(ctx context.Context) error { return unlocked(h.FetchLocked(ctx, key)) },
		"Handle.Store":       func(ctx context.Context) error { return h.Store(ctx, key, key) },
		"Handle.Append":      func(ctx context.Context) error { return h.Append(ctx, key, key) },
		"Handle.Delete":      func(ctx context.Context) error { return h.Delete(ctx, key) },
	} {
		within(t, name, func() {
			ctx, stop := context.WithTimeout(bg, 5*time.Millisecond)
			defer stop()
			wantErr(t, name+" with a deadline", f(ctx), context.DeadlineExceeded)
			wantErr(t, name+" with a context that is over", f(over), context.Canceled)
		})
	}
	_, err = db.TryFetchLocked(over, key)
	wantErr(t, "DB.TryFetchLocked", err, ErrLocked)
	_, err = h.TryFetchLocked(over, key)
	wantErr(t, "Handle.TryFetchLocked", err, ErrLocked)
	if v, err := h.Fetch(over, key); string(v) != "v" || err != nil {
		t.Errorf("reading waits for nobody: %q %v", v, err)
	}
	wantErr(t, "unlock", r.StoreUnlock([]byte("w")), nil)
	// Who gave up has left nothing behind.
	wantErr(t, "store", h.Store(bg, key, []byte("x")), nil)
	for _, c := range s.Clients() {
		if c.Locks+c.Waiting != 0 {
			t.Errorf("%s has %d lock cells", c.Name, c.Locks+c.Waiting)
		}
	}
}

// TestTraverseEnds: so does a walk over a large table.
func TestTraverseEnds(t *testing.T) {
	s := heap(t, Config{Size: 8 << 20, Slots: 4, MaxValue: 3000})
	db := database(t, s, "db", 20000)
	over, stop := context.WithCancel(bg)
	stop()
	_, err := db.Usage(over)
	wantErr(t, "usage", err, context.Canceled)
	_, err = s.Check(over)
	wantErr(t, "check", err, context.Canceled)
}

// TestCloseEndsWaits: whoever waits when the store is closed gets ErrClosed,
// and no lock is left behind, whichever moment Close comes at.
func TestCloseEndsWaits(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "db", 10)
	for round := range 8 {
		other, err := s.Join(bg, "waiter")
		if err != nil {
			t.Fatal(err)
		}
		odb := database(t, other, "db", 10)
		key := []byte("key")
		r := lockedBy(t, db, "key")
		var wg sync.WaitGroup
		var got atomic.Int32
		for i := range 6 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				var err error
				switch i % 3 {
				case 0:
					err = unlocked(odb.FetchLocked(bg, key))
				case 1:
					err = odb.Store(bg, key, []byte("w"))
				case 2:
					err = odb.Append(bg, key, []byte("w"))
				}
				if err == nil {
					got.Add(1)
				} else if !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
			}()
		}
		// They wait as soon as one of them has a cell for the entry.
		within(t, "waiting", func() {
			for !waits(s, other.Slot()) {
				runtime.Gosched()
			}
		})
		if round%2 == 0 { // let go at the same time
			wg.Add(1)
			go func() {
				defer wg.Done()
				wantErr(t, "unlock", r.Unlock(), nil)
			}()
		}
		within(t, "close", func() { wantErr(t, "close", other.Close(), nil) })
		within(t, "the end of the waits", wg.Wait)
		if round%2 == 1 {
			if got.Load() != 0 {
				t.Errorf("%d got the lock that another holds", got.Load())
			}
			wantErr(t, "unlock", r.Unlock(), nil)
		}
		if rep := mustCheck(t, s); rep.Locked != 0 {
			t.Fatalf("%+v", rep)
		}
	}
}

// waits reports whether the client in a slot holds or wants a record's lock.
func waits(s *Store, slot uint32) bool {
	for _, c := range s.Clients() {
		if c.Slot == slot && c.Waiting > 0 {
			return true
		}
	}
	return false
}

// TestManyWaiters: 1,000 goroutines want one record, through DB, and all get
// it: nobody starves, and no lock cell or thread is needed for each.
func TestManyWaiters(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "db", 10)
	const n = 1000
	r := lockedBy(t, db, "one")
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r, err := db.FetchLocked(bg, []byte("one"))
			if err != nil {
				t.Error(i, err)
				return
			}
			wantErr(t, "store", r.StoreUnlock(counterValue(nil, readCounter(t, r.Data())+1)), nil)
		}()
	}
	wantErr(t, "start", r.StoreUnlock(counterValue(nil, 0)), nil)
	within(t, "all waiters", wg.Wait)
	v, err := db.Fetch(bg, []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if got := readCounter(t, v); got != n {
		t.Errorf("%d goroutines counted to %d", n, got)
	}
	if st := s.Stats(); st.Late != 0 {
		t.Errorf("%d waits ended by their time slice though a wake-up was due", st.Late)
	}
}

// TestErrorsSayWhatToDo: an error of a bad call names the next step.
func TestErrorsSayWhatToDo(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "db", 10)
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	key, long := []byte("key"), make([]byte, s.MaxValue()+1)
	stale := lockedBy(t, db, "key")
	wantErr(t, "unlock", stale.Unlock(), nil)
	wantErr(t, "close", h.Close(), nil)
	closed, err := s.Join(bg, "closed")
	if err != nil {
		t.Fatal(err)
	}
	cdb := database(t, closed, "db", 10)
	wantErr(t, "close", closed.Close(), nil)
	for name, c := range map[string]struct {
		err  error
		kind error
		step string
	}{
		"no key":             {db.Store(bg, nil, key), ErrTooBig, "must have 1 to 1,024 bytes"},
		"long key":           {db.Store(bg, long, key), ErrTooBig, "must have 1 to 1,024 bytes"},
		"long value":         {db.Store(bg, key, long), ErrTooBig, "make it shorter"},
		"long locked value":  {lockedBy(t, db, "other").StoreUnlock(long), ErrTooBig, "make it shorter"},
		"stale record":       {stale.Unlock(), ErrNotLocked, "fetch the record locked again"},
		"closed handle":      {h.Store(bg, key, key), ErrClosed, "open it again"},
		"closed store":       {cdb.Store(bg, key, key), ErrClosed, "open it again"},
		"closed store, read": {func() error { _, err := cdb.Fetch(bg, key); return err }(), ErrClosed, "open it again"},
		"closed store, wait": {unlocked(cdb.FetchLocked(bg, key)), ErrClosed, "open it again"},
		"full store":         {ErrFull, ErrNoSpace, "larger segment"},
		"too many locks":     {ErrTooManyLocks, ErrTooManyLocks, "unlock some"},
		"too many handles":   {ErrNoHandles, ErrNoHandles, "close one"},
	} {
		wantErr(t, name, c.err, c.kind)
		if c.err != nil && !strings.Contains(c.err.Error(), c.step) {
			t.Errorf("%s: no %q in %q", name, c.step, c.err)
		}
	}
}
