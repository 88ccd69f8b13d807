//go:build shmsim

package ltdb

// Plant names a bug to turn on, so that the explorer can be seen to find it:
//
//	seqlock    a reader skips the second look
//	publish    a commit publishes the block before it is written
//	latch      repair breaks a bucket latch without settling what it covered
//	journal    a commit clears j.old before j.new
//	allocator  repair of a class latch leaves a block both on the list and in a magazine
//	waiter     a sleeper that was woken does not pass the waiters bit on
//	unlocked   an insert publishes its entry without the lock
//	cell       the lock's cell is cleared before the release
//	wakeall    repair wakes nobody
//	pass       a sleeper that was woken and takes no lock does not wake the others
//	unlatchfirst  an insert releases the latch before it clears j.new
//	livefirst  an append makes its piece live before it has locked the record
//	nobusy     an append does not say that it is busy
//	nopass     a freeze does not wait for who is busy
//	noring     a release that hands a record to the dispatcher does not ring
//	attendlate the dispatcher attends a record without looking whether it has changed
//	leftd      a dispatcher that starts leaves the D bits of the one before
//	armlate    a waiting append arms the record without looking whether it has changed
//	spare      repair breaks the spare's latch and leaves the record in the spare
//
// Set before the tasks start.
var Plant string

func planted(bug string) bool { return Plant == bug }
