package ltdb

import (
	"math/rand/v2"
	"testing"

	"github.com/zeebo/xxh3"
)

// TestHash9to16: the inlined hash is the library's.
func TestHash9to16(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seedOf(t), 1))
	for range 20000 {
		key, seed := make([]byte, 9+rnd.IntN(8)), uint64(rnd.Uint32())
		for i := range key {
			key[i] = byte(rnd.Uint32())
		}
		flip := hashFlip(seed)
		if got, want := hash9to16(key, &flip), xxh3.HashSeed(key, seed); got != want {
			t.Fatalf("hash of %x with seed %#x is %#x, want %#x", key, seed, got, want)
		}
	}
}
