//go:build shmsim

package ltdb

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

// TestCancellerIsNoTask: the end of a context comes in a goroutine that no task of the
// explorer has started, maybe when the run is over. It asks no scheduler.
func TestCancellerIsNoTask(t *testing.T) {
	s, err := OpenHeap(Config{Size: 4 << 20, Slots: 2, MaxValue: 200})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(bg)
	w, stop := s.canceller(ctx)
	defer stop()
	var asked atomic.Int64
	shm.Sim = foreign{&asked}
	cancel()
	raised := false
	// polls: package context tells it in a goroutine of its own
	for end := time.Now().Add(10 * time.Second); !raised && time.Now().Before(end); time.Sleep(time.Millisecond) {
		raised = atomic.LoadUint32((*uint32)(unsafe.Pointer(w))) == 1
	}
	shm.Sim = nil
	if !raised {
		t.Error("the end of the context was not told")
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the scheduler was asked %d times by a goroutine that is no task", n)
	}
}

// foreign counts who asks it.
type foreign struct{ n *atomic.Int64 }

func (f foreign) Access(shm.Op, unsafe.Pointer) { f.n.Add(1) }
func (f foreign) Spin()                         { f.n.Add(1) }
func (f foreign) Wake(unsafe.Pointer, int)      { f.n.Add(1) }
func (f foreign) WaitAny([]shm.Watch) shm.WaitResult {
	f.n.Add(1)
	return shm.TimedOut
}
