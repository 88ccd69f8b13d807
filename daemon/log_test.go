package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// reader takes a line whenever it is told to.
type reader struct {
	mu    sync.Mutex
	lines []string
	next  chan error
}

func (r *reader) Write(b []byte) (int, error) {
	if err := <-r.next; err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, string(b))
	return len(b), nil
}

// What is written while nobody reads is dropped beyond a bound, and the reader is told
// how much that was. What a reader that has gone did not take counts too.
func TestSinkDropsAndSays(t *testing.T) {
	for _, size := range []int{10, 10000} {
		r := &reader{next: make(chan error)}
		s := newSink(r)
		const all = 5000
		for i := range all {
			fmt.Fprintf(s, "%0*d\n", size, i)
		}
		r.next <- io.ErrClosedPipe
		close(r.next)
		s.close()
		<-s.done
		kept, dropped := 0, 0
		for _, l := range r.lines {
			var n int
			if _, err := fmt.Sscanf(l, "%d log lines were dropped", &n); err == nil {
				dropped += n
			} else {
				kept++
			}
		}
		if kept+dropped != all || kept == 0 || dropped == 0 || kept > sinkLines+1 || kept*size > sinkBytes+size {
			t.Errorf("lines of %d bytes: %d are written, %d dropped, of %d", size, kept, dropped, all)
		}
	}
}

// A message that comes too often is left out, others are not, and how many were left
// out is told.
func TestLimiter(t *testing.T) {
	var b strings.Builder
	l := newLimiter(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug}))
	log := slog.New(l).With("with", 1)
	for range 1000 {
		log.Error("often")
		log.Debug("detail")
	}
	log.Error("once")
	if n := strings.Count(b.String(), "msg=often"); n != burstLines {
		t.Errorf("%d lines", n)
	}
	if strings.Count(b.String(), "msg=once") != 1 || strings.Count(b.String(), "msg=detail") != 1000 {
		t.Error("others are left out as well")
	}
	l.b.tell("often", l.b.seen["often"])
	if !strings.Contains(b.String(), fmt.Sprintf("message=often left_out=%d", 1000-burstLines)) {
		t.Errorf("not told: %s", b.String()[b.Len()-200:])
	}
	log.Error("often")
	if n := strings.Count(b.String(), "msg=often"); n != burstLines+1 {
		t.Errorf("%d lines in the next window", n)
	}
	for i := range 10 * burstKinds {
		l.b.allow(fmt.Sprint("with a value ", i), time.Now())
	}
	if len(l.b.seen) > burstKinds+1 {
		t.Errorf("%d messages are counted", len(l.b.seen))
	}
}
