package sim

import (
	"flag"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/wire"
)

var (
	figures  = flag.Bool("figures", false, "print the tables of docs/recovery.md, which takes some minutes and 4 GiB")
	handling = flag.String("handling", "none", "how long dispatchers are busy: none, model, cpu")
	sizes    = flag.String("sizes", "", "nodes x records of the tables, as in 3x1000,16x100000; with -figures")
)

// taking gives a cluster's dispatchers their handling time. The goroutine stays on its
// thread: done lets it go.
func taking(t testing.TB, o *Options, how string) (done func()) {
	done = func() {}
	switch how {
	case "none":
	case "model":
		o.Handling = ModelTime
	case "cpu":
		testenv.Need(t, testenv.Linux)
		o.Handling, o.CPU = CPUTime, testenv.ThreadCPU
		runtime.LockOSThread()
		done = runtime.UnlockOSThread
	default:
		t.Fatalf("-handling %s: none, model or cpu", how)
	}
	return done
}

// loaded is a cluster that is open, with records spread evenly over its nodes.
func loaded(t testing.TB, nodes, records int, policy string) *scenario {
	s := &scenario{keys: map[string]scriptKey{}}
	if err := s.cluster([]string{fmt.Sprint(nodes), policy}); err != nil {
		t.Fatal(err)
	}
	s.c.opt.Trace = nil
	s.c.figures = true
	s.c.check.working = false
	for i := range records {
		h := s.c.hosts[i%nodes]
		key := fmt.Sprintf("record %d", i)
		h.seg.add(&record{db: dbKV, key: key, rsn: 1, accessor: wire.NoPNN, data: []byte("v")})
	}
	return s
}

// recover measures from the first closed gate to the last one open, and counts
// what is sent but for PING and PONG.
func (s *scenario) recover(t testing.TB, alive func(h *host) bool) (frozen instant, messages, claims, leader int) {
	s.c.control, s.c.claimed = map[wire.Op]int{}, [wire.MaxNodes]int{}
	s.c.ballots = map[protocol.Epoch]bool{}
	var from instant
	for range 60_000 {
		s.c.until(s.c.now + 50*us)
		closed := false
		for _, h := range s.c.hosts {
			closed = closed || alive(h) && (!serving(h) || h.in.until > s.c.now && from != 0)
		}
		if closed && from == 0 {
			from = s.c.now
		}
		if !closed && from != 0 {
			for op, n := range s.c.control {
				switch op {
				case wire.Ping, wire.Pong:
					continue
				case wire.Claims:
					claims = n
				case wire.Prepare, wire.NewMap, wire.Settle, wire.Recovered:
					leader += n
				}
				messages += n
			}
			return s.c.now - from, messages, claims, leader
		}
	}
	return 0, 0, 0, 0
}

// TestRecoveryGrowth: the leader's messages are linear in the nodes, claims are
// at most n(n-1) + records/batch, and no node is sent all of them.
func TestRecoveryGrowth(t *testing.T) {
	type row struct{ nodes, records int }
	rows := []row{{3, 1000}, {8, 1000}, {16, 4000}}
	if *figures {
		rows = []row{{3, 1000}, {4, 1000}, {8, 1000}, {16, 1000}, {32, 1000}, {64, 1000}, {4, 10_000}, {4, 100_000},
			{16, 100_000}, {64, 100_000}, {4, 1_000_000}, {16, 1_000_000}}
	}
	for _, r := range rows {
		s := loaded(t, r.nodes, r.records, "never")
		all := func(*host) bool { return true }
		start := time.Now()
		s.c.hosts[r.nodes-1].crash(false)
		s.c.hosts[r.nodes-1].boot()
		ms1, n1, c1, l1 := s.recover(t, all)
		if ms1 == 0 {
			t.Fatal("the recovery does not end")
		}
		cpu := time.Since(start)
		s.spread(t, r.records, r.nodes)
		dead := s.c.hosts[r.nodes-1]
		dead.crash(true)
		ms2, n2, c2, l2 := s.recover(t, func(h *host) bool { return h != dead })
		if ms2 == 0 {
			t.Fatal("the recovery does not end")
		}
		s.spread(t, r.records, r.nodes-1)
		t.Logf("| %d | %d | %.1f, %d (%d) | %.1f, %d (%d) | %v |", r.nodes, r.records, float64(ms1)/1e6, n1, c1,
			float64(ms2)/1e6, n2, c2, cpu.Round(time.Millisecond))
		const batch = 24 // claims of these keys in one
		for _, c := range []int{c1, c2} {
			if limit := r.nodes*(r.nodes-1) + r.records/batch; c > limit {
				t.Errorf("%d nodes, %d records: %d CLAIMs, more than %d", r.nodes, r.records, c, limit)
			}
		}
		for _, l := range []int{l1, l2} {
			if l > 8*r.nodes {
				t.Errorf("%d nodes: %d messages of the leader", r.nodes, l)
			}
		}
	}
}

// TestRecoveryHandling: recoveries of dispatchers that are busy for what their
// handlers take. They end, in one ballot, as nothing else fails.
func TestRecoveryHandling(t *testing.T) {
	how, list := "model", "3x3000,16x2000"
	if *figures {
		how, list = "cpu", "3x1000,3x10000,3x100000,3x300000,3x1000000,16x1000,16x100000,16x1000000,64x100000"
	}
	if *handling != "none" {
		how = *handling
	}
	if *sizes != "" {
		list = *sizes
	}
	if *figures { // what is measured is the core and the link, not the collector
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
		defer debug.SetMemoryLimit(debug.SetMemoryLimit(8 << 30))
	}
	for _, size := range strings.Split(list, ",") {
		var nodes, records int
		if _, err := fmt.Sscanf(size, "%dx%d", &nodes, &records); err != nil {
			t.Fatalf("-sizes %s: %v", size, err)
		}
		s := loaded(t, nodes, records, "never")
		done := taking(t, &s.c.opt, how)
		row := fmt.Sprintf("| %d | %d |", nodes, records)
		last := s.c.hosts[nodes-1]
		for _, dies := range []bool{false, true} {
			runtime.GC()
			alive := func(h *host) bool { return !dies || h != last }
			s.c.tally = Steps{}
			last.crash(dies)
			if !dies {
				last.boot()
			}
			took, _, _, _ := s.recover(t, alive)
			n, tally := len(s.c.ballots), s.c.tally
			if took == 0 {
				row += fmt.Sprintf(" never, %d ballots;", n)
				t.Errorf("%d nodes, %d records, dies %v: the recovery does not end in 3 s: %d ballots", nodes,
					records, dies, n)
				break
			}
			row += fmt.Sprintf(" %.1f ms, %d ballots, longest step %.2f ms (%s), %.1f ms CPU, model %.1f |",
				float64(took)/1e6, n, float64(tally.Longest)/1e6, tally.What, float64(tally.Total)/1e6,
				float64(tally.Model)/1e6)
			if n != 1 {
				t.Errorf("%d nodes, %d records, dies %v: %d ballots", nodes, records, dies, n)
			}
			if dies {
				s.spread(t, records, nodes-1)
			} else {
				s.spread(t, records, nodes)
			}
		}
		done()
		t.Log(row)
		s = nil
		runtime.GC()
	}
}

// spread: each node is sent its share of the claims, twice that at most, and no
// record is claimed twice.
func (s *scenario) spread(t testing.TB, records, members int) {
	sum := 0
	for i, n := range s.c.claimed {
		sum += n
		if limit := 2*records/members + 20; n > limit || n >= records {
			t.Errorf("%d members, %d records: node %d is sent %d claims, more than %d", members, records, i, n, limit)
		}
	}
	if sum > records {
		t.Errorf("%d members: %d claims of %d records", members, sum, records)
	}
}

// TestHotRecord: all nodes lock and store one record in turn. While others wait for
// its lock it stays where it is, so that a lock takes four messages however many wait;
// nobody has to back off, and nobody waits much longer than its turn.
func TestHotRecord(t *testing.T) {
	rows := []int{3, 16}
	if *figures {
		rows = append(rows, 64)
	}
	for _, nodes := range rows {
		s := loaded(t, nodes, 0, "always")
		c := s.c
		c.hot, c.check.working = true, true
		for _, h := range c.hosts {
			h.attach()
		}
		sent := c.cmsgs
		var longest instant
		for until := c.now + 3*sec; c.now < until; {
			c.until(c.now + ms)
			for _, h := range c.hosts {
				for _, cl := range h.clients {
					if o := cl.wait; o != nil && !o.ended && o.m.Op == wire.ReqFetchLocked {
						longest = max(longest, c.now-o.call)
					}
				}
			}
		}
		var redirects, backoffs, moves uint64
		for _, h := range c.hosts {
			n := h.node.Node().Counters()
			redirects, backoffs, moves = redirects+n.Redirects, backoffs+n.Backoffs, moves+n.Handovers
		}
		ops := c.check.acked / 2 // a lock and what releases it
		each := float64(c.cmsgs-sent) / float64(ops)
		t.Logf("%d nodes: %d operations, %.2f messages each, the longest wait %.1f ms", nodes, ops, each,
			float64(longest)/1e6)
		t.Logf("%d handovers, %d redirects, %d backoffs", moves, redirects, backoffs)
		if each > 4.1 {
			t.Errorf("%d nodes: %.2f messages for a lock", nodes, each)
		}
		if ops < 500 || float64(redirects) > 0.2*float64(ops) || backoffs > uint64(ops)/100 {
			t.Errorf("%d nodes: %d operations, %d redirects, %d backoffs", nodes, ops, redirects, backoffs)
		}
	}
}

// BenchmarkRun runs seeds of mixed faults to their end; an event is a datagram, a
// timer, or a step of a client. Most of the time goes into checking the histories.
func BenchmarkRun(b *testing.B) {
	b.ReportAllocs()
	events, seed := uint64(0), uint64(4_000_000)
	for b.Loop() {
		r := Run(Options{Seed: seed})
		if len(r.Failures) > 0 {
			b.Fatalf("seed %d: %v", seed, r.Failures[0])
		}
		events += r.Steps
		seed++
	}
	perEvent(b, events)
}

// BenchmarkEvents is the simulator without the checks of a finished history: a
// millisecond of five nodes whose clients lock and store one record.
// What it allocates is the clients' histories and what they do next; without them, a
// second of heartbeats, nothing.
func BenchmarkEvents(b *testing.B) {
	run := func(clients bool, time instant) func(b *testing.B) {
		return func(b *testing.B) {
			c := loaded(b, 5, 100, "always").c
			if c.hot, c.check.working = clients, clients; clients {
				for _, h := range c.hosts {
					h.attach()
				}
			}
			c.until(c.now + sec)
			before := c.steps
			b.ReportAllocs()
			for b.Loop() {
				c.until(c.now + time)
				if c.steps > 15_000_000 { // a run has at most 20 million
					c.steps, before = 0, before-c.steps
				}
			}
			perEvent(b, c.steps-before)
		}
	}
	b.Run("clients", run(true, ms))
	b.Run("heartbeats", run(false, sec))
}

// TestHeartbeatsAllocate nothing: datagrams, timers, links and cores in the simulator.
func TestHeartbeatsAllocate(t *testing.T) {
	c := loaded(t, 5, 100, "always").c
	c.until(c.now + sec)
	if n := testing.AllocsPerRun(5, func() { c.until(c.now + sec) }); n > 0 {
		t.Errorf("%g allocations in a second of heartbeats", n)
	}
}

func perEvent(b *testing.B, events uint64) {
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(events)/float64(b.N), "events/op")
}

// TestDrainHandling: a node that leaves gives its records away at a rate that does not
// fall with their number, in bounded steps, with handling time.
func TestDrainHandling(t *testing.T) {
	how, records := "model", 5000
	if *figures {
		how, records = "cpu", 100_000
	}
	s := loaded(t, 3, 0, "never")
	c, h := s.c, s.c.hosts[2]
	for _, h := range c.hosts {
		h.room = 1 << 30 // each record that is asked for is promised 64 KiB of it
	}
	for i := range records {
		h.seg.add(&record{db: dbKV, key: fmt.Sprintf("record %d", i), rsn: 1, accessor: wire.NoPNN, data: make([]byte, 64)})
	}
	c.hosts[0].crash(false) // claims them
	c.hosts[0].boot()
	if took, _, _, _ := s.recover(t, func(*host) bool { return true }); took == 0 {
		t.Fatal("the recovery does not end")
	}
	done := taking(t, &c.opt, how)
	defer done()
	c.tally = Steps{}
	from := c.now
	h.run(func() { h.node.Drain(h.now(), true) })
	for i := 0; i < 20_000 && len(h.seg.recs) > 0; i++ {
		c.until(c.now + ms)
	}
	took := c.now - from
	t.Logf("%d records in %.0f ms, %.0f a second; %v", records, float64(took)/1e6, float64(records)/(float64(took)/1e9), &c.tally)
	if left := len(h.seg.recs); left > 0 || how == "model" && float64(records)/(float64(took)/1e9) < 20_000 {
		t.Errorf("%d of %d records are left after %.0f ms", left, records, float64(took)/1e6)
	}
}
