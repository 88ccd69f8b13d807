package ltdb

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
)

// docTable returns the rows of the table in docs/conditions.md whose header
// begins with first and has n columns.
func docTable(t *testing.T, first string, n int) [][]string {
	t.Helper()
	b, err := os.ReadFile("../docs/conditions.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	in := false
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		switch {
		case !strings.HasPrefix(line, "|"):
			in = false
		case cells[0] == first && len(cells) == n:
			in = true
		case in && !strings.HasPrefix(cells[0], "--"):
			rows = append(rows, cells)
		}
	}
	if len(rows) == 0 {
		t.Fatalf("docs/conditions.md has no table %q of %d columns", first, n)
	}
	return rows
}

// pieced is a snapshot of mode Pieces.
func pieced(pieces ...[]byte) Snapshot {
	var data, tags []byte
	for i, p := range pieces {
		data = append(data, p...)
		tags = appendTag(tags, OPID{1, 2, uint64(i)}, len(p))
	}
	return MakeSnapshot(Pieces, data, tags)
}

func plain(pieces ...[]byte) Snapshot { return MakeSnapshot(KV, bytes.Join(pieces, nil), nil) }

// TestConditionTable: the ids, names and versions of the documentation are
// those of the program.
func TestConditionTable(t *testing.T) {
	rows := docTable(t, "id", 5)
	if len(rows) < len(builtin) {
		t.Fatalf("%d rows", len(rows))
	}
	for i := range builtin {
		c := &builtin[i]
		got, want := rows[i][:3], []string{fmt.Sprint(i), c.Name, fmt.Sprint(c.Version)}
		if strings.Join(got, "|") != strings.Join(want, "|") || c.ID != ConditionID(i) {
			t.Errorf("the documentation has %q, the program %q, id %d", got, want, c.ID)
		}
	}
}

// both asks the condition in both modes and with the two entries exchanged.
func both(t *testing.T, id ConditionID, a, b []byte, want, symmetric bool) {
	t.Helper()
	ask := func(rec Snapshot, piece []byte) {
		t.Helper()
		if got := builtin[id].Holds(rec, piece); got != want {
			t.Errorf("%v: %x onto %x: %v, want %v", builtin[id].info(), piece, rec.Data(), got, want)
		}
	}
	ask(plain(b), a)
	ask(pieced(b), a)
	if symmetric {
		ask(plain(a), b)
		ask(pieced(a), b)
	}
}

func TestShareModesTable(t *testing.T) {
	bits := func(s string) (v uint32) {
		for _, c := range s {
			i := strings.IndexRune("rwd", c)
			if i < 0 {
				if s != "-" {
					t.Fatalf("bits %q", s)
				}
				return 0
			}
			v |= 1 << i
		}
		return v
	}
	for _, r := range docTable(t, "new: access", 5) {
		want, err := strconv.ParseBool(r[4])
		if err != nil {
			t.Fatal(err)
		}
		a := AppendShareMode(nil, bits(r[0]), bits(r[1]), [16]byte{1})
		b := AppendShareMode(nil, bits(r[2]), bits(r[3]), [16]byte{2})
		both(t, ShareModes, a, b, want, true)
		// Who it is makes no difference.
		both(t, ShareModes, a, AppendShareMode(nil, bits(r[2]), bits(r[3]), [16]byte{1}), want, true)
	}
}

func TestByteRangesTable(t *testing.T) {
	number := func(s string) uint64 {
		if s == "max" {
			return math.MaxUint64
		}
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	entry := func(r []string) []byte {
		start, length, _ := strings.Cut(r[0], "+")
		kind := map[string]uint32{"shared": RangeShared, "exclusive": RangeExclusive}[r[1]]
		return AppendByteRange(nil, number(start), number(length), kind, [16]byte{15: r[2][0]})
	}
	for _, r := range docTable(t, "new", 7) {
		want, err := strconv.ParseBool(r[6])
		if err != nil {
			t.Fatal(err)
		}
		both(t, ByteRanges, entry(r[:3]), entry(r[3:6]), want, true)
	}
}

// TestConditionNaive compares the two conditions with what they mean, said as
// plainly as possible, on all pairs of small entries.
func TestConditionNaive(t *testing.T) {
	for v := range uint32(1 << 12) {
		a, sa, b, sb := v&7, v>>3&7, v>>6&7, v>>9&7
		want := true
		for bit := range 3 {
			does := func(access, share uint32) bool { return access>>bit&1 == 1 && share>>bit&1 == 0 }
			if a != 0 && b != 0 && (does(a, sb) || does(b, sa)) {
				want = false
			}
		}
		both(t, ShareModes, AppendShareMode(nil, a, sa, [16]byte{}), AppendShareMode(nil, b, sb, [16]byte{}), want,
			false)
	}
	rnd := rand.New(rand.NewPCG(seedOf(t), 0))
	for range 3000 {
		s1, n1, s2, n2 := rnd.Uint64N(20), 1+rnd.Uint64N(8), rnd.Uint64N(20), 1+rnd.Uint64N(8)
		k1, k2, o1, o2 := uint32(rnd.IntN(2)), uint32(rnd.IntN(2)), byte(rnd.IntN(2)), byte(rnd.IntN(2))
		base := rnd.Uint64N(2) * (math.MaxUint64 - 27) // at the end of the numbers as well
		common := false
		for i := range n1 {
			common = common || s1+i >= s2 && s1+i < s2+n2
		}
		want := !common || o1 == o2 || k1 == RangeShared && k2 == RangeShared
		both(t, ByteRanges, AppendByteRange(nil, base+s1, n1, k1, [16]byte{o1}),
			AppendByteRange(nil, base+s2, n2, k2, [16]byte{o2}), want, true)
	}
}

func TestConditionForms(t *testing.T) {
	a, b := [16]byte{1}, [16]byte{2}
	mode := func(access, share uint32, who [16]byte) []byte { return AppendShareMode(nil, access, share, who) }
	r := func(start, n uint64, kind uint32, who [16]byte) []byte {
		return AppendByteRange(nil, start, n, kind, who)
	}
	both(t, Always, []byte("x"), []byte("y"), true, true)
	both(t, Always, []byte("x"), nil, true, false)
	both(t, IfAbsent, []byte("x"), nil, true, false)
	both(t, IfAbsent, []byte("x"), []byte("y"), false, false)
	// Several entries in a piece don't conflict with each other, all of them
	// with what is there.
	greedy := append(mode(ShareWrite, 0, a), mode(ShareWrite, 0, a)...)
	both(t, ShareModes, greedy, nil, true, false)
	both(t, ShareModes, append(mode(ShareRead, ShareRead, a), mode(ShareWrite, 0, a)...),
		mode(ShareRead, ShareRead, b), false, true)
	three := [][]byte{mode(ShareRead, ShareRead, a), mode(ShareRead, ShareRead, b),
		mode(ShareRead, ShareRead|ShareWrite, a)}
	for _, rec := range []Snapshot{plain(three...), pieced(three...)} {
		if !shareModesHold(rec, mode(ShareRead, ShareRead, b)) || shareModesHold(rec, mode(ShareWrite, ShareRead, b)) {
			t.Error("three entries")
		}
	}
	// What is not well formed, new or there.
	for id, bad := range map[ConditionID][][]byte{
		ShareModes: {mode(8, 0, a), mode(0, 8, a), mode(1, 1, a)[:23], append(mode(1, 1, a), 0)},
		ByteRanges: {r(0, 0, 0, a), r(0, 1, 2, a), r(2, math.MaxUint64, 0, a), r(0, 1, 0, a)[:39],
			append(r(0, 1, 0, a), 1), append(r(0, 1, 0, a)[:20:20], bytes.Repeat([]byte{1}, 20)...)},
	} {
		good := map[ConditionID][]byte{ShareModes: mode(0, 0, b), ByteRanges: r(100, 1, 0, b)}[id]
		both(t, id, good, nil, true, false)
		for _, e := range bad {
			both(t, id, e, nil, false, false)
			both(t, id, good, e, false, false)
		}
		both(t, id, nil, nil, false, false)
	}
}

func TestConditionFind(t *testing.T) {
	e := func(i byte) []byte { return AppendShareMode(nil, 1, 1, [16]byte{i}) }
	for _, c := range []struct {
		id     ConditionID
		rec    []byte
		data   []byte
		off, n int
	}{
		{Always, []byte("abcabc"), []byte("bc"), 1, 2},
		{Always, []byte("abc"), []byte("d"), 0, -1},
		{Always, []byte("abc"), nil, 0, -1},
		{IfAbsent, []byte("abc"), []byte("abc"), 0, 3},
		{IfAbsent, []byte("abc"), []byte("ab"), 0, -1},
		{IfAbsent, nil, nil, 0, -1},
		{ShareModes, append(e(1), e(2)...), e(2), ShareModesEntry, ShareModesEntry},
		{ShareModes, append(e(1), e(2)...), e(3), 0, -1},
		{ShareModes, append(e(1), e(2)...), e(2)[:20], 0, -1},
		{ShareModes, append([]byte{0}, e(2)...), e(2), 0, -1},
		{ByteRanges, AppendByteRange(nil, 0, 1, 0, [16]byte{}), AppendByteRange(nil, 0, 1, 0, [16]byte{}), 0,
			ByteRangesEntry},
	} {
		if off, n := builtin[c.id].Find(plain(c.rec), c.data); off != c.off || n != c.n {
			t.Errorf("condition %d, %q in %q: %d, %d; want %d, %d", c.id, c.data, c.rec, off, n, c.off, c.n)
		}
	}
}

// FuzzConditions: garbage in records, tags and pieces.
func FuzzConditions(f *testing.F) {
	f.Add([]byte("data"), []byte("tags"), []byte("piece"))
	e := AppendByteRange(nil, 1, 2, 1, [16]byte{3})
	f.Add(e, appendTag(nil, OPID{}, len(e)), AppendByteRange(nil, 7, 2, 1, [16]byte{4}))
	f.Fuzz(func(t *testing.T, data, tags, piece []byte) {
		for i := range builtin {
			for _, rec := range []Snapshot{MakeSnapshot(KV, data, nil), MakeSnapshot(Pieces, data, tags)} {
				builtin[i].Holds(rec, piece)
				if off, n := builtin[i].Find(rec, piece); n >= 0 && (off < 0 || off+n > len(data)) {
					t.Errorf("%v finds %d+%d in %d bytes", builtin[i].info(), off, n, len(data))
				}
			}
		}
	})
}

func own(id ConditionID, name string, version uint32) Condition {
	return Condition{ID: id, Name: name, Version: version, Holds: func(Snapshot, []byte) bool { return true }}
}

func TestConditionRegistry(t *testing.T) {
	s, err := OpenHeap(small(), own(16, "sixteen", 3))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustCheck(t, s); s.Close() })
	join := func(c ...Condition) error {
		j, err := s.Join(bg, "j", c...)
		if err == nil {
			err = j.Close()
		}
		return err
	}
	wantErr(t, "the same", join(own(16, "sixteen", 3)), nil)
	wantErr(t, "none", join(), nil)
	wantErr(t, "a new one", join(own(1<<31, "big", 0)), nil)
	for _, bad := range []Condition{own(16, "sixteen", 4), own(16, "other", 3)} {
		err := join(bad)
		wantErr(t, "another one", err, ErrIncompatible)
		if err != nil && (!strings.Contains(err.Error(), `"sixteen" version 3`) ||
			!strings.Contains(err.Error(), bad.info().String())) {
			t.Errorf("does not name both: %v", err)
		}
	}
	wantErr(t, "built in", join(own(2, "x", 1)), ErrIncompatible)
	wantErr(t, "kept", join(own(15, "x", 1)), ErrIncompatible)
	wantErr(t, "no name", join(own(20, "", 1)), ErrTooBig)
	wantErr(t, "long name", join(own(20, strings.Repeat("n", MaxConditionName+1), 1)), ErrTooBig)
	wantErr(t, "twice", join(own(20, "x", 1), own(20, "x", 1)), ErrIncompatible)
	wantErr(t, "no function", join(Condition{ID: 20, Name: "x"}), ErrNoCondition)
	wantErr(t, "longest name", join(own(20, strings.Repeat("n", MaxConditionName), 1)), nil)
	all, err := s.Conditions()
	if err != nil || len(all) != len(builtin)+3 {
		t.Errorf("%v, %v", all, err)
	}
	if c, ok := s.Condition(16); !ok || c.Version != 3 {
		t.Error("own condition is not known")
	}
	if _, ok := s.Condition(1 << 31); ok {
		t.Error("another client's condition is known")
	}
	for i := len(all); i < MaxConditions; i++ {
		wantErr(t, "more", join(own(ConditionID(100+i), "more", 1)), nil)
	}
	wantErr(t, "too many", join(own(1000, "more", 1)), ErrNoSpace)
	wantErr(t, "still", join(own(16, "sixteen", 3)), nil)
	s.condLines[5].nameLen.Store(1000)
	if _, err := s.Conditions(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("garbage: %v", err)
	}
	s.condLines[5].nameLen.Store(3)
}
