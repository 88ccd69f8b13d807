package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
)

// A node in use is sound each time that one looks.
func TestCheckUnderLoad(t *testing.T) {
	testenv.Need(t, testenv.NoRace)
	dir := filepath.Join(testenv.ShmDir(t), "v1")
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	var ops atomic.Int64
	for i := range 4 {
		s, err := ltdb.Open(ctx, dir, ltdb.Options{Create: true,
			Config: ltdb.Config{Size: 32 << 20, Slots: 8, MaxValue: 9000}})
		if err != nil {
			t.Fatal(err)
		}
		db, err := s.Database(ctx, "kv", ltdb.KV, ltdb.DatabaseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pieces, err := s.Database(ctx, "pieces", ltdb.Pieces, ltdb.DatabaseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer s.Close()
			for n := i; ctx.Err() == nil; n += 7 {
				ops.Add(1)
				key := fmt.Appendf(nil, "key %d", n%100)
				switch n % 5 {
				case 0, 1:
					_ = db.Store(ctx, key, make([]byte, 1+n%9000))
				case 2:
					_ = db.Delete(ctx, key)
				case 3:
					if r, err := db.FetchLocked(ctx, key); err == nil {
						_ = r.Unlock()
					}
				case 4:
					if p, err := pieces.ConditionalAppend(ctx, ltdb.Always, key, []byte("piece")); err == nil {
						_ = pieces.RemoveAndTrigger(ctx, key, p)
					}
				}
			}
		})
	}
	for end := time.Now().Add(time.Minute); ops.Load() < 1000; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the clients don't get on")
		}
	}
	for range 12 {
		var out, errs bytes.Buffer
		if code := run([]string{"check", "--dir", dir, "-o", "json"}, strings.NewReader(""), &out, &errs); code != 0 {
			t.Fatalf("exit code %d: %s%s", code, &out, &errs)
		}
		var r ltdb.Report
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Passes == 0 || r.Broken != 0 {
			t.Fatalf("%s: %v", &out, err)
		}
	}
}

// What comes out of a segment reaches a terminal as text.
func TestVisible(t *testing.T) {
	for text, want := range map[string]string{
		"files": "files", "größe": "größe",
		"a\x1b[2Jb": `"a\x1b[2Jb"`, "a\tb": `"a\tb"`, "\u009b2J": `"\u009b2J"`, "\xff": `"\xff"`,
	} {
		if got := visible(text); got != want {
			t.Errorf("visible(%q) is %s, want %s", text, got, want)
		}
	}
	if got := lines("one\ntwo\x1b[2J"); got != "one\n\"two\\x1b[2J\"" {
		t.Errorf("lines: %q", got)
	}
	var out bytes.Buffer
	printError(&out, fmt.Errorf("database evil\x1b]0;x\x07 is not there"), false)
	if strings.ContainsAny(out.String(), "\x1b\x07") {
		t.Errorf("an error reaches the terminal as %q", &out)
	}
}
