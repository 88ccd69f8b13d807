//go:build shmsim

package explore

import (
	"fmt"
	"iter"
	"runtime/debug"
)

// worker is a coroutine that runs tasks, one after another. A switch to a
// coroutine and back takes 70 ns where a pair of channels takes 285: the
// runtime hands over the thread without its scheduler.
type worker struct {
	t    *Task
	next func() (struct{}, bool)
	end  func()
	park func(struct{}) bool
}

// errUnwound is what a task panics with to leave its stack.
type errUnwound struct{}

var unwound any = errUnwound{}

func newWorker() *worker {
	w := &worker{}
	w.next, w.end = iter.Pull(func(yield func(struct{}) bool) {
		w.park = yield
		for {
			w.run()
			if !yield(struct{}{}) {
				return
			}
		}
	})
	return w
}

// run runs the task to its end: its return, its death, or the run's.
func (w *worker) run() {
	t := w.t
	defer func() {
		if e := recover(); e != nil && e != unwound {
			t.r.fail(fmt.Errorf("%s: panic: %v\n%s", t.name, e, debug.Stack()))
		}
		t.onStack = false
		if t.state != gone {
			t.state = finished
			t.proc.finished()
		}
	}()
	t.onStack = true
	t.body(t)
	t.r.deathPoint(t, opEnd)
}

// yield lets the loop go on with another task.
func (t *Task) yield() {
	t.w.park(struct{}{})
	if t.unwind {
		panic(unwound)
	}
}

// leave ends the task at once. Deferred functions run, so that locks which
// the kernel would release are released; they can't reach shared memory.
func (t *Task) leave() {
	t.unwind = true
	panic(unwound)
}

// finished forgets what a process has seen that will make no access any more.
func (p *Process) finished() {
	for _, t := range p.tasks {
		if t.state != finished {
			return
		}
	}
	if p.r.c.Forget {
		p.hist = finishedHist
	}
}
