package netns

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is a network namespace.
type NS struct{ fd int }

// New makes a namespace whose loopback interface is up.
func New() (*NS, error) {
	ns := &NS{fd: -1}
	err := inThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		fd, err := self()
		if err != nil {
			return err
		}
		ns.fd = fd
		return up("lo")
	})
	if err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

func self() (int, error) {
	return unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// inThread calls f on a thread that is back in its namespace afterwards.
func inThread(f func() error) error {
	runtime.LockOSThread()
	home, err := self()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(home)
	ferr := f()
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		// The thread stays locked and ends with its goroutine.
		panic(fmt.Sprintf("netns: no way back to the namespace of the process: %v", err))
	}
	runtime.UnlockOSThread()
	return ferr
}

// Do calls f in the namespace. Sockets that it opens and processes that it
// starts belong to it; goroutines that it starts do not.
func (ns *NS) Do(f func() error) error {
	return inThread(func() error {
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the namespace: %w", err)
		}
		return f()
	})
}

// Close lets go of the namespace.
func (ns *NS) Close() {
	if ns.fd >= 0 {
		unix.Close(ns.fd)
		ns.fd = -1
	}
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// End is one end of a veth pair.
type End struct {
	NS    *NS
	Name  string
	Addrs []netip.Prefix
}

// Veth makes a pair of interfaces with so many queues each, gives them their
// addresses, and waits until both are running.
func Veth(a, b End, queues int) error {
	err := a.NS.Do(func() error {
		v := netlink.NewVeth(netlink.NewLinkAttrs())
		v.Name, v.PeerName = a.Name, b.Name
		v.NumRxQueues, v.NumTxQueues = queues, queues
		v.PeerNumRxQueues, v.PeerNumTxQueues = uint32(queues), uint32(queues)
		v.PeerNamespace = netlink.NsFd(b.NS.fd)
		return netlink.LinkAdd(v)
	})
	if err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	for _, e := range []End{a, b} {
		if err := e.NS.Do(e.configure); err != nil {
			return fmt.Errorf("configure %s: %w", e.Name, err)
		}
	}
	for _, e := range []End{a, b} {
		if err := e.NS.Do(func() error { return Running(e.Name) }); err != nil {
			return err
		}
	}
	return nil
}

func (e End) configure() error {
	l, err := netlink.LinkByName(e.Name)
	if err != nil {
		return err
	}
	for _, p := range e.Addrs {
		ip := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			ip.Flags = unix.IFA_F_NODAD // usable at once
		}
		if err := netlink.AddrAdd(l, ip); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// Running waits until the interface in the thread's namespace has a carrier: it
// comes some time after both ends are up, and packets before it are lost.
func Running(name string) error {
	for end := time.Now().Add(2 * time.Minute); ; runtime.Gosched() {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if l.Attrs().RawFlags&unix.IFF_RUNNING != 0 && l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s has no carrier after two minutes", name)
		}
	}
}
