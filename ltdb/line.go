package ltdb

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// turns are the lines in which this process's goroutines wait for records. Of each line
// only the first waits in the kernel, and only for another process: ten thousand
// that wait need neither ten thousand threads nor as many cells. While the process has
// the record itself nobody of the line is in the kernel: who releases the record gives
// it to the first of the line, and the lock stays the process's. A death ends giver and
// taker together, so nothing is lost between them.
type turns struct {
	mu     sync.Mutex
	lines  map[uint64]*line      // by the hash of the key
	at     map[*shm.Word64]*line // by the entry, of those that may be given the record there
	shares [64]share
	net    *time.Timer // looks after the parked lines, nil before the first
	armed  bool        // it does now
	// called is how many goroutines were told to look or were given a record, and have
	// not run yet. Each release loads it, so it has a cache line that is seldom written.
	_      [64]byte
	called atomic.Int32
	_      [60]byte
}

// line is who waits for one record. All of it is under turns.mu.
//
// A line is parked: it waits for a goroutine of this process. Or its first was called:
// it is to look for itself, and has not run yet. Up to then it may be given the record,
// at the entry where the line was parked. Or its first is up: it looks at the entry,
// and takes the record when it is free. Or its first waits in the kernel, for another
// process; then the line stands nowhere.
type line struct {
	hash        uint64
	first, last *waiter
	entry       *shm.Word64 // nil: the first waits elsewhere
	parked      bool
	up          bool
	overtaken   int  // so many releases of the record at entry have passed the first over
	still       bool // since the net has looked last, nobody was given the record
}

// waiter is one goroutine in a line. What is not marked is under turns.mu.
type waiter struct {
	line    *line
	next    *waiter
	claimed bool // somebody is about to give it the lock
	given   bool
	called  bool          // it is one of turns.called
	told    bool          // there is a word in the bell
	bell    chan struct{} // of 1
	simBell shm.Word32    // in its place under the explorer
	l       *lock         // with which it waits or was given the record, nil for none
	entry   *shm.Word64   // given

	entitled atomic.Bool // a release has left the record to it: it does not step back

	since    time.Time // the waiter's own: it has met a holder first, zero before
	orphaned int       // the waiter's own: looks in a row that found no holder
}

var waiters = sync.Pool{New: func() any { return &waiter{bell: make(chan struct{}, 1)} }}

// lineSlice is the net under a parked line, as a time slice is under a sleep in the kernel:
// when nobody of it was given the record for that long, the first looks for itself. The
// lock word may be damaged, or the dispatcher have taken the record back.
const lineSlice = 20 * time.Millisecond

// join puts the caller at the end of the line.
func (t *turns) join(hash uint64) *waiter {
	w := waiters.Get().(*waiter)
	w.claimed, w.given, w.told, w.l, w.entry, w.next = false, false, false, nil, nil, nil
	w.simBell = shm.Word32{}
	w.since, w.orphaned, w.called = time.Time{}, 0, false
	w.entitled.Store(false)
	t.mu.Lock()
	n := t.lines[hash]
	if n == nil {
		if t.lines == nil {
			t.lines, t.at = map[uint64]*line{}, map[*shm.Word64]*line{}
		}
		n = &line{hash: hash}
		t.lines[hash] = n
	}
	w.line = n
	if n.last == nil {
		n.first = w
	} else {
		n.last.next = w
	}
	n.last = w
	t.mu.Unlock()
	return w
}

// stands gets w up at the entry, if w is the first of a line that stands nowhere.
// Then others do not overtake it without a count before it has looked at all.
func (t *turns) stands(w *waiter, entry *shm.Word64) {
	t.mu.Lock()
	if n := w.line; n.first == w && n.entry == nil && t.at[entry] == nil {
		n.entry, n.up = entry, true
		t.at[entry] = n
		t.counts(w)
	}
	t.mu.Unlock()
}

// counts has releases count while w is called, or up. The caller has t.mu.
func (t *turns) counts(w *waiter) {
	if !w.called {
		w.called = true
		t.called.Add(1)
	}
}

// wait returns when w has been given the record, or is the first of a line that is
// not parked: then it is to wait itself. After an error w has left the line.
func (t *turns) wait(ctx context.Context, s *Store, w *waiter) (given bool, err error) {
	for heard := false; ; {
		until := ctx
		t.mu.Lock()
		if heard {
			w.told = false
		}
		n := w.line
		if n.first != w || n.parked || w.claimed || n.entry == nil {
			t.runs(w)
		}
		switch {
		case w.given:
			t.mu.Unlock()
			return true, nil
		case w.claimed: // it will be told very soon
			until = context.Background()
		case n.first == w && !n.parked && n.entry != nil && !n.up:
			n.parked = true
			t.counts(w)
			entry := n.entry
			t.mu.Unlock()
			if !t.lookFirst(s, w, entry) {
				return false, nil
			}
			heard = w.await(ctx, s)
			continue
		case n.first == w && !n.parked:
			t.mu.Unlock()
			return false, nil
		case s.closed.Load():
			err = errClosed
		default:
			err = ctx.Err()
		}
		if err != nil {
			t.drop(w)
			t.mu.Unlock()
			return false, err
		}
		t.mu.Unlock()
		heard = w.await(until, s)
	}
}

// lookFirst looks at the entry for w, which was called, but may be given the record
// meanwhile. It returns false if this process has not got the record: then w is up. Who
// has called it may have the record again and again, and is between two turns
// often; it gives w the record very soon. If w were up then, and lost its processor to
// another process, others would overtake it for as long.
func (t *turns) lookFirst(s *Store, w *waiter, entry *shm.Word64) bool {
	for looks := 0; ; looks++ {
		if s.mark(entry, bitS) != 0 {
			t.mu.Lock()
			if n := w.line; !w.given && n.first == w && n.parked {
				t.runs(w)
				n.overtaken = patience // it does not run twice for nothing
			}
			t.mu.Unlock()
			return true
		}
		if looks == firstLooks || shm.SimEnabled && simulated() {
			return !t.unparked(w)
		}
		shm.Pause(firstPause)
	}
}

// Some 2 µs.
const (
	firstLooks = 16
	firstPause = 8
)

// await sleeps until somebody tells w to look, or ctx ends. heard: somebody has told.
func (w *waiter) await(ctx context.Context, s *Store) (heard bool) {
	if shm.SimEnabled && simulated() {
		cancel, stop := s.canceller(ctx)
		shm.WaitAny(lineSlice, shm.Watch{W: &w.simBell, Val: 0}, shm.Watch{W: cancel})
		stop()
		w.simBell = shm.Word32{}
		return false
	}
	done := ctx.Done()
	if done == nil {
		<-w.bell
		return true
	}
	select {
	case <-w.bell:
		return true
	case <-done:
		return false
	}
}

// tell wakes w. The caller has t.mu.
func (w *waiter) tell() {
	if shm.SimEnabled && simulated() {
		w.simBell.Raise()
		return
	}
	if !w.told {
		w.told = true
		w.bell <- struct{}{}
	}
}

// done gives w back for others to use.
func (t *turns) done(w *waiter) {
	if shm.SimEnabled && simulated() {
		return // it may have died in its line
	}
	if w.told {
		<-w.bell
	}
	w.line, w.l = nil, nil
	waiters.Put(w)
}

// call has w run. The caller has t.mu.
func (t *turns) call(w *waiter) {
	t.counts(w)
	w.tell()
}

// runs notes that w does. The caller has t.mu.
func (t *turns) runs(w *waiter) {
	if w.called {
		w.called = false
		t.called.Add(-1)
	}
}

// unpark has the first of the line look for itself. The caller has t.mu.
func (t *turns) unpark(n *line) {
	n.parked = false
	if n.first != nil {
		t.call(n.first)
	}
}

// depart takes the line away from the entry: its first waits elsewhere. The caller has
// t.mu.
func (t *turns) depart(n *line) {
	n.up = false
	if n.entry != nil {
		delete(t.at, n.entry)
		n.entry = nil
		n.overtaken = patience
	}
}

// departs is depart for w, which is up, and is about to wait in the kernel. Others
// overtake it there without a count: who sleeps has W set, and is woken.
func (t *turns) departs(w *waiter) {
	t.mu.Lock()
	t.runs(w)
	t.depart(w.line)
	t.mu.Unlock()
}

// courtesy lets those run that were called, on a busy machine or one with a single
// processor. It is called now and then by who may have record after record without
// meeting anybody.
func (t *turns) courtesy() {
	if t.called.Load() != 0 {
		runtime.Gosched()
	}
}

// patience is how often others of its process may overtake the first of a line. A
// change of goroutines takes some times longer than a turn, so a change for each turn is
// slow. Who overtakes waits for nearly nothing, which makes the longest wait patience + 1
// times the mean.
const patience = 4

// drop takes w out of its line, and has the next one look if it was the first and on
// its feet. The caller has t.mu.
func (t *turns) drop(w *waiter) {
	n := w.line
	var before *waiter
	for p := n.first; p != w; p = p.next {
		if p == nil {
			return
		}
		before = p
	}
	if before == nil {
		n.first = w.next
	} else {
		before.next = w.next
	}
	if n.last == w {
		n.last = before
	}
	if before == nil {
		n.overtaken, n.up = 0, false
	}
	switch {
	case n.first == nil:
		if n.entry != nil {
			delete(t.at, n.entry)
		}
		delete(t.lines, n.hash)
	case before == nil && !n.parked:
		t.call(n.first)
	}
}

// leave takes w out of its line: it waits no longer.
func (t *turns) leave(w *waiter) {
	t.mu.Lock()
	t.runs(w)
	t.drop(w)
	t.mu.Unlock()
}

// park parks the line whose first is w at an entry that this process has locked.
func (t *turns) park(w *waiter, entry *shm.Word64) {
	t.mu.Lock()
	t.parkAt(w.line, entry)
	t.mu.Unlock()
}

// parkAt parks a line. The caller has t.mu.
func (t *turns) parkAt(n *line, entry *shm.Word64) {
	if other := t.at[entry]; other != nil && other != n {
		other.entry = nil
		t.unpark(other) // it waited for a record that was there before
	}
	if n.entry != nil && n.entry != entry {
		delete(t.at, n.entry)
	}
	n.entry, n.parked, n.up, n.still = entry, true, false, false
	t.at[entry] = n
	if t.armed || shm.SimEnabled && simulated() {
		return
	}
	t.armed = true
	if t.net == nil {
		t.net = time.AfterFunc(lineSlice, t.lookAfter)
	} else {
		t.net.Reset(lineSlice)
	}
}

// lookAfter is the net.
func (t *turns) lookAfter() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.at {
		if n.still && n.parked && !n.first.claimed {
			// Up, and not where it could be given the record: only its own look tells
			// whether anybody has it, or whether a damaged word says so.
			t.unpark(n)
			t.depart(n)
		}
		n.still = true
	}
	if t.armed = len(t.at) > 0; t.armed {
		t.net.Reset(lineSlice)
	}
}

// unparked gets w up, and reports whether it could: somebody may be about to give
// w the record. While w is up releases count, and leave the record to it in the end: w
// may lose its processor to another program, and others would overtake it for as long.
func (t *turns) unparked(w *waiter) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.claimed || w.given || w.line.first != w {
		return false
	}
	t.counts(w)
	w.line.parked, w.line.up = false, true
	return true
}

// take notes that w has locked the entry. It reports whether others of the line wait:
// then the line is parked there.
func (t *turns) take(w *waiter, entry *shm.Word64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := w.line
	t.runs(w)
	if w.next != nil {
		t.parkAt(n, entry)
	}
	t.drop(w)
	return n.first != nil
}

// claim chooses who is given the record at the entry, nil if nobody waits, or the
// first is patient and may be overtaken once more. more: others wait behind. leave: the
// first is up, and the record is to be left to it.
func (t *turns) claim(entry *shm.Word64, patient bool) (w *waiter, more, leave bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.at[entry]
	if n == nil || n.first.claimed {
		return nil, false, false
	}
	most := patience
	if shm.SimEnabled && simulated() {
		most = simPatience
	}
	if patient && n.overtaken < most {
		n.overtaken++
		return nil, false, false
	}
	if n.up {
		n.first.entitled.Store(true)
		return nil, false, true
	}
	n.first.claimed = true
	return n.first, n.first.next != nil, false
}

// unclaim takes a claim back. w looks for itself.
func (t *turns) unclaim(w *waiter) {
	t.mu.Lock()
	w.claimed = false
	t.unpark(w.line)
	t.mu.Unlock()
}

// give hands the record to w, who is claimed. It reports whether others wait.
func (t *turns) give(w *waiter, entry *shm.Word64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := w.line
	w.given, w.entry = true, entry
	n.parked, n.still = true, false
	t.drop(w)
	t.call(w)
	return n.first != nil
}

// prod has the line look that is parked at the entry, whose lock this process gives up.
// gone: the record stands there no more.
func (t *turns) prod(entry *shm.Word64, gone bool) {
	t.mu.Lock()
	if n := t.at[entry]; n != nil {
		if gone && !n.first.claimed {
			delete(t.at, entry)
			n.entry = nil
		}
		if !n.up {
			t.unpark(n)
		}
	}
	t.mu.Unlock()
}

// prodAll has everybody look: the store is being closed.
func (t *turns) prodAll() {
	t.mu.Lock()
	for _, n := range t.lines {
		for w := n.first; w != nil; w = w.next {
			w.tell()
		}
	}
	t.mu.Unlock()
}

// share is for how long this process has had a record that others sleep for.
type share struct {
	entry *shm.Word64
	since time.Time
}

// longestShare is for how long a process has a record that others sleep for, before it
// leaves it to them. A change of processes costs a wake-up of some 30 to 50 µs.
const longestShare = 300 * time.Microsecond

// over reports whether this process has had the record at the entry for its share. It
// is asked at releases for which somebody sleeps; the share begins with the first.
func (t *turns) over(entry *shm.Word64, slot uint64) bool {
	if shm.SimEnabled && simulated() {
		return simShareOver
	}
	sh := &t.shares[slot/8%uint64(len(t.shares))]
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if sh.entry != entry {
		sh.entry, sh.since = entry, now
		return false
	}
	if now.Sub(sh.since) < longestShare {
		return false
	}
	sh.entry = nil
	return true
}
