package protocol

import "github.com/mainzdb/mainz/protocol/wire"

// A traverse reads all records of a database on all members of an epoch. Its
// requester opens it on every member before it reads from any. From then on each
// member notes what leaves it, passes through it or comes to it, and gives that out
// with its own records: so what is there throughout is seen at least once, wherever
// it goes, and once if it stays.

// walk is a traverse at a member.
type walk struct {
	from   PNN
	id     uint64
	db     uint32
	cursor uint64 // of the store
	over   bool   // the store has no more
	moved  []byte // rows of wire.Entry
	lost   bool   // there was no room to note what moved
	used   Instant
}

// walking is a traverse at its requester.
type walking struct {
	id    uint64
	db    uint32
	epoch Epoch
	at    int // in the map
	open  bool
	used  Instant
}

const (
	walkOpens = uint64(1) << 63 // flag of a cursor: open it
	walkIdle  = 30_000 * ms     // a traverse that was not asked for so long may be dropped
)

// routeWalk does the next step of a client's traverse: it opens it on all members,
// then reads a batch.
func (n *Node) routeWalk(p *pending) {
	w := n.walkingOf(p)
	if w == nil {
		n.complete(p, wire.NoMemory, nil, 0, 0, 0)
		return
	}
	w.used = n.now
	for w.epoch == n.s.Taken && w.at < len(n.s.Map.Members) {
		to := n.s.Map.Members[w.at].PNN
		if to != n.cfg.Self {
			m := w.id
			if !w.open {
				m |= walkOpens
			}
			p.m.Cursor = m
			n.dispatch(p, to, 0)
			return
		}
		if !w.open {
			if !n.openWalk(to, w.id, w.db) {
				n.endWalking(p, w, wire.NoMemory)
				return
			}
			n.walkOpened(w)
			continue
		}
		rows, more, ok := n.walkBatch(to, w.id)
		n.walked(p, w, rows, more, ok)
		return
	}
	n.endWalking(p, w, wire.VNNMap)
}

// walkingOf finds a client's traverse, or begins one; nil: there are too many. One
// of another epoch is found no more, and that is said by a traverse of epoch 0.
func (n *Node) walkingOf(p *pending) *walking {
	id := p.m.Cursor &^ walkOpens
	free := -1
	for i := range n.walkings {
		w := &n.walkings[i]
		switch {
		case w.id != 0 && w.id == id:
			return w
		case w.id == 0 || n.now-w.used > walkIdle:
			free = i
		}
	}
	if id != 0 {
		return &walking{}
	}
	if free < 0 {
		if len(n.walkings) >= n.cfg.MaxWalks {
			n.reached(LimitWalks)
			return nil
		}
		free = len(n.walkings)
		n.walkings = append(n.walkings, walking{})
	}
	n.walkCount++
	n.walkings[free] = walking{id: n.walkCount, db: p.m.DBID, epoch: n.s.Taken}
	p.m.Cursor = n.walkCount
	return &n.walkings[free]
}

// endWalking without a batch.
func (n *Node) endWalking(p *pending, w *walking, st wire.Status) {
	*w = walking{}
	n.complete(p, st, nil, 0, 0, 0)
}

func (n *Node) walkOpened(w *walking) {
	if w.at++; w.at == len(n.s.Map.Members) {
		w.at, w.open = 0, true
	}
}

// walked: a batch has come. The reply's RSN is the cursor to go on with, 0 at the end.
func (n *Node) walked(p *pending, w *walking, rows []byte, more, ok bool) {
	if !ok {
		n.endWalking(p, w, wire.NoMemory)
		return
	}
	if !more {
		w.at++
	}
	next := w.id
	if w.at == len(n.s.Map.Members) {
		next = 0
		*w = walking{}
	}
	n.complete(p, wire.OK, rows, next, 0, 0)
}

// traversed: REPLY_TRAVERSE.
func (n *Node) traversed(m *Message) {
	p := n.byReq[m.ReqID]
	if p == nil || p.m.Op != wire.ReqTraverse {
		return
	}
	n.endReq(p)
	w := n.walkingOf(p)
	switch {
	case w == nil || w.id == 0:
		n.complete(p, wire.VNNMap, nil, 0, 0, 0)
	case m.Status != wire.OK:
		n.endWalking(p, w, m.Status)
	case w.open:
		n.walked(p, w, m.Rows, m.Cursor != 0, true)
	default:
		n.walkOpened(w)
		n.routeWalk(p)
	}
}

// traverse: TRAVERSE, from another node.
func (n *Node) traverse(from PNN, m *Message) {
	r := Message{Op: wire.ReplyTraverse, DBID: m.DBID, Src: n.ownVNN(), ReqID: m.ReqID}
	id := m.Cursor &^ walkOpens
	if m.Cursor&walkOpens != 0 {
		if !n.openWalk(from, id, m.DBID) {
			r.Status = wire.NoMemory
		}
		n.data(from, &r, 0)
		return
	}
	rows, more, ok := n.walkBatch(from, id)
	switch {
	case !ok:
		r.Status = wire.NoMemory
	case more:
		r.Cursor, r.Rows = id, rows
	default:
		r.Rows = rows
	}
	n.data(from, &r, 0)
}

// openWalk begins to note what moves, with what is on its way now.
func (n *Node) openWalk(from PNN, id uint64, db uint32) bool {
	at := -1
	for i := range n.walks {
		if w := &n.walks[i]; w.id == 0 || n.now-w.used > walkIdle {
			at = i
		}
	}
	if at < 0 {
		if len(n.walks) >= n.cfg.MaxWalks {
			n.reached(LimitWalks)
			return false
		}
		at = len(n.walks)
		n.walks = append(n.walks, walk{})
	}
	w := &n.walks[at]
	*w = walk{from: from, id: id, db: db, used: n.now, moved: w.moved[:0]}
	for r := n.s.recs.first; r != nil; r = r.next {
		for i := range r.carry {
			if c := &r.carry[i]; r.db == db {
				n.noteIn(w, r.key, c.rsn, n.st.Carried(int(c.at)).Data)
			}
		}
	}
	return true
}

// note a record that moves for the traverses that are open here.
func (n *Node) note(r *rec, rsn uint64, data []byte) {
	if n.plant == plantForgetMoves {
		return
	}
	for i := range n.walks {
		if w := &n.walks[i]; w.id != 0 && w.db == r.db {
			n.noteIn(w, r.key, rsn, data)
		}
	}
}

func (n *Node) noteIn(w *walk, key []byte, rsn uint64, data []byte) {
	if len(data) == 0 {
		return
	}
	if len(w.moved)+len(key)+len(data) > n.cfg.MaxMoved {
		n.reached(LimitMoved)
		w.lost, w.moved = n.plant != plantMovedCut, w.moved[:0]
	}
	if !w.lost {
		w.moved = wire.AppendEntry(w.moved, &wire.Entry{RSN: rsn, Key: key, Data: data})
	}
}

// walkBatch gives out some of what is here, and all that has moved.
func (n *Node) walkBatch(from PNN, id uint64) (rows []byte, more, ok bool) {
	for i := range n.walks {
		w := &n.walks[i]
		if w.id != id || w.from != from {
			continue
		}
		if w.lost {
			*w = walk{moved: w.moved[:0]}
			return nil, false, false
		}
		w.used = n.now
		rows = append(n.batch[:0], w.moved...)
		w.moved = w.moved[:0]
		if !w.over {
			w.cursor = n.store.Scan(w.db, w.cursor, func(key []byte, v *Record) bool {
				if !v.Empty() {
					rows = wire.AppendEntry(rows, &wire.Entry{RSN: v.RSN, Key: key, Data: v.Data})
				}
				return len(rows) < n.cfg.ClaimBytes
			})
			w.over = w.cursor == 0
		}
		if n.batch = rows; w.over {
			*w = walk{moved: w.moved}
			return rows, false, true
		}
		return rows, true, true
	}
	return nil, false, false
}
