package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// The log's bounds.
const (
	sinkLines  = 1024        // that wait to be written
	sinkBytes  = 1 << 20     // that these may have together
	flushLimit = time.Second // for what waits when the daemon ends

	// A message may come burstLines times in burstWindow; those of level debug are
	// bounded by the sink alone.
	burstLines  = 20
	burstWindow = 5 * time.Second
	burstKinds  = 256 // different messages that are counted apart
)

// sink is the way of the log to its reader, who may be slow, stopped, or gone. Write
// never waits: a goroutine of the sink's own does the writing, and what it can't get
// rid of in time is dropped and counted. The loop of the dispatcher logs, and must
// not stand still because nobody reads a pipe.
type sink struct {
	w       io.Writer
	note    func(dropped uint64) []byte // the line that says how many are missing
	lines   chan []byte
	bytes   atomic.Int64 // in lines
	dropped atomic.Uint64
	quit    chan struct{}
	done    chan struct{}
	once    sync.Once
}

func newSink(w io.Writer) *sink {
	s := &sink{w: w, lines: make(chan []byte, sinkLines), quit: make(chan struct{}), done: make(chan struct{})}
	s.note = func(n uint64) []byte {
		return fmt.Appendf(nil, "%d log lines were dropped: their reader was too slow\n", n)
	}
	go s.run()
	return s
}

// Write takes one line, or drops it. The error is always nil.
func (s *sink) Write(b []byte) (int, error) {
	if s.bytes.Add(int64(len(b))) > sinkBytes {
		s.drop(len(b))
		return len(b), nil
	}
	select {
	case s.lines <- append([]byte(nil), b...):
	default:
		s.drop(len(b))
	}
	return len(b), nil
}

func (s *sink) drop(n int) {
	s.bytes.Add(-int64(n))
	s.dropped.Add(1)
}

func (s *sink) run() {
	defer close(s.done)
	for {
		select {
		case b := <-s.lines:
			s.put(b)
			continue
		default:
		}
		select {
		case b := <-s.lines:
			s.put(b)
		case <-s.quit:
			select {
			case b := <-s.lines:
				s.put(b)
			default:
				return
			}
		}
	}
}

// put writes one line. It may wait for the reader, and for nobody else.
func (s *sink) put(b []byte) {
	s.bytes.Add(-int64(len(b)))
	if _, err := s.w.Write(b); err != nil {
		s.dropped.Add(1) // the reader is gone; there may be another one later
		return
	}
	if n := s.dropped.Swap(0); n > 0 {
		if _, err := s.w.Write(s.note(n)); err != nil {
			s.dropped.Add(n)
		}
	}
}

// close waits until all is written, or for a moment if nobody reads.
func (s *sink) close() {
	s.once.Do(func() { close(s.quit) })
	t := time.NewTimer(flushLimit)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
	}
}

// limiter is a handler that lets a message through only so often: a fault that
// comes back at every turn of a loop fills no disk, and costs the loop little.
type limiter struct {
	slog.Handler
	b *bursts
}

func newLimiter(h slog.Handler) *limiter {
	return &limiter{h, &bursts{seen: map[string]*burst{}, report: func(message string, n int) {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "a message came too often", 0)
		r.AddAttrs(slog.String("message", message), slog.Int("left_out", n))
		_ = h.Handle(context.Background(), r)
	}}}
}

func (l *limiter) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelInfo && !l.b.allow(r.Message, r.Time) {
		return nil
	}
	return l.Handler.Handle(ctx, r)
}

func (l *limiter) WithAttrs(a []slog.Attr) slog.Handler { return &limiter{l.Handler.WithAttrs(a), l.b} }
func (l *limiter) WithGroup(name string) slog.Handler {
	return &limiter{l.Handler.WithGroup(name), l.b}
}

type burst struct {
	since   time.Time
	n       int
	leftOut int
}

type bursts struct {
	report func(message string, n int)

	mu   sync.Mutex
	seen map[string]*burst
}

// allow counts a message, and reports whether it is to be written.
func (s *bursts) allow(message string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.seen[message]
	if b == nil {
		if len(s.seen) >= burstKinds { // no program has so many: a message with a value in it
			message = ""
		}
		if b = s.seen[message]; b == nil {
			b = &burst{since: now}
			s.seen[message] = b
		}
	}
	if now.Sub(b.since) >= burstWindow && b.leftOut == 0 {
		b.since, b.n = now, 0
	}
	if b.n++; b.n <= burstLines {
		return true
	}
	if b.leftOut++; b.leftOut == 1 {
		// What was left out is told even if the message never comes again.
		time.AfterFunc(max(burstWindow-now.Sub(b.since), 0), func() { s.tell(message, b) })
	}
	return false
}

func (s *bursts) tell(message string, b *burst) {
	s.mu.Lock()
	n := b.leftOut
	b.since, b.n, b.leftOut = time.Now(), 0, 0
	s.mu.Unlock()
	s.report(message, n)
}
