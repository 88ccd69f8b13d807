package sim

import (
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

// hold is a record's lock as its client knows it: from the answer to FETCH_LOCKED
// on until the client begins to let go of it.
type hold struct {
	o       *operation
	key     string
	until   instant // no LCKTIMEOUT can end it earlier; 0: held at its own node, by its slot
	void    bool    // lost: with its record, or with its client's node
	leaving bool    // its client has begun to let go of it
	over    bool    // and that has ended
}

// lasts: nothing that is known to the checker can have ended it.
func (l *hold) lasts(now instant) bool {
	cl := l.o.cl
	return !l.void && !l.leaving && cl.alive && cl.seg == cl.h.seg && cl.seg.gate.State != protocol.GateDead && (l.until == 0 || now < l.until)
}

// drifted is the shortest that a node's clock may take for d.
func (c *Cluster) drifted(d instant) instant {
	return instant(float64(d)*(1-2*c.mix.Drift)) - ms
}

// granted: S2, at most one holder. Both clients have their answers by now, and
// neither has begun to let go. An answer may come behind its own LCKTIMEOUT, if the
// client's dispatcher stood still meanwhile: then the lock was free for the next, and
// who stores under it is told so.
func (k *checker) granted(o *operation) {
	l := &hold{o: o, key: name(o.db, []byte(o.key))}
	if o.lockID != 0 {
		l.until = o.call + k.c.drifted(instant(o.m.LockTimeout)*ms)
	}
	o.hold = l
	late := l.until != 0 && k.c.now >= l.until && !k.c.keeps(o)
	kept := k.holds[l.key][:0]
	for _, x := range k.holds[l.key] {
		if x.over {
			continue
		}
		kept = append(kept, x)
		if x.lasts(k.c.now) && !late {
			k.fail("S2", "%q is locked by client %d.%d since %.3f ms, and client %d.%d is given the lock", o.key, x.o.cl.h.pnn, x.o.cl.id, float64(x.o.hist.ret)/1e6, o.cl.h.pnn, o.cl.id)
		}
		k.judge1(judgedLock)
	}
	k.holds[l.key] = append(kept, l)
}

// keeps: some node has the record locked for this FETCH_LOCKED.
func (c *Cluster) keeps(o *operation) (yes bool) {
	for _, h := range c.hosts {
		h.stable.EachLock(func(_ uint32, _ []byte, opid protocol.OPID, _ protocol.ReqID) {
			yes = yes || opid == o.asked
		})
	}
	return yes
}

// unlocked: NOT_LOCKED is the answer only to who has lost its lock: by LCKTIMEOUT,
// with its record, or with its node's life.
func (k *checker) unlocked(o *operation) {
	l := o.hold
	switch {
	case l == nil:
		k.fail("S2", "client %d.%d has no lock of %q and is told that it has lost it", o.cl.h.pnn, o.cl.id, o.key)
	case !l.void && (l.until == 0 || k.c.now < l.until):
		k.fail("S2", "client %d.%d is told that it has lost its lock of %q, %.1f ms before LCKTIMEOUT and without a loss", o.cl.h.pnn, o.cl.id, o.key, float64(l.until-k.c.now)/1e6)
	default:
		k.judge1(judgedLost)
	}
}

// voids all locks that an epoch ends: of lost records, or of clients whose node's
// life is not in its map.
func (k *checker) voids(s *protocol.Memory, key string, lost bool) {
	for _, l := range k.holds[key] {
		if lost || !inMap(s, l.o.cl.h.pnn, l.o.life) {
			l.void = true
		}
	}
}

func (k *checker) judge1(what string) { k.c.cover.judged[what]++ }

// released: whoever holds a record's lock still wants it. A lock whose client is
// dead, has given up waiting for it or has let go of it is released at once, as is one
// that is kept for nobody.
func (k *checker) released() {
	c := k.c
	seen := map[lockKey]bool{}
	unwanted := func(h *host, key string, opid protocol.OPID, why string) {
		w := lockKey{h.pnn, key, opid}
		seen[w] = true
		since, ok := k.unwanted[w]
		if !ok {
			k.unwanted[w] = c.now
		} else if c.now-max(since, k.strictSince) > releaseBound {
			k.fail("lock", "node %d keeps the lock of %q since %.3f ms: %s", h.pnn, key[1:], float64(since)/1e6, why)
		}
	}
	for _, h := range c.hosts {
		remote := map[string]bool{}
		h.stable.EachLock(func(db uint32, kb []byte, opid protocol.OPID, _ protocol.ReqID) {
			key := name(db, kb)
			remote[key] = true
			o := k.byOp[opid]
			switch {
			case o == nil || !o.ended:
			case !o.cl.alive:
				if c.now > o.latest() {
					unwanted(h, key, opid, "its client is dead, and LCKTIMEOUT is over")
				}
			case o.hold == nil:
				unwanted(h, key, opid, "its client gave up before it got it")
			case o.hold.over:
				unwanted(h, key, opid, "its client has let go of it")
			case c.now > o.latest():
				unwanted(h, key, opid, "LCKTIMEOUT is over")
			}
		})
		for _, r := range h.seg.sorted() {
			key := name(r.db, []byte(r.key))
			switch {
			case r.holder == 0 || r.holder == protocol.Dispatcher && remote[key]:
			case r.holder == protocol.Dispatcher:
				unwanted(h, key, protocol.OPID{}, "the dispatcher holds it for nobody")
			case !h.wants(r):
				unwanted(h, key, protocol.OPID{Counter: uint64(r.holder)}, "its client does not want it")
			}
		}
	}
	for w := range k.unwanted {
		if !seen[w] {
			delete(k.unwanted, w)
			k.judge1(judgedGivenUp)
		}
	}
}

type lockKey struct {
	at   protocol.PNN
	key  string
	opid protocol.OPID
}

// latest is when LCKTIMEOUT has ended a lock for certain.
func (o *operation) latest() instant {
	c := o.cl.h.c
	given := o.hist.ret
	if given == 0 {
		given = o.call + instant(o.m.Timeout)*ms
	}
	return given + instant(float64(o.m.LockTimeout)*float64(ms)*(1+2*c.mix.Drift)) + ms
}

// wants: a client of this node has the record's lock, or is about to do something
// with it.
func (h *host) wants(r *record) bool {
	for _, cl := range h.clients {
		if cl.id == r.holder && cl.alive && cl.seg == h.seg {
			o := cl.wait
			return cl.locked == r || cl.busy || o != nil && o.m.Op == wire.ReqFetchLocked && o.key == r.key
		}
	}
	return false
}
