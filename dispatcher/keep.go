package dispatcher

import (
	"errors"
	"fmt"

	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/shm"
)

// What a node has besides its segment: the owner lock, the doorbell, the socket. Each
// may be deleted alone, by a cleaner of temporary files for example. The dispatcher
// owns the directory, so it makes them again; what it can't make it says.

// keepEvery is how often it looks.
const keepEvery = 500 * link.Millisecond

var errMoved = errors.New("the directory is not at its path any more, or another one is")

// ended is why the dispatcher can't go on: the segment is nobody's any more, or not
// the one in the directory.
func (d *Dispatcher) ended() error {
	if err := d.seg.Ended(); err != nil {
		return fmt.Errorf("dispatcher: %s: %w", d.opts.Dir, err)
	}
	return nil
}

// keep looks whether the files of the node are there, and makes again what is not.
func (d *Dispatcher) keep() {
	if d.now < d.keepAt || d.listener == nil {
		return
	}
	d.keepAt = d.now + max(keepEvery, protocol.Instant(d.opts.Store.LookEvery))
	if d.seg.Look() != nil {
		return // Run ends; nothing here is ours any more
	}
	// In another directory nothing is ours: its files may be another node's.
	ours := true
	d.again("", func() (bool, error) {
		if ours = d.keeper.OwnsDir(); !ours {
			return false, errMoved
		}
		return false, nil
	})
	if !ours {
		return
	}
	d.again("owner.lock", func() (bool, error) { return d.keeper.KeepOwner() })
	d.again("doorbell", func() (bool, error) { return d.door.Keep(shm.Config{Group: d.opts.Store.Config.Group}) })
	d.again(attach.SocketName, func() (bool, error) {
		if d.listener.InPlace() {
			return false, nil
		}
		l, err := attach.Listen(d.opts.Dir, d.opts.Store.Config.Group)
		if err != nil {
			return false, err
		}
		// Who had been let in stays; who waited to be dials again.
		err = d.listener.Close()
		d.listener = l
		d.polls.stale = true
		return true, err
	})
}

// again calls a function that makes a file again if it is not there, and logs what
// came of it, a failure once for as long as it lasts.
func (d *Dispatcher) again(name string, f func() (made bool, err error)) {
	made, err := f()
	switch {
	case err != nil && !d.lacks[name]:
		if d.lacks == nil {
			d.lacks = map[string]bool{}
		}
		d.lacks[name] = true
		d.log.Error("a file of the node is gone and can't be made again; put it right, or restart mainzd", "file",
			name, "dir", d.opts.Dir, "error", err)
	case err == nil && made:
		d.log.Warn("a file of the node was deleted or replaced; it was made again", "file", name, "dir", d.opts.Dir)
	}
	if err == nil {
		delete(d.lacks, name)
	}
}
