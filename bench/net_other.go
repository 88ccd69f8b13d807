//go:build !linux

package bench

import (
	"context"
	"io"
)

// Net needs Linux.
func Net(context.Context, NetOptions) (*Report, error) { return nil, errLinux }

// NetWorker needs Linux.
func NetWorker(context.Context, NetWorkerOptions, io.Reader, io.Writer) error { return errLinux }
