package xdp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// routes asks the kernel how peers are reached, in the network namespace in
// which it was opened, and hears when that may have changed.
type routes struct {
	h      *netlink.Handle
	events *nl.NetlinkSocket
	buf    []byte
}

func openRoutes() (*routes, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	events, err := nl.Subscribe(unix.NETLINK_ROUTE,
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("subscribe to rtnetlink: %w", err)
	}
	return &routes{h: h, events: events, buf: make([]byte, 64<<10)}, nil
}

func (r *routes) close() {
	if r != nil {
		r.h.Close()
		r.events.Close()
	}
}

// changed tells whether anything was heard since the last call. What it was
// does not matter: everything is asked anew.
func (r *routes) changed() bool {
	heard := false
	for range 64 {
		_, _, err := unix.Recvfrom(r.events.GetFd(), r.buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return heard
		}
		// Any other error is ENOBUFS: more was said than we heard.
		heard = true
	}
	return heard
}

// device is the interface that we live on.
type device struct {
	index  int
	name   string
	driver string // "lo", "veth", "device" for a NIC
	mtu    int
	mac    [6]byte
	up     bool
	rxq    int // receive queues that it was made with
}

var errNoEthernet = errors.New("not an Ethernet interface")

// deviceOf finds the interface that has the address.
func (r *routes) deviceOf(addr netip.Addr) (device, error) {
	addrs, err := r.h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return device{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == addr.WithZone("") {
			return r.device(a.LinkIndex)
		}
	}
	if addr.IsLoopback() {
		return device{name: "lo", driver: "lo", up: true}, nil
	}
	return device{}, fmt.Errorf("no interface has the address %v", addr)
}

func (r *routes) device(index int) (device, error) {
	l, err := r.h.LinkByIndex(index)
	if err != nil {
		return device{}, err
	}
	a := l.Attrs()
	d := device{index: index, name: a.Name, driver: l.Type(), mtu: a.MTU, rxq: max(1, a.NumRxQueues),
		up: a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_RUNNING != 0}
	if a.Flags&net.FlagLoopback != 0 {
		d.driver = "lo"
		return d, nil
	}
	if len(a.HardwareAddr) != len(d.mac) {
		return d, fmt.Errorf("%s: %w", a.Name, errNoEthernet)
	}
	copy(d.mac[:], a.HardwareAddr)
	return d, nil
}

// queuesOf is how many receive queues of the device are in use, by its driver's word;
// it may have been made with many more.
func queuesOf(d device) int {
	if c, err := channels(d.name); err == nil && c.rx+c.combined > 0 {
		return min(int(c.rx+c.combined), d.rxq)
	}
	return d.rxq
}

// gone tells whether err says that the interface does not exist.
func gone(err error) bool {
	return errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV)
}

// neighbours are the hardware addresses that the kernel knows on an interface.
func (r *routes) neighbours(d device) ([]netlink.Neigh, error) {
	return r.h.NeighList(d.index, netlink.FAMILY_ALL)
}

const usable = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE |
	netlink.NUD_PERMANENT | netlink.NUD_NOARP

// nextHop finds the hardware address that frames to a peer go to, if its route
// leads through the device and from our address; other tells that it does not.
func (r *routes) nextHop(d device, us, to netip.Addr, known []netlink.Neigh) (mac [6]byte, ok, other bool) {
	list, err := r.h.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: us.AsSlice()})
	if err != nil || len(list) == 0 || list[0].LinkIndex != d.index {
		return mac, false, true
	}
	route := list[0]
	hop := route.Gw
	if hop == nil {
		hop = to.AsSlice()
	}
	for _, n := range known {
		if n.State&usable != 0 && n.IP.Equal(hop) && len(n.HardwareAddr) == len(mac) &&
			!bytes.Equal(n.HardwareAddr, make([]byte, 6)) {
			copy(mac[:], n.HardwareAddr)
			return mac, true, false
		}
	}
	return mac, false, false
}
