package shm

// Op is the kind of a shared access, as the explorer sees it.
type Op uint8

// The kinds of access. OpRead and OpWrite move the bytes of a block; they are
// several accesses each under the explorer, so that a torn copy can happen.
const (
	OpLoad Op = iota + 1
	OpStore
	OpCAS
	OpSwap
	OpRead
	OpWrite
)

func (o Op) String() string {
	return [...]string{"?", "load", "store", "cas", "swap", "read", "write"}[o]
}
