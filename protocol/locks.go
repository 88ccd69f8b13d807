package protocol

import (
	"bytes"
	"slices"

	"github.com/mainzdb/mainz/protocol/wire"
)

// heldLock is a record lock that a client of this node holds at another. A dispatcher
// that is started again knows none of them: LCKTIMEOUT ends those of clients that die then.
type heldLock struct {
	client ClientID
	id     ReqID
	db     uint32
	key    []byte
	until  Instant // about: it began earlier there
}

// remoteLocks notes which clients hold locks at other nodes, so that those of the dead
// are let go. Those that have run out there anyway are forgotten.
func (n *Node) remoteLocks(p *pending, st wire.Status, lock ReqID) {
	switch p.m.Op {
	case wire.ReqUnlock, wire.ReqStoreUnlock:
		if p.m.LockID != 0 {
			n.letGo(p.m.LockID)
		}
	case wire.ReqFetchLocked:
		if st == wire.OK && lock != 0 && p.client != 0 && !p.abandoned {
			n.locks = slices.DeleteFunc(n.locks, func(o heldLock) bool { return o.until <= n.now || o.id == lock })
			n.locks = append(n.locks, heldLock{client: p.client, id: lock, db: p.m.DBID, key: bytes.Clone(p.m.Key), until: n.now + Instant(p.m.LockTimeout)*ms})
		}
	}
}

func (n *Node) letGo(id ReqID) {
	n.locks = slices.DeleteFunc(n.locks, func(o heldLock) bool { return o.id == id })
}
