//go:build !linux

package dispatcher

import (
	"time"

	"github.com/mainzdb/mainz/shm"
)

type pollSet struct{ stale bool }

func (p *pollSet) ready(*Dispatcher, time.Duration) []int { return nil }

func (d *Dispatcher) sleep() error { return shm.ErrNotSupported }
