package mainztest

import (
	"testing"

	"github.com/mainzdb/mainz"
)

func TestStart(t *testing.T) {
	odd := mainz.Condition{ID: 20, Name: "odd", Version: 1,
		Holds: func(rec mainz.Snapshot, _ []byte) bool { return len(rec.Data())%2 == 1 }}
	n := Start(t, odd)
	db, err := n.Attach().Open(t.Context(), "db", mainz.KV)
	if err != nil {
		t.Fatal(err)
	}
	key := []byte("k")
	if err := db.Store(t.Context(), key, []byte("1")); err != nil {
		t.Fatal(err)
	}
	n.Restart()
	if _, err := db.ConditionalAppend(t.Context(), 20, key, []byte("2")); err != nil {
		t.Fatal(err)
	}
	if v, err := db.Fetch(t.Context(), key); err != nil || string(v) != "12" {
		t.Errorf("fetched %q, %v", v, err)
	}
}
