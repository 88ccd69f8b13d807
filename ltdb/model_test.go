package ltdb

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/mainzdb/mainz/shm"
)

// TestModel does random operations on a store, from two clients by turns, and
// on a Go map beside it. MAINZ_SEED repeats a run.
func TestModel(t *testing.T) {
	seed, ops := seedOf(t), 4000
	if testing.Short() {
		ops = 1000
	}
	for i, cfg := range []Config{small(), {Size: 1 << 20, Slots: 3, MaxValue: 3000, SpanSize: 4096},
		{Size: 24 << 20, Slots: 4, MaxValue: 100_000}} {
		t.Run(fmt.Sprint(i), func(t *testing.T) { newModel(t, cfg, seed, uint64(i)).run(ops) })
	}
}

// model is a store, and what must be in it.
type model struct {
	t     *testing.T
	rnd   *rand.Rand
	store [2]*Store
	db    [2][3]*DB
	h     [2][3]*Handle
	want  [3]map[string][]byte
	rsn   [3]map[string]uint64 // updates of the record since it is there
	held  map[string]Record    // by database and key
	full  int                  // operations that found no room
	max   int
}

func newModel(t *testing.T, cfg Config, seed, n uint64) *model {
	m := &model{t: t, rnd: rand.New(rand.NewPCG(seed, n)), held: map[string]Record{}, max: cfg.MaxValue}
	m.store[0] = heap(t, cfg)
	other, err := m.store[0].Join(bg, "other")
	if err != nil {
		t.Fatal(err)
	}
	m.store[1] = other
	t.Cleanup(func() { wantErr(t, "close", other.Close(), nil) })
	for i := range m.want {
		m.want[i], m.rsn[i] = map[string][]byte{}, map[string]uint64{}
		for k := range m.store {
			m.db[k][i] = database(t, m.store[k], fmt.Sprintf("database %d", i), []int{1, 100, 1000}[i])
			h, err := m.db[k][i].Handle()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { h.Close() })
			m.h[k][i] = h
		}
	}
	return m
}

func (m *model) run(ops int) {
	for op := range ops {
		m.step(op)
		if m.t.Failed() {
			m.t.Fatalf("at operation %d", op)
		}
		if op%500 == 499 {
			m.compare(op)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(m.held)) {
		wantErr(m.t, "unlock", m.held[id].Unlock(), nil)
	}
	clear(m.held)
	m.compare(ops)
	m.t.Logf("%d operations, %d without room, %+v", ops, m.full, m.store[0].Stats())
}

// key picks one of some hundred keys, of 1 to 1,024 bytes.
func (m *model) key() []byte {
	n := m.rnd.IntN(300)
	key := fmt.Appendf(nil, "%d", n)
	if n%50 == 7 {
		key = append(key, bytes.Repeat([]byte{'k'}, MaxKey-len(key)-n%3)...)
	} else if n%4 == 0 {
		key = append(key, bytes.Repeat([]byte{'.'}, n%90)...)
	}
	return key
}

func (m *model) value() []byte {
	n := m.rnd.IntN(200)
	switch m.rnd.IntN(12) {
	case 0:
		n = m.rnd.IntN(m.max + 1)
	case 1:
		n = m.rnd.IntN(3000)
	case 2:
		n = 0
	}
	v := make([]byte, n)
	for i := range v {
		v[i] = byte(m.rnd.Uint32())
	}
	return v
}

// set notes what the record is now; nothing is no record.
func (m *model) set(i int, key, value []byte) {
	if len(value) == 0 {
		delete(m.want[i], string(key))
		delete(m.rsn[i], string(key))
		return
	}
	m.want[i][string(key)] = bytes.Clone(value)
	m.rsn[i][string(key)]++
}

// done judges an error: no room is one that a store of this size may have,
// and then nothing has happened.
func (m *model) done(err error) bool {
	m.t.Helper()
	if errors.Is(err, ErrFull) {
		m.full++
		return false
	}
	if err != nil {
		m.t.Error(err)
	}
	return err == nil
}

func (m *model) step(op int) {
	t, c, i := m.t, m.rnd.IntN(2), m.rnd.IntN(3)
	db, h, key := m.db[c][i], m.h[c][i], m.key()
	id := fmt.Sprintf("%d %s", i, key)
	want, exists := m.want[i][string(key)]
	byHandle := m.rnd.IntN(2) == 0
	if r, locked := m.held[id]; locked {
		m.useHeld(r, id, i, db, key)
		return
	}
	switch m.rnd.IntN(14) {
	case 0, 1, 2:
		v, err := db.Fetch(bg, key)
		if byHandle {
			v, err = h.Fetch(bg, key)
		}
		if exists && (err != nil || !bytes.Equal(v, want)) || !exists && !errors.Is(err, ErrNotFound) {
			t.Errorf("fetch of %q: %d bytes, %v; want %d", key, len(v), err, len(want))
		}
	case 3, 4, 5:
		v := m.value()
		err := error(nil)
		if byHandle {
			err = h.Store(bg, key, v)
		} else {
			err = db.Store(bg, key, v)
		}
		if m.done(err) {
			m.set(i, key, v)
		}
	case 6:
		v := m.value()
		err := error(nil)
		if byHandle {
			err = h.Append(bg, key, v)
		} else {
			err = db.Append(bg, key, v)
		}
		if len(want)+len(v) > m.max {
			wantErr(t, "append over the limit", err, ErrTooBig)
		} else if m.done(err) {
			m.set(i, key, append(bytes.Clone(want), v...))
		}
	case 7, 8:
		err := error(nil)
		if byHandle {
			err = h.Delete(bg, key)
		} else {
			err = db.Delete(bg, key)
		}
		if exists {
			wantErr(t, "delete", err, nil)
			m.set(i, key, nil)
		} else {
			wantErr(t, "delete of nothing", err, ErrNotFound)
		}
	case 9, 10:
		m.lock(c, i, key, id, byHandle)
	case 11:
		m.batch(c, i)
	case 12:
		m.odd(db, h, key)
	case 13:
		if op%20 == 0 {
			m.traverse(c, i)
		}
	}
}

// lock takes a record's lock, looks, and mostly gives it back with a change.
func (m *model) lock(c, i int, key []byte, id string, byHandle bool) {
	t := m.t
	f := m.db[c][i].FetchLocked
	if byHandle {
		f = m.h[c][i].TryFetchLocked
	}
	r, err := f(bg, key)
	if !m.done(err) {
		return
	}
	want := m.want[i][string(key)]
	if !bytes.Equal(r.Data(), want) || (r.Data() == nil) != (want == nil) {
		t.Errorf("lock of %q: %d bytes, want %d", key, len(r.Data()), len(want))
	}
	if hd := r.Header(); hd.RSN != m.rsn[i][string(key)] {
		t.Errorf("lock of %q: RSN %d after %d updates", key, hd.RSN, m.rsn[i][string(key)])
	}
	if r.OwnerDied() {
		t.Error("nobody has died")
	}
	switch m.rnd.IntN(6) {
	case 0:
		wantErr(t, "unlock", r.Unlock(), nil)
	case 1:
		wantErr(t, "delete", r.Delete(), nil)
		m.set(i, key, nil)
	case 2, 3:
		v := m.value()
		if m.done(r.StoreUnlock(v)) {
			m.set(i, key, v)
		}
	case 4:
		if len(m.held) < 12 {
			m.held[id] = r
			return
		}
		wantErr(t, "unlock", r.Unlock(), nil)
	case 5:
		v := m.value()
		for len(v) == 0 {
			v = m.value()
		}
		if m.done(r.Store(v)) {
			m.set(i, key, v)
		}
		if !bytes.Equal(r.Data(), m.want[i][string(key)]) {
			t.Errorf("record's store of %q shows %d bytes, want %d", key, len(r.Data()), len(m.want[i][string(key)]))
		}
		v = m.value()
		if m.done(r.StoreUnlock(v)) {
			m.set(i, key, v)
		}
	}
}

// useHeld does what goes on while somebody holds the record: reading.
func (m *model) useHeld(r Record, id string, i int, db *DB, key []byte) {
	want, exists := m.want[i][string(key)]
	v, err := db.Fetch(bg, key)
	if exists && (err != nil || !bytes.Equal(v, want)) || !exists && !errors.Is(err, ErrNotFound) {
		m.t.Errorf("fetch of the locked %q: %d bytes, %v; want %d", key, len(v), err, len(want))
	}
	_, err = db.TryFetchLocked(bg, key)
	wantErr(m.t, "second lock", err, ErrLocked)
	if m.rnd.IntN(3) > 0 {
		return
	}
	delete(m.held, id)
	v = m.value()
	if m.done(r.StoreUnlock(v)) {
		m.set(i, key, v)
	}
	wantErr(m.t, "second unlock", r.Unlock(), ErrNotLocked)
}

func (m *model) batch(c, i int) {
	var b Batch
	for range m.rnd.IntN(20) {
		b.Keys = append(b.Keys, m.key())
	}
	n, err := m.db[c][i].FetchBatch(bg, &b)
	found := 0
	for k, key := range b.Keys {
		want, exists := m.want[i][string(key)]
		if exists {
			found++
		}
		if exists && (b.Err[k] != nil || !bytes.Equal(b.Value[k], want)) || !exists &&
			!errors.Is(b.Err[k], ErrNotFound) {
			m.t.Errorf("batch: %q: %d bytes, %v; want %d", key, len(b.Value[k]), b.Err[k], len(want))
		}
	}
	if n != found || err != nil {
		m.t.Errorf("batch: found %d of %d, %v", n, found, err)
	}
}

// odd does what must fail, and change nothing.
func (m *model) odd(db *DB, h *Handle, key []byte) {
	long := make([]byte, m.max+1)
	wantErr(m.t, "long value", db.Store(bg, key, long), ErrTooBig)
	wantErr(m.t, "long append", h.Append(bg, key, long), ErrTooBig)
	wantErr(m.t, "no key", h.Store(bg, nil, key), ErrTooBig)
	wantErr(m.t, "long key", db.Store(bg, bytes.Repeat(key, MaxKey+1), key), ErrTooBig)
}

func (m *model) traverse(c, i int) {
	seen := map[string]bool{}
	bytesSeen := uint64(0)
	for e, err := range m.db[c][i].Traverse(bg) {
		if err != nil {
			m.t.Error(err)
			return
		}
		if want, exists := m.want[i][string(e.Key)]; !exists || !bytes.Equal(e.Data, want) ||
			e.RSN != m.rsn[i][string(e.Key)] {
			m.t.Errorf("traverse: %q has %d bytes, RSN %d; want %d, %d", e.Key, len(e.Data), e.RSN, len(want),
				m.rsn[i][string(e.Key)])
		}
		if seen[string(e.Key)] {
			m.t.Errorf("traverse: %q comes twice", e.Key)
		}
		seen[string(e.Key)] = true
		bytesSeen += uint64(len(e.Key) + len(e.Data))
	}
	if len(seen) != len(m.want[i]) {
		m.t.Errorf("traverse: %d records, want %d", len(seen), len(m.want[i]))
	}
	if u, err := m.db[c][i].Usage(bg); err != nil || u.Records != len(seen) || u.Bytes != bytesSeen {
		m.t.Errorf("usage: %+v, %v; want %d records, %d bytes", u, err, len(seen), bytesSeen)
	}
}

// compare looks at everything, and at the invariants.
func (m *model) compare(op int) {
	m.t.Helper()
	r := mustCheck(m.t, m.store[0])
	want := 0
	for i := range m.want {
		m.traverse(op%2, i)
		want += len(m.want[i])
	}
	if r.Records != want || r.Locked != len(m.held) || r.Empty > len(m.held) {
		m.t.Errorf("%d records, %d locks in the model: %+v", want, len(m.held), r)
	}
	if m.t.Failed() {
		m.t.Fatalf("after operation %d", op)
	}
}

// TestFormat freezes the segment's format: programs of different age share
// it. Whoever has to change a number here changes the version as well.
func TestFormat(t *testing.T) {
	for _, c := range []struct {
		name, key string
		id        uint32
		hash      uint64
	}{
		{"locking", "a", 0xe8827be0, 0xe21e89b3b198a73d},
		{"locking", "0123456789abcdef", 0xe8827be0, 0x90502fd46893226},
		{"locking", "a key that is longer than 64 bytes, so that another path of the hash is taken", 0xe8827be0,
			0x3f8312d71ab4f348},
		{"brlock", "0123456789abcdef", 0x8d0c8037, 0x29a363382e0c4906},
		{"brlock", "\x00\x00\x00", 0x8d0c8037, 0x213416b11bfd5016},
	} {
		id := databaseID(c.name)
		db := &DB{id: id, probe: probe{flip: hashFlip(uint64(id))}}
		if db.id != c.id || db.hash([]byte(c.key)) != c.hash {
			t.Errorf("{%q, %q, %#x, %#x},", c.name, c.key, db.id, db.hash([]byte(c.key)))
		}
	}
	sum := func(b []byte) uint64 { h := fnv.New64a(); h.Write(b); return h.Sum64() }
	if got := sum([]byte(layout())); got != 0xa8a9e59b9d840c1c {
		t.Errorf("layout %#x: %s", got, layout())
	}
	if e := tagOf(0xabc<<52) | makeID(0x12345678, 21) | ownedBy(0x987) | bitW | bitS; e != 0x987b579512345678 {
		t.Errorf("entry %#x", e)
	}
	// A small segment's header, but for the time, the creator's name, the file's
	// identity, and the checksum over these.
	s := heap(t, Config{Size: 3 << 20, Slots: 4, MaxValue: 3000, SpanSize: 16 << 10, Cluster: "golden", PNN: 7})
	page := make([]byte, shm.HeaderSize)
	s.r.CopyOut(page, 0)
	clear(page[24:32])
	clear(page[64:72])
	clear(page[496:600])
	if got := sum(page); got != 0x8eb7e403a8399261 {
		t.Errorf("header %#x:\n% x", got, page[:512])
	}
}
