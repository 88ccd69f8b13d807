package protocol_test

import (
	"testing"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/protocol/wire"
)

// crowd is a node where many requests wait for a record to change.
type crowd struct {
	*couple
	n   *protocol.Node
	key []byte
}

func newCrowd(t *testing.T, waiters int, timeout func(i int) uint32) *crowd {
	t.Helper()
	c := &crowd{newCouple(t, 1, protocol.PolicyNever{}), nil, keys[0]}
	c.n = c.nodes[0]
	c.call(0, &wire.Message{Op: wire.ReqStoreUnlock, DBID: 1, Key: c.key, Data: value, Timeout: 100})
	before := c.n.Counters().Executed
	for i := range waiters {
		if _, err := c.n.Submit(c.now, 1, uint64(100+i),
			&wire.Message{Op: wire.ReqWatch, DBID: 1, Key: c.key, RSN: c.rsn(), Timeout: timeout(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.n.Counters().Executed - before; n != uint64(waiters) {
		t.Errorf("%d requests that wait were tried %d times", waiters, n)
	}
	return c
}

func (c *crowd) rsn() uint64 { return c.stores[0].at(1, c.key).r.RSN }

// tried is how often a request was tried in f, and how many replies it gave.
func (c *crowd) tried(f func()) (tries, replies int) {
	was, had := c.n.Counters().Executed, c.replies
	f()
	c.deliver()
	return int(c.n.Counters().Executed - was), c.replies - had
}

func forLong(int) uint32 { return 1 << 20 }

// Each of a thousand requests that wait for one record is tried when it comes, when the
// record changes, and when its own time is over; a change is answered in parts, with
// other requests in between.
func TestManyParked(t *testing.T) {
	const waiters, most = 1000, 256 // Config.MaxTries
	c := newCrowd(t, waiters, forLong)

	c.stores[0].at(1, c.key).r.RSN++
	parts, left := 0, waiters
	for left > 0 {
		if parts++; parts > waiters {
			t.Fatalf("%d still wait", left)
		}
		tries, replies := c.tried(func() {
			if parts == 1 {
				c.n.Released(c.now, 1, c.key)
			} else {
				c.n.Tick(c.now)
			}
		})
		if left -= replies; tries > most || replies > most {
			t.Errorf("part %d: %d tries, %d replies", parts, tries, replies)
		}
		if left > 0 && c.eff[0].Next > c.now+1 {
			t.Fatalf("%d wait, and the node wants a Tick in %d", left, c.eff[0].Next-c.now)
		}
		// Somebody else is served meanwhile.
		c.call(0, &wire.Message{Op: wire.ReqFetch, DBID: 1, Key: keys[1], Timeout: 100})
	}
	if parts < waiters/most {
		t.Errorf("%d parts", parts)
	}
	if c.n.Tick(c.now); c.eff[0].Next <= c.now+1 {
		c.deliver()
		if c.eff[0].Next <= c.now+1 {
			t.Error("nobody waits, and the node wants a Tick at once")
		}
	}
}

// What comes while a change is told in parts, a second change among it, is not
// forgotten: in the end all who wait for it are answered, in the order in which they came.
func TestChangeAmongParts(t *testing.T) {
	const waiters = 1000
	c := newCrowd(t, waiters, forLong)
	// It is not what they wait for: all are tried, and stay.
	tries, replies := c.tried(func() { c.n.Released(c.now, 1, c.key) })
	if replies != 0 || tries > 256 {
		t.Fatalf("%d tries, %d replies", tries, replies)
	}
	c.stores[0].at(1, c.key).r.RSN++ // the first part has been tried in vain
	c.n.Released(c.now, 1, c.key)
	var order []uint64
	for range waiters {
		c.n.Tick(c.now)
		c.n.Take(&c.eff[0])
		for _, r := range c.eff[0].Replies {
			order = append(order, r.Cookie)
		}
		c.take(0)
	}
	if len(order) != waiters {
		t.Fatalf("%d of %d are answered", len(order), waiters)
	}
	// Those of the first part come last, after the others; each part in its order.
	turns := 0
	for i := 1; i < len(order); i++ {
		if order[i] < order[i-1] {
			turns++
		}
	}
	if turns > 1 {
		t.Errorf("%d times somebody came before who came first", turns)
	}
}

// Who waits no longer, or whose time is over, costs one try, whoever else waits there.
func TestOneOfManyParked(t *testing.T) {
	const waiters = 1000
	c := newCrowd(t, waiters, func(i int) uint32 { return uint32(1000 + i) })
	tries, replies := c.tried(func() { c.n.Abandon(c.now, 1, 100+500) })
	if tries > 1 || replies != 0 || c.waiting() != waiters-1 {
		t.Errorf("abandoned: %d tries, %d replies, %d wait", tries, replies, c.waiting())
	}
	tries, replies = 0, 0
	for range 100 {
		c.now += link.Millisecond * 11
		n, m := c.tried(func() { c.n.Tick(c.now) })
		tries, replies = tries+n, replies+m
	}
	if replies == 0 || tries != replies {
		t.Errorf("timed out: %d tries for %d replies", tries, replies)
	}
	tries, _ = c.tried(func() { c.n.ClientGone(c.now, 1) })
	for range waiters {
		if c.waiting() == 0 {
			break
		}
		c.n.Tick(c.now)
	}
	if c.waiting() != 0 || tries > 256 {
		t.Errorf("the client is gone: %d tries at once, and %d still wait", tries, c.waiting())
	}
}

func (c *crowd) waiting() int { return c.stable[0].Pending() }
