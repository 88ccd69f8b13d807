package host

import (
	"fmt"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/protocol/wire"
)

// Shell is what a Host does to the world. No method waits, and none calls the Host.
// What a method is given belongs to the Host and lasts until it returns.
type Shell interface {
	// Gate sets the gate's line in the segment.
	Gate(g protocol.Gate)
	// Lease sets until when local clients may work, by the node's clock. It only grows.
	Lease(until protocol.Instant)
	// Pass begins a pass over the handles, in place of one that is under way. When each
	// was seen outside, Host.Frozen is called with the number.
	Pass(number uint64)
	// Save begins to write what a promise file keeps, and does not wait for the disk. When
	// it is sure to be found again, Host.Saved is called with the number. A newer Save
	// stands for an older one that is not over.
	Save(number uint64, w *protocol.Words)
	// Databases tells that Stable knows databases that it did not know before.
	Databases()
	// Event tells all local clients.
	Event(e *protocol.Event)
	// Reply answers one local client.
	Reply(r *protocol.Reply)
	// Doorbell wakes the clients that sleep: there were events or replies.
	Doorbell()
	// Lock: hold the arbiter's lock and renew it, or, if want is false, let it go. A value
	// that is not 0 is to be stored with it. Host.Arbiter tells how that stands.
	Lock(want bool, value protocol.Epoch)
	// Datagram sends one.
	Datagram(to protocol.PNN, b []byte)
}

// Config of a Host.
type Config struct {
	Node protocol.Config
	// Link is that of the node's link; nil: the node is alone, and has none.
	Link *link.Config

	// These look on; each may be nil. Sent: a message goes to the link. Stepped: the node
	// has answered a packet.
	Sent    func(s *protocol.Send)
	Stepped func(from protocol.PNN, ch protocol.Channel, packet []byte, v protocol.Verdict)
}

// MaxRounds is how often one Flush lets the link hand in again what the node could not
// take before.
const MaxRounds = 100

// Host drives one node. All methods belong to one goroutine.
type Host struct {
	cfg    Config
	node   *protocol.Node
	link   *link.Link // nil: the node is alone
	shell  Shell
	stable protocol.Stable
	eff    protocol.Effects
	gate   protocol.Gate // as the shell has it
	lease  protocol.Instant
	lock   bool // the shell was told to hold it
	next   protocol.Instant
}

// New starts a node over its memory; gate is how its line in the segment stands. The
// first Flush is the caller's.
func New(now protocol.Instant, cfg Config, stable protocol.Stable, store protocol.Store, gate protocol.Gate, shell Shell) (*Host, error) {
	h := &Host{cfg: cfg, shell: shell, stable: stable, gate: gate}
	if cfg.Link != nil {
		l, err := link.New(*cfg.Link)
		if err != nil {
			return nil, fmt.Errorf("host: %w", err)
		}
		l.SetEpoch(stable.Load().Taken)
		h.link = l
	}
	h.node = protocol.New(now, cfg.Node, stable, store)
	return h, nil
}

// Node is for looking only: its methods that change it are called by those of the Host.
func (h *Host) Node() *protocol.Node { return h.node }

// Link is for looking only; nil if the node is alone.
func (h *Host) Link() *link.Link { return h.link }

// WantsLock tells whether the arbiter's lock is to be held.
func (h *Host) WantsLock() bool { return h.lock }

// Fault is why the node lets no recovery end, as of the last Flush; empty: nothing.
func (h *Host) Fault() string { return h.eff.Fault }

// Next is when Tick has something to do. Valid behind a Flush.
func (h *Host) Next() protocol.Instant { return h.next }

// Receive takes a datagram off the network.
func (h *Host) Receive(now protocol.Instant, datagram []byte) {
	if h.link != nil {
		h.link.Receive(now, datagram, (*handler)(h))
	}
}

// Tick does what is due, in the link and in the node.
func (h *Host) Tick(now protocol.Instant) {
	if h.link != nil {
		h.link.Tick(now)
		for p := range h.cfg.Link.Nodes {
			if since := h.link.Unacked(protocol.PNN(p)); since != 0 {
				h.node.Unanswered(now, protocol.PNN(p), since)
			}
		}
	}
	h.node.Tick(now)
}

// Submit is Node.Submit; so are the others their namesakes.
func (h *Host) Submit(now protocol.Instant, c protocol.ClientID, cookie uint64, m *wire.Message) (protocol.OPID, error) {
	return h.node.Submit(now, c, cookie, m)
}

func (h *Host) AskedAll(now protocol.Instant, c protocol.ClientID) { h.node.AskedAll(now, c) }

func (h *Host) Abandon(now protocol.Instant, c protocol.ClientID, cookie uint64) {
	h.node.Abandon(now, c, cookie)
}

func (h *Host) ClientGone(now protocol.Instant, c protocol.ClientID) { h.node.ClientGone(now, c) }
func (h *Host) Released(now protocol.Instant, db uint32, key []byte) { h.node.Released(now, db, key) }
func (h *Host) Frozen(now protocol.Instant, pass uint64)             { h.node.Frozen(now, pass) }
func (h *Host) Saved(now protocol.Instant, number uint64)            { h.node.Saved(now, number) }
func (h *Host) Suspect(now protocol.Instant)                         { h.node.Suspect(now) }
func (h *Host) Drain(now protocol.Instant, on bool)                  { h.node.Drain(now, on) }
func (h *Host) Reconfigure(now protocol.Instant, v uint32, unused wire.Set) error {
	return h.node.Reconfigure(now, v, unused)
}

func (h *Host) Arbiter(now protocol.Instant, held bool, until protocol.Instant, value protocol.Epoch) {
	h.node.Arbiter(now, held, until, value)
}

// Flush ends a turn: it performs all that the calls since the last Flush want done.
func (h *Host) Flush(now protocol.Instant) {
	for range MaxRounds {
		h.node.Take(&h.eff)
		h.perform(now, &h.eff)
		if !h.eff.Retry || h.link == nil || !h.link.Holding() {
			break
		}
		h.link.Retry(now, (*handler)(h))
	}
	h.next = h.eff.Next
	if h.link != nil {
		h.next = min(h.next, h.link.Next())
	}
}

// perform the effects, in the order of the package's documentation.
func (h *Host) perform(now protocol.Instant, e *protocol.Effects) {
	open := e.Gate.State == protocol.GateOpen
	if !open {
		h.setGate(e.Gate)
	}
	if e.Freeze {
		h.shell.Pass(e.PassNum)
	}
	if e.Save != 0 {
		w := h.stable.Load()
		w = w.Wiped()
		h.shell.Save(e.Save, &w)
	}
	if e.DBs {
		h.shell.Databases()
	}
	for i := range e.Events {
		h.shell.Event(&e.Events[i])
	}
	if e.Lease != h.lease {
		h.lease = e.Lease
		h.shell.Lease(e.Lease)
	}
	if open {
		h.setGate(e.Gate)
	}
	for i := range e.Replies {
		h.shell.Reply(&e.Replies[i])
	}
	if len(e.Events)+len(e.Replies) > 0 {
		h.shell.Doorbell()
	}
	h.send(now, e.Sends)
	if e.WantLock != h.lock || e.LockValue != 0 {
		h.lock = e.WantLock
		h.shell.Lock(e.WantLock, e.LockValue)
	}
	if h.link == nil {
		return
	}
	for _, d := range h.link.Take() {
		h.shell.Datagram(d.To, d.Bytes)
	}
}

func (h *Host) setGate(g protocol.Gate) {
	if g != h.gate {
		h.gate = g
		h.shell.Gate(g)
	}
}

// send gives the link the node's orders. A node that is alone has no messages.
func (h *Host) send(now protocol.Instant, orders []protocol.Send) {
	for i := range orders {
		s := &orders[i]
		switch s.Kind {
		case protocol.SendEpoch:
			if h.link != nil {
				h.link.SetEpoch(s.Epoch)
			}
		case protocol.SendCancel:
			if h.link != nil {
				h.link.Cancel(now, s.Epoch)
			}
		default:
			if h.link == nil {
				panic(fmt.Sprintf("host: a node that is alone has a message for node %d", s.To))
			}
			if h.cfg.Sent != nil {
				h.cfg.Sent(s)
			}
			h.link.Send(now, s.To, s.Ch, s.Epoch, s.DBID, s.Packet, s.Token)
		}
	}
}

// handler is the Host as its link sees it.
type handler Host

func (h *handler) Step(now protocol.Instant, from wire.PNN, ch link.Channel, epoch wire.Epoch, dbid uint32, p []byte) link.Verdict {
	v := h.node.Step(now, from, ch, epoch, dbid, p)
	if h.cfg.Stepped != nil {
		h.cfg.Stepped(from, ch, p, v)
	}
	return v
}

func (h *handler) Acked(now protocol.Instant, token uint64)   { h.node.Acked(now, token) }
func (h *handler) Refused(now protocol.Instant, token uint64) { h.node.Refused(now, token) }
func (h *handler) Peer(now protocol.Instant, p wire.PNN, ev protocol.PeerEvent) {
	h.node.Peer(now, p, ev)
}
