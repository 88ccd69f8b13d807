package xdp

import (
	"net/netip"
	"strings"
	"testing"
)

func TestExamine(t *testing.T) {
	w := newWire(t, false, 2)
	examine := func() (e *Examination) {
		err := w.a.Do(func() (err error) {
			e, err = Examine(w.addr(0).Addr())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := examine()
	if e.Interface != nameA || e.Driver != "veth" || !e.Up || e.MTU != 1500 || e.Frame != 2048 || e.MultiBuffer ||
		e.RxQueues != 2 || e.Program != 0 || e.AFXDP != "ok" || e.BPF != "ok" || len(e.Capabilities) != 0 ||
		strings.Join(e.Order, " ") != "xdp-zerocopy xdp-generic xdp-native udp" || e.Expected != "xdp-generic" ||
		e.Features != nil && !strings.Contains(strings.Join(e.Features, " "), "basic redirect") {
		t.Errorf("%+v", e)
	}
	if _, err := w.open(t, 0, Options{}); err != nil {
		t.Fatal(err)
	}
	e = examine()
	if e.Program == 0 || e.Expected != "udp" || !strings.Contains(strings.Join(e.Advice, "\n"), "is attached") {
		t.Errorf("nobody saw the program: %+v", e)
	}
	if _, err := Examine(netip.MustParseAddr("192.0.2.77")); err == nil {
		t.Error("an address that is not ours was examined")
	}
}
