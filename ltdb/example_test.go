package ltdb_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/mainzdb/mainz/ltdb"
)

// The program of README.md: it counts its own runs, and however many of them
// are started at once, none is lost.
func Example() {
	ctx := context.Background()
	store, err := ltdb.Open(ctx, "/dev/shm/mainz-hello", ltdb.Options{Create: true})
	if err != nil {
		log.Fatal(err)
	}
	db, err := store.Database(ctx, "visits", ltdb.KV, ltdb.DatabaseOptions{})
	if err != nil {
		log.Fatal(err)
	}
	rec, err := db.FetchLocked(ctx, []byte("door")) // ours until StoreUnlock
	if err != nil {
		log.Fatal(err)
	}
	visits := append(rec.Data(), '|')
	if err := rec.StoreUnlock(visits); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("visit %d: %s\n", len(visits), visits)
	if err := store.Close(); err != nil {
		log.Fatal(err)
	}
}

// smallStore is a store in the heap with one database, for the examples
// below. Between processes it would be Open.
func smallStore() (*ltdb.Store, *ltdb.DB) {
	store, err := ltdb.OpenHeap(ltdb.Config{Size: 16 << 20, Slots: 4})
	if err != nil {
		log.Fatal(err)
	}
	db, err := store.Database(context.Background(), "files", ltdb.KV, ltdb.DatabaseOptions{Records: 1000})
	if err != nil {
		log.Fatal(err)
	}
	return store, db
}

// A counter, changed under its record's lock. The deferred Unlock gives the
// lock back if the function returns early, and is harmless after StoreUnlock.
func ExampleDB_FetchLocked() {
	store, db := smallStore()
	defer store.Close()

	count := func(ctx context.Context, key []byte) (n uint64, err error) {
		rec, err := db.FetchLocked(ctx, key)
		if err != nil {
			return 0, err
		}
		defer rec.Unlock()
		if rec.OwnerDied() {
			fmt.Println("the last holder died: what the value guards may be half done")
		}
		if data := rec.Data(); data != nil { // nil: the record is new
			n = binary.LittleEndian.Uint64(data)
		}
		n++
		return n, rec.StoreUnlock(binary.LittleEndian.AppendUint64(nil, n))
	}

	for range 3 {
		n, err := count(context.Background(), []byte("inode 42"))
		fmt.Println(n, err)
	}
	// Output:
	// 1 <nil>
	// 2 <nil>
	// 3 <nil>
}

// A lock that somebody else holds is no error for FetchLocked, which waits as
// long as its context lets it, but one for TryFetchLocked.
func ExampleDB_TryFetchLocked() {
	store, db := smallStore()
	defer store.Close()
	ctx := context.Background()

	rec, err := db.FetchLocked(ctx, []byte("k"))
	if err != nil {
		log.Fatal(err)
	}
	_, err = db.TryFetchLocked(ctx, []byte("k"))
	fmt.Println(errors.Is(err, ltdb.ErrLocked))
	short, stop := context.WithTimeout(ctx, time.Millisecond)
	defer stop()
	_, err = db.FetchLocked(short, []byte("k")) // the error also names the holder
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	fmt.Println(rec.Unlock(), errors.Is(rec.Unlock(), ltdb.ErrNotLocked))
	_, err = db.Fetch(ctx, []byte("k"))
	fmt.Println(errors.Is(err, ltdb.ErrNotFound)) // a record that was only locked leaves nothing behind
	// Output:
	// true
	// true
	// <nil> true
	// true
}

func ExampleDB_Append() {
	store, db := smallStore()
	defer store.Close()
	ctx := context.Background()
	for _, who := range []string{"alice ", "bob ", "carol "} {
		if err := db.Append(ctx, []byte("who has it open"), []byte(who)); err != nil {
			log.Fatal(err)
		}
	}
	value, err := db.Fetch(ctx, []byte("who has it open"))
	fmt.Printf("%s%v\n", value, err)
	// Output: alice bob carol <nil>
}

// A hot loop reserves a Handle and reuses one Batch: the cache misses of the
// keys overlap, and nothing is allocated once the Batch has grown.
func ExampleHandle_FetchBatch() {
	store, db := smallStore()
	defer store.Close()
	ctx := context.Background()
	h, err := db.Handle()
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	for _, key := range []string{"a", "c"} {
		if err := h.Store(ctx, []byte(key), []byte("value of "+key)); err != nil {
			log.Fatal(err)
		}
	}
	batch := ltdb.Batch{Keys: [][]byte{[]byte("a"), []byte("b"), []byte("c")}}
	found, err := h.FetchBatch(ctx, &batch)
	fmt.Println(found, err)
	for i, key := range batch.Keys {
		fmt.Printf("%s: %q, not found: %v\n", key, batch.Value[i], errors.Is(batch.Err[i], ltdb.ErrNotFound))
	}
	// Output:
	// 2 <nil>
	// a: "value of a", not found: false
	// b: "", not found: true
	// c: "value of c", not found: false
}

// The body holds no lock, so it may change the database: here it deletes
// every record that a client which is gone has left.
func ExampleDB_Traverse() {
	store, db := smallStore()
	defer store.Close()
	ctx := context.Background()
	for key, owner := range map[string]string{"x": "client 1", "y": "client 2", "z": "client 1"} {
		if err := db.Store(ctx, []byte(key), []byte(owner)); err != nil {
			log.Fatal(err)
		}
	}
	for e, err := range db.Traverse(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		if string(e.Data) != "client 1" {
			continue
		}
		if err := db.Delete(ctx, e.Key); err != nil {
			log.Fatal(err)
		}
	}
	for e, err := range db.Traverse(ctx) {
		fmt.Printf("%s: %s, %d update, %v\n", e.Key, e.Data, e.RSN, err)
	}
	// Output: y: client 2, 1 update, <nil>
}
