package call

import (
	"context"

	"github.com/mainzdb/mainz/protocol/wire"
)

// Steps are the steps of one call that nobody waits for, one at a time.
type Steps struct {
	r          *Client
	p          *Pending
	dispatcher uint32
}

// Begin registers a call as one that is given up. ended gets how it ends.
func (r *Client) Begin(m *wire.Message, ended func(*Pending)) (*Steps, error) {
	p := r.fresh()
	p.payload, p.late = AppendRequest(nil, m), ended
	p.undone, p.orphan = true, true
	dispatcher, err := r.register(p)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.undone, r.orphans = []uint32{p.id}, 1
	return &Steps{r, p, dispatcher}, nil
}

// Send sends the call to the dispatcher that it is registered for.
func (s *Steps) Send(ctx context.Context) error {
	err := s.r.send(ctx, s.p.id, s.dispatcher, s.p.payload, false)
	s.r.sent(s.p.id, s.dispatcher)
	return err
}

// Abandon abandons what can be abandoned, and tells whether the call is among it.
func (s *Steps) Abandon() bool {
	s.r.abandon()
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	return len(s.r.undone) == 0
}

// Linger takes replies until the call has ended.
func (s *Steps) Linger() { s.r.linger() }
