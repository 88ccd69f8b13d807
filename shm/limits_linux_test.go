package shm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/testenv"
)

// roomy is a machine on which nothing is short.
func roomy() *Machine {
	return &Machine{Available: 64 << 30, AddressSpace: Unlimited, FileSize: Unlimited, Files: 20_000,
		FilesHard: 20_000, RemoveIPC: true}
}

// Each limit is looked at, and the message names the limit and its own remedy.
func TestLimits(t *testing.T) {
	need := Need{Dir: "/dev/shm/mainz/v1", Size: 256 << 20, Slots: 256, Create: true, Owner: true, Ram: true}
	group := func(most, high, used uint64) MemoryGroup {
		return MemoryGroup{Path: "/sys/fs/cgroup/app", Max: most, High: high, Used: used, MaxAt: "memory.max"}
	}
	for _, tc := range []struct {
		name   string
		m      func(m *Machine)
		n      func(n *Need)
		refuse string // words of the error, "" for none
		warn   string // words of the only warning, "" for none
	}{
		{name: "roomy"},
		{name: "a group that fits", m: func(m *Machine) {
			m.Memory = []MemoryGroup{group(512<<20, Unlimited, 100<<20)}
		}},
		{name: "a small group", m: func(m *Machine) { m.Memory = []MemoryGroup{group(512<<20, Unlimited, 300<<20)} },
			refuse: "MemoryMax="},
		{name: "a small group above", m: func(m *Machine) {
			m.Memory = []MemoryGroup{group(1<<30, Unlimited, 0),
				{Path: "/sys/fs/cgroup", Max: 200 << 20, High: Unlimited, MaxAt: "memory.max"}}
		}, refuse: "control group /sys/fs/cgroup allows 200 MiB"},
		{name: "the segment alone would fit",
			m: func(m *Machine) { m.Memory = []MemoryGroup{group(257<<20, Unlimited, 0)} }, refuse: "memory.max"},
		{name: "a small group that may swap", m: func(m *Machine) {
			m.Memory = []MemoryGroup{group(200<<20, Unlimited, 0)}
			m.Memory[0].Swap = 1 << 30
		}, warn: "only by swapping"},
		{name: "a low memory.high", m: func(m *Machine) { m.Memory = []MemoryGroup{group(1<<30, 100<<20, 0)} },
			warn: "MemoryHigh="},
		{name: "a small group, on a disk", m: func(m *Machine) {
			m.Memory = []MemoryGroup{group(100<<20, Unlimited, 0)}
		}, n: func(n *Need) { n.Ram = false }},
		{name: "a small group, attach", m: func(m *Machine) {
			m.Memory = []MemoryGroup{group(100<<20, Unlimited, 0)}
		}, n: func(n *Need) { n.Create = false }},
		{name: "a small machine", m: func(m *Machine) { m.Available = 100 << 20 }, refuse: "the machine's memory"},
		{name: "a small machine with swap", m: func(m *Machine) { m.Available, m.Swap = 100<<20, 1<<30 },
			warn: "only by swapping"},
		{name: "address space", m: func(m *Machine) { m.AddressSpace, m.AddressUsed = 2<<30, 2<<30-100<<20 },
			refuse: "ulimit -v"},
		{name: "address space, attach", m: func(m *Machine) { m.AddressSpace, m.AddressUsed = 2<<30, 2<<30-100<<20 },
			n: func(n *Need) { n.Create = false }, refuse: "ulimit -v"},
		{name: "file size", m: func(m *Machine) { m.FileSize = 100 << 20 }, refuse: "ulimit -f"},
		{name: "file size, attach", m: func(m *Machine) { m.FileSize = 100 << 20 },
			n: func(n *Need) { n.Create = false }},
		{name: "descriptors", m: func(m *Machine) { m.Files = 256 }, warn: "LimitNOFILE=320"},
		{name: "descriptors, hard", m: func(m *Machine) { m.Files, m.FilesHard = 256, 256 },
			warn: "the hard limit is 256"},
		{name: "descriptors of a client", m: func(m *Machine) { m.Files = 256 }, n: func(n *Need) { n.Owner = false }},
		{name: "processes", m: func(m *Machine) { m.Pids = []PidsGroup{{"/sys/fs/cgroup/app", 100, 95}} },
			warn: "TasksMax="},
		{name: "a user's files, no systemd", m: func(m *Machine) { m.UID = 1000 }},
		{name: "a user's files", m: func(m *Machine) { m.UID, m.Systemd = 1000, true }, warn: "RemoveIPC=no"},
		{name: "a user's files, kept", m: func(m *Machine) { m.UID, m.Systemd, m.RemoveIPC = 1000, true, false }},
		{name: "a system user's files", m: func(m *Machine) { m.UID, m.Systemd = 999, true }},
		{name: "a user's files elsewhere", m: func(m *Machine) { m.UID, m.Systemd = 1000, true },
			n: func(n *Need) { n.Dir = "/run/mainz" }},
	} {
		m, n := roomy(), need
		if tc.m != nil {
			tc.m(m)
		}
		if tc.n != nil {
			tc.n(&n)
		}
		warnings, err := m.Check(n)
		switch {
		case tc.refuse == "" && err != nil, tc.refuse != "" &&
			(!errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), tc.refuse)):
			t.Errorf("%s: %v, want %q", tc.name, err, tc.refuse)
		case err != nil && strings.Contains(err.Error(), "remount"):
			t.Errorf("%s: the remedy is another's: %v", tc.name, err)
		case tc.warn == "" && len(warnings) > 0, tc.warn != "" &&
			(len(warnings) != 1 || !strings.Contains(warnings[0], tc.warn)):
			t.Errorf("%s: warnings %q, want %q", tc.name, warnings, tc.warn)
		}
	}
}

// root is a directory with these files in it.
func root(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700),
			os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const someLimits = `Limit                     Soft Limit           Hard Limit           Units     
Max file size             1048576              unlimited            bytes     
Max open files            1024                 524288               files     
Max locked memory         8388608              8388608              bytes     
Max address space         unlimited            unlimited            bytes     
`

func TestReadMachine(t *testing.T) {
	meminfo := "MemTotal:       2000 kB\nMemAvailable:    1000 kB\nSwapFree:          10 kB\n"
	status := "Name:\tx\nUid:\t1000\t1001\t1000\t1000\nVmSize:\t   500 kB\n"
	v2 := "22 1 0:20 / / rw - ext4 /dev/vda rw\n30 22 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	base := Machine{Available: 1000 << 10, Swap: 10 << 10, AddressSpace: Unlimited, AddressUsed: 500 << 10,
		FileSize: 1 << 20, Files: 1024, FilesHard: 524288, UID: 1001, RemoveIPC: true}
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  func(m *Machine)
	}{
		{"version 2, three levels", map[string]string{
			"proc/self/cgroup":                           "0::/a.slice/b.service\n",
			"proc/self/mountinfo":                        v2,
			"sys/fs/cgroup/a.slice/b.service/pids.max":   "max\n",
			"sys/fs/cgroup/a.slice/memory.max":           "1000000\n",
			"sys/fs/cgroup/a.slice/memory.high":          "max\n",
			"sys/fs/cgroup/a.slice/memory.current":       "500000\n",
			"sys/fs/cgroup/a.slice/memory.swap.max":      "0\n",
			"sys/fs/cgroup/a.slice/memory.stat":          "anon 7\ninactive_file 100000\nactive_file 50000\nshmem 9\n",
			"sys/fs/cgroup/a.slice/pids.max":             "50\n",
			"sys/fs/cgroup/a.slice/pids.current":         "5\n",
			"sys/fs/cgroup/memory.max":                   "max\n",
			"sys/fs/cgroup/a.slice/b.service/memory.max": "max\n",
		}, func(m *Machine) {
			m.Memory = []MemoryGroup{{Path: "/sys/fs/cgroup/a.slice", Max: 1000000, High: Unlimited, Used: 350000,
				MaxAt: "memory.max"}}
			m.Pids = []PidsGroup{{"/sys/fs/cgroup/a.slice", 50, 5}}
		}},
		{"version 2, own group, high", map[string]string{
			"proc/self/cgroup":               "0::/a\n",
			"proc/self/mountinfo":            v2,
			"sys/fs/cgroup/a/memory.high":    "4096\n",
			"sys/fs/cgroup/a/memory.stat":    "inactive_file 100000\n",
			"sys/fs/cgroup/a/memory.current": "5\n",
		}, func(m *Machine) {
			m.Memory = []MemoryGroup{{Path: "/sys/fs/cgroup/a", Max: Unlimited, High: 4096, Used: 0, Swap: 10 << 10,
				MaxAt: "memory.max"}}
		}},
		{"version 1 in a container that sees its part only", map[string]string{
			"proc/self/cgroup": "9:name=systemd:/docker/77\n8:pids:/docker/77\n4:memory,hugetlb:/docker/77\n0::/\n",
			"proc/self/mountinfo": "35 31 0:32 /docker/77 /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory,hugetlb\n" +
				"36 31 0:33 /docker/77 /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
			"sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000\n",
			"sys/fs/cgroup/memory/memory.stat":           "inactive_file 1\ntotal_inactive_file 1000\ntotal_active_file 2000\n",
			"sys/fs/cgroup/pids/pids.max":                "100\n",
			"sys/fs/cgroup/pids/pids.current":            "1\n",
		}, func(m *Machine) {
			m.Memory = []MemoryGroup{{Path: "/sys/fs/cgroup/memory", V1: true, Max: 2000000, High: Unlimited,
				Used: 997000, Swap: 10 << 10, MaxAt: "memory.limit_in_bytes"}}
			m.Pids = []PidsGroup{{"/sys/fs/cgroup/pids", 100, 1}}
		}},
		{"version 1, no limit, and the group of somebody above", map[string]string{
			"proc/self/cgroup":                                   "4:memory:/a/b\n",
			"proc/self/mountinfo":                                "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":         "9223372036854771712\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes":       "5000\n",
			"sys/fs/cgroup/memory/a/memory.memsw.limit_in_bytes": "5000\n",
			"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes":     "9223372036854771712\n",
		}, func(m *Machine) {
			m.Memory = []MemoryGroup{{Path: "/sys/fs/cgroup/memory/a", V1: true, Max: 5000, High: Unlimited,
				MaxAt: "memory.limit_in_bytes"}}
		}},
		{"logind says no", map[string]string{
			"run/systemd/system/x":    "",
			"etc/systemd/logind.conf": "[Login]\n#RemoveIPC=yes\nRemoveIPC=no\n",
		}, func(m *Machine) { m.Systemd, m.RemoveIPC = true, false }},
		{"logind says no, then yes", map[string]string{
			"etc/systemd/logind.conf":              "[Login]\nRemoveIPC=no\n",
			"usr/lib/systemd/logind.conf.d/a.conf": "[Login]\nRemoveIPC = yes\n",
			"run/systemd/logind.conf.d/b.conf":     "[Other]\nRemoveIPC=no\n",
		}, func(m *Machine) {}},
		{"what is dropped in has its place", map[string]string{
			"usr/lib/systemd/logind.conf.d/a.conf": "[Login]\nRemoveIPC=yes\n",
			"etc/systemd/logind.conf.d/a.conf":     "[Login]\nRemoveIPC=no\n",
		}, func(m *Machine) { m.RemoveIPC = false }},
	} {
		files := map[string]string{"proc/meminfo": meminfo, "proc/self/status": status, "proc/self/limits": someLimits}
		for name, text := range tc.files {
			files[name] = text
		}
		want := base
		tc.want(&want)
		if got := ReadMachine(root(t, files)); !reflect.DeepEqual(*got, want) {
			t.Errorf("%s:\n%+v, want\n%+v", tc.name, *got, want)
		}
	}
	// Where nothing can be read, nothing is limited.
	if w, err := ReadMachine(t.TempDir()).Check(Need{Dir: "/dev/shm/x", Size: 1 << 40, Slots: 4000, Create: true,
		Owner: true, Ram: true}); len(w) > 0 || err != nil {
		t.Errorf("an empty root: %q, %v", w, err)
	}
}

func init() { roles["make"] = roleMake }

// roleMake makes a segment of 96 MiB under the limit that it is told.
func roleMake(dir string) error {
	fmt.Println("ready")
	told.Scan()
	what, number, _ := strings.Cut(told.Text(), " ")
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return err
	}
	set := func(resource int, to uint64) error {
		var r unix.Rlimit
		if err := unix.Getrlimit(resource, &r); err != nil {
			return err
		}
		r.Cur = to
		return unix.Setrlimit(resource, &r)
	}
	switch what {
	case "as":
		err = set(unix.RLIMIT_AS, ReadMachine("/").AddressUsed+n)
	case "fsize":
		err = set(unix.RLIMIT_FSIZE, n)
	case "nofile":
		err = set(unix.RLIMIT_NOFILE, n)
	}
	if err != nil {
		return err
	}
	cfg := testConfig(2)
	cfg.Size = 96 << 20
	s, err := Create(context.Background(), dir, cfg, nil)
	if err != nil {
		fmt.Println("refused", errors.Is(err, ErrNoSpace), strings.ReplaceAll(err.Error(), " ", "_"))
		return nil
	}
	fmt.Println("made", strings.ReplaceAll(fmt.Sprint(s.Warnings(true)), " ", "_"))
	return s.Close()
}

// A process under a limit is told so, with the remedy of that limit: it is not
// killed, and gets no SIGXFSZ.
func TestLimitsOfAProcess(t *testing.T) {
	top := mapped(t)
	for i, tc := range []struct{ tell, says, words string }{
		{"as 67108864", "refused true", "ulimit_-v"},
		{"fsize 67108864", "refused true", "ulimit_-f"},
		{"nofile 50", "made", "LimitNOFILE=66"},
		{"none 0", "made", ""},
	} {
		dir := filepath.Join(filepath.Dir(top), fmt.Sprint(i), "v1")
		c := spawn(t, "make", dir, nil)
		c.says("ready")
		if _, err := io.WriteString(c.in, tc.tell+"\n"); err != nil {
			t.Fatal(err)
		}
		var text string
		c.says(tc.says, &text)
		c.end()
		if !strings.Contains(text, tc.words) || strings.Contains(text, "remount") {
			t.Errorf("%s: %s", tc.tell, text)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// In a control group that is too small for the segment the kernel would kill the
// process in the middle of its creation.
func TestMemoryGroup(t *testing.T) {
	dir := mapped(t)
	testenv.Need(t, testenv.Root)
	own := reader{"/"}.hierarchies("memory")
	group, set := "", ""
	for _, h := range own {
		g := filepath.Join(h.own, fmt.Sprintf("mainz-test-%d", os.Getpid()))
		set = filepath.Join(g, "memory.max")
		if h.v1 {
			set = filepath.Join(g, "memory.limit_in_bytes")
		}
		if os.Mkdir(g, 0o700) == nil {
			t.Cleanup(func() { _ = os.Remove(g) })
			if os.WriteFile(set, []byte("67108864"), 0o600) == nil {
				group = g
				break
			}
		}
	}
	if group == "" {
		t.Skipf("no control group with a limit of memory can be made below %+v", own)
	}
	inside := filepath.Join(group, "inside")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(inside)
	for _, g := range []string{group, inside} {
		c := spawn(t, "make", dir, nil)
		c.says("ready")
		if err := os.WriteFile(filepath.Join(g, "cgroup.procs"), []byte(fmt.Sprint(c.cmd.Process.Pid)),
			0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c.in, "none 0\n"); err != nil {
			t.Fatal(err)
		}
		var text string
		c.says("refused true", &text)
		c.end()
		if !strings.Contains(text, group+"_allows") || !strings.Contains(text, filepath.Base(set)) {
			t.Errorf("in %s: %s", g, text)
		}
	}
}
