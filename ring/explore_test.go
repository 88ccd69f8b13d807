//go:build shmsim

package ring

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/mainzdb/mainz/internal/explore"
	"github.com/mainzdb/mainz/shm"
)

// The explorer runs the code of this package under a scheduler that decides at
// each access to shared memory who goes on and whose process dies
// (internal/explore). After each run: what was acknowledged must have been
// delivered, whole, in order, and once, unless doc.go allows a second time;
// and the ring must work for those who come next.

const (
	simCells = 2
	rings    = 2
)

// Places in the memory of a run, behind the rings.
const (
	bellAt = rings * (headSize + simCells*cellSize) // a multiple of 128
	wordAt = bellAt + BellSize
	words  = 4
)

// The states of a process, as the others see it: the kernel stores simDead.
const (
	simDead = iota
	simAlive
	simEnded
)

var exploreFull = flag.Bool("explore.full", false, "explore: any number of preemptions, some minutes each")

// rig is one run.
type rig struct {
	*explore.Run
	r         *shm.Region
	acked     []uint64            // commits that have returned
	delivered map[uint64]int      // how often
	order     map[uint64][]uint64 // by producer: what was delivered, first times only
	fixed     []uint64            // delivered by a Poll that has returned
	mayDie    map[*explore.Task]bool
}

func newRig(er *explore.Run) *rig {
	const size = wordAt + words*64
	w := &rig{Run: er, r: shm.Heap(size), delivered: map[uint64]int{}, order: map[uint64][]uint64{},
		mayDie: map[*explore.Task]bool{}}
	for i := range rings {
		must(0, Init(w.r, w.ring(i), simCells))
	}
	for i := range words {
		w.word(i).Store(simAlive)
	}
	er.Memory(unsafe.Pointer(shm.At[byte](w.r, 0)), size)
	// Of a message's words the first and the last are enough to see it torn.
	for i := range rings {
		v := must(look(w.r, w.ring(i), simCells))
		for k := range v.cells {
			er.Ignore(unsafe.Pointer(&v.cells[k].head[1]))
			for d := range v.cells[k].data[:InlineSize/8-1] {
				er.Ignore(unsafe.Pointer(&v.cells[k].data[d]))
			}
		}
	}
	return w
}

func (w *rig) ring(i int) shm.Offset { return uint64(i) * Size(simCells) }

// word is the liveness word of a process, or the bell's FIFO.
func (w *rig) word(i int) *shm.Word32 { return shm.At[shm.Word32](w.r, wordAt+uint64(i)*64) }

const fifoWord = words - 1

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// process is one that the kernel tells of when it dies.
func (w *rig) process(name string, i int) *explore.Process {
	return w.Process(name, func() {
		w.word(i).Store(simDead)
		w.word(i).Wake(shm.All)
	})
}

// ends tells the others that a process has ended in good order.
func (w *rig) ends(i int) {
	w.word(i).Swap(simEnded)
	w.word(i).Wake(shm.All)
}

// options are those of an end that watches process i, none if i is negative.
func (w *rig) options(i int) Options {
	return Options{Idle: Sleep, Wait: func(x shm.Watch, cancel *shm.Word32) error {
		var live shm.Watch
		if i >= 0 {
			if live = (shm.Watch{W: w.word(i), Val: simAlive}); w.word(i).Load() == simDead {
				return nil
			}
		}
		shm.WaitAny(time.Second, x, live, shm.Watch{W: cancel, Val: 0})
		return nil
	}}
}

func (w *rig) producer(i int, opts Options) *Producer {
	return must(OpenProducer(w.r, w.ring(i), simCells, opts))
}

func (w *rig) consumer(i int, opts Options) *Consumer {
	return must(OpenConsumer(w.r, w.ring(i), simCells, opts))
}

// send commits message n, of producer n / 100, and acknowledges it.
func (w *rig) send(t *explore.Task, p *Producer, n uint64) {
	must(p.Claim(context.Background())).Commit(message(n))
	w.told(t, n)
	w.acked = append(w.acked, n)
}

// told notes what the checks rely on. What the living have seen is part of a
// run's state in any case; of the dead only what they have told is.
func (w *rig) told(t *explore.Task, what uint64) {
	if w.mayDie[t] {
		t.Event(what)
	}
}

// poll polls once.
func (w *rig) poll(t *explore.Task, c *Consumer, limit int) int {
	var got []uint64
	n := c.Poll(limit, func(m *Message) {
		if !intact(m) {
			t.Failf("message is not whole: %v", *m)
		}
		n := m.Head[0]
		w.told(t, 1000+n)
		if w.delivered[n]++; w.delivered[n] == 1 {
			w.order[n/100] = append(w.order[n/100], n)
		}
		if slices.Contains(w.fixed, n) {
			t.Failf("message %d is delivered twice", n)
		}
		got = append(got, n)
	})
	if len(got) > 0 {
		w.told(t, 2000+got[0])
		w.fixed = append(w.fixed, got...)
	}
	return n
}

// outcome checks what came of all messages. again says whether some may have
// been delivered twice.
func (w *rig) outcome(again bool) error {
	for _, n := range w.acked {
		if w.delivered[n] == 0 {
			return fmt.Errorf("message %d was acknowledged and not delivered", n)
		}
	}
	for n, times := range w.delivered {
		if times > 1 && !again {
			return fmt.Errorf("message %d was delivered %d times", n, times)
		}
	}
	for p, list := range w.order {
		if !slices.IsSorted(list) {
			return fmt.Errorf("messages of producer %d came as %v", p, list)
		}
	}
	return nil
}

// goesOn shows that a ring works for who comes next: more messages than cells.
func (w *rig) goesOn(i int) error {
	p, c := w.producer(i, Options{Idle: Sleep}), w.consumer(i, Options{Idle: Sleep})
	if p.h.claimed.Load() != c.pos {
		return fmt.Errorf("ring %d: claimed up to %d, delivered up to %d", i, p.h.claimed.Load(), c.pos)
	}
	for n := range uint64(simCells + 1) {
		claim, err := p.TryClaim()
		if err != nil {
			return fmt.Errorf("ring %d: claim %d afterwards: %w", i, n, err)
		}
		claim.Commit(message(n))
		got := 0
		if k := c.Poll(2, func(m *Message) { got = int(m.Head[0]) }); k != 1 || got != int(n) {
			return fmt.Errorf("ring %d: afterwards %d cells, message %d, want %d", i, k, got, n)
		}
	}
	return nil
}

// requests: goroutines of one process send, the process may die; the consumer
// repairs, and sleeps by the ring's futex.
func requests(goroutines, each, deaths int) explore.Case {
	return explore.Case{Name: "requests", Preemptions: 2, Deaths: deaths, Setup: func(er *explore.Run) {
		w := newRig(er)
		p := w.producer(0, w.options(-1))
		proc := w.process("client", 0)
		for g := range uint64(goroutines) {
			proc.Go(func(t *explore.Task) {
				w.mayDie[t] = deaths > 0
				for k := range uint64(each) {
					w.send(t, p, 100*g+k)
				}
			})
		}
		c := w.consumer(0, w.options(0))
		w.Go("dispatcher", func(t *explore.Task) {
			for {
				dead := w.word(0).Load() == simDead
				switch {
				case w.poll(t, c, 2) > 0:
				case len(w.fixed) == goroutines*each:
					return
				case dead:
					must(c.Repair())
					for w.poll(t, c, 2) > 0 {
					}
					return
				default:
					must(0, c.Wait(context.Background()))
				}
			}
		})
		w.Check(func() error {
			if err := w.outcome(false); err != nil {
				return err
			}
			if proc.Dead() {
				must(w.consumer(0, Options{Idle: Sleep}).Repair()) // it may have died at the end
			}
			return w.goesOn(0)
		})
	}}
}

// aborts: one goroutine aborts between the commits of another.
func aborts() explore.Case {
	return explore.Case{Name: "aborts", Preemptions: 2, Setup: func(er *explore.Run) {
		w := newRig(er)
		p := w.producer(0, w.options(-1))
		proc := w.process("client", 0)
		proc.Go(func(t *explore.Task) { w.send(t, p, 1) })
		proc.Go(func(t *explore.Task) {
			must(p.Claim(context.Background())).Abort()
		})
		c := w.consumer(0, w.options(0))
		w.Go("dispatcher", func(t *explore.Task) {
			for took := 0; took < 2; {
				n := w.poll(t, c, 2)
				if took += n; n == 0 {
					must(0, c.Wait(context.Background()))
				}
			}
		})
		w.Check(func() error {
			if err := w.outcome(false); err != nil {
				return err
			}
			return w.goesOn(0)
		})
	}}
}

// room: a producer fills the ring and waits for room, the consumer takes one
// cell at a time.
func room(messages int) explore.Case {
	return explore.Case{Name: "room", Preemptions: 2, Setup: func(er *explore.Run) {
		w := newRig(er)
		p := w.producer(0, w.options(-1))
		w.Go("client", func(t *explore.Task) {
			for n := range uint64(messages) {
				w.send(t, p, n)
			}
		})
		c := w.consumer(0, w.options(-1))
		w.Go("dispatcher", func(t *explore.Task) {
			for len(w.fixed) < messages {
				if w.poll(t, c, 1) == 0 {
					must(0, c.Wait(context.Background()))
				}
			}
		})
		w.Check(func() error {
			if err := w.outcome(false); err != nil {
				return err
			}
			return w.goesOn(0)
		})
	}}
}

// consumerDies: another one goes on where it left off, while the producer sends
// and waits for room.
func consumerDies(messages, limit, deaths int) explore.Case {
	return explore.Case{Name: "consumer dies", Preemptions: 2, Deaths: deaths, Setup: func(er *explore.Run) {
		w := newRig(er)
		p := w.producer(0, w.options(-1)) // no news of deaths: the next consumer has to wake it
		w.Go("client", func(t *explore.Task) {
			for n := range uint64(messages) {
				w.send(t, p, n)
			}
		})
		consume := func(t *explore.Task) {
			c := w.consumer(0, w.options(-1))
			for c.pos < uint64(messages) {
				if w.poll(t, c, limit) == 0 {
					must(0, c.Wait(context.Background()))
				}
			}
		}
		first := w.process("dispatcher", 1)
		first.Go(func(t *explore.Task) {
			w.mayDie[t] = deaths > 0
			consume(t)
			w.ends(1)
		})
		w.Go("next", func(t *explore.Task) {
			for w.word(1).Load() == simAlive {
				shm.WaitAny(time.Second, shm.Watch{W: w.word(1), Val: simAlive})
			}
			consume(t)
		})
		w.Check(func() error {
			if err := w.outcome(first.Dead()); err != nil {
				return err
			}
			return w.goesOn(0)
		})
	}}
}

// replies: the only producer may die, and the next one repairs and goes on. The
// consumer hears of no death.
func replies(messages, deaths int) explore.Case {
	return explore.Case{Name: "replies", Preemptions: 2, Deaths: deaths, Setup: func(er *explore.Run) {
		w := newRig(er)
		p := w.producer(0, w.options(-1))
		first := w.process("dispatcher", 1)
		first.Go(func(t *explore.Task) {
			w.mayDie[t] = deaths > 0
			for n := range uint64(messages) {
				w.send(t, p, n)
			}
			w.ends(1)
		})
		const last = 100
		w.Go("next", func(t *explore.Task) {
			for w.word(1).Load() == simAlive {
				shm.WaitAny(time.Second, shm.Watch{W: w.word(1), Val: simAlive})
			}
			p := w.producer(0, w.options(-1))
			must(p.Repair())
			w.send(t, p, last)
		})
		c := w.consumer(0, w.options(-1))
		w.Go("client", func(t *explore.Task) {
			for w.delivered[last] == 0 {
				if w.poll(t, c, 2) == 0 {
					must(0, c.Wait(context.Background()))
				}
			}
		})
		w.Check(func() error {
			if err := w.outcome(false); err != nil {
				return err
			}
			return w.goesOn(0)
		})
	}}
}

// simFIFO is the doorbell in simulated memory.
type simFIFO struct{ w *shm.Word32 }

func (f simFIFO) Ring() {
	f.w.Swap(1)
	f.w.Wake(shm.All)
}

func (f simFIFO) Drain() { f.w.Swap(0) }

// bells: two processes, each with its ring, and a consumer of both that sleeps
// on a bell. One of them may die. If silent, it is stopped for good instead:
// nobody is told, and the other one must not notice. Armed late is a mistake of
// the consumer's.
func bells(each, deaths int, silent, late bool) explore.Case {
	return explore.Case{Name: "bells", Preemptions: 2, Deaths: deaths, Setup: func(er *explore.Run) {
		w := newRig(er)
		w.word(fifoWord).Store(0)
		bell := func() *Bell { return must(OpenBell(w.r, bellAt, simFIFO{w.word(fifoWord)})) }
		var procs [rings]*explore.Process
		var cs [rings]*Consumer
		for i := range rings {
			opts := w.options(-1)
			opts.Bell = bell()
			p := w.producer(i, opts)
			switch {
			case !silent:
				procs[i] = w.process(fmt.Sprint("client ", i), i)
			case i == 0:
				procs[i] = w.Process("client 0", func() {})
			default:
				procs[i] = w.Process("client 1", nil)
			}
			procs[i].Go(func(t *explore.Task) {
				w.mayDie[t] = deaths > 0
				for k := range uint64(each) {
					w.send(t, p, 100*uint64(i)+k)
				}
			})
			cs[i] = w.consumer(i, Options{Idle: Sleep})
		}
		w.Go("dispatcher", func(t *explore.Task) {
			b := bell()
			var got [rings]int
			var done [rings]bool
			for {
				dead := [rings]bool{w.word(0).Load() == simDead, w.word(1).Load() == simDead}
				n := 0
				for i, c := range cs {
					k := w.poll(t, c, 2)
					n += k
					got[i] += k
					if k == 0 && dead[i] && !done[i] {
						must(c.Repair())
						for w.poll(t, c, 2) > 0 {
						}
						done[i] = true
						n++
					}
					done[i] = done[i] || got[i] == each
				}
				if done[0] && done[1] || silent && done[1] {
					return
				}
				if n > 0 {
					continue
				}
				ready := cs[0].Ready() || cs[1].Ready()
				b.Arm()
				if !late {
					ready = cs[0].Ready() || cs[1].Ready()
				}
				if !ready {
					ws := []shm.Watch{{W: w.word(fifoWord), Val: 0}}
					for i := range rings {
						if !done[i] {
							ws = append(ws, shm.Watch{W: w.word(i), Val: simAlive})
						}
					}
					shm.WaitAny(time.Second, ws...)
				}
				b.Disarm()
			}
		})
		w.Check(func() error {
			for i, p := range procs {
				if p.Dead() {
					c := w.consumer(i, Options{Idle: Sleep})
					must(c.Repair())
					for c.Poll(1, func(m *Message) {
						w.delivered[m.Head[0]]++
					}) > 0 {
					}
				}
			}
			if silent { // what the stopped one committed may have been left
				w.acked = slices.DeleteFunc(w.acked, func(n uint64) bool { return n < 100 })
			}
			if err := w.outcome(false); err != nil {
				return err
			}
			for i := range rings {
				if !silent || i == 1 {
					if err := w.goesOn(i); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}}
}

func explored(t *testing.T, c explore.Case) {
	t.Helper()
	c.MaxTime = 10 * time.Minute // a few seconds on an idle machine
	if *exploreFull {
		c.Preemptions, c.MaxTime = explore.Unbounded, time.Hour
	}
	r := explore.Exhaust(t, c)
	t.Log(r)
	if r.Violation != nil {
		t.Fatal(r.Violation)
	}
	if !r.Complete || r.Diverged > 0 {
		t.Error("not complete")
	}
}

func TestExploreRequests(t *testing.T) {
	t.Run("one sends two", func(t *testing.T) { explored(t, requests(1, 2, 1)) })
	t.Run("two send one", func(t *testing.T) { explored(t, requests(2, 1, 1)) })
	t.Run("aborts", func(t *testing.T) { explored(t, aborts()) })
}

func TestExploreRoom(t *testing.T) { explored(t, room(4)) }

func TestExploreConsumerDies(t *testing.T) {
	t.Run("one by one", func(t *testing.T) { explored(t, consumerDies(3, 1, 1)) })
	t.Run("two at a time", func(t *testing.T) { explored(t, consumerDies(3, 2, 1)) })
}

func TestExploreReplies(t *testing.T) { explored(t, replies(2, 1)) }

func TestExploreBells(t *testing.T) {
	t.Run("death", func(t *testing.T) { explored(t, bells(1, 1, false, false)) })
	t.Run("stopped", func(t *testing.T) { explored(t, bells(1, 1, true, false)) })
}

// caught expects that a mistake is found, and that without it the same schedule
// is sound.
func caught(t *testing.T, bug, text string, c explore.Case, sound *explore.Case) {
	t.Helper()
	Plant = bug
	defer func() { Plant = "" }()
	c.MaxTime = 5 * time.Minute
	r := explore.Exhaust(t, c)
	if r.Violation == nil {
		t.Fatalf("the planted bug %q was not caught: %v", bug, r)
	}
	if !strings.Contains(r.Violation.Err.Error(), text) {
		t.Fatalf("%q: found something else than %q: %v", bug, text, r.Violation)
	}
	t.Logf("caught in run %d: %v", r.Runs, r.Violation.Err)
	if again := explore.Replay(t, c, r.Violation.Schedule); again == nil ||
		again.Err.Error() != r.Violation.Err.Error() {
		t.Errorf("the schedule %q does not repeat it: %v", r.Violation.Schedule, again)
	}
	Plant = ""
	if sound == nil {
		sound = &c
	}
	if v := explore.Replay(t, *sound, r.Violation.Schedule); v != nil {
		t.Errorf("without the mistake: %v", v)
	}
}

func TestPlantedFill(t *testing.T)    { caught(t, "fill", "not whole", requests(1, 2, 0), nil) }
func TestPlantedLook(t *testing.T)    { caught(t, "look", "everybody waits", requests(1, 2, 0), nil) }
func TestPlantedWake(t *testing.T)    { caught(t, "wake", "everybody waits", requests(1, 2, 0), nil) }
func TestPlantedRepair(t *testing.T)  { caught(t, "repair", "acknowledged", requests(2, 1, 1), nil) }
func TestPlantedRelease(t *testing.T) { caught(t, "release", "not whole", room(4), nil) }
func TestPlantedRoom(t *testing.T)    { caught(t, "room", "everybody waits", room(4), nil) }
func TestPlantedFullLook(t *testing.T) {
	caught(t, "fulllook", "everybody waits", room(4), nil)
}
func TestPlantedOpen(t *testing.T) {
	caught(t, "open", "everybody waits", consumerDies(3, 1, 1), nil)
}
func TestPlantedOpenOdd(t *testing.T) {
	caught(t, "openodd", "everybody waits", consumerDies(3, 1, 1), nil)
}
func TestPlantedRepairWake(t *testing.T) {
	caught(t, "repairwake", "everybody waits", replies(2, 1), nil)
}
func TestPlantedBell(t *testing.T) {
	caught(t, "bell", "everybody waits", bells(1, 1, true, false), nil)
}
func TestPlantedLateBell(t *testing.T) {
	sound := bells(1, 0, false, false)
	caught(t, "", "everybody waits", bells(1, 0, false, true), &sound)
}
