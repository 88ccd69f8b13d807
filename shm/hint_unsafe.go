package shm

import "unsafe"

// GoroutineHint returns a number that is mostly the same in one goroutine and
// another in the next, for choosing among resources that goroutines share. It
// is an address on the stack, so it may change whenever the stack moves.
func GoroutineHint() uint {
	var here byte
	return uint(uintptr(unsafe.Pointer(&here)) >> 13)
}
