package demo

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// launcher starts processes that do not outlive it, however it ends: the
// kernel kills a child when the thread that has started it is gone. So this
// thread has to live as long as they.
type launcher chan func()

func newLauncher() launcher {
	l := make(launcher)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the loop
		for job := range l {
			job()
		}
	}()
	return l
}

// start starts the process in a group of its own: the interrupt from a keyboard
// is for the demo, which then ends them.
func (l launcher) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	l <- func() { started <- cmd.Start() }
	return <-started
}

func (l launcher) close() { close(l) }

// stop stops the client with SIGSTOP, and reports whether that has happened.
func (p *process) stop() bool {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return false // it has exited, which is an event
	}
	// The signal takes a moment until it has stopped every thread.
	for range 1000 {
		if stopped, err := p.allStopped(); stopped || err != nil {
			return stopped
		}
		time.Sleep(10 * time.Microsecond)
	}
	return false
}

func (p *process) goOn() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

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

func terminate(p *os.Process) error { return p.Signal(syscall.SIGTERM) }
