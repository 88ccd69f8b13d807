package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const socketFlags = unix.SOCK_SEQPACKET | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK

// address is the socket's name for the kernel, which takes 107 bytes: a longer
// one goes by the directory's descriptor. done closes that.
func address(dir string) (sa *unix.SockaddrUnix, done func(), err error) {
	path := filepath.Join(dir, SocketName)
	if len(path) < 100 {
		return &unix.SockaddrUnix{Name: path}, func() {}, nil
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", fd, SocketName)},
		func() { _ = unix.Close(fd) }, nil
}

// Conn is a client's connection to its dispatcher.
type Conn struct {
	fd  int
	dir string
	buf [maxMessage + 1]byte
}

// Dial connects to the dispatcher of the node whose directory dir is.
func Dial(ctx context.Context, dir string) (*Conn, error) {
	at := filepath.Join(dir, SocketName)
	for {
		fd, err := dial(dir)
		switch {
		case err == nil:
			return &Conn{fd: fd, dir: dir}, nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			// Many come at once; the dispatcher takes them one after the other.
			if err := pause(ctx); err != nil {
				return nil, fmt.Errorf("attach: %s: %w", at, err)
			}
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR),
			errors.Is(err, unix.ENOTSOCK):
			return nil, fmt.Errorf("attach: %s: %w (%v); start mainzd for this directory", at, ErrNotRunning, err)
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			return nil, fmt.Errorf("attach: %s: %w; %s", at, ErrPermission, hiddenBy(dir))
		case errors.Is(err, unix.EPROTOTYPE):
			return nil, fmt.Errorf("attach: %s: %w: it is another kind of socket; upgrade the dispatcher", at,
				ErrIncompatible)
		default:
			return nil, fmt.Errorf("attach: %s: %w", at, err)
		}
	}
}

func dial(dir string) (int, error) {
	sa, done, err := address(dir)
	if err != nil {
		return -1, err
	}
	defer done()
	fd, err := unix.Socket(unix.AF_UNIX, socketFlags, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Millisecond):
		return nil
	}
}

// Call sends a message and waits for the answer, which may be m itself. A
// refusal is an error, and so is the dispatcher's end: ErrNotRunning.
func (c *Conn) Call(ctx context.Context, m, answer *Message) error {
	if err := send(c.fd, m); err != nil {
		return c.ended(err)
	}
	for {
		n, err := receive(c.fd, c.buf[:])
		switch {
		case err == unix.EAGAIN:
			if err := readable(ctx, c.fd); err != nil {
				return fmt.Errorf("attach: %s: waiting for the dispatcher's answer: %w; it is stopped, or the machine is busy: see mainz status", c.dir, err)
			}
			continue
		case err != nil:
			return c.ended(err)
		}
		if err := answer.decode(c.buf[:n]); err != nil {
			return err
		}
		if answer.Kind == Refused {
			return answer.refusal()
		}
		return nil
	}
}

// ended is the error of a connection that the dispatcher has closed, with the
// reason if it gave one: that may have been sent before we said anything.
func (c *Conn) ended(err error) error {
	if err != io.EOF && err != unix.EPIPE && err != unix.ECONNRESET {
		return fmt.Errorf("attach: %s: %w", c.dir, err)
	}
	for range 2 { // the first one may give the error of the connection once more
		var last Message
		if n, err := receive(c.fd, c.buf[:]); err == nil && last.decode(c.buf[:n]) == nil && last.Kind == Refused {
			return last.refusal()
		}
	}
	return fmt.Errorf("attach: %s: %w: the dispatcher has closed the connection; start mainzd, and attach again",
		c.dir, ErrNotRunning)
}

// readable waits until fd can be read or has ended.
func readable(ctx context.Context, fd int) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		// In slices: a context that is cancelled has no descriptor to poll.
		wait := 20 * time.Millisecond
		if d, ok := ctx.Deadline(); ok {
			wait = min(wait, max(time.Until(d), time.Millisecond))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}

// Lost reports whether the dispatcher has closed the connection, or is dead.
func (c *Conn) Lost() bool {
	p := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}

// FD is the descriptor of the connection, for who waits for its end. It is the
// connection's.
func (c *Conn) FD() int { return c.fd }

// Close ends the connection. It is idempotent.
func (c *Conn) Close() error {
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

func send(fd int, m *Message) error {
	b, err := m.encode(nil)
	if err != nil {
		return err
	}
	for {
		err := unix.Sendto(fd, b, unix.MSG_NOSIGNAL, nil)
		if err != unix.EINTR {
			return err
		}
	}
}

// receive takes one message: EAGAIN if there is none, io.EOF at the end.
func receive(fd int, b []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_TRUNC)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		case n > maxMessage:
			return 0, fmt.Errorf("attach: message of %d bytes: %w", n, ErrProtocol)
		default:
			return n, nil
		}
	}
}

// Listener is the dispatcher's side.
type Listener struct {
	fd    int
	spare int // a descriptor that is given up to refuse somebody when there is no other; -1: none
	dir   string
	place int         // the directory in which the socket was made, open
	file  unix.Stat_t // of the socket there
	gid   int         // of those who may come; -1: the dispatcher's own group
	buf   [maxMessage + 1]byte
}

// backlog is how many may wait to be taken, in the order in which they came. The
// kernel makes it net.core.somaxconn if that is less, which is 4,096 where nobody
// has changed it: as many as there can be slots.
const backlog = 4096

// Listen makes the socket in dir. The caller owns the directory: what is left of
// a dispatcher before it is removed. group is a name or a number; "" is the
// process's own.
func Listen(dir, group string) (*Listener, error) {
	gid := os.Getegid()
	if group != "" {
		var err error
		if gid, err = lookupGroup(group); err != nil {
			return nil, fmt.Errorf("attach: group %q: %w; create it with groupadd, or configure another", group, err)
		}
	}
	at := filepath.Join(dir, SocketName)
	sa, done, err := address(dir)
	if err != nil {
		return nil, fmt.Errorf("attach: %s: %w", at, err)
	}
	defer done()
	if err := unix.Unlink(sa.Name); err != nil && err != unix.ENOENT {
		return nil, fmt.Errorf("attach: remove the old %s: %w", at, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, socketFlags, 0)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	// Nobody can connect before listen, so the mode is right in time.
	if err = unix.Bind(fd, sa); err == nil && gid != os.Getegid() {
		err = unix.Lchown(sa.Name, -1, gid)
	}
	if err == nil {
		err = unix.Chmod(sa.Name, 0o660)
	}
	l := &Listener{fd: fd, spare: -1, dir: dir, place: -1, gid: gid}
	if err == nil {
		l.place, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err == nil {
		err = unix.Fstatat(l.place, SocketName, &l.file, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		_ = unix.Close(fd)
		_ = unix.Close(l.place)
		return nil, fmt.Errorf("attach: %s: %w", at, err)
	}
	l.keepSpare()
	return l, nil
}

// InPlace reports whether who dials comes here: the socket is still the one in the
// directory.
func (l *Listener) InPlace() bool {
	var st unix.Stat_t
	return unix.Lstat(filepath.Join(l.dir, SocketName), &st) == nil && l.same(&st)
}

// same reports whether st is of the socket that Listen made. The kernel keeps its
// inode as long as we listen, so no other file has its number.
func (l *Listener) same(st *unix.Stat_t) bool { return st.Ino == l.file.Ino && st.Dev == l.file.Dev }

// FD is the descriptor to poll for reading: somebody wants to come in.
func (l *Listener) FD() int { return l.fd }

// Close stops listening and removes the socket, if it is still ours: a dispatcher that
// was forgotten must not take its successor's away. It looks and removes in the
// directory in which it made the socket, whose owner it is, so that nobody puts
// another one there in between. Connections stay.
func (l *Listener) Close() error {
	if l.fd < 0 {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstatat(l.place, SocketName, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && l.same(&st) {
		_ = unix.Unlinkat(l.place, SocketName, 0)
	}
	_ = unix.Close(l.place)
	if l.spare >= 0 {
		_ = unix.Close(l.spare)
		l.spare = -1
	}
	fd := l.fd
	l.fd = -1
	return unix.Close(fd)
}

func (l *Listener) keepSpare() {
	if l.spare < 0 {
		fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == nil {
			l.spare = fd
		}
	}
}

// Cred says who is at the other end, as the kernel knows it. PID is 0 if that
// process is in a PID namespace that can't be seen from here.
type Cred struct {
	PID      int32
	UID, GID uint32
}

// Peer is one client's connection.
type Peer struct {
	Cred Cred
	fd   int
	buf  []byte
}

// Accept takes the next client: nil if nobody waits. Who may not come in is told
// so; that is an error for the log, and there may be others behind him.
//
// ErrExhausted: the process has no descriptor or no memory left. It is an
// ErrRefused as well if the client was told, by means of a descriptor that is kept
// for that. If not, he waits still, and the caller tries again a little later.
func (l *Listener) Accept() (*Peer, error) {
	for range 16 {
		fd, _, err := unix.Accept4(l.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch {
		case err == unix.EAGAIN:
			return nil, nil
		case err == unix.EINTR || err == unix.ECONNABORTED:
			continue
		case err == unix.EMFILE || err == unix.ENFILE:
			return nil, l.turnAway(err)
		case err != nil:
			return nil, fmt.Errorf("attach: accept: %w (%w)", ErrExhausted, err)
		}
		l.keepSpare()
		p := &Peer{fd: fd, buf: l.buf[:]}
		u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			p.Cred = Cred{u.Pid, u.Uid, u.Gid}
			if !l.allowed(fd, p.Cred) {
				err = fmt.Errorf("attach: %w: user %d, group %d", ErrPermission, u.Uid, u.Gid)
				_ = p.Refuse(CodePermission, join(uint32(l.gid), u.Uid))
			}
		}
		if err != nil {
			_ = p.Close()
			return nil, err
		}
		return p, nil
	}
	return nil, nil
}

// turnAway takes the next client by means of the spare descriptor, to tell him that
// there is none for him. nil: nobody waits; the kernel looks for a descriptor before
// it looks for that.
func (l *Listener) turnAway(why error) error {
	text := fmt.Sprintf("mainzd has no file descriptor left (%v)", why)
	var lim unix.Rlimit
	if why == unix.EMFILE && unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		text = fmt.Sprintf("mainzd has all its %d file descriptors in use", lim.Cur)
	}
	text += "; end some clients, or start it with more: LimitNOFILE= of its unit, or ulimit -n"
	err := fmt.Errorf("attach: accept: %w: %s", ErrExhausted, text)
	if l.spare < 0 {
		l.keepSpare() // one may have come free
		return err
	}
	_ = unix.Close(l.spare)
	l.spare = -1
	defer l.keepSpare()
	fd, _, e := unix.Accept4(l.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if e == unix.EAGAIN {
		return nil
	}
	if e != nil {
		return err
	}
	_ = send(fd, &Message{Kind: Refused, Version: Version, Code: CodeOther, Text: text})
	_ = unix.Close(fd)
	return fmt.Errorf("%w (%w)", err, ErrRefused)
}

func (l *Listener) allowed(fd int, c Cred) bool {
	if c.UID == 0 || int(c.UID) == os.Geteuid() || int(c.GID) == l.gid {
		return true
	}
	groups, err := peerGroups(fd)
	return err == nil && slices.Contains(groups, uint32(l.gid))
}

// FD is the descriptor to poll for reading: a message, or the client's end.
func (p *Peer) FD() int { return p.fd }

// Process returns the process that has dialled, as the kernel names it for this
// socket: a pidfd, which the caller closes. No PID that was used again can take its
// place. false: that process has gone, or the kernel is older than Linux 6.5.
func (p *Peer) Process() (pidfd int, ok bool) {
	if p.fd < 0 {
		return -1, false
	}
	fd, err := unix.GetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	return fd, err == nil
}

// Receive takes a message. false: none is there. io.EOF: the client is gone.
// After any error the connection is of no use.
func (p *Peer) Receive(m *Message) (bool, error) {
	n, err := receive(p.fd, p.buf)
	switch {
	case err == unix.EAGAIN:
		return false, nil
	case err == unix.ECONNRESET:
		return false, io.EOF
	case err != nil:
		return false, err
	}
	return true, m.decode(p.buf[:n])
}

// Send sends a message. It does not wait: who doesn't read is cut off.
func (p *Peer) Send(m *Message) error { return send(p.fd, m) }

// Refuse tells the client why it is not served.
func (p *Peer) Refuse(code Code, text string) error {
	return p.Send(&Message{Kind: Refused, Version: Version, Code: code, Text: text})
}

// Close ends the connection. It is idempotent.
func (p *Peer) Close() error {
	if p.fd < 0 {
		return nil
	}
	fd := p.fd
	p.fd = -1
	return unix.Close(fd)
}

func lookupGroup(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// hiddenBy is the next step for who may not use the socket of dir: it or a directory
// above it keeps him out, and the group of the first that does is the one to join.
func hiddenBy(dir string) string {
	path, err := filepath.Abs(dir)
	if err != nil {
		return "run as a user who may use it"
	}
	at := "/"
	for _, name := range append(strings.Split(strings.Trim(path, "/"), "/"), SocketName) {
		at = filepath.Join(at, name)
		want := uint32(unix.X_OK)
		if name == SocketName {
			want = unix.W_OK
		}
		var st unix.Stat_t
		if unix.Stat(at, &st) == nil && unix.Faccessat(unix.AT_FDCWD, at, want, unix.AT_EACCESS) != nil {
			return fmt.Sprintf("%s keeps this process out: %s", at, join(st.Gid, uint32(os.Geteuid())))
		}
	}
	return "run as a user who may use it" // a security module, or it has changed meanwhile
}

// join is the next step for a user who is not of the group. Nobody joins root's: that
// is the group of a daemon that was told of no other.
func join(gid, uid uint32) string {
	if gid == 0 {
		return "it belongs to group root, which nobody should join: start mainzd with a group for its clients (--group NAME, or group in its configuration), or run as root"
	}
	group, who := strconv.Itoa(int(gid)), strconv.Itoa(int(uid))
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	if u, err := user.LookupId(who); err == nil {
		who = u.Username
	}
	return fmt.Sprintf("join group %s: usermod -aG %s %s, and log in again", group, group, who)
}
