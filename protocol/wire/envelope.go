package wire

import (
	"fmt"
	"hash/crc32"
)

// Header is the link's envelope around a packet, a fragment of one, or nothing.
//
//	0   u16 magic    2 u8 version   3 u8 flags   4 u32 cluster
//	8   u16 src PNN  10 u16 dst PNN
//	12  u64 src incarnation   20 u64 dst incarnation
//	28  u64 epoch             36 u64 packet number
//	44  u64 sequence          52 u64 ack          60 u64 ack bits
//	68  u32 dbid
//	[72 u32 message id  76 u16 index  78 u16 count]      FlagFrag
//	    payload, then u32 CRC-32C of all before it, or the AEAD's tag
//
// What goes out, by its flags (FRAG and SEALED come on top):
//
//	DATA, CONTROL             a packet, Seq from 1; an empty one in CONTROL was cancelled
//	DATA|ACK, CONTROL|ACK     nothing but Ack and AckBits
//	DATA|REFUSED, CONTROL|REFUSED   Ack is the one sequence that is refused
//	PING, PONG                a packet outside the channels, numbered by Seq as well
//	PING|ACK                  a challenge: is DstInc alive?
//	PONG|ACK                  it is: Ack is the challenge's packet number
type Header struct {
	Flags   uint8
	Cluster uint32 // hash of the cluster's name: another's datagrams are dropped
	Src     PNN
	Dst     PNN
	SrcInc  uint64
	DstInc  uint64 // 0: not known yet
	Epoch   Epoch  // DATA: the sender's epoch; CONTROL: the ballot; 0: none
	Packet  uint64 // per incarnation, never repeated for other bytes: the AEAD's nonce
	Seq     uint64 // from 1, per peer, channel and (DATA) epoch, PING and PONG by themselves; 0: no packet
	Ack     uint64 // all of 1..Ack were handled
	AckBits uint64 // bit i: Ack+2+i was handled
	DBID    uint32
	MsgID   uint32
	Index   uint16
	Count   uint16
}

// Sizes of the envelope.
const (
	HeaderSize = 72
	FragSize   = 8
	SumSize    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendHeader encodes h behind b; the payload goes behind it, then Seal.
func AppendHeader(b []byte, h *Header) []byte {
	b = le.AppendUint16(b, Magic)
	b = append(b, Version, h.Flags)
	b = le.AppendUint32(b, h.Cluster)
	b = le.AppendUint16(b, uint16(h.Src))
	b = le.AppendUint16(b, uint16(h.Dst))
	b = le.AppendUint64(b, h.SrcInc)
	b = le.AppendUint64(b, h.DstInc)
	b = le.AppendUint64(b, uint64(h.Epoch))
	b = le.AppendUint64(b, h.Packet)
	b = le.AppendUint64(b, h.Seq)
	b = le.AppendUint64(b, h.Ack)
	b = le.AppendUint64(b, h.AckBits)
	b = le.AppendUint32(b, h.DBID)
	if h.Flags&FlagFrag != 0 {
		b = le.AppendUint32(b, h.MsgID)
		b = le.AppendUint16(b, h.Index)
		b = le.AppendUint16(b, h.Count)
	}
	return b
}

// AppendSum ends a datagram that starts at b[0] with its checksum.
func AppendSum(b []byte) []byte {
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Reasons to drop a datagram without an answer.
var (
	ErrEnvelope = fmt.Errorf("%w: not an envelope of ours", ErrPacket)
	ErrCluster  = fmt.Errorf("%w: another cluster's", ErrPacket)
	ErrSum      = fmt.Errorf("%w: wrong checksum", ErrPacket)
	ErrSealed   = fmt.Errorf("%w: sealed where nothing is, or the reverse", ErrPacket)
)

// DecodeHeader reads an unsealed datagram's envelope and checks its sum; the
// payload borrows from the datagram.
func DecodeHeader(b []byte, cluster uint32, h *Header) (payload []byte, err error) {
	if err := readHeader(b, cluster, SumSize, h); err != nil {
		return nil, err
	}
	if h.Flags&FlagSealed != 0 {
		return nil, ErrSealed
	}
	end := len(b) - SumSize
	if crc32.Checksum(b[:end], castagnoli) != le.Uint32(b[end:]) {
		return nil, ErrSum
	}
	at := h.size()
	if end < at || !h.possible(end-at) {
		return nil, ErrEnvelope
	}
	return b[at:end:end], nil
}

// DecodeSealed reads a sealed datagram's envelope, in which no field may be
// believed before what is behind it has been opened: head is the additional data,
// sealed the payload with its tag of overhead bytes. Both borrow from the datagram.
func DecodeSealed(b []byte, cluster uint32, overhead int, h *Header) (head, sealed []byte, err error) {
	if err := readHeader(b, cluster, overhead, h); err != nil {
		return nil, nil, err
	}
	if h.Flags&FlagSealed == 0 {
		return nil, nil, ErrSealed
	}
	at := h.size()
	if len(b)-overhead < at || !h.possible(len(b)-overhead-at) {
		return nil, nil, ErrEnvelope
	}
	return b[:at:at], b[at:len(b):len(b)], nil
}

// readHeader takes the fields as they stand. tail: bytes behind the payload.
func readHeader(b []byte, cluster uint32, tail int, h *Header) error {
	if len(b) < HeaderSize+tail || le.Uint16(b) != Magic || b[2] != Version {
		return ErrEnvelope
	}
	*h = Header{Flags: b[3], Cluster: le.Uint32(b[4:]), Src: PNN(le.Uint16(b[8:])), Dst: PNN(le.Uint16(b[10:])),
		SrcInc: le.Uint64(b[12:]), DstInc: le.Uint64(b[20:]), Epoch: Epoch(le.Uint64(b[28:])),
		Packet: le.Uint64(b[36:]),
		Seq:    le.Uint64(b[44:]), Ack: le.Uint64(b[52:]), AckBits: le.Uint64(b[60:]), DBID: le.Uint32(b[68:])}
	if h.Cluster != cluster {
		return ErrCluster
	}
	if h.Flags&FlagFrag != 0 && len(b) >= HeaderSize+FragSize {
		h.MsgID, h.Index, h.Count = le.Uint32(b[72:]), le.Uint16(b[76:]), le.Uint16(b[78:])
	}
	return nil
}

// size of the encoded header.
func (h *Header) size() int {
	if h.Flags&FlagFrag != 0 {
		return HeaderSize + FragSize
	}
	return HeaderSize
}

// possible tells whether a link of ours would send this header before a payload
// of n bytes.
func (h *Header) possible(n int) bool {
	frag := h.Flags&FlagFrag != 0
	if h.Src >= MaxNodes || h.Dst >= MaxNodes || h.Src == h.Dst || h.SrcInc == 0 || h.Packet == 0 || frag &&
		(h.Count < 2 || h.Index >= h.Count || n == 0) {
		return false
	}
	switch h.Flags &^ (FlagSealed | FlagFrag) {
	case FlagData, FlagControl:
		return h.Seq != 0 && h.DstInc != 0 && (n > 0 || h.Flags&FlagControl != 0) // CONTROL: cancelled
	case FlagPing, FlagPong:
		return h.Seq != 0 && h.Ack == 0 && h.AckBits == 0 && n > 0
	case FlagData | FlagAck, FlagControl | FlagAck, FlagPing | FlagAck:
		return h.Seq == 0 && h.DstInc != 0 && n == 0
	case FlagData | FlagRefused, FlagControl | FlagRefused, FlagPong | FlagAck:
		return h.Seq == 0 && h.DstInc != 0 && h.Ack != 0 && n == 0
	}
	return false
}
