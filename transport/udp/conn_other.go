//go:build !linux

package udp

import (
	"fmt"
	"runtime"

	"github.com/mainzdb/mainz/transport"
)

// Open needs Linux.
func Open(opts Options) (transport.Transport, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("udp transport: %w on %s: needs Linux", transport.ErrNotSupported, runtime.GOOS)
}
