package call_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/mainzdb/mainz/dispatcher"
	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/ltdb"
	"github.com/mainzdb/mainz/protocol/wire"
	"github.com/mainzdb/mainz/ring"
	"github.com/mainzdb/mainz/shm"
)

// Both halves of the calls: a Client of this package, and a dispatcher.

// node is a dispatcher in this process, with one client of it.
type node struct {
	t    *testing.T
	dir  string
	stop func()
	told chan call.Epoch // taken from when the client may go on

	client *call.Client
	db     *ltdb.DB
}

// minute is a context that no test reaches the end of.
func minute(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func startNode(t *testing.T) *node {
	t.Helper()
	base := os.TempDir()
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "mainz-call-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{t: t, dir: filepath.Join(dir, "v1"), told: make(chan call.Epoch)}
	n.start()
	t.Cleanup(n.end)
	n.join()
	return n
}

func (n *node) start() {
	n.t.Helper()
	d, err := dispatcher.Open(minute(n.t), dispatcher.Options{Dir: n.dir,
		Store: ltdb.Options{Create: true, Config: ltdb.Config{Size: 16 << 20, Slots: 4}}})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- errors.Join(d.Run(ctx), d.Close()) }()
	n.stop = func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	}
}

// end ends the dispatcher, if there is one.
func (n *node) end() {
	if n.stop != nil {
		n.stop()
	}
	n.stop = nil
}

// join makes the client, as package mainz does.
func (n *node) join() {
	t, ctx := n.t, minute(n.t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	conn, err := attach.Dial(ctx, n.dir)
	check(err)
	t.Cleanup(func() { conn.Close() })
	var answer attach.Message
	check(conn.Call(ctx, &attach.Message{Kind: attach.Hello, Version: attach.Version, Name: "call"}, &answer))
	door, err := shm.OpenDoorbell(n.dir)
	check(err)
	t.Cleanup(func() { door.Close() })
	store, err := ltdb.Open(ctx, n.dir, ltdb.Options{Name: "call"})
	check(err)
	t.Cleanup(func() { store.Close() })
	seg := store.Segment()
	own, off, err := call.NodeOf(seg)
	check(err)
	bell, err := ring.OpenBell(seg.Region(), off, door)
	check(err)
	generation := uint32(seg.Slot(store.Slot()).Generation.Load())
	check(conn.Call(ctx, &attach.Message{Kind: attach.Joined, Version: attach.Version, Segment: seg.Header().ID,
		Slot: store.Slot(), Generation: generation}, &answer))
	n.client, err = call.Open(seg, store.Slot(), bell, own.Spin.Load(), func(e call.Epoch) { n.told <- e })
	check(err)
	t.Cleanup(func() { n.client.Close(ltdb.ErrClosed) })
	n.db, err = store.Database(ctx, "db", ltdb.KV, ltdb.DatabaseOptions{})
	check(err)
}

// appended is a request that appends one byte to a record.
func (n *node) appended(key string) *wire.Message {
	return &wire.Message{Op: wire.ReqConditionalAppend, DBID: n.db.ID(), Cond: uint32(ltdb.Always), Key: []byte(key),
		Data: []byte("x"), Timeout: call.NoLimit}
}

// A call is abandoned at a dispatcher that has it, and not before: then it has not
// run, and will not.
func TestAbandonedBehindTheCall(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	n.end()
	ended := make(chan bool, 1)
	steps, err := n.client.Begin(n.appended("k"), func(end *call.Pending) { ended <- end.Abandoned })
	if err != nil {
		t.Fatal(err)
	}
	if steps.Abandon() {
		t.Error("it is abandoned at a dispatcher that has never heard of it")
	}
	if err := steps.Send(ctx); err != nil {
		t.Fatal(err)
	}
	if !steps.Abandon() {
		t.Error("it is not abandoned when the dispatcher has it")
	}
	n.start() // which asks for it again, and has it abandoned again
	go steps.Linger()
	var abandoned bool
	select {
	case abandoned = <-ended:
	case <-ctx.Done():
		t.Fatal("the call does not end")
	}
	v, err := n.db.Fetch(ctx, []byte("k"))
	if abandoned != errors.Is(err, ltdb.ErrNotFound) {
		t.Errorf("abandoned: %v; the record is %q, %v", abandoned, v, err)
	}
}

// Calls that are under way when the dispatcher ends are asked again at the next one,
// and run once; the client is told of the recovery before they return.
func TestAskedAgainRunOnce(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	const calls = 20
	for i := range 3 {
		n.end()
		errs := make(chan error, calls)
		for range calls {
			go func() {
				p, err := n.client.Call(ctx, n.appended("k"), nil)
				if err == nil && p.Status != wire.OK {
					err = errors.New(p.Status.String())
				}
				n.client.Done(p)
				errs <- err
			}()
		}
		n.start()
		for has := 0; has < (i+1)*calls && ctx.Err() == nil; {
			v, _ := n.db.Fetch(ctx, []byte("k")) // polls: all have run
			has = len(v)
		}
		for range 1000 { // in which who did not wait for the telling would return
			runtime.Gosched()
		}
		if len(errs) > 0 {
			t.Error("a call returns before the client is told of the recovery")
		}
		<-n.told
		for range calls {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
	if v, err := n.db.Fetch(ctx, []byte("k")); err != nil || len(v) != 3*calls {
		t.Errorf("%d of %d appends are there, %v", len(v), 3*calls, err)
	}
	if n.client.Count() < 3*calls {
		t.Error("calls are not counted")
	}
}

// Who ends the calls says why, once: those under way and those to come return that.
func TestEnd(t *testing.T) {
	n := startNode(t)
	ctx := minute(t)
	n.end()
	under := make(chan error, 1)
	go func() { under <- n.client.Nop(ctx) }()
	for n.client.Count() == 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond) // polls: the call is under way
	}
	why := errors.New("why")
	n.client.End(why)
	n.client.End(errors.New("too late"))
	<-n.client.Ended()
	for _, err := range []error{<-under, n.client.Nop(ctx)} {
		if !errors.Is(err, why) {
			t.Errorf("a call says %v", err)
		}
	}
}
