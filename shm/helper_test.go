package shm

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// A minute: the test's areas have nothing for JoinOptions.Shared to look at.
func init() { lostProof = int(time.Minute / waitSlice) }

// testArea is what the tests keep in AreaData: a latch, and a pair of
// counters under it that are equal whenever nobody holds it.
type testArea struct {
	latch Latch
	_     [60]byte
	a     Word64
	_     [56]byte
	b     Word64
	_     [56]byte
	bell  Word32
	_     [60]byte
	seen  Word32 // by repairs: how many there were
	_     [60]byte
}

const testLayout = "shm test layout 1"

func testConfig(slots uint32) Config {
	return Config{
		Cluster: "test", PNN: 3, Slots: slots, Layout: testLayout,
		Areas:  []AreaSpec{{AreaNode, 4096}, {AreaData, 1 << 16}},
		Params: [8]uint64{7, 6, 5, 4, 3, 2, 1, 0},
	}
}

func areaOf(s *Segment) *testArea {
	off, _ := s.Area(AreaData)
	return At[testArea](s.Region(), off)
}

// update is the critical section of the tests: torn if the process dies in it.
func (a *testArea) update() {
	a.a.Store(a.a.Load() + 1)
	a.b.Store(a.b.Load() + 1)
}

// repairArea is a Repair: it finishes the update of whichever handle of the
// slot holds the latch, and only then releases it.
func repairArea(c *Client, slot uint32) error {
	a := areaOf(c.Segment())
	for i := range HandleID(HandlesPerSlot) {
		id := HandleID(slot<<4) | i
		if a.latch.Owner() == id {
			a.b.Store(a.a.Load())
		}
		a.latch.Break(id)
	}
	a.seen.Store(a.seen.Load() + 1)
	return nil
}

func heapSegment(t testing.TB, slots uint32) *Segment {
	t.Helper()
	s, err := NewHeap(testConfig(slots), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func join(t testing.TB, s *Segment, repair func(*Client, uint32) error) *Client {
	t.Helper()
	c, err := s.Join(context.Background(), JoinOptions{Name: t.Name(), Repair: repair})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Leave() }) // a second Leave does nothing
	return c
}

// until waits for a condition that another goroutine or process brings about.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("waited a minute in vain: %s", what)
		}
		runtime.Gosched()
	}
}
