package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/dispatcher"
	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
)

// mainz status names the clients that mainzd has named as marked dead and not proven
// gone, with what to do; and none of which that is not true any more.
func TestStatusUnproven(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	dir := filepath.Join(testenv.ShmDir(t), "v1")
	d, err := dispatcher.Open(t.Context(), dispatcher.Options{Dir: dir,
		Store: ltdb.Options{Create: true, Config: ltdb.Config{Size: 16 << 20, Slots: 8}}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s, err := ltdb.Open(t.Context(), dir, ltdb.Options{}) // of which we use the mapping
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	seg := s.Segment()
	node, _, err := call.NodeOf(seg)
	if err != nil {
		t.Fatal(err)
	}
	status := func(args ...string) (string, int) {
		var out, stderr strings.Builder
		code := run(append([]string{"status", "--dir", dir, "--timeout", "10ms"}, args...), strings.NewReader(""),
			&out, &stderr)
		return out.String(), code
	}
	sl := seg.Slot(5)
	sl.PID.Store(4711)
	sl.Generation.Store(3)
	sl.Live.Store(1<<31 | 1<<30) // as the kernel marks a death
	defer func() {
		sl.PID.Store(0)
		sl.Live.Store(0)
	}()
	node.Unproven[2].Store(5<<40 | 1_700_000_000)
	node.Unproven[3].Store(6<<40 | 1_700_000_000) // it is free: nobody is meant
	node.Unproven[4].Store(1<<60 | 1)             // garbage
	text, code := status()
	lock := fmt.Sprint(seg.LockPlace(5))
	for _, want := range []string{"not proven dead", "2023-11-14T22:13:20Z", "slot 5", "process 4711", lock,
		"unproven_death"} {
		if !strings.Contains(text, want) {
			t.Errorf("status does not say %q:\n%s", want, text)
		}
	}
	if code == 0 {
		t.Error("status ends with 0")
	}
	text, _ = status("-o", "json")
	var st nodeStatus
	if err := json.Unmarshal([]byte(text), &st); err != nil || len(st.Unproven) != 1 || st.Unproven[0].Slot != 5 ||
		st.Unproven[0].PID != 4711 || fmt.Sprint(st.Unproven[0].LockAt) != lock {
		t.Errorf("%v: %s", err, text)
	}
	sl.Live.Store(0)
	if text, _ := status(); strings.Contains(text, "proven") {
		t.Errorf("the slot is free, and status says\n%s", text)
	}
}
