package call

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mainzdb/mainz/protocol/wire"
	"github.com/mainzdb/mainz/ring"
	"github.com/mainzdb/mainz/shm"
)

// Client is the client's half of the calls: what it has under way, and its two rings. Of the goroutines that wait for
// a reply one takes all replies, for itself and for the others: the leader, which
// holds recv. When it has its own, another one leads.
type Client struct {
	out   *ring.Producer
	in    *ring.Consumer // the leader's
	take  func(*ring.Message)
	ctx   context.Context // ends with the client, or with the segment; the cause is what calls say
	end   context.CancelCauseFunc
	room  chan struct{} // one for each call
	large chan struct{} // one for each large request
	count atomic.Uint64

	tell    func(Epoch) // may be nil
	telling sync.Mutex
	untold  atomic.Int32  // epochs that tell has not returned from
	epoch   atomic.Uint64 // that the client was told of, or is about to be

	recv    sync.Mutex
	waiting atomic.Int32  // goroutines that lead, or want to
	lead    chan struct{} // somebody else has to
	spare   sync.Pool     // of *Pending

	mu         sync.Mutex
	dispatcher uint32 // incarnation
	next       uint32
	calls      map[uint32]*Pending
	queues     map[record]*queue
	orphans    int      // calls that nobody waits for
	undone     []uint32 // calls to be abandoned when there is room in the ring
	opened     []Epoch  // to be told
	watches    map[*watching]struct{}
}

// record names one of a database's records.
type record struct {
	db  uint32
	key string
}

// queue is where goroutines of this client stand that want the same record: the
// dispatcher sees the first one only, which needs a cell of the slot.
type queue struct {
	turn chan struct{}
	n    int
}

// Stand waits for the first place in the queue of a database's record; leave gives it
// up.
func (r *Client) Stand(ctx context.Context, db uint32, key string) (leave func(), err error) {
	of := record{db, key}
	r.mu.Lock()
	q := r.queues[of]
	if q == nil {
		q = &queue{turn: make(chan struct{}, 1)}
		r.queues[of] = q
	}
	q.n++
	r.mu.Unlock()
	out := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if q.n--; q.n == 0 {
			delete(r.queues, of)
		}
	}
	if err := r.enter(ctx, q.turn); err != nil {
		out()
		return nil, err
	}
	return func() {
		<-q.turn
		out()
	}, nil
}

// Pending is a call that waits for its reply through the ring. Its fields are the caller's before it is
// registered and when ended is set, and belong to mu in between.
type Pending struct {
	// How the call has ended.
	Status    wire.Status
	Why       uint32
	Reply     []byte
	Abandoned bool // it has not run and will not: the rest says nothing

	id         uint32
	dispatcher uint32 // whom it is sent to
	asked      uint32 // the last dispatcher that has all of it in its ring
	payload    []byte // does not change while the call is under way
	nop        bool
	ended      atomic.Bool
	wake       chan struct{} // a hint to look at ended
	total      uint32
	undone     bool           // it is to be abandoned
	orphan     bool           // nobody waits
	late       func(*Pending) // called then, when it ends; may be nil
}

const (
	largeRequest = 4 << 10 // bytes; of these only a few are under way at a time
	largeCalls   = 16
	maxCalls     = MaxCalls - 64
	// abandonWait is how long a call whose context has ended waits to be told
	// whether it has run.
	abandonWait = 200 * time.Millisecond
)

// ErrUnknown: nobody can say whether the operation has happened.
var ErrUnknown = errors.New("mainz: outcome unknown")

// Open opens the rings of a slot that the dispatcher serves. bell wakes the
// dispatcher; spin is how long to look before a wait, in ticks of the CPU's counter.
// tell is called once for each recovery, by one goroutine at a time; with nil nobody
// is told. It fails with shm.ErrIncompatible if the segment has no rings for the slot.
func Open(seg *shm.Segment, slot uint32, bell *ring.Bell, spin uint64, tell func(Epoch)) (*Client, error) {
	out, in, ok := Rings(seg, slot)
	if !ok {
		return nil, fmt.Errorf("the segment has no rings for slot %d: %w", slot, shm.ErrIncompatible)
	}
	r := &Client{lead: make(chan struct{}, 1), room: make(chan struct{}, maxCalls),
		large: make(chan struct{}, largeCalls), calls: map[uint32]*Pending{}, queues: map[record]*queue{},
		watches: map[*watching]struct{}{}}
	r.ctx, r.end = context.WithCancelCause(context.Background())
	var err error
	if r.out, err = ring.OpenProducer(seg.Region(), out, RequestCells,
		ring.Options{Bell: bell, Wait: r.wait, Spin: spin}); err != nil {
		return nil, err
	}
	if r.in, err = ring.OpenConsumer(seg.Region(), in, ReplyCells, ring.Options{Wait: r.wait, Spin: spin}); err != nil {
		return nil, err
	}
	r.take = r.cell
	r.spare.New = func() any { return &Pending{wake: make(chan struct{}, 1)} }
	r.epoch.Store(seg.Gate().Epoch.Load())
	// The dispatcher has said who it is before it said that we may come.
	r.in.Poll(1, func(m *ring.Message) {
		var h Head
		if h.Get(m) != nil && h.Kind == Started {
			r.dispatcher = h.Dispatcher
		}
	})
	if r.tell = tell; tell != nil {
		go r.attend()
	}
	return r, nil
}

// wait is a wait for the dispatcher: in slices, as the client may end meanwhile, or
// the segment, in which nobody wakes anybody then.
func (r *Client) wait(w shm.Watch, cancel *shm.Word32) error {
	shm.WaitAny(ringSlice, w, shm.Watch{W: cancel, Val: 0})
	return context.Cause(r.ctx)
}

// ringSlice is that of shm's waits.
const ringSlice = 20 * time.Millisecond

// Ended is done when the calls have ended, with the client or with the segment.
func (r *Client) Ended() <-chan struct{} { return r.ctx.Done() }

// Context ends when the calls do.
func (r *Client) Context() context.Context { return r.ctx }

// Count is how many calls there were.
func (r *Client) Count() uint64 { return r.count.Load() }

// End ends all calls, those to come as well, with this error, unless they have ended.
func (r *Client) End(cause error) { r.end(cause) }

// over is why the client's calls end.
func (r *Client) over() error { return context.Cause(r.ctx) }

// Close is End for a segment that is about to be unmapped: when it returns, nobody
// reads the ring any more.
func (r *Client) Close(cause error) {
	r.end(cause)
	r.recv.Lock()
	r.in.Stop()
}

// Call sends a request and waits for its reply. late is called, by another
// goroutine, if the call ends when nobody waits for it any more; it may be nil. What
// is returned is given back by Done. If ctx ends first, the dispatcher is asked
// whether the call has run; the error is joined with ErrUnknown if it can't say.
func (r *Client) Call(ctx context.Context, m *wire.Message, late func(*Pending)) (*Pending, error) {
	p := r.fresh()
	p.late = late
	p.payload = AppendRequest(p.payload, m)
	if len(p.payload) > largeRequest {
		if err := r.enter(ctx, r.large); err != nil {
			return nil, err
		}
		defer func() { <-r.large }()
	}
	return r.do(ctx, p)
}

// Nop is a call that does nothing.
func (r *Client) Nop(ctx context.Context) error {
	p := r.fresh()
	p.nop = true
	p, err := r.do(ctx, p)
	r.Done(p)
	return err
}

func (r *Client) fresh() *Pending {
	p := r.spare.Get().(*Pending)
	*p = Pending{wake: p.wake, payload: p.payload[:0], Reply: p.Reply[:0]}
	return p
}

// Done gives back what Call has returned; nil is nothing.
func (r *Client) Done(p *Pending) {
	if p != nil && cap(p.payload) <= 64<<10 && cap(p.Reply) <= 64<<10 {
		r.spare.Put(p)
	}
}

func (r *Client) enter(ctx context.Context, room chan struct{}) error {
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
		return r.over()
	}
}

func (r *Client) do(ctx context.Context, p *Pending) (*Pending, error) {
	if err := r.enter(ctx, r.room); err != nil {
		return nil, err
	}
	defer func() { <-r.room }()
	r.count.Add(1)
	dispatcher, err := r.register(p)
	if err != nil {
		return nil, err
	}
	err = r.send(ctx, p.id, dispatcher, p.payload, p.nop)
	r.sent(p.id, dispatcher)
	if err == nil {
		err = r.await(ctx, p)
	}
	r.deliver()
	switch {
	case err == nil:
		return p, nil
	case r.ctx.Err() != nil:
		return nil, r.over()
	}
	return r.giveUp(p, err)
}

// register names the call.
func (r *Client) register(p *Pending) (dispatcher uint32, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return 0, r.over()
	}
	for {
		r.next++
		if _, taken := r.calls[r.next]; !taken {
			break
		}
	}
	p.id, p.dispatcher = r.next, r.dispatcher
	r.calls[p.id] = p
	return p.dispatcher, nil
}

// sent notes that a dispatcher has the call, or what there will be of it: it may
// be told now that nobody waits. Told before, it would know of no such call, say
// that it has not run, and run it when it comes.
func (r *Client) sent(id, dispatcher uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.calls[id]; p != nil && p.dispatcher == dispatcher {
		p.asked = dispatcher
	}
}

// await waits until the call has ended, and takes replies meanwhile if nobody
// else does.
func (r *Client) await(ctx context.Context, p *Pending) error {
	for !p.ended.Load() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if r.ctx.Err() != nil {
			return r.over()
		}
		r.waiting.Add(1) // before the look at recv: who gives that up looks here
		if r.recv.TryLock() {
			err := r.takeReplies(ctx, p.ended.Load)
			r.waiting.Add(-1)
			r.recv.Unlock()
			r.pass()
			if err != nil && !p.ended.Load() {
				return err
			}
			continue
		}
		select {
		case <-p.wake:
		case <-r.lead:
		case <-ctx.Done():
		case <-r.ctx.Done():
		}
		r.waiting.Add(-1)
	}
	return nil
}

// pass lets somebody else lead, if anybody wants to.
func (r *Client) pass() {
	if r.waiting.Load() > 0 {
		select {
		case r.lead <- struct{}{}:
		default:
		}
	}
}

// takeReplies leads until enough says so.
//
// Preconditions: the caller holds recv.
func (r *Client) takeReplies(ctx context.Context, enough func() bool) error {
	for !enough() {
		if r.in.Poll(64, r.take) > 0 {
			continue
		}
		r.abandon()
		if r.ctx.Err() != nil {
			return r.over()
		}
		if err := r.in.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// linger takes replies as long as there are calls that nobody waits for.
func (r *Client) linger() {
	r.leadUntil(func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.orphans == 0
	})
}

// leadUntil takes replies, for nobody in particular, until enough says so or the
// client ends. Another goroutine may lead at any time.
func (r *Client) leadUntil(enough func() bool) {
	for !enough() && r.ctx.Err() == nil {
		r.waiting.Add(1)
		if r.recv.TryLock() {
			_ = r.takeReplies(r.ctx, enough)
			r.waiting.Add(-1)
			r.recv.Unlock()
			r.pass()
			continue
		}
		select {
		case <-r.lead:
		case <-r.ctx.Done():
		}
		r.waiting.Add(-1)
	}
}

// send puts the call's cells into the ring, for a dispatcher. Another one that
// starts meanwhile drops them, and then they are sent again.
func (r *Client) send(ctx context.Context, id, dispatcher uint32, payload []byte, nop bool) error {
	h := Head{Kind: Request, Call: id, Total: uint32(len(payload)), Dispatcher: dispatcher}
	if nop {
		h.Kind = Nop
	}
	var m ring.Message
	for {
		claim, err := r.out.Claim(ctx)
		if err != nil {
			return err
		}
		n := h.Put(&m, payload)
		claim.Commit(&m)
		if h.Offset += uint32(n); h.Offset >= h.Total {
			return nil
		}
	}
}

// giveUp ends the waiting for a call whose context has ended. The dispatcher
// says whether it has run; if it is not there to say so, nobody knows.
func (r *Client) giveUp(p *Pending, err error) (*Pending, error) {
	r.mu.Lock()
	if r.calls[p.id] == p {
		p.undone = true
		r.undone = append(r.undone, p.id)
	}
	r.mu.Unlock()
	r.abandon()
	ctx, cancel := context.WithTimeout(r.ctx, abandonWait)
	defer cancel()
	_ = r.await(ctx, p)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.calls[p.id] != p: // it has ended
		if p.Abandoned {
			return nil, err
		}
		return p, nil
	case r.ctx.Err() != nil:
		return nil, r.over()
	}
	p.orphan = true
	if r.orphans++; r.orphans == 1 {
		go r.linger()
	}
	return nil, errors.Join(err, ErrUnknown)
}

// abandon says which calls nobody waits for, as far as there is room, and the
// dispatcher has them.
func (r *Client) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	later := r.undone[:0]
	for i, id := range r.undone {
		p := r.calls[id]
		if p == nil {
			continue
		}
		if p.asked != r.dispatcher {
			later = append(later, id)
			continue
		}
		claim, err := r.out.TryClaim()
		if err != nil {
			later = append(later, r.undone[i:]...)
			break
		}
		var m ring.Message
		h := Head{Kind: Abandon, Call: id, Dispatcher: r.dispatcher}
		h.Put(&m, nil)
		claim.Commit(&m)
	}
	r.undone = later
}

// cell takes one cell of the dispatcher's.
func (r *Client) cell(m *ring.Message) {
	var h Head
	part := h.Get(m)
	if part == nil {
		return
	}
	switch h.Kind {
	case Started:
		r.again(h.Dispatcher)
		return
	case Opened:
		r.recovered(part)
		return
	}
	r.mu.Lock()
	p := r.calls[h.Call]
	if p == nil || h.Kind != Reply && h.Kind != Abandoned {
		r.mu.Unlock()
		return
	}
	if h.Kind == Reply {
		if int(h.Offset) != len(p.Reply) || h.Offset != 0 && h.Total != p.total {
			r.mu.Unlock()
			return // the rest of a reply that a dispatcher has died over
		}
		p.total = h.Total
		if p.Reply = append(p.Reply, part...); len(p.Reply) < int(h.Total) {
			r.mu.Unlock()
			return
		}
		p.Status, p.Why = h.Status, h.Why
	} else {
		p.Abandoned = true
	}
	delete(r.calls, p.id)
	if !p.orphan {
		wake := p.wake // p may be another call's as soon as it has ended
		p.ended.Store(true)
		r.mu.Unlock()
		select {
		case wake <- struct{}{}:
		default:
		}
		return
	}
	r.orphans--
	r.mu.Unlock()
	if p.late != nil {
		p.late(p)
	}
}

// again asks all calls again that have no answer: another dispatcher is there.
func (r *Client) again(dispatcher uint32) {
	r.mu.Lock()
	r.dispatcher = dispatcher
	type again struct {
		id      uint32
		payload []byte
		nop     bool
	}
	var ask []again
	for _, p := range r.calls {
		p.Reply = p.Reply[:0]
		if p.dispatcher != dispatcher {
			p.dispatcher = dispatcher
			ask = append(ask, again{p.id, bytes.Clone(p.payload), p.nop}) // p may end before it is asked
			if p.undone {
				r.undone = append(r.undone, p.id)
			}
		}
	}
	r.mu.Unlock()
	go func() { // the ring may be full, and who takes replies must go on
		for _, a := range ask {
			if r.send(r.ctx, a.id, dispatcher, a.payload, a.nop) != nil {
				return
			}
			r.sent(a.id, dispatcher)
		}
		claim, err := r.out.Claim(r.ctx)
		if err != nil {
			return
		}
		var m ring.Message
		h := Head{Kind: Synced, Dispatcher: dispatcher}
		h.Put(&m, nil)
		claim.Commit(&m)
		r.abandon()
	}()
}
