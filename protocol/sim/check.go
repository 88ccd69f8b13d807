package sim

import (
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"strings"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

// checker sees all nodes at once, as no node does.
type checker struct {
	c        *Cluster
	failures []Failure
	working  bool // clients begin new operations
	draining bool // the end: all must be answered
	hist     map[string][]*histOp
	keys     []string // of hist, in the order they came up
	nextVal  int
	owner    map[string]protocol.OPID // piece → whose it is, once that is known
	lastRSN  map[string]uint64
	away     map[string]bool     // the record has left its owner
	stale    map[string][]copied // copies of records that have arrived since
	since    map[string]instant  // keys that hold something, and since when
	walks    int
	maps     map[protocol.Epoch]string
	vnns     map[protocol.VNN]protocol.Epoch
	openings map[protocol.Epoch]bool
	snaps    map[protocol.Epoch]*snapshot
	newest   protocol.Epoch
	acked    int
	recovs   int

	holds       map[string][]*hold           // locks of clients, by key
	byOp        map[protocol.OPID]*operation // that were submitted
	unwanted    map[lockKey]instant          // locks that nobody wants, since when
	orphans     map[protocol.OPID]instant    // pieces whose clients are dead or gave up
	strictSince instant                      // all is calm; 0: it is not
}

// Failure is a broken invariant.
type Failure struct {
	Check string `json:"check"`
	What  string `json:"what"`
}

func (f Failure) String() string { return f.Check + ": " + f.What }

// histOp is one operation in the history of its key, or something that happened
// to the key.
type histOp struct {
	kind   string // fetch put delete append cas remove, reset sweep maybe
	arg    string
	expect string // cas
	out    string
	no     bool // condition false
	call   instant
	ret    instant // 0: not known to have ended
	dead   map[string]bool
	ops    []*histOp
	void   bool // known to have done nothing
}

func newChecker(c *Cluster) *checker {
	return &checker{c: c, working: true, hist: map[string][]*histOp{}, owner: map[string]protocol.OPID{},
		lastRSN: map[string]uint64{}, away: map[string]bool{}, stale: map[string][]copied{},
		since: map[string]instant{},
		maps:  map[protocol.Epoch]string{}, vnns: map[protocol.VNN]protocol.Epoch{},
		openings: map[protocol.Epoch]bool{}, snaps: map[protocol.Epoch]*snapshot{},
		holds: map[string][]*hold{}, byOp: map[protocol.OPID]*operation{}, unwanted: map[lockKey]instant{},
		orphans: map[protocol.OPID]instant{}}
}

func (k *checker) fail(check, format string, args ...any) {
	if len(k.failures) < 10 {
		k.failures = append(k.failures, Failure{check, fmt.Sprintf("at %.3f ms: ", float64(k.c.now)/1e6) +
			fmt.Sprintf(format, args...)})
		k.c.trace("FAIL %v", k.failures[len(k.failures)-1])
	}
}

func (k *checker) value() []byte {
	k.nextVal++
	if k.c.mix.Large {
		return padded(largeValue, k.nextVal)
	}
	return []byte(fmt.Sprintf("v%06d.", k.nextVal))
}

func (k *checker) piece(exclusive bool) []byte {
	k.nextVal++
	switch {
	case k.c.mix.Large && exclusive:
		return padded(largeExclusive, k.nextVal)
	case k.c.mix.Large:
		return padded(largeShared, k.nextVal)
	}
	mode := "S"
	if exclusive {
		mode = "X"
	}
	return []byte(fmt.Sprintf("%s%07d", mode, k.nextVal))
}

func (k *checker) add(key string, h *histOp) {
	if _, ok := k.hist[key]; !ok {
		k.keys = append(k.keys, key)
	}
	k.hist[key] = append(k.hist[key], h)
}

// invoke notes that an operation begins.
func (k *checker) invoke(o *operation) *histOp {
	h := &histOp{call: o.call, arg: fold(o.m.Data)}
	switch o.m.Op {
	case wire.ReqFetch:
		h.kind = "fetch"
	case wire.ReqFetchLocked:
		h.kind = "fetch"
	case wire.ReqStoreUnlock:
		h.kind = "put"
		if o.read != nil || o.m.LockID != 0 || o.cl.locked != nil {
			h.kind, h.expect = "cas", fold(o.read)
		}
	case wire.ReqDelete:
		h.kind, h.arg = "put", ""
	case wire.ReqConditionalAppend:
		h.kind = "append"
	case wire.ReqRemoveTrigger:
		h.kind = "remove"
	default: // UNLOCK and WATCH change nothing
		return h
	}
	k.add(name(o.db, []byte(o.key)), h)
	return h
}

// returned notes how it ended.
func (k *checker) returned(o *operation, st wire.Status, data []byte) {
	h := o.hist
	h.ret, h.out = k.c.now, fold(data)
	k.c.trace("client %d.%d %s %q = %s %q", o.cl.h.pnn, o.cl.id, o.m.Op, o.key, st, h.out)
	switch {
	case st == wire.Timeout:
		k.timedOut(o)
	case st == wire.NotLocked:
		k.unlocked(o)
	case st == wire.OK && o.m.Op == wire.ReqFetchLocked:
		k.granted(o)
	case st == wire.OK && o.wasBlocked:
		k.judge1(judgedWaiter)
	case st == wire.NoMemory && k.c.mix.Limits == 0 && k.c.mix.Cap == 0 && k.strictSince != 0 &&
		o.submitted > k.strictSince:
		k.fail("status", "%s of %q by client %d.%d ends with NO_MEMORY, and there is room", o.m.Op, o.key, o.cl.h.pnn,
			o.cl.id)
	}
	if o.hold != nil && o.m.Op != wire.ReqFetchLocked {
		o.hold.over = true
	}
	switch {
	case st == wire.OK:
		k.acked++
	case (st == wire.Timeout || st == wire.NoMemory) && h.kind == "remove":
		h.ret = 0 // it goes on
	case st == wire.Condition && h.kind == "append":
		h.no = true
	default:
		h.void = true
		if st == wire.Mode && o.m.Op == wire.OpenDB && protocol.Mode(o.m.Mode) != modeOf(o.db) {
			break // somebody else was first, and meant something else
		}
		if st == wire.Internal || st == wire.BadPacket || st == wire.NoDB || st == wire.Mode || st == wire.NoCondition {
			k.fail("status", "%s of %q by client %d.%d ends with %s", o.m.Op, o.key, o.cl.h.pnn, o.cl.id, st)
		}
	}
}

func (k *checker) piecesOwner(o *operation, opid protocol.OPID) {
	if o.db == dbPieces && o.m.Op == wire.ReqConditionalAppend {
		k.owner[fold(o.m.Data)] = opid
	}
}

// mayRemove: the dispatcher may take this piece away from now on.
func (k *checker) mayRemove(m mine) {
	k.add(name(dbPieces, []byte(m.key)), &histOp{kind: "remove", arg: fold([]byte(m.data)), call: k.c.now})
}

// S1, when a record appears at a node.
func (k *checker) owns(h *host, r *record) {
	if k.c.figures || !serving(h) {
		return
	}
	for _, o := range k.c.hosts {
		if o != h && serving(o) {
			if x := o.seg.recs[name(r.db, []byte(r.key))]; x != nil && x.prov == 0 {
				k.fail("S1", "%q is owned by node %d and node %d, both with an open gate and a live lease", r.key,
					h.pnn, o.pnn)
			}
		}
	}
}

func serving(h *host) bool { return h.seg.live() }

// published: S5.
func (k *checker) published(h *host, r *record) {
	if k.c.figures {
		return
	}
	k.owns(h, r)
	n := name(r.db, []byte(r.key))
	if k.away[n] {
		delete(k.away, n)
		k.stale[n] = k.copies(n)
	}
	if h.stable.Taken < k.newest {
		return // voted out: a write there counts for nothing
	}
	if len(r.data) == 0 {
		delete(k.since, n)
	} else if _, ok := k.since[n]; !ok && serving(h) {
		k.since[n] = k.c.now
	}
	if r.rsn <= k.lastRSN[n] && serving(h) {
		k.fail("S5", "RSN of %q at node %d is %d after %d", r.key, h.pnn, r.rsn, k.lastRSN[n])
	}
	k.lastRSN[n] = max(k.lastRSN[n], r.rsn)
}

func (k *checker) removed(h *host, r *record) {
	if k.c.figures {
		return
	}
	n := name(r.db, []byte(r.key))
	k.away[n] = true
	if len(r.data) == 0 {
		delete(k.lastRSN, n)
	}
}

// copied is one carried copy.
type copied struct {
	carrier protocol.PNN
	bound   protocol.PNN
	reqid   protocol.ReqID
	rsn     uint64
}

// copies of one key anywhere.
func (k *checker) copies(key string) (cs []copied) {
	for _, o := range k.c.hosts {
		o.stable.EachCarried(func(db uint32, kb []byte, bound protocol.PNN, reqid protocol.ReqID, rsn uint64) {
			if db == uint32(key[0]) && string(kb) == key[1:] {
				cs = append(cs, copied{o.pnn, bound, reqid, rsn})
			}
		})
	}
	return cs
}

// bypassSuccess: a client says that its update counts. The node must not be out
// of the cluster by then.
func (k *checker) bypassSuccess(h *host, s *segment) {
	if k.newest > s.gate.Epoch {
		for _, o := range k.c.hosts {
			if o.up && o.seg.gate.Epoch == k.newest {
				if !inMap(o.stable, h.pnn, s.life) {
					k.fail("bypass", "an update at node %d counts, though epoch %x is open without it", h.pnn, k.newest)
				}
				return
			}
		}
	}
}

func inMap(s *protocol.Memory, p protocol.PNN, life uint64) bool {
	for _, m := range s.Map.Members {
		if m.PNN == p && m.Life == life {
			return true
		}
	}
	return false
}

// lifeEnds: a segment's records are gone for good, also for a recovery that has
// seen them already.
func (k *checker) lifeEnds(h *host) {
	gone := map[string]bool{}
	for n := range h.seg.recs {
		gone[n] = true
	}
	for _, o := range k.c.hosts {
		o.stable.EachCarried(func(db uint32, key []byte, bound protocol.PNN, reqid protocol.ReqID, rsn uint64) {
			n := name(db, key)
			if o == h || bound == h.pnn {
				gone[n] = true
			}
			if bound == h.pnn { // who asked for it has forgotten: it can't be the record any more
				k.stale[n] = append(k.stale[n], copied{o.pnn, bound, reqid, rsn})
			}
		})
	}
	for e, s := range k.snaps {
		if !k.openings[e] {
			for n := range gone {
				s.legit[n] = true
			}
		}
	}
}

// snapshot is what the cluster held when the first node took a map.
type snapshot struct {
	at    instant
	legit map[string]bool
	some  map[string]bool // non-empty somewhere
}

// took: S6, and the state before the first claim.
func (k *checker) took(h *host, e protocol.Epoch) {
	m := fmt.Sprint(h.stable.Map.Members)
	if old, ok := k.maps[e]; ok && old != m {
		k.fail("S6", "epoch %x has two maps: %s and %s", e, old, m)
	}
	k.maps[e] = m
	k.c.trace("node %d takes epoch %x map %s", h.pnn, e, m)
	if k.snaps[e] == nil {
		cold := true
		for _, m := range h.stable.Map.Members {
			cold = cold && m.Joiner
		}
		if cold {
			clear(k.vnns) // also if it never opens: the next may be made from its members
		}
		k.snaps[e] = k.snapshot(h, e)
	}
}

func (k *checker) snapshot(h *host, e protocol.Epoch) *snapshot {
	s := &snapshot{at: k.c.now, legit: map[string]bool{}, some: map[string]bool{}}
	keeps := map[protocol.PNN]bool{}
	for _, m := range h.stable.Map.Members {
		keeps[m.PNN] = !m.Joiner
	}
	all := map[string]bool{}
	for key := range k.hist {
		all[key] = true
	}
	for key := range all {
		owned, safe := false, false
		for _, o := range k.c.hosts {
			if r := o.seg.recs[key]; r != nil && r.prov == 0 {
				owned = true
				if keeps[o.pnn] {
					safe = true
					s.some[key] = len(r.data) > 0
				}
			}
		}
		if owned {
			s.legit[key] = !safe
			continue
		}
		// Only a copy that was made since the record last arrived anywhere is the
		// record; an older one may still lie about where no ack could free it.
		s.legit[key] = true
		for _, c := range k.copies(key) {
			if !slices.Contains(k.stale[key], c) && keeps[c.carrier] && keeps[c.bound] {
				s.legit[key] = false
			}
		}
	}
	return s
}

// gateOpens: S1 for all that the node has.
func (k *checker) gateOpens(h *host) {
	if k.c.figures {
		return // a million records are not looked at one by one
	}
	for _, r := range h.seg.sorted() {
		k.owns(h, r)
	}
}

// opened: the first member opens an epoch; what was lost is lost now.
func (k *checker) opened(h *host) {
	e := h.stable.Taken
	if k.openings[e] {
		return
	}
	if k.snaps[e] == nil {
		k.took(h, e) // the only member: it took the map in this very step
	}
	k.openings[e] = true
	k.recovs++
	if e < k.newest {
		k.fail("S6", "epoch %x opens after epoch %x", e, k.newest)
	}
	k.newest = e
	cold := true
	for _, m := range h.stable.Map.Members {
		cold = cold && m.Joiner
	}
	if nodes := len(k.c.hosts) - bits.OnesCount64(uint64(k.c.files[h.file])); cold &&
		2*len(h.stable.Map.Members) <= nodes {
		k.fail("S6", "epoch %x starts cold with %d of %d nodes", e, len(h.stable.Map.Members), nodes)
	}
	if cold {
		clear(k.vnns)
	}
	for _, m := range h.stable.Map.Members {
		if was, ok := k.vnns[m.VNN]; ok {
			k.fail("S6", "VNN %d of epoch %x is given out again in epoch %x", m.VNN, was, e)
		}
		k.vnns[m.VNN] = e
	}
	s := k.snaps[e]
	members := map[protocol.PNN]bool{}
	for _, m := range h.stable.Map.Members {
		members[m.PNN] = true
	}
	for _, key := range append([]string(nil), k.keys...) {
		var now *record
		owners := 0
		for _, o := range k.c.hosts {
			if r := o.seg.recs[key]; r != nil && members[o.pnn] && o.stable.Taken == e {
				now = r
				owners++
			}
		}
		if owners > 1 {
			k.fail("S1", "%q is owned by %d members when epoch %x opens", key, owners, e)
		}
		if delete(k.since, key); now != nil && len(now.data) > 0 {
			k.since[key] = k.c.now // pieces of the dead went without being published
		}
		k.voids(h.stable, key, s.legit[key])
		if !s.legit[key] {
			if now == nil && s.some[key] {
				k.fail("lost", "%q is lost in epoch %x, though its owner or a carrier and its receiver are members",
					key, e)
			}
			if key[0] == dbPieces {
				k.add(key, &histOp{kind: "sweep", call: s.at, ret: k.c.now, dead: k.deadPieces(h.stable)})
			}
			continue
		}
		data := ""
		if now != nil {
			data = fold(now.data)
			if key[0] == dbKV && data != "" && now.rsn < k.lastRSN[key] {
				k.fail("S5", "%q has RSN %d and a value when epoch %x opens, and had %d", key, now.rsn, e,
					k.lastRSN[key])
			}
		}
		delete(k.lastRSN, key)
		k.lost(key, s.at, data)
	}
}

func (k *checker) deadPieces(s *protocol.Memory) map[string]bool {
	dead := map[string]bool{}
	for piece, o := range k.owner {
		if !inMap(s, o.PNN, o.Life) {
			dead[piece] = true
		}
	}
	return dead
}

// lost: the key begins anew with what was re-supplied. Operations under way may
// have been seen before they went with the record, and be done again.
func (k *checker) lost(key string, from instant, data string) {
	r := &histOp{kind: "reset", out: data, call: from, ret: k.c.now}
	for _, h := range k.hist[key] {
		if h.kind != "fetch" && h.kind != "reset" && h.kind != "sweep" && h.kind != "maybe" && h.ret == 0 &&
			h.call < k.c.now {
			k.add(key, &histOp{kind: "maybe", ops: []*histOp{h}, call: h.call, ret: k.c.now})
		}
	}
	k.add(key, r)
}

// quiet tells what is still under way; "" is nothing.
func (k *checker) quiet() string {
	var busy []string
	var epoch protocol.Epoch
	for _, h := range k.c.hosts {
		switch {
		case !h.up:
			busy = append(busy, fmt.Sprintf("node %d is down", h.pnn))
			continue
		case h.seg.gate.State != protocol.GateOpen:
			busy = append(busy, fmt.Sprintf("node %d: gate %d", h.pnn, h.seg.gate.State))
		case epoch != 0 && h.seg.gate.Epoch != epoch:
			busy = append(busy, fmt.Sprintf("node %d: epoch %x", h.pnn, h.seg.gate.Epoch))
		}
		epoch = h.seg.gate.Epoch
		if n := h.stable.Pending(); n > 0 {
			busy = append(busy, fmt.Sprintf("node %d: %d pending", h.pnn, n))
		}
		h.stable.EachCarried(func(_ uint32, key []byte, bound protocol.PNN, reqid protocol.ReqID, _ uint64) {
			busy = append(busy, fmt.Sprintf("node %d carries %q for %d, reqid %d", h.pnn, key, bound, reqid))
		})
		for _, cl := range h.clients {
			if cl.alive && !cl.idle {
				what := "holds a lock"
				if cl.wait != nil {
					what = fmt.Sprintf("waits for %s %q since %.3f", cl.wait.m.Op, cl.wait.key,
						float64(cl.wait.call)/1e6)
				}
				busy = append(busy, fmt.Sprintf("client %d.%d %s", h.pnn, cl.id, what))
			}
		}
	}
	return strings.Join(busy, "; ")
}

// final looks at pieces and owners when all is quiet: S4, S8.
func (k *checker) final() {
	where := map[string]*record{}
	for _, h := range k.c.hosts {
		for _, r := range h.seg.sorted() {
			n := name(r.db, []byte(r.key))
			if where[n] != nil {
				k.fail("S1", "%q has two owners in the end", r.key)
			}
			where[n] = r
		}
	}
	claimed := map[string]bool{}
	for _, h := range k.c.hosts {
		for _, cl := range h.clients {
			if !cl.alive || cl.seg != h.seg {
				continue
			}
			for _, m := range cl.pieces {
				claimed[fold([]byte(m.data))] = true
				if r := where[name(dbPieces, []byte(m.key))]; r == nil || !hasPiece(r, m.opid) {
					if k.c.unsureOf(cl, m) {
						continue
					}
					k.fail("S4", "piece %s of client %d.%d is not in %q", fold([]byte(m.data)), h.pnn, cl.id, m.key)
				}
			}
		}
		h.stable.EachPiece(func(j *protocol.Piece) {
			if j.State != protocol.PieceLive {
				return
			}
			if cl := h.client(j.Client); cl != nil && !cl.alive {
				k.fail("S4", "piece %s of client %d.%d, which is dead, is live in the journal", fold(j.Data), h.pnn,
					j.Client)
			}
			claimed[fold(j.Data)] = true
			if r := where[name(j.DB, j.Key)]; r == nil || !hasPiece(r, j.OPID) {
				k.fail("S4", "piece %s of client %d.%d is live in the journal and not in %q", fold(j.Data), h.pnn,
					j.Client, j.Key)
			}
		})
	}
	names := make([]string, 0, len(where))
	for n := range where {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		r := where[n]
		if r.db != dbPieces {
			continue
		}
		each(fold(r.data), func(p string) {
			if !claimed[p] {
				k.fail("S4", "piece %s in %q belongs to nobody", p, r.key)
			}
		})
	}
}

// unsureOf: the append ended as unknown, so it may not have happened.
func (c *Cluster) unsureOf(cl *client, m mine) bool {
	for _, h := range c.check.hist[name(dbPieces, []byte(m.key))] {
		if h.kind == "append" && h.arg == fold([]byte(m.data)) && h.ret == 0 {
			return true
		}
	}
	return false
}

func hasPiece(r *record, o protocol.OPID) bool {
	for rest := r.tags; len(rest) > 0; {
		t, next, _ := wire.NextTag(rest)
		if t.OPID == o {
			return true
		}
		rest = next
	}
	return false
}
