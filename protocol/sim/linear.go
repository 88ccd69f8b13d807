package sim

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// model is one record as a linearizable object. Its state is the record's bytes;
// an operation whose end nobody knows may have happened or not.
func model(pieces bool) porcupine.Model {
	nd := porcupine.NondeterministicModel{
		Init:  func() []interface{} { return []interface{}{""} },
		Equal: func(a, b interface{}) bool { return a == b },
		Step: func(state, input, output interface{}) []interface{} {
			return step(pieces, state.(string), input.(*histOp))
		},
	}
	return nd.ToModel()
}

// step is all states that h can lead to from s.
func step(pieces bool, s string, h *histOp) []interface{} {
	known := h.ret != 0
	one := func(v string) []interface{} {
		if known || v == s {
			return []interface{}{v}
		}
		return []interface{}{s, v}
	}
	switch h.kind {
	case "fetch":
		if h.out == s {
			return []interface{}{s}
		}
		return nil
	case "put":
		return one(h.arg)
	case "cas":
		if h.expect == s {
			return one(h.arg)
		}
		if known {
			return nil
		}
		return []interface{}{s}
	case "append":
		yes := !pieces || compatible(s, h.arg)
		switch {
		case h.no && yes, known && !h.no && !yes:
			return nil
		case h.no || !yes:
			return []interface{}{s}
		}
		return one(s + h.arg)
	case "remove":
		return one(without(s, h.arg))
	case "sweep":
		var b strings.Builder
		for i := 0; i+pieceLen <= len(s); i += pieceLen {
			if p := s[i : i+pieceLen]; !h.dead[p] {
				b.WriteString(p)
			}
		}
		return []interface{}{b.String()}
	case "reset":
		return []interface{}{h.out}
	case "maybe":
		m := *h.ops[0]
		m.ret, m.no = 0, false
		return step(pieces, s, &m)
	}
	panic("sim: history holds " + h.kind)
}

// What is large in a run is known by its first byte: 8 bytes of its name, and as many
// that mean nothing as its number says.
const (
	largeValue     = '~'
	largeShared    = '+'
	largeExclusive = '!'
)

// padded is a large value or piece.
func padded(kind byte, number int) []byte {
	v := fmt.Appendf(nil, "%c%07d", kind, number)
	return append(v, bytes.Repeat([]byte{'.'}, padding(v))...)
}

// padding of what has this name.
func padding(name []byte) int {
	if name[0] != largeValue && name[0] != largeShared && name[0] != largeExclusive {
		return 0
	}
	n := 0
	for _, c := range name[1:pieceLen] {
		n = n*10 + int(c-'0')
	}
	if n%5 == 0 {
		return n * 7919 % 6000
	}
	return n * 7919 % 500
}

// fold takes the padding out of a record: what the checkers look at.
func fold(data []byte) string {
	var b strings.Builder
	for len(data) >= pieceLen {
		b.Write(data[:pieceLen])
		pad := padding(data)
		if data = data[pieceLen:]; pad > len(data) {
			break // a piece of one: keep what shows it
		}
		data = data[pad:]
	}
	b.Write(data)
	return b.String()
}

func without(s, piece string) string {
	for i := 0; i+pieceLen <= len(s); i += pieceLen {
		if s[i:i+pieceLen] == piece {
			return s[:i] + s[i+pieceLen:]
		}
	}
	return s
}

// searchBudget is how many states a search may visit.
const searchBudget = 20_000

// linearizable checks S3 for every key; it returns how many were too hard.
func (k *checker) linearizable() (hard int) {
	for _, key := range k.keys {
		switch k.judge(key, k.c.now) {
		case illegal:
			k.fail("S3", "the history of %q (%d operations) is not linearizable from %.3f ms on", key[1:],
				len(k.hist[key]), float64(k.breaks(key))/1e6)
			if k.c.opt.Trace != nil {
				k.c.opt.Trace(k.history(key))
			}
		case undecided:
			hard++
		}
	}
	return hard
}

// judge a key's history as it stood at a moment. What the search rejects or can't
// decide porcupine sees as well.
func (k *checker) judge(key string, at instant) verdict {
	ops := k.moments(key, at)
	pieces := key[0] == dbPieces
	v := newSearch(pieces, ops, searchBudget).run()
	if v == legal {
		return legal
	}
	switch porcupine.CheckOperationsTimeout(model(pieces), operations(ops), time.Second) {
	case porcupine.Ok:
		return legal
	case porcupine.Illegal:
		return illegal
	}
	return v
}

// moments are the operations of a key as they stood at a moment: what had not
// ended by then may have happened or not.
func (k *checker) moments(key string, at instant) (ops []moment) {
	met := k.meetings(key)
	for _, h := range k.hist[key] {
		if h.call > at || h.void && h.ret <= at {
			continue
		}
		if h.ret > at {
			m := *h
			m.ret, m.no = 0, false
			h = &m
		}
		if m, out := met.bounds(h, at+sec); !out {
			ops = append(ops, m)
		}
	}
	return ops
}

func operations(ms []moment) []porcupine.Operation {
	ops := make([]porcupine.Operation, len(ms))
	for i, m := range ms {
		ops[i] = porcupine.Operation{ClientId: i, Input: m.h, Call: int64(m.call), Return: int64(m.ret)}
	}
	return ops
}

// meetings says who met which value of a key. Values and pieces are all different,
// so a meeting orders operations, which makes the search for an order small.
type meetings struct {
	pieces bool
	values map[string]*meeting
	states []*histOp // that returned the whole record
	again  map[*histOp]bool
}

type meeting struct {
	by          *histOp // who brought it
	first, last instant // ends of the operations that met it
	begun       instant // the newest call of those
	after       string  // what stood before it when it was met first
	maybe       bool    // an operation of unknown end has met it, if it has happened
	gone        instant // it was met, then missed, and never met again
}

func (k *checker) meetings(key string) *meetings {
	m := &meetings{pieces: key[0] == dbPieces, values: map[string]*meeting{}, again: map[*histOp]bool{}}
	for _, h := range k.hist[key] {
		switch {
		case h.kind == "maybe":
			m.again[h.ops[0]] = true
		case h.arg != "" && h.kind != "remove":
			m.values[h.arg] = &meeting{by: h}
		}
	}
	for _, h := range k.hist[key] {
		if h.ret == 0 && h.kind == "cas" {
			each(h.expect, func(v string) {
				if x := m.values[v]; x != nil {
					x.maybe = true
				}
			})
		}
		if h.ret == 0 || h.void || h.kind != "fetch" && h.kind != "cas" && h.kind != "reset" {
			continue
		}
		m.states = append(m.states, h)
		each(h.state(), func(v string) {
			if x := m.values[v]; x != nil {
				if h.kind == "reset" {
					m.again[x.by] = true
				}
				if x.first == 0 || h.ret < x.first {
					x.first = h.ret
					x.after, _, _ = strings.Cut(h.state(), v)
				}
				x.last, x.begun = max(x.last, h.ret), max(x.begun, h.call)
			}
		})
	}
	for _, h := range k.hist[key] {
		if h.kind != "reset" {
			continue
		}
		for _, x := range m.values { // re-supply has an order of its own
			if h.ret >= x.by.call && h.call <= x.first {
				x.after = ""
			}
		}
	}
	for _, h := range m.states {
		for v, x := range m.values {
			if x.last != 0 && h.call > x.last && !strings.Contains(h.state(), v) && (x.gone == 0 || h.ret < x.gone) {
				x.gone = h.ret
			}
		}
	}
	return m
}

// state that an operation has met.
func (h *histOp) state() string {
	if h.kind == "cas" {
		return h.expect
	}
	return h.out
}

// each value or piece in a record: they are all of one length.
func each(state string, f func(v string)) {
	for i := 0; i+pieceLen <= len(state); i += pieceLen {
		f(state[i : i+pieceLen])
	}
}

// bounds of the moment at which an operation took effect, if it did; out: it can be
// left out. What was brought was brought before anybody who met it had ended, and
// removed after the last who met it had begun. Of unknown end:
//   - what was met has taken effect;
//   - a kv value that nobody met can be left out: if there is an order with it, what
//     came next overwrote it unseen, and the order holds without it;
//   - a removal has happened, or will do nothing, by the time that the piece was
//     missed for good.
//
// None of this for an operation that was perhaps done twice, around a loss, or whose
// piece was re-supplied.
func (t *meetings) bounds(h *histOp, end instant) (m moment, out bool) {
	m = moment{h: h, call: h.call, ret: h.ret, must: h.ret != 0 && h.kind != "maybe", read: h.kind == "fetch" || h.no}
	if m.ret == 0 {
		m.ret = end
	}
	switch h.kind {
	case "fetch":
		if h.ret == 0 {
			return m, true
		}
		each(h.out, func(v string) {
			if x := t.values[v]; x != nil && !t.again[x.by] {
				m.call = max(m.call, x.by.call)
			}
		})
	case "put", "cas", "append":
		x := t.values[h.arg]
		switch {
		case x == nil:
		case x.first != 0 && !t.again[h] && !h.no:
			m.ret, m.must, m.after = min(m.ret, x.first), true, x.after
		case x.first == 0 && h.ret == 0 && !t.pieces && !x.maybe:
			return m, true
		}
		m.unmet = x != nil && x.first == 0
	case "maybe":
		x := t.values[h.ops[0].arg]
		return m, x != nil && x.first == 0 && !t.pieces && !x.maybe
	case "remove":
		x := t.values[h.arg]
		if x == nil || t.again[x.by] {
			break
		}
		if x.first != 0 && x.first <= h.call || x.by.ret != 0 && x.by.ret <= h.call { // there when it began
			m.call = max(m.call, x.begun)
		}
		if x.gone != 0 {
			m.ret = min(m.ret, x.gone)
		}
	}
	m.call = min(m.call, max(h.call, m.ret))
	m.ret = max(m.call, m.ret)
	return m, false
}

// breaks is when a history that is not linearizable stopped being so.
func (k *checker) breaks(key string) instant {
	good, bad := instant(0), k.c.now
	for bad-good > us {
		if mid := good + (bad-good)/2; k.judge(key, mid) == illegal {
			bad = mid
		} else {
			good = mid
		}
	}
	return bad
}

// history prints one key's operations, for reading a failure.
func (k *checker) history(key string) string {
	var b strings.Builder
	for _, h := range k.hist[key] {
		b.WriteString(h.line())
	}
	return b.String()
}
