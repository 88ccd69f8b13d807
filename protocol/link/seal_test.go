package link

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/mainzdb/mainz/protocol/wire"
)

// aeadSealer is AES-128-GCM as the design has it: what a dispatcher would plug in.
// With a vault it also watches the nonces.
type aeadSealer struct {
	secret []byte
	keys   map[string]cipher.AEAD
	nonce  [12]byte
	id     []byte
	vault  map[string]string
	t      *testing.T
}

func (s *aeadSealer) Overhead() int { return 16 }

// aead of the datagram's direction and incarnations.
func (s *aeadSealer) aead(h *wire.Header) cipher.AEAD {
	s.id = binary.LittleEndian.AppendUint16(s.id[:0], uint16(h.Src))
	s.id = binary.LittleEndian.AppendUint16(s.id, uint16(h.Dst))
	s.id = binary.LittleEndian.AppendUint64(s.id, h.SrcInc)
	if h.Flags&(wire.FlagPing|wire.FlagPong) == 0 {
		s.id = binary.LittleEndian.AppendUint64(s.id, h.DstInc)
	}
	if a := s.keys[string(s.id)]; a != nil {
		return a
	}
	key, err := hkdf.Key(sha256.New, s.secret, nil, "mainz link "+string(s.id), 16)
	if err != nil {
		panic(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	if s.keys == nil {
		s.keys = map[string]cipher.AEAD{}
	}
	s.keys[string(s.id)] = a
	return a
}

func (s *aeadSealer) Seal(h *wire.Header, header, plain []byte) []byte {
	a := s.aead(h)
	binary.LittleEndian.PutUint64(s.nonce[:], h.Packet)
	if s.vault != nil {
		use, what := fmt.Sprintf("%x %d", s.id, h.Packet), fmt.Sprintf("%x %x", header, plain)
		if old, ok := s.vault[use]; ok && old != what {
			s.t.Fatalf("key and nonce %s used for two datagrams:\n%s\n%s", use, old, what)
		}
		s.vault[use] = what
	}
	return a.Seal(header, s.nonce[:], plain, header)
}

func (s *aeadSealer) Open(dst []byte, h *wire.Header, header, sealed []byte) ([]byte, bool) {
	binary.LittleEndian.PutUint64(s.nonce[:], h.Packet)
	b, err := s.aead(h).Open(dst, s.nonce[:], sealed, header)
	return b, err == nil
}

// TestSealed: on a sealed cluster nothing readable goes out, and what is not sealed
// with its key is counted and dropped, without an answer and unseen by the handler.
func TestSealed(t *testing.T) {
	secret := []byte("of the cluster")
	a, b := pairOf(t, &aeadSealer{secret: secret}, &aeadSealer{secret: secret})
	plain, _ := pairOf(t, nil, nil)
	foreign, _ := pairOf(t, &aeadSealer{secret: []byte("another")}, &aeadSealer{secret: []byte("another")})
	text := []byte("share-mode of client 7")
	h := &counter{}
	send := func(l *Link) []byte {
		l.Send(2, 1, Data, 0, 7, text, 1)
		return bytes.Clone(l.Take()[0].Bytes)
	}

	good := send(a)
	if bytes.Contains(good, text) || good[3]&wire.FlagSealed == 0 || len(good) != wire.HeaderSize+len(text)+16 {
		t.Errorf("not sealed: % x", good)
	}
	for i := range good { // header and payload are authenticated
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		b.Receive(2, bad, h)
	}
	b.Receive(2, send(plain), h)
	b.Receive(2, send(foreign), h)
	a.Receive(2, []byte{}, h)
	n := b.Counters()
	if h.steps != 0 || len(b.Take()) != 0 || b.Next() != Never {
		t.Errorf("%d packets handled, datagrams or timers made for what is not sealed", h.steps)
	}
	if n.Unsealed != 1 || n.Forged < uint64(len(text)) || n.Dropped+n.Stale != uint64(len(good))+2 ||
		a.Counters().Malformed != 1 {
		t.Errorf("%+v", n)
	}
	plain.Receive(2, good, h)
	if n := plain.Counters(); h.steps != 0 || n.Unsealed != 1 {
		t.Errorf("a sealed datagram on a cluster that is not: %+v", n)
	}
	b.Receive(2, good, h)
	b.Receive(2, good, h)
	if h.steps != 1 || !bytes.Equal(h.last, text) {
		t.Errorf("handled %d times, %q", h.steps, h.last)
	}
}

// TestRepeatsSealed: a repeat is the same bytes; a cancelled frame, which has other
// bytes, gets another packet number.
func TestRepeatsSealed(t *testing.T) {
	a, _ := pairOf(t, &aeadSealer{secret: []byte("s"), vault: map[string]string{}, t: t},
		&aeadSealer{secret: []byte("s")})
	a.Send(2, 1, Control, 5, 0, []byte("of ballot 5"), 1)
	first := bytes.Clone(a.Take()[0].Bytes)
	now := a.Next()
	a.Tick(now)
	if again := a.Take()[0].Bytes; !bytes.Equal(first, again) {
		t.Errorf("repeated with other bytes:\n% x\n% x", first, again)
	}
	a.Cancel(now, 6)
	null := a.Take()[0].Bytes
	if bytes.Equal(first[36:44], null[36:44]) || !bytes.Equal(first[44:52], null[44:52]) ||
		len(null) != wire.HeaderSize+16 {
		t.Errorf("cancelled:\n% x\n% x", first, null)
	}
}
