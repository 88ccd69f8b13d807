package sim

import (
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

func without(s, piece string) string {
	for i := 0; i+pieceLen <= len(s); i += pieceLen {
		if s[i:i+pieceLen] == piece {
			return s[:i] + s[i+pieceLen:]
		}
	}
	return s
}

// linearizable checks S3 for every key; undecided: the search took too long.
func (k *checker) linearizable(limit time.Duration) (undecided int) {
	for _, key := range k.keys {
		switch k.judge(key, k.c.now, limit) {
		case porcupine.Illegal:
			k.fail("S3", "the history of %q (%d operations) is not linearizable from %.3f ms on", key[1:], len(k.hist[key]), float64(k.breaks(key, limit))/1e6)
			if k.c.opt.Trace != nil {
				k.c.opt.Trace(k.history(key))
			}
		case porcupine.Unknown:
			undecided++
		}
	}
	return undecided
}

// judge a key's history as it stood at a moment: what had not ended by then may
// have happened or not.
func (k *checker) judge(key string, at instant, limit time.Duration) porcupine.CheckResult {
	end := at + sec
	seen := k.seen(key)
	var ops []porcupine.Operation
	for i, h := range k.hist[key] {
		if h.call > at || h.void && h.ret <= at {
			continue
		}
		if h.ret > at {
			m := *h
			m.ret, m.no = 0, false
			h = &m
		}
		if h.ret == 0 && (h.kind == "fetch" || !seen(h.arg)) || h.kind == "maybe" && !seen(h.ops[0].arg) {
			continue
		}
		ret := h.ret
		if ret == 0 {
			ret = end
		}
		ops = append(ops, porcupine.Operation{ClientId: i, Input: h, Call: int64(h.call), Output: nil, Return: int64(ret)})
	}
	return porcupine.CheckOperationsTimeout(model(key[0] == dbPieces), ops, limit)
}

// seen tells whether anybody ever met a value of a kv record. An operation that
// may have happened or not, and whose value nobody met, can be left out: if the
// history has an order with it, then what came next overwrote the value unseen,
// and the order holds without it. This keeps the search small. Pieces are met by
// conditions as well, and an empty value is nobody's.
func (k *checker) seen(key string) func(value string) bool {
	if key[0] == dbPieces {
		return func(string) bool { return true }
	}
	var all strings.Builder
	for _, h := range k.hist[key] {
		all.WriteString(h.out)
		all.WriteString(h.expect)
	}
	met := all.String()
	return func(value string) bool { return strings.Contains(met, value) }
}

// breaks is when a history that is not linearizable stopped being so.
func (k *checker) breaks(key string, limit time.Duration) instant {
	good, bad := instant(0), k.c.now
	for bad-good > us {
		if mid := good + (bad-good)/2; k.judge(key, mid, limit) == porcupine.Illegal {
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
