package ring

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/mainzdb/mainz/shm"
)

// Options say how one end of a ring waits, and how it wakes the other.
type Options struct {
	// Idle is what to do before sleeping.
	Idle Strategy
	// Spin is how long Adaptive spins, as SpinTicks has said in another process of
	// this machine; 0: it is measured at the first wait.
	Spin uint64
	// Wait sleeps until w changes or is woken, until the process at the other
	// end dies, until *cancel is not 0, or for some time; nil is to look again.
	// WaitFor makes one of a client of a segment. Nil: slices of 20 ms, which
	// see no deaths.
	Wait func(w shm.Watch, cancel *shm.Word32) error
	// Bell is what a producer rings if the consumer sleeps on file
	// descriptors; nil: it sleeps in Consumer.Wait.
	Bell *Bell
}

// WaitFor returns an Options.Wait for client c, with the client in slot owner
// at the other end: its death ends the wait, and its slot is recovered.
func WaitFor(c *shm.Client, owner uint32) func(shm.Watch, *shm.Word32) error {
	return func(w shm.Watch, cancel *shm.Word32) error { return c.WaitOwner(owner, w, cancel, 0) }
}

// Producer is the end of a ring that a process puts messages in.
type Producer struct {
	view
	asleep *shm.Word32 // the consumer's, in the ring or of the bell
	opts   Options
	off    shm.Offset

	// What is known of h.released, which is at least this.
	released atomic.Uint64
	waiting  atomic.Int32  // goroutines in claimSlow
	turn     chan struct{} // one of these at a time looks for room
}

// OpenProducer opens the end of a ring that messages are put in.
func OpenProducer(r *shm.Region, off shm.Offset, cells int, opts Options) (*Producer, error) {
	v, err := open(r, off, cells)
	if err != nil {
		return nil, err
	}
	p := &Producer{view: v, asleep: &v.h.asleep, opts: opts, off: off, turn: make(chan struct{}, 1)}
	if opts.Bell != nil {
		p.asleep = opts.Bell.word
	}
	if p.opts.Wait == nil {
		p.opts.Wait = waitSlice
	}
	released := v.h.released.Load()
	if v.h.claimed.Load()-released > uint64(cells) {
		return nil, fmt.Errorf("ring: at %d: %w", off, errPositions)
	}
	p.released.Store(released)
	return p, nil
}

// Repair aborts what the dead producer before this one had claimed and not
// committed, and returns how many cells that were. It wakes the consumer in
// any case: the dead one may have been about to. It may be repeated.
//
// Preconditions: no thread of the dead producer runs any more, and this one
// has claimed nothing yet.
func (p *Producer) Repair() (int, error) {
	n, err := p.repair(p.released.Load())
	p.ring()
	if p.opts.Bell == nil && !planted("repairwake") {
		p.asleep.Wake(shm.All)
	}
	if err != nil {
		err = fmt.Errorf("ring: repair at %d: %w", p.off, err)
	}
	return n, err
}

// Claim is one cell to put a message in. Until it is committed or aborted the
// consumer gets none of the later ones.
type Claim struct {
	p   *Producer
	pos uint64
}

// TryClaim claims the next cell: ErrFull if there is none, ErrCorrupt if the
// ring's words make no sense. It never waits.
func (p *Producer) TryClaim() (Claim, error) {
	// Without end only while others of this process go on.
	for {
		pos := p.h.claimed.Load()
		if pos-p.released.Load() > p.mask {
			if err := p.room(pos); err != nil {
				return Claim{}, err
			}
		}
		if p.h.claimed.CAS(pos, pos+1) {
			return Claim{p, pos}, nil
		}
	}
}

// room looks whether the consumer has released cells so that pos can be claimed.
func (p *Producer) room(pos uint64) error {
	released := p.h.released.Load()
	if p.h.claimed.Load() != pos {
		return nil // another goroutine was faster: the CAS of pos will fail
	}
	// pos was claimed's value after released was loaded, so it is not less.
	switch used := pos - released; {
	case used > p.mask+1:
		return errPositions
	case used == p.mask+1:
		return ErrFull
	}
	// Another goroutine may know better; then this makes it look again.
	p.released.Store(released)
	return nil
}

// Claim is TryClaim that waits for room until ctx ends. Those who wait get
// their cells in the order in which they came.
func (p *Producer) Claim(ctx context.Context) (Claim, error) {
	if p.waiting.Load() == 0 {
		if c, err := p.TryClaim(); err != ErrFull {
			return c, err
		}
	}
	return p.claimSlow(ctx)
}

func (p *Producer) claimSlow(ctx context.Context) (Claim, error) {
	p.waiting.Add(1)
	defer p.waiting.Add(-1)
	// One goroutine waits in the kernel, for all: else each would need a thread.
	select {
	case p.turn <- struct{}{}:
	default:
		select {
		case p.turn <- struct{}{}:
		case <-ctx.Done():
			return Claim{}, ctx.Err()
		}
	}
	defer func() { <-p.turn }()
	idle := p.opts.Idle.startAt(p.opts.Spin)
	var s sleeper
	defer s.stop()
	for {
		c, err := p.TryClaim()
		if err != ErrFull {
			return c, err
		}
		if err := ctx.Err(); err != nil {
			return Claim{}, err
		}
		if idle.Again() {
			continue
		}
		v := p.h.full.Load()
		if v&1 == 0 {
			if !p.h.full.CAS(v, v+1) {
				continue
			}
			v++
		} else {
			// It is odd already: from this process, by one who died asleep,
			// or of this very loop. A barrier is needed all the same.
			p.h.full.CAS(v, v)
		}
		if !planted("fulllook") {
			if c, err := p.TryClaim(); err != ErrFull {
				return c, err
			}
		}
		if err := p.opts.Wait(shm.Watch{W: &p.h.full, Val: v}, s.cancel(ctx)); err != nil {
			return Claim{}, fmt.Errorf("ring: wait for room: %w", err)
		}
	}
}

// Commit fills the cell with m and gives it to the consumer. The claim is used up.
func (c Claim) Commit(m *Message) {
	cell := c.p.at(c.pos)
	if planted("fill") {
		cell.seq.Swap(committed(c.pos))
	}
	cell.put(m)
	c.publish(cell, committed(c.pos))
}

// Abort gives the cell back without a message. The claim is used up.
func (c Claim) Abort() { c.publish(c.p.at(c.pos), committed(c.pos)|aborted) }

// publish stores the sequence number by a full barrier, and looks then whether
// the consumer sleeps.
func (c Claim) publish(cell *cell, seq uint64) {
	cell.seq.Swap(seq)
	if c.p.asleep.Load()&1 != 0 {
		c.p.ring()
	}
}

// ring wakes the consumer if it sleeps. See doc.go for the order.
func (p *Producer) ring() {
	v := p.asleep.Load()
	switch {
	case v&1 == 0:
	case p.opts.Bell != nil:
		p.opts.Bell.ring(v)
	case planted("wake"):
		p.asleep.Wake(1)
		p.asleep.CAS(v, v+1)
	case p.asleep.CAS(v, v+1):
		p.asleep.Wake(1)
	}
}

// put stores the message, word by word: seven moves where a copy of 56 bytes
// would be a call.
func (c *cell) put(m *Message) {
	c.head[0].Store(m.Head[0])
	c.head[1].Store(m.Head[1])
	c.data[0].Store(word(m, 0))
	c.data[1].Store(word(m, 1))
	c.data[2].Store(word(m, 2))
	c.data[3].Store(word(m, 3))
	c.data[4].Store(word(m, 4))
}
