package testenv

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// Gate is something that not every machine has.
type Gate string

// The gates.
const (
	// Linux: shared memory between processes.
	Linux Gate = "linux"
	// Root: the tests run as root.
	Root Gate = "root"
	// Mount: file systems can be mounted.
	Mount Gate = "mount"
	// NetNS: network namespaces can be made.
	NetNS Gate = "netns"
	// AFXDP: AF_XDP sockets and BPF maps can be made.
	AFXDP Gate = "af-xdp"
	// Ramdisk: /dev/shm is a tmpfs that we may write.
	Ramdisk Gate = "ramdisk"
	// TwoCPUs: two goroutines run at the same time.
	TwoCPUs Gate = "two-cpus"
	// HugePool: four free 2 MiB pages in the pool of hugetlbfs.
	HugePool Gate = "huge-pool"
	// NoRace: the race detector is off. It is wrong about mapped memory: it
	// reports correct hand-overs, and misses real races.
	NoRace Gate = "no-race"
	// Long: the run has minutes to spare, that is, it was not asked to be
	// -short. For a test that takes long whatever it does; one that repeats
	// itself asks testing.Short how often.
	Long Gate = "long"
)

// All returns every gate.
func All() []Gate {
	return []Gate{Linux, Root, Mount, NetNS, AFXDP, Ramdisk, TwoCPUs, HugePool, NoRace, Long}
}

// Reason returns why a gate is closed, "" if it is open.
func (g Gate) Reason() string {
	switch g {
	case Linux:
		if runtime.GOOS != "linux" {
			return "shared memory needs Linux, this is " + runtime.GOOS
		}
	case Root:
		if os.Geteuid() != 0 {
			return rootReason()
		}
	case Mount:
		return mountReason()
	case NetNS:
		return netnsReason()
	case AFXDP:
		return afxdpReason()
	case Ramdisk:
		return ramdiskReason()
	case TwoCPUs:
		if n := runtime.NumCPU(); n < 2 {
			return fmt.Sprintf("needs 2 CPUs, has %d", n)
		}
	case HugePool:
		return hugePoolReason()
	case NoRace:
		if Race {
			return "the race detector is wrong about mapped memory"
		}
	case Long:
		if testing.Short() {
			return "takes long, and the run is -short"
		}
	default:
		return "there is no such gate"
	}
	return ""
}

func rootReason() string { return fmt.Sprintf("needs root, runs as user %d", os.Geteuid()) }

// Closed returns the gates that are closed here, each as "name: reason".
func Closed() []string {
	var out []string
	for _, g := range All() {
		if why := g.Reason(); why != "" {
			out = append(out, string(g)+": "+why)
		}
	}
	return out
}

// prefix opens the message of every skip.
const prefix = "testenv: "

// Expected reports whether a test's skip message names a gate that is closed
// here.
func Expected(skip string) bool {
	for _, c := range Closed() {
		if strings.Contains(skip, prefix+c) {
			return true
		}
	}
	return false
}

// Need skips the test unless all the gates are open.
func Need(t testing.TB, gates ...Gate) {
	t.Helper()
	for _, g := range gates {
		if why := g.Reason(); why != "" {
			t.Skip(prefix + string(g) + ": " + why)
		}
	}
}

// ShmDir returns a new directory on a ramdisk that goes with the test.
func ShmDir(t testing.TB) string {
	t.Helper()
	Need(t, Linux, Ramdisk)
	dir, err := os.MkdirTemp("/dev/shm", "mainz-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
