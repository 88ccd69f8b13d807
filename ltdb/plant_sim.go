//go:build shmsim

package ltdb

import "github.com/mainzdb/mainz/shm"

// Plant names a bug to turn on, so that a test can be seen to find it. Each breaks one
// rule of docs/memory.md; the table there says which.
//
//	mismatch      a mismatch counts without a second look
//	seqbase       a span keeps its seq base when it changes its class
//	believed      a length is believed under the record's lock
//	seqlock       a reader skips the second look
//	celllate      a lock's cell is not stored before the CAS
//	nostill       the key is not compared again under the lock
//	oldflags      flags are not read again under the lock
//	waiter        a sleeper that was woken does not pass the waiters bit on
//	noprod        a release that does not give the lock to the line does not tell the line
//	nomark        who has slept and got the lock does not say that others stand in its line
//	trysteps      who only tries leaves a free record to a sleeper
//	pass          a sleeper that was woken and takes no lock does not wake the others
//	cell          the lock's cell is cleared before the release
//	nouse         a call of a DB takes a handle that another call uses
//	endtwice      a Record of the DB ends without a compare-and-swap of its state
//	noseat        a call of a Handle does not claim the seat
//	nolook        a Record of a Handle ends without a second look, under the seat
//	takefirst     a block leaves the magazine before the journal has it
//	dropfirst     the journal forgets an unused block before the magazine has it
//	publish       a commit publishes the block before it is written
//	oldlate       j.old is stored after the CAS
//	putlate       the journal is cleared before the magazine has the old block
//	journal       a commit clears j.old before j.new
//	untold        a commit tells nobody
//	forgetfirst   the cell forgets the entry before the change is told
//	intentlate    the bucket intent is stored after the latch is taken
//	intentfirst   the bucket intent is cleared before the release
//	twice         an insert does not look again under the latch
//	insertcell    an insert stores no cell
//	unlocked      an insert publishes its entry without the lock
//	unlatchfirst  an insert releases the latch before it clears j.new
//	linklate      j.new is cleared before the overflow bucket is linked
//	popfirst      a block leaves the list before the magazine has it
//	pushfirst     a block leaves the magazine before the list has it
//	carvefirst    a block is counted as carved before the magazine has it
//	classintent   a refill stores no class intent
//	nocarve       no carve intent is stored
//	noreclaim     no reclaim intent is stored
//	wordlate      j.new is cleared before the index has the piece
//	pagelate      j.new is cleared before the page is in the chain
//	wordfirst     a word is erased before the journal has its block
//	opidlate      the OPID's counter is not stored
//	nostamp       words of the index carry no stamp
//	stale         an append does not compare the record with what its condition saw
//	livefirst     an append makes its piece live before it has locked the record
//	nobusy        an append does not say that it is busy
//	armlate       a waiting append arms the record without looking whether it has changed
//	nopass        a freeze does not wait for who is busy
//	noring        a release that hands a record to the dispatcher does not ring
//	leftd         a dispatcher that starts leaves the D bits of the one before
//	noindex       the dispatcher publishes a piece without looking for its client's index
//	leaving       the dispatcher publishes a piece for whoever still lives
//	nosecond      the dispatcher leaves a lock to a client without a second look
//	anytenant     the dispatcher takes a slot's next tenant for the client
//	takeany       the dispatcher takes a lock back without knowing that it is the one it gave
//	nottold       the dispatcher waits for D to hand over what has no D any more
//	attendlate    the dispatcher attends a record without looking whether it has changed
//	allocator     repair of a class latch leaves a block both on the list and in a magazine
//	nocur         repair does not make a span that was being taken the one to carve
//	halfmade      repair leaves the spans of a database that was never ready
//	latch         repair breaks a bucket latch without settling what it covered
//	journalsfirst repair decides journals before bucket latches
//	cellsfirst    repair releases records before it decides journals
//	putagain      repair lays a block into a magazine twice
//	nodied        repair does not flag the records that it releases
//	nogoing       repair does not mark a cell before it looks at the entry
//	withd         repair flags a record that the dispatcher may take back
//	wakeall       repair wakes nobody
//	nonews        repair does not tell those who wait for a change
//	repairforget  repair clears the cell before it wakes and tells
//	givefirst     repair releases the class latch before the magazine forgets the block
//	forgetpages   repair clears the slot's index before the orphans have it
//	nolast        repair does not note the last page of the index
//	bothhave      pages are taken from an index that its slot still has
//	spare         repair breaks the spare's latch and leaves the record in the spare
//
// Set before the tasks start.
var Plant string

func planted(bug string) bool { return Plant == bug }

// simShareOver says in the explorer, where time stands still, whether a process has had
// a record for its share when somebody sleeps for it.
var simShareOver bool

// simPatience is patience in the explorer.
var simPatience int

// simulated reports whether the explorer runs.
func simulated() bool { return shm.Sim != nil }

// Places where a test lets another goroutine act: they decide in the memory of the
// process whose turn it is, which the explorer does not see.
const (
	lookAndClaim  = iota // of who ends a Record: it was fresh, and nothing is claimed
	claimAndState        // it has the Handle's seat, and the Record has its state
)

// simBetween is what is to be done there, once; nil: nothing. In the goroutine that
// comes there: it is as if another one had run while that stood still.
var simBetween [claimAndState + 1]func()

func between(at int) {
	if f := simBetween[at]; f != nil {
		simBetween[at] = nil
		f()
	}
}
