package protocol

import (
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
// are let go.
func (n *Node) remoteLocks(p *pending, st wire.Status, lock ReqID) {
	switch p.m.Op {
	case wire.ReqUnlock, wire.ReqStoreUnlock:
		if p.m.LockID != 0 {
			n.letGo(p.m.LockID)
		}
	case wire.ReqFetchLocked:
		if st == wire.OK && lock != 0 && p.client != 0 && !p.abandoned {
			n.noteLock(p, lock)
		}
	}
}

// noteLock puts a lock behind the others. The places behind the last keep their keys'
// buffers. Those that have run out at the other node anyway are forgotten.
func (n *Node) noteLock(p *pending, lock ReqID) {
	k := 0
	for i := range n.locks {
		if o := &n.locks[i]; o.until > n.now && o.id != lock {
			n.locks[k], n.locks[i] = *o, n.locks[k]
			k++
		}
	}
	n.locks = slices.Grow(n.locks[:k], 1)[:k+1]
	l := &n.locks[k]
	*l = heldLock{client: p.client, id: lock, db: p.m.DBID, key: append(l.key[:0], p.m.Key...), until: n.now + Instant(p.m.LockTimeout)*ms}
}

// letGo: a lock has ended. It is one of the last more often than not.
func (n *Node) letGo(id ReqID) {
	for i := len(n.locks) - 1; i >= 0; i-- {
		if n.locks[i].id == id {
			n.forgetLock(i)
			return
		}
	}
}

// forgetLock keeps the order of the others, and the buffer for the next one. The key
// stays as it is until then.
func (n *Node) forgetLock(i int) {
	l := n.locks[i]
	last := len(n.locks) - 1
	copy(n.locks[i:], n.locks[i+1:])
	n.locks[last] = l
	n.locks = n.locks[:last]
}

// dropLocks lets the locks go that a dead client has at other nodes. No operation of
// that client notes another one meanwhile.
func (n *Node) dropLocks(c ClientID) {
	for {
		i := slices.IndexFunc(n.locks, func(l heldLock) bool { return l.client == c })
		if i < 0 {
			return
		}
		l := n.locks[i]
		n.forgetLock(i)
		n.undo(&Message{Op: wire.ReqUnlock, DBID: l.db, Key: l.key, LockID: l.id, Timeout: 1000}, false)
	}
}
