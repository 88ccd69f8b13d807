//go:build !linux

package bench

import (
	"context"
	"io"
)

// Ring needs Linux.
func Ring(context.Context, RingOptions) (*Report, error) { return nil, errLinux }

// RingWorker needs Linux.
func RingWorker(context.Context, RingWorkerOptions, io.Reader, io.Writer) error { return errLinux }
