package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// child is one process of a contestant.
type child struct {
	peer    string
	version string
	cmd     *exec.Cmd
	in      *os.File
	out     *os.File
	lines   *bufio.Reader
	stderr  bytes.Buffer
}

// patience is how long a process may take to answer, beyond the length of the
// slice it was asked for. Opening and preloading are the slowest.
const patience = 2 * time.Minute

// startChild starts argv and reads its greeting.
func startChild(ctx context.Context, peer string, argv []string) (*child, error) {
	c := &child{peer: peer, cmd: exec.CommandContext(ctx, argv[0], argv[1:]...)}
	stdin, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	defer stdout.Close()
	c.in, c.out, c.lines = in, out, newLines(out)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = stdin, stdout, &c.stderr
	if err := c.cmd.Start(); err != nil {
		in.Close()
		out.Close()
		return nil, fmt.Errorf("start %s: %w", peer, err)
	}
	var g greeting
	if err := c.read(&g); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	if g.Protocol != protocolVersion || g.Peer != peer {
		c.stop()
		return nil, fmt.Errorf("%s speaks version %d of the bench protocol as %q, not %d as %q: build it anew with `make bench-peers`",
			argv[0], g.Protocol, g.Peer, protocolVersion, peer)
	}
	c.version = g.Version
	return c, nil
}

func (c *child) send(cmd command) error {
	if _, err := fmt.Fprintln(c.in, cmd); err != nil {
		return c.died(err)
	}
	return nil
}

// receive reads the answer to the command sent last.
func (c *child) receive() (answer, error) {
	var a answer
	if err := c.read(&a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s: %s", c.peer, a.Error)
	}
	return a, nil
}

func (c *child) ask(cmd command) (answer, error) {
	if err := c.send(cmd); err != nil {
		return answer{}, err
	}
	return c.receive()
}

func (c *child) read(into any) error {
	if err := c.out.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	line, err := c.lines.ReadBytes('\n')
	if err != nil {
		return c.died(err)
	}
	if err := json.Unmarshal(line, into); err != nil {
		return fmt.Errorf("%s answers %.80q: %w", c.peer, line, err)
	}
	return nil
}

// died ends a process that can no longer be talked to, and tells its last words.
func (c *child) died(err error) error {
	c.cmd.Process.Kill()
	exit := c.cmd.Wait()
	return fmt.Errorf("%s ended (%v): %w: %s", c.peer, exit, err, bytes.TrimSpace(c.stderr.Bytes()))
}

// stop ends the process by ending its input. A process that died says so.
func (c *child) stop() error {
	defer c.out.Close()
	if err := c.in.Close(); err != nil {
		return err
	}
	if c.cmd.ProcessState != nil {
		return nil // died has told it
	}
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", c.peer, err, bytes.TrimSpace(c.stderr.Bytes()))
	}
	return nil
}

func newLines(r *os.File) *bufio.Reader { return bufio.NewReaderSize(r, 1<<16) }
