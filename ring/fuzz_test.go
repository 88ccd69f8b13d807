package ring

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/mainzdb/mainz/shm"
)

// FuzzCells: whatever stands in a ring, no function panics, leaves the ring's
// memory, or loops without end; and when its owner makes it anew, it works.
func FuzzCells(f *testing.F) {
	f.Add([]byte{}, uint64(0))
	f.Add([]byte("\x00\x80\xff\xff\xff\xff\xff\xff\xff\xff"), uint64(1))
	f.Add([]byte("\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x81\x07"), uint64(2))
	f.Add([]byte("\x01\x00\xff\xff\xff\xff\xff\xff\xff\x7f\x02\x00\x02\x02\x40\x04"), uint64(3))
	f.Fuzz(func(t *testing.T, garbage []byte, steps uint64) { garbled(t, garbage, steps) })
}

// TestGarbage is the same with random garbage.
func TestGarbage(t *testing.T) {
	rng := rand.New(rand.NewPCG(seed(t), 2))
	for range 3000 {
		garbage := make([]byte, rng.IntN(200))
		for i := range garbage {
			if garbage[i] = byte(rng.Uint32()); rng.IntN(3) == 0 {
				garbage[i] = byte(rng.IntN(4))
			}
		}
		garbled(t, garbage, rng.Uint64())
	}
}

// garbageWord is where a word of garbage goes, and the word: mostly one that means
// something, at the head of a line, and near what could be there.
func garbageWord(b [10]byte, size, pos uint64) (at, x uint64) {
	at = uint64(binary.LittleEndian.Uint16(b[:])) % size &^ 7
	if b[1]&1 == 0 {
		at = []uint64{128, 256, 384, 448, 512, 576, 640, 704}[b[0]%8]
	}
	x = binary.LittleEndian.Uint64(b[2:])
	if b[1]&2 == 0 {
		x = pos + x%32 - 8
		if at >= headSize {
			x = committed(x) | uint64(b[9]&1)
		}
	}
	return at, x
}

// endOne commits or aborts one of the claims, and returns the others.
func endOne(rng *rand.Rand, claims []Claim) []Claim {
	k := len(claims)
	if k == 0 {
		return claims
	}
	i := rng.IntN(k)
	if rng.IntN(4) == 0 {
		claims[i].Abort()
	} else {
		claims[i].Commit(message(uint64(k)))
	}
	return append(claims[:i], claims[i+1:]...)
}

// garbled uses a ring between two guards, while others write garbage into it:
// each 10 bytes of it are a place and a word.
func garbled(t *testing.T, garbage []byte, steps uint64) {
	const cells, guard = 4, 256
	size := Size(cells)
	r := shm.Heap(guard + size + guard)
	mem := shm.Slice[byte](r, 0, int(r.Size()))
	for i := range mem {
		mem[i] = 0xa5
	}
	if err := Init(r, guard, cells); err != nil {
		t.Fatal(err)
	}
	p, err1 := OpenProducer(r, guard, cells, Options{Idle: Sleep})
	c, err2 := OpenConsumer(r, guard, cells, Options{Idle: Sleep})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(steps, 3))
	ended, end := context.WithCancel(context.Background())
	end()
	var claims []Claim
	for len(garbage) > 0 {
		var b [10]byte
		n := copy(b[:], garbage)
		garbage = garbage[n:]
		at, x := garbageWord(b, size, c.pos)
		shm.At[shm.Word64](r, guard+at).Store(x)

		for range 4 {
			switch rng.IntN(9) {
			case 0, 1:
				claim, err := p.TryClaim()
				switch {
				case err == nil:
					claims = append(claims, claim)
				case err != ErrFull && !errors.Is(err, ErrCorrupt):
					t.Fatal(err)
				}
			case 2, 3:
				claims = endOne(rng, claims)
			case 4, 5:
				before, calls := c.pos, 0
				n := c.Poll(cells, func(*Message) { calls++ })
				if n > cells || calls > n || c.pos != before+uint64(n) {
					t.Fatalf("polled %d of %d, %d calls, from position %d to %d", n, cells, calls, before, c.pos)
				}
			case 6:
				if err := c.Wait(ended); err != nil && err != context.Canceled {
					t.Fatal(err)
				}
				if claim, err := p.Claim(ended); err == nil {
					claim.Abort()
				} else if err != context.Canceled && !errors.Is(err, ErrCorrupt) {
					t.Fatal(err)
				}
			case 7:
				if n, err := c.Repair(); n > cells || err != nil && !errors.Is(err, ErrCorrupt) {
					t.Fatal(n, err)
				}
			case 8:
				if next, err := OpenConsumer(r, guard, cells, Options{Idle: Sleep}); err == nil {
					c = next
				} else if !errors.Is(err, ErrCorrupt) {
					t.Fatal(err)
				}
				if next, err := OpenProducer(r, guard, cells, Options{Idle: Sleep}); err == nil {
					p, claims = next, nil
					if n, err := p.Repair(); n > cells || err != nil && !errors.Is(err, ErrCorrupt) {
						t.Fatal(n, err)
					}
				} else if !errors.Is(err, ErrCorrupt) {
					t.Fatal(err)
				}
			}
		}
	}
	for i := range uint64(guard) {
		if mem[i] != 0xa5 || mem[guard+size+i] != 0xa5 {
			t.Fatal("a byte beside the ring was written")
		}
	}
	if err := Init(r, guard, cells); err != nil {
		t.Fatal(err)
	}
	p, err1 = OpenProducer(r, guard, cells, Options{Idle: Sleep})
	c, err2 = OpenConsumer(r, guard, cells, Options{Idle: Sleep})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(2 * cells) {
		mustClaim(t, p).Commit(message(n))
		if got := polled(c, cells); len(got) != 1 || got[0] != n {
			t.Fatalf("made anew it delivers %v, want [%d]", got, n)
		}
	}
}
