package shm

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guardian is a thread whose robust list has one word, the liveness word of
// its client's slot. However the process dies, the kernel walks the list,
// sets FUTEX_OWNER_DIED in the word and wakes one waiter.
//
// The kernel keeps the address of head until the thread ends: guardians holds
// it against the garbage collector, which doesn't move it either. The node
// does not lie in the segment but here: its pointers are addresses of this
// process, and nobody else can spoil them. The kernel finds the word at the
// node plus offset.
type guardian struct {
	head struct { // struct robust_list_head
		next    uintptr
		offset  int // long
		pending uintptr
	}
	node uintptr // struct robust_list; only its address matters, and that it leads back to head
	word *Word32
	tid  uint32

	look func() // from time to time; it may do nothing that waits for the guardian

	stop  uint32 // the thread sleeps on it
	clean bool   // with stop: whether the slot becomes free, or stays marked dead
	done  chan struct{}
}

var guardians sync.Map

// startGuardian runs take on a new guardian's thread, which stays if take
// succeeds.
func startGuardian(take func(*guardian) error) (*guardian, error) {
	g := &guardian{done: make(chan struct{})}
	g.head.next = uintptr(unsafe.Pointer(&g.head))
	guardians.Store(g, nil)
	taken := make(chan error, 1)
	placed := make(chan struct{})
	go g.run(take, taken, placed)
	<-placed
	if err := <-taken; err != nil {
		<-g.done
		return nil, err
	}
	return g, nil
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
	// In a system call and not in a channel: there the runtime would report a
	// deadlock when all else sleeps in the kernel.
	for next := time.Now().Add(lookEvery); atomic.LoadUint32(&g.stop) == 0; {
		ts := unix.NsecToTimespec(int64(max(time.Until(next), time.Millisecond)))
		unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&g.stop)), futexWait|futexPrivate, 0, uintptr(unsafe.Pointer(&ts)), 0, 0)
		if now := time.Now(); !now.Before(next) {
			next = now.Add(lookEvery)
			g.look()
		}
	}
	g.unlock()
}

const (
	futexWait    = 0
	futexPrivate = 128
)

// lock makes the guardian the owner of word if it holds old. Between the CAS
// and the entry in the list, pending tells the kernel where to look.
//
// Preconditions: the caller is the guardian's thread; it owns no word.
func (g *guardian) lock(word *Word32, old uint32) bool {
	node := uintptr(unsafe.Pointer(&g.node))
	g.node = uintptr(unsafe.Pointer(&g.head))
	g.head.offset = int(uintptr(unsafe.Pointer(word)) - node)
	atomic.StoreUintptr(&g.head.pending, node)
	ok := word.CAS(old, g.tid|liveWaiters)
	if ok {
		g.word = word
		atomic.StoreUintptr(&g.head.next, node)
	}
	atomic.StoreUintptr(&g.head.pending, 0)
	return ok
}

// unlock gives the word up and wakes all who watch it.
func (g *guardian) unlock() {
	atomic.StoreUintptr(&g.head.pending, uintptr(unsafe.Pointer(&g.node)))
	atomic.StoreUintptr(&g.head.next, uintptr(unsafe.Pointer(&g.head)))
	if g.clean {
		g.word.Swap(0)
	} else {
		g.word.Swap(liveWaiters | liveDied)
	}
	atomic.StoreUintptr(&g.head.pending, 0)
	g.word.Wake(All)
}

// end stops the guardian and waits until it has given up its word.
func (g *guardian) end(clean bool) {
	g.clean = clean
	atomic.StoreUint32(&g.stop, 1)
	unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&g.stop)), futexWake|futexPrivate, 1, 0, 0, 0)
	<-g.done
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
		g.look = func() { _ = c.seg.Look() }
		inherited, err = c.takeFileSlot(ctx, g)
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
	gen := c.me.Generation.Load()
	c.g.end(clean)
	_ = c.seg.fileLock(unix.F_UNLCK, slotLock(c.slot, gen))
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
			case v == 0 && g.lock(&sl.Live, 0):
				return false, c.settle(g, i)
			case v&liveDied == 0:
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

// settle writes down who the tenant of slot i is, from now on.
func (c *Client) settle(g *guardian, i uint32) error {
	err := c.became(i)
	if err != nil {
		c.me.PID.Store(0)
		g.unlock()
	}
	return err
}

// takeOver makes the client the tenant of some dead slot, with all that its
// last one had begun: who has no slot can't claim one for recovery. Its claim
// counts as long as it holds the join lock.
func (c *Client) takeOver(g *guardian) (bool, error) {
	s := c.seg
	if !s.tryJoinLock() {
		return false, nil
	}
	defer s.joinUnlock()
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

func (c *Client) takeOverSlot(g *guardian, i uint32) (bool, error) {
	s, sl := c.seg, c.seg.Slot(i)
	claim := sl.Claim.Load()
	if sl.Live.Load()&liveDied == 0 {
		return false, nil
	}
	if claim != i && s.Slot(claim) != nil {
		// Somebody's. If he lives he will finish; if he is dead his own slot
		// is a better choice, as nobody may have claimed that: taking it over
		// clears his claims.
		return false, nil
	}
	if !sl.Claim.CAS(claim, claimJoiner) {
		return false, nil
	}
	defer func() {
		sl.Claim.CAS(claimJoiner, 0)
		sl.Claim.Wake(All)
	}()
	v := sl.Live.Load()
	if v&liveDied == 0 {
		return false, nil
	}
	if err := s.fence(i, sl); err == errNotYet {
		return false, nil
	} else if err != nil {
		return false, err
	}
	c.clearClaims(i)
	if !g.lock(&sl.Live, v) {
		return false, nil
	}
	return true, c.settle(g, i)
}
