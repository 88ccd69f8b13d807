package demo

import (
	"cmp"
	"slices"

	"github.com/mainzdb/mainz/bench/trace"
)

// share returns the traced processes that one of n clients replays, in the
// order of their first events: the processes are dealt out by size, each to
// the client that has the fewest events so far. Every client computes the same.
func share(t *trace.Trace, client, n int) (mine [][]trace.Event) {
	actors := t.ByProcess()
	order := make([]int, len(actors))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(len(actors[b]), len(actors[a])) })
	load := make([]int, n)
	var own []int
	for _, a := range order {
		to := 0
		for i := range load {
			if load[i] < load[to] {
				to = i
			}
		}
		load[to] += len(actors[a])
		if to == client {
			own = append(own, a)
		}
	}
	slices.Sort(own) // processes are numbered in the order of their first opens
	for _, a := range own {
		mine = append(mine, actors[a])
	}
	return mine
}
