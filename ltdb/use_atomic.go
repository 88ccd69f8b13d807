//go:build !amd64 || race

package ltdb

import "sync/atomic"

// Store publishes x behind all earlier stores.
func (w *useWord) Store(x uint32) { atomic.StoreUint32(&w.v, x) }

// Store publishes x behind all earlier stores.
func (w *stateWord) Store(x uint64) { atomic.StoreUint64(&w.v, x) }
