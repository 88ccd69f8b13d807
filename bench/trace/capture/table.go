package main

import (
	"maps"
	"slices"
)

// description is an open file description: what open makes, and what any number
// of descriptors, in any number of tables, refer to.
type description struct {
	refs int
	open uint32 // its number in the trace
	path string
}

type slot struct {
	desc        *description
	closeOnExec bool
}

// table is a table of descriptors as the kernel has them, of the followed
// descriptions alone: a number that is not in it may well be in use.
type table struct {
	refs  int // threads that use it
	slots map[int]slot
}

func newTable() *table { return &table{refs: 1, slots: map[int]slot{}} }

// clone returns a copy of t with one reference.
func (t *table) clone() *table {
	c := newTable()
	for n, s := range t.slots {
		s.desc.refs++
		c.slots[n] = s
	}
	return c
}

// numbers returns the numbers in t, in order, so that a log always gives the
// same trace.
func (t *table) numbers() []int { return slices.Sorted(maps.Keys(t.slots)) }
