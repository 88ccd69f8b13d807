package mainztest

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/daemon"
)

// Node is a node inside of a test.
type Node struct {
	tb   testing.TB
	dir  string
	opts []daemon.Option
	stop context.CancelFunc
	done chan error
}

// limit is for what takes a moment, on a machine that is busy.
const limit = time.Minute

// Start makes a node, with the built-in conditions and those given. It ends with
// the test.
func Start(tb testing.TB, conditions ...mainz.Condition) *Node {
	tb.Helper()
	if runtime.GOOS != "linux" {
		tb.Skip("shared memory needs Linux")
	}
	base := "/dev/shm"
	if st, err := os.Stat(base); err != nil || !st.IsDir() {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "mainztest-*")
	if err != nil {
		tb.Fatal(err)
	}
	n := &Node{tb: tb, dir: filepath.Join(dir, "v1")}
	for _, c := range conditions {
		n.opts = append(n.opts, daemon.WithCondition(c))
	}
	tb.Cleanup(func() {
		n.end()
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	n.start()
	return n
}

func (n *Node) start() {
	n.tb.Helper()
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.done = stop, make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		n.done <- daemon.Run(ctx, []string{"--config", os.DevNull, "--dir", n.dir, "--size", "32MiB", "--slots", "32",
			"--log-level", "error"}, log{n.tb}, func() {
			close(ready)
		}, n.opts...)
	}()
	select {
	case <-ready:
	case err := <-n.done:
		n.stop = nil
		n.tb.Fatal(err)
	case <-time.After(limit):
		n.tb.Fatal("the node does not open")
	}
}

// end stops the dispatcher in order.
func (n *Node) end() {
	if n.stop == nil {
		return
	}
	n.stop()
	n.stop = nil
	if err := <-n.done; err != nil {
		n.tb.Error(err)
	}
}

// log is where the dispatcher's complaints go.
type log struct{ tb testing.TB }

func (l log) Write(b []byte) (int, error) {
	l.tb.Logf("%s", b)
	return len(b), nil
}

// Dir is the node's directory, for mainz.Attach.
func (n *Node) Dir() string { return n.dir }

// Restart ends the dispatcher and starts another one over the same segment.
// Clients stay attached.
func (n *Node) Restart() {
	n.tb.Helper()
	n.end()
	n.start()
}

// Attach attaches a client, which is closed with the test.
func (n *Node) Attach(opts ...mainz.Option) *mainz.Client {
	n.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := mainz.Attach(ctx, n.dir, opts...)
	if err != nil {
		n.tb.Fatal(err)
	}
	n.tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			n.tb.Error(err)
		}
	})
	return c
}
