//go:build amd64 && !race

package ltdb

// Store publishes x behind all earlier stores, as shm's words do on amd64. It is no
// full barrier, which would take as long as the rest of the borrowing.
func (w *useWord) Store(x uint32) { w.v = x }

// Store publishes x behind all earlier stores.
func (w *stateWord) Store(x uint64) { w.v = x }
