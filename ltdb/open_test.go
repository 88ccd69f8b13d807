package ltdb

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/mainzdb/mainz/internal/testenv"
)

// ramdisk returns a directory for a segment on a ramdisk, removed when the
// test ends.
func ramdisk(t testing.TB) string {
	t.Helper()
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	return filepath.Join(testenv.ShmDir(t), "cluster", "0", "v1")
}

func TestOpenShares(t *testing.T) {
	dir := ramdisk(t)
	if _, err := Open(bg, dir, Options{}); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("open of nothing: %v", err)
	}
	opts := Options{Create: true, Config: Config{Size: 16 << 20, Slots: 4, MaxValue: 10000}}
	a, err := Open(bg, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	da, err := a.Database(bg, "files", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := da.Store(bg, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	b, err := Open(bg, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	dbb, err := b.Database(bg, "files", KV, DatabaseOptions{MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := dbb.Fetch(bg, []byte("k")); string(v) != "v" || err != nil {
		t.Fatalf("%q %v", v, err)
	}
	if _, err := b.Database(bg, "files", Pieces, DatabaseOptions{}); !errors.Is(err, ErrMode) {
		t.Fatalf("open with another mode: %v", err)
	}
	ro, err := Open(bg, dir, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	dro, err := ro.Database(bg, "files", KV, DatabaseOptions{MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := dro.Fetch(bg, []byte("k")); string(v) != "v" || err != nil {
		t.Fatalf("%q %v", v, err)
	}
	if err := dro.Store(bg, []byte("k"), []byte("w")); !errors.Is(err, ErrMode) {
		t.Fatalf("store into a read-only store: %v", err)
	}
	mustCheck(t, a)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := da.Store(bg, []byte("k"), []byte("w")); !errors.Is(err, ErrClosed) {
		t.Fatalf("store after Close: %v", err)
	}
	mustCheck(t, b)
	t.Log(b.Clients())
}
