package ltdb

import (
	"strconv"

	"github.com/mainzdb/mainz/shm"
)

// A segment keeps the configuration that it was made with. Another one that its owner
// is started with later is of no effect on it, and has to be told.

// InForce is the configuration of the store's segment. Group is the number of its
// file's group, "" in the heap.
func (s *Store) InForce() Config { return inForce(s.seg) }

func inForce(seg *shm.Segment) Config {
	h, p := seg.Header(), seg.Params()
	c := Config{Size: h.Size, Slots: int(h.Slots), MaxValue: int(p[paramMaxValue]), Databases: int(p[paramDatabases]),
		HugePages: HugePages(h.Huge), Cluster: h.Cluster(), PNN: h.PNN, SpanSize: 1 << (p[paramSpanShift] & 63)}
	if gid, ok := seg.Group(); ok {
		c.Group = strconv.Itoa(int(gid))
	}
	return c
}

// Difference is a configured value that is not in force.
type Difference struct {
	Setting             string // size, slots, max_value, databases, huge_pages, cluster, group
	Configured, InForce string
}

// Differences returns which values of c are not those of the segment, which in
// describes (InForce). Where c leaves a value to the default, that is compared; a group
// that c does not name is not.
func (c Config) Differences(in Config) []Difference {
	c = c.withDefaults()
	var all []Difference
	add := func(setting, configured, inForce string) {
		if configured != inForce {
			all = append(all, Difference{setting, configured, inForce})
		}
	}
	// A segment has whole pages of its file system, and the first for itself: it may
	// be a little larger.
	if in.Size < c.Size || in.Size-c.Size >= 2*hugePage {
		add("size", bytesText(c.Size), bytesText(in.Size))
	}
	add("slots", strconv.Itoa(c.Slots), strconv.Itoa(in.Slots))
	add("max_value", bytesText(uint64(c.MaxValue)), bytesText(uint64(in.MaxValue)))
	add("databases", strconv.Itoa(c.Databases), strconv.Itoa(in.Databases))
	add("huge_pages", hugeText(c.HugePages), hugeText(in.HugePages))
	add("cluster", c.Cluster, in.Cluster)
	if gid, err := shm.GroupNumber(c.Group); err == nil && c.Group != "" && in.Group != "" {
		if number := strconv.Itoa(gid); number != in.Group {
			add("group", c.Group, in.Group)
		}
	}
	return all
}

const hugePage = 2 << 20

// bytesText writes a size as configurations do.
func bytesText(n uint64) string {
	for _, u := range []struct {
		suffix string
		shift  uint
	}{{"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if n != 0 && n&(1<<u.shift-1) == 0 {
			return strconv.FormatUint(n>>u.shift, 10) + u.suffix
		}
	}
	return strconv.FormatUint(n, 10)
}

func hugeText(h HugePages) string {
	switch h {
	case HugeNever:
		return "never"
	case HugeRequire:
		return "require"
	}
	return "auto"
}
