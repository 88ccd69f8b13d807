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

func TestFrameSize(t *testing.T) {
	for _, c := range []struct {
		mtu    int
		driver string
		frame  uint32
		sg     bool
	}{
		{1500, "ixgbe", 2048, false}, {1774, "", 2048, false}, {1775, "veth", 4096, false},
		{3822, "ixgbe", 4096, false},
		{3823, "ixgbe", 4096, true}, {9000, "veth", 4096, true},
		{1500, "ena", 4096, false}, {9001, "ena", 4096, true},
	} {
		if frame, sg := frameFor(c.mtu, largeFrames(c.driver)); frame != c.frame || sg != c.sg {
			t.Errorf("MTU %d, %s: frames of %d, several for a packet: %v", c.mtu, c.driver, frame, sg)
		}
	}
	w := newWire(t, false, 1)
	var driver string
	_ = w.a.Do(func() error { driver = ethtoolDriver(nameA); return nil })
	if driver != "veth" || ethtoolDriver("none such") != "" {
		t.Errorf("the driver of a veth pair is %q", driver)
	}
}
