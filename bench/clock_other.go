//go:build !linux

package bench

import (
	"errors"
	"time"
)

var processStart = time.Now()

func monotonicNS() int64 { return int64(time.Since(processStart)) }

var errLinux = errors.New("processes that share memory need Linux")

func pin(int) error { return errLinux }

func allowedCPUs() ([]int, error) { return nil, errLinux }
