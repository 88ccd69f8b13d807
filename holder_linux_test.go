package mainz

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// A lock that is not had in time says which record it was and who holds it, by bypass
// and through the ring.
func TestLockTimeoutNamesTheHolder(t *testing.T) {
	both(t, func(t *testing.T, n *node, opts ...Option) {
		holder := n.attach(WithName("the holder"))
		mine := holder.open(t, "locking", KV)
		want(t, mine.Store(minute(t), []byte("door"), []byte("open")), nil)
		rec, err := mine.FetchLocked(minute(t), []byte("door"))
		if err != nil {
			t.Fatal(err)
		}
		db := n.attach(opts...).open(t, "locking", KV)
		check := func(what string, err, kind error) {
			t.Helper()
			var l *LockError
			if !errors.Is(err, kind) || !errors.As(err, &l) {
				t.Fatalf("%s: %v", what, err)
			}
			h := l.Holder
			if l.Database != "locking" || string(l.Key) != "door" || h.PID != uint32(os.Getpid()) ||
				h.Name != "the holder" || h.Slot == 0 || time.Since(h.Attached) > time.Hour {
				t.Errorf("%s: %+v", what, l)
			}
			for _, part := range []string{"door", "locking", "the holder"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s: %q does not say %q", what, err, part)
				}
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err = db.FetchLocked(ctx, []byte("door"))
		check("lock", err, context.DeadlineExceeded)
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		_, err = db.FetchLocked(ctx, []byte("door"))
		check("lock, cancelled", err, context.Canceled)
		for what, f := range map[string]func(ctx context.Context) error{
			"store":  func(ctx context.Context) error { return db.Store(ctx, []byte("door"), []byte("open")) },
			"delete": func(ctx context.Context) error { return db.Delete(ctx, []byte("door")) },
			"conditional append": func(ctx context.Context) error {
				_, err := db.ConditionalAppend(ctx, Always, []byte("door"), []byte("open"))
				return err
			},
			"conditional append, wait": func(ctx context.Context) error {
				_, err := db.ConditionalAppendWait(ctx, Always, []byte("door"), []byte("open"))
				return err
			},
			"remove": func(ctx context.Context) error {
				return db.RemoveMatching(ctx, Always, []byte("door"), []byte("open"))
			},
		} {
			ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
			check(what, f(ctx), context.DeadlineExceeded)
			cancel()
		}
		if err := rec.Unlock(); err != nil {
			t.Fatal(err)
		}
	})
}

// Malformed data is an ErrMalformed for who removes as well, by bypass and through the
// ring, and not a piece that is not there.
func TestRemoveMalformed(t *testing.T) {
	both(t, func(t *testing.T, n *node, opts ...Option) {
		db := n.attach(opts...).open(t, "locks", KV)
		good := AppendByteRange(nil, 1, 2, 1, [16]byte{1})
		if _, err := db.ConditionalAppend(minute(t), ByteRanges, []byte("file"), good); err != nil {
			t.Fatal(err)
		}
		for _, bad := range [][]byte{good[:7], append(good[:len(good):len(good)], 1), make([]byte, len(good))} {
			want(t, db.RemoveMatching(minute(t), ByteRanges, []byte("file"), bad), ErrMalformed)
		}
		want(t, db.RemoveMatching(minute(t), ByteRanges, []byte("file"), good), nil)
	})
}
