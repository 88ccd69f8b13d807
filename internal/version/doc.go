// Package version says which version a program of this module is.
//
// It reads what the Go tool has put into the program, and changes nothing. It is
// safe for many goroutines.
package version
