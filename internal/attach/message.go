package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Version is the version of the messages, and of what stands in rings.
const Version = 1

// SocketName is the socket's name in the node's directory.
const SocketName = "mainzd.sock"

const maxMessage = 8 << 10

// The reasons for which nobody is let in. What wraps them says what to do next.
var (
	// ErrNotRunning: nobody listens.
	ErrNotRunning = errors.New("no dispatcher")
	// ErrPermission: the dispatcher does not serve this user.
	ErrPermission = errors.New("no permission")
	// ErrIncompatible: the two sides differ in version, or about a condition.
	ErrIncompatible = errors.New("incompatible dispatcher")
	// ErrProtocol: what came is no message.
	ErrProtocol = errors.New("not a message of the attach protocol")
	// ErrRefused: the dispatcher said no for another reason.
	ErrRefused = errors.New("refused by the dispatcher")
	// ErrExhausted: the dispatcher's process has no descriptor, or no memory, for
	// one more connection.
	ErrExhausted = errors.New("out of file descriptors or memory")
	// ErrNotSupported: this system has no such sockets. It is an errors.ErrUnsupported.
	ErrNotSupported = fmt.Errorf("attaching to a dispatcher is not supported here (%w)", errors.ErrUnsupported)
)

// Kind of a message.
type Kind uint8

// Messages in the order in which they are sent. Refused can be the answer to any.
const (
	Hello Kind = iota + 1
	Welcome
	Joined
	Ready
	Refused
	// A client that is served already dials again, in this order; the answer to
	// the last of them is Ready.
	Again
	Prove
	Proven
)

// Code says why a client was refused.
type Code uint8

// The codes, and which error the client gets.
const (
	CodeOther        Code = iota // ErrRefused
	CodePermission               // ErrPermission
	CodeIncompatible             // ErrIncompatible
)

// Condition is a condition function that one side has.
type Condition struct {
	ID, Version uint32
	Name        string
}

// Message is one message on the socket, of any kind. Fields that a kind does not use are zero.
type Message struct {
	Kind       Kind
	Version    uint32
	Name       string      // Hello: the client's. Welcome: the cluster's
	PNN        uint32      // Welcome
	Slot       uint32      // Joined, Again
	Generation uint32      // Joined, Again
	Segment    [16]byte    // Joined, Again: the id of the segment that the client is in
	Stretch    uint32      // Prove: the number by which the slot's lock is to be longer
	Code       Code        // Refused
	Text       string      // Refused: why, and the next step
	Conditions []Condition // Hello, Welcome
}

const maxConditions = 128

var le = binary.LittleEndian

func (m *Message) encode(b []byte) ([]byte, error) {
	b = append(b, byte(m.Kind), byte(m.Code))
	slot := m.Slot
	if m.Kind == Prove {
		slot = m.Stretch // its place
	}
	for _, v := range []uint32{m.Version, m.PNN, slot, m.Generation} {
		b = le.AppendUint32(b, v)
	}
	name := m.Name
	if m.Kind == Joined || m.Kind == Again {
		name = string(m.Segment[:]) // its place
	}
	b = appendText(b, name)
	b = appendText(b, m.Text)
	b = le.AppendUint16(b, uint16(len(m.Conditions)))
	for _, c := range m.Conditions {
		b = le.AppendUint32(b, c.ID)
		b = le.AppendUint32(b, c.Version)
		b = appendText(b, c.Name)
	}
	if len(b) > maxMessage || len(m.Conditions) > maxConditions {
		return nil, fmt.Errorf("attach: message of %d bytes: %w: too long", len(b), ErrProtocol)
	}
	return b, nil
}

func appendText(b []byte, s string) []byte {
	if len(s) > 1024 {
		s = s[:1024]
	}
	return append(le.AppendUint16(b, uint16(len(s))), s...)
}

// decode fills m from what the other side has sent, which may be anything.
func (m *Message) decode(b []byte) error {
	d := decoder{b: b, ok: true}
	*m = Message{Kind: Kind(d.u8()), Code: Code(d.u8())}
	for _, v := range []*uint32{&m.Version, &m.PNN, &m.Slot, &m.Generation} {
		*v = d.u32()
	}
	if m.Kind == Prove {
		m.Slot, m.Stretch = 0, m.Slot
	}
	m.Name, m.Text = d.text(), d.text()
	if m.Kind == Joined || m.Kind == Again {
		d.ok = d.ok && len(m.Name) == len(m.Segment)
		copy(m.Segment[:], m.Name)
		m.Name = ""
	}
	n := int(d.u16())
	if !d.ok || n > maxConditions || m.Kind < Hello || m.Kind > Proven {
		return fmt.Errorf("attach: %w", ErrProtocol)
	}
	for range n {
		m.Conditions = append(m.Conditions, Condition{ID: d.u32(), Version: d.u32(), Name: d.text()})
	}
	if !d.ok || len(d.b) != 0 {
		return fmt.Errorf("attach: %w", ErrProtocol)
	}
	return nil
}

type decoder struct {
	b  []byte
	ok bool
}

func (d *decoder) take(n int) []byte {
	if !d.ok || n > len(d.b) {
		d.ok = false
		return make([]byte, min(n, 8))
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u8() byte    { return d.take(1)[0] }
func (d *decoder) u16() uint16 { return le.Uint16(d.take(2)) }
func (d *decoder) u32() uint32 { return le.Uint32(d.take(4)) }

func (d *decoder) text() string {
	n := int(d.u16())
	v := d.take(n)
	if !d.ok {
		return ""
	}
	return string(v)
}

// refusal is the error that a Refused message stands for.
func (m *Message) refusal() error {
	kind := ErrRefused
	switch m.Code {
	case CodePermission:
		kind = ErrPermission
	case CodeIncompatible:
		kind = ErrIncompatible
	}
	return fmt.Errorf("attach: %w: %s", kind, m.Text)
}
