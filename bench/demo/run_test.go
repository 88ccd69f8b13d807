package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/daemon"
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
	case "mainzd":
		daemon.Main()
	case "serve":
		client, _ := strconv.ParseUint(f[1], 10, 16)
		life, _ := strconv.ParseUint(f[2], 10, 16)
		err := Serve(context.Background(), ClientOptions{Dir: f[3], Client: uint16(client), Clients: Clients,
			Life: uint16(life), Trace: randomTrace(1, 20_000)}, os.Stdin, os.Stdout)
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

// child is this binary as something else.
func child(what string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), clientEnv+"="+what)
	return cmd
}

func testOptions(t *testing.T, what string) Options {
	testenv.Need(t, testenv.NoRace)
	return Options{
		Ramdisk:  testenv.ShmDir(t),
		Duration: 300 * time.Millisecond,
		Trace:    randomTrace(1, 20_000),
		Daemon:   func(dir string) *exec.Cmd { return child("mainzd", DaemonFlags(dir)...) },
		Command: func(dir string, client, life uint16) *exec.Cmd {
			return child(fmt.Sprintf("%s %d %d %s", what, client, life, dir))
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
	if r.Kills != 1 || r.CleanupMS <= 0 || r.EntriesCleaned == 0 || r.Events == 0 || r.Passes == 0 ||
		r.DaemonKills != 2 || r.DaemonDownOps == 0 || r.DaemonAnsweredMS < r.DaemonRestartMS ||
		r.DaemonRestartMS <= 0 ||
		r.BypassShare <= 0.5 || r.BypassShare >= 1 || r.RingOps == 0 {
		t.Errorf("%+v", r)
	}
	want := []string{
		"mainzd is killed", "mainzd answers again",
		"client 3 is killed", "client 3 is cleaned up after",
		"mainzd is killed", "mainzd answers again",
	}
	for i, note := range notes {
		notes[i], _, _ = strings.Cut(note, ";")
	}
	if !slices.Equal(notes, want) {
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
	t.Run("no mainzd", func(t *testing.T) {
		o := testOptions(t, "serve")
		o.Daemon = func(string) *exec.Cmd { return exec.Command("/absent/mainzd") }
		if _, err := Run(context.Background(), o); !errors.Is(err, os.ErrNotExist) ||
			!strings.Contains(err.Error(), "start mainzd") {
			t.Errorf("%v, want ErrNotExist", err)
		}
		left(t, o)
	})
	t.Run("mainzd that ends", func(t *testing.T) {
		o := testOptions(t, "serve")
		o.Daemon = func(string) *exec.Cmd { return child("crash") }
		if _, err := Run(context.Background(), o); err == nil ||
			!strings.Contains(err.Error(), "mainzd ended in a bad way: exit status 3\nlast words") {
			t.Errorf("%v", err)
		}
		left(t, o)
	})
	t.Run("mainzd that is no mainzd the second time", func(t *testing.T) {
		o := testOptions(t, "serve")
		lives := 0
		o.Daemon = func(dir string) *exec.Cmd {
			if lives++; lives > 1 {
				return child("crash")
			}
			return child("mainzd", DaemonFlags(dir)...)
		}
		if _, err := Run(context.Background(), o); err == nil ||
			!strings.Contains(err.Error(), "mainzd ended in a bad way: exit status 3") {
			t.Errorf("%v", err)
		}
		left(t, o)
	})
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

// Entries of a dead client that stay, and an opener that is not woken, are seen.
func TestWatchCleanup(t *testing.T) {
	h := newNode(t)
	for _, c := range []struct {
		name  string
		entry bool
		woken bool
		want  string
	}{
		{"all well", false, true, ""},
		{"entry left", true, true, "has not removed 1 entries of killed client 3"},
		{"not woken", false, false, "was not woken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, key, dead := t.Context(), fileKey(7), owner{3, 1}
			if c.entry {
				p, err := h.db.ConditionalAppend(ctx, mainz.ShareModes, key[:], listOf(7, entry{dead, 1, reading}))
				if err != nil {
					t.Fatal(err)
				}
				defer h.db.RemoveAndTrigger(ctx, key[:], p)
			}
			r := &run{events: make(chan event), looksAtMost: 5, woken: make(chan struct{}), killedAt: time.Now()}
			if c.woken {
				close(r.woken)
			}
			store, err := ltdb.Open(ctx, h.node.Dir(), ltdb.Options{ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			if r.records, err = store.Database(ctx, database, ltdb.Pieces,
				ltdb.DatabaseOptions{MustExist: true}); err != nil {
				t.Fatal(err)
			}
			r.killing, r.draining = true, true
			r.spawn(func() error { return r.watchCleanup(ctx, dead) })
			if err := r.until(ctx, func() bool { return !r.killing }); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(r.res.Problems, "; ")
			if !strings.Contains(got, c.want) || (got == "") != (c.want == "") ||
				(r.res.CleanupMS > 0) != (c.want == "") {
				t.Errorf("problems %q, cleaned up after %v ms", got, r.res.CleanupMS)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	good := Result{Events: 1}
	if good.judge(); len(good.Problems) != 0 {
		t.Errorf("%q", good.Problems)
	}
	for _, bad := range []Result{
		{}, {Events: 1, AckedLost: 1}, {Events: 1, Damaged: 1}, {Events: 1, RecordsLeft: 1},
		{Events: 1, PiecesLeft: 1}, {Events: 1, CheckErrors: 1},
		{Events: 1, LateWakes: 1}, {Events: 1, stoodStill: 1},
	} {
		if bad.judge(); len(bad.Problems) != 1 {
			t.Errorf("%+v", bad)
		}
		var table strings.Builder
		if bad.Print(&table); strings.Contains(table.String(), "all is well") {
			t.Errorf("table:\n%s", &table)
		}
	}
	var locked Result
	if locked.check(&ltdb.Report{Locked: 2}); locked.CheckErrors != 1 || len(locked.Problems) != 1 {
		t.Errorf("%+v", locked)
	}
}

// The share is what was counted.
func TestShareIsMeasured(t *testing.T) {
	r := Result{Seconds: 2}
	r.count(&counts{Events: 10, Bypass: 6, Ring: 2}, nil)
	if r.BypassShare != 0.75 || r.OpsPerS != 5 {
		t.Errorf("%+v", r)
	}
}

// TestStuckSaysWhat: whatever does not come, the demo ends and names it.
func TestStuckSaysWhat(t *testing.T) {
	for want, change := range map[string]func(r *run){
		"clients that are not ready: 2":                 func(r *run) { r.procs[2].ready = false },
		"clients that do not end their pass: 1, 3":      func(r *run) { r.procs[1].busy, r.procs[3].busy = true, true },
		"what the last kill has left is not cleaned up": func(r *run) { r.killing = true },
		"there was no moment for a kill in 7 looks": func(r *run) {
			r.plan, r.looks, r.killAt = kills, 7, make(chan time.Time)
		},
		"processes that do not end": func(*run) {},
	} {
		r := &run{events: make(chan event)}
		for i := range r.procs {
			r.procs[i] = &process{owner: owner{uint16(i), 1}}
			r.procs[i].ready = true
		}
		change(r)
		late := make(chan time.Time, 1)
		late <- time.Now()
		r.latest = late
		if err := r.until(context.Background(), func() bool { return false }); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say: %s", err, want)
		}
	}
}
