package main

import (
	"testing"

	"github.com/mainzdb/mainz/internal/testenv"
)

// TestNetScripts makes namespaces and attaches programs in them.
func TestNetScripts(t *testing.T) {
	testenv.Need(t, testenv.NetNS, testenv.AFXDP, testenv.TwoCPUs)
	runScripts(t, "testdata/net", "")
}
