package bench

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/mainzdb/mainz/internal/testenv"
)

// TestTDBTorture: the program that the comparison in docs/memory.md comes from
// works. What it finds is libtdb's own affair.
func TestTDBTorture(t *testing.T) {
	program := filepath.Join(filepath.Dir(driver(t)), "mainz-tdb-torture")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: make bench-peers builds it", err)
	}
	dir := testenv.ShmDir(t)
	out, err := exec.Command(program, "-C", dir, "-n", "3", "-s", "1", "-d").Output()
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Kills, Lost, Gone, Torn, Stale, Hung, Errors, Changes *int

		InsideStore *int `json:"inside_store"`
		CheckFailed *int `json:"check_failed"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	for _, p := range []*int{r.Kills, r.InsideStore, r.Lost, r.Gone, r.Torn, r.Stale, r.CheckFailed, r.Hung, r.Errors,
		r.Changes} {
		if p == nil {
			t.Fatalf("a count is missing in %s", out)
		}
	}
	if *r.Kills != 3 || *r.Changes == 0 || *r.InsideStore > 3 || *r.Errors != 0 {
		t.Errorf("%s", out)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}
