package mainz

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/protocol/wire"
	"github.com/mainzdb/mainz/ring"
	"github.com/mainzdb/mainz/shm"
)

// callRing is the client's way to the dispatcher. One goroutine takes the
// replies, from the first call on; who calls sleeps until it is told.
type callRing struct {
	out   *ring.Producer
	in    *ring.Consumer
	ctx   context.Context // ends with the client
	end   context.CancelFunc
	ended chan struct{} // the goroutine has ended
	work  chan struct{} // a call is under way
	room  chan struct{} // one for each call
	large chan struct{} // one for each large request
	count atomic.Uint64

	mu         sync.Mutex
	started    bool
	dispatcher uint32 // incarnation
	next       uint32
	calls      map[uint32]*pending
	undone     []uint32 // calls to be abandoned when there is room in the ring
}

// pending is a call under way.
type pending struct {
	id         uint32
	dispatcher uint32 // whom it was sent to
	payload    []byte
	nop        bool
	done       chan struct{}
	status     wire.Status
	why        uint32
	total      uint32
	reply      []byte
	abandoned  bool             // it has not run and will not
	late       func(p *pending) // nobody waits: called when it ends
}

const (
	largeRequest = 4 << 10 // bytes; of these only a few are under way at a time
	largeCalls   = 16
	maxCalls     = call.MaxCalls - 64
	// abandonWait is how long a call whose context has ended waits to be told
	// whether it has run.
	abandonWait = 200 * time.Millisecond
)

func openRing(seg *shm.Segment, slot uint32, bell *ring.Bell) (*callRing, error) {
	out, in, ok := call.Rings(seg, slot)
	if !ok {
		return nil, fmt.Errorf("the segment has no rings for slot %d: %w", slot, ErrIncompatible)
	}
	r := &callRing{ended: make(chan struct{}), work: make(chan struct{}, 1), room: make(chan struct{}, maxCalls), large: make(chan struct{}, largeCalls), calls: map[uint32]*pending{}}
	var err error
	if r.out, err = ring.OpenProducer(seg.Region(), out, call.RequestCells, ring.Options{Bell: bell}); err != nil {
		return nil, err
	}
	if r.in, err = ring.OpenConsumer(seg.Region(), in, call.ReplyCells, ring.Options{}); err != nil {
		return nil, err
	}
	r.ctx, r.end = context.WithCancel(context.Background())
	// The dispatcher has said who it is before it said that we may come.
	r.in.Poll(1, func(m *ring.Message) {
		var h call.Head
		if h.Get(m) != nil && h.Kind == call.Started {
			r.dispatcher = h.Dispatcher
		}
	})
	return r, nil
}

// close ends all calls with ErrClosed.
func (r *callRing) close() {
	r.mu.Lock()
	started := r.started
	r.started = true
	r.end()
	r.mu.Unlock()
	if started {
		<-r.ended
	}
}

// call sends a request and waits for its reply. late is called, by another
// goroutine, if the call ends when nobody waits for it any more.
func (r *callRing) call(ctx context.Context, m *wire.Message, late func(*pending)) (*pending, error) {
	p := &pending{done: make(chan struct{}), late: late}
	p.payload = call.AppendRequest(nil, m)
	if len(p.payload) > largeRequest {
		if err := r.take(ctx, r.large); err != nil {
			return nil, err
		}
		defer func() { <-r.large }()
	}
	return r.do(ctx, p)
}

// nop is a call that does nothing.
func (r *callRing) nop(ctx context.Context) error {
	_, err := r.do(ctx, &pending{done: make(chan struct{}), nop: true})
	return err
}

func (r *callRing) take(ctx context.Context, room chan struct{}) error {
	select {
	case room <- struct{}{}:
		return nil
	default:
	}
	select {
	case room <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return ErrClosed
	}
}

func (r *callRing) do(ctx context.Context, p *pending) (*pending, error) {
	if err := r.take(ctx, r.room); err != nil {
		return nil, err
	}
	defer func() { <-r.room }()
	r.count.Add(1)
	dispatcher, err := r.register(p)
	if err != nil {
		return nil, err
	}
	if err := r.send(ctx, p, dispatcher); err != nil {
		return r.giveUp(p, err)
	}
	select {
	case <-p.done:
		return p, nil
	case <-ctx.Done():
		return r.giveUp(p, ctx.Err())
	case <-r.ctx.Done():
		return nil, ErrClosed
	}
}

// register names the call and makes sure that somebody takes replies.
func (r *callRing) register(p *pending) (dispatcher uint32, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return 0, ErrClosed
	}
	if !r.started {
		r.started = true
		go r.replies()
	}
	for {
		r.next++
		if _, taken := r.calls[r.next]; !taken {
			break
		}
	}
	p.id, p.dispatcher = r.next, r.dispatcher
	r.calls[p.id] = p
	if len(r.calls) == 1 {
		select {
		case r.work <- struct{}{}:
		default:
		}
	}
	return p.dispatcher, nil
}

// send puts the call's cells into the ring, for a dispatcher. Another one that
// starts meanwhile drops them, and then they are sent again.
func (r *callRing) send(ctx context.Context, p *pending, dispatcher uint32) error {
	h := call.Head{Kind: call.Request, Call: p.id, Total: uint32(len(p.payload)), Dispatcher: dispatcher}
	if p.nop {
		h.Kind = call.Nop
	}
	var m ring.Message
	for {
		claim, err := r.out.Claim(ctx)
		if err != nil {
			return err
		}
		n := h.Put(&m, p.payload)
		claim.Commit(&m)
		if h.Offset += uint32(n); h.Offset >= h.Total {
			return nil
		}
	}
}

// giveUp ends the waiting for a call whose context has ended. The dispatcher
// says whether it has run; if it is not there to say so, nobody knows.
func (r *callRing) giveUp(p *pending, err error) (*pending, error) {
	r.mu.Lock()
	if r.calls[p.id] == p {
		r.undone = append(r.undone, p.id)
	}
	r.mu.Unlock()
	r.abandon()
	timer := time.NewTimer(abandonWait)
	defer timer.Stop()
	select {
	case <-p.done:
		if p.abandoned {
			return nil, err
		}
		return p, nil
	case <-r.ctx.Done():
		return nil, ErrClosed
	case <-timer.C:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.calls[p.id] != p { // it has ended just now
		if p.abandoned {
			return nil, err
		}
		return p, nil
	}
	if p.late == nil {
		p.late = func(*pending) {}
	}
	p.done = nil
	return nil, errors.Join(err, ErrUnknown)
}

// abandon says which calls nobody waits for, as far as there is room.
func (r *callRing) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.undone) > 0 {
		id := r.undone[0]
		if r.calls[id] != nil {
			claim, err := r.out.TryClaim()
			if err != nil {
				return
			}
			var m ring.Message
			h := call.Head{Kind: call.Abandon, Call: id, Dispatcher: r.dispatcher}
			h.Put(&m, nil)
			claim.Commit(&m)
		}
		r.undone = r.undone[1:]
	}
}

// replies takes what the dispatcher says, until the client is closed.
func (r *callRing) replies() {
	defer close(r.ended)
	for r.ctx.Err() == nil {
		if r.in.Poll(64, r.cell) > 0 {
			continue
		}
		r.mu.Lock()
		idle := len(r.calls) == 0
		again := len(r.undone) > 0
		r.mu.Unlock()
		if again {
			r.abandon()
		}
		if idle {
			select {
			case <-r.work:
			case <-r.ctx.Done():
			}
			continue
		}
		_ = r.in.Wait(r.ctx)
	}
}

// cell takes one cell of the dispatcher's.
func (r *callRing) cell(m *ring.Message) {
	var h call.Head
	part := h.Get(m)
	if part == nil {
		return
	}
	if h.Kind == call.Started {
		r.again(h.Dispatcher)
		return
	}
	r.mu.Lock()
	p := r.calls[h.Call]
	if p == nil || h.Kind != call.Reply && h.Kind != call.Abandoned {
		r.mu.Unlock()
		return
	}
	if h.Kind == call.Reply {
		if int(h.Offset) != len(p.reply) || h.Offset != 0 && h.Total != p.total {
			r.mu.Unlock()
			return // the rest of a reply that a dispatcher has died over
		}
		p.total = h.Total
		if p.reply = append(p.reply, part...); len(p.reply) < int(h.Total) {
			r.mu.Unlock()
			return
		}
		p.status, p.why = h.Status, h.Why
	} else {
		p.abandoned = true
	}
	delete(r.calls, p.id)
	done, late := p.done, p.late
	r.mu.Unlock()
	if done != nil {
		close(done)
		return
	}
	late(p)
}

// again asks all calls again that have no answer: another dispatcher is there.
func (r *callRing) again(dispatcher uint32) {
	r.mu.Lock()
	r.dispatcher = dispatcher
	var ask []*pending
	for _, p := range r.calls {
		p.reply = p.reply[:0]
		if p.dispatcher != dispatcher {
			p.dispatcher = dispatcher
			ask = append(ask, p)
			if p.done == nil {
				r.undone = append(r.undone, p.id)
			}
		}
	}
	r.mu.Unlock()
	go func() { // the ring may be full, and who takes replies must go on
		for _, p := range ask {
			if r.send(r.ctx, p, dispatcher) != nil {
				return
			}
		}
		claim, err := r.out.Claim(r.ctx)
		if err != nil {
			return
		}
		var m ring.Message
		h := call.Head{Kind: call.Synced, Dispatcher: dispatcher}
		h.Put(&m, nil)
		claim.Commit(&m)
		r.abandon()
	}()
}
