package main

import "github.com/mainzdb/mainz/daemon"

// version is set by the Makefile; go install sets that of the module instead.
var version string

func main() { daemon.Main(daemon.WithVersion(version)) }
