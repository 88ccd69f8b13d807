package table

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestTables(t *testing.T) {
	var b strings.Builder
	w := New(&b)
	w.Row("a", "%d of %d", 1, 2)
	w.Row("longer", "x")
	if b.Len() > 0 {
		t.Errorf("written before Flush: %q", b.String())
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	r := NewRight(&b)
	fmt.Fprint(r, "1\t10\t\n200\t3\t\n")
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	if want := "a       1 of 2\nlonger  x\n    1  10\n  200   3\n"; b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

type broken struct{ error }

func (b broken) Write([]byte) (int, error) { return 0, b }

func TestFlushSaysWhatTheWriteSays(t *testing.T) {
	why := errors.New("why")
	w := New(broken{why})
	w.Row("a", "b")
	if err := w.Flush(); !errors.Is(err, why) && fmt.Sprint(err) != fmt.Sprint(broken{why}) {
		t.Errorf("it says %v", err)
	}
}
