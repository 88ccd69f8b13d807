package demo

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
	"time"
)

// caught reports whether the client has files open and is just now inside a
// record's lock: then its death leaves work for everybody. To see that it must
// be stopped first, since locks are held for some tens of nanoseconds; it stays
// stopped if it is caught.
func (r *run) caught(p *process) bool {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return false // it has exited, which is an event
	}
	if p.isStopped() && r.hasFilesOpen(p) && r.locks(p) > 0 {
		return true
	}
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	return false
}

// isStopped waits a little until the signal has stopped every thread.
func (p *process) isStopped() bool {
	for range 1000 {
		if stopped, err := p.allStopped(); stopped || err != nil {
			return stopped
		}
		time.Sleep(10 * time.Microsecond)
	}
	return false
}

func (p *process) allStopped() (bool, error) {
	tasks := fmt.Sprintf("/proc/%d/task/", p.cmd.Process.Pid)
	threads, err := os.ReadDir(tasks)
	if err != nil {
		return false, err
	}
	for _, t := range threads {
		b, err := os.ReadFile(tasks + t.Name() + "/stat")
		if err != nil {
			return false, err
		}
		// The state follows the name, which is in parentheses.
		if i := bytes.LastIndexByte(b, ')'); i < 0 || i+2 >= len(b) || b[i+2] != 'T' {
			return false, nil
		}
	}
	return true, nil
}

// locks is how many record locks the client holds or waits for.
func (r *run) locks(p *process) int {
	for _, c := range r.store.Clients() {
		if int(c.PID) == p.cmd.Process.Pid {
			return c.Locks
		}
	}
	return 0
}
