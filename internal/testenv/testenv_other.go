//go:build !linux

package testenv

import "testing"

func mountReason() string { return "file systems are mounted on Linux only" }

func netnsReason() string { return "network namespaces exist on Linux only" }

func afxdpReason() string { return "AF_XDP exists on Linux only" }

func ramdiskReason() string { return "/dev/shm exists on Linux only" }

func hugePoolReason() string { return "hugetlbfs exists on Linux only" }

// Hugetlbfs skips the test: there is none here.
func Hugetlbfs(t testing.TB) string {
	t.Helper()
	Need(t, Linux)
	return ""
}

// Tmpfs skips the test: there is none here.
func Tmpfs(t testing.TB, _ string) string {
	t.Helper()
	Need(t, Linux)
	return ""
}

// ThreadCPU has no clock here.
func ThreadCPU() int64 { panic("testenv: the CPU time of a thread is read on Linux only") }
