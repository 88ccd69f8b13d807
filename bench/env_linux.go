package bench

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// environment describes the machine, warns about what disturbs a measurement,
// and refuses a directory that is too small.
func environment(o Options) (Environment, error) {
	e := Environment{
		CPUModel:    cpuModel(),
		CPUs:        runtime.NumCPU(),
		Kernel:      kernelRelease(),
		Clocksource: sysText("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
		PageSize:    os.Getpagesize(),
		GoVersion:   runtime.Version(),
		Commit:      commit(),
		Peers:       []string{},
		Quick:       o.Quick,
		SliceMS:     float64(o.Slice.Microseconds()) / 1000,
		Records:     o.Records,
		Warnings:    []string{},
	}
	fields := strings.Fields(sysText("/proc/loadavg"))
	if len(fields) > 0 {
		e.LoadBefore, _ = strconv.ParseFloat(fields[0], 64)
	}
	if e.LoadBefore > 0.25*float64(e.CPUs) {
		e.Warnings = append(e.Warnings, fmt.Sprintf("load is %.2f on %d CPUs: wait until the machine is quiet",
			e.LoadBefore, e.CPUs))
	}
	if e.Clocksource != "tsc" && runtime.GOARCH == "amd64" && e.Clocksource != "kvm-clock" {
		e.Warnings = append(e.Warnings, fmt.Sprintf("the kernel's clock is %q: its time-stamp counter may not be constant", e.Clocksource))
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(o.Dir, &fs); err != nil {
		return e, fmt.Errorf("look at %s: %w", o.Dir, err)
	}
	if free := uint64(fs.Bavail) * uint64(fs.Bsize); free < spaceNeeded {
		return e, fmt.Errorf("%s has %d MiB free and %d are needed: name another ramdisk with --dir", o.Dir, free>>20,
			spaceNeeded>>20)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		e.Warnings = append(e.Warnings, o.Dir+" is not a tmpfs: stores wait for its write-back")
	}
	e.HugePages = hugePages(o.Dir)
	return e, nil
}

// hugePages tells what files in dir can get: the mount decides, then the
// switch for all mounts.
func hugePages(dir string) string {
	all := sysText("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
	if _, chosen, ok := strings.Cut(all, "["); ok {
		all, _, _ = strings.Cut(chosen, "]")
	}
	mount, best := "never", ""
	for line := range strings.Lines(sysText("/proc/self/mounts")) {
		f := strings.Fields(line)
		if len(f) < 4 || len(f[1]) < len(best) || !strings.HasPrefix(dir+"/", strings.TrimSuffix(f[1], "/")+"/") {
			continue
		}
		mount, best = "never", f[1]
		for option := range strings.SplitSeq(f[3], ",") {
			if v, ok := strings.CutPrefix(option, "huge="); ok {
				mount = v
			}
		}
	}
	return fmt.Sprintf("mount %s, system %s", mount, all)
}

func sysText(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func cpuModel() string {
	for line := range strings.Lines(sysText("/proc/cpuinfo")) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown " + runtime.GOARCH
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// commit is what was built, else what is checked out here.
func commit() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		revision, dirty := "", ""
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				revision = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = "+"
			}
		}
		if revision != "" {
			return revision[:min(12, len(revision))] + dirty
		}
	}
	out, err := exec.Command("git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// times is the machine's CPU time so far, in ticks of the kernel.
type times struct{ all, stolen uint64 }

func cpuTimes() times {
	var t times
	line, _, _ := strings.Cut(sysText("/proc/stat"), "\n")
	// cpu user nice system idle iowait irq softirq steal guest…: the guests'
	// time is in user's already.
	for i, f := range strings.Fields(line) {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil || i > 8 {
			continue
		}
		t.all += n
		if i == 8 {
			t.stolen = n
		}
	}
	return t
}

func (t times) stolenSince(before times) float64 {
	if t.all <= before.all {
		return 0
	}
	return float64(t.stolen-before.stolen) / float64(t.all-before.all)
}
