package shm

import (
	"errors"
	"testing"
)

// Whatever bytes a file has, its header is an error or describes areas that
// lie in the file.
func FuzzHeader(f *testing.F) {
	boot := [16]byte{1, 2, 3}
	cfg := testConfig(3)
	h, err := newHeader(&cfg, boot, HeaderSize, HeaderSize)
	if err != nil {
		f.Fatal(err)
	}
	h.seal()
	f.Add(h.bytes(), h.Size, false)
	f.Add(h.bytes()[:100], uint64(100), false)
	f.Add([]byte{}, uint64(0), false)
	h.Areas[AreaNode].Off = h.Areas[AreaData].Off
	f.Add(h.bytes(), h.Size, true)
	h.Areas[AreaNode].Size = 1 << 63
	h.Slots = 1 << 31
	f.Add(h.bytes(), h.Size, true)
	f.Fuzz(func(t *testing.T, page []byte, size uint64, mend bool) {
		if mend && len(page) >= HeaderSize {
			// Beyond the first checks, where random bytes hardly get.
			m := new(Header)
			copy(m.bytes(), page)
			m.Magic, m.ABIMajor, m.HeaderSize, m.MustFeatures = magic, ABIMajor, HeaderSize, 0
			m.LayoutHash, m.BootID, m.Size = layoutHash(testLayout), boot, size
			m.seal()
			page = m.bytes()
		}
		h, err := parseHeader("fuzzed", page, size, testLayout, boot)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrIncompatible) && !errors.Is(err, ErrStale) {
				t.Errorf("an error without a type: %v", err)
			}
			return
		}
		for id, a := range h.Areas {
			if a.Size != 0 && (a.Off < firstArea || a.Off+a.Size < a.Off || a.Off+a.Size > size) {
				t.Errorf("area %d lies at %d, %d bytes, in a file of %d", id, a.Off, a.Size, size)
			}
		}
		s := &Segment{h: h}
		for _, i := range []uint32{1, h.Slots, DispatcherSlot} {
			if off := s.slotOffset(i); off == 0 || off+SlotSize > size {
				t.Errorf("slot %d lies at %d in a file of %d", i, off, size)
			}
		}
		_ = h.Cluster() + h.Creator()
	})
}
