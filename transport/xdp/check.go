//go:build linux

package xdp

import "fmt"

// check adds up the frames: each is in exactly one place.
//
// Preconditions: called between two calls of the transport's methods.
func (u *umem) check() error {
	seen := make(map[uint64]string, len(u.mem)/int(u.frame))
	put := func(addr uint64, where string) error {
		if addr >= uint64(len(u.mem)) || addr%uint64(u.frame) != 0 {
			return fmt.Errorf("%s holds %#x, which is no frame", where, addr)
		}
		if other, ok := seen[addr]; ok {
			return fmt.Errorf("frame %#x is in %s and in %s", addr, other, where)
		}
		seen[addr] = where
		return nil
	}
	for _, a := range u.free {
		if err := put(a, "the free list"); err != nil {
			return err
		}
	}
	for _, s := range u.sockets {
		// What we gave to the kernel and did not get back; where it keeps the
		// frames meanwhile is its own affair.
		s.rx.prod = s.rx.cons
		waiting := s.rx.available()
		if out := int(s.fill.prod - s.rx.cons); out+len(s.spare) != u.rxFrames {
			return fmt.Errorf("queue %d: %d frames are out for receiving and %d put by, of %d (%d wait for us)",
				s.queue, out, len(s.spare), u.rxFrames, waiting)
		}
		for _, a := range s.spare {
			if err := put(a, "what is put by"); err != nil {
				return err
			}
		}
		if s.queue > 0 && s.tx.prod != 0 {
			return fmt.Errorf("queue %d sends", s.queue)
		}
	}
	s := u.sockets[0]
	if out := int(u.out.tx.prod - s.comp.cons); out+len(u.free) != txFrames {
		return fmt.Errorf("%d frames are free and %d out for sending, of %d", len(u.free), out, txFrames)
	}
	return nil
}
