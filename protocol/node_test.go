package protocol_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/protocol/wire"
)

// flat is a store that allocates nothing once its records are there.
type flat struct {
	recs   map[string]*flatRecord
	key    []byte
	life   uint64
	before func() // TryLock: what a client does just then; nil: nothing
}

type flatRecord struct {
	key    []byte
	r      protocol.Record
	data   []byte
	tags   []byte
	there  bool
	holder protocol.ClientID
}

func (s *flat) at(db uint32, key []byte) *flatRecord {
	s.key = append(append(s.key[:0], byte(db)), key...)
	return s.recs[string(s.key)]
}

func (s *flat) Look(db uint32, key []byte, v *protocol.Record) bool {
	r := s.at(db, key)
	if r == nil || !r.there {
		return false
	}
	*v = r.r
	return true
}

func (s *flat) TryLock(db uint32, key []byte, _ bool) protocol.LockResult {
	if s.before != nil {
		s.before()
	}
	r := s.at(db, key)
	if r == nil {
		r = &flatRecord{key: append([]byte(nil), key...)}
		s.recs[string(append([]byte{byte(db)}, key...))] = r
	}
	if !r.there {
		r.there, r.r = true, protocol.Record{LAccessor: wire.NoPNN}
	}
	r.holder = protocol.Dispatcher
	return protocol.Locked
}

func (s *flat) Holder(db uint32, key []byte) protocol.ClientID {
	if r := s.at(db, key); r != nil {
		return r.holder
	}
	return 0
}

func (s *flat) Unlock(db uint32, key []byte) { s.at(db, key).holder = 0 }
func (s *flat) UnlockTo(db uint32, key []byte, c protocol.ClientID, _ uint64) {
	s.at(db, key).holder = 0
}
func (s *flat) Remove(db uint32, key []byte)                                    { r := s.at(db, key); r.there, r.holder = false, 0 }
func (s *flat) Attend(uint32, []byte, bool)                                     {}
func (s *flat) Scan(uint32, uint64, func([]byte, *protocol.Record) bool) uint64 { return 0 }
func (s *flat) Room() uint32                                                    { return 1 << 20 }
func (s *flat) Sweep(uint64, int, func(wire.OPID) bool) uint64                  { return 0 }
func (s *flat) DropProvisional(uint64, int) uint64                              { return 0 }
func (s *flat) OpenProvisional()                                                {}
func (s *flat) IsProvisional(uint32, []byte) bool                               { return false }
func (s *flat) Life() uint64                                                    { return s.life }
func (s *flat) Reset(life uint64)                                               { s.life = life; clear(s.recs) }
func (s *flat) Provisional(uint32, []byte, wire.OPID, []byte, wire.Epoch) bool  { return true }

func (s *flat) Touch(db uint32, key []byte, p protocol.PNN, n uint32) {
	if r := s.at(db, key); r != nil {
		r.r.LAccessor, r.r.LACount = p, n
	}
}

func (s *flat) Publish(db uint32, key []byte, v *protocol.Record, _ bool) protocol.LockResult {
	r := s.at(db, key)
	r.data, r.tags = append(r.data[:0], v.Data...), append(r.tags[:0], v.Tags...)
	r.r = *v
	r.r.Data, r.r.Tags = r.data, r.tags
	return protocol.Locked
}

func (s *flat) Each(_ uint64, _ int, f func(db uint32, key []byte, rsn uint64, empty bool)) uint64 {
	for _, r := range s.recs { // one database, in one part, and no test here looks at the order
		if r.there {
			f(1, r.key, r.r.RSN, r.r.Empty())
		}
	}
	return 0
}

// yes are conditions that always hold, but for ifAbsent.
type yes struct{}

const ifAbsent = 1

func (yes) Malformed(uint32, []byte, []byte, []byte) bool { return false }

func (yes) Check(id uint32, data, _, _ []byte) (bool, bool) {
	return id != ifAbsent || len(data) == 0, true
}

func (yes) Find(_ uint32, data, what []byte) (int, int, bool) {
	return bytes.Index(data, what), len(what), true
}

// couple is a cluster whose messages arrive at once, handled and acknowledged.
type couple struct {
	tb      testing.TB
	nodes   []*protocol.Node
	stores  []*flat
	stable  []*protocol.Memory
	eff     []protocol.Effects
	now     protocol.Instant
	replies int
	status  wire.Status
	lock    wire.ReqID
	opid    wire.OPID
	sent    int
	events  int // steps of all nodes
	queue   []flying
	spare   []flying
}

type flying struct {
	from, to int
	s        protocol.Send
	b        []byte
}

func newCouple(tb testing.TB, n int, policy protocol.Policy) *couple {
	c := &couple{tb: tb, now: link.Second}
	for i := range n {
		c.stores = append(c.stores, &flat{recs: map[string]*flatRecord{}})
		c.stable = append(c.stable, protocol.NewMemory(protocol.Lines{}))
		c.nodes = append(c.nodes, protocol.New(c.now, protocol.Config{Self: protocol.PNN(i), Nodes: n, Incarnation: uint64(i + 1), Start: c.now, WallMS: 1e9,
			Hash: func(_ uint32, k []byte) uint64 {
				h := uint64(14695981039346656037)
				for _, b := range k {
					h = (h ^ uint64(b)) * 1099511628211
				}
				return h
			},
			Mode: func(db uint32) protocol.Mode { return protocol.Mode(db) }, Conditions: yes{}, Policy: policy}, c.stable[i], c.stores[i]))
		c.eff = append(c.eff, protocol.Effects{})
	}
	for i := 0; i < 1000 && !c.open(); i++ {
		c.now += link.Millisecond
		for _, n := range c.nodes {
			n.Tick(c.now)
		}
		c.deliver()
	}
	if !c.open() {
		tb.Fatal("the cluster does not open")
	}
	return c
}

func (c *couple) open() bool {
	for i, n := range c.nodes {
		n.Take(&c.eff[i])
		c.take(i)
		if c.eff[i].Gate.State != protocol.GateOpen || c.eff[i].Lease < c.now {
			return false
		}
	}
	return true
}

// take queues a node's sends; packets are copied, as a link does.
func (c *couple) take(i int) {
	e := &c.eff[i]
	for _, s := range e.Sends {
		if s.Kind != protocol.SendMessage {
			continue // there is no link
		}
		var b []byte
		if k := len(c.spare); k > 0 {
			b, c.spare = c.spare[k-1].b, c.spare[:k-1]
		}
		c.queue = append(c.queue, flying{i, int(s.To), s, append(b[:0], s.Packet...)})
		c.sent++
	}
	for _, r := range e.Replies {
		c.replies++
		c.status, c.lock, c.opid = r.Status, r.LockID, r.OPID
	}
	e.Sends, e.Replies = e.Sends[:0], e.Replies[:0]
	if e.Freeze {
		e.Freeze = false
		c.nodes[i].Frozen(c.now, e.PassNum)
		c.nodes[i].Take(e)
		c.take(i)
	}
}

func (c *couple) deliver() {
	for i := range c.nodes {
		c.nodes[i].Take(&c.eff[i])
		c.take(i)
	}
	for at := 0; at < len(c.queue); at++ {
		f := c.queue[at]
		to := c.nodes[f.to]
		c.events++
		v := to.Step(c.now, protocol.PNN(f.from), f.s.Ch, f.s.Epoch, f.s.DBID, f.b)
		if v == protocol.NotYet && at < 1<<20 {
			c.queue = append(c.queue, f)
			continue
		}
		if v == protocol.Handled && f.s.Token != 0 {
			c.events++
			c.nodes[f.from].Acked(c.now, f.s.Token)
			c.nodes[f.from].Take(&c.eff[f.from])
			c.take(f.from)
		}
		to.Take(&c.eff[f.to])
		c.take(f.to)
		c.spare = append(c.spare, f)
	}
	c.queue = c.queue[:0]
}

// call is one operation of a client of node i.
func (c *couple) call(i int, m *wire.Message) {
	before := c.replies
	c.events++
	if _, err := c.nodes[i].Submit(c.now, 1, 1, m); err != nil {
		c.tb.Fatal(err)
	}
	c.deliver()
	if c.replies != before+1 || c.status != wire.OK {
		c.tb.Fatalf("%s: %d replies, status %s", m.Op, c.replies-before, c.status)
	}
}

// steady is what the tests and benchmarks below repeat: by node i of the cluster on
// key i, until all tables have grown.
var steady = []struct {
	name string
	f    func(c *couple, i int)
}{
	{"fetch and store", func(c *couple, i int) {
		key := keys[i%len(keys)]
		c.call(i%len(c.nodes), &wire.Message{Op: wire.ReqFetch, DBID: 1, Key: key, Timeout: 100})
		c.call((i+1)%len(c.nodes), &wire.Message{Op: wire.ReqStoreUnlock, DBID: 1, Key: key, Data: value, Timeout: 100})
	}},
	{"lock, store, lock and unlock", func(c *couple, i int) {
		n, key := i%len(c.nodes), keys[i%len(keys)]
		for _, op := range []wire.Op{wire.ReqStoreUnlock, wire.ReqUnlock} {
			c.call(n, &wire.Message{Op: wire.ReqFetchLocked, DBID: 1, Key: key, Timeout: 100, LockTimeout: 100})
			if c.lock != 0 { // else the client's slot holds it here, and the client itself lets it go
				c.call(n, &wire.Message{Op: op, DBID: 1, Key: key, Data: value, LockID: c.lock, Timeout: 100})
			} else {
				c.stores[n].Unlock(1, key)
			}
		}
	}},
	{"append and delete", func(c *couple, i int) {
		key := keys[i%len(keys)]
		c.call(i%len(c.nodes), &wire.Message{Op: wire.ReqConditionalAppend, DBID: 1, Key: key, Data: value, Timeout: 100})
		c.call((i+1)%len(c.nodes), &wire.Message{Op: wire.ReqDelete, DBID: 1, Key: key, Timeout: 100})
	}},
	{"piece and removal", func(c *couple, i int) {
		n, key := i%len(c.nodes), keys[i%len(keys)]
		c.call(n, &wire.Message{Op: wire.ReqConditionalAppend, DBID: 2, Key: key, Data: value, Timeout: 100})
		c.call(n, &wire.Message{Op: wire.ReqRemoveTrigger, DBID: 2, Key: key, Data: value, Piece: c.opid, Timeout: 100})
	}},
	{"heartbeat", func(c *couple, i int) {
		c.now += 20 * link.Millisecond
		for _, n := range c.nodes {
			c.events++
			n.Tick(c.now)
		}
		c.deliver()
	}},
}

var (
	keys  = [][]byte{[]byte("k0"), []byte("k1"), []byte("k2"), []byte("k3")}
	value = []byte("sixteen bytes ok")
)

// TestNoAllocation: no event allocates once all tables have grown: requests and
// replies, records that stay, and those that move with every store.
func TestNoAllocation(t *testing.T) {
	for _, p := range []struct {
		name   string
		policy protocol.Policy
	}{{"never", protocol.PolicyNever{}}, {"always", protocol.PolicyAlways{}}, {"plan", protocol.PolicyPlan(2)}, {"adaptive", protocol.PolicyAdaptive(3)}} {
		for _, nodes := range []int{2, 3} {
			for _, s := range steady {
				c := newCouple(t, nodes, p.policy)
				i := 0
				for range 300 {
					s.f(c, i)
					i++
				}
				if n := testing.AllocsPerRun(300, func() { s.f(c, i); i++ }); n != 0 {
					t.Errorf("policy %s, %d nodes, %s: %v allocations", p.name, nodes, s.name, n)
				}
			}
		}
	}
}

// Local clients change records until the dispatcher has the lock: what it has
// seen before that is not what it may write.
func TestChangedBeforeTheLock(t *testing.T) {
	key := keys[0]
	for _, tc := range []struct {
		name       string
		was        string
		m          wire.Message
		clientDoes map[int]string // before which TryLock
		status     wire.Status
		want       string
	}{
		{"append", "a", wire.Message{Op: wire.ReqConditionalAppend, Data: []byte("c")}, map[int]string{1: "ab"}, wire.OK, "abc"},
		{"removal", "ab", wire.Message{Op: wire.ReqRemoveTrigger, Data: []byte("b")}, map[int]string{1: "abc"}, wire.OK, "ac"},
		{"removal of what has gone", "ab", wire.Message{Op: wire.ReqRemoveTrigger, Data: []byte("b")}, map[int]string{1: "a"}, wire.NotFound, "a"},
		{"condition", "", wire.Message{Op: wire.ReqConditionalAppend, Cond: ifAbsent, Data: []byte("c")}, map[int]string{1: "b"}, wire.Condition, "b"},
		{"empty record", "a", wire.Message{Op: wire.ReqDelete}, map[int]string{2: "b"}, wire.OK, "b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCouple(t, 1, protocol.PolicyNever{})
			s := c.stores[0]
			set := func(v string) {
				old := protocol.Record{LAccessor: wire.NoPNN}
				s.Look(1, key, &old)
				old.RSN++
				old.Data = []byte(v)
				s.Publish(1, key, &old, false)
			}
			s.TryLock(1, key, false)
			set(tc.was)
			s.Unlock(1, key)
			locks := 0
			s.before = func() {
				if locks++; tc.clientDoes[locks] != "" {
					set(tc.clientDoes[locks])
				}
			}
			m := tc.m
			m.DBID, m.Key = 1, key
			if _, err := c.nodes[0].Submit(c.now, 1, 1, &m); err != nil {
				t.Fatal(err)
			}
			c.deliver()
			var got protocol.Record
			there := s.Look(1, key, &got)
			if c.replies != 1 || c.status != tc.status || !there || string(got.Data) != tc.want || s.Holder(1, key) != 0 {
				t.Errorf("%d replies, status %v, the record is %q (%v), held by %d; want status %v and %q", c.replies, c.status, got.Data, there, s.Holder(1, key), tc.status, tc.want)
			}
			for n := range tc.clientDoes {
				if locks < n {
					t.Errorf("it was locked %d times: the client did nothing", locks)
				}
			}
		})
	}
}

// TestRecoveryMessages: claims are linear in the records, and go to all nodes.
func TestRecoveryMessages(t *testing.T) {
	for _, n := range []int{3, 5} {
		c := newCouple(t, n, protocol.PolicyNever{})
		const records = 2000
		for i := range records {
			c.call(i%n, &wire.Message{Op: wire.ReqStoreUnlock, DBID: 1, Key: []byte(fmt.Sprintf("r%d", i)), Data: value, Timeout: 100})
		}
		c.sent = 0
		c.nodes[n-1].Suspect(c.now)
		for i := 0; i < 1000 && (i < 3 || !c.open()); i++ {
			c.now += link.Millisecond
			for _, x := range c.nodes {
				x.Tick(c.now)
			}
			c.deliver()
		}
		if !c.open() {
			t.Fatalf("%d nodes: the recovery does not end", n)
		}
		// A claim of these keys has about 42 bytes, a batch 1,200; the rest are rounds of the leader and PINGs.
		if limit := n*(n-1) + records/20 + 40*n*n; c.sent > limit {
			t.Errorf("%d nodes, %d records: %d messages, more than %d", n, records, c.sent, limit)
		}
	}
}

// benchmarkCore counts the core's events: a client's request, a packet, an
// acknowledgement, a tick. The link and its bytes are not in it, encoding and
// decoding are.
func benchmarkCore(b *testing.B, p protocol.Policy) {
	for _, s := range steady {
		b.Run(s.name, func(b *testing.B) {
			c := newCouple(b, 3, p)
			i := 0
			for range 300 {
				s.f(c, i)
				i++
			}
			c.events = 0
			b.ReportAllocs()
			for b.Loop() {
				s.f(c, i)
				i++
			}
			b.ReportMetric(float64(c.events)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(c.events)/float64(b.N), "events/op")
		})
	}
}

func BenchmarkStay(b *testing.B) { benchmarkCore(b, protocol.PolicyNever{}) }
func BenchmarkMove(b *testing.B) { benchmarkCore(b, protocol.PolicyAlways{}) }

// TestLateTake: a node takes two maps before its effects are taken. Both epochs go to
// the link, in their order, each before what was sent under it.
func TestLateTake(t *testing.T) {
	now := link.Second
	n := protocol.New(now, protocol.Config{Self: 1, Nodes: 3, Incarnation: 7, Start: now, WallMS: 1e9, Hash: func(uint32, []byte) uint64 { return 0 }, Conditions: yes{}},
		protocol.NewMemory(protocol.Lines{}), &flat{recs: map[string]*flatRecord{}})
	var e protocol.Effects
	n.Take(&e)
	n.Frozen(now, e.PassNum)
	step := func(ch protocol.Channel, epoch wire.Epoch, m *wire.Message) {
		t.Helper()
		if v := n.Step(now, 0, ch, epoch, 0, wire.Append(nil, m)); v != protocol.Handled {
			t.Fatalf("%s: verdict %d", m.Op, v)
		}
	}
	a, b := wire.Ballot(5, 0), wire.Ballot(6, 0)
	for _, ballot := range []wire.Epoch{a, b} {
		var rows []byte
		for i := range wire.PNN(2) {
			rows = wire.AppendMember(rows, &wire.Member{VNN: wire.VNN(i), PNN: i, Joiner: true, Incarnation: 6 + uint64(i), Life: uint64(ballot)})
		}
		step(protocol.Beacon, ballot, &wire.Message{Op: wire.Prepare, Promise: ballot})
		step(protocol.Control, ballot, &wire.Message{Op: wire.NewMap, Promise: ballot, Members: rows})
	}
	n.Take(&e)
	var epochs []wire.Epoch
	for _, s := range e.Sends {
		switch {
		case s.Kind == protocol.SendEpoch:
			epochs = append(epochs, s.Epoch)
		case s.Kind == protocol.SendMessage && s.Ch == protocol.Control && (len(epochs) == 0 || s.Epoch != epochs[len(epochs)-1]):
			t.Errorf("a message of ballot %x stands behind the epochs %x", s.Epoch, epochs)
		}
	}
	if fmt.Sprint(epochs) != fmt.Sprint([]wire.Epoch{a, b}) {
		t.Errorf("the link is told of the epochs %x, not of %x and %x", epochs, a, b)
	}
}

// TestSaved: what relies on the promise file waits for it, and nothing else does.
func TestSaved(t *testing.T) {
	now := link.Second
	n := protocol.New(now, protocol.Config{Self: 1, Nodes: 3, Incarnation: 7, Start: now, WallMS: 1e9, PromiseFile: true,
		Hash: func(uint32, []byte) uint64 { return 0 }, Conditions: yes{}},
		protocol.NewMemory(protocol.Lines{}), &flat{recs: map[string]*flatRecord{}})
	var e protocol.Effects
	sent := func(op wire.Op) (k int) {
		for _, s := range e.Sends {
			var m wire.Message
			if s.Kind == protocol.SendMessage && wire.Decode(s.Packet, &m) == nil && m.Op == op {
				k++
			}
		}
		return k
	}
	n.Take(&e)
	n.Saved(now, e.Save) // the nodes file
	n.Frozen(now, e.PassNum)
	ballot := wire.Ballot(5, 0)
	rows := wire.AppendMember(nil, &wire.Member{VNN: 1, PNN: 0, Joiner: true, Incarnation: 6, Life: uint64(ballot)})
	rows = wire.AppendMember(rows, &wire.Member{VNN: 2, PNN: 1, Joiner: true, Incarnation: 7, Life: uint64(ballot)})
	for _, c := range []struct {
		ch     protocol.Channel
		m      wire.Message
		waits  wire.Op
		atOnce wire.Op
	}{
		{protocol.Beacon, wire.Message{Op: wire.Prepare, Promise: ballot}, wire.Promise, 0},
		{protocol.Control, wire.Message{Op: wire.NewMap, Promise: ballot, Members: rows}, wire.ClaimsDone, wire.Ping},
	} {
		n.Step(now, 0, c.ch, ballot, 0, wire.Append(nil, &c.m))
		n.Take(&e)
		save := e.Save
		if save == 0 || sent(c.waits) != 0 || c.atOnce != 0 && sent(c.atOnce) == 0 {
			t.Errorf("behind %s: save %d, %d %s, %d %s", c.m.Op, save, sent(c.waits), c.waits, sent(c.atOnce), c.atOnce)
		}
		n.Saved(now, save-1)
		n.Tick(now)
		n.Take(&e)
		if sent(c.waits) != 0 {
			t.Errorf("%s does not wait for the promise file", c.waits)
		}
		n.Saved(now, save)
		n.Take(&e)
		if sent(c.waits) != 1 {
			t.Errorf("%d %s when the promise file is written", sent(c.waits), c.waits)
		}
	}
}
