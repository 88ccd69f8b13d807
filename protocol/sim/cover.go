package sim

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/mainzdb/mainz/protocol"
	"github.com/mainzdb/mainz/protocol/link"
	"github.com/mainzdb/mainz/protocol/wire"
)

// Coverage is what runs have met: messages of each kind, limits that had their
// effect, how full the tables were, and how often a checker had something to judge.
type Coverage struct {
	Messages map[string]MessageCount `json:"messages"`
	Limits   map[string]uint64       `json:"limits"`
	Marks    map[string]uint64       `json:"high_water_marks"`
	Judged   map[string]uint64       `json:"judged"`
}

// MessageCount is how often messages of one kind were sent, and what became of them
// at their receivers besides being handled.
type MessageCount struct {
	Sent    uint64 `json:"sent"`
	NotYet  uint64 `json:"not_yet"`
	Refused uint64 `json:"refused"`
}

// NewCoverage has a line for all that can be met.
func NewCoverage() *Coverage {
	v := &Coverage{map[string]MessageCount{}, map[string]uint64{}, map[string]uint64{}, map[string]uint64{}}
	for op := range wire.Op(128) {
		if op.Valid() {
			v.Messages[op.String()] = MessageCount{}
		}
	}
	for l := range protocol.Limits {
		v.Limits[l.String()] = 0
	}
	for _, l := range []string{limitWindow, limitHeld, limitFragments} {
		v.Limits[l] = 0
	}
	for _, j := range judgements {
		v.Judged[j] = 0
	}
	return v
}

// Limits of the link.
const (
	limitWindow    = "window"
	limitHeld      = "held"
	limitFragments = "fragments"
)

// What the checkers have judged, by name.
const (
	judgedLock     = "locks given while another's was just over or about to begin"
	judgedLost     = "locks lost for a reason"
	judgedTimeout  = "time-outs explained"
	judgedWaiter   = "waiters that were woken"
	judgedGivenUp  = "locks that were given up and released"
	judgedPieces   = "pieces of dead clients that went"
	judgedFloor    = "tables at their floor"
	judgedChannels = "channels without a hole"
)

var judgements = []string{judgedLock, judgedLost, judgedTimeout, judgedWaiter, judgedGivenUp, judgedPieces, judgedFloor, judgedChannels}

// Add what another run has met.
func (v *Coverage) Add(o *Coverage) {
	for op, n := range o.Messages {
		m := v.Messages[op]
		m.Sent, m.NotYet, m.Refused = m.Sent+n.Sent, m.NotYet+n.NotYet, m.Refused+n.Refused
		v.Messages[op] = m
	}
	for l, n := range o.Limits {
		v.Limits[l] += n
	}
	for m, n := range o.Marks {
		v.Marks[m] = max(v.Marks[m], n)
	}
	for j, n := range o.Judged {
		v.Judged[j] += n
	}
}

// seldom: a request that was forwarded comes to its LMASTER once more only if that got
// the record, and lost it, behind the request's back.
var seldom = protocol.LimitHops.String()

// Missing is what was never met.
func (v *Coverage) Missing() (missing []string) {
	for _, op := range sorted(v.Messages) {
		if v.Messages[op].Sent == 0 {
			missing = append(missing, "message "+op)
		}
	}
	for _, l := range sorted(v.Limits) {
		if v.Limits[l] == 0 && l != seldom {
			missing = append(missing, "limit "+l)
		}
	}
	for _, j := range sorted(v.Judged) {
		if v.Judged[j] == 0 {
			missing = append(missing, "judged: "+j)
		}
	}
	return missing
}

// Print the tables.
func (v *Coverage) Print(w io.Writer) {
	fmt.Fprintf(w, "%-28s %12s %12s %12s\n", "message", "sent", "not yet", "refused")
	for _, op := range sorted(v.Messages) {
		m := v.Messages[op]
		fmt.Fprintf(w, "%-28s %12d %12d %12d\n", op, m.Sent, m.NotYet, m.Refused)
	}
	for _, t := range []struct {
		title string
		rows  map[string]uint64
	}{{"limit had its effect", v.Limits}, {"most in a table, or of a message", v.Marks}, {"judged", v.Judged}} {
		fmt.Fprintf(w, "\n%-64s %12s\n", t.title, "")
		for _, k := range sorted(t.rows) {
			fmt.Fprintf(w, "%-64s %12d\n", k, t.rows[k])
		}
	}
}

func sorted[K cmp.Ordered, V any](m map[K]V) []K {
	ks := make([]K, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// cover gathers what one run meets.
type cover struct {
	sent    [128]MessageCount
	limits  [protocol.Limits]uint64
	window  uint64
	held    uint64
	frags   uint64
	marks   map[string]uint64
	judged  map[string]uint64
	scratch wire.Message
}

func newCover() *cover { return &cover{marks: map[string]uint64{}, judged: map[string]uint64{}} }

func (v *cover) mark(what string, n int) {
	if n > 0 {
		v.marks[what] = max(v.marks[what], uint64(n))
	}
}

// send counts a message that the core gives to the link.
func (v *cover) send(s *protocol.Send) {
	if op := packetOp(s.Packet); int(op) < len(v.sent) {
		v.sent[op].Sent++
		v.mark("bytes of a message", len(s.Packet))
		v.rows(op, s)
	}
}

// rows of a message that has some.
func (v *cover) rows(op wire.Op, s *protocol.Send) {
	if op != wire.Claims && op != wire.Verdicts && op != wire.Resupply && op != wire.RequestDMaster {
		return
	}
	m := &v.scratch
	if wire.Decode(s.Packet, m) != nil {
		return
	}
	n := 0
	for rest := m.Rows; len(rest) > 0; n++ {
		switch op {
		case wire.Claims:
			_, rest, _ = wire.NextClaim(rest)
		case wire.Verdicts:
			_, rest, _ = wire.NextVerdict(rest)
		default:
			_, rest, _ = wire.NextPiece(rest)
		}
	}
	v.mark("rows of "+op.String(), n)
	if op == wire.RequestDMaster {
		for n = 0; len(m.Dones) > 0; n++ {
			_, m.Dones, _ = wire.NextDone(m.Dones)
		}
		v.mark("done entries that move with a record", n)
	}
}

func (v *cover) step(p []byte, verdict link.Verdict) {
	if op := packetOp(p); int(op) < len(v.sent) {
		switch verdict {
		case link.NotYet:
			v.sent[op].NotYet++
		case link.Refused:
			v.sent[op].Refused++
		}
	}
}

func packetOp(p []byte) wire.Op {
	if len(p) < 4 {
		return 0
	}
	return wire.Op(uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16 | uint32(p[3])<<24)
}

// look at a host's tables.
func (v *cover) look(h *host, z *protocol.Sizes) {
	v.mark("pending operations", z.Pending)
	v.mark("outstanding REQIDs", z.Requests)
	v.mark("bytes of room promised", int(z.RoomOut))
	v.mark("keys known", z.Keys)
	v.mark("requests parked", z.Parked)
	v.mark("done entries", z.Dones)
	v.mark("done entries of one record", z.MostDones)
	v.mark("carried copies", z.Copies)
	v.mark("bytes of carried copies", int(z.CopyBytes))
	v.mark("acks that tokens wait for", z.Tokens)
	v.mark("locks for other nodes", z.Locks)
	v.mark("locations", z.Locations)
	v.mark("cached locations", z.Cached)
	v.mark("keys claimed", z.Claims)
	v.mark("journal entries", z.Pieces)
	v.mark("databases", z.DBs)
	v.mark("questions about databases", z.Asks)
	v.mark("traverses", z.Walks)
	v.mark("bytes of records that moved", z.Moved)
	v.mark("bytes of spare buffers", z.Spare)
	v.mark("records of a node", len(h.seg.recs))
	for p := range h.c.hosts {
		for _, ch := range []protocol.Channel{protocol.Data, protocol.Control} {
			s := h.node.Link().State(protocol.PNN(p), ch)
			v.mark("frames on their way on a channel", s.Flight)
			v.mark("frames that wait for a window", s.Waiting)
			v.mark("messages being put together on a channel", s.Parts)
		}
	}
	v.mark("datagrams held", h.node.Link().Held())
	v.mark("bytes of spare datagrams", h.node.Link().Spare())
}

// ends adds the counters of a host whose dispatcher stops, or whose run is over.
func (v *cover) ends(h *host) {
	if h.node == nil {
		return
	}
	n := h.node.Node().Counters()
	for l := range n.Reached {
		v.limits[l] += n.Reached[l]
	}
	k := h.node.Link().Counters()
	v.window, v.held = v.window+k.Waited, v.held+k.Unheld
}

func (v *cover) result() *Coverage {
	r := NewCoverage()
	for op := range v.sent {
		if name := wire.Op(op).String(); v.sent[op] != (MessageCount{}) {
			r.Messages[name] = v.sent[op]
		}
	}
	for l := range v.limits {
		r.Limits[protocol.Limit(l).String()] = v.limits[l]
	}
	r.Limits[limitWindow], r.Limits[limitHeld], r.Limits[limitFragments] = v.window, v.held, v.frags
	for m, n := range v.marks {
		r.Marks[m] = n
	}
	for j, n := range v.judged {
		r.Judged[j] = n
	}
	return r
}
