package sim

import (
	"math/bits"
	"math/rand/v2"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

// leave the cluster on purpose: the clients detach, the node gives everything away,
// and when the others are open without it it stops. It comes back empty.
func (c *Cluster) leave(h *host) {
	if !h.up || h.paused || h.drains {
		return
	}
	c.trace("node %d drains", h.pnn)
	h.drains = true
	for _, cl := range h.clients {
		cl.die("detach")
	}
	h.run(func() { h.node.Drain(h.now(), true) })
	start, limit := h.start, c.now+1500*ms
	var look func()
	look = func() {
		switch {
		case h.start != start || !h.up:
			return // it died on the way
		case h.paused:
		case h.node.Node().Left():
			c.trace("node %d has left", h.pnn)
			c.check.left(h)
			c.restart(h, true)
			return
		case c.now > limit || !c.faults:
			c.trace("node %d stays", h.pnn)
			h.drains = false
			h.run(func() { h.node.Drain(h.now(), false) })
			for range c.mix.Clients {
				h.attach()
			}
			return
		}
		c.after(5*ms, look)
	}
	c.after(5*ms, look)
}

// newFile takes a node out of the nodes file, or puts it back; only when the last
// version has come to everybody.
func (c *Cluster) newFile(all bool) {
	newest := len(c.files) - 1
	for _, h := range c.hosts {
		if h.file != uint32(newest) && !all {
			return
		}
	}
	unused := c.files[newest]
	switch {
	case unused != 0:
		unused = 0
	case all:
		return
	default:
		unused = 1 << c.rng.IntN(len(c.hosts))
	}
	c.files = append(c.files, unused)
	c.trace("nodes file %d: unused %b", newest+1, unused)
	for _, h := range c.hosts {
		var adopt func()
		adopt = func() {
			if h.file == uint32(newest+1) {
				return
			}
			if h.up && !h.paused && h.file == uint32(newest) {
				h.run(func() {
					if h.node.Reconfigure(h.now(), h.file+1, unused) == nil {
						h.file++
						c.trace("node %d goes by nodes file %d", h.pnn, h.file)
					}
				})
			}
			c.after(20*ms, adopt)
		}
		c.after(c.between(0, 200*ms), adopt)
	}
}

// arbiterLock is a lock with a time limit and a value, outside of the cluster.
type arbiterLock struct {
	holder *host
	start  int // of the holder
	until  instant
	value  protocol.Epoch
}

const lockFor = 300 * ms

// arbitrate: every host talks to the arbiter now and then.
func (c *Cluster) arbitrate() {
	l := &c.lock
	for _, h := range c.hosts {
		if !h.up || h.paused || c.now < h.noLock {
			continue
		}
		wants := h.node.WantsLock()
		mine := l.holder == h && l.start == h.start && c.now < l.until
		switch {
		case wants && (mine || l.holder == nil || c.now >= l.until):
			if !mine {
				c.trace("node %d gets the lock, value %x", h.pnn, l.value)
				h.run(func() { h.node.Arbiter(h.now(), false, 0, l.value) })
			}
			l.holder, l.start, l.until = h, h.start, c.now+lockFor
			until := h.now() + lockFor
			h.run(func() { h.node.Arbiter(h.now(), true, until, l.value) })
		case mine && !wants:
			c.trace("node %d lets the lock go", h.pnn)
			l.holder = nil
			h.run(func() { h.node.Arbiter(h.now(), false, 0, l.value) })
		}
	}
	c.after(10*ms, c.arbitrate)
}

// store an epoch with the lock.
func (c *Cluster) store(h *host, e protocol.Epoch) {
	start := h.start
	c.after(c.between(us, ms), func() {
		l := &c.lock
		if l.holder != h || l.start != start || h.start != start || c.now >= l.until {
			return
		}
		l.value = e
		until := l.until
		c.after(c.between(us, ms), func() {
			if h.start == start {
				h.run(func() { h.node.Arbiter(h.now(), true, h.now()+max(0, until-c.now), e) })
			}
		})
	})
}

// used bytes of a store.
func (s *segment) used() int {
	n := 0
	for _, r := range s.recs {
		n += len(r.data)
	}
	return n
}

// refuses: a store has no room for a record of a local request to grow. A third of
// it is for records that arrive.
func (h *host) refuses(grow int) bool {
	limit := h.c.mix.Cap
	return grow > 0 && (h.room == 0 || limit > 0 && h.seg.used()+h.carried()+grow > limit-limit/3)
}

// carried bytes: a copy stays in the store until it is freed.
func (h *host) carried() int {
	if h.node == nil {
		return 0
	}
	return int(h.node.Node().Sizes().CopyBytes)
}

// event: the clients of a node are told of each epoch once, in order.
func (k *checker) event(h *host, e *protocol.Event) {
	var set wire.Set
	for _, m := range h.stable.Map.Members {
		set |= 1 << m.PNN
	}
	if e.Epoch <= h.told && e.Epoch != 0 || e.Members != set || e.Epoch != h.stable.Opened || bits.OnesCount64(uint64(e.Joined&e.Left)) > 0 {
		k.fail("event", "node %d is told of epoch %x, members %b, after %x", h.pnn, e.Epoch, e.Members, h.told)
	}
	h.told = e.Epoch
}

// left: a node that says that it has left must have nothing.
func (k *checker) left(h *host) {
	if n := len(h.seg.recs); n > 0 {
		k.fail("drain", "node %d leaves with %d records", h.pnn, n)
	}
	h.stable.EachCarried(func(_ uint32, key []byte, bound protocol.PNN, _ protocol.ReqID, _ uint64) {
		k.fail("drain", "node %d leaves with a copy of %q for node %d", h.pnn, key, bound)
	})
}

// databases: what two open members of an epoch know of one database is the same.
func (k *checker) databases() {
	type fixed struct {
		by   *host
		what protocol.DB
	}
	known := map[uint32]fixed{}
	for _, h := range k.c.hosts {
		if !h.up || !serving(h) || h.stable.Taken != k.newest {
			continue
		}
		for _, d := range h.stable.DBs() {
			if f, ok := known[d.ID]; ok && (f.what.Mode != d.Mode || f.what.Name != d.Name) {
				k.fail("S9", "database %d is %q of mode %d at node %d, and %q of mode %d at node %d", d.ID, f.what.Name, f.what.Mode, f.by.pnn, d.Name, d.Mode, h.pnn)
			} else {
				known[d.ID] = fixed{h, d}
			}
		}
	}
}

// traversed: what was there from before a traverse began was met.
func (k *checker) traversed(o *operation) {
	k.walks++
	for _, key := range k.keys {
		if since, ok := k.since[key]; ok && since < o.began && uint32(key[0]) == o.db && !o.met[key[1:]] {
			k.fail("traverse", "client %d.%d has not met %q, which is there since %.3f ms", o.cl.h.pnn, o.cl.id, key[1:], float64(since)/1e6)
		}
	}
}

// limits that are small in a run; 0: as by default, for a node's own.
type limits struct {
	pending, parked, dones, dbs, walks, moved, asks, batch, room, window, held, offers, budget, claims int
	hops                                                                                               uint32
}

func (m *Mix) limits() limits {
	l := limits{pending: 4096, parked: 4096}
	if m.Limits == 0 {
		return l
	}
	rng := rand.New(rand.NewPCG(uint64(m.Limits), 1))
	small := func(v *int, least, more int) {
		if rng.IntN(2) == 0 {
			*v = least + rng.IntN(more)
		}
	}
	small(&l.pending, 2, 4)
	small(&l.parked, 1, 4)
	small(&l.dones, 1, 3)
	small(&l.dbs, 4, 3)
	small(&l.walks, 1, 2)
	small(&l.moved, 40, 300)
	small(&l.asks, 1, 1)
	small(&l.batch, 40, 200)
	small(&l.room, 8, 60)
	small(&l.window, 2, 10)
	small(&l.held, 1, 3)
	hops := 8
	small(&hops, 1, 2)
	small(&l.offers, 1, 3)
	small(&l.budget, 1, 30)
	small(&l.claims, 1, 3)
	l.hops = uint32(hops)
	return l
}
