package ltdb

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

// What is no piece of its condition is an error of its own, whoever made it:
// it is no conflict, which somebody else's end would take away.

func malformedPieces() map[string]struct {
	cond  ConditionID
	piece []byte
} {
	who := [16]byte{1}
	garbage := AppendByteRange(nil, 1, 1, RangeShared, who)
	garbage[21] = 1
	return map[string]struct {
		cond  ConditionID
		piece []byte
	}{
		"no bytes":       {ByteRanges, AppendByteRange(nil, 0, 0, RangeShared, who)},
		"kind 7":         {ByteRanges, AppendByteRange(nil, 0, 1, 7, who)},
		"overflow":       {ByteRanges, AppendByteRange(nil, 2, math.MaxUint64, RangeExclusive, who)},
		"garbage":        {ByteRanges, garbage},
		"one letter":     {ByteRanges, []byte("x")},
		"half an entry":  {ByteRanges, AppendByteRange(nil, 0, 1, 0, who)[:20]},
		"second bad":     {ByteRanges, AppendByteRange(AppendByteRange(nil, 0, 1, 0, who), 0, 0, 0, who)},
		"share mode":     {ShareModes, AppendShareMode(nil, 8, 0, who)},
		"share mode 2":   {ShareModes, AppendShareMode(nil, 1, 1<<31, who)},
		"share mode 3":   {ShareModes, []byte("share mode")},
		"byte range":     {ShareModes, AppendByteRange(nil, 0, 1, 0, who)},
		"share in range": {ByteRanges, AppendShareMode(nil, 1, 1, who)},
	}
}

func TestMalformedPiece(t *testing.T) {
	s := heap(t, small())
	for _, mode := range []Mode{KV, Pieces} {
		db, err := s.Database(bg, mode.String(), mode, DatabaseOptions{Records: 100})
		if err != nil {
			t.Fatal(err)
		}
		for name, m := range malformedPieces() {
			key := []byte(name)
			if _, err := db.ConditionalAppend(bg, m.cond, key, m.piece); !errors.Is(err, ErrMalformed) ||
				errors.Is(err, ErrCondition) {
				t.Errorf("%v, %s: %v", mode, name, err)
			}
			within(t, name, func() {
				if _, err := db.ConditionalAppendWait(bg, m.cond, key, m.piece); !errors.Is(err, ErrMalformed) {
					t.Errorf("%v, %s, waiting: %v", mode, name, err)
				}
			})
			if err := db.CheckPiece(m.cond, m.piece); !errors.Is(err, ErrMalformed) {
				t.Errorf("%v, %s, checked: %v", mode, name, err)
			}
			if _, err := db.Fetch(bg, key); !errors.Is(err, ErrNotFound) {
				t.Errorf("%v, %s was appended: %v", mode, name, err)
			}
			if mode == KV {
				if err := db.RemoveMatching(bg, m.cond, key, m.piece); !errors.Is(err, ErrMalformed) {
					t.Errorf("%s, removed: %v", name, err)
				}
			}
			// One that is in the record already, by way of another condition.
			if err := db.append(Always, key, m.piece); err != nil {
				t.Fatal(err)
			}
			good := AppendByteRange(nil, 1000, 1, RangeShared, [16]byte{9})
			if m.cond == ShareModes {
				good = AppendShareMode(nil, ShareRead, shareAll, [16]byte{9})
			}
			err := db.append(m.cond, key, good)
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), name) ||
				!strings.Contains(err.Error(), mode.String()) {
				t.Errorf("%v, %s, in the record: %v", mode, name, err)
			}
			if mode == Pieces && !strings.Contains(err.Error(), "piece 1") {
				t.Errorf("the piece is not named: %v", err)
			}
		}
	}
}

// A wait ends when a malformed piece comes into the record.
func TestMalformedEndsWait(t *testing.T) {
	for _, mode := range []Mode{KV, Pieces} {
		s := heap(t, small())
		db, err := s.Database(bg, "db", mode, DatabaseOptions{Records: 100})
		if err != nil {
			t.Fatal(err)
		}
		key := []byte("key")
		if err := db.append(ByteRanges, key, AppendByteRange(nil, 0, 10, RangeExclusive, [16]byte{1})); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(bg, time.Minute)
		defer stop()
		ended := make(chan error)
		go func() {
			_, err := db.ConditionalAppendWait(ctx, ByteRanges, key,
				AppendByteRange(nil, 5, 1, RangeShared, [16]byte{2}))
			ended <- err
		}()
		if err := db.append(Always, key, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: %v", mode, err)
		}
	}
}

// A condition of one's own says what its pieces are.
func TestMalformedOwn(t *testing.T) {
	s, err := OpenHeap(small(), Condition{ID: 20, Name: "even", Version: 1,
		Holds: func(_ Snapshot, piece []byte) bool { return len(piece)%2 == 0 },
		WellFormed: func(piece []byte) error {
			if len(piece)%2 != 0 {
				return errors.New("odd")
			}
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db := database(t, s, "db", 100)
	if err := db.append(20, []byte("k"), []byte("abc")); !errors.Is(err, ErrMalformed) ||
		!strings.Contains(err.Error(), "odd") {
		t.Error(err)
	}
	if err := db.append(20, []byte("k"), []byte("ab")); err != nil {
		t.Error(err)
	}
}
