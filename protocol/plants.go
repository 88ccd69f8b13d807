package protocol

// plant is one rule left out on purpose, so that the simulator can show that its
// checkers see it. Production never sets one.
type plant uint8

const (
	plantNone plant = iota
	plantNoFence
	plantAckFrozen
	plantSameVNN
	plantNoCopyClaims
	plantNoEpochCheck
	plantKeepRSN
	plantAckRefused
	plantCopyWithoutWant
	plantNoDoneList
	plantServeNoLease
	plantHandleNoLease
	plantResupplyRemoving
	plantKeepProvisional
	plantParkBehindAny
	plantForgetGrants
	plantFreshCounts
	plantGrantAfterPromise
	plantNoPass
	plantDeleteGivesBack
	plantOldBallot
	plantKeepDeadPieces
	plantAliveByPNN
	plantNoStickiness
	plantNoClique
	plantMoveLocked
	plantJournalLate
	plantStaleKeeps
	plantStoreWithoutLock
	plantOldRecovered
	plantOldIncarnation
	plantWaiterMoves
	plantNoMargin
	plantColdCounter
	plantColdNoLock
	plantLeaderFile
	plantOldLook
	plantAbandonFirst
	plantPromiseTwice
	plantCarryAll
	plantNoEvent
	plantDrainFull
	plantNoTable
	plantTwoRegistrars
	plantLockForever
	plantLockForgets
	plantAnyFile
	plantForgetMoves
	plantTimeoutBehind
	plantColdStartClock
	plantColdOwnClock
	plantFaultOpens
	plantUnnamedPiece
	plantNoHoldOff
	plantMoveContended
	plantDeadKeepsLock
	plantUnlockWaits
	plantAbandonedTwice
	plantNoLockDefault
	plantWaitForEver
	plantSkipRecord
	plantClaimAnew
	plantOldCursor
	plantClaimsEarly
	plantAnyProgress
	plantLockShort
	plantLockTwice
	plantUnlockAny
	plantForgetLocks
	plantLockOldReqid
	plantKeepGivenUp
	plantUnlockLate
	plantLockForeverHeld
	plantHeldForNobody
	plantRestartLocked
	plantNoWake
	plantNoAttend
	plantNoWakeExpiry
	plantFirstWaiter
	plantLongBackoff
	plantTimeoutEarly
	plantTimeoutLate
	plantNewWaits
	plantBatchCut
	plantBatchEarly
	plantDoneCut
	plantParkedCut
	plantMovedCut
	plantTriesCut
	plantKeepToken
	plantKeepRoom
	plantKeepBytes
	plantKeepIdle
	plantKeepPlace
	plantKeepAsk
	plantKeepOwnDone
	plantKeepParked
	plantDeadFirst
	plantDeadAppend
	plantDeadGiveUp
	plantDeadErase
	plantDeadLater
	plantCount
)

// Plant is a planted bug: its name and the rule it leaves out.
type Plant struct {
	Name string `json:"name"`
	Rule string `json:"rule"`
}

// Plants lists the bugs that Config.Plant turns on.
var Plants = [plantCount]Plant{
	plantNoFence:           {"no-fence", "the leader waits for the leases of nodes that have not promised"},
	plantAckFrozen:         {"ack-frozen", "a frozen node acknowledges nothing it has not handled"},
	plantSameVNN:           {"same-vnn", "a recovery gives out new VNNs"},
	plantNoCopyClaims:      {"no-copy-claims", "carried copies are claimed"},
	plantNoEpochCheck:      {"no-epoch-check", "DATA of another epoch is not handled"},
	plantKeepRSN:           {"keep-rsn", "the RSN is raised when a record is taken over"},
	plantAckRefused:        {"ack-refused", "a refusal frees nothing"},
	plantCopyWithoutWant:   {"copy-without-want", "a carried copy counts only if its REQID is outstanding at a receiver that takes part"},
	plantNoDoneList:        {"no-done-list", "an operation in the done list is not run again"},
	plantServeNoLease:      {"serve-no-lease", "a dispatcher without a lease does not serve"},
	plantHandleNoLease:     {"handle-no-lease", "a node without a lease handles no DATA"},
	plantResupplyRemoving:  {"resupply-removing", "a piece under removal is not re-supplied"},
	plantKeepProvisional:   {"keep-provisional", "provisional records of an epoch that never opened are dropped"},
	plantParkBehindAny:     {"park-behind-any", "a request is parked behind an own one only if its via says so"},
	plantForgetGrants:      {"forget-grants", "a node that starts counts as having granted everybody a lease"},
	plantFreshCounts:       {"fresh-counts", "a node without memory does not count for the quorum"},
	plantGrantAfterPromise: {"grant-after-promise", "no lease is granted after a higher promise"},
	plantNoPass:            {"no-pass", "no PROMISE before the pass over the handles"},
	plantDeleteGivesBack:   {"delete-gives-back", "an empty record stays while its done list is not empty"},
	plantOldBallot:         {"old-ballot", "a ballot is above all that were seen"},
	plantKeepDeadPieces:    {"keep-dead-pieces", "pieces of dead nodes are swept"},
	plantAliveByPNN:        {"alive-by-pnn", "pieces belong to a life, not to a node"},
	plantNoStickiness:      {"no-stickiness", "an open node refuses a leader from outside its epoch"},
	plantNoClique:          {"no-clique", "all members of a map hear each other"},
	plantMoveLocked:        {"move-locked", "a locked record does not move"},
	plantJournalLate:       {"journal-late", "the dispatcher makes a piece live before it acknowledges the reply"},
	plantStaleKeeps:        {"stale-keeps", "a node that missed the newest map joins empty"},
	plantStoreWithoutLock:  {"store-without-lock", "a STORE_UNLOCK needs the lock it names"},
	plantOldRecovered:      {"old-recovered", "RECOVERED of an older ballot opens nothing"},
	plantOldIncarnation:    {"old-incarnation", "a restarted node does not go on with its old recovery"},
	plantWaiterMoves:       {"waiter-moves", "a request that would have to wait moves nothing"},
	plantNoMargin:          {"no-margin", "the fence has a margin for the drift of clocks"},
	plantPromiseTwice:      {"promise-twice", "room is promised to one record at a time"},
	plantCarryAll:          {"carry-all", "an LMASTER lets a record through only if it has room for the copy"},
	plantNoEvent:           {"no-event", "clients are told of every epoch before they are answered in it"},
	plantDrainFull:         {"drain-full", "a node leaves only when it has no record, copy or pending operation"},
	plantNoTable:           {"no-table", "a recovery tells the coordinator of all databases"},
	plantTwoRegistrars:     {"two-registrars", "one node fixes what a database is"},
	plantLockForever:       {"lock-forever", "a lease by the arbiter's lock ends before the lock"},
	plantLockForgets:       {"lock-forgets", "who gets the arbiter's lock learns the last epoch that was opened by it"},
	plantAnyFile:           {"any-file", "promises under another nodes file do not count"},
	plantForgetMoves:       {"forget-moves", "a traverse is told of the records that move meanwhile"},
	plantTimeoutBehind:     {"timeout-behind", "a request that waits for a record to come is not given up"},
	plantAbandonFirst:      {"abandon-first", "an abandoned operation is looked for in the done list before it is dropped"},
	plantColdCounter:       {"cold-counter", "a cold start takes its ballot from the clock"},
	plantUnnamedPiece:      {"unnamed-piece", "a piece has the name that its client gave it"},
	plantAbandonedTwice:    {"abandoned-twice", "an abandoned operation that is asked again keeps its OPID"},
	plantUnlockWaits:       {"unlock-waits", "a lock is given back though the table is full of those that wait for it"},
	plantDeadKeepsLock:     {"dead-keeps-lock", "a dead client's locks at other nodes are let go"},
	plantNoLockDefault:     {"no-lock-default", "a lock without LCKTIMEOUT has the default one"},
	plantMoveContended:     {"move-contended", "a record stays while others wait for its lock"},
	plantNoHoldOff:         {"no-hold-off", "a node that stalls again and again is left out, longer each time"},
	plantWaitForEver:       {"wait-for-ever", "a member that is heard and acknowledges no DATA is left out"},
	plantFaultOpens:        {"fault-opens", "a recovery that meets a broken promise between nodes does not open"},
	plantColdStartClock:    {"cold-start-clock", "each cold start draws its ballot from the clock as it is then"},
	plantColdOwnClock:      {"cold-own-clock", "a cold start's ballot is above the clocks of all who promise"},
	plantColdNoLock:        {"cold-no-lock", "a cold start takes the arbiter's lock, and stores its epoch"},
	plantOldLook:           {"old-look", "what a request does is decided from the record as it is under its lock"},
	plantSkipRecord:        {"skip-record", "a walk goes on at the record that it has not met"},
	plantClaimAnew:         {"claim-anew", "nothing is claimed twice under one ballot"},
	plantOldCursor:         {"old-cursor", "a new ballot's claims begin with the first record"},
	plantClaimsEarly:       {"claims-early", "CLAIMS_DONE waits for what is not claimed yet"},
	plantAnyProgress:       {"any-progress", "a recovery whose member gets nothing done starts over"},
	plantLeaderFile:        {"leader-file", "a leader goes by the old nodes files of its promisers as well as by its own"},
	plantLockShort:         {"lock-short", "a lock lasts for LCKTIMEOUT"},
	plantLockTwice:         {"lock-twice", "a locked record is locked for nobody else"},
	plantUnlockAny:         {"unlock-any", "an UNLOCK ends the lock that it names, and no other"},
	plantForgetLocks:       {"forget-locks", "locks for other nodes outlive a recovery"},
	plantLockOldReqid:      {"lock-old-reqid", "a lock that is asked for again is known by the new REQID"},
	plantKeepGivenUp:       {"keep-given-up", "a lock that comes when nobody waits for it any more is given back"},
	plantUnlockLate:        {"unlock-late", "what takes an abandoned operation back begins at once"},
	plantLockForeverHeld:   {"lock-no-timeout", "LCKTIMEOUT ends a lock"},
	plantHeldForNobody:     {"held-for-nobody", "a record that was handed to the dispatcher is let go of"},
	plantRestartLocked:     {"restart-no-timer", "a restart sets the timers of the locks that it finds"},
	plantNoWake:            {"no-wake", "who waits is tried again when the record is released"},
	plantNoAttend:          {"no-attend", "commits to a record that is waited for are told"},
	plantNoWakeExpiry:      {"no-wake-expiry", "who waits is tried again when LCKTIMEOUT has ended a lock"},
	plantFirstWaiter:       {"first-waiter", "all who wait are tried, not only until one has ended"},
	plantLongBackoff:       {"long-backoff", "a backoff is short"},
	plantTimeoutEarly:      {"timeout-early", "REQTIMEOUT is what is left of it"},
	plantTimeoutLate:       {"timeout-late", "who waits is told TIMEOUT when it is due"},
	plantNewWaits:          {"new-waits", "what waits for the gate goes on when it opens"},
	plantBatchCut:          {"batch-cut", "all rows go out, also when a batch is full"},
	plantBatchEarly:        {"batch-early", "CLAIMS_DONE waits for all batches"},
	plantDoneCut:           {"done-cut", "a done list that is full forgets nothing"},
	plantParkedCut:         {"parked-cut", "what may have run already is not refused for want of room"},
	plantMovedCut:          {"moved-cut", "a traverse that has no room to note what moves ends"},
	plantTriesCut:          {"tries-cut", "requests for which there was no time are tried by the next Tick"},
	plantKeepToken:         {"keep-token", "a copy that is freed takes its token with it"},
	plantKeepRoom:          {"keep-room", "room is free again when its request has its answer"},
	plantKeepBytes:         {"keep-bytes", "the bytes of a freed copy are free"},
	plantKeepIdle:          {"keep-idle", "a key of which nothing is known has no entry"},
	plantKeepPlace:         {"keep-place", "a record that is given back has no place any more"},
	plantKeepAsk:           {"keep-ask", "a question about a database ends with its answer"},
	plantKeepOwnDone:       {"keep-own-done", "a node's own done entries end by its own floor"},
	plantKeepParked:        {"keep-parked", "a request that ends is counted off"},
	plantDeadFirst:         {"dead-first", "all pieces of a dead client are removed"},
	plantDeadAppend:        {"dead-append", "a piece that comes when nobody waits for it any more is removed"},
	plantDeadGiveUp:        {"dead-give-up", "the dispatcher goes on removing until the piece is gone"},
	plantDeadErase:         {"dead-erase", "a piece leaves the journal when it has left its record"},
	plantDeadLater:         {"dead-later", "the pieces of the dead go at once"},
}

func plantByName(name string) plant {
	if name == "" {
		return plantNone
	}
	for i := range Plants {
		if Plants[i].Name == name {
			return plant(i)
		}
	}
	panic("protocol: no planted bug is called " + name)
}
