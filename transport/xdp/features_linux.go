package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What a driver says that it can do (enum netdev_xdp_act).
const (
	featBasic    = 1 << 0 // programs in the driver
	featRedirect = 1 << 1
	featZeroCopy = 1 << 3
	featRxSG     = 1 << 5 // packets over several frames
)

var featureNames = []string{"basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg"}

func namesOfFeatures(f uint64) []string {
	out := []string{}
	for i, name := range featureNames {
		if f>>i&1 != 0 {
			out = append(out, name)
		}
	}
	return out
}

// xdpFeatures asks the kernel about an interface. Before Linux 6.3 it can't
// be asked, which is unix.ENOENT.
func xdpFeatures(ifindex int) (uint64, error) {
	const (
		cmdDevGet       = 1 // enum netdev_cmd and its attributes
		attrIfindex     = 1
		attrXDPFeatures = 3
	)
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return 0, err
	}
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	req.AddData(&nl.Genlmsg{Command: cmdDevGet, Version: 1})
	req.AddData(nl.NewRtAttr(attrIfindex, nl.Uint32Attr(uint32(ifindex))))
	answers, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("ask netdev for the features: %w", err)
	}
	for _, m := range answers {
		if len(m) < nl.SizeofGenlmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type == attrXDPFeatures && len(a.Value) == 8 {
				return binary.NativeEndian.Uint64(a.Value), nil
			}
		}
	}
	return 0, errors.New("netdev does not tell the features")
}
