package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// TestSearch compares the search, and the bounds it is given, with porcupine on
// the operations as they are: random histories, some of them spoilt.
func TestSearch(t *testing.T) {
	seed := rand.Uint64()
	if v := os.Getenv("MAINZ_SEED"); v != "" {
		seed, _ = strconv.ParseUint(v, 10, 64)
	}
	t.Logf("seed %d, MAINZ_SEED sets it", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	answers := map[porcupine.CheckResult]int{}
	for range 3000 {
		pieces := rng.IntN(2) == 0
		hist := randomHistory(rng, pieces)
		key := string([]byte{dbKV}) + "k"
		if pieces {
			key = string([]byte{dbPieces}) + "p"
		}
		k := &checker{hist: map[string][]*histOp{key: hist}}
		end := instant(1000)
		var raw []porcupine.Operation
		for i, h := range hist {
			if h.kind == "fetch" && h.ret == 0 {
				continue
			}
			ret := h.ret
			if ret == 0 {
				ret = end + sec
			}
			raw = append(raw, porcupine.Operation{ClientId: i, Input: h, Call: int64(h.call), Return: int64(ret)})
		}
		want := porcupine.CheckOperationsTimeout(model(pieces), raw, time.Minute)
		got := newSearch(pieces, k.moments(key, end), 1_000_000).run()
		answers[want]++
		if (want == porcupine.Ok) != (got == legal) {
			for _, m := range k.moments(key, end) {
				t.Logf("%d to %d, %s %q must %v", m.call, m.ret, m.h.kind, m.h.arg+m.h.out, m.must)
			}
			for _, h := range hist {
				h.call, h.ret = h.call*1e6, h.ret*1e6
			}
			t.Fatalf("porcupine says %v, the search %d:\n%s", want, got, k.history(key))
		}
	}
	if answers[porcupine.Ok] < 100 || answers[porcupine.Illegal] < 100 {
		t.Errorf("of both kinds there should be many: %v", answers)
	}
}

// randomHistory runs a dozen operations on one record in some order, and gives
// each a call before its turn and an end after it.
func randomHistory(rng *rand.Rand, pieces bool) (hist []*histOp) {
	state, values := "", []string(nil)
	for i := range 4 + rng.IntN(9) {
		at := instant(20 + 20*i)
		h := &histOp{call: at - instant(rng.IntN(40)), ret: at + instant(1+rng.IntN(40))}
		value := fmt.Sprintf("v%06d.", i)
		if pieces {
			value = fmt.Sprintf("%c%07d", "SSX"[rng.IntN(3)], i)
		}
		switch r := rng.IntN(10); {
		case r < 4:
			h.kind, h.out = "fetch", state
		case r < 5:
			h.kind, h.out = "reset", ""
			if state = ""; pieces && len(values) > 0 && rng.IntN(2) == 0 {
				h.out = values[rng.IntN(len(values))]
				state = h.out
			}
		case pieces && r < 7 && len(values) > 0:
			h.kind, h.arg = "remove", values[rng.IntN(len(values))]
			state = without(state, h.arg)
		case pieces:
			h.kind, h.arg = "append", value
			if h.no = !compatible(state, value); !h.no {
				state += value
				values = append(values, value)
			}
		case r < 7:
			h.kind, h.arg = "append", value
			state += value
		case r < 8:
			h.kind, h.arg, h.expect = "cas", value, state
			state = value
		default:
			if h.kind, h.arg = "put", value; rng.IntN(3) == 0 {
				h.arg = ""
			}
			state = h.arg
		}
		if h.kind != "fetch" && h.kind != "reset" && !h.no && rng.IntN(4) == 0 {
			h.ret = 0
		}
		hist = append(hist, h)
	}
	if rng.IntN(2) == 0 { // spoil it
		if h := hist[rng.IntN(len(hist))]; h.kind == "fetch" {
			h.out = hist[rng.IntN(len(hist))].out
		} else if h.ret != 0 {
			h.call, h.ret = h.call+50, h.ret+50
		}
	}
	return hist
}
