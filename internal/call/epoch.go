package call

import (
	"context"
	"time"
)

// Epoch is what a recovery has changed, as Opened says it. Sets have bit i for node i.
type Epoch struct {
	Number, Members, Joined, Left uint64
	Kept                          bool
}

// catchUpLimit bounds how long a call by bypass waits for what it is to be told of an
// epoch that it has seen: the dispatcher says it in the turn in which it opens the
// gate, unless it has died in between.
const catchUpLimit = 100 * time.Millisecond

// CatchUp waits until the client knows of the segment's epoch, which a call by bypass may
// have seen. It does nothing if nobody is to be told.
func (r *Client) CatchUp(ctx context.Context, now uint64) {
	if r.tell == nil {
		return
	}
	if ctx == nil {
		ctx = context.Background()
	}
	if now != r.epoch.Load() {
		ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
		defer cancel()
		_ = r.Nop(ctx) // its reply stands behind what it is about
	}
	r.deliver()
}

// recovered takes what Opened says. Watches end, to begin anew.
func (r *Client) recovered(part []byte) {
	number, members, joined, left, kept, ok := DecodeOpened(part)
	if !ok || number <= r.epoch.Load() {
		return // the client has attached in this epoch
	}
	r.epoch.Store(number)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tell != nil {
		r.untold.Add(1)
		r.opened = append(r.opened, Epoch{number, members, joined, left, kept})
	}
	for w := range r.watches {
		w.recovered = true
		w.cancel()
	}
}

// deliver returns when tell has returned from all that was taken.
func (r *Client) deliver() {
	if r.tell == nil || r.untold.Load() == 0 {
		return
	}
	r.telling.Lock()
	defer r.telling.Unlock()
	for {
		r.mu.Lock()
		if len(r.opened) == 0 {
			r.mu.Unlock()
			return
		}
		e := r.opened[0]
		r.opened = r.opened[1:]
		r.mu.Unlock()
		r.tellOne(e)
	}
}

// tellOne tells of one epoch. If that panics, it has been told: else everybody would
// wait for it.
func (r *Client) tellOne(e Epoch) {
	defer r.untold.Add(-1)
	r.tell(e)
}

// attend takes replies while nobody calls, for a client that wants to be told of
// recoveries.
func (r *Client) attend() {
	for r.ctx.Err() == nil {
		r.leadUntil(func() bool { return r.untold.Load() > 0 })
		r.deliver()
	}
}

// watching is a call under way that a recovery ends.
type watching struct {
	cancel    context.CancelFunc
	recovered bool // belongs to mu until the end
}

// Watch begins a call that a recovery ends; end tells whether one has.
func (r *Client) Watch(ctx context.Context) (_ context.Context, end func() (recovered bool)) {
	w := &watching{}
	ctx, w.cancel = context.WithCancel(ctx)
	r.mu.Lock()
	r.watches[w] = struct{}{}
	r.mu.Unlock()
	return ctx, func() bool {
		r.mu.Lock()
		delete(r.watches, w)
		r.mu.Unlock()
		w.cancel()
		return w.recovered
	}
}
