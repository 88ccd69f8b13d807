// Package testenv says what the machine that runs the tests has, and lends it
// to them: a directory on a ramdisk, a small file system that fills up,
// root, several CPUs, network namespaces.
//
// A test that needs something asks for its gate, and is skipped with the
// gate's name and the reason if it is closed:
//
//	testenv.Need(t, testenv.Root)
//
// Closed lists the closed gates, so that CI can tell an expected skip from
// another: a skip that does not name one of them is a fault.
package testenv
