package attach

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func context1m(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// poll waits until fd can be read.
func poll(t *testing.T, fd int) {
	t.Helper()
	if err := readable(context1m(t), fd); err != nil {
		t.Fatal(err)
	}
}

// accept waits for a client.
func accept(t *testing.T, l *Listener) *Peer {
	t.Helper()
	for {
		p, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if p != nil {
			t.Cleanup(func() { p.Close() })
			return p
		}
		poll(t, l.FD())
	}
}

func TestHello(t *testing.T) {
	for _, name := range []string{"short", strings.Repeat("long", 40)} {
		dir := filepath.Join(t.TempDir(), name)
		if err := os.Mkdir(dir, 0o770); err != nil {
			t.Fatal(err)
		}
		l, err := Listen(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(filepath.Join(dir, SocketName))
		if err != nil || st.Mode().Perm() != 0o660 {
			t.Fatalf("socket: %v, %v", st.Mode(), err)
		}
		hello := Message{Kind: Hello, Version: Version, Name: "me", Conditions: []Condition{{17, 3, "mine"}}}
		done := make(chan error, 1)
		go func() {
			ctx := context.Background()
			c, err := Dial(ctx, dir)
			if err != nil {
				done <- err
				return
			}
			var answer Message
			if err := c.Call(ctx, &hello, &answer); err != nil || answer.Kind != Welcome || answer.PNN != 7 {
				done <- errors.Join(err, errors.New("no welcome"))
				return
			}
			if err := c.Call(ctx, &Message{Kind: Joined, Slot: 5, Generation: 9}, &answer); !errors.Is(err,
				ErrIncompatible) || !strings.Contains(err.Error(), "because") {
				done <- errors.Join(err, errors.New("not refused"))
				return
			}
			done <- c.Close()
		}()
		p := accept(t, l)
		if int(p.Cred.UID) != os.Getuid() || int(p.Cred.PID) != os.Getpid() {
			t.Errorf("credentials %+v", p.Cred)
		}
		var m Message
		for _, answer := range []func() error{
			func() error { return p.Send(&Message{Kind: Welcome, PNN: 7}) },
			func() error { return p.Refuse(CodeIncompatible, "because") },
		} {
			poll(t, p.FD())
			if got, err := p.Receive(&m); !got || err != nil {
				t.Fatal(got, err)
			}
			if m.Kind == Hello && (m.Name != "me" || !slices.Equal(m.Conditions, hello.Conditions)) {
				t.Errorf("got %+v", m)
			}
			if m.Kind == Joined && (m.Slot != 5 || m.Generation != 9) {
				t.Errorf("got %+v", m)
			}
			if err := answer(); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		poll(t, p.FD())
		if _, err := p.Receive(&m); err != io.EOF {
			t.Errorf("after the client's end: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
			t.Errorf("after the listener's end: %v", err)
		}
	}
}

func TestNobodyListens(t *testing.T) {
	dir := t.TempDir()
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := Dial(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no directory: %v", err)
	}
	// A socket that a dead dispatcher has left, which the next one replaces.
	fd, err := unix.Socket(unix.AF_UNIX, socketFlags, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, SocketName)}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if _, err := Dial(t.Context(), dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("dead socket: %v", err)
	}
	l, err := Listen(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := accept(t, l)
	if c.Lost() {
		t.Error("lost at once")
	}
	p.Close()
	if !c.Lost() {
		t.Error("the end is not seen")
	}
	if err := c.Call(t.Context(), &Message{Kind: Hello}, &Message{}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("call after the end: %v", err)
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	c, err := Dial(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	if err := c.Call(ctx, &Message{Kind: Hello}, &Message{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Who is not of the group is told so, and whom the mode of the socket keeps out
// gets the same error.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_UNIX, socketFlags, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l.gid = 54321
	stranger := Cred{PID: 1, UID: 12345, GID: 12345}
	if l.allowed(fd, stranger) {
		t.Error("a stranger is let in")
	}
	for _, c := range []Cred{{0, 0, 0}, {0, uint32(os.Geteuid()), 12345}, {0, 12345, 54321}} {
		if !l.allowed(fd, c) {
			t.Errorf("%+v is kept out", c)
		}
	}
	if err := (&Message{Kind: Refused, Code: CodePermission, Text: join(54321, 12345)}).refusal(); !errors.Is(err,
		ErrPermission) || !strings.Contains(err.Error(), "usermod -aG 54321 12345") {
		t.Error(err)
	}
	// Nobody is told to join root's group.
	if text := join(0, 12345); strings.Contains(text, "usermod") || !strings.Contains(text, "--group") {
		t.Error(text)
	}
	if _, err := Listen(dir, "no-such-group-of-mainz"); err == nil || !strings.Contains(err.Error(), "groupadd") {
		t.Errorf("unknown group: %v", err)
	}
}

// The other side's groups are asked of the kernel.
func TestPeerGroups(t *testing.T) {
	p, err := unix.Socketpair(unix.AF_UNIX, socketFlags, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	got, err := peerGroups(p[0])
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range want {
		if !slices.Contains(got, uint32(g)) {
			t.Errorf("group %d is not among %v", g, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []Message{{Kind: Hello, Name: "x", Conditions: []Condition{{1, 2, "y"}}},
		{Kind: Refused, Text: "no"}} {
		b, err := m.encode(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, again Message
		if len(b) > maxMessage || m.decode(b) != nil {
			return
		}
		for _, s := range append([]string{m.Name, m.Text}, texts(m.Conditions)...) {
			if len(s) > 1024 {
				return // cut by the encoder
			}
		}
		c, err := m.encode(nil)
		if err != nil || again.decode(c) != nil || string(b) != string(c) {
			t.Fatalf("%x is %+v is %x: %v", b, m, c, err)
		}
	})
}

func texts(cs []Condition) (s []string) {
	for _, c := range cs {
		s = append(s, c.Name)
	}
	return s
}

// A listener takes away its own socket, and nobody else's that is in its place.
func TestCloseLeavesOthersSockets(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, SocketName)
	old, err := Listen(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	next, err := Listen(dir, "") // removes what is left of the first
	if err != nil {
		t.Fatal(err)
	}
	if old.InPlace() || !next.InPlace() {
		t.Errorf("in place: the first %v, the second %v", old.InPlace(), next.InPlace())
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(at); err != nil {
		t.Errorf("the first has taken the second's socket away: %v", err)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(at); !os.IsNotExist(err) {
		t.Errorf("its own socket stays: %v", err)
	}
}
