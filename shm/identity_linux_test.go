package shm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/testenv"
)

// copyDir makes b what cp -a makes of a.
func copyDir(t testing.TB, a, b string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", a, b).CombinedOutput(); err != nil {
		t.Fatalf("cp -a: %v: %s", err, out)
	}
}

// A copy has locks of clients that are not there: it is refused, the message
// says what to do, and an owner can make a new segment in its place.
func TestCopyIsRefused(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(3))
	c := join(t, s, nil)
	other := filepath.Join(filepath.Dir(dir), "copy")
	copyDir(t, dir, other)
	refused := func(what, dir string) {
		t.Helper()
		for _, attach := range []func(context.Context, string, string) (*Segment, error){Attach, AttachReadOnly} {
			g, err := attach(context.Background(), dir, testLayout)
			if !errors.Is(err, ErrCopied) || !strings.Contains(err.Error(), "mainz dump") ||
				!strings.Contains(err.Error(), dir) {
				t.Errorf("%s: %v", what, err)
			}
			if g != nil {
				_ = g.Close()
			}
		}
	}
	refused("a copy", other)
	// The original is as it was, and so is its file under another name.
	moved := dir + ".moved"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	b, err := Attach(context.Background(), moved, testLayout)
	if err != nil {
		t.Fatalf("a directory that was renamed: %v", err)
	}
	if err := errors.Join(b.Close(), os.Rename(moved, dir)); err != nil {
		t.Fatal(err)
	}
	n, err := Create(context.Background(), other, testConfig(3), nil)
	if err != nil {
		t.Fatalf("a new segment in the place of a copy: %v", err)
	}
	if n.Header().ID == s.Header().ID || n.Header().ID == [16]byte{} {
		t.Errorf("two segments have the id %x and %x", s.Header().ID, n.Header().ID)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if state, _ := s.Gate().State(); state != GateOpen {
		t.Errorf("the original's gate is %d", state)
	}
	if err := c.Leave(); err != nil {
		t.Error(err)
	}
}

// Other mounts of the same file system are the same file; another file system
// that gives the same inode number is not.
func TestIdentityAndMounts(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	one, two := testenv.Tmpfs(t, "size=8m,mode=700"), testenv.Tmpfs(t, "size=8m,mode=700")
	dir := filepath.Join(one, "v1")
	s := newSegment(t, dir, testConfig(3))
	bound := filepath.Join(t.TempDir(), "bound")
	bound, err := filepath.Abs(bound)
	if err == nil {
		err = os.Mkdir(bound, 0o700)
	}
	if err == nil {
		err = unix.Mount(dir, bound, "", unix.MS_BIND, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(bound, unix.MNT_DETACH)
	b, err := Attach(context.Background(), bound, testLayout)
	if err != nil {
		t.Fatalf("through a bind mount: %v", err)
	}
	if b.Header().ID != s.Header().ID {
		t.Error("another segment")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	// Each tmpfs counts inodes from 1: the copy is made to have the same.
	var want, got unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, segmentName), &want); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(two, segmentName)
	good, err := os.ReadFile(filepath.Join(dir, segmentName))
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		_ = os.Remove(file)
		if err := os.WriteFile(file, good, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(file, &got); err != nil {
			t.Fatal(err)
		}
		if got.Ino >= want.Ino {
			break
		}
	}
	if got.Ino != want.Ino {
		t.Logf("the copy has inode %d, the original %d: the device alone is not tried", got.Ino, want.Ino)
	}
	if _, err := Attach(context.Background(), two, testLayout); !errors.Is(err, ErrCopied) {
		t.Errorf("a copy with the same inode number in another file system: %v", err)
	}
}

// On a file system that gives an inode's number away again, its birth tells.
func TestIdentityBirth(t *testing.T) {
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(3))
	id, err := fileIDOf(s.file)
	if err != nil {
		t.Fatal(err)
	}
	h := *s.Header()
	as := &Segment{h: &h, file: s.file}
	if err := as.checkFile(); err != nil || id != (fileID{h.Device, h.Inode, h.Birth}) {
		t.Fatalf("the file is %+v, its header says %+v: %v", id, fileID{h.Device, h.Inode, h.Birth}, err)
	}
	t.Logf("births are told: %v", id.birth != 0)
	h.Birth++
	if err := as.checkFile(); id.birth != 0 && !errors.Is(err, ErrCopied) {
		t.Errorf("another birth: %v", err)
	}
	h.Birth = 0
	if err := as.checkFile(); err != nil {
		t.Errorf("a header without birth: %v", err)
	}
}
