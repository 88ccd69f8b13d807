package mainz

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

type linearOp struct {
	kind  string // put, delete, append, cut, fetch, swap
	key   int
	value string
}

type linearResult struct {
	value string
	ok    bool
}

// linearModel is a record, for each key.
var linearModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		keys := map[int][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(linearOp).key
			keys[k] = append(keys[k], op)
		}
		var all [][]porcupine.Operation
		for _, ops := range keys {
			all = append(all, ops)
		}
		return all
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(string), input.(linearOp), output.(linearResult)
		switch in.kind {
		case "put":
			return true, in.value
		case "delete":
			return out.ok == (s != ""), ""
		case "append":
			if !out.ok { // IfAbsent
				return s != "", s
			}
			return s == "", in.value
		case "fetch":
			return out.value == s, s
		}
		return out.value == s, in.value // swap
	},
	Equal: func(a, b any) bool { return a == b },
}

// Bypass and ring are two ways to the same records: what clients of both see
// could have come one after the other.
func TestLinearizable(t *testing.T) {
	_, seed := seeded(t)
	n := startNode(t)
	ctx := minute(t)
	var dbs []*DB
	for w := range 6 {
		var opts []Option
		if w%2 == 0 {
			opts = append(opts, ThroughRing())
		}
		dbs = append(dbs, n.attach(opts...).open(t, "db", KV))
	}
	checkLinear(ctx, t, dbs, seed, 0, 3, 250)
}

// checkLinear lets one goroutine for each of dbs do so many steps on the keys from
// first on, and looks whether what they see could have come one after the other.
func checkLinear(ctx context.Context, t *testing.T, dbs []*DB, seed uint64, first, keys, steps int) {
	var mu sync.Mutex
	var history []porcupine.Operation
	start := time.Now()
	var wg sync.WaitGroup
	for w, db := range dbs {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)+2))
			for i := range steps {
				op := linearOp{kind: []string{"put", "delete", "append", "fetch", "fetch", "swap"}[rnd.IntN(6)],
					key: first + rnd.IntN(keys), value: fmt.Sprintf("%d.%d", w, i)}
				called := time.Since(start)
				res, err := step(ctx, db, op)
				returned := time.Since(start)
				if err != nil {
					t.Errorf("%+v: %v", op, err)
					return
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: w, Input: op, Call: int64(called),
					Output: res, Return: int64(returned)})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if !t.Failed() && !porcupine.CheckOperations(linearModel, history) {
		t.Errorf("%d operations on the keys from %d on have no order", len(history), first)
		for _, op := range history {
			t.Logf("%d  %8d %8d  %+v  %+v", op.ClientId, op.Call/1000, op.Return/1000, op.Input, op.Output)
		}
	}
}

func step(ctx context.Context, db *DB, op linearOp) (res linearResult, err error) {
	key, value := fmt.Append(nil, "key", op.key), []byte(op.value)
	switch op.kind {
	case "put":
		return res, db.Store(ctx, key, value)
	case "delete":
		err = db.Delete(ctx, key)
		res.ok = err == nil
	case "append":
		_, err = db.ConditionalAppend(ctx, IfAbsent, key, value)
		res.ok = err == nil
	case "fetch":
		var b []byte
		b, err = db.Fetch(ctx, key)
		res.value = string(b)
	case "swap":
		r, err := db.FetchLocked(ctx, key)
		if err != nil {
			return res, err
		}
		res.value = string(r.Data())
		return res, r.StoreUnlock(value)
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCondition) {
		err = nil
	}
	return res, err
}

// The model is code too: a history with a lost update has no order.
func TestLinearModelSees(t *testing.T) {
	op := func(at int64, in linearOp, out linearResult) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: at, Return: at + 1}
	}
	if porcupine.CheckOperations(linearModel, []porcupine.Operation{
		op(0, linearOp{kind: "put", value: "a"}, linearResult{}),
		op(2, linearOp{kind: "swap", value: "b"}, linearResult{value: "a"}),
		op(4, linearOp{kind: "fetch"}, linearResult{value: "a"}),
	}) {
		t.Error("a lost update is not seen")
	}
}
