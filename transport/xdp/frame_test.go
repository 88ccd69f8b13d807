package xdp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/mainzdb/mainz/transport"
)

var (
	src4 = netip.MustParseAddrPort("10.0.0.1:4379")
	dst4 = netip.MustParseAddrPort("10.0.0.2:4380")
	src6 = netip.MustParseAddrPort("[fd00::1]:4379")
	dst6 = netip.MustParseAddrPort("[fd00::2]:4380")
)

func plainSum(b []byte) uint16 {
	s := uint32(0)
	for i := range b {
		s += uint32(b[i]) << (8 * uint(1-i%2))
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// TestFrames: what put writes, parseFrame reads, and the checksums are right
// by a plain twin.
func TestFrames(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for n := range 1600 {
		for _, v := range [][2]netip.AddrPort{{src4, dst4}, {src6, dst6}} {
			h := makeHeader([6]byte{1}, [6]byte{2}, v[0], v[1])
			f := make([]byte, h.n+n)
			for i := range f[h.n:] {
				f[h.n+i] = byte(r.Uint32())
			}
			payload := bytes.Clone(f[h.n:])
			h.put(f)
			for _, g := range [][]byte{f, tagged8021(f), append(bytes.Clone(f), 0, 0, 0)} {
				p, from, ok := parseFrame(g)
				if !ok || !bytes.Equal(p, payload) || from != transport.SourceOf(v[0]) {
					t.Fatalf("%d bytes: %d came out, from %+v, %v", n, len(p), from, ok)
				}
			}
			if h.n == head4 {
				if s := plainSum(f[ethLen : ethLen+ip4Len]); s != 0xffff {
					t.Fatalf("%d bytes: IPv4 header sums to %#x", n, s)
				}
				if f[head4-2] != 0 || f[head4-1] != 0 {
					t.Fatal("a UDP checksum over IPv4")
				}
				continue
			}
			pseudo := append(bytes.Clone(f[ethLen+8:ethLen+ip6Len]), 0, 0, 0, 0, 0, 0, 0, protoUDP)
			binary.BigEndian.PutUint32(pseudo[32:], uint32(n+udpLen))
			if s := plainSum(append(pseudo, f[head6-udpLen:]...)); s != 0xffff {
				t.Fatalf("%d bytes: UDP sums to %#x", n, s)
			}
		}
	}
}

func tagged8021(f []byte) []byte {
	out := append(bytes.Clone(f[:12]), 0x81, 0, 0, 7)
	return append(out, f[12:]...)
}

// FuzzParseFrame: whatever comes, the datagram lies within the frame, and what
// is taken has the shape that it must have.
func FuzzParseFrame(f *testing.F) {
	for _, v := range [][2]netip.AddrPort{{src4, dst4}, {src6, dst6}} {
		h := makeHeader([6]byte{1}, [6]byte{2}, v[0], v[1])
		b := append(make([]byte, h.n), "payload"...)
		h.put(b)
		f.Add(b)
		f.Add(tagged8021(b))
		f.Add(b[:len(b)-1])
		padded := bytes.Clone(b) // within the IP packet
		padded[h.n-3] -= 4
		f.Add(padded)
		f.Add(b[:20])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		p, from, ok := parseFrame(b)
		if !bytes.Equal(before, b) {
			t.Fatal("the parser wrote")
		}
		if !ok {
			if p != nil {
				t.Fatal("a datagram and a refusal")
			}
			return
		}
		// A plain twin: where it begins, how long it is, whom it is from.
		ip := b[14:]
		if b[12] == 0x81 || b[12] == 0x88 {
			ip = b[18:]
		}
		head := 20
		var addr netip.Addr
		if ip[0]>>4 == 4 {
			addr, _ = netip.AddrFromSlice(ip[12:16])
		} else {
			head = 40
			addr, _ = netip.AddrFromSlice(ip[8:24])
		}
		udp := ip[head:]
		want := udp[8 : int(udp[4])<<8|int(udp[5])]
		port := uint16(udp[0])<<8 | uint16(udp[1])
		if len(p) != len(want) || len(p) > 0 && &p[0] != &want[0] ||
			from != transport.SourceOf(netip.AddrPortFrom(addr, port)) {
			t.Fatalf("%d bytes from %+v, want %d from %v port %d", len(p), from, len(want), addr, port)
		}
	})
}
