package transport

import "fmt"

// Filter is what a datagram must look like to be taken at all. The zero
// Filter takes every one.
type Filter struct {
	MinLen int    // bytes
	Prefix []byte // what it begins with; at most 4 bytes
}

// Check tells whether the filter can be used.
func (f Filter) Check() error {
	if len(f.Prefix) > 4 || f.MinLen < 0 {
		return fmt.Errorf("filter: a prefix of %d bytes (at most 4), a least length of %d", len(f.Prefix), f.MinLen)
	}
	if len(f.Prefix) > 0 && string(f.Prefix) == ProbeMagic[:len(f.Prefix)] {
		return fmt.Errorf("filter: prefix %q is kept for probes", f.Prefix)
	}
	return nil
}

// Passes tells whether p is taken, and if not, why.
func (f *Filter) Passes(p []byte) (Drop, bool) {
	if len(p) < f.MinLen || len(p) < len(f.Prefix) {
		return DropMalformed, false
	}
	for i, b := range f.Prefix {
		if p[i] != b {
			return DropForeign, false
		}
	}
	return 0, true
}
