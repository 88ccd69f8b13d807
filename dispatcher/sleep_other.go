//go:build !linux

package dispatcher

import "github.com/mainzdb/mainz/shm"

type pollSet struct{ stale bool }

func (p *pollSet) ready(*Dispatcher) (bool, []*conn) { return false, nil }

func (d *Dispatcher) sleep() error { return shm.ErrNotSupported }
