package mainz

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mainzdb/mainz/daemon"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
)

// Child processes of the tests are this binary.
func TestMain(m *testing.M) {
	switch os.Getenv("MAINZ_TEST_CHILD") {
	case "mainzd":
		daemon.Main()
	case "client":
		tortureClient()
	case "pieces":
		piecesClient()
	case "holder":
		holderClient()
	case "sentinel":
		sentinel()
	case "wild":
		wildClient()
	case "fill":
		fillClient()
	case "attach":
		attachClient()
	default:
		os.Exit(m.Run())
	}
}

// child starts this binary as something else.
func child(t testing.TB, what string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "MAINZ_TEST_CHILD="+what)
	cmd.Stderr = os.Stderr
	return cmd
}

// killable is a mainzd that a test kills and starts again, in a directory that
// goes with the test.
type killable struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd

	more []string // arguments
}

func startKillable(t *testing.T, group ...string) *killable {
	t.Helper()
	base, err := os.MkdirTemp("/dev/shm", "mainz-test-*")
	want(t, err, nil)
	want(t, os.Chmod(base, 0o755), nil)
	d := &killable{t: t, dir: filepath.Join(base, "v1")}
	for _, g := range group {
		if g != "" {
			d.more = append(d.more, "--group", g)
		}
	}
	t.Cleanup(func() {
		d.kill()
		os.RemoveAll(base)
	})
	d.start()
	return d
}

func (d *killable) start() {
	d.t.Helper()
	args := []string{"--config", os.DevNull, "--dir", d.dir, "--size", "64MiB", "--slots", "32", "--log-level", "warn"}
	d.cmd = child(d.t, "mainzd", append(args, d.more...)...)
	want(d.t, d.cmd.Start(), nil)
}

// kill does nothing to one that is dead.
func (d *killable) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
}

// attachTo waits until the daemon is there.
func attachTo(t testing.TB, dir string, opts ...Option) *Client {
	t.Helper()
	ctx := minute(t)
	for {
		c, err := Attach(ctx, dir, opts...)
		if err == nil {
			return c
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // polls; the test waits for the condition
	}
}

// tortureClient adds 1 to a counter of its own again and again, through the ring
// and under the record's lock in turn, and says so after each.
func tortureClient() {
	dir, key := os.Args[1], []byte(os.Args[2])
	ctx := context.Background()
	c, err := Attach(ctx, dir, ThroughRing())
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	db, err := c.Open(ctx, "counters", KV)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	opens, err := c.Open(ctx, "opens", Pieces)
	for i := 0; err == nil; i++ {
		if i%4 == 0 { // others wait for what a dead one has left here
			var p Piece
			file := fmt.Append(nil, "file", i/4%2)
			if p, err = opens.ConditionalAppendWait(ctx, IfAbsent, file, []byte("theirs")); err == nil {
				err = opens.RemoveAndTrigger(ctx, file, p)
			}
			if err != nil {
				break
			}
		}
		var r Record
		if r, err = db.FetchLocked(ctx, key); err != nil {
			break
		}
		n := uint64(1)
		if b := r.Data(); len(b) == 8 {
			n += binary.LittleEndian.Uint64(b)
		}
		if err = r.StoreUnlock(binary.LittleEndian.AppendUint64(nil, n)); err == nil {
			fmt.Println(n)
		}
	}
	fmt.Println("error", err)
	os.Exit(1)
}

// victim is a client and the end of what it has said.
type victim struct {
	cmd  *exec.Cmd
	read chan struct{}
}

// end kills it. Wait would close the pipe before all is read.
func (v *victim) end() {
	_ = v.cmd.Process.Kill()
	<-v.read
	_ = v.cmd.Wait()
}

// watch sends what the record holds after each event.
func watch(ctx context.Context, t *testing.T, db *DB, seen chan<- uint64) {
	for _, err := range db.Watch(ctx, []byte("watched")) {
		var b []byte
		if err == nil {
			b, err = db.Fetch(ctx, []byte("watched"))
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil || len(b) != 8 {
			t.Errorf("watch: %v, %q", err, b)
			return
		}
		select {
		case seen <- binary.LittleEndian.Uint64(b):
		case <-ctx.Done():
			return
		}
	}
}

func kills(short int) int {
	if n, err := strconv.Atoi(os.Getenv("MAINZ_KILLS")); err == nil {
		return n
	}
	return short
}

// mainzd and clients are killed at random moments under load: nothing that was
// acknowledged is lost, nothing runs twice, everybody goes on.
func TestTorture(t *testing.T) {
	for _, whom := range []string{"clients", "mainzd", "both"} {
		t.Run(whom, func(t *testing.T) { torture(t, whom) })
	}
}

func torture(t *testing.T, whom string) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("MAINZ_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("MAINZ_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	d := startKillable(t)
	dir := d.dir
	c := attachTo(t, dir, ThroughRing())
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute+time.Duration(kills(0))*time.Second)
	defer cancel()
	counters, err := c.Open(ctx, "counters", KV)
	want(t, err, nil)
	logs, err := c.Open(ctx, "logs", KV)
	want(t, err, nil)
	opens, err := c.Open(ctx, "opens", Pieces)
	want(t, err, nil)

	// Load in this process: appends of tokens that can be told apart, pieces
	// that exclude each other, and a watcher.
	const workers = 4
	var wg sync.WaitGroup
	var stop atomic.Bool
	var inside [2]atomic.Int32
	acked, first := make([]int, workers), make([]int, workers)
	checkLog := func(w int) {
		got, err := logs.Fetch(ctx, fmt.Append(nil, "log", w))
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("worker %d: %v", w, err)
			return
		}
		var all []byte
		for i := first[w]; i < acked[w]; i++ {
			all = fmt.Append(all, i, ",")
		}
		if !bytes.Equal(got, all) {
			t.Errorf("worker %d: appends %d to %d acknowledged, the record is %.200q", w, first[w], acked[w], got)
		}
	}
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rnd := rand.New(rand.NewPCG(seed, uint64(w)+1))
			for i := 0; !stop.Load(); i++ {
				if _, err := logs.ConditionalAppend(ctx, Always, fmt.Append(nil, "log", w),
					fmt.Append(nil, i, ",")); err != nil {
					t.Errorf("append: %v", err)
					return
				}
				if acked[w]++; acked[w]-first[w] == 10000 { // it would grow too long
					checkLog(w)
					if err := logs.Delete(ctx, fmt.Append(nil, "log", w)); err != nil {
						t.Errorf("delete: %v", err)
						return
					}
					first[w] = acked[w]
				}
				if i%8 != 0 {
					continue
				}
				k := rnd.IntN(2)
				key := fmt.Append(nil, "file", k)
				p, err := opens.ConditionalAppendWait(ctx, IfAbsent, key, []byte("mine"))
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				if n := inside[k].Add(1); n != 1 {
					t.Errorf("%d are inside of file %d", n, k)
				}
				inside[k].Add(-1)
				if err := opens.RemoveAndTrigger(ctx, key, p); err != nil {
					t.Errorf("close: %v", err)
					return
				}
			}
		}()
	}
	// By bypass and through the ring, round after round on keys of its own: each
	// round's history has an order.
	near := attachTo(t, dir)
	defer near.Close()
	ringed, bypass := c.open(t, "linear", KV), near.open(t, "linear", KV)
	rounds := 0
	wg.Add(1)
	go func() {
		defer wg.Done()
		for ; !stop.Load() && !t.Failed(); rounds++ {
			checkLinear(ctx, t, []*DB{ringed, bypass, ringed, bypass}, seed+uint64(rounds), 2*rounds, 2, 40)
			for k := range 2 {
				if err := ringed.Delete(ctx, fmt.Append(nil, "key", 2*rounds+k)); err != nil &&
					!errors.Is(err, ErrNotFound) {
					t.Errorf("round %d: delete: %v", rounds, err)
				}
			}
		}
	}()
	// A watcher is told of each change before the next one is made.
	changes, watched := near.open(t, "changes", KV), c.open(t, "changes", KV)
	changed := uint64(0)
	seen := make(chan uint64)
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	wg.Add(2)
	go func() {
		defer wg.Done()
		watch(watching, t, watched, seen)
	}()
	go func() {
		defer wg.Done()
		defer unwatch()
		for !stop.Load() && !t.Failed() {
			changed++
			if err := changes.Store(ctx, []byte("watched"),
				binary.LittleEndian.AppendUint64(nil, changed)); err != nil {
				t.Errorf("change: %v", err)
				return
			}
			for told := uint64(0); told < changed; {
				select {
				case told = <-seen:
				case <-ctx.Done():
					t.Errorf("the watcher was not told of change %d", changed)
					return
				}
			}
		}
	}()
	var clients sync.WaitGroup
	last := make([]uint64, 2) // what each counter is known to be
	startClient := func(i int) *victim {
		cmd := child(t, "client", dir, fmt.Sprint("counter", i))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		v := &victim{cmd, make(chan struct{})}
		clients.Add(1)
		go func() {
			defer clients.Done()
			defer close(v.read)
			for lines := bufio.NewScanner(out); lines.Scan(); {
				n, err := strconv.ParseUint(lines.Text(), 10, 64)
				if err != nil {
					// It came while no dispatcher was there.
					if !strings.Contains(lines.Text(), "no dispatcher") && !strings.Contains(lines.Text(), "deadline") {
						t.Error(lines.Text())
					}
					continue
				}
				// One that was killed may have stored once more without saying so.
				if was := atomic.SwapUint64(&last[i], n); n != was+1 && n != was+2 {
					t.Errorf("counter %d went from %d to %d", i, was, n)
				}
			}
		}()
		return v
	}
	procs := []*victim{startClient(0), startClient(1)}
	short := 10
	if testing.Short() {
		short = 3
	}
	n, from := kills(short), time.Now()
	for k := range n {
		time.Sleep(time.Duration(rnd.IntN(40)) * time.Millisecond) // a random moment, not a wait
		i := rnd.IntN(len(procs))
		// One after the other at once, and only then the new ones: with both dead,
		// each of them finds what the other has left.
		if whom != "mainzd" {
			_ = procs[i].cmd.Process.Kill()
		}
		if whom != "clients" {
			d.kill()
			d.start()
		}
		if whom != "mainzd" {
			procs[i].end()
			procs[i] = startClient(i)
		}
		if t.Failed() {
			break
		}
		if time.Since(from) > 10*time.Second {
			from = time.Now()
			fmt.Printf("torture: %s: %d of %d kills\n", whom, k+1, n)
		}
	}
	// All go on once nobody is killed any more.
	goal := [2]uint64{}
	for i := range procs {
		procs[i].end()
	}
	attachTo(t, dir).Close()
	for i := range procs {
		goal[i] = atomic.LoadUint64(&last[i]) + 3
		procs[i] = startClient(i)
	}
	for i := range goal {
		for atomic.LoadUint64(&last[i]) < goal[i] && ctx.Err() == nil && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
	}
	stop.Store(true)
	wg.Wait()
	for i := range procs {
		procs[i].end()
	}
	clients.Wait()
	for w := range workers {
		checkLog(w)
	}
	for i := range last {
		got, err := counters.Fetch(ctx, fmt.Append(nil, "counter", i))
		want(t, err, nil)
		if n := binary.LittleEndian.Uint64(got); n != last[i] && n != last[i]+1 {
			t.Errorf("counter %d is %d, acknowledged are %d", i, n, last[i])
		}
	}
	for k := range inside {
		// The dispatcher removes what the last two have left.
		for ctx.Err() == nil {
			if _, err := opens.Fetch(ctx, fmt.Append(nil, "file", k)); err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if got, err := opens.Fetch(ctx, fmt.Append(nil, "file", k)); err == nil {
			t.Errorf("file %d: a piece is left: %q", k, got)
		}
	}
	d.kill()
	c.Close()
	s, err := ltdb.Open(ctx, dir, ltdb.Options{})
	want(t, err, nil)
	defer s.Close()
	rep, err := s.Check(ctx)
	want(t, err, nil)
	if !rep.OK() {
		t.Errorf("check: %+v", rep)
	}
	t.Logf("%d kills, appends %v, counters %v, %d rounds of operations that have an order, %d changes watched", n,
		acked, last, rounds, changed)
}

// Client and dispatcher need not be in one PID namespace.
func TestOtherPIDNamespace(t *testing.T) {
	testenv.Need(t, testenv.Mount) // the same right
	base, err := os.MkdirTemp("/dev/shm", "mainz-test-*")
	want(t, err, nil)
	defer os.RemoveAll(base)
	for _, who := range []string{"client", "mainzd"} {
		dir := filepath.Join(base, who, "v1")
		d := child(t, "mainzd", "--config", os.DevNull, "--dir", dir, "--size", "32MiB", "--log-level", "error")
		other := child(t, "client", dir, "counter")
		elsewhere := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		if who == "client" {
			other.SysProcAttr = elsewhere
		} else {
			d.SysProcAttr = elsewhere
		}
		want(t, d.Start(), nil)
		c := attachTo(t, dir)
		ctx := minute(t)
		out, err := other.StdoutPipe()
		want(t, err, nil)
		want(t, other.Start(), nil)
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != "3" {
			if strings.Contains(lines.Text(), "error") {
				t.Fatal(lines.Text())
			}
		}
		_ = other.Process.Kill() // it holds a lock or a piece, or asks for one
		_ = other.Wait()
		for _, name := range []string{"file0", "file1"} {
			db := c.open(t, "opens", Pieces)
			p, err := db.ConditionalAppendWait(ctx, IfAbsent, []byte(name), []byte("mine"))
			want(t, err, nil)
			want(t, db.RemoveAndTrigger(ctx, []byte(name), p), nil)
		}
		r, err := c.open(t, "counters", KV).FetchLocked(ctx, []byte("counter"))
		want(t, err, nil)
		want(t, r.Unlock(), nil)
		want(t, c.Close(), nil)
		_ = d.Process.Kill()
		_ = d.Wait()
	}
}
