//go:build !linux

package xdp

import (
	"fmt"
	"net/netip"
	"runtime"

	"github.com/mainzdb/mainz/transport"
)

// Open needs Linux.
func Open(opts Options) (transport.Transport, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("transport %s: %w on %s: needs Linux", opts.Mode, transport.ErrNotSupported, runtime.GOOS)
}

// DropPrivileges needs Linux.
func DropPrivileges() error {
	return fmt.Errorf("drop privileges: %w: needs Linux", transport.ErrNotSupported)
}

// Examine needs Linux.
func Examine(netip.Addr) (*Examination, error) {
	return nil, fmt.Errorf("examine the network: %w on %s: needs Linux", transport.ErrNotSupported, runtime.GOOS)
}
