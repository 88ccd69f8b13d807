//go:build !linux

package drive

import (
	"time"

	"github.com/mainzdb/mainz/transport"
)

func sleep(_ []int, limit time.Duration) { time.Sleep(min(limit, time.Millisecond)) }

func pin(int) error { return transport.ErrNotSupported }

func wakeCost() (time.Duration, error) { return 0, transport.ErrNotSupported }
