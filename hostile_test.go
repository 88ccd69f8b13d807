package mainz

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/call"
	"github.com/mainzdb/mainz/protocol/wire"
	"github.com/mainzdb/mainz/ring"
	"github.com/mainzdb/mainz/shm"
)

// seeded is a generator whose seed a failing test tells, and MAINZ_SEED sets.
func seeded(tb testing.TB) (*rand.Rand, uint64) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("MAINZ_SEED"), 10, 64); err == nil {
		seed = s
	}
	tb.Logf("MAINZ_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1)), seed
}

// A client may write anything into its ring: the dispatcher serves the others.
func TestHostileClient(t *testing.T) {
	rnd, _ := seeded(t)
	n := startNode(t)
	ctx := minute(t)
	good := n.attach(ThroughRing()).open(t, "db", KV)
	key := []byte("k")
	want(t, good.Store(ctx, key, []byte("fine")), nil)
	for range 60 {
		c, err := Attach(ctx, n.dir, WithName("hostile"))
		want(t, err, nil)
		seg := c.store.Segment()
		off, _, _ := call.Rings(seg, c.store.Slot())
		out, err := ring.OpenProducer(seg.Region(), off, call.RequestCells, ring.Options{Bell: c.bell})
		want(t, err, nil)
		node, _, err := call.NodeOf(seg)
		want(t, err, nil)
		for range 1 + rnd.IntN(30) {
			claim, err := out.TryClaim()
			if err != nil {
				break
			}
			var m ring.Message
			for i := range m.Inline {
				m.Inline[i] = byte(rnd.Uint32())
			}
			m.Head = [2]uint64{rnd.Uint64(), rnd.Uint64()}
			if rnd.IntN(4) > 0 { // for the dispatcher that is there
				payload := call.AppendRequest(nil,
					&wire.Message{Op: wire.Op(rnd.IntN(20)), DBID: good.l.ID(), Timeout: rnd.Uint32N(3),
						Cond: rnd.Uint32N(4),
						Key:  m.Inline[:rnd.IntN(20)], Data: m.Inline[:rnd.IntN(40)], RSN: rnd.Uint64N(2)})
				for range rnd.IntN(3) {
					payload[rnd.IntN(min(len(payload), 12))] = byte(rnd.Uint32())
				}
				h := call.Head{Kind: call.Kind(rnd.IntN(6)), Call: rnd.Uint32N(4), Total: uint32(len(payload)),
					Dispatcher: node.Incarnation.Load()}
				if rnd.IntN(8) == 0 {
					h.Total = rnd.Uint32N(1 << 25)
				}
				h.Put(&m, payload)
			}
			claim.Commit(&m)
		}
		if rnd.IntN(4) == 0 { // the ring's own words
			for range 4 {
				shm.At[shm.Word64](seg.Region(), off+shm.Offset(8*rnd.IntN(2000))).Store(rnd.Uint64())
			}
		}
		got, err := good.Fetch(ctx, key)
		want(t, err, nil)
		if len(got) == 0 {
			t.Fatal("nothing fetched")
		}
		want(t, c.Close(), nil)
	}
	rep, err := good.c.store.Check(ctx)
	want(t, err, nil)
	if !rep.OK() {
		t.Errorf("check: %+v", rep)
	}
}

// The tables that a dispatcher leaves may be garbage when the next one comes.
func TestHostileTables(t *testing.T) {
	rnd, _ := seeded(t)
	n := startNode(t)
	ctx := minute(t)
	c := n.attach(ThroughRing())
	db := c.open(t, "db", KV)
	key := []byte("k")
	node, _, err := call.NodeOf(c.store.Segment())
	want(t, err, nil)
	for range 10 {
		want(t, db.Store(ctx, key, []byte("fine")), nil)
		n.end()
		for range 200 {
			l := &node.Line[rnd.IntN(call.Lines)]
			l.State.Store(rnd.Uint32N(4))
			l.Slot.Store(rnd.Uint32N(5000))
			l.Generation.Store(rnd.Uint32N(4))
			l.Status.Store(rnd.Uint32())
		}
		node.IntentLine.Store(rnd.Uint32N(5000))
		node.IntentLen.Store(rnd.Uint32N(2000))
		node.IntentDB.Store(rnd.Uint32())
		node.IntentRSN.Store(rnd.Uint64N(3))
		node.Attached[rnd.IntN(len(node.Attached))].CAS(0, rnd.Uint32N(3))
		n.start()
		got, err := db.Fetch(ctx, key)
		want(t, err, nil)
		if string(got) != "fine" {
			t.Errorf("fetched %q", got)
		}
	}
}
