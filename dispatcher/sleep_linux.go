package dispatcher

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/protocol/link"
)

// pollSet is what the dispatcher sleeps on: the doorbell, the socket, and the
// connections.
type pollSet struct {
	fds   []unix.PollFd
	conns []*conn // of fds[2:]
	out   []*conn
	stale bool
}

func (p *pollSet) fill(d *Dispatcher) {
	if p.stale || len(p.fds) == 0 {
		p.stale = false
		p.fds = append(p.fds[:0], unix.PollFd{Fd: int32(d.door.FD()), Events: unix.POLLIN},
			unix.PollFd{Events: unix.POLLIN})
		p.conns = append(p.conns[:0], d.conns...)
		for _, q := range d.conns {
			p.fds = append(p.fds, unix.PollFd{Fd: int32(q.FD()), Events: unix.POLLIN})
		}
	}
	p.fds[1].Fd = int32(d.listener.FD())
	if d.now < d.acceptAt {
		p.fds[1].Fd = -1 // not now
	}
}

// ready reports whether somebody wants to come in, and which connections want
// something. Some of them may have been closed when their turn comes.
func (p *pollSet) ready(d *Dispatcher) (come bool, heard []*conn) {
	p.fill(d)
	p.out = p.out[:0]
	var none unix.Timespec
	n, err := unix.Ppoll(p.fds, &none, nil)
	if err != nil && err != unix.EINTR {
		d.pollLog.log(d, "the sockets can't be looked at", err)
		d.socketsAt = d.now + retryEvery
	}
	if err != nil || n == 0 {
		return false, nil
	}
	for i, q := range p.conns {
		if p.fds[2+i].Revents != 0 {
			p.out = append(p.out, q)
		}
	}
	return p.fds[1].Revents != 0, p.out
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
	d.keeper.Rung(d.rung)
	if d.Stats.Rung != rung || d.stopping.Load() {
		return nil
	}
	wait := min(d.next, d.scanAt) - d.readClock()
	if d.opts.AliveEvery > 0 {
		wait = min(wait, d.aliveAt-d.now)
	}
	switch {
	case d.waiting(): // nobody rings when there is room again
		wait = min(wait, 50*link.Microsecond<<min(d.stuck/16, 9))
		d.stuck++
	case d.passing || d.keeper.Again():
		wait = min(wait, link.Millisecond)
	}
	if wait <= 0 {
		return nil
	}
	d.Stats.Sleeps++
	d.polls.fill(d)
	ts := unix.NsecToTimespec(int64(wait))
	switch n, err := unix.Ppoll(d.polls.fds, &ts, nil); {
	case err != nil && err != unix.EINTR:
		// No memory, or a limit that was lowered. Calls are served all the
		// same, though later than if their bell could be heard.
		d.pollLog.log(d, "sleep", err)
		time.Sleep(time.Millisecond)
	case n > 0:
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
