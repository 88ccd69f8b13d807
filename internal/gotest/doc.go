// Gotest runs go test and says what a reader of a log wants to know: the
// output of every test that failed, the closing line of every package, every
// skipped test with its reason, and last of all
//
//	N passed, N failed, N skipped
//
// over all runs. Tests are counted with their subtests.
//
//	go run ./internal/gotest [-skips FILE] -- ARGUMENTS [-- ARGUMENTS]...
//
// Each group of arguments is one run of go test -json. With -skips, a skip
// that the file does not list is a failure: a gate that closes silently, such
// as a test for root that no machine runs any more, would otherwise look like
// success. The file has one skip a line; # starts a comment:
//
//	gate NAME REASON            a gate of package testenv that may be closed
//	test PACKAGE TEST REASON    a test, by package (from the module's root, "./"
//	                            for the root itself) and name (a path.Match
//	                            pattern; its subtests are covered)
//
// The status is 0 if nothing failed, 1 if something did, 2 for bad arguments.
package main
