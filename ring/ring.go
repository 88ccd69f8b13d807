package ring

import (
	"errors"
	"fmt"

	"github.com/mainzdb/mainz/shm"
)

// InlineSize is how many bytes of a message its creator may use beside the head.
const InlineSize = 40

// MinCells and MaxCells bound a ring.
const (
	MinCells = 2
	MaxCells = 1 << 20
)

// align is what a ring's offset is a multiple of: lines are prefetched in pairs.
const align = 128

const magic = 0x31474e49525a4e4d // "MNZRING1"

var (
	// ErrFull: all cells are taken. Try again when the consumer has gone on.
	ErrFull = errors.New("ring: full")
	// ErrCorrupt: a ring holds what no correct program writes.
	ErrCorrupt = errors.New("ring: corrupt")
)

// Prebuilt for paths that do not allocate.
var errPositions = fmt.Errorf("%w: its positions do not fit together; end its process and make the ring anew",
	ErrCorrupt)

// Message is what one cell holds. The ring does not look into it: a call of package
// mainz is cut into several.
type Message struct {
	Head   [2]uint64
	Inline [InlineSize]byte
}

// Size returns how many bytes a ring takes.
func Size(cells int) uint64 { return headSize + uint64(cells)*cellSize }

// view is a ring in memory, found to lie in its region.
type view struct {
	h     *head
	cells []cell
	mask  uint64
}

func look(r *shm.Region, off shm.Offset, cells int) (view, error) {
	switch size := r.Size(); {
	case cells < MinCells || cells > MaxCells || cells&(cells-1) != 0:
		return view{}, fmt.Errorf("ring: %d cells: a power of two from %d to %d is needed", cells, MinCells, MaxCells)
	case off%align != 0:
		return view{}, fmt.Errorf("ring: offset %d is not a multiple of %d", off, align)
	case off > size || Size(cells) > size-off:
		return view{}, fmt.Errorf("ring: %d bytes at %d are outside a region of %d", Size(cells), off, size)
	}
	return view{
		h:     shm.At[head](r, off),
		cells: shm.Slice[cell](r, off+headSize, cells),
		mask:  uint64(cells - 1),
	}, nil
}

// open is look for a ring that Init has made.
func open(r *shm.Region, off shm.Offset, cells int) (view, error) {
	v, err := look(r, off, cells)
	if err != nil {
		return v, err
	}
	if m, n := v.h.magic.Load(), v.h.cells.Load(); m != magic || n != uint64(cells) {
		return v, fmt.Errorf("ring: at %d: %w: magic %#x, %d cells, and not %#x and %d; make it anew", off,
			ErrCorrupt, m, n, uint64(magic), cells)
	}
	return v, nil
}

// Init makes an empty ring.
//
// Preconditions: nobody has it open, and the threads of those who had are gone.
func Init(r *shm.Region, off shm.Offset, cells int) error {
	v, err := look(r, off, cells)
	if err != nil {
		return err
	}
	h := v.h
	h.magic.Swap(0)
	for i := range v.cells {
		// No cell is committed, whatever position comes to it.
		v.cells[i].seq.Store(0)
	}
	h.claimed.Store(0)
	h.released.Store(0)
	h.asleep.Store(0)
	h.full.Store(0)
	h.cells.Store(uint64(cells))
	h.magic.Swap(magic)
	return nil
}

// at returns the cell of a position.
func (v *view) at(pos uint64) *cell { return &v.cells[pos&v.mask] }

// committed is the sequence number of the cell at a position when its message
// is there; + 1: when there will be none.
func committed(pos uint64) uint64 { return (pos + 1) << 1 }

const aborted = 1

// repair aborts what is claimed from the position on and neither committed nor
// aborted, and returns how many that were.
//
// Preconditions: no producer of the ring runs any more or yet.
func (v *view) repair(from uint64) (n int, err error) {
	claimed := v.h.claimed.Load() - from
	if claimed > uint64(len(v.cells)) {
		// Garbage. Any cell may be committed, so all have to be looked at.
		claimed, err = uint64(len(v.cells)), errPositions
	}
	for pos := from; pos != from+claimed; pos++ {
		c := v.at(pos)
		if c.seq.Load()&^aborted == committed(pos) && !planted("repair") {
			continue
		}
		c.seq.Swap(committed(pos) | aborted)
		n++
	}
	return n, err
}
