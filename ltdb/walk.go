package ltdb

// walk follows a chain of refs that stands in shared memory, and notices if the
// chain comes back to itself: then it has no end. It takes no memory, and at most
// three times as many steps as the chain has links (Brent's algorithm): a bound on
// how many links there can be would let one page that names itself cost a second.
// The zero walk is ready.
type walk struct {
	mark uint32 // a ref that was passed; the chain must not come to it again
	n    uint32 // refs passed
}

// again notes that the walk goes on to ref, and reports whether the chain has
// led there before.
//
// Preconditions: ref is not 0, which ends every chain.
func (w *walk) again(ref uint32) bool {
	if ref == w.mark {
		return true
	}
	if w.n&(w.n+1) == 0 { // after 0, 1, 3, 7, … refs
		w.mark = ref
	}
	w.n++
	return false
}
