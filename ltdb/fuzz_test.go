package ltdb

import (
	"math/rand/v2"
	"testing"
)

// FuzzGarbage lets the fuzzer choose which words of a store are garbage.
func FuzzGarbage(f *testing.F) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for kind := range wildKinds {
		f.Add(randomCase(rnd, kind))
	}
	f.Fuzz(func(t *testing.T, data []byte) { runGarbage(t, heapPair(t), data) })
}
