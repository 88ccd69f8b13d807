package shm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Client is one slot's tenant: a process that may take locks in the segment.
// If the process dies, the kernel marks the slot and others repair it. A
// Client is safe for many goroutines.
type Client struct {
	seg  *Segment
	slot uint32
	name string
	opts JoinOptions
	me   *Slot
	g    *guardian // nil in the heap

	leaving atomic.Bool // Leave has begun; its own repair may still have to wait for latches
	left    atomic.Bool // nothing works any more
	slices  sliceCounters

	generation uint64        // as it has to stand in the slot
	locked     bool          // it has the slot's lock in the file; the guardian's, once joined
	strange    uint32        // what the guardian has last seen in the liveness word in its stead
	nextLost   atomic.Uint32 // the slot that FindLost looks at next
	lookedAt   atomic.Int64  // when recoverSome did it last, since started

	mu      sync.Mutex // never held across a shared access, but for tend
	idle    *sync.Cond // of busy becoming empty
	busy    []uint32   // slots that goroutines of this process are recovering for this client
	stalled map[uint32]stall
}

// JoinOptions describes a client.
type JoinOptions struct {
	Name string // shown to others
	// Dispatcher takes the dispatcher's slot instead of a client's. ErrInUse
	// while another dispatcher has it. The caller holds the owner lock.
	Dispatcher bool
	// Repair finishes or undoes what the handles of a dead slot had begun and
	// releases all it held (steps a to f of docs/memory.md, "When a client
	// dies"). The slot's process runs no more, and no other client repairs it
	// at the same time; but a repairer that died may have done any part
	// before. Leave calls it on the client's own slot.
	Repair func(c *Client, slot uint32) error
	// Shared reports whether another living client holds or waits for what w
	// locks; nil: not known. It tells a wake-up that went to somebody else
	// from one that was lost, for the count of the lost ones.
	Shared func(c *Client, w *Word32) bool
	// Peer returns the process that has dialled as the tenant of a slot, as the
	// kernel names it for the socket: a pidfd, which the client closes, and its
	// PID in this process's namespace, 0 if it can't be seen from here. false:
	// nobody has. nil: nobody ever does.
	Peer func(slot uint32, generation uint64) (pidfd, pid int, ok bool)
	// LookEvery is how often the client's guardian looks whether the segment is
	// still the one in its directory, and its slot as it should be; 0: 500 ms.
	LookEvery time.Duration
}

// SliceStats counts how waits ended.
type SliceStats struct {
	Ended   uint64 // by their time slice
	Changed uint64 // of these: the word had changed; usual when several wait, as one is woken at a time
	// of these: what was waited for had been free for 100 ms more, with nobody dead: nobody was
	// woken. A bug
	Lost uint64
	How  string // who was there when that happened first; "": it has not
}

type sliceCounters struct {
	ended, changed, lost atomic.Uint64
	how                  atomic.Pointer[string]
}

// attachLimit bounds Attach and Join where the context sets no deadline.
const attachLimit = 2 * time.Second

// limited gives a context a deadline if it has none: who set a later one than
// ours knows that the machine is busy.
func limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, attachLimit)
}

// Join takes a free slot. With none free it recovers dead clients' slots, and
// fails with ErrNoSlots only if all of them live. It waits until the context's
// deadline, or for 2 s if it has none.
func (s *Segment) Join(ctx context.Context, opts JoinOptions) (*Client, error) {
	if s.ro {
		return nil, fmt.Errorf("shm: join %s: attached for reading only: %w; attach for writing", s.dir, ErrPermission)
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	c := &Client{seg: s, name: opts.Name, opts: opts}
	c.idle = sync.NewCond(&c.mu)
	ctx, cancel := limited(ctx)
	defer cancel()
	if err := c.takeSlot(ctx); err != nil {
		_ = s.leave()
		return nil, fmt.Errorf("shm: join %s: %w", s.dir, err)
	}
	// The owner closes the gate first and looks for clients then; we take a
	// slot first and look at the gate then: one of us sees the other.
	if state, _ := s.Gate().State(); state == GateDead {
		why := s.Why()
		_ = c.Leave()
		return nil, fmt.Errorf("join %s: %w", s.dir, why)
	}
	return c, nil
}

// candidates are the slots that the client may take, from first to last.
func (c *Client) candidates() (first, last uint32) {
	if c.opts.Dispatcher {
		return DispatcherSlot, DispatcherSlot
	}
	return 1, c.seg.Slots()
}

// noSlot says that none of them can be had.
func (c *Client) noSlot(live, dead int) error {
	if c.opts.Dispatcher {
		return fmt.Errorf("the dispatcher's slot has a tenant: %w; stop that dispatcher first", ErrInUse)
	}
	return &NoSlotsError{Slots: int(c.seg.Slots()), Live: live, Dead: dead}
}

// became makes c the tenant of slot i and writes down who it is.
//
// Preconditions: the slot's Live word is ours, or its Claim is (joiner).
func (c *Client) became(i uint32) error {
	c.slot, c.me = i, c.seg.Slot(i)
	id := identify()
	m := c.me
	m.PID.Store(0)
	m.UID.Store(id.uid)
	m.Place.Store(id.place)
	m.Start.Store(id.start)
	m.Joined.Store(uint64(time.Now().UnixNano()))
	gen := m.Generation.Load() + 1
	for try := 1; !c.seg.InHeap(); try++ {
		m.Generation.Store(gen)
		c.seg.addTenant(i)
		locked, err := c.seg.lockSlot(i, gen)
		if err != nil {
			c.seg.dropTenant(i)
			return err
		}
		if c.locked = locked; locked || try == lockTries {
			break
		}
		gen++ // that place is somebody's: of a process that still goes, or of who plays
	}
	m.Generation.Store(gen)
	c.generation = gen
	var name [nameSize]byte
	copy(name[:nameSize-1], c.name)
	c.seg.r.CopyIn(c.seg.slotOffset(i)+slotNameOffset, name[:])
	m.PID.Store(id.pid)
	return nil
}

// lockTries is how many places for the slot's lock a new tenant tries. One that finds
// none does without, and tries again from time to time: others go by what the slot's
// words say of it then, as by all else that the kernel knows.
const lockTries = 8

// inherit repairs the slot that the client has just taken over from a dead one.
func (c *Client) inherit() error {
	if c.opts.Repair == nil {
		return nil
	}
	err := c.opts.Repair(c, c.slot)
	if err != nil {
		c.me.PID.Store(0)
		c.giveSlot(false)
		err = fmt.Errorf("recover slot %d: %w", c.slot, err)
	}
	return err
}

// Slot returns the number of the client's slot.
func (c *Client) Slot() uint32 { return c.slot }

// Segment returns the segment that the client joined.
func (c *Client) Segment() *Segment { return c.seg }

// Name returns the name that the client gave itself.
func (c *Client) Name() string { return c.name }

// HandleID returns the id of the client's handle i.
//
// Preconditions: 0 ≤ i < HandlesPerSlot.
func (c *Client) HandleID(i int) HandleID { return HandleID(c.slot<<4 | uint32(i)) }

// Slices returns how the client's waits ended.
func (c *Client) Slices() SliceStats {
	st := SliceStats{Ended: c.slices.ended.Load(), Changed: c.slices.changed.Load(), Lost: c.slices.lost.Load()}
	if how := c.slices.how.Load(); how != nil {
		st.How = *how
	}
	return st
}

// Dead reports whether the client in a slot has died and was not recovered yet.
func (c *Client) Dead(slot uint32) bool { return c.seg.Dead(slot) }

// WaitOwner sleeps until w.W no longer holds w.Val or is woken, until the
// slot owner dies, which is then recovered before WaitOwner returns, until
// *cancel is not 0, or until d has passed (0: 20 ms). The owner may be 0,
// nobody in particular, or the client's own slot; cancel may be nil. nil
// means: look again. An error means that the segment was replaced, the client
// has left, or something is corrupt: waiting longer is no use.
func (c *Client) WaitOwner(owner uint32, w Watch, cancel *Word32, d time.Duration) error {
	return c.WaitHeld(owner, w, ^uint32(0), cancel, d)
}

// WaitHeld is WaitOwner for a word of which only the bits of held say that it
// is taken: they are all 0 when it is free. This is for the count of lost
// wake-ups (Slices), and for nothing else.
func (c *Client) WaitHeld(owner uint32, w Watch, held uint32, cancel *Word32, d time.Duration) error {
	if d <= 0 {
		d = waitSlice
	}
	var sl *Slot
	if owner != 0 {
		if sl = c.seg.Slot(owner); sl == nil {
			return errBadOwner
		}
	}
	for {
		if c.left.Load() {
			return errLeft
		}
		if state, _ := c.seg.Gate().State(); state == GateDead {
			return c.seg.Why()
		}
		var live Watch
		if sl != nil {
			if v := sl.Live.Load(); v&liveDied != 0 {
				return c.waitDead(owner, sl, w, cancel)
			} else if v != 0 {
				live = Watch{&sl.Live, v}
			}
		}
		slice := min(d, waitSlice)
		began := time.Now()
		r := WaitAny(slice, w, live, Watch{cancel, 0})
		seen := w.W.Load()
		if sl != nil && sl.Live.Load()&liveDied != 0 {
			return c.waitDead(owner, sl, w, cancel)
		}
		if r != TimedOut {
			return nil
		}
		// A wake-up that comes between the end of the sleep and our look finds
		// nobody, and is no loss. If we looked so late that it may be so, the
		// word counts as unchanged at the end of the sleep.
		if !SimEnabled && time.Since(began) > slice+longestDoubt {
			seen = w.Val
		}
		// Who was woken in our stead may have died before it ran, and nobody
		// waits for its death. The repair of its slot wakes all.
		n, err := c.recoverSome()
		if errors.Is(err, ErrCorrupt) {
			err = nil // of somebody's slot: no reason not to wait for another
		}
		if n > 0 || err != nil {
			return err
		}
		if c.sliceEnded(seen, w, live, held, cancel) {
			return nil
		}
		if d -= slice; d <= 0 {
			return nil
		}
	}
}

// sliceEnded counts a wait that ended by its time slice, and reports whether
// the word has changed; seen is the word's value when it ended.
func (c *Client) sliceEnded(seen uint32, w, live Watch, held uint32, cancel *Word32) bool {
	c.slices.ended.Add(1)
	c.stepAll()
	v := w.W.Load()
	if v == w.Val {
		return false
	}
	c.slices.changed.Add(1)
	if w.Val&held == 0 || seen == w.Val || v&held != 0 {
		return true
	}
	// It was held and is free now, and we were not woken. Somebody else may
	// have been: if he has died since, recovering him wakes everybody; if he
	// lives, he will take it, and the word changes again. Or the wake-up is on
	// its way. Only if nothing of that happens for a while it is lost.
	for range lostProof {
		if c.opts.Shared != nil && c.opts.Shared(c, w.W) {
			return true
		}
		if n, err := c.RecoverAll(); n > 0 || err != nil {
			return true // an error meets whoever needs that slot
		}
		if WaitAny(waitSlice, Watch{w.W, v}, live, Watch{cancel, 0}) != TimedOut || w.W.Load() != v {
			return true
		}
	}
	how := c.others(w, v)
	c.slices.how.CompareAndSwap(nil, &how)
	c.slices.lost.Add(1)
	return true
}

// others tells who is there when a wake-up counts as lost: what was waited for, each
// client's words and what the kernel says of its process, and how busy the machine is. A
// client that waits for a CPU (R) may be the one that was woken, or is about to wake.
func (c *Client) others(w Watch, now uint32) string {
	var b strings.Builder
	fmt.Fprintf(&b, "slot %d waited for the word at %d, which was %#x and is %#x", c.slot, OffsetOf(c.seg.r, w.W),
		w.Val, now)
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Fprintf(&b, "; load %s", bytes.TrimSpace(load))
	}
	c.seg.eachSlot(func(i uint32, sl *Slot) {
		if sl.Live.Load() == 0 {
			return
		}
		pid := sl.PID.Load()
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			stat = []byte(err.Error())
		}
		fmt.Fprintf(&b, "\n\tslot %d (%q): live %#x, claim %d, process %d: %.120s", i, c.seg.SlotName(i),
			sl.Live.Load(), sl.Claim.Load(), pid, bytes.TrimSpace(stat))
	})
	return b.String()
}

// longestDoubt is how long after the end of a sleep a look at the word still
// says what it was at the end: the scheduler may keep us for longer.
const longestDoubt = 300 * time.Microsecond

// lostProof is for how many slices a free word must stay as it is, with nobody
// dead, before a wake-up counts as lost: on a busy machine a woken process may
// have to wait for a CPU. JoinOptions.Shared knows better than the clock; tests
// that have none set it so high that a busy machine can't be taken for a bug.
var lostProof = 5

// waitDead recovers a dead owner's slot, or waits a little for whoever does.
func (c *Client) waitDead(owner uint32, sl *Slot, w Watch, cancel *Word32) error {
	claim := sl.Claim.Load()
	did, err := c.Recover(owner)
	if did || err != nil {
		return err
	}
	// The recovery ends with Claim 0, and begins with a store as well; what
	// it releases changes w. The slice is short as a claimer can die.
	if now := sl.Claim.Load(); claim == 0 {
		claim = now
	}
	WaitAny(time.Millisecond, w, Watch{&sl.Claim, claim}, Watch{cancel, 0})
	return nil
}

// Leave is the orderly end: what the client still holds is released as after
// its death, and its slot is free again. It waits for recoveries under way;
// the caller makes sure that nobody uses the client any more. A client that
// has left does nothing, nor does one whose death was simulated: its slot is
// for others to recover, and may be somebody else's by now.
func (c *Client) Leave() error {
	if c.leaving.Swap(true) {
		return nil
	}
	c.mu.Lock()
	for len(c.busy) > 0 {
		c.idle.Wait()
	}
	c.mu.Unlock()
	var err error
	if c.opts.Repair != nil {
		err = c.opts.Repair(c, c.slot)
	}
	c.left.Store(true)
	clean := err == nil
	if err == ErrLater {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("shm: leave slot %d: %w", c.slot, err)
	}
	c.clearClaims(c.slot)
	c.me.PID.Store(0)
	// What could not be repaired stays marked dead, for others to look at.
	c.giveSlot(clean)
	if e := c.seg.leave(); err == nil {
		err = e
	}
	return err
}

// SimulateDeath marks the client's slot as the kernel would, and wakes one
// waiter. The client must not be used any more.
//
// Preconditions: the segment is in the heap.
func (c *Client) SimulateDeath() {
	if !c.seg.InHeap() {
		panic("shm: SimulateDeath of a client in a real segment")
	}
	c.leaving.Store(true) // the dead do not leave
	c.left.Store(true)
	if c.me.Live.CAS(heapLive, liveWaiters|liveDied) {
		c.me.Live.Wake(1)
	}
	_ = c.seg.leave()
}
