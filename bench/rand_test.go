package bench

import (
	"math/rand/v2"
	"testing"
	"time"
)

// newRand prints its seed, so that a failure can be repeated.
func newRand(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
