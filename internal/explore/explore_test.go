//go:build shmsim

package explore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

// The cases here are small classics: each is explored right and with the
// mistake that it is known for.

func share[T any](r *Run) *T {
	m := new(struct {
		_ [0]uint64 // aligns it
		t T
	})
	r.Memory(unsafe.Pointer(m), uint64(unsafe.Sizeof(*m)))
	return &m.t
}

func counter(add func(*shm.Word64)) Case {
	return Case{Name: "counter", Preemptions: Unbounded, Setup: func(r *Run) {
		m := share[struct{ n, other shm.Word64 }](r)
		for _, name := range []string{"a", "b", "c"} {
			r.Go(name, func(*Task) { add(&m.n) })
		}
		r.Check(func() error {
			if got := m.n.Load(); got != 3 {
				return fmt.Errorf("counted %d of 3", got)
			}
			return nil
		})
	}}
}

func addByStore(w *shm.Word64) { w.Store(w.Load() + 1) }

func addByCAS(w *shm.Word64) {
	for {
		if v := w.Load(); w.CAS(v, v+1) {
			return
		}
	}
}

// good expects that everything was tried and nothing found.
func good(t *testing.T, r Result) Result {
	t.Helper()
	t.Log(r)
	if r.Violation != nil {
		t.Fatal(r.Violation)
	}
	if !r.Complete {
		t.Fatal("not complete")
	}
	return r
}

// bad expects a violation with text in it, and that its schedule repeats it.
func bad(t *testing.T, c Case, r Result, text string) Result {
	t.Helper()
	t.Log(r)
	if r.Violation == nil {
		t.Fatal("not found")
	}
	if !strings.Contains(r.Violation.Err.Error(), text) {
		t.Fatalf("found something else than %q: %v", text, r.Violation)
	}
	again := Replay(t, c, r.Violation.Schedule)
	if again == nil || again.Err.Error() != r.Violation.Err.Error() {
		t.Fatalf("the schedule %q gives %v, not %v", r.Violation.Schedule, again, r.Violation.Err)
	}
	if again.Trace == "" || again.Trace != r.Violation.Trace {
		t.Fatalf("another trace:\n%s\nthan\n%s", again.Trace, r.Violation.Trace)
	}
	return r
}

func TestLostUpdate(t *testing.T) {
	c := counter(addByStore)
	r := bad(t, c, Exhaust(t, c), "counted 2 of 3")
	if r.Bound != 0 {
		t.Error("needed more than one preemption")
	}
	t.Log("\n", r.Violation)
	bad(t, c, Random(t, c, 1), "of 3")
	good(t, Exhaust(t, counter(addByCAS)))
}

// TestCounts holds the search to what can be counted by hand.
func TestCounts(t *testing.T) {
	// Two tasks of two steps each on one word, no reduction by state: 6
	// orders. Their values differ in all but the mirror images.
	orders := map[string]bool{}
	c := Case{Name: "orders", Preemptions: Unbounded, EveryAccess: true, Setup: func(r *Run) {
		m := share[struct{ w shm.Word64 }](r)
		order := ""
		for i, name := range []string{"a", "b"} {
			r.Go(name, func(t *Task) {
				for k := range 2 {
					t.Event(uint64(k))
					order += name
				}
				m.w.Load()
				_ = i
			})
		}
		r.Check(func() error { orders[order] = true; return nil })
	}}
	r := good(t, Exhaust(t, c))
	if got := slices.Sorted(maps.Keys(orders)); fmt.Sprint(got) != "[aabb abab abba baab baba bbaa]" {
		t.Error("orders tried:", got)
	}
	first := r
	second := good(t, Exhaust(t, c))
	if first.Took, second.Took = 0, 0; first != second {
		t.Errorf("the same search differs:\n%v\n%v", first, second)
	}
}

// TestReduction compares the outcomes found with and without each shortcut.
func TestReduction(t *testing.T) {
	for seed := range uint64(12) {
		for _, bound := range []int{1, Unbounded} {
			var outcomes [4]map[string]bool
			var runs [4]int
			for i := range outcomes {
				outcomes[i] = map[string]bool{}
				c := Case{Name: "program", Preemptions: bound, Deaths: 1, EveryAccess: i&1 == 0, Forget: i&2 != 0,
					Setup: func(r *Run) {
						program(r, seed, outcomes[i])
					}}
				r := Exhaust(t, c)
				if !r.Complete || r.Violation != nil {
					t.Fatal(seed, r)
				}
				runs[i] = r.Runs
				if !maps.Equal(outcomes[0], outcomes[i]) {
					t.Fatalf("seed %d, bound %d: %d outcomes with shortcuts %d, %d without", seed, bound,
						len(outcomes[i]), i, len(outcomes[0]))
				}
			}
			if seed < 3 {
				t.Logf("bound %d: %d outcomes; runs without shortcuts and with: %v", bound, len(outcomes[0]), runs)
			}
		}
	}
}

// program makes tasks with random accesses to few words.
func program(r *Run, seed uint64, outcomes map[string]bool) {
	m := share[struct {
		w    [5]shm.Word64
		died shm.Word64
	}](r)
	rng := rand.New(rand.NewPCG(seed, 2))
	var saw [3]string
	for i := range 2 + rng.IntN(2) {
		type step struct{ op, word, val int }
		var steps []step
		for range 3 + rng.IntN(3) {
			steps = append(steps, step{rng.IntN(3), rng.IntN(5), rng.IntN(3)})
		}
		var died func()
		if i == 0 {
			died = func() { m.died.Store(1) }
		}
		r.Process(fmt.Sprint("task", i), died).Go(func(t *Task) {
			s := ""
			for _, st := range steps {
				w := &m.w[st.word]
				switch st.op {
				case 0:
					s += fmt.Sprint(w.Load())
				case 1:
					w.Store(uint64(st.val))
				case 2:
					s += fmt.Sprint(w.CAS(uint64(st.val), 7))
				}
			}
			if i > 0 {
				s += fmt.Sprint("d", m.died.Load())
			}
			e := uint64(7)
			for _, c := range s {
				e = mix(e, uint64(c))
			}
			t.Event(e >> 8)
			saw[i] = s
		})
	}
	r.Check(func() error {
		s := fmt.Sprint(saw[1], " ", saw[2], " ", r.Died())
		if len(r.Died()) == 0 {
			s += saw[0]
		}
		for i := range m.w {
			s += fmt.Sprint(" ", m.w[i].Load())
		}
		outcomes[s] = true
		return nil
	})
}

// door is a thing to wait for.
func door(pass func(w *shm.Word32)) Case {
	return Case{Name: "door", Preemptions: Unbounded, Setup: func(r *Run) {
		m := share[struct{ open shm.Word32 }](r)
		r.Go("opens", func(*Task) { m.open.Store(1); m.open.Wake(shm.All) })
		r.Go("waits", func(*Task) { pass(&m.open) })
		r.Go("waits too", func(*Task) { pass(&m.open) })
	}}
}

func TestLostWakeUp(t *testing.T) {
	c := door(func(w *shm.Word32) {
		for w.Load() == 0 {
			shm.WaitAny(time.Second, shm.Watch{W: w, Val: w.Load()}) // should be 0: it may have opened since
		}
	})
	r := bad(t, c, Exhaust(t, c), "everybody waits")
	t.Log("\n", r.Violation)
	good(t, Exhaust(t, door(func(w *shm.Word32) {
		for w.Load() == 0 {
			shm.WaitAny(time.Second, shm.Watch{W: w, Val: 0})
		}
	})))
	good(t, Exhaust(t, door(func(w *shm.Word32) {
		for w.Load() == 0 {
			shm.Pause(1)
		}
	})))
	// The opener wakes one where two sleep.
	c = door(func(w *shm.Word32) {
		for w.Load() == 0 {
			shm.WaitAny(time.Second, shm.Watch{W: w, Val: 0})
		}
	})
	c.Setup = func(r *Run) {
		m := share[struct{ open shm.Word32 }](r)
		r.Go("opens", func(*Task) { m.open.Store(1); m.open.Wake(1) })
		for range 2 {
			r.Go("waits", func(*Task) {
				for m.open.Load() == 0 {
					shm.WaitAny(time.Second, shm.Watch{W: &m.open, Val: 0})
				}
			})
		}
	}
	bad(t, c, Exhaust(t, c), "everybody waits")
	// Slices hide it, and are counted.
	setup := c.Setup
	c.Setup = func(r *Run) { setup(r); r.AllowSlices(func() bool { return true }) }
	bad(t, c, Exhaust(t, c), "lost wake-up")
	c.Setup = func(r *Run) {
		setup(r)
		r.AllowSlices(func() bool { return true })
		r.AllowLostWakes(func() bool { return true })
	}
	if r := good(t, Exhaust(t, c)); r.Excused == 0 {
		t.Error("no lost wake-up was counted")
	}
}

func TestDeadlock(t *testing.T) {
	lock := func(w *shm.Word32) {
		for !w.CAS(0, 1) {
			shm.WaitAny(time.Second, shm.Watch{W: w, Val: 1})
		}
	}
	unlock := func(w *shm.Word32) { w.Store(0); w.Wake(1) }
	philosophers := func(turned bool) Case {
		return Case{Name: "forks", Preemptions: 2, Setup: func(r *Run) {
			m := share[struct{ fork [2]shm.Word32 }](r)
			r.Go("a", func(*Task) { lock(&m.fork[0]); lock(&m.fork[1]); unlock(&m.fork[1]); unlock(&m.fork[0]) })
			r.Go("b", func(*Task) {
				x, y := 0, 1
				if turned {
					x, y = 1, 0
				}
				lock(&m.fork[x])
				lock(&m.fork[y])
				unlock(&m.fork[y])
				unlock(&m.fork[x])
			})
		}}
	}
	c := philosophers(true)
	bad(t, c, Exhaust(t, c), "everybody waits")
	good(t, Exhaust(t, philosophers(false)))

	c = Case{Name: "spin", Setup: func(r *Run) {
		m := share[struct{ w shm.Word32 }](r)
		r.Go("a", func(*Task) {
			for m.w.Load() == 0 {
				shm.Pause(1)
			}
		})
	}}
	bad(t, c, Exhaust(t, c), "everybody waits: a spins")
	c.Setup = func(r *Run) {
		m := share[struct{ w shm.Word32 }](r)
		for _, name := range []string{"a", "b"} {
			r.Go(name, func(*Task) {
				for m.w.Load() == 0 {
					shm.Pause(1)
				}
			})
		}
	}
	bad(t, c, Exhaust(t, c), "everybody waits: a spins; b spins")
	c.Setup = func(r *Run) {
		m := share[struct{ w shm.Word32 }](r)
		for _, name := range []string{"a", "b"} {
			r.Go(name, func(*Task) {
				for m.w.Swap(1-m.w.Load()) != 2 {
				}
			})
		}
	}
	c.MaxSteps = 1000
	bad(t, c, Exhaust(t, c), "livelock")
}

// shelf is a free list under a lock, with a journal: the smallest thing that
// a death can spoil.
type shelf struct {
	owner  shm.Word32 // of the list: process + 1
	head   shm.Word32 // block + 1
	next   [3]shm.Word32
	intent [3]shm.Word32 // by process: block + 1 on its way
	has    [3]shm.Word32 // by process: block + 1
	dead   [3]shm.Word32 // by process: 1 dead, 2 repaired
}

func (s *shelf) lock(me uint32) {
	for {
		o := s.owner.Load()
		if o == 0 && s.owner.CAS(0, me+1) {
			return
		}
		if o == 0 {
			continue
		}
		if s.dead[o-1].Load() == 1 {
			s.repair(o - 1)
			continue
		}
		shm.WaitAny(time.Second, shm.Watch{W: &s.owner, Val: o}, shm.Watch{W: &s.dead[o-1], Val: 0})
	}
}

func (s *shelf) unlock() { s.owner.Store(0); s.owner.Wake(1) }

// take pops a block. journalled writes down which before it does.
func (s *shelf) take(me uint32, journalled bool) {
	s.lock(me)
	b := s.head.Load()
	if journalled {
		s.intent[me].Store(b)
	}
	s.head.Store(s.next[b-1].Load())
	s.has[me].Store(b)
	if journalled {
		s.intent[me].Store(0)
	}
	s.unlock()
}

// repair settles what a dead owner of the lock has begun. Two may do it at
// the same time: it gives the block back only under the lock of the dead.
func (s *shelf) repair(who uint32) {
	if b := s.intent[who].Load(); b != 0 && s.head.Load() != b {
		s.has[who].Store(b)
	}
	s.intent[who].Store(0)
	s.owner.CAS(who+1, 0) // before it is dead no more, or nobody would do it after our own death
	s.owner.Wake(shm.All)
	s.dead[who].Store(2)
}

func shelves(journalled bool, deaths int, sequential bool) Case {
	return Case{Name: "shelf", Preemptions: 2, Deaths: deaths, Sequential: sequential, Setup: func(r *Run) {
		s := share[shelf](r)
		s.head.Store(1)
		s.next[0].Store(2)
		s.next[1].Store(3)
		for i := range uint32(2) {
			r.Process(fmt.Sprint("p", i), func() {
				s.dead[i].CAS(0, 1)
				s.dead[i].Wake(1)
			}).Go(func(*Task) { s.take(i, journalled) })
		}
		r.Check(func() error {
			if o := s.owner.Load(); o != 0 {
				s.lock(2)
				s.unlock()
			}
			seen := map[uint32]bool{}
			for b := s.head.Load(); b != 0; b = s.next[b-1].Load() {
				seen[b] = true
			}
			for i := range s.has {
				if b := s.has[i].Load(); b != 0 {
					if seen[b] {
						return fmt.Errorf("block %d is in two places", b)
					}
					seen[b] = true
				}
			}
			if len(seen) != 3 {
				return fmt.Errorf("%d blocks leaked", 3-len(seen))
			}
			return nil
		})
	}}
}

func TestDeathInAllocator(t *testing.T) {
	for _, sequential := range []bool{true, false} {
		c := shelves(false, 1, sequential)
		r := bad(t, c, Exhaust(t, c), "leaked")
		if sequential {
			t.Log("\n", r.Violation)
		}
		bad(t, c, Random(t, c, 3), "leaked")
		r = good(t, Exhaust(t, shelves(true, 1, sequential)))
		if r.Deaths == 0 {
			t.Error("nobody died")
		}
		// The second process repairs the first one and dies on the way; the
		// check repairs it.
		good(t, Exhaust(t, shelves(true, 2, sequential)))
	}
}

// TestSlices: the parts of a search try together what the whole search tries,
// and each finds what is to be found with it.
func TestSlices(t *testing.T) {
	whole := good(t, Exhaust(t, shelves(true, 2, true)))
	for _, n := range []int{2, 5} {
		first, last, deaths := 0, 0, 0
		for i := range n {
			c := shelves(true, 2, true)
			c.Slices, c.Slice = n, i
			deaths += good(t, Exhaust(t, c)).Deaths
			c = shelves(false, 1, true)
			c.Slices, c.Slice = n, i
			if r := Exhaust(t, c); r.Violation != nil {
				if again := Replay(t, c, r.Violation.Schedule); again == nil {
					t.Errorf("part %d of %d: its schedule does not repeat the violation", i, n)
				}
				first, last = first+1, i
			}
		}
		// A part that dies nowhere in common with another repeats only the runs
		// after the first death, and a state that two parts meet is two.
		if deaths < whole.Deaths {
			t.Errorf("%d parts: %d deaths, the whole search %d", n, deaths, whole.Deaths)
		}
		if first == 0 {
			t.Errorf("%d parts: none finds the leak", n)
		}
		t.Logf("%d parts: %d deaths of %d, %d parts find the leak, the last is part %d", n, deaths, whole.Deaths,
			first, last)
	}
}

// stack is Treiber's: right with a count in the head, wrong (ABA) without.
type stack struct {
	head shm.Word64 // node + 1 | count << 32
	next [3]shm.Word64
}

func (s *stack) pop(count uint64) uint64 {
	for {
		h := s.head.Load()
		n := h & 0xffffffff
		if n == 0 {
			return 0
		}
		if s.head.CAS(h, s.next[n-1].Load()|(h>>32+count)<<32) {
			return n
		}
	}
}

func (s *stack) push(n, count uint64) {
	for {
		h := s.head.Load()
		s.next[n-1].Store(h & 0xffffffff)
		if s.head.CAS(h, n|(h>>32+count)<<32) {
			return
		}
	}
}

func TestABA(t *testing.T) {
	c := func(count uint64) Case {
		return Case{Name: "stack", Preemptions: Unbounded, Setup: func(r *Run) {
			s := share[stack](r)
			s.head.Store(1)
			s.next[0].Store(2)
			s.next[1].Store(3)
			var a, b [3]uint64
			r.Go("a", func(*Task) { a[0] = s.pop(count) })
			r.Go("b", func(*Task) {
				b[0] = s.pop(count)
				b[1] = s.pop(count)
				if b[0] != 0 {
					s.push(b[0], count)
					b[0] = 0
				}
			})
			r.Check(func() error {
				seen := map[uint64]int{}
				for _, n := range append(a[:], b[:]...) {
					if n != 0 {
						seen[n]++
					}
				}
				for i, n := 0, s.head.Load()&0xffffffff; n != 0; n = s.next[n-1].Load() {
					seen[n]++
					if i++; i > 3 {
						return errors.New("the stack is a circle")
					}
				}
				for n := uint64(1); n <= 3; n++ {
					if seen[n] != 1 {
						return fmt.Errorf("node %d is in %d places", n, seen[n])
					}
				}
				return nil
			})
		}}
	}
	wrong := c(0)
	bad(t, wrong, Exhaust(t, wrong), "places")
	good(t, Exhaust(t, c(1)))
}

// TestFrozen has a death that others hear of late: the waiter must be woken
// by the kernel's word, and not before.
func TestFrozen(t *testing.T) {
	outcomes := map[string]bool{}
	c := Case{Name: "late word", Preemptions: Unbounded, Deaths: 1, Setup: func(r *Run) {
		m := share[struct {
			w, _, live shm.Word32
			n          shm.Word64
		}](r)
		r.Process("dies", func() { m.live.Store(1); m.live.Wake(1) }).Go(func(*Task) { m.w.Store(1); m.w.Wake(1) })
		saw := ""
		r.Go("waits", func(t *Task) {
			for m.w.Load() == 0 && m.live.Load() == 0 {
				switch shm.WaitAny(time.Second, shm.Watch{W: &m.w}, shm.Watch{W: &m.live}) {
				case shm.Woken:
					saw = "woken "
				case shm.TimedOut:
					t.Failf("timed out")
				}
			}
			saw += fmt.Sprint(m.w.Load(), m.live.Load())
		})
		r.Check(func() error { outcomes[fmt.Sprint(saw, r.Died())] = true; return nil })
	}}
	r := Exhaust(t, c)
	t.Log(r)
	// The one who dies between its store and its wake-up leaves the other
	// asleep until the kernel's word.
	want := []string{"0 1[dies]", "1 0[]", "1 0[dies]", "1 1[dies]", "woken 0 1[dies]", "woken 1 0[]",
		"woken 1 0[dies]", "woken 1 1[dies]"}
	if got := slices.Sorted(maps.Keys(outcomes)); !slices.Equal(got, want) {
		t.Errorf("outcomes %q", got)
	}
	good(t, r)
}

// TestNotDeterministic: a case that depends on something else is told so.
func TestNotDeterministic(t *testing.T) {
	n := 0
	r := Exhaust(t, Case{Name: "dice", Preemptions: Unbounded, Setup: func(r *Run) {
		m := share[struct{ w [8]shm.Word64 }](r)
		for range 2 {
			r.Go("a", func(*Task) {
				n++
				m.w[n*7%5].Store(1)
				m.w[n*3%5].Load()
				m.w[n%5].Store(1)
			})
		}
	}})
	t.Log(r)
	if r.Diverged == 0 || r.Complete {
		t.Error("not noticed")
	}
}

func TestPanicIsViolation(t *testing.T) {
	c := Case{Name: "panic", Preemptions: 1, Setup: func(r *Run) {
		m := share[struct{ w shm.Word64 }](r)
		r.Go("a", func(*Task) { m.w.Store(1); m.w.Store(0) })
		r.Go("b", func(*Task) {
			if m.w.Load() == 1 {
				panic("seen")
			}
		})
	}}
	r := Exhaust(t, c)
	if r.Violation == nil || !strings.Contains(r.Violation.Err.Error(), "b: panic: seen") {
		t.Fatal(r)
	}
}

func TestBudget(t *testing.T) {
	c := counter(addByCAS)
	c.MaxRuns = 70
	r := Exhaust(t, c)
	if r.Complete || r.Runs != 70 {
		t.Error(r)
	}
	a, b := Random(t, c, 5), Random(t, c, 5)
	if a.Took, b.Took = 0, 0; a != b {
		t.Errorf("one seed, two results:\n%v\n%v", a, b)
	}
}

// BenchmarkSwitch measures a switch at each access.
func BenchmarkAccess(b *testing.B) {
	b.Run("same task", func(b *testing.B) { benchmark(b, false) })
	b.Run("switch", func(b *testing.B) { benchmark(b, true) })
}

type pingPong struct{ on bool }

func (p pingPong) choose(_ *Run, opts []option, _ uint64) int {
	for i, o := range opts {
		if p.on && o.kind == runs {
			return i
		}
	}
	return 0
}

func benchmark(b *testing.B, on bool) {
	c := Case{EveryAccess: true, MaxSteps: 1 << 40, Setup: func(r *Run) {
		m := share[struct{ w [64]shm.Word64 }](r)
		for range 2 {
			r.Go("a", func(*Task) {
				for i := range b.N / 2 {
					m.w[i&63].Store(uint64(i))
				}
			})
		}
	}}
	x := &explorer{c: &c, bound: Unbounded}
	x.execute(pingPong{on}, nil)
	for _, w := range x.workers {
		w.end()
	}
}

// TestPrivateWord: goroutines of one process wait for each other by a word of its own.
func TestPrivateWord(t *testing.T) {
	private := func(raise bool) Case {
		return Case{Name: "private word", Preemptions: Unbounded, Setup: func(r *Run) {
			m := share[struct{ n, other shm.Word64 }](r)
			mine := new(shm.Word32)
			p := r.Process("p", nil)
			p.Go(func(*Task) {
				for mine.Load() == 0 {
					shm.WaitAny(time.Second, shm.Watch{W: mine, Val: 0})
				}
				m.n.Store(m.n.Load() * 2)
			})
			p.Go(func(*Task) {
				m.n.Store(1)
				if raise {
					mine.Raise()
				}
			})
			r.Check(func() error {
				if got := m.n.Load(); got != 2 {
					return fmt.Errorf("%d, not 2", got)
				}
				return nil
			})
		}}
	}
	good(t, Exhaust(t, private(true)))
	bad(t, private(false), Exhaust(t, private(false)), "everybody waits")
}

// TestForeignGoroutine: a context that ends when nobody runs the case any more sets a
// word in a goroutine of its own. That is no access, whatever the explorer is at.
func TestForeignGoroutine(t *testing.T) {
	asked := 0
	shm.Sim = counting{&asked}
	defer func() { shm.Sim = nil }()
	ctx, cancel := context.WithCancel(context.Background())
	w := new(shm.Word32)
	done := make(chan struct{})
	context.AfterFunc(ctx, func() {
		w.Raise()
		close(done)
	})
	cancel()
	<-done
	if asked != 0 {
		t.Errorf("the explorer was asked %d times", asked)
	}
	if w.Load() != 1 || asked != 1 {
		t.Error("the word was not set, or a load goes unseen")
	}
}

type counting struct{ n *int }

func (c counting) Access(shm.Op, unsafe.Pointer)      { *c.n++ }
func (c counting) Spin()                              { *c.n++ }
func (c counting) WaitAny([]shm.Watch) shm.WaitResult { *c.n++; return shm.TimedOut }
func (c counting) Wake(unsafe.Pointer, int)           { *c.n++ }
