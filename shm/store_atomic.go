//go:build !amd64 || race

package shm

import "sync/atomic"

// Store publishes x: no earlier load or store of this thread is seen after it.
func (w *Word32) Store(x uint32) {
	access(OpStore, w)
	atomic.StoreUint32(&w.v, x)
}

// Store publishes x: no earlier load or store of this thread is seen after it.
func (w *Word64) Store(x uint64) {
	access(OpStore, w)
	atomic.StoreUint64(&w.v, x)
}

// Inc adds 1. Only the owner of the counter calls it.
func (c *Counter) Inc() { atomic.StoreUint64(&c.v, atomic.LoadUint64(&c.v)+1) }

// Next adds 1 and returns the new count. Only the owner of the counter calls it.
func (c *Counter) Next() uint64 {
	n := atomic.LoadUint64(&c.v) + 1
	atomic.StoreUint64(&c.v, n)
	return n
}

// Add adds n. Only the owner of the counter calls it.
func (c *Counter) Add(n uint64) { atomic.StoreUint64(&c.v, atomic.LoadUint64(&c.v)+n) }

// Load returns the count.
func (c *Counter) Load() uint64 { return atomic.LoadUint64(&c.v) }
