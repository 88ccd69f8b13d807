package transport

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Source is where a datagram came from, in a form that is cheap to compare.
// IPv4 addresses are mapped into IPv6; zones are left out.
type Source struct {
	Hi, Lo uint64
	Port   uint16
}

const mapped = 0xffff << 32

// Source4 is the source with these four bytes of address.
func Source4(a []byte, port uint16) Source {
	return Source{0, mapped | uint64(binary.BigEndian.Uint32(a)), port}
}

// Source6 is the source with these sixteen bytes of address.
func Source6(a []byte, port uint16) Source {
	return Source{binary.BigEndian.Uint64(a), binary.BigEndian.Uint64(a[8:]), port}
}

// SourceOf is the source that datagrams of this address have.
func SourceOf(a netip.AddrPort) Source {
	b := a.Addr().As16()
	return Source6(b[:], a.Port())
}

// Table finds peers by what a datagram tells, and by name. The zero Table is
// empty. Transports keep their own state of a peer under its index.
type Table struct {
	Peers    []Peer
	bySource map[Source]int32
	byID     []int32 // index + 1
	last     Source  // of the last datagram: bursts come from one peer
	lastIx   int32
}

// NewTable checks the peers and makes a table of them. v6 tells which family
// they must be of.
func NewTable(peers []Peer, v6 bool) (*Table, error) {
	t := &Table{Peers: make([]Peer, len(peers)), bySource: make(map[Source]int32, len(peers)), lastIx: -1}
	copy(t.Peers, peers)
	for i, p := range t.Peers {
		s := SourceOf(p.Addr)
		switch {
		case p.ID > MaxPeerID:
			return nil, fmt.Errorf("%w: number %d is above %d", ErrPeer, p.ID, MaxPeerID)
		case !p.Addr.IsValid() || p.Addr.Port() == 0 || p.Addr.Addr().IsUnspecified() || p.Addr.Addr().IsMulticast():
			return nil, fmt.Errorf("%w %d: %v is not one node's address and port", ErrPeer, p.ID, p.Addr)
		case p.Addr.Addr().Unmap().Is4() == v6:
			return nil, fmt.Errorf("%w %d: %v is of another IP version than ours", ErrPeer, p.ID, p.Addr)
		case t.Index(p.ID) >= 0:
			return nil, fmt.Errorf("%w: number %d is given to two", ErrPeer, p.ID)
		}
		if _, ok := t.bySource[s]; ok {
			return nil, fmt.Errorf("%w: %v is the address of two", ErrPeer, p.Addr)
		}
		t.bySource[s] = int32(i)
		for int(p.ID) >= len(t.byID) {
			t.byID = append(t.byID, 0)
		}
		t.byID[p.ID] = int32(i) + 1
	}
	return t, nil
}

// Find is the index of the peer that sends from s, -1 if there is none.
func (t *Table) Find(s Source) int {
	if s == t.last && t.lastIx >= 0 {
		return int(t.lastIx)
	}
	return t.findSlow(s)
}

func (t *Table) findSlow(s Source) int {
	i, ok := t.bySource[s]
	if !ok {
		return -1
	}
	t.last, t.lastIx = s, i
	return int(i)
}

// Index is the index of the peer with this ID, -1 if there is none.
func (t *Table) Index(id PeerID) int {
	if int(id) >= len(t.byID) {
		return -1
	}
	return int(t.byID[id]) - 1
}
