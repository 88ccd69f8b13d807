package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
)

// The test binary is its own client.
const clientEnv = "MAINZ_DEMO_TEST_CLIENT"

func TestMain(m *testing.M) {
	if args := os.Getenv(clientEnv); args != "" {
		os.Exit(testClient(args))
	}
	os.Exit(m.Run())
}

func testClient(args string) int {
	f := strings.SplitN(args, " ", 4)
	switch f[0] {
	case "serve":
		client, _ := strconv.Atoi(f[1])
		start, _ := strconv.ParseUint(f[2], 10, 64)
		err := Serve(context.Background(), ClientOptions{Dir: f[3], Client: client, Clients: Clients, Start: start, Trace: randomTrace(1, 5000)}, os.Stdin, os.Stdout)
		if err == nil {
			return 0
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	case "crash":
		fmt.Fprintln(os.Stderr, "last words")
	case "babble":
		fmt.Println(`{"is":"babble"}`)
		os.Stdin.Read(make([]byte, 1)) // until the parent ends us
	}
	return 3
}

func testOptions(t *testing.T, what string) Options {
	testenv.Need(t, testenv.NoRace)
	return Options{
		Ramdisk:  testenv.ShmDir(t),
		Duration: 300 * time.Millisecond,
		Trace:    randomTrace(1, 5000),
		Command: func(dir string, client int, start uint64) *exec.Cmd {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d %s", clientEnv, what, client, start, dir))
			return cmd
		},
	}
}

// left fails the test if the run left anything in the ramdisk.
func left(t *testing.T, o Options) {
	t.Helper()
	entries, err := os.ReadDir(o.Ramdisk)
	if err != nil || len(entries) > 0 {
		t.Errorf("in the ramdisk are left: %v, %v", entries, err)
	}
}

func TestRun(t *testing.T) {
	o := testOptions(t, "serve")
	var notes []string
	o.Progress = func(p Progress) {
		if p.Note != "" {
			notes = append(notes, p.Note)
		}
	}
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	left(t, o)
	if len(r.Problems) > 0 {
		t.Errorf("problems: %q", r.Problems)
	}
	if r.Kills != 1 || r.CleanupMS <= 0 || r.EntriesCleaned == 0 || r.Events == 0 || r.Passes == 0 {
		t.Errorf("%+v", r)
	}
	if want := []string{"client 3 is killed", "client 3 is cleaned up after"}; strings.Join(notes, ", ") != strings.Join(want, ", ") {
		t.Errorf("progress said %q, want %q", notes, want)
	}
	var table strings.Builder
	if err := r.Print(&table); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table.String(), "all is well") {
		t.Errorf("table:\n%s", &table)
	}
}

func TestRunSaysWhatWentWrong(t *testing.T) {
	for what, want := range map[string]string{
		"crash":  "ended in a bad way: exit status 3\nlast words",
		"babble": `says "babble"`,
	} {
		t.Run(what, func(t *testing.T) {
			o := testOptions(t, what)
			_, err := Run(context.Background(), o)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
			left(t, o)
		})
	}
	t.Run("small ramdisk", func(t *testing.T) {
		o := testOptions(t, "serve")
		o.Ramdisk = testenv.Tmpfs(t, "size=1m")
		if _, err := Run(context.Background(), o); !errors.Is(err, ltdb.ErrNoSpace) {
			t.Errorf("%v, want ErrNoSpace", err)
		}
		left(t, o)
	})
	t.Run("no ramdisk", func(t *testing.T) {
		o := testOptions(t, "serve")
		o.Ramdisk += "/absent"
		if _, err := Run(context.Background(), o); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v, want ErrNotExist", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		o := testOptions(t, "serve")
		ctx, cancel := context.WithCancel(context.Background())
		o.Progress = func(Progress) { cancel() }
		o.Duration = time.Hour
		if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want Canceled", err)
		}
		left(t, o)
	})
}

func TestJudge(t *testing.T) {
	good := Result{Events: 1}
	if good.judge(); len(good.Problems) != 0 {
		t.Errorf("%q", good.Problems)
	}
	for _, bad := range []Result{{}, {Events: 1, AckedLost: 1}, {Events: 1, Damaged: 1}, {Events: 1, RecordsLeft: 1}, {Events: 1, CheckErrors: 1}} {
		if bad.judge(); len(bad.Problems) != 1 {
			t.Errorf("%+v", bad)
		}
		var table strings.Builder
		if bad.Print(&table); strings.Contains(table.String(), "all is well") {
			t.Errorf("table:\n%s", &table)
		}
	}
}
