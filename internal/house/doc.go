// Package house holds the rules of the module that no compiler checks, as
// tests: which package may import which (docs/architecture.md), what a client
// of ours has to link, where unsafe and system calls may stand, and that the
// program in README.md is the one that is compiled as an example.
//
// It has no code but its tests.
package house
