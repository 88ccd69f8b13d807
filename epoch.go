package mainz

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mainzdb/mainz/internal/call"
)

// Epoch is what a recovery has changed: mainzd was started again, or nodes came or
// left.
type Epoch struct {
	Number  uint64
	Members Nodes
	Joined  Nodes // since the epoch that opened here before
	Left    Nodes
	Kept    bool // this node has the records that it had; those that nodes had which left may be lost
}

// Nodes is a set of node numbers: bit i is node i.
type Nodes uint64

// Has reports whether a node is in the set.
func (n Nodes) Has(node int) bool { return node >= 0 && node < 64 && n>>node&1 == 1 }

func (n Nodes) String() string {
	var s []string
	for i := range 64 {
		if n.Has(i) {
			s = append(s, fmt.Sprint(i))
		}
	}
	return "{" + strings.Join(s, " ") + "}"
}

// toldLimit bounds how long a call by bypass waits for what it is to be told of an
// epoch that it has seen: the dispatcher says it in the turn in which it opens the
// gate, unless it has died in between.
const toldLimit = 100 * time.Millisecond

// told waits until the client knows of the epoch that a call may have seen.
func (c *Client) told(ctx context.Context) {
	r := c.ring
	if r == nil || r.tell == nil {
		return
	}
	if ctx == nil {
		ctx = context.Background()
	}
	if c.store.Segment().Gate().Epoch.Load() != r.epoch.Load() {
		ctx, cancel := context.WithTimeout(ctx, toldLimit)
		defer cancel()
		_ = r.nop(ctx) // its reply stands behind what it is about
	}
	r.deliver()
}

// recovered takes what Opened says. Watches end, to begin anew.
func (r *callRing) recovered(part []byte) {
	number, members, joined, left, kept, ok := call.DecodeOpened(part)
	if !ok || number <= r.epoch.Load() {
		return // the client has attached in this epoch
	}
	r.epoch.Store(number)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tell != nil {
		r.untold.Add(1)
		r.opened = append(r.opened, Epoch{number, Nodes(members), Nodes(joined), Nodes(left), kept})
	}
	for w := range r.watches {
		w.recovered = true
		w.cancel()
	}
}

// deliver returns when tell has returned from all that was taken.
func (r *callRing) deliver() {
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
func (r *callRing) tellOne(e Epoch) {
	defer r.untold.Add(-1)
	r.tell(e)
}

// attend takes replies while nobody calls, for a client that wants to be told of
// recoveries.
func (r *callRing) attend() {
	for r.ctx.Err() == nil {
		r.leadUntil(func() bool { return r.untold.Load() > 0 })
		r.deliver()
	}
}

// watching is a call of Watch under way.
type watching struct {
	cancel    context.CancelFunc
	recovered bool // belongs to mu until the end
}

// watch begins a call that a recovery ends; end tells whether one has.
func (r *callRing) watch(ctx context.Context) (_ context.Context, end func() (recovered bool)) {
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
