package daemon

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// manager is the service manager, if one wants to know how the daemon is: each word
// is one datagram to the socket that it names (sd_notify).
type manager struct {
	fd    int // -1: nobody wants to know
	addr  unix.SockaddrUnix
	every time.Duration // between two signs of life; 0: it wants none
}

// newManager reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.
func newManager(env func(string) (string, bool)) *manager {
	m := &manager{fd: -1}
	name, _ := env("NOTIFY_SOCKET")
	if name == "" || name[0] != '/' && name[0] != '@' {
		return m
	}
	if strings.HasPrefix(name, "@") {
		name = "\x00" + name[1:]
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return m
	}
	m.fd, m.addr.Name = fd, name
	usec, _ := env("WATCHDOG_USEC")
	n, err := strconv.ParseUint(usec, 10, 63)
	if pid, ok := env("WATCHDOG_PID"); ok && pid != strconv.Itoa(os.Getpid()) {
		return m // meant for somebody else
	}
	if err == nil && n > 0 {
		// Systemd advises half of it; a third leaves room for one that is lost.
		m.every = max(time.Duration(min(n, 1<<40))*time.Microsecond/3, time.Millisecond)
	}
	return m
}

// alive gives a sign of life. It never waits: there is another one soon.
func (m *manager) alive() { _ = m.try("WATCHDOG=1") }

// say tells what is told once. It waits a second at most, if the manager is slow.
func (m *manager) say(state string) {
	for range 100 {
		if m.try(state) != unix.EAGAIN {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *manager) try(state string) error {
	if m.fd < 0 {
		return nil
	}
	return unix.Sendto(m.fd, []byte(state), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, &m.addr)
}

func (m *manager) close() {
	if m.fd >= 0 {
		_ = unix.Close(m.fd)
		m.fd = -1
	}
}

// monotonic is what systemd wants to have in the word that a reload begins.
func monotonic() uint64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return uint64(ts.Nano()) / 1000
}
