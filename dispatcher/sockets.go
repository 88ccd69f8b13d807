package dispatcher

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/shm"
)

// peer is a connection: of a client, or of who wants to become one.
type peer struct {
	*attach.Peer
	since   protocol.Instant // accepted
	greeted bool
	joined  bool // it is a client's: its slot is served
}

// Limits of the socket.
const (
	acceptBudget    = 32               // connections that are taken at a time
	moreUnfinished  = 128              // that may be on their way to become clients, besides one for each slot
	unfinishedLimit = 60 * link.Second // that this may take
)

// quiet lets an error that comes back at every turn be logged once in complainFor.
type quiet struct {
	until protocol.Instant
	n     int // that were not logged
}

func (q *quiet) log(d *Dispatcher, message string, err error) {
	if d.now < q.until {
		q.n++
		return
	}
	d.log.Error(message, "error", err, "times_before", q.n)
	q.until, q.n = d.now+complainFor, 0
}

// sockets lets clients in and looks which are gone.
func (d *Dispatcher) sockets() bool {
	d.socketsAt = d.now + socketsEvery
	come, heard := d.polls.ready(d)
	for _, p := range heard {
		if p.FD() >= 0 { // else it was closed because of one before it
			d.hear(p)
		}
	}
	if come {
		d.accept()
	}
	d.dropLate()
	return come || len(heard) > 0
}

// accept takes those who have come, in their order. The kernel keeps the others in
// its queue until the next turn.
func (d *Dispatcher) accept() {
	for range acceptBudget {
		p, err := d.listener.Accept()
		switch {
		case errors.Is(err, attach.ErrExhausted):
			// Who came has been told so, if the listener could. Its own
			// descriptor stays ready for as long as somebody waits: looking at
			// it at every turn would be a loop that does nothing else.
			d.acceptLog.log(d, "a client could not be let in", err)
			if !errors.Is(err, attach.ErrRefused) {
				d.acceptAt = d.now + retryEvery
				return
			}
			continue
		case err != nil:
			d.log.Warn("refused", "error", err)
			continue
		case p == nil:
			return
		}
		if d.unfinished >= int(d.seg.Slots())+moreUnfinished {
			d.closePeer(d.worst().Peer)
		}
		d.peers = append(d.peers, &peer{Peer: p, since: d.now})
		d.unfinished++
		d.polls.stale = true
	}
}

// worst is the peer that has to go if there are too many that are not clients yet:
// the oldest of the user that has most of them. So who opens connections and says
// nothing drives out himself, and honest clients have all the time that it takes
// him to open as many again.
func (d *Dispatcher) worst() *peer {
	of, most := map[uint32]int{}, uint32(0)
	for _, p := range d.peers {
		if !p.joined {
			of[p.Cred.UID]++
		}
	}
	for _, p := range d.peers { // not over the map, which has no order
		if of[p.Cred.UID] > of[most] {
			most = p.Cred.UID
		}
	}
	for _, p := range d.peers {
		if !p.joined && p.Cred.UID == most {
			return p
		}
	}
	panic(fmt.Sprintf("dispatcher: %d unfinished connections, and none among %d", d.unfinished, len(d.peers)))
}

// dropLate ends connections that did not become a client's in time.
func (d *Dispatcher) dropLate() {
	if d.unfinished == 0 {
		return
	}
	for _, p := range d.peers { // the oldest first
		if !p.joined {
			if d.now-p.since > unfinishedLimit {
				_ = p.Refuse(attach.CodeOther, "attaching took too long; attach again")
				d.closePeer(p.Peer)
			}
			return
		}
	}
}

// hear takes a message of a connection, or its end.
func (d *Dispatcher) hear(p *peer) {
	var m attach.Message
	got, err := p.Receive(&m)
	switch {
	case err != nil:
		if err != io.EOF {
			d.log.Warn("connection", "error", err)
		}
		if p.joined {
			d.hungUp(p)
		} else {
			d.closePeer(p.Peer)
		}
		d.scanAt = 0 // it may be dead
	case got:
		if err := d.talk(p, &m); err != nil {
			d.log.Warn("connection", "error", err)
			d.closePeer(p.Peer)
		}
	}
}

// errTurn: a peer that says what it should not is cut off, so that none keeps the
// loop busy.
var errTurn = errors.New("a message came that can't come now")

func (d *Dispatcher) talk(p *peer, m *attach.Message) error {
	switch {
	case m.Kind == attach.Hello && !p.greeted:
		return d.hello(p, m)
	case m.Kind == attach.Joined && p.greeted && !p.joined:
		return d.joined(p, m)
	}
	return errors.Join(errTurn, p.Refuse(attach.CodeOther, "this message can't come now"))
}

func (d *Dispatcher) hello(p *peer, m *attach.Message) error {
	if m.Version != attach.Version {
		return p.Refuse(attach.CodeIncompatible, fmt.Sprintf("the dispatcher speaks version %d, the client %d; upgrade the older one", attach.Version, m.Version))
	}
	known, err := d.d.Store().Conditions()
	if err != nil && !errors.Is(err, shm.ErrCorrupt) {
		return err
	}
	w := attach.Message{Kind: attach.Welcome, Version: attach.Version, Name: d.seg.Header().Cluster(), PNN: d.seg.Header().PNN}
	for _, c := range known {
		w.Conditions = append(w.Conditions, attach.Condition{ID: uint32(c.ID), Version: c.Version, Name: c.Name})
	}
	for _, c := range m.Conditions {
		if i := slices.IndexFunc(w.Conditions, func(k attach.Condition) bool { return k.ID == c.ID }); i >= 0 && w.Conditions[i] != c {
			k := w.Conditions[i]
			return p.Refuse(attach.CodeIncompatible, fmt.Sprintf("condition %d is %q version %d at this node and %q version %d at the client; use one version everywhere", c.ID, k.Name, k.Version, c.Name, c.Version))
		}
	}
	p.greeted = true
	return p.Send(&w)
}

func (d *Dispatcher) joined(p *peer, m *attach.Message) error {
	if !d.store.alive(m.Slot, m.Generation) {
		return p.Refuse(attach.CodeOther, fmt.Sprintf("nobody of generation %d is in slot %d; attach again", m.Generation, m.Slot))
	}
	// If the kernel knows who it is, it must be the slot's client.
	if pid := d.seg.Slot(m.Slot).PID.Load(); p.Cred.PID != 0 && d.seg.Slot(m.Slot).Place.Load() == d.seg.Slot(shm.DispatcherSlot).Place.Load() && pid != uint32(p.Cred.PID) {
		return p.Refuse(attach.CodePermission, fmt.Sprintf("slot %d is process %d's, not process %d's", m.Slot, pid, p.Cred.PID))
	}
	if old := d.bySlot[m.Slot]; old != nil {
		if old.generation == m.Generation {
			return p.Refuse(attach.CodeOther, fmt.Sprintf("slot %d is attached already", m.Slot))
		}
		d.gone(old)
	}
	c, err := d.serve(m.Slot, m.Generation, false)
	if err != nil {
		return err
	}
	c.peer, p.joined = p.Peer, true
	d.unfinished--
	d.Stats.Attached++
	d.log.Debug("client attached", "slot", m.Slot, "name", d.seg.SlotName(m.Slot))
	return p.Send(&attach.Message{Kind: attach.Ready, Version: attach.Version, Slot: m.Slot, Generation: m.Generation})
}

// dialled is ltdb.Options.Peer: whom the kernel names for the socket of a slot's
// client. The client of a dispatcher before this one has none here.
func (d *Dispatcher) dialled(slot uint32, generation uint64) (pidfd, pid int, ok bool) {
	c := d.bySlot[slot]
	if c == nil || c.peer == nil || c.generation != uint32(generation) {
		return -1, 0, false
	}
	pidfd, ok = c.peer.Process()
	return pidfd, int(c.peer.Cred.PID), ok
}

// hungUp listens no more to a client's connection. It stays open until the client is
// gone: until then the kernel tells by it who that was.
func (d *Dispatcher) hungUp(p *peer) {
	d.peers = slices.DeleteFunc(d.peers, func(q *peer) bool { return q == p })
	d.polls.stale = true
}

func (d *Dispatcher) closePeer(p *attach.Peer) {
	_ = p.Close()
	d.peers = slices.DeleteFunc(d.peers, func(q *peer) bool {
		if q.Peer == p && !q.joined {
			d.unfinished--
		}
		return q.Peer == p
	})
	for _, c := range d.clients {
		if c.peer == p {
			c.peer = nil
		}
	}
	d.polls.stale = true
}
