package transport

import "encoding/binary"

// Probe is a small datagram by which a transport finds out whether a path
// carries anything: a successful bind of an AF_XDP socket proves nothing.
// Transports send, answer and consume probes themselves.
//
// A probe comes in two kinds. One is sent through the path under test and its
// answer comes back over whatever the XDP program does with our datagrams. The
// other one, kernel, is passed on to the kernel's stack by every program of
// ours. So a peer that answers the second kind but not the first is alive, and
// the path is dead.
//
// But where a peer does not keep up, questions over the path get lost among all
// the rest. So the answer of the second kind tells whether anything else was
// heard from who asks, since the last one.
//
//	0  4 magic   4 kind   5 heard   6 zero   8 token (u64)   16 serial (u64)
//
// A plain echo server answers a probe as well, by sending it back: what counts
// is the token.
type Probe struct {
	Kind   byte
	Heard  bool   // in an answer of kind kernel
	Token  uint64 // the asking transport's, random
	Serial uint64
}

const (
	ProbeMagic = "mzP\x01"
	ProbeLen   = 24

	ProbeKernel       = 'k'
	ProbeKernelAnswer = 'K'
	ProbePath         = 'p'
	ProbePathAnswer   = 'P'
)

// Append appends the probe's bytes.
func (p Probe) Append(b []byte) []byte {
	b = append(b, ProbeMagic...)
	heard := byte(0)
	if p.Heard {
		heard = 1
	}
	b = append(b, p.Kind, heard, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, p.Token)
	return binary.LittleEndian.AppendUint64(b, p.Serial)
}

// ParseProbe tells whether b is a probe, and which.
func ParseProbe(b []byte) (p Probe, ok bool) {
	if len(b) != ProbeLen || string(b[:4]) != ProbeMagic {
		return p, false
	}
	p = Probe{b[4], b[5] == 1, binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
	switch p.Kind {
	case ProbeKernel, ProbeKernelAnswer, ProbePath, ProbePathAnswer:
		return p, true
	}
	return p, false
}

// Kernel tells whether it is of the kind that every XDP program passes on.
func (p Probe) Kernel() bool { return p.Kind == ProbeKernel || p.Kind == ProbeKernelAnswer }

// Question tells whether the probe wants an answer.
func (p Probe) Question() bool { return p.Kind == ProbeKernel || p.Kind == ProbePath }

// Answer is the answer to a question.
func (p Probe) Answer() Probe {
	switch p.Kind {
	case ProbeKernel:
		p.Kind = ProbeKernelAnswer
	case ProbePath:
		p.Kind = ProbePathAnswer
	}
	return p
}
