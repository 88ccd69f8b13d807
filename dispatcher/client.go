package dispatcher

import (
	"errors"
	"fmt"

	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
	"github.com/mainzdb/mainz/ring"
	"github.com/mainzdb/mainz/shm"
)

// client is one whose rings are served.
type client struct {
	slot       uint32
	generation uint32
	in         *ring.Consumer
	out        *ring.Producer
	byID       map[uint32]*state
	bytes      int      // of requests under way
	queue      []*state // replies to be given, in order
	peer       *attach.Peer
	broken     bool // wrote garbage: it is not served any more
	take       func(*ring.Message)
}

// Limits of a client.
const (
	maxBytes   = 64 << 20 // of its requests under way
	maxQueue   = 256      // replies that it does not take: then nothing more is taken from it
	ringBudget = 256      // cells of one client in a turn
	turnBudget = 512      // cells of all clients in a turn: less than a millisecond's work
)

var errGarbage = errors.New("malformed cell in its ring")

// serve opens the rings of a client that has just joined, or of one that was
// here before this dispatcher (adopt).
func (d *Dispatcher) serve(slot, generation uint32, adopt bool) (*client, error) {
	in, out, ok := call.Rings(d.seg, slot)
	if !ok {
		return nil, fmt.Errorf("dispatcher: slot %d: no rings there: %w", slot, shm.ErrIncompatible)
	}
	r := d.seg.Region()
	if !adopt {
		if err := errors.Join(ring.Init(r, in, call.RequestCells), ring.Init(r, out, call.ReplyCells)); err != nil {
			return nil, err
		}
	}
	c := &client{slot: slot, generation: generation, byID: map[uint32]*state{}}
	var err error
	if c.in, err = ring.OpenConsumer(r, in, call.RequestCells, ring.Options{}); err != nil {
		return nil, err
	}
	if c.out, err = ring.OpenProducer(r, out, call.ReplyCells, ring.Options{}); err != nil {
		return nil, err
	}
	if adopt {
		if _, err := c.out.Repair(); err != nil {
			return nil, err
		}
	}
	c.take = func(m *ring.Message) { d.cell(c, m) }
	d.node.Attached[slot].Store(generation)
	d.bySlot[slot] = c
	d.clients = append(d.clients, c)
	d.say(c, call.Started, 0, nil)
	return c, nil
}

// gone ends all that a client had under way. Its slot is recovered already, maybe
// by somebody else, who may have it by now: so its pieces are looked for here.
func (d *Dispatcher) gone(c *client) {
	d.orphans = true
	d.core.ClientGone(d.now, protocol.ClientID(c.slot))
	d.perform()
	for id, st := range c.byID {
		delete(c.byID, id)
		d.calls.end(st)
	}
	d.dropQueue(c)
	d.calls.forget(c.slot, c.generation)
	d.node.Attached[c.slot].CAS(c.generation, 0)
	if c.peer != nil {
		d.closePeer(c.peer)
	}
	delete(d.bySlot, c.slot)
	for i := range d.clients {
		if d.clients[i] == c {
			d.clients[i] = d.clients[len(d.clients)-1]
			d.clients = d.clients[:len(d.clients)-1]
			break
		}
	}
	d.log.Debug("client gone", "slot", c.slot)
}

// breakOff ends a client that writes garbage: what it has under way gets no
// answer. Others are not concerned.
func (d *Dispatcher) breakOff(c *client, why error) {
	if c.broken {
		return
	}
	c.broken = true
	d.Stats.Broken++
	d.log.Warn("client is served no more", "slot", c.slot, "name", d.seg.SlotName(c.slot), "reason", why)
	d.core.ClientGone(d.now, protocol.ClientID(c.slot))
	for id, st := range c.byID {
		delete(c.byID, id)
		d.calls.end(st)
	}
	d.dropQueue(c)
}

// dropQueue forgets what was to be said. The calls in it have ended.
func (d *Dispatcher) dropQueue(c *client) {
	for _, st := range c.queue {
		if st.kind != call.Reply {
			d.calls.end(st)
		}
	}
	c.queue, c.bytes = nil, 0
}

// cell takes one cell of a client, which may hold anything.
func (d *Dispatcher) cell(c *client, m *ring.Message) {
	if c.broken {
		return
	}
	var h call.Head
	part := h.Get(m)
	switch {
	case part == nil:
		d.breakOff(c, errGarbage)
		return
	case h.Dispatcher != d.incarnation:
		return // for one before us: it will be asked again
	}
	d.Stats.Cells++
	switch h.Kind {
	case call.Request:
		d.requestCell(c, &h, part)
	case call.Abandon:
		d.abandon(c, h.Call)
	case call.Nop:
		if c.byID[h.Call] != nil || len(c.byID) >= call.MaxCalls {
			d.breakOff(c, errGarbage)
			return
		}
		st := d.calls.begin(c, h.Call)
		c.byID[h.Call] = st
		d.answer(st, wire.OK, 0, 0, nil)
	case call.Synced:
		d.calls.forget(c.slot, c.generation)
	default:
		d.breakOff(c, errGarbage)
	}
}

func (d *Dispatcher) requestCell(c *client, h *call.Head, part []byte) {
	st := c.byID[h.Call]
	if h.Offset == 0 {
		if st != nil || len(c.byID) >= call.MaxCalls || h.Total > uint32(d.maxRequest) ||
			c.bytes+int(h.Total) > maxBytes {
			d.breakOff(c, errGarbage)
			return
		}
		st = d.calls.begin(c, h.Call)
		st.total = h.Total
		c.byID[h.Call] = st
		c.bytes += int(h.Total)
	}
	if st == nil {
		return // the rest of one that was abandoned
	}
	if st.running || st.answered || h.Total != st.total || int(h.Offset) != len(st.request) {
		d.breakOff(c, errGarbage)
		return
	}
	st.request = append(st.request, part...)
	if len(st.request) == int(st.total) {
		d.submit(c, st)
	}
}

// submit gives a whole request to the core.
func (d *Dispatcher) submit(c *client, st *state) {
	m := &d.msg
	if err := call.DecodeRequest(st.request, m); err != nil {
		d.breakOff(c, err)
		return
	}
	k := doneKey{c.slot, c.generation, st.id}
	if i, ok := d.calls.done[k]; ok { // the dispatcher before us has done it
		delete(d.calls.done, k)
		st.line = i
		d.answer(st, wire.Status(d.node.Line[i].Status.Load()), 0, 0, nil)
		return
	}
	if len(m.Data) > d.keeper.Store().MaxValue() {
		d.answer(st, wire.TooBig, 0, 0, nil)
		return
	}
	if m.Op == wire.ReqConditionalAppend && m.Piece == (wire.OPID{}) && d.store.mode(m.DBID) == protocol.Pieces {
		d.answer(st, wire.BadPacket, 0, 0, nil) // its index must have the piece already
		return
	}
	st.running = true
	d.Stats.Requests++
	if _, err := d.core.Submit(d.now, protocol.ClientID(c.slot), st.cookie, m); err != nil {
		d.answer(st, wire.NoMemory, 0, 0, nil)
	}
}

// abandon: nobody waits for the call any more. If it has not been answered by
// now, it has not run and will not.
func (d *Dispatcher) abandon(c *client, id uint32) {
	st := c.byID[id]
	if st != nil && st.running {
		d.perform() // it may have been answered in this turn
	}
	if st != nil && st.answered {
		return // the answer is on its way
	}
	if st != nil {
		if st.running {
			d.core.Abandon(d.now, protocol.ClientID(c.slot), st.cookie)
		}
		d.drop(c, st)
	}
	d.say(c, call.Abandoned, id, nil)
}

func (d *Dispatcher) drop(c *client, st *state) {
	delete(c.byID, st.id)
	c.bytes -= int(st.total)
	d.calls.end(st)
}

// answer ends a call.
func (d *Dispatcher) answer(st *state, status wire.Status, why uint32, rsn uint64, data []byte) {
	st.answered, st.status, st.why = true, status, why
	st.reply = call.AppendReply(st.reply[:0], rsn, data)
	d.give(st.client, st)
}

// say sends a cell that answers no call.
func (d *Dispatcher) say(c *client, kind call.Kind, id uint32, payload []byte) {
	st := d.calls.begin(c, id)
	st.kind, st.answered = kind, true
	st.reply = append(st.reply, payload...)
	d.give(c, st)
}

func (d *Dispatcher) give(c *client, st *state) {
	c.queue = append(c.queue, st)
	if len(c.queue) == 1 {
		d.pump(c)
	}
}

// pump puts replies into the client's ring as long as there is room, and reports
// whether there was any.
func (d *Dispatcher) pump(c *client) (did bool) {
	var m ring.Message
	for len(c.queue) > 0 {
		st := c.queue[0]
		for {
			claim, err := c.out.TryClaim()
			if err == ring.ErrFull {
				return did
			}
			if err != nil {
				d.breakOff(c, err)
				return did
			}
			did = true
			h := call.Head{Kind: st.kind, Call: st.id, Total: uint32(len(st.reply)), Offset: st.given,
				Dispatcher: d.incarnation, Status: st.status, Why: st.why}
			n := h.Put(&m, st.reply)
			claim.Commit(&m)
			if st.given += uint32(n); st.given == uint32(len(st.reply)) {
				break
			}
		}
		c.queue = c.queue[:copy(c.queue, c.queue[1:])]
		if st.kind == call.Reply {
			d.drop(c, st)
		} else {
			d.calls.end(st)
		}
	}
	return did
}
