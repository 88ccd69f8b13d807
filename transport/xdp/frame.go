package xdp

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/mainzdb/mainz/transport"
)

const (
	ethLen  = 14
	vlanLen = 4
	ip4Len  = 20
	ip6Len  = 40
	udpLen  = 8

	head4 = ethLen + ip4Len + udpLen
	head6 = ethLen + ip6Len + udpLen

	etherIP4  = 0x0800
	etherIP6  = 0x86dd
	ether8021 = 0x8100
	ether88a8 = 0x88a8

	protoUDP = 17
	ttl      = 64
)

// parseFrame finds the datagram in an Ethernet frame. It takes what the XDP
// program lets through, and trusts it in nothing: one VLAN tag or none, IPv4
// without options or IPv6 without extension headers, no fragment. What follows
// the datagram is padding of the NIC.
func parseFrame(b []byte) (payload []byte, from transport.Source, ok bool) {
	if len(b) < ethLen+vlanLen {
		return nil, from, false
	}
	kind := binary.BigEndian.Uint16(b[12:])
	if kind == ether8021 || kind == ether88a8 {
		b = b[vlanLen:]
		kind = binary.BigEndian.Uint16(b[12:])
	}
	b = b[ethLen:]
	var udp []byte
	switch kind {
	case etherIP4:
		if len(b) < ip4Len+udpLen || b[0] != 0x45 || b[9] != protoUDP || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
			return nil, from, false
		}
		total := int(binary.BigEndian.Uint16(b[2:]))
		if total < ip4Len+udpLen || total > len(b) {
			return nil, from, false
		}
		udp = b[ip4Len:total]
		from = transport.Source4(b[12:16], binary.BigEndian.Uint16(udp))
	case etherIP6:
		if len(b) < ip6Len+udpLen || b[0]>>4 != 6 || b[6] != protoUDP {
			return nil, from, false
		}
		n := int(binary.BigEndian.Uint16(b[4:]))
		if n < udpLen || n > len(b)-ip6Len {
			return nil, from, false
		}
		udp = b[ip6Len : ip6Len+n]
		from = transport.Source6(b[8:24], binary.BigEndian.Uint16(udp))
	default:
		return nil, from, false
	}
	n := int(binary.BigEndian.Uint16(udp[4:]))
	if n < udpLen || n > len(udp) {
		return nil, from, false
	}
	return udp[udpLen:n:n], from, true
}

// header is what stands before every datagram to one peer: all but the lengths
// and checksums is the same each time.
type header struct {
	b    [head6]byte
	n    int    // 42 or 62
	sum  uint32 // IPv4: of the header without length; IPv6: of the pseudo header
	last struct{ src, dst [6]byte }
}

// makeHeader makes the header for datagrams between two addresses.
//
// Preconditions: both addresses are of one IP version.
func makeHeader(srcMAC, dstMAC [6]byte, src, dst netip.AddrPort) (h header) {
	copy(h.b[0:], dstMAC[:])
	copy(h.b[6:], srcMAC[:])
	h.last.src, h.last.dst = srcMAC, dstMAC
	ip := h.b[ethLen:]
	if src.Addr().Unmap().Is4() {
		h.n = head4
		binary.BigEndian.PutUint16(h.b[12:], etherIP4)
		ip[0] = 0x45
		ip[6] = 0x40 // DF
		ip[8] = ttl
		ip[9] = protoUDP
		s, d := src.Addr().Unmap().As4(), dst.Addr().Unmap().As4()
		copy(ip[12:], s[:])
		copy(ip[16:], d[:])
		for i := 0; i < ip4Len; i += 2 {
			h.sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
	} else {
		h.n = head6
		binary.BigEndian.PutUint16(h.b[12:], etherIP6)
		ip[0] = 0x60
		ip[6] = protoUDP
		ip[7] = ttl
		s, d := src.Addr().As16(), dst.Addr().As16()
		copy(ip[8:], s[:])
		copy(ip[24:], d[:])
		for i := 8; i < ip6Len; i += 2 {
			h.sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		h.sum += protoUDP
	}
	udp := h.b[h.n-udpLen:]
	binary.BigEndian.PutUint16(udp[0:], src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	return h
}

// put writes the header of a datagram to b, which begins h.n bytes before the
// payload and ends with it.
func (h *header) put(b []byte) {
	n := uint16(len(b) - h.n + udpLen)
	if h.n == head4 {
		copy(b[:head4], h.b[:head4])
		binary.BigEndian.PutUint16(b[ethLen+2:], ip4Len+n)
		sum := h.sum + uint32(ip4Len+n)
		sum = sum&0xffff + sum>>16
		sum = sum&0xffff + sum>>16
		binary.BigEndian.PutUint16(b[ethLen+10:], ^uint16(sum))
		binary.BigEndian.PutUint16(b[head4-4:], n)
		return // the checksum stays 0: none
	}
	copy(b[:head6], h.b[:head6])
	binary.BigEndian.PutUint16(b[ethLen+4:], n)
	binary.BigEndian.PutUint16(b[head6-4:], n)
	sum := ^fold(uint64(h.sum) + uint64(n) + uint64(fold(onesSum(b[head6-udpLen:]))))
	if sum == 0 {
		sum = 0xffff // 0 would say that there is none
	}
	binary.BigEndian.PutUint16(b[head6-2:], sum)
}

// onesSum adds up 16-bit words in ones' complement, eight bytes at a time.
func onesSum(b []byte) uint64 {
	var s, carry uint64
	for ; len(b) >= 8; b = b[8:] {
		s, carry = bits.Add64(s, binary.BigEndian.Uint64(b), carry)
	}
	var tail [8]byte
	copy(tail[:], b)
	s, carry = bits.Add64(s, binary.BigEndian.Uint64(tail[:]), carry)
	s, carry = bits.Add64(s, 0, carry)
	return s + carry
}

// fold makes 16 bits of a sum.
func fold(s uint64) uint16 {
	s = s&0xffffffff + s>>32
	s = s&0xffffffff + s>>32
	s = s&0xffff + s>>16
	s = s&0xffff + s>>16
	return uint16(s)
}
