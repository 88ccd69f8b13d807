package dispatcher

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/shm"
)

// conn is a connection: of a client, or of who wants to become one.
type conn struct {
	*attach.Peer
	since   protocol.Instant // accepted
	greeted bool
	joined  bool // it is a client's: its slot is served

	// A client that dials again, and by what it has to prove that: 0 if nothing.
	slot, generation, stretch uint32
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
		d.conns = append(d.conns, &conn{Peer: p, since: d.now})
		d.unfinished++
		d.polls.stale = true
	}
}

// worst is the connection that has to go if there are too many that are not clients yet:
// the oldest of the user that has most of them. So who opens connections and says
// nothing drives out himself, and honest clients have all the time that it takes
// him to open as many again.
func (d *Dispatcher) worst() *conn {
	of, most := map[uint32]int{}, uint32(0)
	for _, p := range d.conns {
		if !p.joined {
			of[p.Cred.UID]++
		}
	}
	for _, p := range d.conns { // not over the map, which has no order
		if of[p.Cred.UID] > of[most] {
			most = p.Cred.UID
		}
	}
	for _, p := range d.conns {
		if !p.joined && p.Cred.UID == most {
			return p
		}
	}
	panic(fmt.Sprintf("dispatcher: %d unfinished connections, and none among %d", d.unfinished, len(d.conns)))
}

// dropLate ends connections that did not become a client's in time.
func (d *Dispatcher) dropLate() {
	if d.unfinished == 0 {
		return
	}
	for _, p := range d.conns { // the oldest first
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
func (d *Dispatcher) hear(p *conn) {
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

// errTurn: a connection that says what it should not is cut off, so that none keeps the
// loop busy.
var errTurn = errors.New("a message came that can't come now")

func (d *Dispatcher) talk(p *conn, m *attach.Message) error {
	switch {
	case m.Kind == attach.Hello && !p.greeted:
		return d.hello(p, m)
	case m.Kind == attach.Joined && p.greeted && !p.joined:
		return d.joined(p, m)
	case m.Kind == attach.Again && p.greeted && !p.joined && p.stretch == 0:
		return d.dialsAgain(p, m)
	case m.Kind == attach.Proven && !p.joined && p.stretch != 0:
		return d.proven(p)
	}
	return errors.Join(errTurn, p.Refuse(attach.CodeOther, "this message can't come now"))
}

func (d *Dispatcher) hello(p *conn, m *attach.Message) error {
	if m.Version != attach.Version {
		return p.Refuse(attach.CodeIncompatible,
			fmt.Sprintf("the dispatcher speaks version %d, the client %d; upgrade the older one", attach.Version,
				m.Version))
	}
	known, err := d.keeper.Store().Conditions()
	if err != nil && !errors.Is(err, shm.ErrCorrupt) {
		return err
	}
	w := attach.Message{Kind: attach.Welcome, Version: attach.Version, Name: d.seg.Header().Cluster(),
		PNN: d.seg.Header().PNN}
	for _, c := range known {
		w.Conditions = append(w.Conditions, attach.Condition{ID: uint32(c.ID), Version: c.Version, Name: c.Name})
	}
	for _, c := range m.Conditions {
		if i := slices.IndexFunc(w.Conditions, func(k attach.Condition) bool { return k.ID == c.ID }); i >= 0 &&
			w.Conditions[i] != c {
			k := w.Conditions[i]
			return p.Refuse(attach.CodeIncompatible,
				fmt.Sprintf("condition %d is %q version %d at this node and %q version %d at the client; use one version everywhere", c.ID, k.Name, k.Version, c.Name, c.Version))
		}
	}
	p.greeted = true
	return p.Send(&w)
}

func (d *Dispatcher) joined(p *conn, m *attach.Message) error {
	if err := d.itsSegment(m); err != nil {
		return p.Refuse(attach.CodeOther, err.Error())
	}
	if !d.store.alive(m.Slot, m.Generation) {
		return p.Refuse(attach.CodeOther, fmt.Sprintf("nobody of generation %d is in slot %d; attach again",
			m.Generation, m.Slot))
	}
	// If the kernel knows who it is, it must be the slot's client.
	if !d.itsPID(p, m.Slot) {
		return p.Refuse(attach.CodePermission,
			fmt.Sprintf("slot %d is process %d's, not process %d's", m.Slot, d.seg.Slot(m.Slot).PID.Load(), p.Cred.PID))
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

// dialsAgain takes the connection of a client that is served already: it had one with
// the dispatcher before this one. Its rings stay as they are.
//
// Whoever is of the group can say so of any slot, and can write his PID into it. But
// the lock of the slot, which the kernel keeps, is the tenant's: who can stretch it by
// a number that is chosen here is the tenant. So nobody takes another one's place.
func (d *Dispatcher) dialsAgain(p *conn, m *attach.Message) error {
	if err := d.itsSegment(m); err != nil {
		return p.Refuse(attach.CodeOther, err.Error())
	}
	if _, err := d.served(p, m.Slot, m.Generation); err != nil {
		return p.Refuse(attach.CodeOther, err.Error())
	}
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	p.slot, p.generation = m.Slot, m.Generation
	p.stretch = binary.LittleEndian.Uint32(b[:])%shm.MaxStretch + 1
	return p.Send(&attach.Message{Kind: attach.Prove, Version: attach.Version, Stretch: p.stretch})
}

// served returns the client that a connection says it is, or why it can't be.
func (d *Dispatcher) served(p *conn, slot, generation uint32) (*client, error) {
	c := d.bySlot[slot]
	switch {
	case c == nil || c.generation != generation || !d.store.alive(slot, generation):
		return nil, fmt.Errorf("nobody of generation %d is served in slot %d; attach again", generation, slot)
	case !d.itsPID(p, slot):
		return nil, fmt.Errorf("slot %d is process %d's, not process %d's", slot, d.seg.Slot(slot).PID.Load(),
			p.Cred.PID)
	case c.peer != nil && slices.ContainsFunc(d.conns, func(q *conn) bool { return q.Peer == c.peer }):
		return nil, fmt.Errorf("slot %d is attached already", slot)
	}
	return c, nil
}

// proven ends what dialsAgain has begun.
func (d *Dispatcher) proven(p *conn) error {
	stretch := p.stretch
	p.stretch = 0
	c, err := d.served(p, p.slot, p.generation)
	if err != nil {
		return p.Refuse(attach.CodeOther, err.Error())
	}
	if !d.seg.Stretched(p.slot, uint64(p.generation), stretch) {
		return p.Refuse(attach.CodePermission,
			fmt.Sprintf("the lock of slot %d in the segment's file is another process's", p.slot))
	}
	if c.peer != nil {
		d.closePeer(c.peer) // its client gave it up before our answer came
	}
	c.peer, p.joined = p.Peer, true
	d.unfinished--
	d.log.Debug("client has dialled again", "slot", c.slot, "name", d.seg.SlotName(c.slot))
	return p.Send(&attach.Message{Kind: attach.Ready, Version: attach.Version, Slot: c.slot, Generation: c.generation})
}

// itsSegment is an error if a client is in another segment than this node's: one that
// was replaced, or one that its mount namespace shows in this place. Slots and their
// generations begin anew in each, so they don't tell.
func (d *Dispatcher) itsSegment(m *attach.Message) error {
	if m.Segment != d.seg.Header().ID {
		return fmt.Errorf("the segment of this node is another one than the client's (%x and %x): it was replaced, or the client sees another directory; attach again where both are the same", d.seg.Header().ID[:4], m.Segment[:4])
	}
	return nil
}

// itsPID reports whether the slot has the PID that the kernel tells of a connection;
// true as well if these can't be compared, as they are of different namespaces.
func (d *Dispatcher) itsPID(p *conn, slot uint32) bool {
	sl := d.seg.Slot(slot)
	return p.Cred.PID == 0 || sl.Place.Load() != d.seg.Slot(shm.DispatcherSlot).Place.Load() ||
		sl.PID.Load() == uint32(p.Cred.PID)
}

// dialled is ltdb.Options.Peer: whom the kernel names for the socket of a slot's
// client. The client of a dispatcher before this one has none here until it has dialled
// again.
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
func (d *Dispatcher) hungUp(p *conn) {
	d.conns = slices.DeleteFunc(d.conns, func(q *conn) bool { return q == p })
	d.polls.stale = true
}

func (d *Dispatcher) closePeer(p *attach.Peer) {
	_ = p.Close()
	d.conns = slices.DeleteFunc(d.conns, func(q *conn) bool {
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
