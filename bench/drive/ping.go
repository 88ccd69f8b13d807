package drive

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/mainzdb/mainz/internal/histogram"
	"github.com/mainzdb/mainz/transport"
)

// PingOptions are a load.
type PingOptions struct {
	Options
	To       transport.PeerID
	Size     int           // bytes of a datagram, at least 16; default 64
	Count    int           // datagrams; 0: until Duration is over
	Duration time.Duration // 0: until Count are done
	Window   int           // datagrams under way; default 1: round trips
	// Patience is how long nothing may come before what is under way counts
	// as lost. Default: 1 s.
	Patience time.Duration
	// WaitFor is how long the first answer may take. Default: 5 s.
	WaitFor time.Duration
}

var (
	// ErrOptions says that this load can't be made.
	ErrOptions = errors.New("unusable load")
	// ErrNoAnswer says that the peer, or an echo server there, was not heard of.
	ErrNoAnswer = errors.New("no answer")
)

// MinSize is the smallest datagram of a pinger: a number and a time.
const MinSize = 16

// Pinged is what came of a load.
type Pinged struct {
	Size     int                  `json:"size"`
	Window   int                  `json:"window"`
	Sent     uint64               `json:"sent"`
	Received uint64               `json:"received"`
	Lost     uint64               `json:"lost"`
	Late     uint64               `json:"late"` // came after they were given up, or twice
	Seconds  float64              `json:"seconds"`
	PerSec   float64              `json:"per_second"`
	Min      float64              `json:"min_ns"`
	P50      float64              `json:"p50_ns"`
	P90      float64              `json:"p90_ns"`
	P99      float64              `json:"p99_ns"`
	P999     float64              `json:"p999_ns"`
	Max      float64              `json:"max_ns"`
	hist     *histogram.Histogram // of round trips
	shortest uint64               // of them
	elapsed  time.Duration        // of the load
}

func (o *PingOptions) check(t transport.Transport) error {
	if o.Size == 0 {
		o.Size = 64
	}
	if o.Window == 0 {
		o.Window = 1
	}
	if o.Patience == 0 {
		o.Patience = time.Second
	}
	if o.WaitFor == 0 {
		o.WaitFor = 5 * time.Second
	}
	switch mtu := t.MTU(o.To); {
	case o.Size < MinSize || o.Size > mtu:
		return fmt.Errorf("%w: size %d: want %d to %d, which is the path's MTU", ErrOptions, o.Size, MinSize, mtu)
	case o.Window < 1:
		return fmt.Errorf("%w: window %d: want at least 1", ErrOptions, o.Window)
	case o.Count < 0 || o.Duration < 0:
		return fmt.Errorf("%w: count %d, duration %v: both must be 0 or more", ErrOptions, o.Count, o.Duration)
	case o.Count == 0 && o.Duration == 0:
		return fmt.Errorf("%w: neither a count nor a duration", ErrOptions)
	}
	return nil
}

// Ping sends datagrams to an echo server and takes the time. It begins when the
// server has answered for the first time, over the path if it can be had
// within half of WaitFor.
func Ping(ctx context.Context, t transport.Transport, o PingOptions) (*Pinged, error) {
	if err := o.check(t); err != nil {
		return nil, err
	}
	r := &Pinged{Size: o.Size, Window: o.Window, hist: new(histogram.Histogram), shortest: math.MaxUint64}
	if err := answers(ctx, t, o); err != nil {
		return nil, err
	}
	g := &pinger{t: t, o: o, r: r, start: time.Now(), first: 1 << 32, next: 1 << 32}
	if err := Loop(ctx, t, o.Options, g.turn); err != nil {
		return nil, err
	}
	if !g.stopping {
		r.elapsed = time.Since(g.start)
		r.Lost += uint64(g.underWay)
	}
	r.sum()
	return r, nil
}

// pinger is a load under way. Times are in nanoseconds since start.
type pinger struct {
	t        transport.Transport
	o        PingOptions
	r        *Pinged
	start    time.Time
	first    uint64 // numbers below are not under way any more
	next     uint64
	underWay int
	heard    uint64
	stamp    uint64 // the time of this turn, 0: not looked at yet
	stopping bool
}

func (g *pinger) clock() uint64 { return uint64(time.Since(g.start)) }

// turnTime is the time of this turn. With many under way one look at the clock does for
// a turn: two for each datagram took a tenth of the time.
func (g *pinger) turnTime() uint64 {
	if g.stamp == 0 || g.o.Window == 1 {
		g.stamp = g.clock()
	}
	return g.stamp
}

func (g *pinger) take(p []byte, from transport.PeerID) {
	if len(p) != g.o.Size || from != g.o.To {
		return
	}
	n, sent := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
	if n < g.first || n >= g.next || g.underWay == 0 {
		g.r.Late++
		return
	}
	g.heard = g.turnTime()
	g.r.hist.Add(g.heard - sent)
	g.r.shortest = min(g.r.shortest, g.heard-sent)
	g.r.Received++
	g.underWay--
}

// over reports whether the load is over. A thread that got no CPU all the time sends
// one all the same.
func (g *pinger) over() bool {
	if g.o.Count > 0 && g.r.Sent >= uint64(g.o.Count) {
		return true
	}
	limit := uint64(g.o.Duration)
	if limit == 0 {
		return false
	}
	t := g.turnTime()
	return g.r.Sent > 0 && t >= limit || t >= limit+uint64(g.o.Patience)
}

func (g *pinger) turn(now time.Duration) (busy, done bool) {
	g.stamp = 0
	patience := uint64(g.o.Patience)
	busy = g.t.Poll(batch, g.take) > 0
	if !busy && g.underWay > 0 && !g.stopping && g.underWay >= g.o.Window {
		// The loop's time will do, though it began a little later: a look at the
		// clock here made the look for the next datagram late.
		if uint64(now) > g.heard+patience {
			g.r.Lost += uint64(g.underWay)
			g.underWay, g.first, g.heard = 0, g.next, g.clock()
		}
		return false, false
	}
	if !g.stopping && g.over() {
		g.stopping = true
		g.r.elapsed = time.Since(g.start)
	}
	if g.stopping {
		if g.underWay == 0 {
			return busy, true
		}
		if g.clock() > max(g.heard, uint64(g.r.elapsed))+patience {
			g.r.Lost += uint64(g.underWay)
			return busy, true
		}
		return busy, false
	}
	return g.fill() || busy, false
}

// fill sends as many as may be under way, and reports whether it sent any.
func (g *pinger) fill() (sent bool) {
	for g.underWay < g.o.Window && (g.o.Count == 0 || g.r.Sent < uint64(g.o.Count)) {
		b := g.t.Buf(g.o.To, g.o.Size)
		if b == nil {
			break
		}
		binary.LittleEndian.PutUint64(b, g.next)
		binary.LittleEndian.PutUint64(b[8:], g.turnTime())
		g.t.Commit(g.o.Size)
		g.next++
		g.r.Sent++
		g.underWay++
		sent = true
	}
	return sent
}

// answers sends until the server answers, and the path is proven.
func answers(ctx context.Context, t transport.Transport, o PingOptions) error {
	ok, asked := false, time.Duration(-time.Hour)
	back := func(p []byte, from transport.PeerID) { ok = ok || from == o.To }
	late := false
	err := Loop(ctx, t, o.Options, func(now time.Duration) (busy, done bool) {
		if now-asked > 10*time.Millisecond {
			asked = now
			if b := t.Buf(o.To, MinSize); b != nil {
				clear(b)
				t.Commit(MinSize)
			}
		}
		late = now > o.WaitFor
		busy = t.Poll(batch, back) > 0
		// A peer that answers through the kernel alone gets some more time.
		return busy, late || ok && (t.Path().Proven || now > o.WaitFor/2)
	})
	if err == nil && !ok && ctx.Err() == nil {
		err = fmt.Errorf("%w within %v", ErrNoAnswer, o.WaitFor)
	}
	return err
}

func (r *Pinged) sum() {
	r.Seconds = r.elapsed.Seconds()
	if r.Seconds > 0 {
		r.PerSec = float64(r.Received) / r.Seconds
	}
	if r.hist.N == 0 {
		return
	}
	r.Min, r.Max = float64(r.shortest), float64(r.hist.Max)
	quantile := func(q float64) float64 { return max(r.hist.Quantile(q), r.Min) }
	r.P50, r.P90, r.P99, r.P999 = quantile(0.5), quantile(0.9), quantile(0.99), quantile(0.999)
}
