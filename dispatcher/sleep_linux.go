package dispatcher

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/protocol/link"
)

// pollSet is what the dispatcher sleeps on: the doorbell, the socket, and the
// connections.
type pollSet struct {
	fds   []unix.PollFd
	out   []int
	stale bool
}

func (p *pollSet) fill(d *Dispatcher) {
	if !p.stale && len(p.fds) > 0 {
		return
	}
	p.stale = false
	p.fds = append(p.fds[:0], unix.PollFd{Fd: int32(d.door.FD()), Events: unix.POLLIN}, unix.PollFd{Fd: int32(d.listener.FD()), Events: unix.POLLIN})
	for _, q := range d.peers {
		p.fds = append(p.fds, unix.PollFd{Fd: int32(q.FD()), Events: unix.POLLIN})
	}
}

// ready polls and returns the descriptors that want something, but for the
// doorbell's. Others may have been closed when their turn comes.
func (p *pollSet) ready(d *Dispatcher, wait time.Duration) []int {
	p.fill(d)
	ts := unix.NsecToTimespec(int64(wait))
	n, err := unix.Ppoll(p.fds, &ts, nil)
	p.out = p.out[:0]
	if err != nil || n == 0 {
		return nil
	}
	for i := 1; i < len(p.fds); i++ {
		if p.fds[i].Revents != 0 {
			p.out = append(p.out, int(p.fds[i].Fd))
		}
	}
	return p.out
}

// sleep until somebody rings, comes, or goes, or there is something to do.
func (d *Dispatcher) sleep() error {
	d.bell.Arm()
	defer d.bell.Disarm()
	// Who changed something before we were armed did not ring: look again.
	for _, c := range d.clients {
		if c.in.Ready() && !c.broken && len(c.queue) < maxQueue {
			return nil
		}
	}
	rung := d.Stats.Rung
	d.d.Rung(d.rung)
	if d.Stats.Rung != rung || d.stopping.Load() {
		return nil
	}
	wait := min(d.next, d.scanAt) - d.time()
	switch {
	case d.waiting(): // nobody rings when there is room again
		wait = min(wait, 50*link.Microsecond<<min(d.stuck/16, 9))
		d.stuck++
	case d.passing || d.d.Again():
		wait = min(wait, link.Millisecond)
	}
	if wait <= 0 {
		return nil
	}
	d.Stats.Sleeps++
	d.polls.fill(d)
	ts := unix.NsecToTimespec(int64(wait))
	if n, err := unix.Ppoll(d.polls.fds, &ts, nil); err != nil && err != unix.EINTR {
		return fmt.Errorf("dispatcher: poll: %w", err)
	} else if n > 0 {
		d.socketsAt = 0
	}
	return nil
}

// waiting reports whether a client's ring has no room for its replies.
func (d *Dispatcher) waiting() bool {
	for _, c := range d.clients {
		if len(c.queue) > 0 {
			return true
		}
	}
	return false
}
