package dispatcher

import (
	"fmt"
	"io"
	"slices"

	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/shm"
)

// peer is a connection: of a client, or of who wants to become one.
type peer struct {
	*attach.Peer
	greeted bool
}

// maxPeers bounds the connections.
const maxPeers = 8192

// sockets lets clients in and looks which are gone.
func (d *Dispatcher) sockets() bool {
	d.socketsAt = d.now + socketsEvery
	did := false
	for _, fd := range d.polls.ready(d, 0) {
		did = true
		if fd == d.listener.FD() {
			d.accept()
			continue
		}
		for _, p := range d.peers {
			if p.FD() == fd {
				d.hear(p)
				break
			}
		}
	}
	return did
}

func (d *Dispatcher) accept() {
	for range 16 {
		p, err := d.listener.Accept()
		if err != nil {
			d.log.Warn("refused", "error", err)
			continue
		}
		if p == nil {
			return
		}
		if len(d.peers) >= maxPeers {
			_ = p.Refuse(attach.CodeOther, "too many connections; try again later")
			_ = p.Close()
			return
		}
		d.peers = append(d.peers, &peer{Peer: p})
		d.polls.stale = true
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
		d.closePeer(p.Peer)
		d.scanAt = 0 // it may be dead
	case got:
		if err := d.talk(p, &m); err != nil {
			d.log.Warn("connection", "error", err)
			d.closePeer(p.Peer)
		}
	}
}

func (d *Dispatcher) talk(p *peer, m *attach.Message) error {
	switch {
	case m.Kind == attach.Hello && !p.greeted:
		return d.hello(p, m)
	case m.Kind == attach.Joined && p.greeted:
		return d.joined(p, m)
	}
	return p.Refuse(attach.CodeOther, "this message can't come now")
}

func (d *Dispatcher) hello(p *peer, m *attach.Message) error {
	if m.Version != attach.Version {
		return p.Refuse(attach.CodeIncompatible, fmt.Sprintf("the dispatcher speaks version %d, the client %d; upgrade the older one", attach.Version, m.Version))
	}
	known, err := d.d.Store().Conditions()
	if err != nil {
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
	if pid := d.seg.Slot(m.Slot).PID.Load(); p.Cred.PID != 0 && d.seg.Slot(m.Slot).PIDNS.Load() == d.seg.Slot(shm.DispatcherSlot).PIDNS.Load() && pid != uint32(p.Cred.PID) {
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
	c.peer = p.Peer
	d.Stats.Attached++
	d.log.Debug("client attached", "slot", m.Slot, "name", d.seg.SlotName(m.Slot))
	return p.Send(&attach.Message{Kind: attach.Ready, Version: attach.Version, Slot: m.Slot, Generation: m.Generation})
}

func (d *Dispatcher) closePeer(p *attach.Peer) {
	_ = p.Close()
	d.peers = slices.DeleteFunc(d.peers, func(q *peer) bool { return q.Peer == p })
	for _, c := range d.clients {
		if c.peer == p {
			c.peer = nil
		}
	}
	d.polls.stale = true
}
