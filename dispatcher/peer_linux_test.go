package dispatcher

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/ltdb"
)

// The kernel names the process of a client by its socket, also after the socket's end
// and until the client is gone; and nobody for another tenant of the slot.
func TestDialled(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := Open(ctx, Options{
		Dir:   filepath.Join(testenv.ShmDir(t), "v1"),
		Store: ltdb.Options{Create: true, Config: ltdb.Config{Size: 16 << 20, Slots: 4}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	attached := make(chan *mainz.Client, 1)
	go func() {
		c, err := mainz.Attach(ctx, d.opts.Dir)
		if err != nil {
			t.Error(err)
		}
		attached <- c
	}()
	var client *mainz.Client
	for client == nil {
		d.turn()
		select {
		case client = <-attached:
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		default:
		}
		if t.Failed() {
			return
		}
	}
	if len(d.clients) != 1 {
		t.Fatalf("%d clients", len(d.clients))
	}
	c := d.clients[0]
	names := func(when string) {
		t.Helper()
		fd, pid, ok := d.dialled(c.slot, uint64(c.generation))
		if !ok || pid != os.Getpid() || unix.PidfdSendSignal(fd, 0, nil, 0) != nil {
			t.Fatalf("%s: process %d, descriptor %d, %v", when, pid, fd, ok)
		}
		_ = unix.Close(fd)
	}
	names("attached")
	for _, who := range []struct {
		slot       uint32
		generation uint64
	}{{c.slot, uint64(c.generation) + 1}, {c.slot + 1, uint64(c.generation)}} {
		if _, _, ok := d.dialled(who.slot, who.generation); ok {
			t.Errorf("somebody has dialled as generation %d of slot %d", who.generation, who.slot)
		}
	}
	for _, p := range d.conns {
		if p.Peer == c.peer {
			d.hungUp(p)
			break
		}
	}
	names("the socket has ended")
	closed := make(chan error, 1)
	go func() { closed <- client.Close() }()
	for len(d.clients) > 0 {
		d.turn()
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
	}
	if _, _, ok := d.dialled(c.slot, uint64(c.generation)); ok || c.peer != nil && c.peer.FD() >= 0 {
		t.Errorf("the client is gone and its socket is open")
	}
	if err := errors.Join(<-closed, ctx.Err()); err != nil {
		t.Error(err)
	}
}
