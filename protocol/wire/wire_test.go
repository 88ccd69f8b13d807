package wire

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/golden.txt anew; read the diff before committing")

// samples holds one message of every opcode with telling values in each field.
func samples() []Message {
	key, data := []byte("locking/7f"), []byte("share-mode")
	op := OPID{PNN: 3, Life: 0x1122334455667788, Counter: 42}
	dones := AppendDone(nil, Done{op, OK})
	dones = AppendDone(dones, Done{OPID{1, 2, 3}, NotFound})
	tags := AppendTag(nil, Tag{op, 4})
	tags = AppendTag(tags, Tag{OPID{1, 2, 3}, 6})
	members := AppendMember(nil, &Member{VNN: 0x10, PNN: 0, Port: Port, Addr: [16]byte{10: 0xff, 11: 0xff, 12: 10, 15: 1}, Incarnation: 0xa1, Life: 0x20000})
	members = AppendMember(members, &Member{VNN: 0x11, PNN: 5, Joiner: true, Port: Port, Incarnation: 0xa2, Life: 0x30005})
	claims := AppendClaim(nil, &Claim{Kind: ClaimOwner, DBID: 7, RSN: 9, Key: key})
	claims = AppendClaim(claims, &Claim{Kind: ClaimCarried, DBID: 7, RSN: 8, Bound: 5, ReqID: 77, Token: 0x99, Key: []byte("k")})
	verdicts := AppendVerdict(AppendVerdict(nil, Verdict{0x99, true}), Verdict{0x9a, false})
	pieces := AppendPiece(nil, &Piece{DBID: 7, OPID: op, Key: key, Data: data})
	batch := AppendEntry(nil, &Entry{RSN: 4, Key: key, Data: data})
	all := Message{Dest: 0x10, Src: 0x11, ReqID: 0xdeadbeef, Timeout: 2000, LockID: 0xcafe, LockTimeout: 500, Cond: 2, Key: key, Data: data, DMaster: 0x12,
		OPID: op, Via: 0xbeef, Room: 65536, Hops: 1, Piece: OPID{3, 4, 5}, RSN: 0x0102030405060708, LAccessor: 0x13, LACount: 6, Dones: dones, Tags: tags,
		T: 123456789, Epoch: 0x50003, Promise: 0x60002, Open: true, Grant: true, Life: 0x40000, Floor: 41, Heard: 0b101011, Members: members, Memory: MemoryFull,
		VNN: 0x14, Since: le.AppendUint32(le.AppendUint32(nil, 12), ^uint32(0)), Nodes: 2, Inc: 0xa3, Why: WatchChanged, Cursor: 1 << 40}
	var ms []Message
	for o := range Op(len(layouts)) {
		if !o.Valid() {
			continue
		}
		m := all
		m.Op = o
		switch o {
		case Claims:
			m.Rows = claims
		case Verdicts:
			m.Rows = verdicts
		case Resupply:
			m.Rows = pieces
		case ReplyTraverse:
			m.Rows = batch
		}
		ms = append(ms, m)
	}
	locked := all
	locked.Op, locked.Status, locked.Data = ReplyError, VNNMap, []byte("epoch 5.3")
	return append(ms, locked)
}

// golden prints packets as hex, one line per field with the table's own names.
func golden(t *testing.T) string {
	var out strings.Builder
	for _, m := range samples() {
		p := Append(nil, &m)
		fmt.Fprintf(&out, "%s (%d, %d bytes)\n  %-12x OPERATION\n", m.Op, uint32(m.Op), len(p), p[:4])
		d, rest, got := decoder{b: p[4:]}, p[4:], Message{Op: m.Op}
		for _, f := range layouts[m.Op] {
			if d.field(f, &got); d.err != nil {
				t.Fatalf("%s: %v", m.Op, d.err)
			}
			if n := len(rest) - len(d.b); n > 0 {
				fmt.Fprintf(&out, "  %-12x %s\n", rest[:n], fieldNames[f])
			}
			rest = d.b
		}
		out.WriteByte('\n')
	}
	h := Header{Flags: FlagData | FlagFrag, Cluster: 0xc1c1c1c1, Src: 1, Dst: 2, SrcInc: 0x11, DstInc: 0x22, Epoch: 0x50003, Packet: 9, Seq: 3, Ack: 2, AckBits: 5, DBID: 7, MsgID: 4, Index: 1, Count: 2}
	fmt.Fprintf(&out, "envelope, fragment 1 of 2, payload \"xyz\"\n  %x\n", AppendSum(append(AppendHeader(nil, &h), "xyz"...)))
	return out.String()
}

func TestGolden(t *testing.T) {
	const name = "testdata/golden.txt"
	got := golden(t)
	if *rewrite {
		if err := os.WriteFile(name, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the format on the wire has changed (go test -run Golden -rewrite shows where):\n%s", got)
	}
}

// TestPlanBytes writes two of the plan's packets by hand: the table must not be
// the only witness of its own correctness.
func TestPlanBytes(t *testing.T) {
	m := Message{Op: ReqFetchLocked, Dest: 2, Src: 1, ReqID: 7, Timeout: 300, LockTimeout: 400, Key: []byte("ab")}
	want := []byte{3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 44, 1, 0, 0, 144, 1, 0, 0, 2, 0, 0, 0, 'a', 'b'}
	if got := Append(nil, &m); !bytes.HasPrefix(got, want) || len(got) != len(want)+36 {
		t.Errorf("CTDB_REQ_FETCH_LOCKED: % x", got)
	}
	m = Message{Op: ReplyFetch, Dest: 1, Src: 2, ReqID: 7, Data: []byte("xyz")}
	want = []byte{2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 'x', 'y', 'z'}
	if got := Append(nil, &m); !bytes.Equal(got, want) {
		t.Errorf("CTDB_REPLY_FETCH: % x", got)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, m := range samples() {
		p := Append(nil, &m)
		var got Message
		if err := Decode(p, &got); err != nil {
			t.Fatalf("%s: %v", m.Op, err)
		}
		if again := Append(nil, &got); !bytes.Equal(again, p) {
			t.Errorf("%s: % x decodes to something that encodes as % x", m.Op, p, again)
		}
		for n := range p { // every prefix is refused
			if err := Decode(p[:n], &got); !errors.Is(err, ErrPacket) {
				t.Errorf("%s cut to %d of %d bytes: %v", m.Op, n, len(p), err)
			}
		}
		if err := Decode(append(p[:len(p):len(p)], 0), &got); !errors.Is(err, ErrPacket) {
			t.Errorf("%s with a byte too many: %v", m.Op, err)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	buf := make([]byte, 0, 4096)
	var got Message
	for _, m := range samples() {
		if n := testing.AllocsPerRun(100, func() {
			buf = Append(buf[:0], &m)
			if Decode(buf, &got) != nil {
				panic("refused")
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", m.Op, n)
		}
		if n := testing.AllocsPerRun(100, func() { _ = Decode(buf[:len(buf)-1], &got) }); n != 0 {
			t.Errorf("%s, refused: %v allocations", m.Op, n)
		}
	}
}

// TestBadValues: fields that fit but can't be.
func TestBadValues(t *testing.T) {
	ms := map[Op]Message{}
	for _, m := range samples() {
		ms[m.Op] = m
	}
	bad := func(name string, op Op, edit func(p []byte)) {
		m := ms[op]
		p := Append(nil, &m)
		edit(p)
		var got Message
		if err := Decode(p, &got); !errors.Is(err, ErrPacket) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad("no opcode", ReqFetch, func(p []byte) { p[0] = 19 })
	bad("opcode beyond the table", ReqFetch, func(p []byte) { p[3] = 1 })
	bad("own REQID where there is none", ReqFetch, func(p []byte) { p[len(p)-12] = 1 })
	bad("PNN of 17 bits", ReqFetch, func(p []byte) { p[len(p)-34] = 1 })
	bad("boolean 2", Ping, func(p []byte) { p[20] = 2 })
	bad("key longer than the packet", ReqFetch, func(p []byte) { p[20] = 0xff })
	bad("pieces shorter than the data", ReplyDMaster, func(p []byte) { p[len(p)-4]-- })
	bad("member twice", NewMap, func(p []byte) { copy(p[16+44:], p[16:16+44]) })
	bad("text is not UTF-8", ReplyError, func(p []byte) { p[24] = 0xff })
	bad("unknown memory", Promise, func(p []byte) { p[4+8+8+4+88] = 3 })
	bad("claim of no kind", Claims, func(p []byte) { p[8] = 0 })
}

func TestHeader(t *testing.T) {
	h := Header{Flags: FlagControl, Cluster: 5, Src: 1, Dst: 2, SrcInc: 3, DstInc: 4, Epoch: 5, Packet: 6, Seq: 7, Ack: 8, AckBits: 9, DBID: 10}
	p := AppendSum(append(AppendHeader(nil, &h), "payload"...))
	var got Header
	if payload, err := DecodeHeader(p, 5, &got); err != nil || got != h || string(payload) != "payload" {
		t.Fatalf("%+v %q %v", got, payload, err)
	}
	if _, err := DecodeHeader(p, 6, &got); !errors.Is(err, ErrCluster) {
		t.Errorf("another cluster's datagram: %v", err)
	}
	for i := range p { // one flipped bit anywhere is refused
		p[i] ^= 1 << (i % 8)
		if _, err := DecodeHeader(p, 5, &got); !errors.Is(err, ErrPacket) {
			t.Errorf("bit flipped in byte %d: %v", i, err)
		}
		p[i] ^= 1 << (i % 8)
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range samples() {
		f.Add(Append(nil, &m))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var m Message
		if err := Decode(p, &m); err != nil {
			if !errors.Is(err, ErrPacket) {
				t.Fatal(err)
			}
			return
		}
		if again := Append(nil, &m); !bytes.Equal(again, p) {
			t.Fatalf("% x accepted, but encodes as % x", p, again)
		}
	})
}

// TestGarbage is the fuzzer's short form: bytes of samples, changed at random.
func TestGarbage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	ms := samples()
	var m Message
	var h Header
	for range 200_000 {
		p := Append(nil, &ms[rng.IntN(len(ms))])
		for range 1 + rng.IntN(4) {
			p[rng.IntN(len(p))] = byte(rng.Uint32())
		}
		p = p[:len(p)-rng.IntN(2)*rng.IntN(len(p))]
		if err := Decode(p, &m); err == nil {
			if again := Append(nil, &m); !bytes.Equal(again, p) {
				t.Fatalf("% x accepted, but encodes as % x", p, again)
			}
		} else if !errors.Is(err, ErrPacket) {
			t.Fatal(err)
		}
		_, _ = DecodeHeader(p, 5, &h)
	}
}

func BenchmarkCodec(b *testing.B) {
	m := samples()[0]
	buf := make([]byte, 0, 4096)
	var got Message
	b.ReportAllocs()
	for b.Loop() {
		buf = Append(buf[:0], &m)
		if err := Decode(buf, &got); err != nil {
			b.Fatal(err)
		}
	}
}
