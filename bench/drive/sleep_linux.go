package drive

import (
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// sleep waits until one of the descriptors is readable.
func sleep(fds []int, limit time.Duration) {
	list := make([]unix.PollFd, 0, 8)
	for _, fd := range fds {
		list = append(list, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	ts := unix.NsecToTimespec(int64(max(limit, 0)))
	_, _ = unix.Ppoll(list, &ts, nil)
}

func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set)
}

// wakeCost is about what it costs to wake a sleeping thread here: half of a
// round trip between two of them that sleep in turn, the median of a few.
func wakeCost() (time.Duration, error) {
	const rounds = 15
	var there, back [2]int
	if err := unix.Pipe2(there[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer unix.Close(there[0])
	if err := unix.Pipe2(back[:], unix.O_CLOEXEC); err != nil {
		unix.Close(there[1])
		return 0, err
	}
	defer unix.Close(back[0])
	defer unix.Close(back[1])
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var b [1]byte
		for {
			if n, err := unix.Read(there[0], b[:]); err == unix.EINTR {
				continue
			} else if n != 1 || err != nil {
				return
			}
			_, _ = unix.Write(back[1], b[:])
		}
	}()
	var took []time.Duration
	var err error
	for range rounds {
		start := time.Now()
		if err = passByte(there[1], back[0]); err != nil {
			break
		}
		took = append(took, time.Since(start)/2)
	}
	unix.Close(there[1]) // ends the other thread
	<-done
	if err != nil {
		return 0, err
	}
	slices.Sort(took)
	return took[rounds/2], nil
}

// passByte writes a byte and waits for one.
func passByte(to, from int) error {
	var b [1]byte
	if _, err := unix.Write(to, b[:]); err != nil {
		return err
	}
	for {
		if _, err := unix.Read(from, b[:]); err != unix.EINTR {
			return err
		}
	}
}
