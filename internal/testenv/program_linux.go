package testenv

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// Program copies the test's binary to where every user may run it, and returns the
// path, which ends with name: the go command puts it where only we can go.
func Program(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mainz-program-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, name)
	if err := errors.Join(os.Chmod(dir, 0o755), copyFile(to, exe)); err != nil {
		t.Fatal(err)
	}
	return to
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
