package trace

import (
	"os"
	"testing"
)

var validModes = []Mode{
	MakeMode(Read, DenyNone), MakeMode(Write, DenyNone), MakeMode(Read|Write, DenyNone),
	MakeMode(Read, DenyWrite), MakeMode(Write, DenyWrite), MakeMode(Read|Write, DenyWrite),
	MakeMode(Read, DenyAll), MakeMode(Write, DenyAll), MakeMode(Read|Write, DenyAll),
}

func TestConflictTruthTable(t *testing.T) {
	// A row and a column for each mode, in the order of validModes; x marks a
	// conflict, a point none.
	const table = `
	deny:     none     write    all
	           r w rw   r w rw   r w rw
	none  r    . . .    . . .    x x x
	none  w    . . .    x x x    x x x
	none  rw   . . .    x x x    x x x
	write r    . x x    . x x    x x x
	write w    . x x    x x x    x x x
	write rw   . x x    x x x    x x x
	all   r    x x x    x x x    x x x
	all   w    x x x    x x x    x x x
	all   rw   x x x    x x x    x x x
	`
	var want []bool
	for _, c := range table {
		if c == 'x' || c == '.' {
			want = append(want, c == 'x')
		}
	}
	n := len(validModes)
	if len(want) != n*n {
		t.Fatalf("the table has %d entries, want %d", len(want), n*n)
	}
	for i, a := range validModes {
		for j, b := range validModes {
			if got := Conflict(a, b); got != want[i*n+j] {
				t.Errorf("Conflict(%v, %v) = %v", a, b, got)
			}
		}
	}
}

func TestModeOf(t *testing.T) {
	for _, c := range []struct {
		flag int
		want Mode
	}{
		{os.O_RDONLY, MakeMode(Read, DenyNone)},
		{os.O_RDONLY | os.O_CREATE, MakeMode(Read, DenyNone)},
		{os.O_RDONLY | os.O_TRUNC, MakeMode(Read, DenyNone)},
		{os.O_WRONLY, MakeMode(Write, DenyWrite)},
		{os.O_WRONLY | os.O_APPEND, MakeMode(Write, DenyWrite)},
		{os.O_WRONLY | os.O_CREATE, MakeMode(Write, DenyWrite)},
		{os.O_WRONLY | os.O_TRUNC, MakeMode(Write, DenyWrite)},
		{os.O_RDWR, MakeMode(Read|Write, DenyWrite)},
		{os.O_RDWR | os.O_CREATE, MakeMode(Read|Write, DenyWrite)},
		{os.O_RDONLY | os.O_CREATE | os.O_TRUNC, MakeMode(Read, DenyAll)},
		{os.O_WRONLY | os.O_CREATE | os.O_TRUNC, MakeMode(Write, DenyAll)},
		{os.O_RDWR | os.O_CREATE | os.O_TRUNC, MakeMode(Read|Write, DenyAll)},
		{os.O_RDONLY | os.O_EXCL, MakeMode(Read, DenyAll)},
		{os.O_WRONLY | os.O_CREATE | os.O_EXCL, MakeMode(Write, DenyAll)},
		{os.O_RDWR | os.O_CREATE | os.O_EXCL, MakeMode(Read|Write, DenyAll)},
	} {
		if got := ModeOf(c.flag); got != c.want {
			t.Errorf("ModeOf(%#x) = %v, want %v", c.flag, got, c.want)
		}
	}
}

func TestModeValid(t *testing.T) {
	valid := map[Mode]bool{}
	for _, m := range validModes {
		valid[m] = true
	}
	for m := range 256 {
		if got := Mode(m).Valid(); got != valid[Mode(m)] {
			t.Errorf("Mode(%#x).Valid() = %v", m, got)
		}
	}
	if got, want := MakeMode(Read|Write, DenyAll).String(), "read+write, deny all"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
	if got, want := Mode(0x85).String(), "invalid mode 0x85"; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
}
