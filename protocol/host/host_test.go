package host

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/protocol/wire"
)

// empty is a store without records, of a node that is alone.
type empty struct{ protocol.Store }

func (empty) Each(uint64, int, func(uint32, []byte, uint64, bool)) uint64 { return 0 }
func (empty) Sweep(uint64, int, func(protocol.OPID) bool) uint64          { return 0 }
func (empty) Reset(uint64)                                                {}
func (empty) DropProvisional(uint64, int) uint64                          { return 0 }
func (empty) OpenProvisional()                                            {}
func (empty) Look(uint32, []byte, *protocol.Record) bool                  { return false }
func (empty) Life() uint64                                                { return 0 }

// log is a shell that writes down what it is told.
type log struct{ lines []string }

func (l *log) add(f string, a ...any) { l.lines = append(l.lines, fmt.Sprintf(f, a...)) }

func (l *log) Gate(g protocol.Gate)             { l.add("gate %d", g.State) }
func (l *log) Lease(protocol.Instant)           { l.add("lease") }
func (l *log) Pass(n uint64)                    { l.add("pass %d", n) }
func (l *log) Save(n uint64, w *protocol.Words) { l.add("save %d %x", n, w.Promised) }
func (l *log) Databases()                       { l.add("databases") }
func (l *log) Event(e *protocol.Event)          { l.add("event %b", e.Members) }
func (l *log) Reply(r *protocol.Reply)          { l.add("reply %d %s", r.Cookie, r.Status) }
func (l *log) Doorbell()                        { l.add("doorbell") }
func (l *log) Lock(want bool, _ wire.Epoch)     { l.add("lock %v", want) }
func (l *log) Datagram(to wire.PNN, b []byte)   { l.add("datagram %d", to) }

// is compares what came since the last time, and forgets it.
func (l *log) is(t *testing.T, what string, want ...string) {
	t.Helper()
	if !slices.Equal(l.lines, want) {
		t.Errorf("%s: got  %s\nwant %s", what, strings.Join(l.lines, ", "), strings.Join(want, ", "))
	}
	l.lines = nil
}

func config(nodes int) Config {
	return Config{Node: protocol.Config{Nodes: nodes, Incarnation: 1, Start: link.Second, WallMS: 1e9, Hash: func(uint32, []byte) uint64 { return 0 }}}
}

func open(db uint32) *wire.Message {
	return &wire.Message{Op: wire.OpenDB, DBID: db, Mode: uint32(protocol.KV), Data: []byte("d"), Timeout: 1000}
}

// TestOrder: what one Flush does, in the order that doc.go gives; and a turn of many
// calls does what a turn of one does, once and in the same order.
func TestOrder(t *testing.T) {
	now, l := link.Second, &log{}
	h, err := New(now, config(1), protocol.NewMemory(protocol.Lines{}), empty{}, protocol.Gate{State: protocol.GateDead}, l)
	if err != nil {
		t.Fatal(err)
	}
	h.Flush(now)
	l.is(t, "start", "gate 1", "pass 1", "lease")
	h.Frozen(now, 1)
	for i := 0; i < 1000 && len(l.lines) == 0; i++ {
		now = max(now+1, h.Next())
		h.Tick(now)
		h.Flush(now)
	}
	if l.lines[0] == "gate 1" { // the map is taken, and the gate has its epoch
		t.Errorf("a node that is alone opens in two turns: %v", l.lines)
	}
	l.is(t, "opening", "event 1", "gate 2", "doorbell")
	for i := range uint32(3) {
		if _, err := h.Submit(now, 1, uint64(i), open(i)); err != nil {
			t.Fatal(err)
		}
	}
	h.Flush(now)
	l.is(t, "three calls", "databases", "reply 0 OK", "reply 1 OK", "reply 2 OK", "doorbell")
	// All at once: a call is answered, the gate closes, and the pass is over at its end.
	if _, err := h.Submit(now, 1, 3, open(3)); err != nil {
		t.Fatal(err)
	}
	h.Suspect(now)
	if _, err := h.Submit(now, 1, 4, open(4)); err != nil {
		t.Fatal(err)
	}
	h.Flush(now)
	l.is(t, "suspicion", "gate 1", "pass 2", "databases", "reply 3 OK", "doorbell")
	h.Flush(now)
	l.is(t, "nothing new")
	h.Frozen(now, 1)
	h.Flush(now)
	l.is(t, "the end of a pass that is of no use any more")
	h.Frozen(now, 2)
	for i := 0; i < 1000 && len(l.lines) == 0; i++ {
		now = max(now+1, h.Next())
		h.Tick(now)
		h.Flush(now)
	}
	if len(l.lines) != 5 { // event, gate, databases, reply, doorbell
		t.Errorf("the second opening: %v", l.lines)
	}
	l.is(t, "second opening", "databases", "event 1", "gate 2", "reply 4 OK", "doorbell")
}

// TestDatagramsLast: nothing goes out before Flush, and then behind all else.
func TestDatagramsLast(t *testing.T) {
	now, l := link.Second, &log{}
	cfg := config(3)
	cfg.Link = &link.Config{Nodes: 3, Incarnation: 1, Cluster: 1}
	h, err := New(now, cfg, protocol.NewMemory(protocol.Lines{}), empty{}, protocol.Gate{State: protocol.GateDead}, l)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		h.Tick(now)
	}
	l.is(t, "before Flush")
	h.Flush(now)
	if l.lines[0] != "gate 1" || l.lines[1] != "pass 1" {
		t.Errorf("start: %v", l.lines)
	}
	first := slices.IndexFunc(l.lines, func(s string) bool { return strings.HasPrefix(s, "datagram") })
	if first < 2 || slices.ContainsFunc(l.lines[first:], func(s string) bool { return !strings.HasPrefix(s, "datagram") }) {
		t.Errorf("datagrams are not last: %v", l.lines)
	}
}

// TestConfig: a link that can't be made is an error.
func TestConfig(t *testing.T) {
	cfg := config(3)
	cfg.Link = &link.Config{Nodes: 3}
	if _, err := New(link.Second, cfg, protocol.NewMemory(protocol.Lines{}), empty{}, protocol.Gate{}, &log{}); err == nil {
		t.Error("a link of incarnation 0 was made")
	}
}
