package ltdb

import (
	"context"
	"sync"

	"github.com/mainzdb/mainz/shm"
)

// changeWaits lets one goroutine of this process at a time wait in the kernel
// for a change word; the others wait for it. Ten thousand that wait for one
// record need no ten thousand threads.
type changeWaits struct {
	mu sync.Mutex
	m  map[*shm.Word32]*changeQueue
}

// changeQueue are the goroutines that wait for a word behind the one in the
// kernel.
type changeQueue struct{ first, last *changeWaiter }

type changeWaiter struct {
	next *changeWaiter
	seen uint32
	lead chan bool // true: your turn in the kernel; false: look again
}

// awaitChange waits until w no longer holds seen, or for about a time slice:
// the caller looks again, as somebody may have died without a word. It returns
// the error of ctx, or ErrClosed.
func (s *Store) awaitChange(ctx context.Context, w *shm.Word32, seen uint32) error {
	if ctx == nil {
		return errNoContext
	}
	if err := s.enter(); err != nil {
		return err
	}
	defer s.exit()
	lead, err := s.waits.enter(ctx, w, seen)
	if err != nil || !lead {
		return err
	}
	cancel, stop := s.canceller(ctx)
	if w.Load() == seen && ctx.Err() == nil && !s.closed.Load() {
		err = s.c.WaitOwner(0, shm.Watch{W: w, Val: seen}, cancel, 0)
	}
	stop()
	s.waits.leave(w, err != nil || s.closed.Load())
	switch {
	case err != nil:
		return err
	case s.closed.Load():
		return errClosed
	}
	return ctx.Err()
}

// enter reports whether the caller is to wait in the kernel, now or after a
// while; false without an error means that it is to look again.
func (c *changeWaits) enter(ctx context.Context, w *shm.Word32, seen uint32) (lead bool, err error) {
	c.mu.Lock()
	q := c.m[w]
	if q == nil {
		if c.m == nil {
			c.m = map[*shm.Word32]*changeQueue{}
		}
		c.m[w] = &changeQueue{}
		c.mu.Unlock()
		return true, nil
	}
	me := &changeWaiter{seen: seen, lead: make(chan bool, 1)}
	q.push(me)
	c.mu.Unlock()
	select {
	case lead = <-me.lead:
		return lead, nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	select {
	case lead = <-me.lead: // at the same time
	default:
		c.m[w].drop(me)
	}
	c.mu.Unlock()
	if lead {
		c.leave(w, false)
	}
	return false, ctx.Err()
}

// leave ends the caller's wait in the kernel. Who had seen the word as it no
// longer is looks again; the first of the others takes the turn, which it then
// has until the end of its own slice. all: everybody looks again.
func (c *changeWaits) leave(w *shm.Word32, all bool) {
	now := w.Load() // no shared access with the mutex held
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.m[w]
	rest := &changeQueue{}
	for me := q.first; me != nil; {
		next := me.next
		me.next = nil
		if all || me.seen != now {
			me.lead <- false
		} else {
			rest.push(me)
		}
		me = next
	}
	if rest.first == nil {
		delete(c.m, w)
		return
	}
	me := rest.first
	rest.drop(me)
	c.m[w] = rest
	me.lead <- true
}

func (q *changeQueue) push(me *changeWaiter) {
	if q.last == nil {
		q.first = me
	} else {
		q.last.next = me
	}
	q.last = me
}

func (q *changeQueue) drop(me *changeWaiter) {
	var before *changeWaiter
	for p := q.first; p != nil; before, p = p, p.next {
		if p != me {
			continue
		}
		if before == nil {
			q.first = p.next
		} else {
			before.next = p.next
		}
		if q.last == p {
			q.last = before
		}
		p.next = nil
		return
	}
}
