//go:build !shmsim

package ltdb

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// TestDispatcherOwns: a dispatcher owns its directory, clients open the store
// beside it, and the next one finds all that was there, also after a kill.
func TestDispatcherOwns(t *testing.T) {
	dir := ramdisk(t)
	_, err := OpenKeeper(bg, dir, Options{Config: small()})
	wantErr(t, "there is no store", err, ErrNotRunning)
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestDispatcherProcess$", "-test.timeout=0")
		cmd.Env = append(os.Environ(), "DISPATCHER_DIR="+dir)
		var out bytes.Buffer
		cmd.Stderr = &out
		ready, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := ready.Read(make([]byte, 1)); err != nil {
			cmd.Process.Kill()
			cmd.Wait()
			t.Fatalf("%v\n%s", err, out.Bytes())
		}
		s, err := Open(bg, dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = OpenKeeper(bg, dir, Options{})
		wantErr(t, "second dispatcher", err, ErrInUse)
		db := database(t, s, "db", 10)
		if round == 0 {
			wantErr(t, "store", db.Store(bg, []byte("k"), []byte("v")), nil)
		}
		wantValue(t, db, "k", "v")
		// The process holds a record, and dies. Anybody recovers its slot; what it
		// held is its successor's to release.
		if e := lookAtEntry(db, "held"); entryOwner(e) != DispatcherSlot {
			t.Errorf("entry %#x", e)
		}
		cmd.Process.Kill()
		cmd.Wait()
		for limit := time.Now().Add(time.Minute); s.seg.Slot(DispatcherSlot).Live.Load() != 0; {
			if _, err := s.Recover(bg); err != nil || time.Now().After(limit) {
				t.Fatalf("the dead dispatcher is not recovered: %v", err)
			}
			time.Sleep(time.Millisecond) // a bounded poll of the kernel
		}
		mustCheck(t, s)
		_, err = db.TryFetchLocked(bg, []byte("held"))
		wantErr(t, "lock", err, ErrLocked)
		wantErr(t, "close", s.Close(), nil)
	}
	d, err := OpenKeeper(bg, dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.ReleaseUnlisted(func(uint32, []byte) bool { return false })
	db, err := d.Store().Database(bg, "db", KV, DatabaseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if e := lookAtEntry(db, "held"); entryOwner(e) != 0 {
		t.Errorf("entry %#x", e)
	}
	wantErr(t, "dispatcher", errors.Join(d.Err(), d.Close()), nil)
}

func lookAtEntry(db *DB, key string) uint64 {
	var at spot
	if ok, err := db.find(db.hash([]byte(key)), []byte(key), &at); !ok || err != nil {
		return 0
	}
	return at.entry.Load()
}

func TestDispatcherProcess(t *testing.T) {
	dir := os.Getenv("DISPATCHER_DIR")
	if dir == "" {
		return // started by TestDispatcherOwns only
	}
	d, err := OpenKeeper(bg, dir, Options{Create: true, Config: small()})
	if err != nil {
		t.Fatal(err)
	}
	d.ReleaseUnlisted(func(uint32, []byte) bool { return false })
	db, err := d.Store().Database(bg, "db", KV, DatabaseOptions{Records: 10})
	if err != nil {
		t.Fatal(err)
	}
	if d.TryLock(db.ID(), []byte("held"), false) != LockTaken ||
		d.Publish(db.ID(), []byte("held"), &Held{Data: []byte("v")}, false) != LockTaken {
		t.Fatal("no lock")
	}
	os.Stdout.WriteString("r")
	shm.WaitAny(time.Hour) // it is killed
}
