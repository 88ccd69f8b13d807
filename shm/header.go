package shm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"
)

// Cluster returns the name of the cluster.
func (h *Header) Cluster() string { return text(h.cluster[:]) }

// Creator returns the program that created the segment, with its version.
func (h *Header) Creator() string { return text(h.creator[:]) }

// text is the string up to the first zero, printable whatever the bytes are.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c < ' ' || c > '~' {
			c = '?'
		}
		out = append(out, c)
	}
	return string(out)
}

// newHeader plans the segment: where each area lies, and how large all is.
// unit is the size that the file system deals in, page that of the pages of its mappings.
func newHeader(cfg *Config, boot [16]byte, unit, page uint64) (*Header, error) {
	if cfg.Slots == 0 || cfg.Slots > MaxSlots {
		return nil, fmt.Errorf("shm: %d slots: 1 to %d are possible", cfg.Slots, MaxSlots)
	}
	if len(cfg.Cluster) >= nameSize {
		return nil, fmt.Errorf("shm: cluster name %q is longer than %d bytes", cfg.Cluster, nameSize-1)
	}
	h := &Header{
		Magic: magic, ABIMajor: ABIMajor, ABIMinor: ABIMinor, HeaderSize: HeaderSize,
		LayoutHash: layoutHash(cfg.Layout), Created: uint64(time.Now().UnixNano()), BootID: boot,
		PNN: cfg.PNN, Slots: cfg.Slots, SlotSize: SlotSize, SlotHeadSize: SlotHeadSize,
		Handles: HandlesPerSlot, Huge: uint32(cfg.HugePages), Params: cfg.Params,
	}
	copy(h.cluster[:], cfg.Cluster)
	copy(h.creator[:nameSize-1], program())
	// A name, not a secret: it only has to be another one each time.
	binary.LittleEndian.PutUint64(h.ID[:], rand.Uint64())
	binary.LittleEndian.PutUint64(h.ID[8:], rand.Uint64())

	// Header, gate and lease have their pages to themselves, however large these are:
	// see buryHere.
	at := max(uint64(firstArea), page)
	slots := (uint64(cfg.Slots) + 1) * SlotSize
	h.Areas[AreaSlots].Off, h.Areas[AreaSlots].Size = at, slots
	at += slots
	for i, a := range cfg.Areas {
		align := uint64(HeaderSize)
		if a.ID == AreaData && cfg.DataAlign != 0 {
			align = cfg.DataAlign
		}
		if a.ID <= AreaSlots || a.ID >= maxAreas || h.Areas[a.ID].Off != 0 || align%HeaderSize != 0 {
			return nil, fmt.Errorf("shm: area %d of %d bytes, aligned to %d, can't be had", a.ID, a.Size, align)
		}
		at = roundUp(at, align)
		size := a.Size
		if size == 0 && i == len(cfg.Areas)-1 && cfg.Size > at {
			size = cfg.Size - at
		}
		h.Areas[a.ID].Off, h.Areas[a.ID].Size = at, size
		if at += size; at < size {
			return nil, fmt.Errorf("shm: area %d of %d bytes is too large", a.ID, a.Size)
		}
	}
	if cfg.Size != 0 && at > cfg.Size {
		return nil, fmt.Errorf("shm: a segment of %d bytes can't hold %d slots and its areas, which take %d: give it a larger size", cfg.Size, cfg.Slots, at)
	}
	h.Size = roundUp(max(at, cfg.Size), unit)
	return h, nil
}

// seal makes the header valid. Nothing in it may change afterwards.
func (h *Header) seal() {
	h.Checksum = h.checksum()
	h.ready = 1
}

// parseHeader checks page 0 of the file at path, size bytes long, and
// returns a copy of it.
func parseHeader(path string, page []byte, size uint64, layout string, boot [16]byte) (*Header, error) {
	corrupt := func(format string, args ...any) error {
		return fmt.Errorf("shm: %s: %s: %w; remove it if nothing needs it, and create the segment anew", path,
			fmt.Sprintf(format, args...), ErrCorrupt)
	}
	if len(page) < HeaderSize {
		return nil, corrupt("a file of %d bytes has no room for a header", size)
	}
	h := new(Header)
	copy(h.bytes(), page)
	if h.Magic != magic {
		return nil, corrupt("magic is %#x: not one of our segments", h.Magic)
	}
	// The version decides what the rest means, so it comes next.
	incompatible := func(what, theirs, ours, fix string) error {
		return &IncompatibleError{Path: path, What: what, Theirs: theirs, Ours: ours, Creator: h.Creator(), Fix: fix}
	}
	if h.ABIMajor != ABIMajor {
		fix := "upgrade this program"
		if h.ABIMajor < ABIMajor {
			fix = "upgrade the segment's owner and create it anew, or use an older build of this program"
		}
		return nil, incompatible("ABI version", fmt.Sprintf("%d.%d", h.ABIMajor, h.ABIMinor),
			fmt.Sprintf("%d.%d", ABIMajor, ABIMinor), fix)
	}
	if h.HeaderSize != HeaderSize {
		return nil, corrupt("header of %d bytes", h.HeaderSize)
	}
	if h.ready != 1 {
		return nil, corrupt("the header was never finished")
	}
	if h.Checksum != h.checksum() {
		return nil, corrupt("the header's checksum is wrong")
	}
	if unknown := h.MustFeatures &^ knownFeatures; unknown != 0 {
		return nil, incompatible("the set of features", fmt.Sprintf("%#x", h.MustFeatures),
			fmt.Sprintf("%#x", uint64(knownFeatures)), "upgrade this program")
	}
	if ours := layoutHash(layout); h.LayoutHash != ours && layout != anyLayout {
		return nil, incompatible("the layout", fmt.Sprintf("%016x", h.LayoutHash),
			fmt.Sprintf("%016x (%s)", ours, program()),
			"run both from the same version, the newer of the two, and create the segment anew")
	}
	if h.BootID != boot {
		return nil, fmt.Errorf("shm: %s: %w: what it held went with its clients; create the segment anew", path,
			ErrStale)
	}
	if h.Size != size {
		return nil, corrupt("the file has %d bytes, its header says %d", size, h.Size)
	}
	if h.SlotSize != SlotSize || h.SlotHeadSize != SlotHeadSize || h.Handles != HandlesPerSlot || h.Slots == 0 ||
		h.Slots > MaxSlots {
		return nil, corrupt("%d slots of %d + %d bytes with %d handles", h.Slots, h.SlotHeadSize, h.SlotSize, h.Handles)
	}
	for id, a := range h.Areas {
		if a.Off == 0 && a.Size == 0 && id != int(AreaSlots) {
			continue
		}
		if a.Off < firstArea || a.Off%HeaderSize != 0 || a.Off > size || a.Size > size-a.Off {
			return nil, corrupt("area %d lies at %d, %d bytes", id, a.Off, a.Size)
		}
		for other, b := range h.Areas[:id] {
			if b.Size != 0 && a.Size != 0 && a.Off < b.Off+b.Size && b.Off < a.Off+a.Size {
				return nil, corrupt("areas %d and %d overlap", other, id)
			}
		}
	}
	if h.Areas[AreaSlots].Size != (uint64(h.Slots)+1)*SlotSize {
		return nil, corrupt("%d bytes for %d slots", h.Areas[AreaSlots].Size, h.Slots)
	}
	return h, nil
}

// anyLayout stands for whatever layout the segment has.
const anyLayout = "*"

func roundUp(n, unit uint64) uint64 { return (n + unit - 1) / unit * unit }

// program names this program and the version of the module that it was
// built from.
func program() string {
	name := filepath.Base(os.Args[0])
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		name += " " + bi.Main.Version
	}
	return name
}
