package shm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/testenv"
)

// ends waits until the segment's use here has ended, and checks the reason.
func ends(t testing.TB, s *Segment, words string) {
	t.Helper()
	select {
	case <-s.Done():
	case <-time.After(time.Minute):
		t.Fatalf("waited a minute in vain for the end: %s", words)
	}
	err := s.Ended()
	if !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), words) {
		t.Errorf("it ended as %v, want %q", err, words)
	}
	if state, _ := s.Gate().State(); state != GateDead {
		t.Errorf("the gate is %d", state)
	}
}

// A segment whose file was deleted is dead for all: also for who has another
// path to it and for who only looks on. Waits end with the reason.
func TestDeleted(t *testing.T) {
	for _, how := range []string{"the file", "the directory", "rename"} {
		dir := mapped(t)
		s := newSegment(t, dir, testConfig(4))
		c := join(t, s, nil)
		b, err := Attach(context.Background(), dir, testLayout)
		if err != nil {
			t.Fatal(err)
		}
		o, err := AttachReadOnly(context.Background(), dir, testLayout)
		if err != nil {
			t.Fatal(err)
		}
		waits := make(chan error)
		w := new(Word32)
		go func() {
			var err error
			for err == nil {
				err = c.WaitOwner(0, Watch{w, 0}, nil, 0)
			}
			waits <- err
		}()
		words := "deleted"
		switch how {
		case "the file":
			err = os.Remove(filepath.Join(dir, segmentName))
		case "the directory":
			err = os.RemoveAll(dir)
		case "rename":
			words = "replaced"
			other := filepath.Join(dir, "other")
			err = errors.Join(os.WriteFile(other, nil, 0o600), os.Rename(other, filepath.Join(dir, segmentName)))
		}
		if err != nil {
			t.Fatal(err)
		}
		ends(t, s, words) // its client's guardian looks
		ends(t, o, words) // its timer does
		if state, _ := b.Gate().State(); state != GateDead {
			t.Errorf("%s: the gate is %d for who has not looked", how, state)
		}
		if err := b.Why(); !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: who meets the dead gate is told %v", how, err)
		}
		if err := <-waits; !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: a wait ended with %v", how, err)
		}
		if err := errors.Join(c.Leave(), o.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	}
}

// The kernel tells who owns the segment that the file has lost its name, or was cut,
// and a client that its connection has ended. Nobody has to wait for the next look.
func TestToldOfTheEnd(t *testing.T) {
	for words, spoil := range map[string]func(file string) error{
		"deleted": os.Remove,
		"replaced": func(file string) error {
			return errors.Join(os.WriteFile(file+".2", nil, 0o600), os.Rename(file+".2", file))
		},
		"truncated": func(file string) error { return os.Truncate(file, 4096) },
	} {
		dir := mapped(t)
		s := newSegment(t, dir, testConfig(4))
		d, err := s.Join(context.Background(), JoinOptions{Dispatcher: true, LookEvery: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		if err := spoil(filepath.Join(dir, segmentName)); err != nil {
			t.Fatal(err)
		}
		ends(t, s, words)
		if err := d.Leave(); err != nil && words != "truncated" {
			t.Error(err)
		}
	}
	// A client's guardian looks when the connection ends, and says so once for each.
	dir := mapped(t)
	s := newSegment(t, dir, testConfig(4))
	c, err := s.Join(context.Background(), JoinOptions{LookEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 9)
	for range 2 {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.Alarm(fds[0], func() { told <- s.Ended() })
		if len(told) > 0 {
			t.Fatal("it is told of an end that is not there")
		}
		if err := unix.Close(fds[1]); err != nil {
			t.Fatal(err)
		}
		if err := <-told; err != nil {
			t.Errorf("the segment has ended: %v", err)
		}
		defer unix.Close(fds[0])
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	c.Alarm(fds[0], func() { told <- s.Ended() })
	if err := errors.Join(os.Remove(filepath.Join(dir, segmentName)), unix.Close(fds[1])); err != nil {
		t.Fatal(err)
	}
	if err := <-told; !errors.Is(err, ErrClosed) {
		t.Errorf("who is told has not looked: %v", err)
	}
	if err := c.Leave(); err != nil || len(told) > 0 {
		t.Errorf("left with %v, told %d times more", err, len(told))
	}
}

// Another file at the path proves nothing to those who have another path: it ends
// the use in the process that sees it, and nobody else's.
func TestReplacedHere(t *testing.T) {
	for name, mount := range map[string]func(t *testing.T) string{
		"pages of 4 KiB": func(t *testing.T) string { return mapped(t) },
		"huge pages of tmpfs": func(t *testing.T) string {
			testenv.Need(t, testenv.Linux, testenv.NoRace)
			return filepath.Join(testenv.Tmpfs(t, "size=64m,mode=700,huge=always"), "v1")
		},
		"hugetlbfs": func(t *testing.T) string {
			testenv.Need(t, testenv.Linux, testenv.NoRace, testenv.HugePool)
			return filepath.Join(testenv.Hugetlbfs(t), "v1")
		},
	} {
		t.Run(name, func(t *testing.T) { replacedHere(t, mount(t)) })
	}
}

func replacedHere(t *testing.T, dir string) {
	cfg := testConfig(4)
	cfg.Size = 4 << 20
	s := newSegment(t, dir, cfg)
	t.Logf("%+v", s.Huge())
	// A hard link keeps the file alive, as another mount namespace would see it.
	file, kept := filepath.Join(dir, segmentName), filepath.Join(filepath.Dir(dir), "kept")
	if err := os.Link(file, kept); err != nil {
		t.Fatal(err)
	}
	h := spawn(t, "hold", dir, nil) // looks as well
	var slot uint32
	h.says("holds", &slot)
	b, err := Attach(context.Background(), dir, testLayout)
	if err != nil {
		t.Fatal(err)
	}
	c := join(t, b, repairArea)
	o, err := AttachReadOnly(context.Background(), dir, testLayout)
	if err != nil {
		t.Fatal(err)
	}
	life := b.Gate().Life.Load()
	// No file at the path says nothing yet: a directory may have been renamed, or
	// a namespace have another root.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Look(), o.Look()); err != nil {
		t.Fatalf("a path without a file: %v", err)
	}
	if f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600); err != nil { // hugetlbfs knows no write
		t.Fatal(err)
	} else if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	ends(t, b, "replaced")
	ends(t, o, "replaced")
	if state, _ := s.Gate().State(); state != GateOpen {
		t.Errorf("the gate of the others is %d", state)
	}
	if b.Gate().Life.Load() != life || b.Lease().Ticks.Load() != NoLease {
		t.Error("the rest of the page is not what it was")
	}
	// All but the gate is shared as before: what is under way ends well.
	areaOf(b).b.Store(77)
	if areaOf(s).b.Load() != 77 {
		t.Error("the data is not shared any more")
	}
	if _, err := b.Join(context.Background(), JoinOptions{}); !errors.Is(err, ErrClosed) ||
		!strings.Contains(err.Error(), "replaced") {
		t.Errorf("join: %v", err)
	}
	h.kill()
	if err := errors.Join(c.Leave(), b.Close(), o.Close()); err != nil {
		t.Error(err)
	}
	if v := s.Slot(c.Slot()).Live.Load(); v != 0 {
		t.Errorf("the slot of who has left is %#x", v)
	}
}
