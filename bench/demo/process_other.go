//go:build !linux

package demo

import (
	"os"
	"os/exec"
)

// The demo needs shared memory between processes, and says so long before any
// of this is called.

type launcher struct{}

func newLauncher() launcher                { return launcher{} }
func (launcher) start(cmd *exec.Cmd) error { return cmd.Start() }
func (launcher) close()                    {}

func (p *process) stop() bool { return true }
func (p *process) goOn()      {}

func terminate(p *os.Process) error { return p.Kill() }
