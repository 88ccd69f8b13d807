//go:build !linux

package demo

// caught reports whether the client has files open.
func (r *run) caught(p *process) bool { return r.hasFilesOpen(p) }
