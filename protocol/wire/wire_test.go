package wire

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
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
		T: 123456789, Epoch: 0x50003, Promise: 0x60002, Open: true, Grant: true, Life: 0x40000, Floor: 41, Progress: 77, Heard: 0b101011, Members: members, Memory: MemoryFull,
		VNN: 0x14, Since: le.AppendUint32(le.AppendUint32(nil, 12), ^uint32(0)), Nodes: 2, Inc: 0xa3, Old: 0b1101, Clock: 1_700_000_000_000, Blame: 5, Stall: BlameMute, Why: WatchChanged, Cursor: 1 << 40}
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
		case ReplyError:
			m.Status, m.Data = NotLocked, []byte("the lock was held for 500 ms")
		case ReplyDBInfo, OpenDB, DBTable:
			m.Data, m.Mode, m.Conds = []byte("locking"), ModePieces, AppendCond(AppendCond(nil, Cond{0, 1}), Cond{16, 3})
		}
		ms = append(ms, m)
	}
	epoch, nodb := all, all
	epoch.Op, epoch.Status, epoch.Data = ReplyError, VNNMap, []byte("epoch 5.3")
	nodb.Op, nodb.Status, nodb.Data = ReplyDBInfo, NoDB, nil
	// What a client submits: the dispatcher fills in DESTNODE, SRCNODE, REQID and
	// the trailer where they stand.
	client := Message{Op: ReqConditionalAppend, Timeout: 2000, Cond: 2, Key: key, Data: data}
	return append(ms, epoch, nodb, client)
}

// envelopes has each kind of datagram.
var envelopes = []struct {
	name    string
	h       Header
	payload string
}{
	{"DATA", Header{Flags: FlagData, Cluster: 0xc1c1c1c1, Src: 1, Dst: 2, SrcInc: 0x11, DstInc: 0x22, Epoch: 0x50003, Packet: 9, Seq: 3, Ack: 2, AckBits: 5, DBID: 7}, "packet"},
	{"CONTROL, fragment 2 of 3", Header{Flags: FlagControl | FlagFrag, Cluster: 0xc1c1c1c1, Src: 1, Dst: 2, SrcInc: 0x11, DstInc: 0x22, Epoch: 0x60002, Packet: 10, Seq: 4, MsgID: 8, Index: 1, Count: 3}, "xyz"},
	{"CONTROL, cancelled by a higher ballot", Header{Flags: FlagControl, Cluster: 0xc1c1c1c1, Src: 1, Dst: 2, SrcInc: 0x11, DstInc: 0x22, Epoch: 0x60002, Packet: 11, Seq: 5}, ""},
	{"DATA, nothing but acknowledgements", Header{Flags: FlagData | FlagAck, Cluster: 0xc1c1c1c1, Src: 1, Dst: 2, SrcInc: 0x11, DstInc: 0x22, Epoch: 0x50003, Packet: 12, Ack: 6, AckBits: 1}, ""},
	{"DATA, sequence 7 refused", Header{Flags: FlagData | FlagRefused, Cluster: 0xc1c1c1c1, Src: 1, Dst: 2, SrcInc: 0x11, DstInc: 0x22, Epoch: 0x40001, Packet: 13, Ack: 7}, ""},
	{"PING, the first", Header{Flags: FlagPing, Cluster: 0xc1c1c1c1, Src: 1, Dst: 2, SrcInc: 0x11, Packet: 14, Seq: 1}, "packet"},
	{"challenge", Header{Flags: FlagPing | FlagAck, Cluster: 0xc1c1c1c1, Src: 1, Dst: 2, SrcInc: 0x11, DstInc: 0x33, Packet: 15}, ""},
	{"answer to challenge 15", Header{Flags: FlagPong | FlagAck, Cluster: 0xc1c1c1c1, Src: 2, Dst: 1, SrcInc: 0x33, DstInc: 0x11, Packet: 1, Ack: 15}, ""},
}

// golden prints packets as hex, one line per field with the table's own names.
func golden(t *testing.T) string {
	var out strings.Builder
	for _, m := range samples() {
		p := Append(nil, &m)
		fmt.Fprintf(&out, "%s (%d, %d bytes)\n  %-12x OPERATION\n", m.Op, uint32(m.Op), len(p), p[:4])
		d, rest, got := decoder{b: p[4:]}, p[4:], Message{Op: m.Op}
		for _, f := range layouts[m.Op] {
			if d.field(f, &got); d.why != 0 {
				t.Fatalf("%s, %s: %v", m.Op, fieldNames[f], d.why)
			}
			if n := len(rest) - len(d.b); n > 0 {
				fmt.Fprintf(&out, "  %-12x %s\n", rest[:n], fieldNames[f])
			}
			rest = d.b
		}
		out.WriteByte('\n')
	}
	for _, e := range envelopes {
		p := AppendSum(append(AppendHeader(nil, &e.h), e.payload...))
		fmt.Fprintf(&out, "%s (%d bytes)\n", e.name, len(p))
		at := 0
		field := func(n int, name string) {
			fmt.Fprintf(&out, "  %-16x %s\n", p[at:at+n], name)
			at += n
		}
		field(2, "magic")
		field(1, "version")
		field(1, "flags")
		field(4, "cluster")
		field(2, "source PNN")
		field(2, "destination PNN")
		field(8, "source incarnation")
		field(8, "destination incarnation")
		field(8, "epoch or ballot")
		field(8, "packet number")
		field(8, "sequence")
		field(8, "ack")
		field(8, "ack bits")
		field(4, "dbid")
		if e.h.Flags&FlagFrag != 0 {
			field(4, "message id")
			field(2, "index")
			field(2, "count")
		}
		if len(e.payload) > 0 {
			field(len(e.payload), "payload")
		}
		field(4, "CRC-32C")
		out.WriteByte('\n')
	}
	return out.String()
}

// TestStatuses: every status of the table can be sent, or who waits for it would wait
// for ever.
func TestStatuses(t *testing.T) {
	for s := range statusNames {
		if s == OK {
			continue
		}
		var m Message
		if err := Decode(Append(nil, &Message{Op: ReplyError, Status: s, Data: []byte("why")}), &m); err != nil || m.Status != s {
			t.Errorf("%v: %v, %v", s, m.Status, err)
		}
	}
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

// TestPlanBytes has the plan's eighteen messages from the plan's own text: the table
// must not be the only witness of its own correctness. A u is a uint32 of the plan,
// a string is a length and bytes; what is ours comes behind, so many bytes of it.
func TestPlanBytes(t *testing.T) {
	type u = uint32
	m := Message{Dest: 11, Src: 12, ReqID: 13, Timeout: 14, LockID: 15, LockTimeout: 16, Cond: 17, DMaster: 18, Status: NotLocked, Key: []byte("key"), Data: []byte("data")}
	const trailer = 20 + 4*4 // OPID, via, own REQID, room, hops
	const record = 8 + 4 + 4 + 4 + 4
	for _, c := range []struct {
		op   Op
		plan []any
		ours int
	}{
		{1, []any{u(11), u(12), u(13), u(14), "key"}, trailer},
		{2, []any{u(11), u(12), u(13), "data"}, 0},
		{3, []any{u(11), u(12), u(13), u(14), u(16), "key"}, trailer},
		{4, []any{u(11), u(12), u(13), "data"}, 0},
		{5, []any{u(11), u(12), u(15), u(14)}, 4 + 3 + 4 + 4 + trailer}, // the plan gives no body
		{6, []any{u(11), u(12), u(13)}, 0},
		{7, []any{u(11), u(12), u(13), u(14), "key"}, trailer},
		{8, []any{u(11), u(12), u(13)}, 0},
		{9, []any{u(11), u(12), u(15), u(14)}, 4 + 3 + trailer}, // REQID: that of the FETCH_LOCKED
		{10, []any{u(11), u(12), u(13)}, 0},
		{11, []any{u(11), u(12), u(13), u(14), u(17), "key", "data"}, 20 + trailer},
		{12, []any{u(11), u(12), u(13)}, 0},
		{13, []any{u(11), u(12), u(13), u(14), u(17), "key", "data"}, 20 + trailer},
		{14, []any{u(11), u(12), u(13)}, 0},
		{15, []any{u(11), u(12), u(13), u(18)}, 4},
		{16, []any{u(11), u(12), u(13), u(14), u(18), "key", "data"}, record},
		{17, []any{u(11), u(12), u(13), "data"}, 4 + 3 + record},
		{18, []any{u(11), u(12), u(13), u(NotLocked), "data"}, 0},
	} {
		m.Op = c.op
		want := le.AppendUint32(nil, uint32(c.op))
		for _, v := range c.plan {
			switch v := v.(type) {
			case u:
				want = le.AppendUint32(want, v)
			case string:
				want = append(le.AppendUint32(want, uint32(len(v))), v...)
			}
		}
		if got := Append(nil, &m); !bytes.HasPrefix(got, want) || len(got) != len(want)+c.ours {
			t.Errorf("CTDB_%s: % x (%d bytes), the plan's part is % x and ours %d bytes", c.op, got, len(got), want, c.ours)
		}
	}
	names := []string{"REQ_FETCH", "REPLY_FETCH", "REQ_FETCH_LOCKED", "REPLY_FETCH_LOCKED", "REQ_STORE_UNLOCK", "REPLY_STORE_UNLOCK", "REQ_DELETE", "REPLY_DELETE",
		"REQ_UNLOCK", "REPLY_UNLOCK", "REQ_CONDITIONAL_APPEND", "REPLY_CONDITIONAL_APPEND", "REQ_REMOVE_TRIGGER", "REPLY_REMOVE_TRIGGER", "REPLY_REDIRECT",
		"REQUEST_DMASTER", "REPLY_DMASTER", "REPLY_ERROR"}
	for i, name := range names { // in the plan's order
		if got := Op(i + 1).String(); got != name {
			t.Errorf("opcode %d is %s, not %s", i+1, got, name)
		}
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
		if _, have := ms[m.Op]; !have {
			ms[m.Op] = m
		}
	}
	edited := func(name string, op Op, why Reason, edit func(p []byte)) {
		m := ms[op]
		p := Append(nil, &m)
		edit(p)
		var got Message
		var bad *PacketError
		if err := Decode(p, &got); !errors.Is(err, ErrPacket) || !errors.As(err, &bad) || bad.Why != why || why <= Impossible && (bad.Op != op || bad.Field == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := func(name string, op Op, edit func(p []byte)) { edited(name, op, Impossible, edit) }
	u32 := func(at int, v uint32) func([]byte) {
		return func(p []byte) {
			if at < 0 {
				at += len(p)
			}
			le.PutUint32(p[at:], v)
		}
	}
	edited("no opcode", ReqFetch, NoMessage, u32(0, 19))
	edited("opcode beyond the table", ReqFetch, NoMessage, u32(0, 1<<24))
	edited("key longer than the packet", ReqFetch, Short, u32(20, 200))
	edited("key longer than any", ReqFetch, TooLong, u32(20, MaxKey+1))
	edited("key of 4 GiB", ReqFetch, TooLong, u32(20, 1<<32-1))
	edited("no key", ReqFetch, Impossible, u32(20, 0))
	edited("data longer than any", ReplyFetch, TooLong, u32(16, MaxData+1))
	edited("more done entries than bytes", ReplyDMaster, Short, u32(16+14+14+16, 1000))
	edited("more done entries than any", ReplyDMaster, TooLong, u32(16+14+14+16, 1<<31))
	bad("done with no such status", ReplyDMaster, u32(16+14+14+16+4+20, 9))
	bad("STATUS of no error", ReplyError, u32(16, 0))
	bad("no such STATUS", ReplyError, u32(16, 7))
	bad("no such STATUS, ours", ReplyError, u32(16, 74))
	bad("no such why", ReplyWatch, u32(-4, 4))
	bad("OPID of a node that can't be", ReqFetch, u32(-36, MaxNodes))
	bad("database of no mode", ReplyDBInfo, u32(20, 0))
	bad("database without a name", ReplyDBInfo, u32(24, 0))
	bad("claim bound for a node that can't be", Claims, u32(8+16, MaxNodes))
	bad("claim of no key", Claims, u32(8+32, 0))
	bad("members of one VNN", NewMap, func(p []byte) { copy(p[16+44:], p[16:16+4]) })
	bad("member that half joins", NewMap, func(p []byte) { p[16+6] = 2 })
	bad("batch cut inside a row", ReplyTraverse, func(p []byte) { p[28+4+8]++ })
	bad("verdict maybe", Verdicts, u32(8+8, 2))
	bad("own REQID where there is none", ReqFetch, func(p []byte) { p[len(p)-12] = 1 })
	bad("PNN of 17 bits", ReqFetch, func(p []byte) { p[len(p)-34] = 1 })
	bad("boolean 2", Ping, func(p []byte) { p[20] = 2 })
	bad("pieces shorter than the data", ReplyDMaster, func(p []byte) { p[len(p)-4]-- })
	bad("member twice", NewMap, func(p []byte) { copy(p[16+44:], p[16:16+44]) })
	bad("text is not UTF-8", ReplyError, func(p []byte) { p[24] = 0xff })
	bad("unknown memory", Promise, func(p []byte) { p[4+8+8+4+88] = 4 })
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

// TestHeaderKinds: what no link sends is refused, each for one wrong field.
func TestHeaderKinds(t *testing.T) {
	good := Header{Cluster: 5, Src: 1, Dst: 2, SrcInc: 3, DstInc: 4, Epoch: 5, Packet: 6}
	kind := func(flags uint8, seq, ack uint64) Header {
		h := good
		h.Flags, h.Seq, h.Ack = flags, seq, ack
		return h
	}
	check := func(name string, h Header, payload string, ok bool) {
		t.Helper()
		var got Header
		_, err := DecodeHeader(AppendSum(append(AppendHeader(nil, &h), payload...)), 5, &got)
		if ok != (err == nil) || err != nil && !errors.Is(err, ErrPacket) {
			t.Errorf("%s: %v", name, err)
		}
	}
	data, ping := kind(FlagData, 7, 8), kind(FlagPing, 7, 0)
	frag := kind(FlagData|FlagFrag, 7, 8)
	frag.Index, frag.Count = 1, 2
	check("DATA", data, "x", true)
	check("CONTROL", kind(FlagControl, 7, 8), "x", true)
	check("CONTROL, cancelled", kind(FlagControl, 7, 8), "", true)
	check("fragment", frag, "x", true)
	check("ack", kind(FlagData|FlagAck, 0, 8), "", true)
	check("refusal", kind(FlagControl|FlagRefused, 0, 8), "", true)
	check("PING", ping, "x", true)
	check("challenge", kind(FlagPing|FlagAck, 0, 0), "", true)
	check("answer", kind(FlagPong|FlagAck, 0, 8), "", true)

	check("no kind", kind(0, 7, 8), "x", false)
	check("two channels", kind(FlagData|FlagControl, 7, 8), "x", false)
	check("empty DATA", data, "", false)
	check("DATA without a sequence", kind(FlagData, 0, 8), "x", false)
	check("PING without a sequence", kind(FlagPing, 0, 0), "x", false)
	check("PING with an ack", kind(FlagPing, 7, 1), "x", false)
	check("ack with a payload", kind(FlagData|FlagAck, 0, 8), "x", false)
	check("ack with a sequence", kind(FlagData|FlagAck, 1, 8), "", false)
	check("refusal of nothing", kind(FlagData|FlagRefused, 0, 0), "", false)
	check("refusal that is an ack", kind(FlagData|FlagRefused|FlagAck, 0, 8), "", false)
	check("answer to nothing", kind(FlagPong|FlagAck, 0, 0), "", false)
	check("sealed where nothing is", kind(FlagData|FlagSealed, 7, 8), "x", false)
	for name, edit := range map[string]func(*Header){
		"no incarnation":            func(h *Header) { h.SrcInc = 0 },
		"DATA to nobody":            func(h *Header) { h.DstInc = 0 },
		"no packet number":          func(h *Header) { h.Packet = 0 },
		"to itself":                 func(h *Header) { h.Dst = 1 },
		"from a node that can't be": func(h *Header) { h.Src = MaxNodes },
		"to a node that can't be":   func(h *Header) { h.Dst = MaxNodes },
		"fragment beyond the last":  func(h *Header) { h.Flags |= FlagFrag; h.Index, h.Count = 2, 2 },
		"fragment of one":           func(h *Header) { h.Flags |= FlagFrag; h.Count = 1 },
	} {
		h := data
		edit(&h)
		check(name, h, "x", false)
	}
	check("empty fragment", frag, "", false)
}

// FuzzHeader: no datagram makes either decoder panic or read too far, and what is
// accepted is what the encoder makes of the same header.
func FuzzHeader(f *testing.F) {
	h := Header{Flags: FlagData, Cluster: 5, Src: 1, Dst: 2, SrcInc: 3, DstInc: 4, Epoch: 5, Packet: 6, Seq: 7, Ack: 8, AckBits: 9, DBID: 10}
	f.Add(append(AppendHeader(nil, &h), "payload"...))
	h.Flags |= FlagFrag | FlagSealed
	h.Count = 2
	f.Add(append(AppendHeader(nil, &h), "sealed with a tag"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:len(b):len(b)]
		var h Header
		if payload, err := DecodeHeader(AppendSum(b), 5, &h); err == nil { // with a sum that is right
			if again := append(AppendHeader(nil, &h), payload...); !bytes.Equal(again, b) {
				t.Fatalf("% x accepted, but encodes as % x", b, again)
			}
		} else if !errors.Is(err, ErrPacket) {
			t.Fatal(err)
		}
		if _, err := DecodeHeader(b, 5, &h); err != nil && !errors.Is(err, ErrPacket) {
			t.Fatal(err)
		}
		if head, sealed, err := DecodeSealed(b, 5, 16, &h); err == nil {
			if again := AppendHeader(nil, &h); !bytes.Equal(again, head) || len(head)+len(sealed) != len(b) || len(sealed) < 16 {
				t.Fatalf("% x accepted, but encodes as % x", b, again)
			}
		} else if !errors.Is(err, ErrPacket) {
			t.Fatal(err)
		}
	})
}

// TestEnvelopes: each kind comes back as it was.
func TestEnvelopes(t *testing.T) {
	for _, e := range envelopes {
		var h Header
		payload, err := DecodeHeader(AppendSum(append(AppendHeader(nil, &e.h), e.payload...)), 0xc1c1c1c1, &h)
		if err != nil || h != e.h || string(payload) != e.payload {
			t.Errorf("%s: %+v %q %v", e.name, h, payload, err)
		}
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
	if v := os.Getenv("MAINZ_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("MAINZ_SEED: %v", err)
		}
	}
	t.Logf("MAINZ_SEED=%d", seed)
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

// TestDocs: docs/protocol.md has every opcode and status with its number.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for o := range Op(len(layouts)) {
		if want := fmt.Sprintf("%d %s", uint32(o), o); o.Valid() && !strings.Contains(string(b), want) {
			t.Errorf("opcode %s is not in docs/protocol.md", want)
		}
	}
	for s := OK + 1; s <= Unknown; s++ {
		if want := fmt.Sprintf("| %s | %d |", s, uint32(s)); s.Valid() && !strings.Contains(string(b), want) {
			t.Errorf("status %q is not in docs/protocol.md", want)
		}
	}
}
