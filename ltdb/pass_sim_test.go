//go:build shmsim

package ltdb

import (
	"testing"
	"unsafe"

	"github.com/mainzdb/mainz/shm"
)

type passWatch struct {
	t     *testing.T
	cells [2]uintptr // of X's slot
	entry unsafe.Pointer
	slept func()
	woken bool
	saw   []string
}

func (z *passWatch) Access(op shm.Op, p unsafe.Pointer) {
	if z.woken && op == shm.OpStore && uintptr(p) >= z.cells[0] && uintptr(p) < z.cells[1] {
		z.saw = append(z.saw, "cell")
	}
}
func (z *passWatch) Spin() {}
func (z *passWatch) WaitAny([]shm.Watch) shm.WaitResult {
	if !z.woken {
		shm.Sim = nil
		z.slept()
		shm.Sim = z
		z.woken = true
	}
	return shm.Woken
}
func (z *passWatch) Wake(p unsafe.Pointer, n int) {
	if z.woken && uintptr(p)&^7 == uintptr(z.entry) {
		z.saw = append(z.saw, "pass")
	}
}

// X sleeps, the record is deleted, X is woken. It has to pass the wake-up on
// before its cell forgets the entry: else its death in between loses it.
func TestWakeUpIsPassedOnBeforeTheCellForgets(t *testing.T) {
	s, _ := OpenHeap(small())
	db, _ := s.Database(bg, "x", KV, DatabaseOptions{Records: 10})
	db.Store(bg, []byte("k"), []byte("v"))
	x, _ := s.Join(bg, "x")
	dbx, _ := x.Database(bg, "x", KV, DatabaseOptions{})
	r, err := db.FetchLocked(bg, []byte("k"))
	if err != nil {
		t.Fatal(err)
	}
	first := uintptr(unsafe.Pointer(&x.body.cells[0]))
	z := &passWatch{t: t, entry: unsafe.Pointer(r.l.at.entry), slept: func() { r.Delete() },
		cells: [2]uintptr{first, first + 8*cellsPerSlot}}
	shm.Sim = z
	err = dbx.Delete(bg, []byte("k"))
	shm.Sim = nil
	t.Log(err, z.saw)
	if len(z.saw) == 0 || z.saw[0] != "pass" {
		t.Errorf("order after the wake-up: %v", z.saw)
	}
}
