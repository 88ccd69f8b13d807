//go:build !shmsim

package ltdb

// planted reports whether a bug is turned on; never outside the explorer.
func planted(string) bool { return false }

const (
	lookAndClaim  = 0
	claimAndState = 0

	simShareOver = false
	simPatience  = 0
)

// between is where a test lets somebody else act.
func between(int) {}

func simulated() bool { return false }
