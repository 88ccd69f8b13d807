package xdp

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/netns"
	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/transport"
	"github.com/mainzdb/mainz/transport/transporttest"
)

// link calls f with an interface, in its namespace.
func (w *wire) link(t testing.TB, i int, f func(l netlink.Link) error) {
	t.Helper()
	err := w.ns(i).Do(func() error {
		l, err := netlink.LinkByName([]string{nameA, nameB}[i])
		if err != nil {
			return err
		}
		return f(l)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// passes sends datagrams both ways until one has come.
func passes(t testing.TB, a, b *transporttest.Node) {
	t.Helper()
	for _, p := range [][2]*transporttest.Node{{a, b}, {b, a}} {
		from, to := p[0], p[1]
		id := transport.PeerID(1)
		if from == b {
			id = 0
		}
		had := len(to.Got)
		transporttest.Eventually(t, "a datagram", func() bool {
			if buf := from.Buf(id, 5); buf != nil {
				copy(buf, "hello")
				from.Commit(5)
			}
			_ = from.Flush() // the link may be down
			return len(to.Got) > had
		}, a, b)
	}
}

func TestLinkDownAndUp(t *testing.T) {
	for _, mode := range []Mode{Generic, Copy} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWire(t, false, 1)
			a, b := w.net(mode).Open2(t, transport.Filter{})
			passes(t, a, b)
			w.link(t, 0, netlink.LinkSetDown)
			transporttest.Eventually(t, "word of the link", func() bool { return conn(a).kernelPeers == 1 }, a, b)
			for range 10 {
				if buf := a.Buf(1, 4); buf != nil {
					a.Commit(copy(buf, "lost"))
				}
				if err := a.Flush(); err == nil {
					t.Error("sent through a link that is down")
				}
				a.Turn(t)
			}
			w.link(t, 0, netlink.LinkSetUp)
			transporttest.Eventually(t, "the path again", func() bool { return conn(a).kernelPeers == 0 }, a, b)
			passes(t, a, b)
			if k := a.Path().Kind; k == transport.KindUDP {
				t.Errorf("path is %v", a.Path())
			}
		})
	}
}

// TestNeighbourChanges: the peer's hardware address becomes another one.
func TestNeighbourChanges(t *testing.T) {
	w := newWire(t, false, 1)
	a, b := w.net(Generic).Open2(t, transport.Filter{})
	w.link(t, 1, func(l netlink.Link) error {
		return netlink.LinkSetHardwareAddr(l, []byte{2, 1, 2, 3, 4, 5})
	})
	// As a gratuitous ARP would.
	w.link(t, 0, func(l netlink.Link) error {
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_REACHABLE,
			IP: w.addr(1).Addr().AsSlice(), HardwareAddr: []byte{2, 1, 2, 3, 4, 5}})
	})
	transporttest.Eventually(t, "the new address", func() bool {
		return conn(a).peers[0].head.last.dst == [6]byte{2, 1, 2, 3, 4, 5} &&
			conn(b).peers[0].head.last.src == [6]byte{2, 1, 2, 3, 4, 5}
	}, a, b)
	passes(t, a, b)
}

// TestMTUChanges: datagrams of the new size pass over the path, in larger
// frames or several for one if need be.
func TestMTUChanges(t *testing.T) {
	for mode, kind := range map[Mode]transport.Kind{Generic: transport.KindXDPGeneric, Copy: transport.KindXDPNative} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWire(t, false, 1)
			a, b := w.net(mode).Open2(t, transport.Filter{})
			mtus := []int{1400, 1500, 3000, 1200, 9000}
			if mode == Copy {
				// A driver whose program takes packets of one frame only
				// refuses a larger MTU.
				mtus = []int{1400, 1500, 3000, 1200}
				if err := setMTU(t, w, 9000); err == nil {
					t.Error("veth lets packets grow beyond what the program takes: so may this test")
				}
			}
			for _, mtu := range mtus {
				if err := setMTU(t, w, mtu); err != nil {
					t.Fatal(err)
				}
				transporttest.Eventually(t, fmt.Sprintf("MTU %d", mtu), func() bool {
					return a.MTU(1) == mtu-28 && b.MTU(0) == mtu-28 && conn(a).kernelPeers+conn(b).kernelPeers == 0
				}, a, b)
				a.Got, b.Got = nil, nil
				a.Send(t, 1, strings.Repeat("x", mtu-28))
				b.Send(t, 0, strings.Repeat("y", mtu-28))
				transporttest.Eventually(t, "datagrams of that size",
					func() bool { return len(a.Got) == 1 && len(b.Got) == 1 }, a, b)
				if k := a.Path().Kind; k != kind {
					t.Fatalf("MTU %d: path is %v", mtu, a.Path())
				}
			}
			if s := conn(a).Stats(); s.Dropped() != 0 {
				t.Errorf("drops: %+v", s)
			}
		})
	}
}

func TestInterfaceDeleted(t *testing.T) {
	for _, mode := range []Mode{Auto, Generic, Copy} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWire(t, false, 1)
			a, b := w.net(mode).Open2(t, transport.Filter{})
			b.Close()
			w.link(t, 0, netlink.LinkDel)
			if mode == Auto {
				transporttest.Eventually(t, "the kernel's way",
					func() bool { return a.Path().Kind == transport.KindUDP }, a)
				p := a.Path()
				if last := p.Refused[len(p.Refused)-1]; !errors.Is(last.Err, transport.ErrInterfaceGone) {
					t.Errorf("path is %v", p)
				}
				// It lives on: the same interface comes again.
				end := func(ns *netns.NS, name, addr string) netns.End {
					return netns.End{NS: ns, Name: name, Addrs: []netip.Prefix{netip.MustParsePrefix(addr)}}
				}
				if err := netns.Veth(end(w.a, nameA, "10.77.0.1/24"), end(w.b, nameB, "10.77.0.2/24"), 1); err != nil {
					t.Fatal(err)
				}
				tr, err := w.open(t, 1, Options{Mode: UDP})
				if err != nil {
					t.Fatal(err)
				}
				n := transporttest.NewNode(tr)
				if err := n.SetPeers([]transport.Peer{{ID: 0, Addr: w.addr(0)}}); err != nil {
					t.Fatal(err)
				}
				passes(t, a, n)
				return
			}
			var err error
			for i := 0; err == nil && i < 1_000_000; i++ {
				a.Poll(1, func([]byte, transport.PeerID) {})
				err = a.Tick(timeOf(i))
			}
			if !errors.Is(err, transport.ErrInterfaceGone) || !strings.Contains(err.Error(), nameA) {
				t.Errorf("a forced mode on a deleted interface: %v", err)
			}
		})
	}
}

// TestPathFails: the path takes datagrams and carries none, while the kernel's
// way works. Nothing but probes finds that out.
func TestPathFails(t *testing.T) {
	for _, mode := range []Mode{Auto, Generic} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWire(t, false, 1)
			open := func(i int, m Mode) *transporttest.Node {
				tr, err := w.open(t, i, Options{Mode: m})
				if err != nil {
					t.Fatal(err)
				}
				return transporttest.NewNode(tr)
			}
			a, b := open(0, mode), open(1, UDP)
			// Redirected datagrams go to a socket that is not looked at.
			c := conn(a)
			c.u.sockets[0].rx.producer = new(uint32)
			if err := b.SetPeers([]transport.Peer{{ID: 0, Addr: w.addr(0)}}); err != nil {
				t.Fatal(err)
			}
			if err := a.SetPeers([]transport.Peer{{ID: 1, Addr: w.addr(1)}}); err != nil {
				t.Fatal(err)
			}
			if mode == Generic {
				var err error
				start := time.Now() // an answer must not be late by the clock of the test
				transporttest.Eventually(t, "the end of the path", func() bool {
					a.Poll(32, func([]byte, transport.PeerID) {})
					err = a.Tick(time.Since(start))
					return err != nil
				}, b)
				if !errors.Is(err, transport.ErrPathFailed) {
					t.Fatalf("a path that carries nothing: %v", err)
				}
				return
			}
			transporttest.Eventually(t, "the next way",
				func() bool { return a.Path().Kind == transport.KindXDPNative }, a, b)
			if p := a.Path(); !errors.Is(p.Refused[len(p.Refused)-1].Err, transport.ErrPathFailed) {
				t.Errorf("path is %v", p)
			}
			passes(t, a, b)
			proven(t, a, b)
			passes(t, a, b)
		})
	}
}

// TestPeerOverloaded: a peer that does not keep up loses the probes over the
// path among all the rest. As long as both hear each other the path stays; if
// one of them does not, it is left.
func TestPeerOverloaded(t *testing.T) {
	for _, c := range []struct {
		name             string
		hears, talks, ok bool
	}{
		{"both hear", true, true, true},
		{"we are not heard", false, true, false},
		{"the peer is not heard", true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWire(t, false, 1)
			a, b := w.net(Generic).Open2(t, transport.Filter{})
			b.Close()
			// An ordinary socket in the peer's place.
			var fd int
			err := w.b.Do(func() (err error) {
				fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					return err
				}
				return unix.Bind(fd, sockaddr(w.addr(1)))
			})
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			send := func(p []byte) {
				if err := unix.Sendto(fd, p, 0, sockaddr(w.addr(0))); err != nil {
					t.Fatal(err)
				}
			}
			buf := make([]byte, 2000)
			// The clock waits for the network: however slow that is, no answer
			// is late.
			now, answered := conn(a).peers[0].lastAsk, 0
			for ; answered <= 3*failedAfter; answered++ {
				if c.talks {
					heard := false
					send([]byte("what got through"))
					transporttest.Eventually(t, "what got through", func() bool {
						a.Poll(32, func([]byte, transport.PeerID) { heard = true })
						return heard
					})
				}
				now += 2 * probeLater
				if err = a.Tick(now); err != nil {
					break
				}
				var p transport.Probe
				transporttest.Eventually(t, "a question through the kernel", func() bool {
					n, _, rerr := unix.Recvfrom(fd, buf, 0)
					q, ok := transport.ParseProbe(buf[:max(n, 0)])
					p = q
					return rerr == nil && ok && q.Kind == transport.ProbeKernel && q.Serial == conn(a).serial
				})
				before := a.Stats().ProbesReceived
				p = p.Answer()
				p.Heard = c.hears
				send(p.Append(nil))
				transporttest.Eventually(t, "the answer", func() bool {
					a.Poll(32, func([]byte, transport.PeerID) {})
					return a.Stats().ProbesReceived > before
				})
			}
			if c.ok && (err != nil || !a.Path().Proven) || !c.ok && !errors.Is(err, transport.ErrPathFailed) {
				t.Errorf("after %d probes through the kernel: %v, %v", answered, a.Path(), err)
			}
		})
	}
}

// timeOf makes each turn one millisecond, so that the test does not wait for
// the clock.
func timeOf(i int) (d time.Duration) { return time.Duration(i) * 1_000_000 }

// TestOtherTraffic: ping and an unrelated UDP service work as if we were not
// there.
func TestOtherTraffic(t *testing.T) {
	for _, mode := range []Mode{Generic, Copy} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWire(t, false, 1)
			a, b := w.net(mode).Open2(t, transport.Filter{MinLen: 4, Prefix: []byte("MZ")})
			socket := func(i int, typ, proto int) (fd int) {
				err := w.ns(i).Do(func() (err error) {
					fd, err = unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(fd) })
				return fd
			}
			other := func(i int) unix.Sockaddr {
				return sockaddr(netip.AddrPortFrom(w.addr(i).Addr(), 5000))
			}
			client, server := socket(0, unix.SOCK_DGRAM, 0), socket(1, unix.SOCK_DGRAM, 0)
			if err := errors.Join(unix.Bind(client, other(0)), unix.Bind(server, other(1))); err != nil {
				t.Fatal(err)
			}
			icmp := socket(0, unix.SOCK_RAW, unix.IPPROTO_ICMP)
			buf := make([]byte, 2000)
			for i := range 20 {
				a.Send(t, 1, "MZ among others")
				if err := unix.Sendto(client, []byte("question"), 0, other(1)); err != nil {
					t.Fatal(err)
				}
				transporttest.Eventually(t, "the question", func() bool {
					n, _, err := unix.Recvfrom(server, buf, 0)
					return err == nil && string(buf[:n]) == "question"
				}, a, b)
				if err := unix.Sendto(server, []byte("answer"), 0, other(0)); err != nil {
					t.Fatal(err)
				}
				transporttest.Eventually(t, "the answer", func() bool {
					n, _, err := unix.Recvfrom(client, buf, 0)
					return err == nil && string(buf[:n]) == "answer"
				}, a, b)
				if err := unix.Sendto(icmp, echoRequest(byte(i)), 0, sockaddr(w.addr(1))); err != nil {
					t.Fatal(err)
				}
				transporttest.Eventually(t, "the echo", func() bool {
					n, _, err := unix.Recvfrom(icmp, buf, 0)
					return err == nil && n == 28 && buf[20] == 0 && buf[27] == byte(i)
				}, a, b)
			}
			transporttest.Eventually(t, "ours", func() bool { return len(b.Got) == 20 }, a, b)
			if s := b.Stats(); s.RxKernel != 0 || s.Dropped() != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func echoRequest(seq byte) []byte {
	p := []byte{8, 0, 0, 0, 0, 1, 0, seq}
	sum := ^plainSum(p)
	p[2], p[3] = byte(sum>>8), byte(sum)
	return p
}

const childEnv = "MAINZ_XDP_TEST_CHILD"

// TestMain is also the daemon that TestKill kills.
func TestMain(m *testing.M) {
	listen := os.Getenv(childEnv)
	if listen == "" {
		os.Exit(m.Run())
	}
	mode, addr, _ := strings.Cut(listen, " ")
	tr, err := Open(Options{Listen: netip.MustParseAddrPort(addr), Mode: Mode(mode)})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(tr.Path())
	if peer := os.Getenv(childPeerEnv); peer != "" {
		fmt.Println(unprivileged(tr, netip.MustParseAddrPort(peer)))
		os.Exit(0)
	}
	select {}
}

const childPeerEnv = "MAINZ_XDP_TEST_PEER"

// unprivileged drops the privileges, changes the members, and waits for a
// datagram through the rings.
func unprivileged(tr transport.Transport, peer netip.AddrPort) string {
	if err := DropPrivileges(); err != nil {
		return err.Error()
	}
	if fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW, 0); err == nil {
		unix.Close(fd)
		return "an AF_XDP socket without privileges"
	}
	if left := capabilitiesLeft(); left != "" {
		return left
	}
	if err := tr.SetPeers([]transport.Peer{{ID: 5, Addr: peer}}); err != nil {
		return err.Error()
	}
	start, got := time.Now(), false
	for time.Since(start) < 2*time.Minute {
		tr.Poll(32, func(p []byte, from transport.PeerID) { got = got || string(p) == "hello" && from == 5 })
		if err := tr.Tick(time.Since(start)); err != nil {
			return err.Error()
		}
		if s := tr.Stats(); got && tr.Path().Proven && s.RxPackets > s.RxKernel {
			return "good"
		}
	}
	return fmt.Sprintf("nothing came: %v %+v", tr.Path(), tr.Stats())
}

// capabilitiesLeft names a thread that has one of those that were to be dropped, or
// may take it back.
func capabilitiesLeft() string {
	const dropped = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | 1<<unix.CAP_SYS_ADMIN
	files, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(files) == 0 {
		return fmt.Sprint("no threads: ", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // a thread that has ended
		}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			if key != "CapEff" && key != "CapPrm" && key != "CapInh" {
				continue
			}
			if set, err := strconv.ParseUint(value, 16, 64); err != nil || set&dropped != 0 {
				return fmt.Sprintf("%s: %s %v", name, line, err)
			}
		}
	}
	return ""
}

// TestDropPrivileges: a transport works on without them, and new members get in.
func TestDropPrivileges(t *testing.T) {
	w := newWire(t, false, 1)
	tr, err := w.open(t, 1, Options{Mode: Generic})
	if err != nil {
		t.Fatal(err)
	}
	b := transporttest.NewNode(tr)
	if err := b.SetPeers([]transport.Peer{{ID: 0, Addr: w.addr(0)}}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(Generic)+" "+w.addr(0).String(),
		childPeerEnv+"="+w.addr(1).String())
	out := new(strings.Builder)
	cmd.Stdout, cmd.Stderr = out, out
	if err := w.a.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	transporttest.Eventually(t, "the child's end", func() bool {
		if buf := b.Buf(0, 5); buf != nil {
			b.Commit(copy(buf, "hello"))
		}
		_ = b.Flush()
		select {
		case err = <-done:
			return true
		default:
			return false
		}
	}, b)
	if testenv.Cgo && err == nil && strings.Contains(out.String(), "built with cgo") {
		return // which is what it promises to say then
	}
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); err != nil || lines[len(lines)-1] != "good" {
		t.Errorf("%v: %s", err, out)
	}
}

// TestKill: kill -9 leaves no program attached and the port and the queue free.
func TestKill(t *testing.T) {
	for _, mode := range []Mode{Generic, Copy} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWire(t, false, 1)
			attached := func() (id uint32) {
				w.link(t, 0, func(l netlink.Link) error {
					if x := l.Attrs().Xdp; x != nil && x.Attached {
						id = x.ProgId
					}
					return nil
				})
				return id
			}
			for range 3 {
				cmd := exec.Command("/proc/self/exe")
				cmd.Env = append(os.Environ(), childEnv+"="+string(mode)+" "+w.addr(0).String())
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := w.a.Do(cmd.Start); err != nil {
					t.Fatal(err)
				}
				line, err := bufio.NewReader(out).ReadString('\n')
				if err != nil || !strings.HasPrefix(line, "xdp-") {
					_ = cmd.Process.Kill()
					_ = cmd.Wait()
					t.Fatalf("child said %q, %v", line, err)
				}
				id := attached()
				if id == 0 {
					t.Error("no program while the daemon lives")
				}
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				transporttest.Eventually(t, "the program to go", func() bool { return attached() == 0 })
				transporttest.Eventually(t, "the kernel to forget it", func() bool {
					p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
					if err != nil {
						return errors.Is(err, os.ErrNotExist)
					}
					p.Close()
					return false
				})
			}
			// And the next daemon gets everything.
			a, b := w.net(mode).Open2(t, transport.Filter{})
			passes(t, a, b)
		})
	}
}

// TestOverload: what finds no room in the rings is counted, and nothing leaks.
func TestOverload(t *testing.T) {
	testenv.Need(t, testenv.NetNS, testenv.AFXDP)
	for _, mode := range []Mode{Generic, Copy} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWire(t, false, 1)
			a, b := w.net(mode).Open2(t, transport.Filter{})
			sent := 0
			for range 200 {
				for range 32 {
					if buf := a.Buf(1, 100); buf != nil {
						a.Commit(100)
						sent++
					}
				}
				if err := a.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			// Nothing but the account goes on meanwhile: a side that ticks sends
			// probes.
			sides := [2]*soaker{{node: a, to: 1, committed: uint64(sent)}, {node: b, to: 0}}
			var x account
			defer func() {
				if t.Failed() {
					t.Logf("the account: %s", x)
					counters(t, w, a, b)
				}
			}()
			transporttest.Eventually(t, "an account of all", func() bool {
				_ = a.Flush()
				a.Poll(64, func([]byte, transport.PeerID) {})
				b.Poll(64, func([]byte, transport.PeerID) { sides[1].got++ })
				x = settle(t, w, sides[0], sides[1])
				if x.missing() < 0 {
					t.Fatal("more came and got lost than was sent")
				}
				return x.complete()
			})
			lost := x.sent - x.received
			if lost == 0 {
				t.Error("nothing overflowed")
			}
			passes(t, a, b)
		})
	}
}
