package xdp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/mainzdb/mainz/internal/testenv"
	"github.com/mainzdb/mainz/transport"
)

// wireFrame is a frame as our own sender makes it.
func wireFrame(src, dst netip.AddrPort, payload string) []byte {
	h := makeHeader([6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}, src, dst)
	b := append(make([]byte, h.n), payload...)
	h.put(b)
	return b
}

func tagged(f []byte, kind uint16) []byte {
	out := append([]byte(nil), f[:12]...)
	out = binary.BigEndian.AppendUint16(out, kind)
	out = binary.BigEndian.AppendUint16(out, 7)
	return append(out, f[12:]...)
}

func changed(f []byte, at int, b ...byte) []byte {
	out := append([]byte(nil), f...)
	copy(out[at:], b)
	return out
}

// TestProgram runs the program on single frames. No socket is in the map, so
// what would be redirected is passed on and counted as cntNoSocket.
func TestProgram(t *testing.T) {
	testenv.Need(t, testenv.AFXDP)
	for _, v := range []struct {
		name                 string
		us, member, stranger string
		head                 int
	}{
		{"IPv4", "10.1.1.1", "10.1.1.2", "10.1.1.3", head4},
		{"IPv6", "fd00::1", "fd00::2", "fd00::3", head6},
	} {
		for _, frags := range []bool{false, true} {
			t.Run(v.name, func(t *testing.T) {
				at := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), 4379) }
				us, member, stranger := at(v.us), at(v.member), at(v.stranger)
				f := transport.Filter{MinLen: 10, Prefix: []byte("MZ\x01")}
				p, err := loadProgram(us, f, 1, frags)
				if err != nil {
					var ve *ebpf.VerifierError
					if errors.As(err, &ve) {
						t.Fatalf("%+v", ve)
					}
					t.Fatal(err)
				}
				defer p.close()
				if err := p.setMembers([]transport.Peer{{ID: 1, Addr: member}}); err != nil {
					t.Fatal(err)
				}
				good := wireFrame(member, us, "MZ\x01 seven more")
				probe := func(kind byte) []byte {
					return wireFrame(member, us, string(transport.Probe{Kind: kind, Token: 1}.Append(nil)))
				}
				udp := v.head - udpLen
				const nothing = -1
				cases := []struct {
					name    string
					frame   []byte
					verdict uint32
					counter int
				}{
					{"good", good, xdpPass, cntNoSocket},
					{"one tag", tagged(good, ether8021), xdpPass, cntNoSocket},
					{"one service tag", tagged(good, ether88a8), xdpPass, cntNoSocket},
					{"two tags", tagged(tagged(good, ether8021), ether88a8), xdpPass, nothing},
					{"padded", append(append([]byte(nil), good...), 0, 0, 0, 0), xdpPass, cntNoSocket},
					{"stranger", wireFrame(stranger, us, "MZ\x01 seven more"), xdpDrop, cntStranger},
					{"tagged stranger", tagged(wireFrame(stranger, us, "MZ\x01 seven more"), ether8021), xdpDrop,
						cntStranger},
					{"short", wireFrame(member, us, "MZ\x01 45678"), xdpDrop, cntMalformed},
					{"empty", wireFrame(member, us, ""), xdpDrop, cntMalformed},
					{"foreign", wireFrame(member, us, "MZ\x02 seven more"), xdpDrop, cntForeign},
					{"foreign first byte", wireFrame(member, us, "mZ\x01 seven more"), xdpDrop, cntForeign},
					{"other port", wireFrame(member, netip.AddrPortFrom(us.Addr(), 4380), "MZ\x01 seven more"),
						xdpPass, nothing},
					{"other address", wireFrame(member, stranger, "MZ\x01 seven more"), xdpPass, nothing},
					{"TCP", changed(good, map[bool]int{false: ethLen + 9, true: ethLen + 6}[us.Addr().Is6()], 6),
						xdpPass, nothing},
					{"ARP", changed(good, 12, 0x08, 0x06), xdpPass, nothing},
					{"UDP length 0", changed(good, udp+4, 0, 0), xdpDrop, cntMalformed},
					{"UDP length beyond IP's", changed(good, udp+4, 0, 200), xdpDrop, cntMalformed},
					{"cut", good[:len(good)-1], xdpDrop, cntMalformed},
					{"header alone", good[:v.head-1], xdpPass, nothing},
					{"runt", good[:18], xdpPass, nothing},
					{"kernel probe", probe(transport.ProbeKernel), xdpPass, cntProbe},
					{"kernel answer", probe(transport.ProbeKernelAnswer), xdpPass, cntProbe},
					{"path probe", probe(transport.ProbePath), xdpPass, cntNoSocket},
					{"path answer", probe(transport.ProbePathAnswer), xdpPass, cntNoSocket},
					{"no probe", probe('x'), xdpDrop, cntForeign},
				}
				if !us.Addr().Is6() {
					cases = append(cases, []struct {
						name    string
						frame   []byte
						verdict uint32
						counter int
					}{
						{"first fragment", changed(good, ethLen+6, 0x20, 0), xdpPass, nothing},
						{"later fragment", changed(good, ethLen+6, 0, 9), xdpPass, nothing},
						{"options", changed(good, ethLen, 0x46), xdpPass, nothing},
					}...)
				} else {
					cases = append(cases, struct {
						name    string
						frame   []byte
						verdict uint32
						counter int
					}{"fragment header", changed(good, ethLen+6, 44), xdpPass, nothing})
				}
				for _, c := range cases {
					before, passed := p.count(), p.passed()
					got, _, err := p.prog.Test(c.frame)
					if err != nil {
						t.Errorf("%s: %v", c.name, err)
						continue
					}
					want := before
					if c.counter != nothing {
						want[c.counter]++
						if c.verdict == xdpPass {
							passed++
						}
					}
					if p.passed() != passed {
						t.Errorf("%s: the program says that it passed on %d of ours, want %d", c.name, p.passed(),
							passed)
					}
					if after := p.count(); got != c.verdict || after != want {
						t.Errorf("%s: verdict %d, want %d; counters %v, want %v", c.name, got, c.verdict, after, want)
					}
					// Whatever is let through to us the parser must take as well.
					if c.counter == cntNoSocket {
						if _, from, ok := parseFrame(c.frame); !ok || from != transport.SourceOf(member) {
							t.Errorf("%s: the parser does not agree", c.name)
						}
					}
				}
			})
		}
	}
}

// TestMembers: the map follows the list, and so does the look before it.
func TestMembers(t *testing.T) {
	testenv.Need(t, testenv.AFXDP)
	us := netip.MustParseAddrPort("10.1.1.1:4379")
	p, err := loadProgram(us, transport.Filter{}, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	peer := func(i byte) transport.Peer { // 4 and 5 have the same last byte as 2 and 3
		return transport.Peer{ID: transport.PeerID(i),
			Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, i / 4, 2 + i%2}), 4379)}
	}
	for _, list := range [][]byte{{2}, {2, 3}, {3, 4}, {}, {2, 3, 4}, {4, 2}, {2}, {4}} {
		var peers []transport.Peer
		in := map[byte]bool{}
		for _, i := range list {
			peers = append(peers, peer(i))
			in[i] = true
		}
		if err := p.setMembers(peers); err != nil {
			t.Fatal(err)
		}
		for i := byte(2); i < 6; i++ {
			got, _, err := p.prog.Test(wireFrame(peer(i).Addr, us, "x"))
			if err != nil {
				t.Fatal(err)
			}
			if (got == xdpPass) != in[i] {
				t.Errorf("members %v: verdict %d on %d", list, got, i)
			}
		}
	}
	// The last list has one member, which is found without the hash table.
	if err := p.members.Delete(peer(4).Addr.Addr().As16()); err != nil {
		t.Fatal(err)
	}
	if got, _, err := p.prog.Test(wireFrame(peer(4).Addr, us, "x")); err != nil || got != xdpPass {
		t.Errorf("a member that is near: verdict %d, %v", got, err)
	}
}
