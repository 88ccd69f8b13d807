package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var mountReason = sync.OnceValue(func() string {
	if os.Geteuid() != 0 {
		return rootReason()
	}
	dir, err := os.MkdirTemp("", "mainz-mount-")
	if err != nil {
		return err.Error()
	}
	defer os.Remove(dir)
	if err := unix.Mount("mainz-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		return fmt.Sprintf("mounting a tmpfs: %v", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Sprintf("unmounting a tmpfs: %v", err)
	}
	return ""
})

var ramdiskReason = sync.OnceValue(func() string {
	var sf unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &sf); err != nil {
		return fmt.Sprintf("/dev/shm: %v", err)
	}
	if sf.Type != unix.TMPFS_MAGIC {
		return "/dev/shm is no tmpfs"
	}
	if err := unix.Access("/dev/shm", unix.W_OK|unix.X_OK); err != nil {
		return fmt.Sprintf("/dev/shm: %v", err)
	}
	return ""
})

func hugePoolReason() string {
	b, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
	if err != nil {
		return fmt.Sprintf("huge pages: %v", err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || n < 4 {
		return "fewer than 4 free huge pages: sysctl vm.nr_hugepages=4"
	}
	return ""
}

// Tmpfs mounts a tmpfs with the options, such as "size=8m", and returns where.
// It goes with the test.
func Tmpfs(t testing.TB, options string) string {
	t.Helper()
	return mount(t, "tmpfs", options)
}

// Hugetlbfs mounts a hugetlbfs and returns where. It goes with the test.
func Hugetlbfs(t testing.TB) string {
	t.Helper()
	return mount(t, "hugetlbfs", "mode=700")
}

func mount(t testing.TB, fstype, options string) string {
	t.Helper()
	Need(t, Mount)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("mainz-test", dir, fstype, 0, options); err != nil {
		t.Fatalf("mount -t %s -o %s: %v", fstype, options, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// ThreadCPU is the CPU time of the calling thread, in nanoseconds. Lock the goroutine to
// its thread first.
func ThreadCPU() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(fmt.Sprintf("testenv: clock_gettime: %v", err))
	}
	return t.Nano()
}
