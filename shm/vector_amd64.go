package shm

import "golang.org/x/sys/cpu"

// HasAVX2 reports whether the CPU, and the system, know vectors of 32 bytes.
var HasAVX2 = cpu.X86.HasAVX2
