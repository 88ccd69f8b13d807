package shm

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guardian is a thread whose robust list has one word, the liveness word of
// its client's slot; while it takes over a dead slot, the slot's claim as well.
// However the process dies, the kernel walks the list, sets FUTEX_OWNER_DIED in
// the words and wakes one waiter of each.
//
// The kernel keeps the address of head until the thread ends: guardians holds
// it against the garbage collector, which doesn't move it either. The nodes
// do not lie in the segment but here: their pointers are addresses of this
// process, and nobody else can spoil them. The kernel finds a word at its node
// plus offset, which is the same for all nodes: Claim is as far behind Live as
// the nodes are apart.
type guardian struct {
	head struct { // struct robust_list_head
		next    uintptr
		offset  int // long
		pending uintptr
	}
	nodes [2]uintptr // struct robust_list, of Live and of Claim: the address of the next one, at last head's
	slot  *Slot
	tid   uint32

	every time.Duration
	look  func()   // every so often
	ended func()   // when the segment may have ended; neither may wait for the guardian
	files *watcher // of the segment's file; nil: nobody tells

	wake  int        // an eventfd: end and alarm have something for the guardian
	alarm alarm      // under mu
	mu    sync.Mutex // held for some instructions
	stop  uint32     // with wake
	clean bool       // with stop: whether the slot becomes free, or stays marked dead
	done  chan struct{}
}

// alarm is a descriptor, and what is called when it hangs up.
type alarm struct {
	fd   int // -1: none
	call func()
}

var guardians sync.Map

// startGuardian runs take on a new guardian's thread, which stays if take
// succeeds.
func startGuardian(take func(*guardian) error) (*guardian, error) {
	g := &guardian{done: make(chan struct{}), every: lookEvery, alarm: alarm{fd: -1}}
	var err error
	if g.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	g.head.next = uintptr(unsafe.Pointer(&g.head))
	guardians.Store(g, nil)
	taken := make(chan error, 1)
	placed := make(chan struct{})
	go g.run(take, taken, placed)
	<-placed
	if err := <-taken; err != nil {
		<-g.done
		g.close()
		return nil, err
	}
	return g, nil
}

func (g *guardian) close() {
	_ = unix.Close(g.wake)
	g.files.close()
}

func (g *guardian) run(take func(*guardian) error, taken chan<- error, placed chan<- struct{}) {
	// Never unlocked: the thread ends with this goroutine, as it is of no use
	// to others with its robust list.
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread can't end. While we hold it the next one gets another.
		next := make(chan struct{})
		go g.run(take, taken, next)
		<-next
		runtime.UnlockOSThread()
		close(placed)
		return
	}
	close(placed)
	defer close(g.done)
	defer guardians.Delete(g)
	// The word of a file that was truncated can't be had: there is nothing to give
	// up then, and no reason to end the process.
	debug.SetPanicOnFault(true)
	defer func() {
		if p := recover(); p != nil {
			if _, fault := p.(interface{ Addr() uintptr }); !fault {
				panic(p)
			}
			select {
			case taken <- errCut:
			default:
			}
		}
	}()
	defer unix.RawSyscall(unix.SYS_SET_ROBUST_LIST, 0, unsafe.Sizeof(g.head), 0)
	_, _, e := unix.RawSyscall(unix.SYS_SET_ROBUST_LIST, uintptr(unsafe.Pointer(&g.head)), unsafe.Sizeof(g.head), 0)
	if e != 0 {
		taken <- fmt.Errorf("set_robust_list: %w (%w)", ErrNotSupported, e)
		return
	}
	g.tid = uint32(unix.Gettid())
	err := take(g)
	taken <- err
	if err != nil {
		return
	}
	g.watch()
	g.unlock(g.clean)
}

// watch is the guardian's life. It sleeps in a system call and not in a channel: there
// the runtime would report a deadlock when all else sleeps in the kernel.
func (g *guardian) watch() {
	var fds [3]unix.PollFd
	next, quiet := time.Now().Add(g.every), time.Time{}
	for atomic.LoadUint32(&g.stop) == 0 {
		g.mu.Lock()
		a := g.alarm
		g.mu.Unlock()
		fds[0] = unix.PollFd{Fd: int32(g.wake), Events: unix.POLLIN}
		fds[1] = unix.PollFd{Fd: int32(a.fd)} // that it hangs up is told in any case
		fds[2] = unix.PollFd{Fd: int32(g.files.fd()), Events: unix.POLLIN}
		now := time.Now()
		until := next
		if now.Before(quiet) {
			fds[2].Fd = -1
			until = quiet
		}
		ts := unix.NsecToTimespec(int64(max(until.Sub(now), time.Millisecond)))
		n, err := unix.Ppoll(fds[:], &ts, nil)
		if err != nil && err != unix.EINTR {
			time.Sleep(time.Millisecond) // no memory
		}
		now = time.Now()
		if n > 0 && fds[0].Revents != 0 {
			var b [8]byte
			_, _ = unix.Read(g.wake, b[:])
		}
		if n > 0 && fds[1].Revents != 0 {
			g.mu.Lock()
			if g.alarm.fd == a.fd {
				g.alarm.fd = -1 // it would ring all the time
			}
			g.mu.Unlock()
			g.ended()
			a.call()
		}
		if n > 0 && fds[2].Revents != 0 {
			// Whoever may write the file can make it say something all the time.
			quiet = now.Add(quietFor)
			g.files.drain()
			g.ended()
		}
		if !now.Before(next) {
			next = now.Add(g.every)
			g.look()
		}
	}
}

// quietFor is for how long the guardian does not listen to what the kernel tells of the
// segment's file, after it has.
const quietFor = 10 * time.Millisecond

// Alarm lets the client's guardian watch a descriptor, that of its connection to the
// dispatcher: when the other side has closed it, the guardian looks at the segment and
// calls f, once, which must not wait for anything. -1 ends that. The descriptor has to
// stay open until then; f may be called for the one before while Alarm runs.
func (c *Client) Alarm(fd int, f func()) {
	if c.g == nil {
		return
	}
	c.g.mu.Lock()
	c.g.alarm = alarm{fd, f}
	c.g.mu.Unlock()
	c.g.ring()
}

// ring wakes the guardian.
func (g *guardian) ring() {
	one := [8]byte{0: 1}
	_, _ = unix.Write(g.wake, one[:]) // full: it is awake
}

// The nodes of a slot's words.
const (
	nodeLive = iota
	nodeClaim
)

func (g *guardian) node(n int) uintptr { return uintptr(unsafe.Pointer(&g.nodes[n])) }

// own makes the guardian the owner of the word of node n in the slot if it holds
// old. Between the CAS and the entry in the list, pending tells the kernel where
// to look.
//
// Preconditions: the caller is the guardian's thread, and owns no word of another slot.
func (g *guardian) own(sl *Slot, n int, old uint32) bool {
	word := &sl.Live
	if n == nodeClaim {
		word = &sl.Claim
	}
	g.head.offset = int(uintptr(unsafe.Pointer(word)) - g.node(n))
	g.nodes[n] = g.head.next
	atomic.StoreUintptr(&g.head.pending, g.node(n))
	ok := word.CAS(old, g.mark())
	if ok {
		atomic.StoreUintptr(&g.head.next, g.node(n))
	}
	atomic.StoreUintptr(&g.head.pending, 0)
	return ok
}

// mark is what stands in the words that the guardian owns.
func (g *guardian) mark() uint32 { return g.tid | liveWaiters }

// lock makes the guardian the owner of the slot's liveness word.
func (g *guardian) lock(sl *Slot, old uint32) bool {
	ok := g.own(sl, nodeLive, old)
	if ok {
		g.slot = sl
	}
	return ok
}

// drop takes the word of node n out of the list. store gives it up.
func (g *guardian) drop(n int, store func()) {
	atomic.StoreUintptr(&g.head.pending, g.node(n))
	if g.head.next == g.node(n) {
		atomic.StoreUintptr(&g.head.next, g.nodes[n])
	} else {
		atomic.StoreUintptr(&g.nodes[1-n], g.nodes[n])
	}
	store()
	atomic.StoreUintptr(&g.head.pending, 0)
}

// unlock gives the liveness word up and wakes all who watch it.
func (g *guardian) unlock(clean bool) {
	word, v := &g.slot.Live, uint32(0)
	if !clean {
		v = liveWaiters | liveDied
	}
	g.drop(nodeLive, func() { word.Swap(v) })
	word.Wake(All)
}

// unclaim gives a slot's claim up, unless somebody has taken it.
func (g *guardian) unclaim(sl *Slot) {
	g.drop(nodeClaim, func() { sl.Claim.CAS(g.mark(), 0) })
	sl.Claim.Wake(All)
}

// end stops the guardian and waits until it has given up its word.
func (g *guardian) end(clean bool) {
	g.clean = clean
	atomic.StoreUint32(&g.stop, 1)
	g.ring()
	<-g.done
	g.close()
}

// takeSlot makes the client the tenant of a slot.
func (c *Client) takeSlot(ctx context.Context) error {
	if c.seg.InHeap() {
		return c.takeHeapSlot(ctx)
	}
	if err := registerMembarrier(); err != nil {
		return err
	}
	inherited := false
	g, err := startGuardian(func(g *guardian) (err error) {
		if c.opts.LookEvery > 0 {
			g.every = c.opts.LookEvery
		}
		g.ended = func() { _ = c.seg.Look() }
		g.look = func() {
			if c.seg.Look() == nil {
				c.tend(g.mark())
			}
		}
		inherited, err = c.takeFileSlot(ctx, g)
		if c.opts.Dispatcher && err == nil {
			// Each user has some hundred watchers at most. The gate tells the others.
			g.files = watchFile(c.seg.file)
		}
		return err
	})
	if err != nil {
		return err
	}
	c.g = g
	if inherited {
		return c.inherit()
	}
	return nil
}

func (c *Client) giveSlot(clean bool) {
	if c.seg.InHeap() {
		c.giveHeapSlot(clean)
		return
	}
	gen := c.generation // the word of the slot may be forged
	c.seg.dropTenant(c.slot)
	c.g.end(clean)
	_ = c.seg.fileLock(unix.F_UNLCK, slotLock(c.slot, gen), 1<<lockRoomBits)
}

// takeFileSlot runs on the guardian's thread. It reports whether the slot was
// a dead client's.
func (c *Client) takeFileSlot(ctx context.Context, g *guardian) (inherited bool, err error) {
	s := c.seg
	for {
		live, dead := 0, 0
		first, last := c.candidates()
		for i := first; i <= last; i++ {
			sl := s.Slot(i)
			switch v := sl.Live.Load(); {
			case v == 0 && g.lock(sl, 0):
				return false, c.settle(g, i)
			case !c.mayBeDead(i, v):
				live++
			default:
				dead++
			}
		}
		if dead == 0 {
			return false, c.noSlot(live, dead)
		}
		ok, err := c.takeOver(g)
		if ok || err != nil {
			return ok, err
		}
		if ctx.Err() != nil {
			return false, fmt.Errorf("%w (%w)", c.noSlot(live, dead), ctx.Err())
		}
		time.Sleep(time.Millisecond)
	}
}

// mayBeDead reports whether a slot whose liveness word is v can be taken over. The
// dispatcher has the owner lock, so no other lives: it looks at the process and
// not only at the word, which anybody can have written.
func (c *Client) mayBeDead(i, v uint32) bool {
	if v&liveDied != 0 || v == 0 || !c.opts.Dispatcher {
		return v&liveDied != 0
	}
	ended, err := c.ended(i, c.seg.Slot(i))
	return ended && err == nil
}

// settle writes down who the tenant of slot i is, from now on.
func (c *Client) settle(g *guardian, i uint32) error {
	err := c.became(i)
	if err != nil {
		c.me.PID.Store(0)
		g.unlock(true)
	}
	return err
}

// takeOver makes the client the tenant of some dead slot, with all that its
// last one had begun: who has no slot can't claim one for recovery.
func (c *Client) takeOver(g *guardian) (bool, error) {
	var problem error
	first, last := c.candidates()
	for i := first; i <= last; i++ {
		ok, err := c.takeOverSlot(g, i)
		if ok {
			return true, err
		}
		if problem == nil {
			problem = err
		}
	}
	return false, problem
}

// betweenClaimAndTake is where tests stop a joiner.
var betweenClaimAndTake = func() {}

func (c *Client) takeOverSlot(g *guardian, i uint32) (bool, error) {
	s, sl := c.seg, c.seg.Slot(i)
	claim := sl.Claim.Load()
	if !c.mayBeDead(i, sl.Live.Load()) {
		return false, nil
	}
	// The dispatcher has the owner lock: nobody else joins as one.
	if claim != i && s.Slot(claim) != nil || joining(claim) && !c.opts.Dispatcher {
		// Somebody's. If he lives he will finish; if he is dead his own slot
		// is a better choice, as nobody may have claimed that: taking it over
		// clears his claims.
		return false, nil
	}
	gen := sl.Generation.Load()
	if !g.own(sl, nodeClaim, claim) {
		return false, nil
	}
	defer g.unclaim(sl)
	v := sl.Live.Load()
	if !c.mayBeDead(i, v) {
		return false, nil
	}
	if err := c.fence(i, sl); err == errNotYet {
		return false, nil
	} else if err != nil {
		return false, err
	}
	betweenClaimAndTake()
	if !g.lock(sl, v) {
		return false, nil
	}
	if sl.Claim.Load() != g.mark() || sl.Generation.Load() != gen {
		// We stood still for so long that the claim was taken from us, and the
		// slot may have had another tenant since, who has died as well.
		g.unlock(false)
		return false, nil
	}
	c.clearClaims(i)
	return true, c.settle(g, i)
}
