//go:build !shmsim

package ltdb

// planted reports whether a bug is turned on; never outside the explorer.
func planted(string) bool { return false }

const (
	simShareOver = false
	simPatient   = false
)

func simulated() bool { return false }
