package ring

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/shm"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0: MAINZ_SEED, or a new one")

// seed returns the seed of a random test, and prints it.
func seed(t testing.TB) uint64 {
	t.Helper()
	s := *seedFlag
	if env := os.Getenv("MAINZ_SEED"); s == 0 && env != "" {
		var err error
		if s, err = strconv.ParseUint(env, 10, 64); err != nil {
			t.Fatalf("MAINZ_SEED: %v", err)
		}
	}
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d: -seed or MAINZ_SEED repeats it", s)
	return s
}

// minute is how long a test waits for what must happen.
const minute = time.Minute

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), minute)
	t.Cleanup(cancel)
	return ctx
}

// until waits for a condition that another goroutine or process brings about.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(minute); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("waited a minute in vain: %s", what)
		}
		runtime.Gosched()
	}
}

// newRing is a ring in the heap whose positions begin at start.
func newRing(t testing.TB, cells int, start uint64) *shm.Region {
	t.Helper()
	r := shm.Heap(Size(cells) + BellSize)
	if err := Init(r, 0, cells); err != nil {
		t.Fatal(err)
	}
	startAt(r, start)
	return r
}

func startAt(r *shm.Region, pos uint64) {
	h := shm.At[head](r, 0)
	h.claimed.Store(pos)
	h.released.Store(pos)
}

func ends(t testing.TB, r *shm.Region, cells int, opts Options) (*Producer, *Consumer) {
	t.Helper()
	p, err := OpenProducer(r, 0, cells, opts)
	if err != nil {
		t.Fatal(err)
	}
	c, err := OpenConsumer(r, 0, cells, opts)
	if err != nil {
		t.Fatal(err)
	}
	return p, c
}

// message is one of which every byte follows from its number.
func message(n uint64) *Message {
	m := &Message{Head: [2]uint64{n, n * 0x9e3779b97f4a7c15}}
	for i := range InlineSize / 8 {
		binary.LittleEndian.PutUint64(m.Inline[8*i:], n^uint64(i+1)<<56)
	}
	return m
}

func intact(m *Message) bool { return *m == *message(m.Head[0]) }

func mustClaim(t testing.TB, p *Producer) Claim {
	t.Helper()
	c, err := p.TryClaim()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func polled(c *Consumer, limit int) (numbers []uint64) {
	c.Poll(limit, func(m *Message) {
		if !intact(m) {
			panic(fmt.Sprintf("message %v", *m))
		}
		numbers = append(numbers, m.Head[0])
	})
	return numbers
}

// starts are positions at which a ring begins: what is masked, and what
// overflows 32 bits.
var starts = []uint64{0, 5, 1<<32 - 3, 1<<63 - 1000}

// TestTwin compares a ring with a slice on random steps, deaths of either end
// among them.
func TestTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(seed(t), 1))
	for _, cells := range []int{2, 4, 16, 256} {
		for _, start := range starts {
			if !twin(t, rng, cells, start) {
				t.Fatalf("with %d cells from position %d", cells, start)
			}
		}
	}
}

type twinCell struct {
	claim Claim
	n     uint64
	state byte // 0 claimed, 1 committed, 2 aborted
}

func twin(t *testing.T, rng *rand.Rand, cells int, start uint64) bool {
	r := newRing(t, cells, start)
	p, c := ends(t, r, cells, Options{})
	var model []twinCell // from the consumer's position on
	next := uint64(0)
	for step := range 4000 {
		switch what := rng.IntN(100); {
		case what < 35:
			claim, err := p.TryClaim()
			if full := len(model) == cells; full != (err == ErrFull) || !full && err != nil {
				t.Errorf("step %d: claim with %d of %d cells used: %v", step, len(model), cells, err)
				return false
			}
			if err == nil {
				model = append(model, twinCell{claim: claim, n: next})
				next++
			}
		case what < 70:
			open := []int{}
			for i := range model {
				if model[i].state == 0 {
					open = append(open, i)
				}
			}
			if len(open) == 0 {
				continue
			}
			k := &model[open[rng.IntN(len(open))]]
			if k.state = 1; rng.IntN(5) == 0 {
				k.state = 2
				k.claim.Abort()
			} else {
				k.claim.Commit(message(k.n))
			}
		case what < 97:
			limit := rng.IntN(cells + 2)
			want, n := []uint64{}, 0
			for n < min(limit, len(model)) && model[n].state != 0 {
				if model[n].state == 1 {
					want = append(want, model[n].n)
				}
				n++
			}
			if ready := len(model) > 0 && model[0].state != 0; c.Ready() != ready {
				t.Errorf("step %d: ready is %v", step, !ready)
				return false
			}
			var got []uint64
			took := c.Poll(limit, func(m *Message) {
				if !intact(m) {
					t.Errorf("step %d: message %v", step, *m)
				}
				got = append(got, m.Head[0])
			})
			if fmt.Sprint(got) != fmt.Sprint(want) || took != n {
				t.Errorf("step %d: polled %d: %v, want %d: %v", step, took, got, n, want)
				return false
			}
			model = model[n:]
		case what == 97: // the consumer is restarted
			var err error
			if c, err = OpenConsumer(r, 0, cells, Options{}); err != nil {
				t.Errorf("step %d: %v", step, err)
				return false
			}
		default: // the producer dies, and either side repairs
			open := 0
			for i := range model {
				if model[i].state == 0 {
					model[i].state = 2
					open++
				}
			}
			var err error
			if p, err = OpenProducer(r, 0, cells, Options{}); err != nil {
				t.Errorf("step %d: %v", step, err)
				return false
			}
			repair := p.Repair
			if what == 98 {
				repair = c.Repair
			}
			for _, want := range []int{open, 0} { // it may be repeated
				if n, err := repair(); n != want || err != nil {
					t.Errorf("step %d: repaired %d, want %d: %v", step, n, want, err)
					return false
				}
			}
		}
	}
	return true
}

// TestSeenAgain: what a Poll that did not return had given out is seen again,
// and nothing else.
func TestSeenAgain(t *testing.T) {
	const cells = 8
	r := newRing(t, cells, 0)
	p, c := ends(t, r, cells, Options{})
	for n := range uint64(6) {
		mustClaim(t, p).Commit(message(n))
	}
	if got := polled(c, 2); fmt.Sprint(got) != "[0 1]" {
		t.Fatal(got)
	}
	func() {
		defer func() { _ = recover() }()
		c.Poll(4, func(m *Message) {
			if m.Head[0] == 4 {
				panic("dies")
			}
		})
	}()
	next, err := OpenConsumer(r, 0, cells, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := polled(next, cells); fmt.Sprint(got) != "[2 3 4 5]" {
		t.Fatalf("the next consumer saw %v, want [2 3 4 5]", got)
	}
}

// TestManyProducers: goroutines of one process through a small ring, most of
// them waiting for room, some giving up.
func TestManyProducers(t *testing.T) {
	for _, s := range []Strategy{Adaptive, Sleep} {
		t.Run(s.String(), func(t *testing.T) { manyProducers(t, s) })
	}
}

func manyProducers(t *testing.T, s Strategy) {
	const cells, producers, each = 8, 64, 200
	r := newRing(t, cells, 1<<32-100)
	ctx := deadline(t)
	p, c := ends(t, r, cells, Options{Idle: s})
	var wg sync.WaitGroup
	var gaveUp atomic.Int32
	for i := range uint64(producers) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(i, 7))
			for k := range uint64(each) {
				if rng.IntN(20) == 0 { // does not wait for long
					soon, cancel := context.WithTimeout(ctx, time.Duration(rng.IntN(100))*time.Microsecond)
					claim, err := p.Claim(soon)
					cancel()
					if err == nil {
						claim.Abort()
					} else if !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("claim: %v", err)
						return
					} else {
						gaveUp.Add(1)
					}
				}
				claim, err := p.Claim(ctx)
				if err != nil {
					t.Errorf("claim: %v", err)
					return
				}
				if rng.IntN(16) == 0 {
					claim.Abort()
					if claim, err = p.Claim(ctx); err != nil {
						t.Error(err)
						return
					}
				}
				claim.Commit(message(i<<32 | k))
			}
		})
	}
	var last [producers]uint64 // + 1
	for got := 0; got < producers*each; {
		c.Poll(1+got%cells, func(m *Message) {
			i, k := m.Head[0]>>32, m.Head[0]&(1<<32-1)
			if !intact(m) || i >= producers || last[i] != k {
				t.Errorf("message %v is not number %d of its producer", *m, last[min(i, producers-1)])
			}
			last[i%producers]++
			got++
		})
		if t.Failed() {
			break
		}
		if err := c.Wait(ctx); err != nil && got < producers*each {
			t.Fatalf("after %d of %d messages: %v", got, producers*each, err)
		}
		if got == producers*each {
			break
		}
	}
	wg.Wait()
	t.Logf("%d gave up", gaveUp.Load())
	if n := p.waiting.Load(); n != 0 {
		t.Errorf("%d still wait", n)
	}
	if h := c.h; h.claimed.Load() != h.released.Load() {
		t.Errorf("claimed up to %d, released up to %d", h.claimed.Load(), h.released.Load())
	}
}

// TestFull: a full ring says so at once, and a wait for room ends with its
// context or with room.
func TestFull(t *testing.T) {
	const cells = 4
	for _, s := range []Strategy{Adaptive, Busy, Sleep} {
		t.Run(s.String(), func(t *testing.T) {
			r := newRing(t, cells, 0)
			p, c := ends(t, r, cells, Options{Idle: s})
			for n := range uint64(cells) {
				mustClaim(t, p).Commit(message(n))
			}
			if _, err := p.TryClaim(); err != ErrFull {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(deadline(t))
			waits := func(ctx context.Context) chan error {
				ended := make(chan error)
				go func() {
					claim, err := p.Claim(ctx)
					if err == nil {
						claim.Commit(message(cells))
					}
					ended <- err
				}()
				return ended
			}
			first, second := waits(ctx), waits(ctx)
			cancel()
			for _, ended := range []chan error{first, second} {
				if err := <-ended; err != context.Canceled {
					t.Fatal(err)
				}
			}
			ended := waits(deadline(t))
			if s == Sleep {
				until(t, "a producer sleeps, or is about to", func() bool { return c.h.full.Load()&1 != 0 })
			}
			if got := polled(c, 1); len(got) != 1 {
				t.Fatal(got)
			}
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			if got := polled(c, 2*cells); fmt.Sprint(got) != "[1 2 3 4]" {
				t.Fatal(got)
			}
			ctx, cancel = context.WithCancel(context.Background())
			go cancel()
			var err error
			for err == nil { // Wait may end for no reason
				err = c.Wait(ctx)
			}
			if err != context.Canceled {
				t.Fatal(err)
			}
		})
	}
}

// TestHeldUp: a claim that is not committed holds up its own ring, and no other.
func TestHeldUp(t *testing.T) {
	const cells = 4
	a, b := newRing(t, cells, 0), newRing(t, cells, 0)
	pa, ca := ends(t, a, cells, Options{})
	pb, cb := ends(t, b, cells, Options{})
	held := mustClaim(t, pa)
	mustClaim(t, pa).Commit(message(1))
	mustClaim(t, pb).Commit(message(2))
	if got := polled(ca, cells); len(got) != 0 {
		t.Fatal("delivered before a claim that is older:", got)
	}
	if got := polled(cb, cells); fmt.Sprint(got) != "[2]" {
		t.Fatal(got)
	}
	held.Commit(message(0))
	if got := polled(ca, cells); fmt.Sprint(got) != "[0 1]" {
		t.Fatal(got)
	}
}

func TestOpenErrors(t *testing.T) {
	r := shm.Heap(Size(4) + 128)
	for _, c := range []struct {
		off   shm.Offset
		cells int
	}{{0, 0}, {0, 1}, {0, 3}, {0, -4}, {0, 1 << 21}, {64, 4}, {1, 4}, {256, 4}, {0, 8}, {1 << 63, 4},
		{^uint64(127), 4}} {
		if err := Init(r, c.off, c.cells); err == nil {
			t.Errorf("init of %d cells at %d works", c.cells, c.off)
		}
		if _, err := OpenProducer(r, c.off, c.cells, Options{}); err == nil {
			t.Errorf("producer of %d cells at %d works", c.cells, c.off)
		}
		if _, err := OpenConsumer(r, c.off, c.cells, Options{}); err == nil {
			t.Errorf("consumer of %d cells at %d works", c.cells, c.off)
		}
	}
	if _, err := OpenConsumer(r, 0, 4, Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("without Init: %v", err)
	}
	if err := Init(r, 128, 4); err != nil {
		t.Errorf("the last place: %v", err)
	}
	if _, err := OpenProducer(r, 128, 2, Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another number of cells: %v", err)
	}
	h := shm.At[head](r, 128)
	h.released.Store(1)
	for name, err := range map[string]error{
		"producer": second(OpenProducer(r, 128, 4, Options{})),
		"consumer": second(OpenConsumer(r, 128, 4, Options{})),
	} {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s with released behind claimed: %v", name, err)
		}
	}
	for _, off := range []shm.Offset{1, 64, r.Size(), r.Size() - 64, ^uint64(127)} {
		if _, err := OpenBell(r, off, nil); err == nil {
			t.Errorf("a bell at %d works", off)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestStrategyNames(t *testing.T) {
	for _, s := range []Strategy{Adaptive, Busy, Sleep} {
		if got, err := ParseStrategy(s.String()); got != s || err != nil {
			t.Errorf("%v is read as %v, %v", s, got, err)
		}
	}
	if _, err := ParseStrategy("lazy"); err == nil {
		t.Error("a strategy that does not exist")
	}
	if Strategy(9).String() != "strategy 9" {
		t.Error(Strategy(9))
	}
	var zero Strategy
	if zero != Adaptive {
		t.Error("adaptive is the default")
	}
}

func TestIdle(t *testing.T) {
	i := Sleep.Start()
	if i.Again() {
		t.Error("sleep spins")
	}
	i = Busy.Start()
	for range 1000 {
		if !i.Again() {
			t.Fatal("busy sleeps")
		}
	}
	i = Adaptive.Start()
	for range 2 {
		i.Reset()
		if !i.Again() {
			t.Error("adaptive sleeps at once")
		}
		n := 1
		for ; i.Again(); n++ {
			if n == 1<<30 {
				t.Fatal("adaptive does not sleep")
			}
		}
		t.Logf("spins %d turns, %.1f µs", n, float64(i.budget)/shm.TickRate()*1e6)
	}
}

func TestAllocations(t *testing.T) {
	r := newRing(t, 16, 0)
	p, c := ends(t, r, 16, Options{})
	ctx := context.Background()
	sum := uint64(0)
	f := func(m *Message) { sum += m.Head[0] }
	for name, call := range map[string]func(){
		"claim, commit, poll": func() {
			claim, err := p.Claim(ctx)
			if err != nil {
				t.Fatal(err)
			}
			m := Message{Head: [2]uint64{1, 2}}
			claim.Commit(&m)
			if err := c.Wait(ctx); err != nil || c.Poll(4, f) != 1 {
				t.Fatal(err)
			}
		},
		"abort, repair": func() {
			mustClaim(t, p).Abort()
			mustClaim(t, p)
			if n, err := c.Repair(); n != 1 || err != nil || c.Poll(4, f) != 2 {
				t.Fatal(n, err)
			}
		},
		"full": func() {
			for range 16 {
				m := Message{}
				mustClaim(t, p).Commit(&m)
			}
			if _, err := p.TryClaim(); err != ErrFull {
				t.Fatal(err)
			}
			if c.Poll(16, f) != 16 {
				t.Fatal("not all came")
			}
		},
		"sleep": func() {
			sleeper := Consumer{view: c.view, pos: c.pos,
				opts: Options{Idle: Sleep, Wait: func(shm.Watch, *shm.Word32) error { return nil }}}
			if err := sleeper.sleep(ctx); err != nil {
				t.Fatal(err)
			}
		},
	} {
		if n := testing.AllocsPerRun(100, call); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestWaitKeepsContext: waits with one context allocate nothing after the second one, a
// wait with another context is ended by that one alone, and one with a context that was
// kept is ended by it.
func TestWaitKeepsContext(t *testing.T) {
	var cancelled *shm.Word32 // by this word's being 1
	opts := Options{Idle: Sleep, Wait: func(_ shm.Watch, cancel *shm.Word32) error { cancelled = cancel; return nil }}
	_, c := ends(t, newRing(t, 16, 0), 16, opts)
	defer c.Stop()
	kept, end := context.WithCancel(t.Context())
	wait := func(ctx context.Context) { _ = c.Wait(ctx) }
	wait(kept)
	first := cancelled
	wait(kept)
	second := cancelled
	if n := testing.AllocsPerRun(100, func() { wait(kept) }); n != 0 && !testenv.Race {
		t.Errorf("a wait with the same context allocates %g times", n)
	}
	if cancelled != second || first == second {
		t.Error("the context is not kept from the second wait on")
	}
	once, endOnce := context.WithCancel(t.Context())
	wait(once)
	word := cancelled
	endOnce()
	wait(kept)
	wait(kept)
	if word == cancelled || word.Load() != 0 {
		t.Error("a context of one wait is listened to after it")
	}
	end()
	until(t, "the kept context's end is seen", func() bool { return cancelled.Load() == 1 })
	if err := c.Wait(kept); err != context.Canceled {
		t.Errorf("a wait with it returns %v", err)
	}
	wait(context.Background())
	if cancelled != nil {
		t.Error("a wait without end has something to be ended by")
	}
}

// To open a ring measures nothing, which would take more CPU time than all the rest of
// an attach; what another process has measured is believed up to a bound.
func TestSpinIsMeasuredOnce(t *testing.T) {
	if i := Adaptive.Start(); i.budget != 0 {
		t.Errorf("a loop that was never used spins for %d ticks", i.budget)
	}
	i := Adaptive.Start()
	i.Again()
	if i.budget == 0 || i.budget != SpinTicks() {
		t.Errorf("a loop in use spins for %d ticks, and not for %d", i.budget, SpinTicks())
	}
	if runtime.NumCPU() < 2 || runtime.GOMAXPROCS(0) < 2 {
		if i := Adaptive.startAt(1000); i.budget != 1 {
			t.Errorf("on one CPU it spins for %d ticks", i.budget)
		}
		return
	}
	for given, want := range map[uint64]uint64{0: 0, 1000: 1000, 1 << 60: mostSpin} {
		if i := Adaptive.startAt(given); i.budget != want {
			t.Errorf("told %d it spins for %d ticks", given, i.budget)
		}
	}
}
