package trace

import (
	"fmt"
	"os"
)

// Access says what an open may do to its file, as a set of bits.
type Access uint8

const (
	Read  Access = 1 << 0
	Write Access = 1 << 1
)

// Deny says what an open forbids to all others while it lasts: the set of
// accesses it does not tolerate beside it.
type Deny uint8

const (
	DenyNone  = Deny(0)
	DenyWrite = Deny(Write)
	DenyAll   = Deny(Read | Write)
)

// Mode is a share mode: an access and what is denied to others.
type Mode uint8

// MakeMode joins the two halves of a share mode.
func MakeMode(a Access, d Deny) Mode { return Mode(a) | Mode(d)<<2 }

// ModeOf maps the flags of an open, as in os.OpenFile, to a share mode. Unix
// has no share modes, so this mapping is ours:
//
//   - opening for reading alone denies nobody anything;
//   - opening for writing denies other writers;
//   - O_CREATE and O_TRUNC together, and O_EXCL, deny all: the opener takes the
//     file to be its own and new, and a reader beside it would see it half made.
//
// The access is that of the access mode alone; truncation does not make a
// reader a writer.
func ModeOf(flag int) Mode {
	a, d := Read, DenyNone
	if flag&os.O_WRONLY != 0 {
		a, d = Write, DenyWrite
	}
	if flag&os.O_RDWR != 0 {
		a, d = Read|Write, DenyWrite
	}
	const fresh = os.O_CREATE | os.O_TRUNC
	if flag&fresh == fresh || flag&os.O_EXCL != 0 {
		d = DenyAll
	}
	return MakeMode(a, d)
}

// Conflict tells whether two opens of one file exclude each other: either
// denies something that the other does. It is symmetric.
func Conflict(a, b Mode) bool {
	return uint8(a.Deny())&uint8(b.Access())|uint8(b.Deny())&uint8(a.Access()) != 0
}

// Access returns what the open may do.
func (m Mode) Access() Access { return Access(m & 3) }

// Deny returns what the open forbids to others.
func (m Mode) Deny() Deny { return Deny(m >> 2) }

// Valid tells whether m has an access and one of the three deny modes.
func (m Mode) Valid() bool {
	d := m.Deny()
	return m.Access() != 0 && (d == DenyNone || d == DenyWrite || d == DenyAll)
}

// String returns for example "read+write, deny all".
func (m Mode) String() string {
	if !m.Valid() {
		return fmt.Sprintf("invalid mode %#02x", uint8(m))
	}
	access := [...]string{Read: "read", Write: "write", Read | Write: "read+write"}[m.Access()]
	deny := [...]string{DenyNone: "none", DenyWrite: "write", DenyAll: "all"}[m.Deny()]
	return access + ", deny " + deny
}
