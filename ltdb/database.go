package ltdb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/zeebo/xxh3"

	"github.com/mainzdb/mainz/shm"
)

// Mode is fixed when a database is created.
type Mode uint8

// The modes of a database.
const (
	// KV: values are overwritten, appended bytes are plain data.
	KV Mode = iota + 1
	// Pieces: values are made of the pieces of living clients. Only a
	// conditional append and a removal change them; Store and Append return
	// ErrMode, and so does Delete of a record that has pieces.
	Pieces
)

func (m Mode) String() string {
	switch m {
	case KV:
		return "kv"
	case Pieces:
		return "pieces"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// DatabaseOptions says how Database opens. The zero value works.
type DatabaseOptions struct {
	Records   int  // records to expect; sizes the hash table; 0: 100,000
	MustExist bool // ErrNoDatabase instead of a new one
	// Clear deletes all records if no other client has the database open, and this
	// one opens it for the first time. In mode Pieces there is nothing to do: pieces
	// end with their clients. ErrMode in a store for reading only.
	Clear bool
	// Resupply is called if no other client has the database open and nothing is in
	// it, as after the loss of the node's memory: it puts back what the caller knows,
	// and others who open wait for that. With its error the database is empty again,
	// and not open, and so if it panics. It must neither open databases of this store
	// (ErrMisuse, if it gives the context that it got) nor close it. ErrMode: only
	// records of mode KV are put, and by who may write.
	Resupply func(ctx context.Context, put func(key, data []byte) error) error
}

// DB is one database of a store. It is safe for many goroutines: each call
// borrows one of the client's handles. Keys are 1 to 1,024 bytes. An empty
// record and an absent key are one thing.
type DB struct {
	s       *Store
	name    string
	mode    Mode
	id      uint32
	place   int // line in the table of databases
	buckets []bucket

	// What a read needs of the store, at hand.
	r *shm.Region
	probe
}

// probe is what a read looks at before it knows a block. quick_amd64.s reads it.
type probe struct {
	table *bucket // its hash table
	mask  uint64
	base  *block // offset 0 of the region: what blocks' offsets are added to
	gate  *shm.Word64
	lease *shm.Word64
	start shm.Offset // of the data area
	size  uint64     // its bytes
	flip  [2]uint64  // what keys of 9 to 16 bytes are hashed with
}

// Name returns the database's name.
func (db *DB) Name() string { return db.name }

// Mode returns the database's mode.
func (db *DB) Mode() Mode { return db.mode }

// ID returns the database's number in the cluster: the low 32 bits of the
// xxh3 hash of its name.
func (db *DB) ID() uint32 { return db.id }

// hash is the record's place in the database and in the cluster. It is part
// of the segment's format.
func (db *DB) hash(key []byte) uint64 {
	if uint(len(key)-9) < 8 {
		return hash9to16(key, &db.flip)
	}
	return xxh3.HashSeed(key, uint64(db.id))
}

// hash9to16 is xxh3 for keys of 9 to 16 bytes, by far the most usual ones, and
// inlined: the call of the library, which has all lengths to look at first,
// takes as long as the hash. flip is what hashFlip made of the seed.
func hash9to16(key []byte, flip *[2]uint64) uint64 {
	lo := binary.LittleEndian.Uint64(key) ^ flip[0]
	hi := binary.LittleEndian.Uint64(key[len(key)-8:]) ^ flip[1]
	ph, pl := bits.Mul64(lo, hi)
	x := uint64(len(key)) + bits.ReverseBytes64(lo) + hi + (ph ^ pl)
	x = (x ^ x>>37) * 0x165667919e3779f9
	return x ^ x>>32
}

// hashFlip is what xxh3 makes of a seed for keys of 9 to 16 bytes, from its
// default secret.
func hashFlip(seed uint64) [2]uint64 {
	const a, b, c, d = 0x1f67b3b7a4a44072, 0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8
	return [2]uint64{(a ^ b) + seed, (c ^ d) - seed}
}

// Database opens the database of that name, or makes it with the given mode.
// It returns ErrMode if the database has another mode, ErrNoSpace if there is
// no room for its hash table.
func (s *Store) Database(ctx context.Context, name string, mode Mode, opts DatabaseOptions) (*DB, error) {
	if len(name) < 1 || len(name) > maxName {
		return nil, fmt.Errorf("database %q: the name must have 1 to %d bytes: %w", name, maxName, ErrTooBig)
	}
	switch {
	case !printable(name):
		return nil, fmt.Errorf("database %q: the name must be printable text in UTF-8: %w", name, ErrMisuse)
	case mode != KV && mode != Pieces:
		return nil, fmt.Errorf("database %q: %v does not exist: %w", name, mode, ErrMode)
	case opts.Records < 0:
		return nil, fmt.Errorf("database %q: %d records: expect 1 or more, or 0 for the default: %w", name,
			opts.Records, ErrMisuse)
	case s.c == nil && (opts.Clear || opts.Resupply != nil):
		return nil, fmt.Errorf("database %q: it can be neither cleared nor filled: %w", name, errReadOnly)
	case ctx == nil:
		return nil, errNoContext
	case ctx.Value(resupplying{}) == s:
		return nil, fmt.Errorf("database %q: Resupply must not open databases of its store: %w", name, ErrMisuse)
	}
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if s.closed.Load() {
		return nil, errClosed
	}
	db := s.open[name]
	if db == nil {
		var err error
		if db, err = s.findDatabase(name); err == nil && db == nil {
			db, err = s.createDatabase(ctx, name, mode, opts)
		}
		if err == nil && db.mode == mode {
			err = s.use(ctx, db, opts)
		}
		if err != nil {
			return nil, fmt.Errorf("database %q: %w", name, err)
		}
	}
	if db.mode != mode {
		return nil, fmt.Errorf("database %q has mode %v, not %v: %w", name, db.mode, mode, ErrMode)
	}
	s.open[name] = db
	return db, nil
}

// printable reports whether a name can be shown on a terminal as it is.
func printable(name string) bool {
	return utf8.ValidString(name) && strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// resupplying marks the context of a Resupply under way: the store's mutex is held.
type resupplying struct{}

// lock takes s.mu, which another goroutine's Resupply may hold for long.
func (s *Store) lock(ctx context.Context) error {
	for !s.mu.TryLock() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Microsecond):
		}
	}
	return nil
}

// use notes that this client has the database open, which the kernel forgets when the
// client ends, however it ends. If it is the only one it may clear it first, and fill
// it; others who open wait for that.
func (s *Store) use(ctx context.Context, db *DB, opts DatabaseOptions) error {
	if s.c == nil {
		return nil // an observer
	}
	if opts.Resupply != nil && db.mode != KV {
		return ErrMode
	}
	for {
		if opts.Clear || opts.Resupply != nil {
			if err := s.useAlone(ctx, db, opts); err != nil {
				return err
			}
		}
		if shared, err := s.seg.TryShare(db.place); shared || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// useAlone prepares the database if no other client has it open. If that fails, or the
// caller's Resupply panics, others may open it.
func (s *Store) useAlone(ctx context.Context, db *DB, opts DatabaseOptions) (err error) {
	done := false
	defer func() {
		if !done || err != nil {
			s.seg.Unshare(db.place)
		}
	}()
	alone, err := s.seg.TryAlone(db.place)
	if alone {
		err = db.prepare(ctx, opts)
	}
	done = true
	return err
}

// prepare does what the only one that has the database open may do.
func (db *DB) prepare(ctx context.Context, opts DatabaseOptions) error {
	if opts.Clear && db.mode == KV {
		if err := db.clear(ctx); err != nil {
			return err
		}
	}
	if opts.Resupply != nil {
		return db.resupply(ctx, opts.Resupply)
	}
	return nil
}

// resupply fills the database if it is empty.
func (db *DB) resupply(ctx context.Context, f func(context.Context, func(key, data []byte) error) error) error {
	for _, err := range db.Traverse(ctx) {
		return err // nil: something is there
	}
	done := false
	defer func() {
		if !done { // f panics
			_ = db.clear(context.WithoutCancel(ctx))
		}
	}()
	err := f(context.WithValue(ctx, resupplying{}, db.s),
		func(key, data []byte) error { return db.Store(ctx, key, data) })
	done = true
	if err != nil {
		return errors.Join(err, db.clear(context.WithoutCancel(ctx)))
	}
	return nil
}

// clear deletes all records.
func (db *DB) clear(ctx context.Context) error {
	for e, err := range db.Traverse(ctx) {
		if err == nil {
			err = db.Delete(ctx, e.Key)
		}
		if err != nil && err != ErrNotFound {
			return err
		}
	}
	return nil
}

// Databases returns the names and modes of all databases of the store; with an
// error those whose lines in the table are sound.
func (s *Store) Databases() ([]*DB, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.exit()
	return s.databases()
}

func (s *Store) databases() ([]*DB, error) {
	var all []*DB
	var first error
	for i := range s.dbs {
		if s.dbs[i].ready.Load() == 0 {
			continue
		}
		db, err := s.database(i)
		if err == nil {
			all = append(all, db)
		} else if first == nil {
			first = err
		}
	}
	return all, first
}

func (s *Store) findDatabase(name string) (*DB, error) {
	all, err := s.databases()
	for _, db := range all {
		if db.name == name {
			return db, nil // whatever befell the others
		}
	}
	return nil, err
}

// database reads line i of the table, as input.
func (s *Store) database(i int) (*DB, error) {
	l := &s.dbs[i]
	n, mode, count, off := l.nameLen.Load(), Mode(l.mode.Load()), l.count.Load(), l.buckets.Load()
	if n < 1 || n > maxName || mode != KV && mode != Pieces || count == 0 || count&(count-1) != 0 ||
		!s.hasTable(i, off, count) {
		return nil, damage(fmt.Sprintf("line %d of the table of databases", i))
	}
	name := make([]byte, n)
	s.r.CopyOut(name, shm.OffsetOf(s.r, &l.name))
	id := databaseID(string(name))
	if id != l.id.Load() {
		return nil, damage(fmt.Sprintf("line %d of the table of databases has the number of another name", i))
	}
	return &DB{
		s: s, name: string(name), mode: mode, id: id, place: i,
		buckets: shm.Slice[bucket](s.r, off, int(count)), r: s.r,
		probe: probe{
			table: shm.At[bucket](s.r, off), mask: count - 1, base: shm.At[block](s.r, 0),
			gate: &s.gate.Gate, lease: &s.leas.Ticks, start: s.dataStart, size: uint64(len(s.spans)) << s.spanShift,
			flip: hashFlip(uint64(id)),
		},
	}, nil
}

// hasTable reports whether the spans of count buckets at off are the hash
// table of the database at place.
func (s *Store) hasTable(place int, off shm.Offset, count uint64) bool {
	if off < s.dataStart || count > s.r.Size()/bucketSize {
		return false
	}
	first, sp := s.spanOf(off)
	n := count * bucketSize >> s.spanShift
	if sp == nil || off != s.spanStart(first) || n == 0 || n > uint64(len(s.spans)-first) {
		return false
	}
	for i := range s.spans[first:][:n] {
		if s.spans[first+i].word.Load() != bucketSpan|uint64(place)<<8 {
			return false
		}
	}
	return true
}

func databaseID(name string) uint32 { return uint32(xxh3.HashString(name)) }

// createDatabase makes the database under the table's latch, unless another
// client was faster.
func (s *Store) createDatabase(ctx context.Context, name string, mode Mode, opts DatabaseOptions) (*DB, error) {
	if opts.MustExist {
		return nil, ErrNoDatabase
	}
	if s.c == nil {
		return nil, errReadOnly
	}
	if err := s.openGate(ctx); err != nil {
		return nil, err
	}
	if opts.Records <= 0 {
		opts.Records = 100_000
	}
	a, err := s.borrow(ctx)
	if err != nil {
		return nil, err
	}
	defer s.giveBack(a)
	a.h.tableIntent.Store(1)
	if err := a.lockLatch(&s.dbHead.latch, tableLatch, 1); err != nil {
		a.h.tableIntent.Store(0)
		return nil, err
	}
	db, err := s.findDatabase(name)
	if db == nil && err == nil {
		db, err = s.fillDatabase(name, mode, opts)
	}
	s.dbHead.latch.Unlock(a.id)
	a.h.tableIntent.Store(0)
	return db, err
}

// fillDatabase takes spans for the hash table and fills a line, ready last.
// A death on the way leaves spans that belong to a line which is not ready;
// repair gives those back.
func (s *Store) fillDatabase(name string, mode Mode, opts DatabaseOptions) (*DB, error) {
	id, place := databaseID(name), -1
	for i := range s.dbs {
		switch {
		case s.dbs[i].ready.Load() == 0:
			if place < 0 {
				place = i
			}
		case s.dbs[i].id.Load() == id:
			return nil, fmt.Errorf("its number %#x is another database's already; choose another name: %w", id, ErrMode)
		}
	}
	if place < 0 {
		return nil, fmt.Errorf("%w: %d", ErrTooManyDatabases, len(s.dbs))
	}
	// Three and a half records a bucket at most, on average: then 2 % of the
	// buckets of seven overflow, or fewer.
	want := uint64(opts.Records) / entriesPerBucket * 2
	span := uint64(1) << s.spanShift
	count := ceilPow2(max(want, span/bucketSize))
	first := -1
	if want <= s.r.Size()/bucketSize {
		first = s.takeSpans(int(count*bucketSize/span), place)
	}
	if first < 0 {
		return nil, fmt.Errorf("no room for a hash table for %d records; expect fewer, or create the segment larger: %w", opts.Records, ErrNoSpace)
	}
	start := s.spanStart(first)
	for off := start; off < start+count*bucketSize; off += 8 {
		if w := shm.At[shm.Word64](s.r, off); w.Load() != 0 {
			w.Store(0) // the span was in use before
		}
	}
	l := &s.dbs[place]
	l.mode.Store(uint32(mode))
	l.id.Store(id)
	l.nameLen.Store(uint32(len(name)))
	l.buckets.Store(start)
	l.count.Store(count)
	s.r.CopyIn(shm.OffsetOf(s.r, &l.name), []byte(name))
	l.ready.Store(1)
	return s.database(place)
}

// takeSpans takes n spans in a row for the database at place, the lowest
// there are, and returns the first, or -1.
func (s *Store) takeSpans(n, place int) int {
	word := uint64(bucketSpan) | uint64(place)<<8
	for first := 0; first+n <= len(s.spans); first++ {
		got := 0
		for got < n && s.spans[first+got].word.CAS(0, word) {
			got++
		}
		if got == n {
			return first
		}
		for i := range got {
			s.spans[first+i].word.Store(0)
		}
	}
	return -1
}

// dropHalfMade frees the spans of databases that are not ready. The table's
// latch is held, or was by a dead client whose slot is being repaired.
func (s *Store) dropHalfMade() {
	for i := range s.spans {
		w := s.spans[i].word.Load()
		if w&0xff == bucketSpan {
			if place := w >> 8; place >= uint64(len(s.dbs)) || s.dbs[place].ready.Load() == 0 {
				s.spans[i].word.Store(0)
			}
		}
	}
}
