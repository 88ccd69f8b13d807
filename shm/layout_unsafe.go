package shm

import "unsafe"

// bytes is the header as the page that it is.
func (h *Header) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(h)), HeaderSize)
}

// checksum is that of the header with ready and Checksum as 0.
func (h *Header) checksum() uint64 {
	c := *h
	c.ready, c.Checksum = 0, 0
	return fnv(c.bytes())
}
