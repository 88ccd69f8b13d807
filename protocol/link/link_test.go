package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/mainzdb/mainz/protocol/wire"
)

// seedOf is the seed of a random test: MAINZ_SEED, or a new one. It is printed.
func seedOf(t *testing.T) uint64 {
	seed := rand.Uint64() % 1e9
	if v := os.Getenv("MAINZ_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("MAINZ_SEED: %v", err)
		}
	}
	t.Logf("MAINZ_SEED=%d", seed)
	return seed
}

// rounds is how many seeds a random test runs.
func rounds() uint64 {
	if testing.Short() {
		return 15
	}
	return 60
}

// network is three links, a lossy wire between them, and what must hold.
type network struct {
	t     *testing.T
	rng   *rand.Rand
	now   Instant
	nodes []*host
	wire  []flying
	loss  float64
	seen  map[string][]byte // (node, incarnation, packet number) → bytes
	// sealed networks have a cluster key; every use of a nonce is in the vault.
	sealed bool
	vault  map[string]string
}

type flying struct {
	at Instant
	to wire.PNN
	b  []byte
}

type host struct {
	net     *network
	id      wire.PNN
	inc     uint64
	l       *Link
	epoch   wire.Epoch
	lazy    float64           // how often the handler says NotYet
	handled map[string]int    // by contents: contents are unique
	tokens  map[uint64]string // sent, with its contents
	acked   map[string]bool
	refused map[string]bool
}

func newNetwork(t *testing.T, seed uint64) *network {
	n := &network{t: t, rng: rand.New(rand.NewPCG(seed, 7)), now: Second, seen: map[string][]byte{},
		vault: map[string]string{}}
	n.sealed = n.rng.IntN(2) == 0
	for i := range 3 {
		h := &host{net: n, id: wire.PNN(i), handled: map[string]int{}, tokens: map[uint64]string{},
			acked: map[string]bool{}, refused: map[string]bool{}}
		n.nodes = append(n.nodes, h)
		h.start()
	}
	return n
}

func (h *host) start() {
	h.inc = h.net.rng.Uint64() | 1
	cfg := Config{Self: h.id, Nodes: 3, Incarnation: h.inc, Cluster: 9, MTU: 200}
	if h.net.sealed {
		cfg.Sealer = &aeadSealer{secret: []byte("of the cluster"), vault: h.net.vault, t: h.net.t}
	}
	l, err := New(cfg)
	if err != nil {
		h.net.t.Fatal(err)
	}
	h.l = l
	h.l.SetEpoch(h.epoch)
	clear(h.tokens)
	for i := range 3 {
		if wire.PNN(i) != h.id {
			h.ping(wire.PNN(i))
		}
	}
}

// take a new epoch: the tokens of older messages never come back.
func (h *host) take(epoch wire.Epoch) {
	if h.epoch >= epoch {
		return
	}
	h.epoch = epoch
	clear(h.tokens)
	h.l.Cancel(h.net.now, epoch)
	h.l.SetEpoch(epoch)
}

func (h *host) ping(to wire.PNN) {
	h.l.Send(h.net.now, to, Beacon, h.epoch, 0, wire.Append(nil, &wire.Message{Op: wire.Ping}), 0)
}

// packet: 8 bytes that make it unique, then as much as its length says.
func (h *host) send(to wire.PNN, ch Channel, n uint64, size int) {
	b := binary.LittleEndian.AppendUint64(nil, n)
	for len(b) < size {
		b = append(b, byte(n)+byte(len(b)))
	}
	key := fmt.Sprintf("%d>%d %d %x", h.id, to, ch, b)
	h.tokens[n] = key
	h.l.Send(h.net.now, to, ch, h.epoch, 7, b, n)
}

func (h *host) Step(now Instant, from wire.PNN, ch Channel, epoch wire.Epoch, dbid uint32, p []byte) Verdict {
	if ch == Beacon {
		return Handled
	}
	if ch == Data && epoch < h.epoch {
		return Refused
	}
	if ch == Data && epoch > h.epoch || h.net.rng.Float64() < h.lazy {
		return NotYet
	}
	key := fmt.Sprintf("%d>%d %d %x", from, h.id, ch, p)
	if h.handled[key]++; h.handled[key] > 1 {
		h.net.t.Fatalf("node %d handled %s twice", h.id, key)
	}
	return Handled
}

func (h *host) Acked(now Instant, token uint64) {
	key, ok := h.tokens[token]
	if !ok {
		h.net.t.Fatalf("node %d: ack for token %d, which is not under way", h.id, token)
	}
	done := 0
	for _, o := range h.net.nodes {
		done += o.handled[key]
	}
	if done != 1 {
		h.net.t.Fatalf("acked but handled %d times: %s", done, key)
	}
	delete(h.tokens, token)
	h.acked[key] = true
}

func (h *host) Refused(now Instant, token uint64) {
	if h.acked[h.tokens[token]] {
		h.net.t.Fatalf("acked and refused: %s", h.tokens[token])
	}
	delete(h.tokens, token)
}

func (h *host) Peer(now Instant, pnn wire.PNN, ev PeerEvent) {
	h.ping(pnn)
	if ev == Met {
		return
	}
	for n, key := range h.tokens { // all that was under way to it is gone
		var a, b int
		fmt.Sscanf(key, "%d>%d", &a, &b)
		if b == int(pnn) {
			delete(h.tokens, n)
		}
	}
}

// step moves the time to the next event and does it.
func (n *network) step() {
	next := Never
	for _, h := range n.nodes {
		next = min(next, h.l.Next())
	}
	for _, f := range n.wire {
		next = min(next, f.at)
	}
	if next == Never {
		return
	}
	n.now = max(n.now, next)
	for i := 0; i < len(n.wire); i++ {
		if f := n.wire[i]; f.at <= n.now {
			n.wire = append(n.wire[:i], n.wire[i+1:]...)
			n.nodes[f.to].l.Receive(n.now, f.b, n.nodes[f.to])
			break
		}
	}
	for _, h := range n.nodes {
		h.l.Tick(n.now)
	}
	n.flush()
	for _, h := range n.nodes {
		if err := h.l.Check(n.now); err != nil {
			n.t.Fatal(err)
		}
	}
}

func (n *network) flush() {
	for _, h := range n.nodes {
		for _, d := range h.l.Take() {
			key := fmt.Sprintf("%d %x %x", h.id, d.Bytes[12:20], d.Bytes[36:44])
			if old, ok := n.seen[key]; ok && !bytes.Equal(old, d.Bytes) {
				n.t.Fatalf("packet number used for other bytes:\n% x\n% x", old, d.Bytes)
			}
			b := bytes.Clone(d.Bytes)
			n.seen[key] = b
			for range 1 + n.rng.IntN(10)/9 { // one in ten is repeated
				if n.rng.Float64() < n.loss {
					continue
				}
				delay := Instant(n.rng.Int64N(int64(300 * Microsecond)))
				if n.rng.IntN(50) == 0 {
					delay *= 100
				}
				n.wire = append(n.wire, flying{n.now + delay, d.To, b})
			}
		}
	}
}

// settle runs without faults until nothing is left to do.
func (n *network) settle() {
	n.loss = 0
	for _, h := range n.nodes {
		h.lazy = 0
	}
	for range 200_000 {
		n.step()
		for _, h := range n.nodes {
			h.l.Retry(n.now, h)
		}
		n.flush()
		busy := len(n.wire)
		for _, h := range n.nodes {
			busy += len(h.l.held)
			for i := range h.l.peers {
				for c := range h.l.peers[i].ch {
					busy += len(h.l.peers[i].ch[c].flight) + h.l.peers[i].ch[c].waiting.len()
				}
			}
		}
		if busy == 0 {
			return
		}
	}
	n.t.Fatal("does not come to rest")
}

// TestLossy: whatever the network does, what was sent is handled once and acked.
func TestLossy(t *testing.T) {
	base := seedOf(t)
	for i := range rounds() {
		seed := base + i
		n := newNetwork(t, seed)
		n.loss = n.rng.Float64() * 0.4
		var sent []string
		for k := range uint64(400) {
			h := n.nodes[n.rng.IntN(3)]
			to := (h.id + 1 + wire.PNN(n.rng.IntN(2))) % 3
			h.lazy = n.rng.Float64() * 0.3
			size := 8 + n.rng.IntN(60)
			if n.rng.IntN(20) == 0 {
				size = 300 + n.rng.IntN(3000)
			}
			h.send(to, Channel(n.rng.IntN(2)), k+1, size)
			sent = append(sent, h.tokens[k+1])
			for range n.rng.IntN(6) {
				n.step()
			}
			if n.rng.IntN(10) == 0 {
				h.ping(to)
			}
		}
		for _, h := range n.nodes {
			h.ping((h.id + 1) % 3)
			h.ping((h.id + 2) % 3)
		}
		n.settle()
		for _, key := range sent {
			acked := 0
			for _, h := range n.nodes {
				if h.acked[key] {
					acked++
				}
			}
			if acked != 1 {
				t.Fatalf("seed %d: acked %d times: %.40s", seed, acked, key)
			}
		}
	}
}

// TestEpochs: epochs change and nodes restart; nothing is handled twice, and no
// ack frees what belongs to another epoch or incarnation.
func TestEpochs(t *testing.T) {
	base := seedOf(t)
	for i := range rounds() {
		seed := base + i
		n := newNetwork(t, seed)
		n.loss = n.rng.Float64() * 0.3
		epoch := wire.Epoch(1)
		for k := range uint64(600) {
			h := n.nodes[n.rng.IntN(3)]
			switch r := n.rng.IntN(100); {
			case r < 3:
				epoch++
				fallthrough
			case r < 9:
				h.take(epoch)
			case r < 10:
				h.start()
			default:
				h.lazy = n.rng.Float64() * 0.3
				size := 8
				if n.rng.IntN(10) == 0 {
					size = 700
				}
				h.send((h.id+1+wire.PNN(n.rng.IntN(2)))%3, Channel(n.rng.IntN(2)), k+1, size)
			}
			for range n.rng.IntN(6) {
				n.step()
			}
			if n.rng.IntN(5) == 0 {
				h.l.Retry(n.now, h)
				h.ping((h.id + 1) % 3)
			}
		}
		for _, h := range n.nodes {
			h.take(epoch)
			h.ping((h.id + 1) % 3)
			h.ping((h.id + 2) % 3)
		}
		n.settle()
	}
}

// TestCancel: cancelled CONTROL messages leave no hole in the sequence.
func TestCancel(t *testing.T) {
	n := newNetwork(t, seedOf(t))
	n.flush()
	n.settle()
	a, b := n.nodes[0], n.nodes[1]
	n.loss = 1
	for k := range uint64(200) {
		a.epoch = 5
		a.send(1, Control, k+1, 40)
	}
	n.flush()
	a.l.Cancel(n.now, 6)
	clear(a.tokens)
	n.loss = 0.2
	a.epoch = 6
	for k := range uint64(100) {
		a.send(1, Control, 1000+k, 300)
	}
	n.flush()
	n.settle()
	if len(a.acked) != 100 || len(b.handled) != 100 {
		t.Errorf("%d messages of the present ballot acked, %d handled; want 100", len(a.acked), len(b.handled))
	}
}
