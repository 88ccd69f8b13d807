package call

import (
	"bytes"
	"errors"
	"testing"

	"github.com/mainzdb/mainz/protocol/wire"
	"github.com/mainzdb/mainz/ring"
)

func TestRequest(t *testing.T) {
	piece := wire.OPID{PNN: 3, Life: 5, Counter: 1<<63 | 7}
	for _, want := range []wire.Message{
		{Op: wire.ReqFetch, DBID: 1, Timeout: 2, Key: []byte("k")},
		{Op: wire.ReqConditionalAppend, DBID: 1, Timeout: NoLimit, Cond: 16, Key: bytes.Repeat([]byte("k"), MaxKey),
			Data: []byte("data"), Piece: piece},
		{Op: wire.ReqFetchLocked, DBID: 1, Timeout: 3, Key: []byte("k"), LockTimeout: 10_000},
		{Op: wire.ReqWatch, DBID: 1, Key: []byte("k"), RSN: 1 << 40},
		{Op: wire.ReqRemoveTrigger, DBID: 1, Key: []byte("k"), Cond: 1, RSN: 1, Piece: piece, Data: make([]byte, 1000)},
	} {
		b := AppendRequest(nil, &want)
		var got wire.Message
		if err := DecodeRequest(b, &got); err != nil {
			t.Fatal(err)
		}
		if got.Op != want.Op || got.DBID != want.DBID || got.Timeout != want.Timeout || got.Cond != want.Cond ||
			got.RSN != want.RSN || got.Piece != want.Piece || got.LockTimeout != want.LockTimeout ||
			!bytes.Equal(got.Key, want.Key) || !bytes.Equal(got.Data, want.Data) {
			t.Errorf("%+v became %+v", want, got)
		}
	}
}

func TestOpened(t *testing.T) {
	b := AppendOpened(nil, 1<<50, 7, 4, 8, true)
	epoch, members, joined, left, kept, ok := DecodeOpened(b)
	if !ok || epoch != 1<<50 || members != 7 || joined != 4 || left != 8 || !kept {
		t.Errorf("%d %d %d %d %v %v", epoch, members, joined, left, kept, ok)
	}
	if _, _, _, _, _, ok := DecodeOpened(b[1:]); ok || len(b) > ring.InlineSize {
		t.Errorf("%d bytes in a cell of %d; cut off: %v", len(b), ring.InlineSize, ok)
	}
}

// A payload goes through cells and comes out whole.
func TestCells(t *testing.T) {
	for _, n := range []int{0, 1, 39, 40, 41, 80, 1000} {
		payload := bytes.Repeat([]byte("0123456789a"), n)[:n]
		var got []byte
		h := Head{Kind: Reply, Call: 77, Total: uint32(n), Status: wire.NotFound, Why: 2}
		for {
			var m ring.Message
			k := h.Put(&m, payload)
			var g Head
			part := g.Get(&m)
			if part == nil && n > 0 || g.Kind != Reply || g.Call != 77 || g.Status != wire.NotFound || g.Why != 2 ||
				g.Total != uint32(n) || int(g.Offset) != len(got) || len(part) != k {
				t.Fatalf("%d bytes: %+v, %d bytes in the cell", n, g, len(part))
			}
			got = append(got, part...)
			if g.Last(part) {
				break
			}
			h.Offset += uint32(k)
		}
		if !bytes.Equal(got, payload) {
			t.Errorf("%d bytes came out as %d", n, len(got))
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(AppendRequest(nil, &wire.Message{Op: wire.ReqFetch, DBID: 1, Key: []byte("k")}))
	f.Add(AppendRequest(nil, &wire.Message{Op: wire.ReqRemoveTrigger, Cond: 2, RSN: 3, Piece: wire.OPID{Life: 1},
		Key: []byte("k"), Data: []byte("d")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m wire.Message
		if err := DecodeRequest(b, &m); err != nil {
			if !errors.Is(err, ErrRequest) {
				t.Fatal(err)
			}
			return
		}
		if len(m.Key) < 1 || len(m.Key) > MaxKey || len(m.Key)+len(m.Data) > len(b) {
			t.Fatalf("%x: %+v", b, m)
		}
	})
}

func FuzzHead(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		var h Head
		part := h.Get(&ring.Message{Head: [2]uint64{a, b}})
		if part != nil && (len(part) > ring.InlineSize || int(h.Offset)+len(part) > int(h.Total)) {
			t.Fatalf("%+v, %d bytes", h, len(part))
		}
	})
}
