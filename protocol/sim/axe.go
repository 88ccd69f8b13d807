package sim

import (
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

// A dispatcher may die between any two of its stores. So each change of Stable, of the
// segment and of what others see counts as a point, and before any of them it can end.

// killed is what ends a step in its middle.
type killed struct{ h *host }

// point stands before each store of a dispatcher.
func (h *host) point() {
	h.points++
	if h.killAt != 0 && h.points >= h.killAt {
		panic(killed{h})
	}
}

// guard does f on the dispatcher's thread, which may end before it has.
func (h *host) guard(f func()) {
	if h.killAt == 0 {
		f()
		return
	}
	defer func() {
		switch r := recover().(type) {
		case nil:
		case killed:
			if r.h != h {
				panic(r)
			}
			h.died()
		default:
			panic(r)
		}
	}()
	f()
}

// died in the middle of a step.
func (h *host) died() {
	c := h.c
	c.trace("node %d dies before store %d", h.pnn, h.points)
	h.killAt, c.aside = 0, false
	c.cut++
	h.seg.unpublished()
	h.crash(false)
	start := h.start
	c.after(c.between(us, 20*ms), func() {
		if h.start == start && !h.up {
			h.boot()
		}
	})
}

// unpublished records that were to arrive are nobody's.
func (s *segment) unpublished() {
	for _, r := range s.sorted() {
		if r.arriving {
			s.remove(r)
		}
	}
}

// mortal is a host's Stable, before each change of which its dispatcher may die.
type mortal struct {
	*protocol.Memory
	h *host
}

func (m mortal) Promise(b protocol.Epoch) { m.h.point(); m.Memory.Promise(b) }
func (m mortal) TakeMap(b protocol.Epoch, ms []wire.Member, v protocol.VNN) {
	m.h.point()
	m.Memory.TakeMap(b, ms, v)
}

func (m mortal) NewLife(b protocol.Epoch, ms []wire.Member, v protocol.VNN, life uint64) {
	m.h.point()
	m.Memory.NewLife(b, ms, v, life)
}

func (m mortal) Open(e protocol.Epoch)                  { m.h.point(); m.Memory.Open(e) }
func (m mortal) Tell(s wire.Set, life uint64)           { m.h.point(); m.Memory.Tell(s, life) }
func (m mortal) SetFile(f protocol.NodesFile)           { m.h.point(); m.Memory.SetFile(f) }
func (m mortal) AddDatabase(d *protocol.DB) bool        { m.h.point(); return m.Memory.AddDatabase(d) }
func (m mortal) ErasePending(at int)                    { m.h.point(); m.Memory.ErasePending(at) }
func (m mortal) PutDone(l *protocol.DoneLine) int       { m.h.point(); return m.Memory.PutDone(l) }
func (m mortal) SetDone(at int)                         { m.h.point(); m.Memory.SetDone(at) }
func (m mortal) EraseDone(at int)                       { m.h.point(); m.Memory.EraseDone(at) }
func (m mortal) PutLock(l *protocol.LockLine) int       { m.h.point(); return m.Memory.PutLock(l) }
func (m mortal) SetLock(at int, r protocol.ReqID)       { m.h.point(); m.Memory.SetLock(at, r) }
func (m mortal) EraseLock(at int)                       { m.h.point(); m.Memory.EraseLock(at) }
func (m mortal) PutCarried(l *protocol.CarriedLine) int { m.h.point(); return m.Memory.PutCarried(l) }
func (m mortal) SetCarried(at int)                      { m.h.point(); m.Memory.SetCarried(at) }
func (m mortal) EraseCarried(at int)                    { m.h.point(); m.Memory.EraseCarried(at) }
func (m mortal) ErasePiece(o protocol.OPID)             { m.h.point(); m.Memory.ErasePiece(o) }

func (m mortal) PutPending(at int, l *protocol.PendingLine) bool {
	m.h.point()
	return m.Memory.PutPending(at, l)
}

func (m mortal) SetPending(at int, s *protocol.PendingState) {
	m.h.point()
	m.Memory.SetPending(at, s)
}

func (m mortal) TrimCarried(at int, data, tags, dones []byte) {
	m.h.point()
	m.Memory.TrimCarried(at, data, tags, dones)
}

func (m mortal) PutPiece(o protocol.OPID, c protocol.ClientID, db uint32, key, data []byte) bool {
	m.h.point()
	return m.Memory.PutPiece(o, c, db, key, data)
}

func (m mortal) SetPiece(o protocol.OPID, s protocol.PieceState) {
	m.h.point()
	m.Memory.SetPiece(o, s)
}
