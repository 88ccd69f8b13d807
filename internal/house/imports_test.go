package house

import (
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mainzdb/mainz"

// Other people's modules that packages may import.
const (
	sys     = "golang.org/x/sys"
	term    = "golang.org/x/term"
	mmap    = "github.com/edsrzf/mmap-go"
	xxh3    = "github.com/zeebo/xxh3"
	cpuid   = "github.com/klauspost/cpuid/v2" // of xxh3
	cobra   = "github.com/spf13/cobra"
	pflag   = "github.com/spf13/pflag" // of cobra
	toml    = "github.com/pelletier/go-toml/v2"
	metrics = "github.com/prometheus/client_golang"
	ebpf    = "github.com/cilium/ebpf"
	netlink = "github.com/vishvananda/netlink"
	porcu   = "github.com/anishathalye/porcupine"
)

// rule says what the non-test files of a package may import directly.
type rule struct {
	std   []string // nil: the whole standard library but notStd
	not   []string // of the standard library
	ours  []string // relative to the module; "*" is any that may be imported at all
	other []string // modules
}

// Nothing that holds state, waits, or asks the outside world: the core gets
// all that passed in.
var impure = []string{"os", "net", "time", "sync", "sync/atomic", "unsafe", "math/rand", "math/rand/v2",
	"crypto/rand", "syscall", "runtime", "context"}

// rules is the table of docs/architecture.md, lowest first. A package may be
// missing in the tree, but none in the table.
var rules = map[string]rule{
	"shm": {other: []string{sys, mmap}, not: []string{"net"}},
	"protocol/wire": {std: []string{"encoding/binary", "errors", "fmt", "hash/crc32", "math/bits", "slices",
		"strconv", "strings", "unicode/utf8"}},
	"ring": {ours: []string{"shm"}, not: []string{"net", "syscall"}},
	"ltdb": {ours: []string{"shm"}, other: []string{xxh3}, not: []string{"net", "syscall"}},

	"protocol":      {ours: []string{"protocol/wire", "protocol/link"}, not: impure},
	"protocol/link": {ours: []string{"protocol/wire"}, not: impure},
	"protocol/host": {ours: []string{"protocol", "protocol/wire", "protocol/link"}, not: impure},
	"protocol/sim": {ours: []string{"protocol", "protocol/wire", "protocol/link", "protocol/host"},
		other: []string{porcu}, not: []string{"net", "unsafe", "syscall"}},

	"transport":               {},
	"transport/transporttest": {ours: []string{"transport"}},
	"transport/udp":           {ours: []string{"transport"}, other: []string{sys}},
	"transport/xdp": {ours: []string{"shm", "transport", "transport/udp"},
		other: []string{sys, ebpf, netlink}},
	"dispatcher": {
		ours: []string{"shm", "ring", "ltdb", "protocol", "protocol/wire", "protocol/link", "transport",
			"internal/attach", "internal/call"},
		other: []string{sys},
	},
	"daemon": {
		ours: []string{"shm", "ring", "ltdb", "protocol", "protocol/wire", "protocol/link", "internal/attach",
			"internal/version",
			"dispatcher", "transport", "transport/udp", "transport/xdp"},
		other: []string{sys, cobra, pflag, toml, metrics},
	},

	"": {ours: []string{"shm", "ring", "ltdb", "protocol/wire", "internal/attach", "internal/call"},
		not: []string{"net"}},
	"internal/attach": {other: []string{sys}, not: []string{"net"}},
	"internal/call":   {ours: []string{"shm", "ring", "protocol/wire"}, not: []string{"net"}},
	"mainztest":       {ours: []string{"", "daemon"}},

	"bench":               {ours: []string{"*"}, other: []string{sys, term}},
	"bench/*":             {ours: []string{"*"}, other: []string{sys, term, mmap}},
	"bench/drive":         {ours: []string{"transport", "internal/histogram"}, other: []string{sys}},
	"bench/trace":         {}, // a format of its own, which knows nothing of stores
	"bench/trace/capture": {ours: []string{"bench/trace"}},
	"cmd/mainz":           {ours: []string{"*"}, other: []string{cobra, sys, term}},
	"cmd/mainzd":          {ours: []string{"daemon"}},

	"internal/testenv":   {ours: []string{"shm", "ltdb"}, other: []string{sys}},
	"internal/explore":   {ours: []string{"shm", "ltdb"}},
	"internal/netns":     {other: []string{sys, netlink}},
	"internal/histogram": {},
	"internal/script":    {},
	"internal/table":     {},
	"internal/version":   {ours: []string{"internal/table"}},
	"internal/api":       {},
	"internal/gotest":    {},
	"internal/house":     {},
}

// importers says who alone may import a package; the tests of the package
// itself may as well. Packages that are not named here may be imported by whom
// rules allow it.
var importers = map[string][]string{
	"daemon":             {"cmd/mainz", "cmd/mainzd", "mainztest"},
	"mainztest":          {},
	"bench":              {"cmd/mainz", "bench/*"},
	"bench/*":            {"cmd/mainz", "bench", "bench/*"},
	"bench/trace":        {"cmd/mainz", "bench", "bench/*", "bench/trace/capture"},
	"cmd/mainz":          {},
	"cmd/mainzd":         {},
	"internal/api":       {},
	"internal/gotest":    {},
	"internal/house":     {},
	"internal/histogram": {"bench", "bench/*"},
	"internal/explore":   {"internal/*"}, // and tests, which are not held to this
	"internal/testenv":   {"internal/*"},
}

func rel(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

func ours(importPath string) bool {
	return importPath == module || strings.HasPrefix(importPath, module+"/")
}

// lookup prefers the package's own line to that of its siblings ("bench/*").
func lookup[T any](table map[string]T, pkg string) (T, bool) {
	v, ok := table[pkg]
	if !ok && pkg != "" {
		v, ok = table[path.Join(path.Dir(pkg), "*")]
	}
	return v, ok
}

func (r rule) allows(imp string, module func(string) string) bool {
	if ours(imp) {
		return slices.Contains(r.ours, "*") || slices.Contains(r.ours, rel(imp))
	}
	if m := module(imp); m != "" {
		return slices.Contains(r.other, m)
	}
	if r.std != nil {
		return slices.Contains(r.std, imp)
	}
	return !slices.ContainsFunc(r.not, func(n string) bool {
		return imp == n || n == "net" && strings.HasPrefix(imp, "net/")
	})
}

func mayBeImported(by, imp string) bool {
	only, limited := lookup(importers, imp)
	return !limited || slices.ContainsFunc(only, func(o string) bool {
		return o == by || strings.HasSuffix(o, "/*") && path.Dir(by) == strings.TrimSuffix(o, "/*")
	})
}

// The rules are code too: each way to break them is shown to be seen.
func TestRulesSeeViolations(t *testing.T) {
	modules := map[string]string{"golang.org/x/sys/unix": sys, "github.com/zeebo/xxh3": xxh3,
		"github.com/spf13/cobra": cobra}
	moduleOf := func(imp string) string { return modules[imp] }
	for _, c := range []struct {
		pkg, imp string
		ok       bool
	}{
		{"ltdb", module + "/shm", true},
		{"ltdb", module + "/ring", false},
		{"ltdb", "github.com/zeebo/xxh3", true},
		{"ltdb", "golang.org/x/sys/unix", false},
		{"ltdb", "net/http", false},
		{"ltdb", "syscall", false},
		{"ltdb", "sync", true},
		{"shm", module + "/ltdb", false},
		{"shm", "github.com/spf13/cobra", false},
		{"protocol", "time", false},
		{"protocol", "slices", true},
		{"protocol/wire", "unsafe", false},
		{"bench/demo", module + "/ltdb", true},
		{"bench/demo", module + "/bench/trace", true},
		{"cmd/mainz", module + "/bench/demo", true},
		{"dispatcher", module + "/transport/udp", false},
	} {
		r, ok := lookup(rules, c.pkg)
		if !ok {
			t.Fatalf("no line for %s", c.pkg)
		}
		if got := r.allows(c.imp, moduleOf); got != c.ok {
			t.Errorf("%s importing %s: allowed is %v", c.pkg, c.imp, got)
		}
	}
	for _, c := range []struct {
		by, imp string
		ok      bool
	}{
		{"bench/demo", "bench/trace", true},
		{"cmd/mainz", "bench", true},
		{"ltdb", "bench", false},
		{"ltdb", "internal/testenv", false},
		{"bench", "daemon", false},
		{"dispatcher", "ltdb", true},
	} {
		if got := mayBeImported(c.by, c.imp); got != c.ok {
			t.Errorf("%s imported by %s: allowed is %v", c.imp, c.by, got)
		}
	}
}

// sharp says what is wrong with a sharp tool in a file, if anything.
func sharp(pkg, file, imp string) string {
	test := strings.HasSuffix(file, "_test.go")
	switch {
	case imp == "C":
		return "cgo is not for us: peers run as child processes"
	case imp == "unsafe" && pkg != "shm" && pkg != "transport/xdp" && pkg != "internal/explore" &&
		!strings.HasPrefix(file, "layout") && !strings.Contains(file, "_unsafe") && !test:
		return "only shm, transport/xdp, layout files, and the explorer that stands in for memory may"
	case imp == mmap && pkg != "shm" && !strings.HasPrefix(pkg, "bench/") && !test:
		return "only shm maps memory, and what measures it"
	}
	return ""
}

func TestSharpToolsAreSeen(t *testing.T) {
	for _, c := range []struct {
		pkg, file, imp string
		ok             bool
	}{
		{"ltdb", "store.go", "unsafe", false},
		{"ltdb", "layout.go", "unsafe", true},
		{"shm", "word.go", "unsafe", true},
		{"shm", "word.go", "C", false},
		{"ltdb", "store.go", mmap, false},
	} {
		if got := sharp(c.pkg, c.file, c.imp) == ""; got != c.ok {
			t.Errorf("%s/%s importing %s: allowed is %v", c.pkg, c.file, c.imp, got)
		}
	}
}

// go install …/cmd/mainz@latest refuses a module that replaces or excludes others.
func TestInstallable(t *testing.T) {
	b, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if word, _, _ := strings.Cut(strings.TrimSpace(line), " "); word == "replace" || word == "exclude" {
			t.Errorf("go.mod: %s: nobody can install a command of this module by its name", strings.TrimSpace(line))
		}
	}
}
