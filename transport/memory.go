package transport

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Net is a network in this process, for tests. Its transports may belong to
// different threads.
type Net struct {
	mu    sync.Mutex
	nodes map[netip.AddrPort]*Memory
	// Lose, if set, decides which datagrams get lost. It is called with the
	// network locked. To be set before the first Open.
	Lose func(from, to netip.AddrPort, p []byte) bool
}

const (
	memorySlots = 256
	memoryMTU   = 1472
)

// Memory is a transport over a [Net].
type Memory struct {
	net    *Net
	addr   netip.AddrPort
	filter Filter
	table  *Table
	stats  Stats
	closed bool

	out, in, hand [memorySlots]memorySlot // in is shared, under the network's lock
	nOut, nIn     int
	arrived       atomic.Int32 // nIn
	open          int          // bytes of out[nOut] that Buf gave away, -1: none
}

type memorySlot struct {
	peer int
	from Source
	addr netip.AddrPort
	n    int
	data [memoryMTU]byte
}

var _ Transport = (*Memory)(nil)

// Open adds a node to the network.
func (n *Net) Open(addr netip.AddrPort, filter Filter) (*Memory, error) {
	if err := filter.Check(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.nodes[addr]; ok {
		return nil, fmt.Errorf("open %v: address in use", addr)
	}
	if n.nodes == nil {
		n.nodes = make(map[netip.AddrPort]*Memory)
	}
	m := &Memory{net: n, addr: addr, filter: filter, table: &Table{}, open: -1}
	n.nodes[addr] = m
	return m, nil
}

// Poll implements Transport.
func (m *Memory) Poll(max int, f func(p []byte, from PeerID)) int {
	m.open = -1
	if m.arrived.Load() == 0 {
		return 0 // so that idle loops don't fight for the lock
	}
	m.net.mu.Lock()
	n := min(max, m.nIn)
	for i := range n {
		s, h := &m.in[i], &m.hand[i]
		h.from, h.n = s.from, copy(h.data[:], s.data[:s.n])
	}
	for i := n; i < m.nIn; i++ {
		s, d := &m.in[i], &m.in[i-n]
		d.from, d.n = s.from, copy(d.data[:], s.data[:s.n])
	}
	m.nIn -= n
	m.arrived.Store(int32(m.nIn))
	m.net.mu.Unlock()

	found := 0
	for i := range n {
		h := &m.hand[i]
		p := h.data[:h.n]
		peer := m.table.Find(h.from)
		if peer < 0 {
			m.stats.Drops[DropStranger]++
			continue
		}
		if why, ok := m.filter.Passes(p); !ok {
			m.stats.Drops[why]++
			continue
		}
		m.stats.RxPackets++
		m.stats.RxBytes += uint64(len(p))
		found++
		f(p, m.table.Peers[peer].ID)
	}
	return found
}

// Buf implements Transport.
func (m *Memory) Buf(to PeerID, n int) []byte {
	m.open = -1
	peer := m.table.Index(to)
	if peer < 0 || n > memoryMTU || m.nOut == memorySlots {
		return nil
	}
	m.out[m.nOut].peer, m.open = peer, n
	return m.out[m.nOut].data[:n:n]
}

// Commit implements Transport.
func (m *Memory) Commit(n int) {
	if n < 0 || n > m.open {
		panic(fmt.Sprintf("transport: commit of %d bytes, Buf gave %d", n, m.open))
	}
	s := &m.out[m.nOut]
	s.n, s.addr = n, m.table.Peers[s.peer].Addr
	m.nOut++
	m.open = -1
}

// Flush implements Transport.
func (m *Memory) Flush() error {
	m.open = -1
	if m.nOut == 0 {
		return nil
	}
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	for i := range m.nOut {
		s := &m.out[i]
		m.stats.TxPackets++
		m.stats.TxBytes += uint64(s.n)
		to := m.net.nodes[s.addr]
		if to == nil || m.net.Lose != nil && m.net.Lose(m.addr, s.addr, s.data[:s.n]) {
			continue
		}
		if to.nIn == memorySlots {
			to.stats.Drops[DropNoRoom]++
			continue
		}
		d := &to.in[to.nIn]
		d.from, d.n = SourceOf(m.addr), copy(d.data[:], s.data[:s.n])
		to.nIn++
		to.arrived.Store(int32(to.nIn))
	}
	m.nOut = 0
	return nil
}

// SetPeers implements Transport.
func (m *Memory) SetPeers(peers []Peer) error {
	m.open = -1
	t, err := NewTable(peers, m.addr.Addr().Is6() && !m.addr.Addr().Is4In6())
	if err == nil {
		m.table = t
	}
	return err
}

// MTU implements Transport.
func (m *Memory) MTU(to PeerID) int {
	if m.table.Index(to) < 0 {
		return 0
	}
	return memoryMTU
}

// Tick implements Transport.
func (m *Memory) Tick(time.Duration) error { return nil }

// Fds implements Transport: there is nothing to sleep on.
func (m *Memory) Fds() []int { return nil }

// Path implements Transport.
func (m *Memory) Path() Path { return Path{Kind: KindMemory, Proven: true} }

// Stats implements Transport.
func (m *Memory) Stats() Stats {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	return m.stats
}

// Close implements Transport.
func (m *Memory) Close() error {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	if !m.closed {
		delete(m.net.nodes, m.addr)
		m.closed = true
	}
	return nil
}
