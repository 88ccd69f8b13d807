package protocol

import (
	"bytes"
	"fmt"

	"github.com/mainzdb/mainz/protocol/wire"
)

// DB is a database of the cluster. Its name, mode and condition versions are fixed
// by the first OPEN_DB that the coordinator sees, for as long as any member that
// keeps its data knows it.
type DB struct {
	ID    uint32
	Mode  Mode
	Name  string
	Conds []byte // rows of wire.Cond
}

func (s *mirror) db(id uint32) *DB {
	for i := range s.dbs {
		if s.dbs[i].ID == id {
			return &s.dbs[i]
		}
	}
	return nil
}

// ask is a question that a request of an unknown database waits for.
type ask struct {
	db     uint32
	to     PNN
	denied bool
}

func (n *Node) mode(db uint32) Mode {
	if n.cfg.Mode != nil {
		return n.cfg.Mode(db)
	}
	if d := n.s.db(db); d != nil {
		return d.Mode
	}
	return NoMode
}

// knowDB: may a message be handled, as its database is known? If not, whoever sent
// the request is asked, and the message comes again. Nobody is asked twice; what
// the requester does not know nobody does.
func (n *Node) knowDB(from PNN, m *Message) (v Verdict, known bool) {
	if n.mode(m.DBID) != NoMode || n.cfg.Mode != nil {
		return Handled, true
	}
	if m.Op.IsRequest() {
		src, ok := n.s.Map.pnn(m.Src)
		if !ok || src == n.cfg.Self {
			return Handled, false
		}
		from = src
	}
	for i := range n.asks {
		a := &n.asks[i]
		if a.db != m.DBID || a.to != from {
			continue
		}
		if a.denied && m.Op.IsRequest() {
			n.asks = append(n.asks[:i], n.asks[i+1:]...)
			n.replyError(m, from, wire.NoDB)
			return Handled, false
		}
		return NotYet, false
	}
	if len(n.asks) >= n.cfg.MaxAsks {
		n.reached(LimitAsks)
		return NotYet, false
	}
	n.asks = append(n.asks, ask{db: m.DBID, to: from})
	n.data(from, &Message{Op: wire.DBInfo, DBID: m.DBID, Src: n.ownVNN()}, 0)
	return NotYet, false
}

// routeOpen brings a client's OPEN_DB to the coordinator, if its answer is not
// known here. One node decides what a database is, or two that are opened at once
// could differ.
func (n *Node) routeOpen(p *pending) {
	d := n.s.db(p.m.DBID)
	c := n.s.Map.coordinator()
	if d == nil && (c == n.cfg.Self || n.plant == plantTwoRegistrars) {
		if d = n.register(&p.m); d == nil {
			n.complete(p, wire.NoMemory, nil, 0, 0, 0)
			return
		}
	}
	if d == nil {
		n.dispatch(p, c, 0)
		return
	}
	n.opened(p, d)
}

// opened ends an OPEN_DB: with MODE, the name and the mode that are fixed, if the
// client wants another database.
func (n *Node) opened(p *pending, d *DB) {
	if d.Name == string(p.m.Data) && d.Mode == Mode(p.m.Mode) && bytes.Equal(d.Conds, p.m.Conds) {
		n.complete(p, wire.OK, nil, 0, 0, 0)
		return
	}
	n.complete(p, wire.Mode, []byte(d.Name), 0, 0, uint32(d.Mode))
}

// register a database by the words of a message, if it is not known; nil: there
// are too many.
func (n *Node) register(m *Message) *DB {
	if d := n.s.db(m.DBID); d != nil {
		return d
	}
	d := DB{ID: m.DBID, Mode: Mode(m.Mode), Name: string(m.Data), Conds: bytes.Clone(m.Conds)}
	if len(n.s.dbs) >= n.cfg.MaxDBs || !n.st.AddDatabase(&d) {
		n.reached(LimitDBs)
		return nil
	}
	n.s.dbs = append(n.s.dbs, d)
	n.eff.DBs, n.eff.Retry = true, true
	return &n.s.dbs[len(n.s.dbs)-1]
}

// openDB at the coordinator.
func (n *Node) openDB(from PNN, m *Message) {
	if n.s.Map.coordinator() != n.cfg.Self {
		n.replyError(m, from, wire.VNNMap)
		return
	}
	d := n.register(m)
	if d == nil {
		n.replyError(m, from, wire.NoMemory)
		return
	}
	n.answerDB(from, d, m)
}

func (n *Node) answerDB(to PNN, d *DB, m *Message) {
	r := Message{Op: wire.ReplyDBInfo, DBID: m.DBID, Src: n.ownVNN(), ReqID: m.ReqID, Status: wire.NoDB}
	if d != nil {
		r.Status, r.Mode, r.Data, r.Conds = wire.OK, uint32(d.Mode), []byte(d.Name), d.Conds
	}
	n.data(to, &r, 0)
}

// learned: REPLY_DB_INFO, to an OPEN_DB or to a question.
func (n *Node) learned(from PNN, m *Message) {
	var d *DB
	if m.Status == wire.OK {
		d = n.learn(m)
	}
	if p := n.byReq[m.ReqID]; p != nil && p.m.Op == wire.OpenDB {
		n.endReq(p)
		if d != nil {
			n.opened(p, d)
		} else {
			n.complete(p, wire.NoMemory, nil, 0, 0, 0)
		}
		return
	}
	for i := range n.asks {
		if a := &n.asks[i]; a.db == m.DBID && a.to == from {
			if a.denied = d == nil; !a.denied && n.plant != plantKeepAsk {
				n.asks = append(n.asks[:i], n.asks[i+1:]...)
			}
			n.eff.Retry = true
			return
		}
	}
}

// learn what another node knows.
func (n *Node) learn(m *Message) *DB {
	d := n.register(m)
	if d != nil && (d.Name != string(m.Data) || d.Mode != Mode(m.Mode)) {
		n.fault(fmt.Sprintf("database %08x is %q of mode %d here, and %q of mode %d elsewhere", m.DBID, d.Name, d.Mode, m.Data, m.Mode))
	}
	return d
}

// tellTable tells the coordinator of the new map of one database that this node knows, as
// it may be the only one that does; and, from one member, those who come without any
// memory.
func (n *Node) tellTable(d *DB) {
	if n.plant == plantNoTable {
		return
	}
	c, first := n.s.Map.coordinator(), wire.NoPNN
	for i := range n.s.Map.Members {
		if e := &n.s.Map.Members[i]; !e.Joiner {
			first = min(first, e.PNN)
		}
	}
	for i := range n.s.Map.Members {
		e := &n.s.Map.Members[i]
		if e.PNN == n.cfg.Self || e.PNN != c && (!e.Joiner || first != n.cfg.Self) {
			continue
		}
		n.rv.inFlight++
		n.send(e.PNN, Control, n.s.Taken, &Message{Op: wire.DBTable, DBID: d.ID, Mode: uint32(d.Mode), Data: []byte(d.Name), Conds: d.Conds}, n.batchToken())
	}
}
