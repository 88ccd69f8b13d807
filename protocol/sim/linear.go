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
	end := k.c.now + sec
	for _, key := range k.keys {
		var ops []porcupine.Operation
		for i, h := range k.hist[key] {
			if h.void || h.kind == "fetch" && h.ret == 0 {
				continue
			}
			ret := h.ret
			if ret == 0 {
				ret = end
			}
			ops = append(ops, porcupine.Operation{ClientId: i, Input: h, Call: int64(h.call), Output: nil, Return: int64(ret)})
		}
		switch porcupine.CheckOperationsTimeout(model(key[0] == dbPieces), ops, limit) {
		case porcupine.Illegal:
			k.fail("S3", "the history of %q (%d operations) is not linearizable", key[1:], len(ops))
			if k.c.opt.Trace != nil {
				k.c.opt.Trace(k.history(key))
			}
		case porcupine.Unknown:
			undecided++
		}
	}
	return undecided
}

// history prints one key's operations, for reading a failure.
func (k *checker) history(key string) string {
	var b strings.Builder
	for _, h := range k.hist[key] {
		b.WriteString(h.line())
	}
	return b.String()
}
