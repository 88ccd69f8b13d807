package wire

import "errors"

// ErrPacket is wrapped by every complaint about a packet or a datagram.
var ErrPacket = errors.New("bad packet")

// Reason is what is wrong with a packet.
type Reason uint8

const (
	Short      Reason = 1 // the packet ends inside the field
	TooLong    Reason = 2 // the field's length is above the format's limit
	Impossible Reason = 3 // a value that no message has
	Trailing   Reason = 4 // bytes after the last field
	NoMessage  Reason = 5 // no such OPERATION
)

var reasons = [...]string{Short: "cut off", TooLong: "longer than the format allows", Impossible: "no possible value",
	Trailing: "bytes after the last field", NoMessage: "no such message"}

func (r Reason) String() string { return reasons[r] }

// PacketError is the decoder's complaint. All of them are made once, so that a
// flood of garbage costs no allocation.
type PacketError struct {
	Op    Op     // 0: the opcode itself is at fault
	Field string // as in the golden vectors; empty: the packet as a whole
	Why   Reason
}

func (e *PacketError) Error() string {
	s := ErrPacket.Error() + ": "
	if e.Op != 0 {
		s += e.Op.String() + ": "
	}
	if e.Field != "" {
		s += e.Field + ": "
	}
	return s + e.Why.String()
}

// Unwrap makes every complaint an ErrPacket.
func (e *PacketError) Unwrap() error { return ErrPacket }

var (
	errCut = &PacketError{Field: "OPERATION", Why: Short}
	errOp  = &PacketError{Field: "OPERATION", Why: NoMessage}
	// complaints of each message, by the place in its layout and the reason.
	complaints [len(layouts)][][Impossible + 1]PacketError
	trailing   [len(layouts)]PacketError
)

func init() {
	for op, l := range layouts {
		complaints[op] = make([][Impossible + 1]PacketError, len(l))
		for i, f := range l {
			for why := Short; why <= Impossible; why++ {
				complaints[op][i][why] = PacketError{Op(op), fieldNames[f], why}
			}
		}
		trailing[op] = PacketError{Op: Op(op), Why: Trailing}
	}
}
