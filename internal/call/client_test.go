package call

import "testing"

// A handler of events that panics is told of the next epoch, and no call waits for it.
func TestEventHandlerPanics(t *testing.T) {
	r := &Client{tell: func(Epoch) { panic("boom") }}
	for i := range uint64(2) {
		r.untold.Add(1)
		r.opened = append(r.opened, Epoch{Number: i})
	}
	for range 2 {
		func() {
			defer func() {
				if p := recover(); p != "boom" {
					t.Errorf("panic %q", p)
				}
			}()
			r.deliver()
		}()
	}
	r.deliver() // the next call: nothing is left to wait for
	if n := r.untold.Load(); n != 0 {
		t.Error(n, " epochs are untold")
	}
}
