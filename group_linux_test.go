package mainz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mainzdb/mainz/internal/testenv"
)

// permissionExit is how attachClient ends if it may not attach.
const permissionExit = 4

// attachClient is a program that attaches, stores and leaves.
func attachClient() {
	err := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		c, err := Attach(ctx, os.Args[1])
		if err != nil {
			return err
		}
		db, err := c.Open(ctx, "db", KV)
		if err == nil {
			err = db.Store(ctx, []byte("who"), fmt.Append(nil, os.Getuid()))
		}
		return errors.Join(err, c.Close())
	}()
	fmt.Println(err)
	switch {
	case errors.Is(err, ErrPermission):
		os.Exit(permissionExit)
	case err != nil:
		os.Exit(1)
	}
	os.Exit(0)
}

// Who is of the node's group may attach, and nobody else: he is told what to do.
func TestGroup(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.Root)
	const group, nobody = 54321, 65534
	base, err := os.MkdirTemp("/dev/shm", "mainz-test-*")
	want(t, err, nil)
	defer os.RemoveAll(base)
	want(t, os.Chmod(base, 0o755), nil)
	program := testenv.Program(t, "program")
	dir := filepath.Join(base, "v1")
	d := child(t, "mainzd", "--config", os.DevNull, "--dir", dir, "--group", fmt.Sprint(group), "--size", "32MiB",
		"--slots", "8", "--log-level", "warn")
	want(t, d.Start(), nil)
	defer func() {
		_ = d.Process.Kill()
		_ = d.Wait()
	}()
	c := attachTo(t, dir) // waits for it
	defer c.Close()
	run := func(groups ...uint32) (int, string) {
		cmd := exec.Command(program, dir)
		cmd.Env = []string{"MAINZ_TEST_CHILD=attach"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody,
			Groups: groups}}
		out, err := cmd.CombinedOutput()
		if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
	if code, out := run(); code != permissionExit || !strings.Contains(out, "usermod") {
		t.Errorf("who is not of the group: ended with %d: %s", code, out)
	}
	if code, out := run(group); code != 0 {
		t.Errorf("who is of the group: ended with %d: %s", code, out)
	}
	got, err := c.open(t, "db", KV).Fetch(minute(t), []byte("who"))
	want(t, err, nil)
	if string(got) != fmt.Sprint(nobody) {
		t.Errorf("stored %q", got)
	}
}
