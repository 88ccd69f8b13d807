package shm

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ReadMachine finds out what the machine grants to this process. It reads /proc,
// /sys and /etc below root, which is "/" but for tests. What can't be read is not
// limited.
func ReadMachine(root string) *Machine {
	m := &Machine{
		AddressSpace: Unlimited, FileSize: Unlimited, Files: Unlimited, FilesHard: Unlimited,
		Available: Unlimited,
	}
	r := reader{root}
	r.limits(m)
	r.groups(m)
	for line := range r.lines("/proc/meminfo") {
		name, value, _ := strings.Cut(line, ":")
		n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 54)
		switch {
		case err != nil:
		case name == "MemAvailable":
			m.Available = n << 10
		case name == "SwapFree":
			m.Swap = n << 10
		}
	}
	for line := range r.lines("/proc/self/status") {
		f := strings.Fields(line)
		switch {
		case len(f) > 2 && f[0] == "Uid:":
			n, _ := strconv.ParseUint(f[2], 10, 32)
			m.UID = uint32(n)
		case len(f) > 1 && f[0] == "VmSize:":
			n, _ := strconv.ParseUint(f[1], 10, 54)
			m.AddressUsed = n << 10
		}
	}
	_, err := os.Stat(r.path("/run/systemd/system"))
	m.Systemd = err == nil
	m.RemoveIPC = r.removeIPC()
	return m
}

type reader struct{ root string }

func (r reader) path(name string) string { return filepath.Join(r.root, name) }

// lines are the lines of a file, none if it can't be read.
func (r reader) lines(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		f, err := os.Open(r.path(name))
		if err != nil {
			return
		}
		defer f.Close()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			if !yield(sc.Text()) {
				return
			}
		}
	}
}

// limits reads the resource limits.
func (r reader) limits(m *Machine) {
	for line := range r.lines("/proc/self/limits") {
		for name, to := range map[string][2]*uint64{
			"Max address space": {&m.AddressSpace, nil},
			"Max file size":     {&m.FileSize, nil},
			"Max open files":    {&m.Files, &m.FilesHard},
		} {
			rest, ok := strings.CutPrefix(line, name)
			if !ok {
				continue
			}
			for i, v := range strings.Fields(rest) {
				if n, err := strconv.ParseUint(v, 10, 64); i < 2 && err == nil && to[i] != nil {
					*to[i] = n
				}
			}
		}
	}
}

// hierarchy is where a controller's groups can be seen, and which is ours.
type hierarchy struct {
	mount string // directory of the highest one
	own   string
	v1    bool
}

// above calls f for the directories from our own group's to the highest.
func (h hierarchy) above(f func(dir string)) {
	for dir := h.own; ; dir = filepath.Dir(dir) {
		f(dir)
		if dir == h.mount || len(dir) <= len(h.mount) {
			return
		}
	}
}

// hierarchies finds the groups of a controller, of version 1 and 2.
func (r reader) hierarchies(controller string) []hierarchy {
	var all []hierarchy
	for line := range r.lines("/proc/self/cgroup") {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			continue
		}
		v1 := slices.Contains(strings.Split(f[1], ","), controller)
		if !v1 && f[0] != "0" {
			continue
		}
		for line := range r.lines("/proc/self/mountinfo") {
			left, right, ok := strings.Cut(line, " - ")
			a, b := strings.Fields(left), strings.Fields(right)
			if !ok || len(a) < 5 || len(b) < 3 {
				continue
			}
			if v1 && (b[0] != "cgroup" || !slices.Contains(strings.Split(b[2], ","), controller)) || !v1 &&
				b[0] != "cgroup2" {
				continue
			}
			h := hierarchy{mount: filepath.Clean(unescape(a[4])), v1: v1}
			h.own = h.mount
			// The mount may show a part of the tree only, as in a container.
			if rest, below := strings.CutPrefix(f[2], strings.TrimSuffix(unescape(a[3]), "/")); below &&
				!strings.Contains(rest, "..") {
				h.own = filepath.Join(h.mount, rest)
			}
			if _, err := os.Stat(r.path(h.own)); err != nil {
				h.own = h.mount
			}
			all = append(all, h)
			break
		}
	}
	return all
}

// unescape undoes the kernel's writing of blanks in paths.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// groups reads the control groups.
func (r reader) groups(m *Machine) {
	for _, h := range r.hierarchies("memory") {
		h.above(func(dir string) {
			if g, ok := r.memory(dir, h.v1); ok {
				m.Memory = append(m.Memory, g)
			}
		})
	}
	for _, h := range r.hierarchies("pids") {
		h.above(func(dir string) {
			g := PidsGroup{Path: dir, Max: r.number(dir, "pids.max"), Used: r.count(dir, "pids.current")}
			if g.Max != Unlimited {
				m.Pids = append(m.Pids, g)
			}
		})
	}
	// What a group may swap is bounded by what there is.
	var swap uint64
	for line := range r.lines("/proc/meminfo") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "SwapFree:" {
			n, _ := strconv.ParseUint(f[1], 10, 54)
			swap = n << 10
		}
	}
	for i := range m.Memory {
		m.Memory[i].Swap = min(m.Memory[i].Swap, swap)
	}
}

// memory reads one group; false: it limits nothing.
func (r reader) memory(dir string, v1 bool) (MemoryGroup, bool) {
	g := MemoryGroup{Path: dir, V1: v1, High: Unlimited}
	cache := []string{"inactive_file", "active_file"}
	if v1 {
		g.MaxAt = "memory.limit_in_bytes"
		g.Max = r.number(dir, g.MaxAt)
		g.Used = r.count(dir, "memory.usage_in_bytes")
		g.Swap = left(r.number(dir, "memory.memsw.limit_in_bytes"), r.count(dir, "memory.memsw.usage_in_bytes"))
		// The limit of memory and swap together bounds both.
		if g.Swap != Unlimited {
			g.Swap -= min(g.Swap, left(g.Max, g.Used))
		}
		cache = []string{"total_inactive_file", "total_active_file"}
	} else {
		g.MaxAt = "memory.max"
		g.Max = r.number(dir, g.MaxAt)
		g.High = r.number(dir, "memory.high")
		g.Used = r.count(dir, "memory.current")
		g.Swap = left(r.number(dir, "memory.swap.max"), r.count(dir, "memory.swap.current"))
	}
	if g.Max == Unlimited && g.High == Unlimited {
		return g, false
	}
	for line := range r.lines(filepath.Join(dir, "memory.stat")) {
		name, value, _ := strings.Cut(line, " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil && slices.Contains(cache, name) {
			g.Used -= min(g.Used, n)
		}
	}
	return g, true
}

// number reads a limit. Version 1 has no word for none, but a number that no
// machine reaches.
func (r reader) number(dir, name string) uint64 {
	for line := range r.lines(filepath.Join(dir, name)) {
		if n, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64); err == nil && n < 1<<62 {
			return n
		}
		break
	}
	return Unlimited
}

// count is number for what is used: 0 if it is not known.
func (r reader) count(dir, name string) uint64 {
	if n := r.number(dir, name); n != Unlimited {
		return n
	}
	return 0
}

// removeIPC reads logind's configuration: the files and what is dropped in, the
// last one that says something counts. It removes unless it is told not to.
func (r reader) removeIPC() bool {
	remove := true
	read := func(name string) {
		section := ""
		for line := range r.lines(name) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = line
			}
			if k, v, ok := strings.Cut(line, "="); ok && section == "[Login]" && strings.TrimSpace(k) == "RemoveIPC" {
				switch strings.ToLower(strings.TrimSpace(v)) {
				case "no", "false", "off", "0", "n", "f":
					remove = false
				default:
					remove = true
				}
			}
		}
	}
	places := []string{"/usr/lib/systemd", "/run/systemd", "/etc/systemd"} // later ones go before
	main := ""
	type dropIn struct{ name, path string }
	var drops []dropIn
	for _, p := range places {
		if _, err := os.Stat(r.path(p + "/logind.conf")); err == nil {
			main = p + "/logind.conf"
		}
		entries, _ := os.ReadDir(r.path(p + "/logind.conf.d"))
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".conf") {
				continue
			}
			d := dropIn{e.Name(), p + "/logind.conf.d/" + e.Name()}
			drops = slices.DeleteFunc(drops, func(old dropIn) bool { return old.name == d.name })
			drops = append(drops, d)
		}
	}
	if main != "" {
		read(main)
	}
	slices.SortFunc(drops, func(a, b dropIn) int { return strings.Compare(a.name, b.name) })
	for _, d := range drops {
		read(d.path)
	}
	return remove
}
