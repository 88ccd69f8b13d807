package trace

import (
	"testing"
)

// The demo and its tests rely on these figures. They are counted here without
// the code that Stats and the Reader use.
func TestGoBuild(t *testing.T) {
	if kib := len(goBuild) >> 10; kib > 1024 {
		t.Errorf("the trace has %d KiB, want at most 1024", kib)
	}
	tr, err := GoBuild()
	if err != nil {
		t.Fatal(err)
	}
	type opened struct {
		file   uint32
		mode   Mode
		closed bool
	}
	var opens []opened
	inUse := map[uint32][]uint32{} // opens by file, those not closed
	conflicting, refused := 0, 0
	skipped := map[uint32]bool{}
	last := int64(0)
	for i, e := range tr.Events {
		if e.TimeUS < last {
			t.Fatalf("event %d: time goes back from %d to %d", i, last, e.TimeUS)
		}
		last = e.TimeUS
		if e.Kind == Close {
			if int(e.Open) >= len(opens) || opens[e.Open].closed {
				t.Fatalf("event %d closes %d, which is not open", i, e.Open)
			}
			if o := opens[e.Open]; o.file != e.File || o.mode != e.Mode {
				t.Fatalf("event %d is not like its open", i)
			}
			opens[e.Open].closed = true
			var left []uint32
			for _, o := range inUse[e.File] {
				if o != e.Open {
					left = append(left, o)
				}
			}
			inUse[e.File] = left
			continue
		}
		if int(e.Open) != len(opens) {
			t.Fatalf("event %d opens %d, want %d", i, e.Open, len(opens))
		}
		denied, admitted := false, false
		for _, o := range inUse[e.File] {
			if Conflict(opens[o].mode, e.Mode) {
				denied = true
				admitted = admitted || !skipped[o]
			}
		}
		if denied {
			conflicting++
		}
		if admitted {
			refused++
			skipped[e.Open] = true
		}
		opens = append(opens, opened{file: e.File, mode: e.Mode})
		inUse[e.File] = append(inUse[e.File], e.Open)
	}
	for i, o := range opens {
		if !o.closed {
			t.Errorf("open %d is never closed", i)
		}
	}
	t.Logf("%d events, %d conflicting opens, %d if those before are skipped, %d processes",
		len(tr.Events), conflicting, refused, tr.Processes)
	if len(tr.Events) < 60000 {
		t.Errorf("%d events, want at least 60000", len(tr.Events))
	}
	// Also a replay that skips refused opens must see enough of them.
	if refused < 250 {
		t.Errorf("%d conflicting opens, %d if those before are skipped; want at least 250", conflicting, refused)
	}
	s := tr.Stats()
	if s.Conflicts != conflicting || s.Refused != refused || s.Opens != len(opens) || s.Events != len(tr.Events) {
		t.Errorf("Stats says %d conflicts, %d refused, %d opens, %d events", s.Conflicts, s.Refused, s.Opens, s.Events)
	}
	// A replay gives each process to one goroutine; that must not wait for
	// itself, nor be all there is.
	if s.SameProcess != 0 {
		t.Errorf("%d opens conflict within their own process", s.SameProcess)
	}
	longest := 0
	for _, events := range tr.ByProcess() {
		longest = max(longest, len(events))
	}
	if tr.Processes < 100 || longest > len(tr.Events)/3 {
		t.Errorf("%d processes, the busiest has %d of %d events", tr.Processes, longest, len(tr.Events))
	}
}

func BenchmarkGoBuild(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := GoBuild(); err != nil {
			b.Fatal(err)
		}
	}
}
