package mainz

import (
	"errors"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/ltdb"
)

// What goes wrong is said in words that fit here: no package below, no option of one,
// and no wrong reason.
func TestErrorTexts(t *testing.T) {
	n := startNode(t)
	c := n.attach()
	db := c.open(t, "kv", KV)
	observer, err := Attach(minute(t), n.dir, ReadOnly())
	if err != nil {
		t.Fatal(err)
	}
	defer observer.Close()
	seen := observer.open(t, "kv", KV)
	watch := func(db *DB, key []byte) (err error) {
		for _, err = range db.Watch(minute(t), key) {
			break
		}
		return err
	}
	_, fetchErr := db.Fetch(minute(t), nil)
	_, pieceErr := db.ConditionalAppend(minute(t), Always, []byte("k"), nil)
	_, condErr := db.ConditionalAppend(minute(t), 999, []byte("k"), []byte("x"))
	for _, c := range []struct {
		what string
		err  error
		is   error
		has  string
	}{
		{"watch by an observer", watch(seen, []byte("k")), ErrMode, "observer"},
		{"ping by an observer", observer.Ping(minute(t)), ErrMode, "observer"},
		{"store by an observer", seen.Store(minute(t), []byte("k"), []byte("v")), ErrMode, "reading only"},
		{"fetch without a key", fetchErr, ErrTooBig, "1 to 1,024 bytes"},
		{"watch without a key", watch(db, nil), ErrTooBig, "1 to 1,024 bytes"},
		{"append nothing", pieceErr, ErrTooBig, "at least one byte"},
		{"store too much", db.Store(minute(t), []byte("k"), make([]byte, 2<<20)), ErrTooBig,
			"longer than this node takes"},
		{"unknown condition", condErr, ErrNoCondition, "condition"},
	} {
		switch {
		case !errors.Is(c.err, c.is):
			t.Errorf("%s: %v", c.what, c.err)
		case !strings.Contains(c.err.Error(), c.has):
			t.Errorf("%s: %q does not say %q", c.what, c.err, c.has)
		}
		foreign(t, c.err)
	}
	for _, err := range []error{ErrNotFound, ErrLocked, ErrNotLocked, ErrCondition, ErrNoCondition, ErrMode,
		ErrTooBig, ErrNoSpace, ErrNoHandles, ErrNoSlots, ErrTooManyLocks,
		ErrNoDatabase, ErrLeaseLost, ErrNotRunning, ErrIncompatible, ErrPermission, ErrCorrupt, ErrClosed,
		ErrNotSupported, ErrUnknown, ltdb.ErrFull} {
		foreign(t, err)
	}
}

// foreign fails if an error speaks of what its reader does not know.
func foreign(t *testing.T, err error) {
	t.Helper()
	for _, word := range []string{"ltdb", "Options.", "Config.", "Store."} {
		if err != nil && strings.Contains(err.Error(), word) {
			t.Errorf("%q speaks of %s", err, word)
		}
	}
}
