package mainz

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mainzdb/mainz/internal/attach"
	"github.com/mainzdb/mainz/internal/testenv"
)

// A client whose mainzd has died dials again and again, and meets nobody, or one who
// does not answer. Close ends that, and nothing of it goes on.
func TestDialAgainEnds(t *testing.T) {
	testenv.Need(t, testenv.Linux, testenv.NoRace)
	for _, mute := range []bool{false, true} {
		before := runtime.NumGoroutine()
		d := startKillable(t)
		c := attachTo(t, d.dir)
		d.kill()
		if mute {
			l, err := attach.Listen(d.dir, "")
			want(t, err, nil)
			for limit := time.Now().Add(time.Minute); ; {
				p := []unix.PollFd{{Fd: int32(l.FD()), Events: unix.POLLIN}}
				if n, err := unix.Poll(p, 100); err == nil && n > 0 {
					break // it waits for an answer
				}
				if time.Now().After(limit) {
					t.Fatal("the client does not dial")
				}
			}
			defer l.Close()
		} else {
			for limit := time.Now().Add(time.Minute); !c.conn.Lost(); time.Sleep(time.Millisecond) {
				if time.Now().After(limit) {
					t.Fatal("the connection does not end")
				}
			}
		}
		began := time.Now()
		want(t, c.Close(), nil)
		if took := time.Since(began); took > stepLimit-time.Second {
			t.Errorf("Close waited for the answer: %v", took)
		}
		for limit := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			if time.Now().After(limit) {
				buf := make([]byte, 1<<16)
				t.Fatalf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
			}
		}
	}
}

// The first try comes at once, and so does the first one after another dispatcher is
// there; then more and more looks go by.
func TestBackoff(t *testing.T) {
	b := backoff{}
	var at []int
	for look := range 100 {
		if b.due(7) {
			at = append(at, look)
			b.again()
		}
	}
	last := 0
	for i := 1; i < len(at); i++ {
		if gap := at[i] - at[i-1]; gap < last || gap > maxWait+1 {
			t.Errorf("tries at looks %v", at)
		} else {
			last = gap
		}
	}
	if len(at) == 0 || at[0] != 0 || last != maxWait+1 {
		t.Errorf("tries at looks %v", at)
	}
	if !b.due(8) {
		t.Error("another dispatcher is there, and is not dialled")
	}
}
