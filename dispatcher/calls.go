package dispatcher

import (
	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/protocol/wire"
	"github.com/mainzdb/mainz/shm"
)

// state is one call of a client, from its first cell until its reply is given.
type state struct {
	client   *client
	id       uint32
	cookie   uint64 // names it to the core; never used again
	total    uint32 // bytes of the request
	request  []byte // as far as it has come
	running  bool   // the core has it
	line     int    // in the segment; -1: none
	kind     call.Kind
	status   wire.Status
	why      uint32
	reply    []byte
	given    uint32 // bytes of the reply that stand in cells
	answered bool
}

// calls are all calls under way, and their lines in the segment.
type calls struct {
	seg    *shm.Segment
	node   *call.Node
	states []*state
	free   []uint32 // places in states
	turns  uint32   // makes cookies unique
	spare  []*state
	lines  []int // free ones
	// What the dispatcher before this one has done and may not have answered.
	done map[doneKey]int
}

type doneKey struct{ slot, generation, call uint32 }

func (c *calls) begin(cl *client, id uint32) *state {
	var st *state
	if n := len(c.spare); n > 0 {
		st, c.spare = c.spare[n-1], c.spare[:n-1]
	} else {
		st = &state{}
	}
	var at uint32
	if n := len(c.free); n > 0 {
		at, c.free = c.free[n-1], c.free[:n-1]
	} else {
		at = uint32(len(c.states))
		c.states = append(c.states, nil)
	}
	c.turns++
	*st = state{client: cl, id: id, cookie: uint64(c.turns)<<32 | uint64(at) + 1, line: -1, request: st.request[:0],
		reply: st.reply[:0], kind: call.Reply}
	c.states[at] = st
	return st
}

// find returns the call of that cookie; nil: it has ended.
func (c *calls) find(cookie uint64) *state {
	at := uint32(cookie) - 1
	if uint64(at) >= uint64(len(c.states)) || c.states[at] == nil || c.states[at].cookie != cookie {
		return nil
	}
	return c.states[at]
}

// end forgets a call: its reply was given, or nobody wants one.
func (c *calls) end(st *state) {
	if st.line >= 0 {
		c.freeLine(st.line)
	}
	at := uint32(st.cookie) - 1
	c.states[at] = nil
	c.free = append(c.free, at)
	st.client = nil
	if cap(st.request) > 64<<10 || cap(st.reply) > 64<<10 || len(c.spare) >= 1024 {
		return
	}
	c.spare = append(c.spare, st)
}

func (c *calls) freeLine(i int) {
	c.node.Line[i].State.Store(call.LineFree)
	c.lines = append(c.lines, i)
}

// intend takes a line for the call of that cookie and notes what is about to
// change: the record's sequence number will be rsn, or if that is 0 its lock
// will be the client's. -1: there is no line left, or no such call.
func (c *calls) intend(cookie uint64, db uint32, key []byte, rsn uint64) int {
	st := c.find(cookie)
	if st == nil || len(c.lines) == 0 || len(key) > call.MaxKey {
		return -1
	}
	i := c.lines[len(c.lines)-1]
	c.lines = c.lines[:len(c.lines)-1]
	l := &c.node.Line[i]
	l.Slot.Store(st.client.slot)
	l.Generation.Store(st.client.generation)
	l.Call.Store(st.id)
	l.Status.Store(uint32(wire.OK))
	l.RSN.Store(rsn)
	l.State.Store(call.LineIntent)
	c.node.IntentDB.Store(db)
	c.node.IntentRSN.Store(rsn)
	c.seg.Region().CopyIn(call.IntentKeyOffset(c.seg), key)
	c.node.IntentLen.Store(uint32(len(key)))
	c.node.IntentLine.Store(uint32(i) + 1)
	st.line = i
	return i
}

// did notes that the change has happened, or that it has not.
func (c *calls) did(cookie uint64, line int, happened bool) {
	if line < 0 {
		return
	}
	if happened {
		c.node.Line[line].State.Store(call.LineDone)
		c.node.IntentLine.Store(0)
		return
	}
	c.node.IntentLine.Store(0)
	c.freeLine(line)
	if st := c.find(cookie); st != nil {
		st.line = -1
	}
}

// settle decides about the change that was under way when the last dispatcher
// died, and sorts the lines. The record is still locked by the dispatcher if it
// was: nobody can have changed it since.
func (c *calls) settle(s *store, serves func(slot, generation uint32) bool) {
	c.done = map[doneKey]int{}
	if i := c.node.IntentLine.Load(); i != 0 && i <= call.Lines {
		l := &c.node.Line[i-1]
		if n := c.node.IntentLen.Load(); l.State.Load() == call.LineIntent && n >= 1 && n <= call.MaxKey {
			key := make([]byte, n)
			c.seg.Region().CopyOut(key, call.IntentKeyOffset(c.seg))
			db, rsn := c.node.IntentDB.Load(), c.node.IntentRSN.Load()
			var happened bool
			if rsn == 0 {
				happened = s.keeper.Gave(db, key, l.Slot.Load(), l.Generation.Load())
			} else {
				happened = s.keeper.Look(db, key, &s.held) && s.held.RSN == rsn
			}
			if happened {
				l.State.Store(call.LineDone)
			}
		}
	}
	c.node.IntentLine.Store(0)
	for i := call.Lines - 1; i >= 0; i-- {
		l := &c.node.Line[i]
		if l.State.Load() == call.LineDone && serves(l.Slot.Load(), l.Generation.Load()) {
			c.done[doneKey{l.Slot.Load(), l.Generation.Load(), l.Call.Load()}] = i
			continue
		}
		if l.State.Load() != call.LineFree {
			l.State.Store(call.LineFree)
		}
		c.lines = append(c.lines, i)
	}
}

// forget frees the lines of the last dispatcher that a client did not ask for,
// or all of one that is gone.
func (c *calls) forget(slot, generation uint32) {
	for k, i := range c.done {
		if k.slot == slot && k.generation == generation {
			c.freeLine(i)
			delete(c.done, k)
		}
	}
}
