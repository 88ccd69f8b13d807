package demo

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/mainzdb/mainz/bench/trace"
)

var (
	reading = trace.MakeMode(trace.Read, trace.DenyNone)
	writing = trace.MakeMode(trace.Write, trace.DenyWrite)
	making  = trace.MakeMode(trace.Read|trace.Write, trace.DenyAll)
)

func listOf(file uint32, entries ...entry) (list []byte) {
	for _, e := range entries {
		list = appendEntry(list, file, e)
	}
	return list
}

func TestEntryLayout(t *testing.T) {
	got := listOf(9, entry{owner{2, 0x0102030405060708}, 0x0a0b0c0d, making})
	want := []byte{8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0x0d, 0x0c, 0x0b, 0x0a, byte(making), 0, 0, 0}
	if !bytes.Equal(got[:sumOffset], want) || len(got) != entrySize {
		t.Errorf("got %x, want %x and a sum", got, want)
	}
	if e, ok := readEntry(got, 9); !ok || e != (entry{owner{2, 0x0102030405060708}, 0x0a0b0c0d, making}) {
		t.Errorf("read back %+v, %v", e, ok)
	}
}

func TestConflicts(t *testing.T) {
	for _, c := range []struct {
		held []trace.Mode
		mode trace.Mode
		want bool
	}{
		{nil, making, false},
		{[]trace.Mode{reading, reading}, reading, false},
		{[]trace.Mode{reading}, writing, false},
		{[]trace.Mode{writing}, reading, false},
		{[]trace.Mode{reading, writing}, writing, true},
		{[]trace.Mode{making}, reading, true},
		{[]trace.Mode{reading}, making, true},
	} {
		var list []byte
		for i, m := range c.held {
			list = appendEntry(list, 1, entry{owner{1, 1}, uint32(i), m})
		}
		if got, err := conflicts(list, 1, c.mode); got != c.want || err != nil {
			t.Errorf("%v against %v: %v, %v", c.mode, c.held, got, err)
		}
	}
}

// The operations on lists, against a slice of entries.
func TestListAgainstSlice(t *testing.T) {
	rng := rand.New(rand.NewPCG(newSeed(t), 0))
	const file = 77
	owners := []owner{{0, 5}, {1, 5}, {1, 6}}
	var list []byte
	var twin []entry
	for step := range 20_000 {
		e := entry{owners[rng.IntN(3)], rng.Uint32N(8), []trace.Mode{reading, writing, making}[rng.IntN(3)]}
		at := slices.IndexFunc(twin, func(o entry) bool { return o.owner == e.owner && o.open == e.open })
		switch {
		case rng.IntN(50) == 0:
			var opens, want []uint32
			var err error
			list, opens, err = removeOwner(list, file, e.owner)
			if err != nil {
				t.Fatal(err)
			}
			twin = slices.DeleteFunc(twin, func(o entry) bool {
				if o.owner == e.owner {
					want = append(want, o.open)
				}
				return o.owner == e.owner
			})
			if !slices.Equal(opens, want) {
				t.Fatalf("step %d: took out %v, want %v", step, opens, want)
			}
		case at < 0 && rng.IntN(2) == 0:
			list, twin = appendEntry(list, file, e), append(twin, e)
		case at < 0:
			if _, found, err := remove(list, file, e); found || err != nil {
				t.Fatalf("step %d: absent entry: %v, %v", step, found, err)
			}
		default:
			e.mode = twin[at].mode
			rest, found, err := remove(list, file, e)
			if !found || err != nil {
				t.Fatalf("step %d: present entry: %v, %v", step, found, err)
			}
			list, twin = rest, slices.Delete(twin, at, at+1)
		}
		var got []entry
		if err := scan(list, file, func(_ int, e entry) bool { got = append(got, e); return true }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, twin) {
			t.Fatalf("step %d: list has %v, want %v", step, got, twin)
		}
	}
}

func TestDamageIsSeen(t *testing.T) {
	a, b := entry{owner{1, 2}, 3, writing}, entry{owner{1, 2}, 4, reading}
	sound := listOf(5, a, b)
	damaged := map[string][]byte{
		"cut":           sound[:len(sound)-1],
		"of other file": listOf(6, a, b),
		"same open":     listOf(5, a, a),
		"other mode":    listOf(5, entry{a.owner, a.open, reading}),
	}
	for i := range sound {
		flipped := bytes.Clone(sound)
		flipped[i] ^= 1
		damaged["byte "+string(rune('A'+i))] = flipped
	}
	for name, list := range damaged {
		before := bytes.Clone(list)
		_, _, err := remove(list, 5, a)
		if d := (*damage)(nil); !errors.As(err, &d) || d.file != 5 {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(list, before) {
			t.Errorf("%s: the list was changed", name)
		}
	}
	if _, err := conflicts(damaged["cut"], 5, reading); err == nil {
		t.Error("conflicts looks at a list that is cut")
	}
	if _, _, err := removeOwner(listOf(6, a), 5, a.owner); err == nil {
		t.Error("removeOwner takes an entry of another file out")
	}
}

func TestKeys(t *testing.T) {
	for _, file := range []uint32{0, 1, 1 << 31} {
		key := fileKey(file)
		if got, err := keyFile(key[:]); got != file || err != nil {
			t.Errorf("file %d: %d, %v", file, got, err)
		}
	}
	for _, key := range [][]byte{nil, make([]byte, keySize), make([]byte, keySize+1)} {
		if _, err := keyFile(key); err == nil {
			t.Errorf("%x is taken for a file's key", key)
		}
	}
}

func TestJournalVerdict(t *testing.T) {
	for _, c := range []struct {
		name              string
		journal           journal
		found             []uint32
		lost, resurrected int
	}{
		{"all well", journal{journalOpening, journalOpened, journalClosing, journalClosed}, []uint32{1}, 0, 0},
		{"on their way, stored", journal{journalOpening, journalOpened, journalClosing}, []uint32{2, 1, 0}, 0, 0},
		{"lost", journal{journalOpened, journalOpened}, []uint32{1}, 1, 0},
		{"came back", journal{journalClosed, journalClosed}, []uint32{0}, 0, 1},
		{"twice", journal{journalOpened}, []uint32{0, 0}, 0, 1},
		{"no such open", journal{journalOpened}, []uint32{0, 1}, 0, 1},
	} {
		if lost, res := c.journal.verdict(c.found); lost != c.lost || res != c.resurrected {
			t.Errorf("%s: %d lost, %d came back", c.name, lost, res)
		}
	}
}

func TestShare(t *testing.T) {
	tr := randomTrace(1, 2000)
	const clients = 3
	var events []trace.Event
	owner := map[uint32]int{}
	for c := range clients {
		n := 0
		for _, actor := range share(tr, c, clients) {
			n += len(actor)
			for i, e := range actor {
				if at, ok := owner[e.Process]; ok && at != c {
					t.Fatalf("process %d is shared", e.Process)
				}
				owner[e.Process] = c
				if i > 0 && actor[i-1].TimeUS > e.TimeUS {
					t.Fatal("events of a process are out of order")
				}
			}
			events = append(events, actor...)
		}
		if least := len(tr.Events) / clients / 2; n < least {
			t.Errorf("client %d has only %d events of %d", c, n, len(tr.Events))
		}
	}
	byTime := func(a, b trace.Event) int { return int(a.TimeUS - b.TimeUS) }
	slices.SortFunc(events, byTime)
	if !reflect.DeepEqual(events, tr.Events) {
		t.Error("the shares together are not the trace")
	}
}

func TestHistogram(t *testing.T) {
	for b := range histogramSize - 1 {
		if h := highest(b); bucket(h) != b || bucket(h+1) != b+1 {
			t.Fatalf("bucket %d ends at %d, which is in %d, and %d in %d", b, h, bucket(h), h+1, bucket(h+1))
		}
	}
	if b := bucket(1<<64 - 1); b != histogramSize-1 {
		t.Errorf("the longest time is in bucket %d", b)
	}
	if (&histogram{}).quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}

	rng := rand.New(rand.NewPCG(newSeed(t), 0))
	var all []uint64
	var half, other, sum histogram
	for range 10_000 {
		v := rng.Uint64() >> (24 + rng.IntN(40))
		all = append(all, v)
		if rng.IntN(2) == 0 {
			half.add(v)
		} else {
			other.add(v)
		}
	}
	sum.addSparse(half.sparse())
	sum.merge(&other)
	slices.Sort(all)
	for _, q := range []float64{0, 0.5, 0.99, 0.999, 1} {
		want := all[min(int(q*float64(len(all))), len(all)-1)]
		if got := sum.quantile(q); got < want || got > want+want/31+1 {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
}
