package ltdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

func piecesDB(t testing.TB, s *Store, name string) *DB {
	t.Helper()
	db, err := s.Database(bg, name, Pieces, DatabaseOptions{Records: 10})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func wantValue(t testing.TB, db *DB, key, want string) {
	t.Helper()
	got, err := db.Fetch(bg, []byte(key))
	if string(got) != want || want == "" && !errors.Is(err, ErrNotFound) || want != "" && err != nil {
		t.Errorf("%q has %q, %v; want %q", key, got, err, want)
	}
}

// mode is an entry of ShareModes that lets nobody else in, or everybody.
func exclusive(who byte) []byte { return AppendShareMode(nil, ShareRead, 0, [16]byte{who}) }
func shared(who byte) []byte    { return AppendShareMode(nil, ShareRead, shareAll, [16]byte{who}) }

func TestPieces(t *testing.T) {
	s := heap(t, small())
	db := piecesDB(t, s, "files")
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	key := []byte("k")
	p, err := h.ConditionalAppend(bg, Always, key, []byte("one"))
	wantErr(t, "append", err, nil)
	if p.IsZero() || p.OPID().Counter&opidBypass == 0 || slotOf(p.OPID().Counter) != s.slot {
		t.Errorf("piece %+v", p)
	}
	wantValue(t, db, "k", "one")
	q, err := db.ConditionalAppend(bg, Always, key, []byte("two"))
	wantErr(t, "second append", err, nil)
	wantValue(t, db, "k", "onetwo")
	_, err = db.ConditionalAppend(bg, IfAbsent, key, []byte("no"))
	wantErr(t, "if absent", err, ErrCondition)
	_, err = db.ConditionalAppend(bg, 99, key, []byte("no"))
	wantErr(t, "unknown", err, ErrNoCondition)
	_, err = db.ConditionalAppend(bg, Always, key, nil)
	wantErr(t, "nothing", err, ErrTooBig)
	_, err = db.ConditionalAppend(bg, Always, key, make([]byte, s.MaxValue()+1))
	wantErr(t, "too much", err, ErrTooBig)
	_, err = db.ConditionalAppend(bg, Always, key, make([]byte, s.MaxValue()-5))
	wantErr(t, "too much in all", err, ErrTooBig)
	_, err = db.ConditionalAppend(bg, Always, nil, []byte("x"))
	wantErr(t, "no key", err, ErrTooBig)
	wantErr(t, "delete", db.Delete(bg, key), ErrMode)
	wantErr(t, "remove matching", db.RemoveMatching(bg, Always, key, []byte("one")), ErrMode)
	rep := mustCheck(t, s)
	if rep.Pieces != 2 || rep.Orphans != 0 || rep.Pages != 1 {
		t.Errorf("%+v", rep)
	}
	wantErr(t, "remove with another key", db.RemoveAndTrigger(bg, []byte("x"), p), ErrNotFound)
	wantErr(t, "remove", h.RemoveAndTrigger(bg, key, p), nil)
	wantValue(t, db, "k", "two")
	wantErr(t, "again", h.RemoveAndTrigger(bg, key, p), ErrNotFound)
	wantErr(t, "no piece", h.RemoveAndTrigger(bg, key, Piece{}), ErrNotFound)
	wantErr(t, "remove", db.RemoveAndTrigger(bg, key, q), nil)
	wantValue(t, db, "k", "")
	r, err := db.ConditionalAppend(bg, IfAbsent, key, []byte("yes"))
	wantErr(t, "if absent", err, nil)
	if r == p || r == q {
		t.Error("a piece has come again")
	}
	wantErr(t, "old piece", db.RemoveAndTrigger(bg, key, p), ErrNotFound)
	wantErr(t, "old piece", db.RemoveAndTrigger(bg, key, q), ErrNotFound)
	// Who holds the lock holds up appends and removals, and may not delete.
	rec := lockedBy(t, db, "k")
	short, stop := context.WithTimeout(bg, 5*time.Millisecond)
	_, err = db.ConditionalAppend(short, Always, key, []byte("x"))
	wantErr(t, "append to a locked record", err, context.DeadlineExceeded)
	wantErr(t, "removal from a locked record", db.RemoveAndTrigger(short, key, r), context.DeadlineExceeded)
	stop()
	wantErr(t, "delete", rec.Delete(), ErrMode)
	wantErr(t, "removal after all", db.RemoveAndTrigger(bg, key, r), nil)
	if rep := mustCheck(t, s); rep.Pieces != 0 || rep.Records != 0 || rep.Empty != 0 {
		t.Errorf("%+v", rep)
	}
}

func TestPiecesOfKV(t *testing.T) {
	s := heap(t, small())
	db := database(t, s, "plain", 10)
	key := []byte("k")
	p, err := db.ConditionalAppend(bg, IfAbsent, key, []byte("abc"))
	wantErr(t, "append", err, nil)
	if !p.IsZero() {
		t.Error("a piece of kv")
	}
	_, err = db.ConditionalAppend(bg, IfAbsent, key, []byte("abc"))
	wantErr(t, "if absent", err, ErrCondition)
	_, err = db.ConditionalAppend(bg, Always, key, []byte("def"))
	wantErr(t, "always", err, nil)
	wantValue(t, db, "k", "abcdef")
	wantErr(t, "remove", db.RemoveAndTrigger(bg, key, p), ErrMode)
	wantErr(t, "remove", db.RemoveMatching(bg, Always, key, []byte("cd")), nil)
	wantValue(t, db, "k", "abef")
	wantErr(t, "remove nothing", db.RemoveMatching(bg, Always, key, []byte("cd")), ErrNotFound)
	wantErr(t, "unknown", db.RemoveMatching(bg, 99, key, []byte("ab")), ErrNoCondition)
	wantErr(t, "remove all", db.RemoveMatching(bg, IfAbsent, key, []byte("abef")), nil)
	wantValue(t, db, "k", "")
	wantErr(t, "remove from nothing", db.RemoveMatching(bg, Always, key, []byte("x")), ErrNotFound)
	// Entries of a fixed size work in kv as well.
	_, err = db.ConditionalAppend(bg, ShareModes, key, shared(1))
	wantErr(t, "shared", err, nil)
	_, err = db.ConditionalAppend(bg, ShareModes, key, shared(2))
	wantErr(t, "shared", err, nil)
	_, err = db.ConditionalAppend(bg, ShareModes, key, exclusive(3))
	wantErr(t, "exclusive", err, ErrCondition)
	wantErr(t, "remove", db.RemoveMatching(bg, ShareModes, key, shared(1)), nil)
	wantErr(t, "remove", db.RemoveMatching(bg, ShareModes, key, shared(2)), nil)
	_, err = db.ConditionalAppend(bg, ShareModes, key, exclusive(3))
	wantErr(t, "exclusive", err, nil)
}

// TestOwnCondition: what a caller's functions are given, and what they may
// answer.
func TestOwnCondition(t *testing.T) {
	bad := 0
	conds := []Condition{
		{ID: 16, Name: "at most two", Version: 1, Holds: func(rec Snapshot, _ []byte) bool {
			n := 0
			for range rec.Pieces() {
				n++
			}
			return n < 2
		}},
		{ID: 17, Name: "wild", Version: 1, Holds: func(rec Snapshot, piece []byte) bool { return false },
			Find: func(rec Snapshot, _ []byte) (int, int) {
				bad++
				return []int{-1, 0, 4, 2}[bad%4], []int{1, 4, 1, 2}[bad%4]
			}},
	}
	s, err := OpenHeap(small(), conds...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustCheck(t, s); s.Close() })
	db := piecesDB(t, s, "p")
	var ps []Piece
	for _, v := range []string{"a", "bb"} {
		p, err := db.ConditionalAppend(bg, 16, []byte("k"), []byte(v))
		wantErr(t, "append", err, nil)
		ps = append(ps, p)
	}
	_, err = db.ConditionalAppend(bg, 16, []byte("k"), []byte("c"))
	wantErr(t, "third", err, ErrCondition)
	wantErr(t, "remove", db.RemoveAndTrigger(bg, []byte("k"), ps[0]), nil)
	_, err = db.ConditionalAppend(bg, 16, []byte("k"), []byte("c"))
	wantErr(t, "third", err, nil)
	wantValue(t, db, "k", "bbc")
	kv := database(t, s, "kv", 10)
	wantErr(t, "store", kv.Store(bg, []byte("k"), []byte("abc")), nil)
	wantErr(t, "no Find", kv.RemoveMatching(bg, 16, []byte("k"), []byte("a")), ErrMode)
	for range 4 {
		wantErr(t, "wild Find", kv.RemoveMatching(bg, 17, []byte("k"), []byte("a")), ErrNoCondition)
	}
	wantValue(t, kv, "k", "abc")
}

// TestOrphans: the pieces of who has died or left are gone, those of the
// living are not.
func TestOrphans(t *testing.T) {
	for _, way := range []string{"close", "death", "death, and the next append finds it",
		"death, with the record locked"} {
		t.Run(way, func(t *testing.T) {
			s := heap(t, small())
			other, err := s.Join(bg, "other")
			if err != nil {
				t.Fatal(err)
			}
			mine, theirs := piecesDB(t, s, "files"), piecesDB(t, other, "files")
			key := []byte("k")
			var keep []Piece
			for i := range byte(5) {
				p, err := mine.ConditionalAppend(bg, Always, key, shared(i))
				wantErr(t, "mine", err, nil)
				keep = append(keep, p)
				_, err = theirs.ConditionalAppend(bg, Always, key, exclusive(i+100))
				wantErr(t, "theirs", err, nil)
				for k := range 60 { // several pages
					_, err = theirs.ConditionalAppend(bg, Always, fmt.Appendf(nil, "%d", k), []byte{i + 1})
					wantErr(t, "theirs", err, nil)
				}
			}
			left := shared(0)
			for i := range byte(4) {
				left = append(left, shared(i+1)...)
			}
			switch way {
			case "close":
				wantErr(t, "close", other.Close(), nil)
			case "death":
				other.c.SimulateDeath()
				n, err := s.Recover(bg)
				if n != 1 || err != nil {
					t.Fatal(n, err)
				}
			case "death, and the next append finds it":
				other.c.SimulateDeath()
				p, err := mine.ConditionalAppend(bg, ShareModes, key, shared(5))
				wantErr(t, "append", err, nil)
				keep = append(keep, p)
				left = append(left, shared(5)...)
			case "death, with the record locked":
				rec := lockedBy(t, mine, "k")
				other.c.SimulateDeath()
				if n, err := s.Recover(bg); n != 1 || err != nil {
					t.Fatal(n, err)
				}
				if rep := mustCheck(t, s); rep.Orphans != 5 {
					t.Errorf("%+v", rep)
				}
				wantErr(t, "unlock", rec.Unlock(), nil)
				late, err := s.Join(bg, "late")
				if err != nil {
					t.Fatal(err)
				}
				defer late.Close()
			}
			wantValue(t, mine, "k", string(left))
			rep := mustCheck(t, s)
			if rep.Records != 1 || rep.Orphans != 0 || rep.Pages != 1 || rep.Pieces != len(keep) {
				t.Errorf("%+v", rep)
			}
			for _, p := range keep {
				wantErr(t, "remove", mine.RemoveAndTrigger(bg, key, p), nil)
			}
		})
	}
}

// TestAppendWait: who waits for a condition gets on when what forbids it is
// removed, by its client, by the client's end or by somebody else's store.
func TestAppendWait(t *testing.T) {
	s := heap(t, small())
	db := piecesDB(t, s, "files")
	key := []byte("k")
	first, err := db.ConditionalAppendWait(bg, ShareModes, key, exclusive(1))
	wantErr(t, "first", err, nil)
	short, stop := context.WithTimeout(bg, 5*time.Millisecond)
	_, err = db.ConditionalAppendWait(short, ShareModes, key, exclusive(2))
	wantErr(t, "second", err, context.DeadlineExceeded)
	stop()
	wait := func(n int) (done chan Piece) {
		done = make(chan Piece, n)
		for i := range n {
			go func() {
				p, err := db.ConditionalAppendWait(bg, ShareModes, key, exclusive(byte(i)))
				wantErr(t, "wait", err, nil)
				done <- p
			}()
		}
		return done
	}
	got := func(done chan Piece) Piece {
		t.Helper()
		select {
		case p := <-done:
			return p
		case <-time.After(time.Minute):
			t.Fatal("nobody got on")
			return Piece{}
		}
	}
	const n = 50
	done := wait(n)
	for range n {
		wantErr(t, "remove", db.RemoveAndTrigger(bg, key, first), nil)
		first = got(done)
	}
	wantErr(t, "remove", db.RemoveAndTrigger(bg, key, first), nil)
	// The end of another client.
	for _, death := range []bool{false, true} {
		other, err := s.Join(bg, "other")
		if err != nil {
			t.Fatal(err)
		}
		_, err = piecesDB(t, other, "files").ConditionalAppend(bg, ShareModes, key, exclusive(9))
		wantErr(t, "other", err, nil)
		done = wait(1)
		if death {
			other.c.SimulateDeath()
		} else {
			wantErr(t, "close", other.Close(), nil)
		}
		wantErr(t, "remove", db.RemoveAndTrigger(bg, key, got(done)), nil)
	}
	// A record that has to be there: it is waited for while there is none.
	kv := database(t, s, "kv", 10)
	there := Condition{ID: 20, Name: "there", Version: 1,
		Holds: func(rec Snapshot, _ []byte) bool { return len(rec.Data()) > 0 }}
	o, err := s.Join(bg, "with a condition", there)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	okv := database(t, o, "kv", 10)
	short, stop = context.WithTimeout(bg, 5*time.Millisecond)
	_, err = okv.ConditionalAppendWait(short, 20, key, []byte("x"))
	wantErr(t, "absent", err, context.DeadlineExceeded)
	stop()
	if rep := mustCheck(t, s); rep.Empty != 0 {
		t.Errorf("who waited has left a record: %+v", rep)
	}
	stored := make(chan error)
	go func() {
		_, err := okv.ConditionalAppendWait(bg, 20, key, []byte("x"))
		stored <- err
	}()
	wantErr(t, "store", kv.Store(bg, key, []byte("v")), nil)
	select {
	case err := <-stored:
		wantErr(t, "wait", err, nil)
	case <-time.After(time.Minute):
		t.Fatal("does not wake up")
	}
	wantValue(t, kv, "k", "vx")
}

// TestAppendWaitCloses: Close ends those who wait, also for a condition.
func TestAppendWaitCloses(t *testing.T) {
	s := heap(t, small())
	other, err := s.Join(bg, "other")
	if err != nil {
		t.Fatal(err)
	}
	_, err = piecesDB(t, s, "files").ConditionalAppend(bg, ShareModes, []byte("k"), exclusive(1))
	wantErr(t, "first", err, nil)
	db := piecesDB(t, other, "files")
	var wg sync.WaitGroup
	for i := range byte(20) {
		wg.Go(func() {
			_, err := db.ConditionalAppendWait(bg, ShareModes, []byte("k"), exclusive(i))
			wantErr(t, "wait", err, ErrClosed)
		})
	}
	within(t, "close", func() {
		wantErr(t, "close", other.Close(), nil)
		wg.Wait()
	})
}

// TestManyPieces: a record takes as many pieces as a block has room for.
func TestManyPieces(t *testing.T) {
	s := heap(t, Config{Size: 16 << 20, Slots: 2, MaxValue: 3000, SpanSize: 8192})
	db := piecesDB(t, s, "files")
	var ps []Piece
	for {
		p, err := db.ConditionalAppend(bg, Always, []byte("k"), []byte{byte(len(ps))})
		if err != nil {
			wantErr(t, "one more", err, ErrTooBig)
			break
		}
		ps = append(ps, p)
	}
	if want := (8192 - 56 - len(ps) - 8) / 25; len(ps) < 300 || len(ps) > 331 {
		t.Errorf("%d pieces, want some %d", len(ps), want)
	}
	mustCheck(t, s)
	for i := range ps {
		if i%2 == 0 {
			i = len(ps) - 1 - i/2
		} else {
			i /= 2
		}
		wantErr(t, "remove", db.RemoveAndTrigger(bg, []byte("k"), ps[i]), nil)
	}
	wantValue(t, db, "k", "")
}

// TestPiecesFull: no room is an error that has changed nothing, and what is
// there can be removed.
func TestPiecesFull(t *testing.T) {
	s := heap(t, Config{Size: 2 << 20, Slots: 2, MaxValue: 3000, SpanSize: 4096})
	db := piecesDB(t, s, "files")
	type entry struct {
		key []byte
		p   Piece
	}
	var all []entry
	want := map[string][]byte{}
	for i := range 100_000 {
		key := fmt.Appendf(nil, "key %d", i%40)
		piece := bytes.Repeat([]byte{byte(i)}, 1+i*37%300)
		if len(want[string(key)])+len(piece) > 2900 {
			continue
		}
		p, err := db.ConditionalAppend(bg, Always, key, piece)
		if err != nil {
			if !errors.Is(err, ErrFull) && !errors.Is(err, ErrTooBig) {
				t.Fatal(err)
			}
			if errors.Is(err, ErrFull) {
				break
			}
			continue
		}
		all = append(all, entry{key, p})
		want[string(key)] = append(want[string(key)], piece...)
	}
	if len(all) < 100 {
		t.Fatalf("%d pieces", len(all))
	}
	for k, v := range want {
		wantValue(t, db, k, string(v))
	}
	if rep := mustCheck(t, s); rep.Pieces != len(all) {
		t.Errorf("%d pieces of %d: %+v", rep.Pieces, len(all), rep)
	}
	for _, e := range all {
		wantErr(t, "remove", db.RemoveAndTrigger(bg, e.key, e.p), nil)
	}
	if rep := mustCheck(t, s); rep.Records != 0 || rep.Pieces != 0 {
		t.Errorf("%+v", rep)
	}
}

// TestPiecesAllocate: nothing, once it has warmed up.
func TestPiecesAllocate(t *testing.T) {
	s := heap(t, small())
	db, kv := piecesDB(t, s, "files"), database(t, s, "kv", 10)
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	key, piece, no := []byte("k"), shared(1), exclusive(2)
	if _, err := h.ConditionalAppend(bg, Always, key, piece); err != nil {
		t.Fatal(err)
	}
	check := func(what string, f func() error) {
		t.Helper()
		if n := testing.AllocsPerRun(500, func() {
			if err := f(); err != nil {
				t.Fatal(what, err)
			}
		}); n != 0 {
			t.Errorf("%s allocates %v times", what, n)
		}
	}
	pair := func(f func(ConditionID) (Piece, error), remove func(Piece) error) func() error {
		return func() error {
			for _, c := range []ConditionID{Always, ShareModes} {
				p, err := f(c)
				if err == nil {
					err = remove(p)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}
	}
	check("handle", pair(func(c ConditionID) (Piece, error) { return h.ConditionalAppend(bg, c, key, piece) },
		func(p Piece) error { return h.RemoveAndTrigger(bg, key, p) }))
	check("handle, waiting", pair(func(c ConditionID) (Piece, error) {
		return h.ConditionalAppendWait(bg, c, key, piece)
	},
		func(p Piece) error { return h.RemoveAndTrigger(bg, key, p) }))
	check("database", pair(func(c ConditionID) (Piece, error) { return db.ConditionalAppend(bg, c, key, piece) },
		func(p Piece) error { return db.RemoveAndTrigger(bg, key, p) }))
	check("kv", pair(func(c ConditionID) (Piece, error) { return kv.ConditionalAppend(bg, c, key, piece) },
		func(Piece) error { return kv.RemoveMatching(bg, ShareModes, key, piece) }))
	check("refused", func() error {
		if _, err := h.ConditionalAppend(bg, ShareModes, key, no); err != ErrCondition {
			return fmt.Errorf("refused: %v", err)
		}
		return nil
	})
}

// TestPiecesConcurrent: goroutines and clients append and remove on few
// records; each piece is there from its append to its removal.
func TestPiecesConcurrent(t *testing.T) {
	s := heap(t, Config{Size: 8 << 20, Slots: 4, MaxValue: 3000, SpanSize: 8192})
	other, err := s.Join(bg, "other")
	if err != nil {
		t.Fatal(err)
	}
	rounds := 400
	if testing.Short() {
		rounds = 60
	}
	var wg sync.WaitGroup
	for g := range byte(6) {
		db := piecesDB(t, []*Store{s, other}[g%2], "files")
		wg.Go(func() {
			for i := range rounds {
				key := []byte{'k', byte(i % 3)}
				cond, piece := Always, shared(g)
				if i%3 == 2 { // one at a time
					cond, piece = ShareModes, exclusive(g)
				}
				p, err := db.ConditionalAppendWait(bg, cond, key, piece)
				if err != nil {
					t.Error(err)
					return
				}
				v, err := db.Fetch(bg, key)
				if err != nil || !bytes.Contains(v, piece) || i%3 == 2 && len(v) != len(piece) {
					t.Errorf("%x in %x, %v", piece, v, err)
				}
				if err := db.RemoveAndTrigger(bg, key, p); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	within(t, "appending", wg.Wait)
	if rep := mustCheck(t, s); rep.Records != 0 || rep.Pieces != 0 || rep.Empty != 0 {
		t.Errorf("%+v", rep)
	}
	wantErr(t, "close", other.Close(), nil)
}
