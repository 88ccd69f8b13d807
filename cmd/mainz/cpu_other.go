//go:build !linux

package main

// threadCPU has no clock here.
var threadCPU func() int64
