//go:build !amd64 || race || shmsim

package ltdb

// vectors: there is no quickFetch here.
const vectors = false

func quickFetch(*Handle, *[]byte, *[]byte) int { return refused }

// quick tries to read a record in one go; see quickGo for what that means.
func (db *DB) quick(dst, key []byte, hash uint64) ([]byte, bool) {
	return db.quickGo(dst, key, hash)
}

// seek is find for the usual case; false says nothing.
func (db *DB) seek(hash uint64, key []byte, at *spot) bool { return false }
