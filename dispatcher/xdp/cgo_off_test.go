//go:build !cgo

package xdp

const withCgo = false
