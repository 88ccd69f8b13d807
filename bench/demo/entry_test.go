package demo

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/mainzdb/mainz/bench/trace"
	"github.com/mainzdb/mainz/ltdb"
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
	e := entry{owner{0x0102, 0x0304}, 0x0a0b0c0d, making}
	got := listOf(9, e)
	want := []byte{
		3, 0, 0, 0, // reads and writes
		4, 0, 0, 0, // lets others delete
		2, 1, 4, 3, 0x0d, 0x0c, 0x0b, 0x0a, 9, 0, 0, 0,
	}
	if !bytes.Equal(got[:sumOffset], want) || len(got) != entrySize {
		t.Errorf("got %x, want %x and a sum", got, want)
	}
	for _, e.mode = range []trace.Mode{reading, writing, making, trace.MakeMode(trace.Write, trace.DenyAll)} {
		if back, ok := readEntry(listOf(9, e), 9); !ok || back != e {
			t.Errorf("read back %+v, %v; want %+v", back, ok, e)
		}
	}
}

// The condition says of entries what the trace says of their modes.
func TestConditionIsTheTraces(t *testing.T) {
	store, err := ltdb.OpenHeap(ltdb.Config{Size: 8 << 20, Slots: 2, MaxValue: 16 << 10, Databases: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	condition, ok := store.Condition(ltdb.ShareModes)
	if !ok {
		t.Fatal("no such condition")
	}
	var modes []trace.Mode
	for _, a := range []trace.Access{trace.Read, trace.Write, trace.Read | trace.Write} {
		for _, d := range []trace.Deny{trace.DenyNone, trace.DenyWrite, trace.DenyAll} {
			modes = append(modes, trace.MakeMode(a, d))
		}
	}
	for _, there := range modes {
		for _, comes := range modes {
			rec := ltdb.MakeSnapshot(ltdb.KV, listOf(1, entry{mode: there}), nil)
			if got, want := condition.Holds(rec, listOf(1, entry{mode: comes, open: 1})),
				!trace.Conflict(there, comes); got != want {
				t.Errorf("%v beside %v: %v, the trace says %v", comes, there, got, want)
			}
		}
	}
}

func TestVerify(t *testing.T) {
	a, b := entry{owner{1, 2}, 3, writing}, entry{owner{1, 2}, 4, reading}
	sound := listOf(5, b, a)
	for _, c := range []struct {
		name  string
		list  []byte
		found bool
		bad   bool
	}{
		{"there", sound, true, false},
		{"not there", listOf(5, b), false, false},
		{"nothing there", nil, false, false},
		{"another life", listOf(5, entry{owner{1, 3}, 3, reading}), false, false},
		{"cut", sound[:len(sound)-1], false, true},
		{"of other file", listOf(6, a), false, true},
		{"twice", listOf(5, a, a), false, true},
		{"other mode", listOf(5, entry{a.owner, a.open, reading}), false, true},
		{"beside what it excludes", listOf(5, a, entry{owner{2, 1}, 1, writing}), true, true},
	} {
		found, err := verify(c.list, 5, a)
		d, bad := errors.AsType[*damage](err)
		if found != c.found || bad != c.bad || bad && d.file != 5 || err != nil && !bad {
			t.Errorf("%s: %v, %v", c.name, found, err)
		}
	}
	for i := range sound {
		flipped := bytes.Clone(sound)
		flipped[i] ^= 1
		if _, err := verify(flipped, 5, a); err == nil {
			t.Errorf("byte %d is flipped, and nobody sees it", i)
		}
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
