package trace

import (
	"bytes"
	_ "embed"
	"fmt"
)

//go:embed gobuild.trace
var goBuild []byte

// GoBuild returns the trace that is part of this package: cold Go builds, see
// README.md. It is unpacked anew on each call.
func GoBuild() (*Trace, error) {
	t, err := ReadAll(bytes.NewReader(goBuild))
	if err != nil {
		return nil, fmt.Errorf("embedded trace: %w", err)
	}
	return t, nil
}
