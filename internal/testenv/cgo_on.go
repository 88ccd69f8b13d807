//go:build cgo

package testenv

// Cgo tells whether this binary was built with cgo.
const Cgo = true
