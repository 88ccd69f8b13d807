package bench

import (
	"testing"
)

func TestKeysAreDistinctAndPrintable(t *testing.T) {
	seen := make(map[[keyBytes]byte]bool)
	for i := range uint64(maxRecords) {
		var key [keyBytes]byte
		makeKey(&key, i)
		for _, c := range key {
			if c < 'a' || c > 'p' {
				t.Fatalf("key %d is %q", i, key)
			}
		}
		if seen[key] {
			t.Fatalf("key %d, %q, is there already", i, key)
		}
		seen[key] = true
	}
}

func TestDrawsReachAllRecords(t *testing.T) {
	r := seeded(1)
	seen := make(map[uint64]bool)
	for range 10_000 {
		i := r.draw(100)
		if i >= 100 {
			t.Fatalf("record %d of 100 was drawn", i)
		}
		seen[i] = true
	}
	if len(seen) != 100 {
		t.Errorf("%d of 100 records were drawn", len(seen))
	}
}

// Every byte of a value is guarded: change one, and the value is refused.
func TestValuesGuardEachByte(t *testing.T) {
	for _, f := range []format{64, 72, 1024, growing} {
		var key, other [keyBytes]byte
		makeKey(&key, 5)
		makeKey(&other, 6)
		value := preloaded(make([]byte, maxValueBytes), 5, &key, f)
		counter, ok := wholeOK(value, &key, f)
		if want := uint64(preloadedEntries(5) - 1); !ok || f == growing && counter != want || f != growing &&
			counter != 0 {
			t.Fatalf("format %v: a fresh value is %v, its counter %d", f, ok, counter)
		}
		for i := range value {
			value[i] ^= 1
			if _, ok := wholeOK(value, &key, f); ok {
				t.Errorf("format %v: byte %d was changed, and nobody noticed", f, i)
			}
			value[i] ^= 1
		}
		if _, ok := wholeOK(value, &other, f); ok {
			t.Errorf("format %v: the value of another key was taken", f)
		}
		if _, ok := wholeOK(value[:len(value)-8], &key, f); ok {
			t.Errorf("format %v: a short value was taken", f)
		}
	}
}

// The usual look misses the body, and nothing else.
func TestQuickCheckGuardsKeyCounterAndTrailer(t *testing.T) {
	var key [keyBytes]byte
	makeKey(&key, 5)
	value := preloaded(make([]byte, maxValueBytes), 5, &key, 64)
	for i := range value {
		value[i] ^= 1
		if inBody := i >= 32 && i < 56; valueOK(value, &key) != inBody || bodyOK(value) == (i >= 24 && i < 56) {
			t.Errorf("byte %d was changed: value %v, body %v", i, valueOK(value, &key), bodyOK(value))
		}
		value[i] ^= 1
	}
}

func TestClockRunsAtTheRateOfTheKernel(t *testing.T) {
	c := startClock()
	c.calibrate()
	for _, ns := range []uint64{1, 1000, 1e6, 1e9, 3600e9} {
		// There and back, a tick or ten in a million may be lost.
		if back := c.ns(c.ticks(ns)); back > ns || ns-back > ns/100_000+100 {
			t.Errorf("%d ns became %d ticks, and these %d ns", ns, c.ticks(ns), back)
		}
	}
	if step := timerStep(); !(step > 0 && step < 1e5) {
		t.Errorf("the counter's step is %v ns", step)
	}
}
