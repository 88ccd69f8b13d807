package mainz_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/daemon"
)

// exampleNode starts a node, as mainzd does, and attaches to it. A program would
// just call mainz.Attach.
func exampleNode(opts ...mainz.Option) (c *mainz.Client, end func()) {
	dir, err := os.MkdirTemp("/dev/shm", "mainz-example-*")
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	node := filepath.Join(dir, "v1")
	go func() {
		done <- daemon.Run(ctx, []string{"--config", os.DevNull, "--dir", node, "--size", "32MiB", "--log-level",
			"error"}, io.Discard, func() {
			close(ready)
		})
	}()
	select {
	case <-ready:
	case err := <-done:
		log.Fatal(err)
	}
	if c, err = mainz.Attach(ctx, node, opts...); err != nil {
		log.Fatal(err)
	}
	return c, func() {
		err := c.Close()
		stop()
		if err = errors.Join(err, <-done, os.RemoveAll(dir)); err != nil {
			log.Fatal(err)
		}
	}
}

func exampleDB(mode mainz.Mode, opts ...mainz.Option) (db *mainz.DB, end func()) {
	c, end := exampleNode(opts...)
	db, err := c.Open(context.Background(), "example", mode)
	if err != nil {
		log.Fatal(err)
	}
	return db, end
}

// check ends the program on an error. Real ones do better.
func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// The program of README.md: it counts its own runs, and however many of them are
// started at once, none is lost. It needs a node.
func Example() {
	ctx := context.Background()
	node, err := mainz.Attach(ctx, "") // the node in $MAINZ_DIR
	if err != nil {
		log.Fatal(err)
	}
	db, err := node.Open(ctx, "visits", mainz.KV)
	if err != nil {
		log.Fatal(err)
	}
	rec, err := db.FetchLocked(ctx, []byte("door")) // ours until StoreUnlock, or until we die
	if err != nil {
		log.Fatal(err)
	}
	visits := append(rec.Data(), '|')
	if err := rec.StoreUnlock(visits); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("visit %d: %s\n", len(visits), visits)
	if err := node.Close(); err != nil {
		log.Fatal(err)
	}
}

func ExampleAttach() {
	_, err := mainz.Attach(context.Background(), "/nowhere")
	fmt.Println(errors.Is(err, mainz.ErrNotRunning))
	// Output: true
}

func ExampleClient_Open() {
	c, end := exampleNode()
	defer end()
	db, err := c.Open(context.Background(), "locking", mainz.KV)
	check(err)
	fmt.Println(db.Name(), db.Mode())
	_, err = c.Open(context.Background(), "locking", mainz.Pieces)
	fmt.Println(errors.Is(err, mainz.ErrMode))
	// Output:
	// locking kv
	// true
}

func ExampleDB_Fetch() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	_, err := db.Fetch(ctx, []byte("door"))
	fmt.Println(errors.Is(err, mainz.ErrNotFound))
	check(db.Store(ctx, []byte("door"), []byte("open")))
	v, err := db.Fetch(ctx, []byte("door"))
	check(err)
	fmt.Printf("%s\n", v)
	// Output:
	// true
	// open
}

func ExampleDB_AppendFetch() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	check(db.Store(ctx, []byte("door"), []byte("open")))
	buf := make([]byte, 0, 64) // used again and again
	buf, err := db.AppendFetch(ctx, buf[:0], []byte("door"))
	check(err)
	fmt.Printf("%s\n", buf)
	// Output: open
}

func ExampleDB_FetchBatch() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	check(db.Store(ctx, []byte("a"), []byte("1")))
	b := mainz.Batch{Keys: [][]byte{[]byte("a"), []byte("b")}}
	n, err := db.FetchBatch(ctx, &b)
	check(err)
	fmt.Printf("%d found: %s, %v\n", n, b.Value[0], errors.Is(b.Err[1], mainz.ErrNotFound))
	// Output: 1 found: 1, true
}

func ExampleDB_FetchLocked() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	rec, err := db.FetchLocked(ctx, []byte("visits")) // waits while others have it
	check(err)
	defer rec.Unlock() // harmless after StoreUnlock
	if rec.OwnerDied() {
		fmt.Println("the last holder died; what the value guards may be half done")
	}
	check(rec.StoreUnlock(append(rec.Data(), '|')))
	v, err := db.Fetch(ctx, []byte("visits"))
	check(err)
	fmt.Printf("%s\n", v)
	// Output: |
}

func ExampleDB_TryFetchLocked() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	rec, err := db.TryFetchLocked(ctx, []byte("door"))
	check(err)
	_, err = db.TryFetchLocked(ctx, []byte("door"))
	fmt.Println(errors.Is(err, mainz.ErrLocked))
	check(rec.Unlock())
	fmt.Println(errors.Is(rec.Unlock(), mainz.ErrNotLocked))
	// Output:
	// true
	// true
}

func ExampleDB_Store() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	rec, err := db.FetchLocked(ctx, []byte("door"))
	check(err)
	err = db.Store(ctx, []byte("door"), []byte("open")) // waits for the lock
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	check(rec.Unlock())
	// Output: true
}

func ExampleDB_Delete() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	check(db.Store(ctx, []byte("door"), []byte("open")))
	check(db.Delete(ctx, []byte("door")))
	fmt.Println(errors.Is(db.Delete(ctx, []byte("door")), mainz.ErrNotFound))
	// Output: true
}

func ExampleDB_ConditionalAppend() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	_, err := db.ConditionalAppend(ctx, mainz.IfAbsent, []byte("leader"), []byte("me"))
	check(err)
	_, err = db.ConditionalAppend(ctx, mainz.IfAbsent, []byte("leader"), []byte("you"))
	fmt.Println(errors.Is(err, mainz.ErrCondition))
	// Output: true
}

func ExampleDB_ConditionalAppendWait() {
	db, end := exampleDB(mainz.Pieces)
	defer end()
	ctx := context.Background()
	file := []byte("file")
	mine, err := db.ConditionalAppend(ctx, mainz.IfAbsent, file, []byte("exclusive"))
	check(err)
	opened := make(chan error)
	go func() {
		_, err := db.ConditionalAppendWait(ctx, mainz.IfAbsent, file, []byte("next"))
		opened <- err
	}()
	check(db.RemoveAndTrigger(ctx, file, mine)) // it goes with this process as well
	check(<-opened)
	v, err := db.Fetch(ctx, file)
	check(err)
	fmt.Printf("%s\n", v)
	// Output: next
}

func ExampleDB_RemoveAndTrigger() {
	db, end := exampleDB(mainz.Pieces)
	defer end()
	ctx := context.Background()
	p, err := db.ConditionalAppend(ctx, mainz.Always, []byte("file"), []byte("reader"))
	check(err)
	check(db.RemoveAndTrigger(ctx, []byte("file"), p))
	fmt.Println(errors.Is(db.RemoveAndTrigger(ctx, []byte("file"), p), mainz.ErrNotFound))
	// Output: true
}

func ExampleDB_RemoveMatching() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	check(db.Store(ctx, []byte("who"), []byte("anne bert ")))
	check(db.RemoveMatching(ctx, mainz.Always, []byte("who"), []byte("anne ")))
	v, err := db.Fetch(ctx, []byte("who"))
	check(err)
	fmt.Printf("%s\n", v)
	// Output: bert
}

func ExampleDB_Watch() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	for event, err := range db.Watch(ctx, []byte("door")) {
		check(err)
		if event == mainz.Armed { // nothing later is missed
			check(db.Store(ctx, []byte("door"), []byte("open")))
			continue
		}
		v, err := db.Fetch(ctx, []byte("door"))
		check(err)
		fmt.Printf("%s\n", v)
		break
	}
	// Output: open
}

func ExampleDB_Traverse() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	check(db.Store(ctx, []byte("door"), []byte("open")))
	for e, err := range db.Traverse(ctx) {
		check(err)
		fmt.Printf("%s=%s, changed %d times\n", e.Key, e.Data, e.RSN)
	}
	// Output: door=open, changed 1 times
}

func ExampleDB_Handle() {
	db, end := exampleDB(mainz.KV)
	defer end()
	ctx := context.Background()
	h, err := db.Handle() // of one goroutine
	check(err)
	defer h.Close()
	check(h.Store(ctx, []byte("door"), []byte("open")))
	v, err := h.Fetch(ctx, []byte("door"))
	check(err)
	fmt.Printf("%s\n", v)
	// Output: open
}

func ExampleWithCondition() {
	even := mainz.Condition{ID: 16, Name: "even", Version: 1,
		Holds: func(rec mainz.Snapshot, _ []byte) bool { return len(rec.Data())%2 == 0 }}
	db, end := exampleDB(mainz.KV, mainz.WithCondition(even))
	defer end()
	ctx := context.Background()
	_, err := db.ConditionalAppend(ctx, 16, []byte("k"), []byte("x"))
	check(err)
	_, err = db.ConditionalAppend(ctx, 16, []byte("k"), []byte("x"))
	fmt.Println(errors.Is(err, mainz.ErrCondition))
	// Output: true
}

func ExampleReadOnly() {
	c, end := exampleNode()
	defer end()
	ctx := context.Background()
	db, err := c.Open(ctx, "example", mainz.KV)
	check(err)
	check(db.Store(ctx, []byte("door"), []byte("open")))
	o, err := mainz.Attach(ctx, c.Dir(), mainz.ReadOnly())
	check(err)
	defer o.Close()
	seen, err := o.Open(ctx, "example", mainz.KV)
	check(err)
	v, err := seen.Fetch(ctx, []byte("door"))
	check(err)
	fmt.Printf("%s\n", v)
	// Output: open
}

func ExampleClient_Ping() {
	c, end := exampleNode(mainz.ThroughRing()) // so that nothing goes by bypass
	defer end()
	check(c.Ping(context.Background()))
	fmt.Println(c.Stats().Ring, "call")
	// Output: 1 call
}

func ExampleClient_Stats() {
	c, end := exampleNode()
	defer end()
	db, err := c.Open(context.Background(), "example", mainz.KV)
	check(err)
	check(db.Store(context.Background(), []byte("door"), []byte("open")))
	fmt.Println(c.Stats().Stores, c.Stats().Ring)
	// Output: 1 0
}

func ExampleWithEvents() {
	lost := func(e mainz.Epoch) {
		if !e.Kept || e.Left != 0 {
			log.Printf("epoch %d of nodes %v: records may be gone", e.Number, e.Members)
		}
	}
	c, end := exampleNode(mainz.WithEvents(lost))
	defer end()
	check(c.Ping(context.Background())) // told by now of what has happened before
	// Output:
}

func ExampleClear() {
	c, end := exampleNode()
	defer end()
	ctx := context.Background()
	db, err := c.Open(ctx, "example", mainz.KV)
	check(err)
	check(db.Store(ctx, []byte("door"), []byte("open")))
	check(c.Close()) // or it crashes
	c, err = mainz.Attach(ctx, c.Dir())
	check(err)
	defer c.Close()
	db, err = c.Open(ctx, "example", mainz.KV, mainz.Clear(), mainz.LockTimeout(time.Second))
	check(err)
	_, err = db.Fetch(ctx, []byte("door"))
	fmt.Println(errors.Is(err, mainz.ErrNotFound))
	// Output: true
}

func ExampleAppendShareMode() {
	db, end := exampleDB(mainz.Pieces)
	defer end()
	ctx := context.Background()
	reader := mainz.AppendShareMode(nil, mainz.ShareRead, mainz.ShareRead, [16]byte{1}) // lets others read
	writer := mainz.AppendShareMode(nil, mainz.ShareWrite, mainz.ShareRead, [16]byte{2})
	_, err := db.ConditionalAppend(ctx, mainz.ShareModes, []byte("file"), reader)
	check(err)
	_, err = db.ConditionalAppend(ctx, mainz.ShareModes, []byte("file"), writer)
	fmt.Println(errors.Is(err, mainz.ErrCondition))
	// Output: true
}

func ExampleResupply() {
	c, end := exampleNode()
	defer end()
	ctx := context.Background()
	db, err := c.Open(ctx, "example", mainz.KV,
		mainz.Resupply(func(_ context.Context, put func(key, data []byte) error) error {
			return put([]byte("door"), []byte("open")) // from what the program has kept
		}))
	check(err)
	v, err := db.Fetch(ctx, []byte("door"))
	check(err)
	fmt.Printf("%s\n", v)
	// Output: open
}
