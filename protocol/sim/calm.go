package sim

import (
	"fmt"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

// Bounds of virtual time while all is calm: every node is up and open in one epoch,
// and nothing is lost or late. They are far above what the network takes, and far
// below REQTIMEOUT, LCKTIMEOUT and a client's patience: what ends by one of these was
// not ended by whom it waited for.
const (
	calmAfter    = 80 * ms  // links repeat every 50 ms at the least
	wakeBound    = 60 * ms  // from what an operation waits for to its answer
	releaseBound = 60 * ms  // of a lock that nobody wants
	deadBound    = 150 * ms // of the pieces of a dead client
	frameBound   = 60 * ms  // from a frame's first sending to its ack
)

// audit looks at all nodes now and then, and more often when no faults are about.
func (c *Cluster) audit() {
	if c.figures {
		return
	}
	k := c.check
	for _, h := range c.hosts {
		if !h.up {
			continue
		}
		if err := h.node.Node().Check(); err != nil {
			k.fail("tables", "node %d: %v", h.pnn, err)
		}
		if err := h.node.Link().Check(h.now()); err != nil {
			k.fail("tables", "node %d: %v", h.pnn, err)
		}
		z := h.node.Node().Sizes()
		c.cover.look(h, &z)
	}
	if why := c.restless(); why != "" {
		k.strictSince = 0
	} else if k.strictSince == 0 {
		k.strictSince = c.now + calmAfter
	}
	if k.strictSince != 0 && c.now >= k.strictSince {
		k.woken()
		k.released()
		k.dead()
		k.flowing()
	}
	d := 5 * ms
	if !c.faults {
		d = ms
	}
	c.after(d, c.audit)
}

// restless tells why the cluster is not calm; "" if it is.
func (c *Cluster) restless() string {
	if c.faults || len(c.rules) > 0 {
		return "faults"
	}
	var epoch protocol.Epoch
	for i, h := range c.hosts {
		switch {
		case !h.up || h.paused || h.drains || !serving(h):
			return fmt.Sprintf("node %d", h.pnn)
		case c.cutTo[i]|c.muteTo[i] != 0 || h.brim || h.room == 0 || c.now < h.noLock:
			return fmt.Sprintf("around node %d", h.pnn)
		case epoch != 0 && h.seg.gate.Epoch != epoch:
			return "epochs"
		}
		for _, cl := range h.clients {
			if cl.alive && cl.slow > 0 {
				return "slow clients"
			}
		}
		epoch = h.seg.gate.Epoch
	}
	return ""
}

// woken: whoever waits is answered soon after what it waits for is there, and soon after
// its REQTIMEOUT is over. The time that its request was on the way comes on top, as far
// as that was before all was calm.
func (k *checker) woken() {
	c := k.c
	for _, h := range c.hosts {
		for _, cl := range h.clients {
			o := cl.wait
			if !cl.alive || o == nil || o.ended || o.submitted == 0 || cl.seg != h.seg {
				continue
			}
			late := c.now > o.submitted+instant(float64(o.m.Timeout)*float64(ms)*(1+2*c.mix.Drift))+o.onWay
			if !late && k.blocked(o) {
				o.blockedAt = c.now
				o.wasBlocked = true
			}
			if since := max(o.blockedAt, o.submitted, k.strictSince); c.now-since > c.bound(wakeBound) {
				what := "what it waits for is there"
				if late {
					what = "its REQTIMEOUT is over"
				}
				k.fail("wake", "client %d.%d waits for %s %q since %.3f ms, and since %.3f ms %s", h.pnn, cl.id,
					o.m.Op, o.key, float64(o.submitted)/1e6, float64(since)/1e6, what)
			}
		}
	}
}

// leaves: a request goes out. It says how much of REQTIMEOUT is left, and nobody counts
// the time until it is taken. Its own node counts it from then on, and so a request that
// this node sends again is behind by nothing.
func (k *checker) leaves(h *host, s *protocol.Send) {
	var m wire.Message
	if k.c.figures || s.Kind != protocol.SendMessage || s.Ch != protocol.Data || wire.Decode(s.Packet, &m) != nil || !m.Op.IsRequest() {
		return
	}
	o := k.byOp[m.OPID]
	if o == nil {
		return
	}
	if h.pnn == m.OPID.PNN {
		o.reqid, o.onWay = m.ReqID, 0
	}
	if m.ReqID == o.reqid {
		o.left = k.c.now
	}
}

// arrives: a node takes a request. What it took to come there before all was calm is
// no fault of those who have the request.
func (k *checker) arrives(ch protocol.Channel, packet []byte, v protocol.Verdict) {
	var m wire.Message
	if k.c.figures || v != protocol.Handled || ch != protocol.Data || wire.Decode(packet, &m) != nil || !m.Op.IsRequest() {
		return
	}
	o := k.byOp[m.OPID]
	if o == nil || m.ReqID != o.reqid || o.left == 0 {
		return
	}
	until := k.c.now
	if k.strictSince != 0 {
		until = min(until, k.strictSince)
	}
	o.onWay += max(0, until-o.left)
	o.left = 0
}

// bound of what small limits make slower: messages that come again.
func (c *Cluster) bound(d instant) instant {
	if c.mix.Limits > 0 || c.mix.Cap > 0 {
		return 4 * d
	}
	return d
}

// timedOut: TIMEOUT comes neither early nor, while all is calm, to one whose record
// was free for long.
func (k *checker) timedOut(o *operation) {
	c := k.c
	if o.m.Op == wire.ReqTraverse || o.m.Op == wire.OpenDB || o.submitted == 0 {
		return
	}
	t := instant(o.m.Timeout) * ms
	if least := c.drifted(t)*3/4 - 10*ms; c.now-o.call < least {
		k.fail("timeout", "%s of %q by client %d.%d ends with TIMEOUT after %.1f of %d ms", o.m.Op, o.key, o.cl.h.pnn,
			o.cl.id, float64(c.now-o.call)/1e6, o.m.Timeout)
	}
	since := max(o.blockedAt, o.submitted, k.strictSince)
	if k.strictSince != 0 && c.now-since > c.bound(wakeBound) {
		k.fail("wake", "%s of %q by client %d.%d ends with TIMEOUT, and since %.3f ms what it waits for was there",
			o.m.Op, o.key, o.cl.h.pnn, o.cl.id, float64(since)/1e6)
	}
	if o.wasBlocked {
		k.judge1(judgedTimeout)
	}
}

// blocked: what the operation waits for is not there. The record is looked at
// wherever it is; one that is on its way is waited for.
func (k *checker) blocked(o *operation) bool {
	key := name(o.db, []byte(o.key))
	r := k.record(key)
	if r == nil {
		r = &record{}
		if len(k.copies(key)) > 0 {
			return true
		}
	}
	switch o.m.Op {
	case wire.ReqFetchLocked, wire.ReqDelete, wire.ReqRemoveTrigger:
		return r.holder != 0
	case wire.ReqStoreUnlock:
		return r.holder != 0 && o.m.LockID == 0
	case wire.ReqConditionalAppend:
		yes, _ := k.c.conf.Check(o.m.Cond, r.data, r.tags, o.m.Data)
		return r.holder != 0 || !yes
	case wire.ReqWatch:
		return r.rsn == o.m.RSN
	}
	return false
}

// record of a key, wherever it is.
func (k *checker) record(key string) *record {
	for _, h := range k.c.hosts {
		if r := h.seg.recs[key]; r != nil {
			return r
		}
	}
	return nil
}

// dead: the pieces of a dead client go, and so does what an append brought whose
// client gave up.
func (k *checker) dead() {
	c := k.c
	seen := map[protocol.OPID]bool{}
	for _, h := range c.hosts {
		h.stable.EachPiece(func(j *protocol.Piece) {
			if j.State == protocol.PiecePrepared {
				return // its append is under way, here or elsewhere
			}
			why := ""
			if cl := h.client(j.Client); j.Client == 0 || cl != nil && !cl.alive && cl.told != 0 {
				why = "is dead"
			} else if o := k.byOp[j.OPID]; o != nil && o.gaveUp != 0 {
				why = "gave up"
			} else {
				return
			}
			seen[j.OPID] = true
			since, ok := k.orphans[j.OPID]
			if r := k.record(name(j.DB, j.Key)); !ok || r != nil && r.holder != 0 {
				k.orphans[j.OPID] = c.now // its removal waits for the lock
			} else if c.now-max(since, k.strictSince) > c.bound(deadBound) {
				k.fail("dead", "node %d keeps piece %s in %q, whose client %d %s, since %.3f ms", h.pnn, fold(j.Data),
					j.Key, j.Client, why, float64(since)/1e6)
			}
		})
	}
	for o := range k.orphans {
		if !seen[o] {
			delete(k.orphans, o)
			k.judge1(judgedPieces)
		}
	}
}

func (h *host) client(id protocol.ClientID) *client {
	for _, cl := range h.clients {
		if cl.id == id && cl.seg == h.seg {
			return cl
		}
	}
	return nil
}

// flowing: no channel stands still.
func (k *checker) flowing() {
	for _, h := range k.c.hosts {
		for _, to := range k.c.hosts {
			for _, ch := range []protocol.Channel{protocol.Data, protocol.Control} {
				if h == to {
					continue
				}
				s := h.node.Link().State(to.pnn, ch)
				since := max(h.real(s.Oldest), k.strictSince)
				if s.Flight > 0 && k.c.now-since > k.c.bound(frameBound) {
					k.fail("link", "a frame from node %d to node %d on channel %d is not acknowledged since %.3f ms; %d more are on their way and %d wait", h.pnn, to.pnn, ch, float64(since)/1e6, s.Flight-1, s.Waiting)
				}
			}
		}
	}
}

// real time of a reading of the host's clock.
func (h *host) real(t instant) instant { return instant(float64(t-h.offset) / h.rate) }

// floors: when all is quiet the tables hold what there is to know, and nothing else.
func (k *checker) floors() {
	c := k.c
	at := map[string]protocol.PNN{}
	for _, h := range c.hosts {
		for key := range h.seg.recs {
			at[key] = h.pnn
		}
	}
	for _, h := range c.hosts {
		z := h.node.Node().Sizes()
		for _, t := range []struct {
			what string
			n    int
		}{{"pending operations", z.Pending}, {"outstanding REQIDs", z.Requests},
			{"bytes of room promised", int(z.RoomOut)}, {"parked requests", z.Parked}, {"done entries", z.Dones},
			{"carried copies", z.Copies}, {"bytes of carried copies", int(z.CopyBytes)}, {"tokens", z.Tokens},
			{"claims", z.Claims}, {"locks for other nodes", z.Locks}, {"questions", z.Asks},
			{"keys known", z.Keys}} {
			if t.n != 0 {
				k.fail("floor", "node %d has %d %s when all is quiet", h.pnn, t.n, t.what)
			}
		}
		if z.Spare > spareBound {
			k.fail("floor", "node %d keeps %d bytes of buffers that nothing uses", h.pnn, z.Spare)
		}
		k.located(h, at)
		h.stable.EachPiece(func(j *protocol.Piece) {
			if j.State != protocol.PieceLive {
				k.fail("floor", "node %d: piece %s in %q is in state %d when all is quiet", h.pnn, fold(j.Data),
					j.Key, j.State)
			}
		})
		k.judge1(judgedFloor)
		k.channels(h)
	}
}

// spareBound is how many bytes of buffers a quiet node may keep: 64 times what the
// simulated clients write at once.
const spareBound = 1 << 20

// located: an LMASTER knows where its keys' records are, and of none that is nowhere.
func (k *checker) located(h *host, at map[string]protocol.PNN) {
	known := map[string]bool{}
	h.node.Node().EachLocation(func(db uint32, kb []byte, loc protocol.PNN) {
		key := name(db, kb)
		known[key] = true
		if p, ok := at[key]; !ok || p != loc {
			k.fail("floor", "node %d, the LMASTER of %q, takes node %d for its owner, and that is node %d (%v)",
				h.pnn, kb, loc, p, ok)
		}
	})
	for key, p := range at {
		if db := uint32(key[0]); p != h.pnn && !known[key] && h.stable.LMaster(hashKey(db, []byte(key[1:]))) == h.pnn {
			k.fail("floor", "node %d, the LMASTER of %q, does not know that node %d owns it", h.pnn, key[1:], p)
		}
	}
}

// channels: all that was sent was handled, in one piece, without a hole.
func (k *checker) channels(h *host) {
	for _, from := range k.c.hosts {
		for _, ch := range []protocol.Channel{protocol.Data, protocol.Control} {
			if from == h {
				continue
			}
			s, r := from.node.Link().State(h.pnn, ch), h.node.Link().State(from.pnn, ch)
			switch {
			case s.Flight+s.Waiting > 0:
				k.fail("link", "%d frames from node %d to node %d on channel %d are on their way when all is quiet, and %d wait", s.Flight, from.pnn, h.pnn, ch, s.Waiting)
			case ch == protocol.Data && r.Epoch != h.stable.Taken: // none has come in this epoch
			case r.Holes || r.Base != s.Next-1:
				k.fail("link", "node %d has sent %d frames to node %d on channel %d, which has handled those up to %d, and others: %v", from.pnn, s.Next-1, h.pnn, ch, r.Base, r.Holes)
			case r.Parts > 0:
				k.fail("link", "node %d puts %d messages of node %d together when all is quiet", h.pnn, r.Parts,
					from.pnn)
			}
			k.judge1(judgedChannels)
		}
	}
}
