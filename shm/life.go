package shm

import "bytes"

// HeaderWhole reports whether page 0 is still what was attached: nobody changes
// it after the file has got its name.
func (s *Segment) HeaderWhole() bool {
	page := make([]byte, HeaderSize)
	s.r.CopyOut(page, 0)
	return bytes.Equal(page, s.h.bytes())
}
