package ltdb

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/mainzdb/mainz/shm"
)

// A store that is full says so and loses nothing. These stores are of 3 MiB,
// with values of up to 3,000 bytes, so that a few thousand records fill them.

func threeMiB() Config { return Config{Size: 3 << 20, Slots: 4, MaxValue: 3000, SpanSize: 16 << 10} }

func database(t testing.TB, s *Store, name string, records int) *DB {
	t.Helper()
	db, err := s.Database(bg, name, KV, DatabaseOptions{Records: records})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// filled is the value of record i, of n bytes.
func filled(i, n int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%07d.", i), n/8+1)[:n]
}

func numbered(i int) []byte { return fmt.Appendf(nil, "record %06d", i) }

// isFull checks that an error says what callers may look for.
func isFull(t testing.TB, err error) {
	t.Helper()
	if !errors.Is(err, ErrFull) || !errors.Is(err, ErrNoSpace) {
		t.Fatalf("full store: %v", err)
	}
}

// fillStore stores values of n bytes until the store is full, and returns how
// many it took.
func fillStore(t testing.TB, db *DB, first, n int) int {
	t.Helper()
	for i := first; ; i++ {
		if i-first > 1<<20 {
			t.Fatal("the store is never full")
		}
		if err := db.Store(bg, numbered(i), filled(i, n)); err != nil {
			isFull(t, err)
			if _, err := db.Fetch(bg, numbered(i)); !errors.Is(err, ErrNotFound) {
				t.Fatalf("a failed insert left a trace: %v", err)
			}
			return i - first
		}
	}
}

func wantRecords(t testing.TB, db *DB, first, count, n int) {
	t.Helper()
	for i := first; i < first+count; i++ {
		if v, err := db.Fetch(bg, numbered(i)); err != nil || !bytes.Equal(v, filled(i, n)) {
			t.Fatalf("record %d of %d: %d bytes, %v", i, count, len(v), err)
		}
	}
}

func removeAll(t testing.TB, db *DB, first, count int) {
	t.Helper()
	for i := first; i < first+count; i++ {
		if err := db.Delete(bg, numbered(i)); err != nil {
			t.Fatalf("delete of record %d: %v", i, err)
		}
	}
}

// TestFull fills a store with values of one size, and again after deletes.
func TestFull(t *testing.T) {
	for _, n := range []int{1, 100, 900, 1100, 2500, 3000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := heap(t, threeMiB())
			db := database(t, s, "full", 2000)
			for range 2 * sampleEvery { // the statistics take their block
				if err := db.Store(bg, numbered(0), filled(0, n)); err != nil {
					t.Fatal(err)
				}
			}
			took := fillStore(t, db, 0, n)
			wantRecords(t, db, 0, took, n)
			if r := mustCheck(t, s); r.Records != took || r.Empty != 0 || r.Locked != 0 {
				t.Fatalf("%d records went in: %+v", took, r)
			}
			// What was full stays so, however often one tries; one or the other
			// record may find room where the last attempt has moved blocks.
			for tries := 0; tries < 20; tries++ {
				err := db.Store(bg, numbered(took), filled(took, n))
				if err != nil {
					isFull(t, err)
					continue
				}
				if took++; tries > 10 {
					t.Fatalf("%d attempts failed, and then one did not", tries)
				}
				tries = 0
			}
			// Deletes make room for as many again.
			half := took / 2
			removeAll(t, db, 0, half)
			mustCheck(t, s)
			wantRecords(t, db, half, took-half, n)
			again := 0
			for ; again < half; again++ {
				if err := db.Store(bg, numbered(again), filled(again, n)); err != nil {
					isFull(t, err)
					break
				}
			}
			// An insert needs a small block as well, for which the last span
			// may have gone to the large ones by now.
			if span := int(16<<10/classSizes[classOf(blockSize(len(numbered(0)), n))]) + 1; again < half-2*span {
				t.Errorf("%d deleted, room for %d of them", half, again)
			}
			wantRecords(t, db, 0, again, n)
			wantRecords(t, db, half, took-half, n)
		})
	}
}

// TestFullReclaim: the memory of one size becomes that of another.
func TestFullReclaim(t *testing.T) {
	s := heap(t, threeMiB())
	db := database(t, s, "full", 2000)
	sizes := []int{2500, 100, 2500, 600, 1500, 100, 2500}
	best := map[int]int{}
	for round, n := range sizes {
		took := fillStore(t, db, 0, n)
		wantRecords(t, db, 0, took, n)
		mustCheck(t, s)
		if best[n] == 0 {
			best[n] = took
		}
		// A span each may stay with a class for magazines and chains.
		if took < best[n]*9/10 {
			t.Errorf("round %d: room for %d values of %d bytes, the first time for %d", round, took, n, best[n])
		}
		removeAll(t, db, 0, took)
		if r := mustCheck(t, s); r.Records != 0 || r.Empty != 0 {
			t.Fatalf("all was deleted: %+v", r)
		}
	}
	if small, large := best[100]*100, best[2500]*2500; small < large/4 {
		t.Errorf("%d bytes of values of 100, %d of values of 2,500", small, large)
	}
}

// TestFullUse: what needs no memory works in a full store, and what fails
// changes nothing.
func TestFullUse(t *testing.T) {
	s := heap(t, threeMiB())
	db := database(t, s, "full", 2000)
	// Whatever the class, nothing is left: fill with large values, then with
	// smaller ones.
	sizes := []int{2500, 1000, 400, 60}
	first := []int{0}
	for i, n := range sizes {
		first = append(first, first[i]+fillStore(t, db, first[i], n))
	}
	h, err := db.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for round := range 3 {
		for i := range sizes {
			if first[i] == first[i+1] {
				continue
			}
			key := numbered(first[i] + round)
			want := filled(first[i]+round, sizes[i])
			// A lock, a look, nothing else.
			r, err := h.FetchLocked(bg, key)
			if err != nil || !bytes.Equal(r.Data(), want) {
				t.Fatal(err)
			}
			if err := r.Unlock(); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				continue // the record's own block takes 3,000 bytes
			}
			// An update that does not fit leaves value and lock.
			r, err = db.FetchLocked(bg, key)
			if err != nil {
				t.Fatal(err)
			}
			err = r.Store(make([]byte, 3000))
			if err == nil {
				t.Fatal("a full store took a value of 3,000 bytes")
			}
			isFull(t, err)
			if !bytes.Equal(r.Data(), want) {
				t.Fatal("a failed Store changed what the record holds")
			}
			if err := r.StoreUnlock(make([]byte, 3000)); err == nil {
				t.Fatal("a full store took a value of 3,000 bytes")
			}
			if _, err := db.TryFetchLocked(bg, key); err != nil {
				t.Fatalf("a failed StoreUnlock kept the lock: %v", err)
			} else if v, err := db.Fetch(bg, key); err != nil || !bytes.Equal(v, want) {
				t.Fatalf("a failed StoreUnlock changed the value: %d bytes, %v", len(v), err)
			}
		}
		// The locks of TryFetchLocked go with the client, below.
		if round == 0 {
			if r := mustCheck(t, s); r.Locked == 0 {
				t.Fatalf("%+v", r)
			}
		}
	}
	isFull(t, db.Append(bg, numbered(first[1]+20), make([]byte, 499)))
	for range 10 {
		if _, err := db.FetchLocked(bg, []byte("a new record's lock, for which there is no block, whatever its length ........................")); err != nil {
			isFull(t, err)
		}
	}
	// A delete needs nothing, and then there is room for what is not larger.
	for i := 30; i < 50; i++ {
		if err := h.Delete(bg, numbered(first[0]+i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := 60; i < 70; i++ {
		if err := h.Store(bg, numbered(first[0]+i), filled(1, 2500)); err != nil {
			t.Fatalf("replace by as much, with room for ten: %v", err)
		}
		if err := db.Store(bg, numbered(first[0]+i), filled(1, 10)); err != nil && !errors.Is(err, ErrFull) {
			t.Fatalf("replace by less: %v", err)
		}
	}
	mustCheck(t, s)
}

// TestFullDead: what a dead client had in its magazines and its half-made
// values is taken back before anything fails.
func TestFullDead(t *testing.T) {
	s := heap(t, threeMiB())
	db := database(t, s, "full", 2000)
	took := fillStore(t, db, 0, 100)
	removeAll(t, db, 0, took)
	dead, err := s.Join(bg, "dead")
	if err != nil {
		t.Fatal(err)
	}
	ddb := database(t, dead, "full", 0)
	// Every handle of the dead client keeps all it can of the class.
	var handles []*Handle
	for range shm.HandlesPerSlot - pooled {
		h, err := ddb.Handle()
		if err != nil {
			t.Fatal(err)
		}
		handles = append(handles, h)
	}
	for i := range 2 * magazineSize * len(handles) {
		if err := handles[i%len(handles)].Store(bg, numbered(i), filled(i, 100)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 * magazineSize * len(handles) {
		if err := handles[i%len(handles)].Delete(bg, numbered(i)); err != nil {
			t.Fatal(err)
		}
	}
	keeps := mustCheck(t, s).AtHand
	if keeps < 8*len(handles) {
		t.Fatalf("the client that dies has %d blocks only", keeps)
	}
	dead.c.SimulateDeath()
	if again := fillStore(t, db, 0, 100); again < took-16 {
		t.Errorf("room for %d records, before for %d", again, took)
	}
	if n := len(s.Clients()); n != 1 {
		t.Errorf("%d clients, though one is dead", n)
	}
}

// TestChains puts thousands of records into a table made for ten.
func TestChains(t *testing.T) {
	s := heap(t, Config{Size: 8 << 20, Slots: 4, MaxValue: 3000, SpanSize: 4096})
	db := database(t, s, "chains", 1)
	if len(db.buckets) > 64 {
		t.Fatalf("%d buckets", len(db.buckets))
	}
	const n = 6000
	for i := range n {
		if err := db.Store(bg, numbered(i), filled(i, 1+i%60)); err != nil {
			t.Fatal(i, err)
		}
	}
	r := mustCheck(t, s)
	if r.Records != n || r.Chains < n/entriesPerBucket-len(db.buckets) {
		t.Fatalf("%+v", r)
	}
	seen := map[string]bool{}
	for e, err := range db.Traverse(bg) {
		if err != nil {
			t.Fatal(err)
		}
		seen[string(e.Key)] = true
	}
	if len(seen) != n {
		t.Fatalf("Traverse saw %d of %d", len(seen), n)
	}
	for i := range n {
		if v, err := db.Fetch(bg, numbered(i)); err != nil || !bytes.Equal(v, filled(i, 1+i%60)) {
			t.Fatal(i, err)
		}
		if i%2 == 0 {
			if err := db.Delete(bg, numbered(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Chains stay, and are used again.
	chains := mustCheck(t, s).Chains
	for i := range n {
		if i%2 == 0 {
			if err := db.Store(bg, numbered(n+i), filled(i, 5)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if r := mustCheck(t, s); r.Records != n || r.Chains > chains+len(db.buckets) {
		t.Fatalf("%d overflow buckets before: %+v", chains, r)
	}
}

// TestLarge uses values of up to 1 MiB, of which a store of 32 MiB has room
// for few.
func TestLarge(t *testing.T) {
	s := heap(t, Config{Size: 32 << 20, Slots: 4})
	db := database(t, s, "large", 100)
	sizes := []int{1 << 20, 1<<20 - 1, 700_000, 300_000, 70_000, 5000}
	for i, n := range sizes {
		if err := db.Store(bg, numbered(i), filled(i, n)); err != nil {
			t.Fatal(n, err)
		}
	}
	for round := range 4 {
		for i, n := range sizes {
			at := (round + i) % len(sizes)
			if err := db.Store(bg, numbered(at), filled(at, n)); err != nil {
				t.Fatal(round, n, err)
			}
			if v, err := db.Fetch(bg, numbered(at)); err != nil || !bytes.Equal(v, filled(at, n)) {
				t.Fatal(round, n, err)
			}
		}
		mustCheck(t, s)
	}
	removeAll(t, db, 0, len(sizes))
	took := fillStore(t, db, 0, 1<<20)
	if took < 10 {
		t.Errorf("room for %d values of 1 MiB in 32", took)
	}
	wantRecords(t, db, 0, took, 1<<20)
	removeAll(t, db, 0, took)
	// An append over the limit, one byte at a time and at once.
	if err := db.Store(bg, []byte("a"), filled(0, 1<<20-1)); err != nil {
		t.Fatal(err)
	}
	if err := db.Append(bg, []byte("a"), []byte("z")); err != nil {
		t.Fatal(err)
	}
	if err := db.Append(bg, []byte("a"), []byte("z")); !errors.Is(err, ErrTooBig) {
		t.Fatal(err)
	}
	if v, err := db.Fetch(bg, []byte("a")); err != nil || !bytes.Equal(v, append(filled(0, 1<<20-1), 'z')) {
		t.Fatal(len(v), err)
	}
}

// TestFullDatabases: a hash table that does not fit takes nothing away.
func TestFullDatabases(t *testing.T) {
	s := heap(t, threeMiB())
	for _, n := range []int{1 << 20, 1 << 40, 1 << 62, 1<<63 - 1} {
		if _, err := s.Database(bg, "huge", KV, DatabaseOptions{Records: n}); !errors.Is(err, ErrNoSpace) {
			t.Errorf("database for %d records in 3 MiB: %v", n, err)
		}
		mustCheck(t, s)
	}
	db := database(t, s, "huge", 100)
	took := fillStore(t, db, 0, 1000)
	var made []string
	for i := range 20 {
		name := fmt.Sprintf("more %d", i)
		_, err := s.Database(bg, name, KV, DatabaseOptions{Records: 1000})
		if err == nil {
			made = append(made, name)
		} else if !errors.Is(err, ErrNoSpace) {
			t.Fatal(err)
		}
	}
	all, err := s.Databases()
	if err != nil || len(all) != len(made)+1 {
		t.Fatal(len(all), made, err)
	}
	for _, db := range all {
		if db.Name() != "huge" && !slices.Contains(made, db.Name()) {
			t.Error(db.Name())
		}
	}
	wantRecords(t, db, 0, took, 1000)
}

// A record that grows through all classes, by several clients in turn, needs one span
// of each class at a time, not more: what lies in the clients' magazines must not keep
// the others' for ever.
func TestGrowingInSmallStore(t *testing.T) {
	first, err := OpenHeap(Config{Size: 1408 << 10, SpanSize: 64 << 10, MaxValue: 4000, Slots: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	stores := []*Store{first}
	for i := range 3 {
		s, err := first.Join(bg, fmt.Sprint("client ", i))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		stores = append(stores, s)
	}
	t.Logf("%d spans, %d of them a reserve", len(first.spans), first.reserve)
	for i := range 3900 {
		db, err := stores[i%len(stores)].Database(bg, "db", KV, DatabaseOptions{Records: 100})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Append(bg, []byte("key"), []byte("x")); err != nil {
			t.Fatalf("with %d bytes: %v", i, err)
		}
	}
	mustCheck(t, first)
}
