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
		rec, err := holder.open(t, "locking", KV).FetchLocked(minute(t), []byte("door"))
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
		if !db.c.opts.forceRing {
			ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			check("store", db.Store(ctx, []byte("door"), []byte("open")), context.DeadlineExceeded)
		}
		if err := rec.Unlock(); err != nil {
			t.Fatal(err)
		}
	})
}
