package protocol_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

// TestLocksOfTheDead: clients of one node lock records of another, let some go, and
// leave some to LCKTIMEOUT. What a client holds when it dies is let go, and nothing that
// another client holds. Keys differ in length, as the notes of locks reuse their buffers.
func TestLocksOfTheDead(t *testing.T) {
	const clients = 4
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := newCouple(t, 2, protocol.PolicyNever{})
	held := map[string]struct {
		client protocol.ClientID
		id     wire.ReqID
		until  protocol.Instant
	}{}
	var far [][]byte // keys of node 1
	for i := 0; len(far) < 24; i++ {
		key := []byte(fmt.Sprint(i, strings.Repeat("k", i%7)))
		c.call(1, &wire.Message{Op: wire.ReqStoreUnlock, DBID: 1, Key: key, Data: value, Timeout: 100})
		if c.stores[1].Holder(1, key) == 0 && c.stores[1].Look(1, key, &protocol.Record{}) {
			far = append(far, key)
		}
	}
	submit := func(client protocol.ClientID, m wire.Message) {
		t.Helper()
		before := c.replies
		if _, err := c.nodes[0].Submit(c.now, client, uint64(before+1), &m); err != nil {
			t.Fatal(err)
		}
		if c.deliver(); c.replies != before+1 || c.status != wire.OK {
			t.Fatalf("seed %d: %s: %d replies, status %s", seed, m.Op, c.replies-before, c.status)
		}
	}
	check := func(what string) {
		t.Helper()
		for _, key := range far {
			_, want := held[string(key)]
			if got := c.stores[1].Holder(1, key) != 0; got != want {
				t.Fatalf("seed %d: %s: lock of %s: %v, want %v", seed, what, key, got, want)
			}
		}
	}
	dead := 0
	for range 4000 {
		key := far[rnd.IntN(len(far))]
		h, locked := held[string(key)]
		switch {
		case rnd.IntN(20) == 0:
			client := protocol.ClientID(1 + rnd.IntN(clients))
			for k, h := range held {
				if h.client == client {
					delete(held, k)
					dead++
				}
			}
			c.nodes[0].ClientGone(c.now, client)
			c.deliver()
			check("a client has died")
		case rnd.IntN(20) == 0:
			for range 5 {
				steady[len(steady)-1].f(c, 0) // heartbeats: the clock goes on
			}
			for k, h := range held {
				if h.until <= c.now {
					delete(held, k)
				}
			}
			check("locks have run out")
		case locked:
			submit(h.client, wire.Message{Op: wire.ReqUnlock, DBID: 1, Key: key, LockID: h.id, Timeout: 100})
			delete(held, string(key))
		default:
			client, ms := protocol.ClientID(1+rnd.IntN(clients)), []uint32{50, 1000}[rnd.IntN(2)]
			submit(client, wire.Message{Op: wire.ReqFetchLocked, DBID: 1, Key: key, Timeout: 100, LockTimeout: ms})
			if c.lock == 0 {
				t.Fatalf("the record of %s is not at the other node", key)
			}
			h.client, h.id, h.until = client, c.lock, c.now+protocol.Instant(ms)*1e6
			held[string(key)] = h
		}
	}
	check("at the end")
	if dead == 0 {
		t.Fatal("nobody died with a lock")
	}
}
