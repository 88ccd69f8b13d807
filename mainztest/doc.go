// Package mainztest gives a test a node of its own: a dispatcher in the test's
// process, with a segment that goes with the test.
//
//	func TestMine(t *testing.T) {
//		node := mainztest.Start(t)
//		c := node.Attach()
//		db, err := c.Open(ctx, "locking", mainz.KV)
//		…
//	}
//
// On systems without shared memory the test is skipped.
//
// Start, Attach and Restart belong to the test's goroutine.
package mainztest
