//go:build !linux

package attach

import "context"

// Conn is a client's connection to its dispatcher. There are none on this system.
type Conn struct{}

// Dial needs Linux.
func Dial(context.Context, string) (*Conn, error) { return nil, ErrNotSupported }

// Call needs Linux.
func (c *Conn) Call(context.Context, *Message, *Message) error { return ErrNotSupported }

// Lost reports whether the dispatcher has closed the connection.
func (c *Conn) Lost() bool { return true }

// FD is no descriptor here.
func (c *Conn) FD() int { return -1 }

// Close ends the connection.
func (c *Conn) Close() error { return nil }

// Cred says who is at the other end.
type Cred struct {
	PID      int32
	UID, GID uint32
}

// Listener is the dispatcher's side. There are none on this system.
type Listener struct{}

// Listen needs Linux.
func Listen(string, string) (*Listener, error) { return nil, ErrNotSupported }

// InPlace says yes here.
func (l *Listener) InPlace() bool { return true }

// FD is no descriptor here.
func (l *Listener) FD() int { return -1 }

// Accept needs Linux.
func (l *Listener) Accept() (*Peer, error) { return nil, ErrNotSupported }

// Close stops listening.
func (l *Listener) Close() error { return nil }

// Peer is one client's connection. There are none on this system.
type Peer struct{ Cred Cred }

// FD is no descriptor here.
func (p *Peer) FD() int { return -1 }

// Process names nobody here.
func (p *Peer) Process() (pidfd int, ok bool) { return -1, false }

// Receive needs Linux.
func (p *Peer) Receive(*Message) (bool, error) { return false, ErrNotSupported }

// Send needs Linux.
func (p *Peer) Send(*Message) error { return ErrNotSupported }

// Refuse needs Linux.
func (p *Peer) Refuse(Code, string) error { return ErrNotSupported }

// Close ends the connection.
func (p *Peer) Close() error { return nil }
