package shm

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

const hugeUnit = 2 << 20

// smapsOf sums up how the memory from base on, size bytes, is mapped.
func smapsOf(base, size uint64) (huge, pageSize uint64) {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	inside := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		key, rest, _ := strings.Cut(sc.Text(), " ")
		if !strings.HasSuffix(key, ":") {
			from, to, ok := strings.Cut(key, "-")
			a, e1 := strconv.ParseUint(from, 16, 64)
			b, e2 := strconv.ParseUint(to, 16, 64)
			inside = ok && e1 == nil && e2 == nil && a >= base && b <= base+size
			continue
		}
		if !inside {
			continue
		}
		kb, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch key {
		case "FilePmdMapped:", "ShmemPmdMapped:", "Shared_Hugetlb:", "Private_Hugetlb:":
			huge += kb << 10
		case "KernelPageSize:":
			pageSize = max(pageSize, kb<<10)
		}
	}
	return huge, pageSize
}

// Huge returns what the kernel gave: bytes that are really mapped by huge
// pages here, and their size. It reads /proc/self/smaps.
func (s *Segment) Huge() HugeReport {
	r := HugeReport{Asked: HugePages(s.h.Huge)}
	if s.InHeap() {
		return r
	}
	r.Bytes, r.PageSize = smapsOf(uint64(s.r.address()), s.r.size)
	if r.Bytes > 0 {
		r.PageSize = max(r.PageSize, hugeUnit)
	}
	return r
}
