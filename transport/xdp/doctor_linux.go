package xdp

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/transport"
)

// Examine looks at the interface that has the address.
func Examine(addr netip.Addr) (*Examination, error) {
	r, err := openRoutes()
	if err != nil {
		return nil, err
	}
	defer r.close()
	e := &Examination{Address: addr.String(), AFXDP: "ok", BPF: "ok", Capabilities: []string{}, Advice: []string{}}
	d, err := r.deviceOf(addr.Unmap())
	if err != nil && !errors.Is(err, errNoEthernet) {
		return nil, err
	}
	e.Interface, e.Driver, e.Up, e.MTU = d.name, d.driver, d.up, d.mtu
	noEthernet := err
	e.look(r, d)
	e.kernel()
	e.memory(d)
	if noEthernet == nil {
		for _, k := range Auto.kinds(d.driver) {
			e.Order = append(e.Order, k.String())
		}
	}
	e.Order = append(e.Order, transport.KindUDP.String())
	e.advise(d, noEthernet)
	e.Expected = e.expect(d, noEthernet == nil).String()
	return e, nil
}

func (e *Examination) look(r *routes, d device) {
	if name := ethtoolDriver(d.name); name != "" {
		e.Driver = name
	}
	e.RxQueues, e.TxQueues = queuesOf(d), d.rxq
	if c, err := channels(d.name); err == nil && c.tx+c.combined > 0 {
		e.TxQueues = int(c.tx + c.combined)
	}
	if n, err := rings(d.name); err == nil {
		e.RxRing, e.RxRingMax, e.TxRing, e.TxRingMax = int(n.rx), int(n.rxMax), int(n.tx), int(n.txMax)
	}
	if f, err := xdpFeatures(d.index); err == nil {
		e.features, e.Features = f, namesOfFeatures(f)
	}
	if l, err := r.h.LinkByIndex(d.index); err == nil && l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached {
		e.Program = l.Attrs().Xdp.ProgId
	}
}

// ethtoolDriver is the name of the interface's driver; "" if there is none.
func ethtoolDriver(name string) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	i, err := unix.IoctlGetEthtoolDrvinfo(fd, name)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(i.Driver[:])
}

// expect is what auto should take. Only a trial shows what it does.
func (e *Examination) expect(d device, ethernet bool) transport.Kind {
	switch {
	case !ethernet || d.driver == "lo" || e.AFXDP != "ok" || e.BPF != "ok" || len(e.Capabilities) > 0 ||
		e.Program != 0 || e.MemlockBytes < e.NeedBytes && !e.mayLock:
		return transport.KindUDP
	case e.features&featZeroCopy != 0 && (!e.MultiBuffer || e.features&featRxSG != 0):
		return transport.KindXDPZeroCopy
	case d.driver != "veth" && e.features&featBasic != 0 && e.features&featRedirect != 0 &&
		(!e.MultiBuffer || e.features&featRxSG != 0):
		return transport.KindXDPNative
	}
	return transport.KindXDPGeneric
}

func (e *Examination) kernel() {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		e.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		e.AFXDP = err.Error()
	} else {
		unix.Close(fd)
	}
	p, err := loadProgram(netip.MustParseAddrPort("192.0.2.1:4379"), transport.Filter{}, 1, false)
	var ve *ebpf.VerifierError
	switch {
	case errors.As(err, &ve):
		e.BPF = "the verifier refuses the program: " + ve.Error()
	case err != nil:
		e.BPF = err.Error()
	default:
		p.close()
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if unix.Capget(&hdr, &caps[0]) != nil {
		return
	}
	for _, c := range []struct {
		name string
		bit  uint
	}{{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}, {"CAP_NET_RAW", unix.CAP_NET_RAW}, {"CAP_BPF", unix.CAP_BPF}} {
		has := func(bit uint) bool { return caps[bit/32].Effective>>(bit%32)&1 != 0 }
		if !has(c.bit) && (c.bit != unix.CAP_BPF || !has(unix.CAP_SYS_ADMIN)) { // which stands for it
			e.Capabilities = append(e.Capabilities, c.name)
		}
	}
	e.mayLock = caps[0].Effective>>unix.CAP_IPC_LOCK&1 != 0
}

func (e *Examination) memory(d device) {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim) == nil {
		e.MemlockBytes = lim.Cur
	}
	zeroCopy := e.features&featZeroCopy != 0
	frame, sg := frameFor(d.mtu, zeroCopy && largeFrames(e.Driver))
	e.Frame, e.MultiBuffer = int(frame), sg
	e.NeedBytes = uint64(umemBytes(frame, min(e.RxQueues, maxQueues), zeroCopy))
}

func (e *Examination) advise(d device, noEthernet error) {
	say := func(format string, a ...any) { e.Advice = append(e.Advice, fmt.Sprintf(format, a...)) }
	if noEthernet != nil || d.driver == "lo" {
		say("this is no Ethernet interface: the kernel's UDP is used")
		return
	}
	flow := "udp4"
	if addr, err := netip.ParseAddr(e.Address); err == nil && addr.Unmap().Is6() {
		flow = "udp6"
	}
	steer := fmt.Sprintf("ethtool -N %s flow-type %s dst-port PORT action 0", d.name, flow)
	if !d.up {
		say("the interface is down: ip link set %s up", d.name)
	}
	if e.AFXDP != "ok" {
		say("AF_XDP sockets can't be had: a kernel with CONFIG_XDP_SOCKETS, and CAP_NET_RAW")
	}
	if e.BPF != "ok" {
		say("the XDP program can't be loaded: a kernel with CONFIG_BPF_SYSCALL, and CAP_BPF and CAP_NET_ADMIN")
	}
	if e.RxRing > 0 && e.RxRing < min(rxSize, e.RxRingMax) || e.TxRing > 0 && e.TxRing < min(txSize, e.TxRingMax) {
		say("short rings lose packets of a burst: ethtool -G %s rx %d tx %d", d.name, min(rxSize, e.RxRingMax),
			min(txSize, e.TxRingMax))
	}
	if len(e.Capabilities) > 0 {
		say("grant the missing capabilities (AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_BPF in the unit); they are dropped after opening")
	}
	if e.MemlockBytes < e.NeedBytes && !e.mayLock {
		say("locked memory is limited to %d bytes and %d are needed: LimitMEMLOCK=infinity in the unit, or grant CAP_IPC_LOCK", e.MemlockBytes, e.NeedBytes)
	}
	if e.Program != 0 {
		say("program %d is attached: only one can be, so auto takes the kernel's UDP; bpftool prog show id %[1]d tells whose it is", e.Program)
	}
	if e.RxQueues > maxQueues {
		say("%d receive queues, of which %d get a socket: steer our port to one of them (%s), or have fewer (ethtool -L %s combined %[2]d)", e.RxQueues, maxQueues, steer, d.name)
	} else if e.RxQueues > 1 {
		say("%d receive queues are looked at in turn: steering our port to one (%s) makes that cheaper", e.RxQueues,
			steer)
	}
	if e.MultiBuffer {
		say("an MTU of %d needs several frames a packet, which costs a copy: 3500 or less does not", e.MTU)
	}
	if d.driver == "veth" {
		say("a veth pair has no zero copy, and its generic mode is faster than its native one; that is the order that auto takes")
	}
}
