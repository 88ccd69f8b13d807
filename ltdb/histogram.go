package ltdb

import (
	"math/bits"
	"strconv"
	"time"

	"github.com/mainzdb/mainz/shm"
)

// Latencies are sampled: one call in 256 of each kind reads the CPU's counter
// before and after. The counts stand in a block chained from the client's
// slot, so that others can read them while the client hangs, and its repair
// frees them.
const sampleEvery = 256

// The kinds of latency.
const (
	latencyFetch = iota // a read, to the copied value
	latencyLock         // FetchLocked of a record that was free
	latencyStore        // from the locked record to the published value
	latencyWait         // for a lock, in the kernel; each of them, not one in 256
	latencyKinds
)

var latencyNames = [latencyKinds]string{"fetch", "lock", "store", "wait"}

// Histogram buckets are linear below 16 ticks and then 8 to a power of two:
// 12 % wide at most. The last takes all from 2^32 ticks on, a second or more.
const (
	histogramFirst   = 16
	histogramBuckets = histogramFirst + 8*28
)

// histograms is what the block holds behind its header, in place of key and
// data. The owner's process adds, all load.
type histograms struct {
	counts [latencyKinds][histogramBuckets]shm.Word32
}

const histogramClass = 15

const _ = uint(4096 - blockHeaderSize - latencyKinds*histogramBuckets*4) // it fits

func histogramBucket(ticks uint64) int {
	if ticks < histogramFirst {
		return int(ticks)
	}
	e := bits.Len64(ticks) - 4 // 1 for 16 to 31
	return min(histogramFirst+(e-1)*8+int(ticks>>e&7), histogramBuckets-1)
}

// histogramTop is the largest tick count of a bucket.
func histogramTop(i int) uint64 {
	if i < histogramFirst {
		return uint64(i)
	}
	e := (i-histogramFirst)/8 + 1
	return (8+uint64(i-histogramFirst)%8+1)<<e - 1
}

// sampled reports whether the call that counter counts next is one to time.
func (a *actor) sampled(counter int) bool {
	return a.h.counters[counter].Load()&(sampleEvery-1) == sampleEvery-1
}

// sample adds the time since start.
func (a *actor) sample(kind int, start uint64) {
	ticks := shm.Ticks() - start
	if h := a.s.histograms(a); h != nil {
		w := &h.counts[kind][histogramBucket(ticks)]
		for n := w.Load(); !w.CAS(n, n+1); n = w.Load() {
		}
	}
}

// histograms returns this client's histograms, and makes them if there is
// room. Statistics never fail a call and never wait for anybody.
func (s *Store) histograms(a *actor) *histograms {
	if h := s.hist.Load(); h != nil {
		return h
	}
	if !s.histMu.TryLock() {
		return nil
	}
	defer s.histMu.Unlock()
	if h := s.hist.Load(); h != nil {
		return h
	}
	if a.h.jNew.Load() != 0 || a.refill(histogramClass, 1) != nil || a.have(histogramClass) == 0 {
		return nil
	}
	d, err := a.draft(histogramClass)
	if err != nil {
		return nil
	}
	h := shm.At[histograms](s.r, refOffset(d.ref)+blockHeaderSize)
	for k := range h.counts {
		for i := range h.counts[k] {
			h.counts[k][i].Store(0)
		}
	}
	d.seal(0, 0, 0, uint64(s.body.stats.Load()), 0, flagBucket)
	s.body.stats.Store(d.ref)
	a.h.jNew.Store(0)
	s.hist.Store(h)
	return h
}

// histogramsAt returns the histograms in the block at ref, and the next
// block's ref; nil if there are none.
func (s *Store) histogramsAt(ref uint32) (*histograms, uint32) {
	b := s.freeBlockAt(ref, histogramClass)
	if ref == 0 || b == nil {
		return nil, 0
	}
	return shm.At[histograms](s.r, refOffset(ref)+blockHeaderSize), uint32(b.rsn.Load())
}

// Latency is a distribution of sampled times.
type Latency struct {
	N     uint64 // samples; one call in 256 is one, each of the waits
	ticks [histogramBuckets]uint64
	ns    float64 // per tick
}

// Quantile returns the time that the fraction q of the samples did not
// exceed, at most 12 % too long; 0 without samples.
func (l *Latency) Quantile(q float64) time.Duration {
	goal := uint64(q * float64(l.N))
	for i, n := range l.ticks {
		if n > goal {
			return time.Duration(float64(histogramTop(i)) * l.ns)
		}
		goal -= n
	}
	return 0
}

// Latencies sums up the sampled times of all attached clients, by kind:
// fetch (a read), lock (FetchLocked of a free record), store (from the locked
// record to the published value), wait (for a lock that was held).
func (s *Store) Latencies() map[string]*Latency {
	all := map[string]*Latency{}
	if s.enter() != nil {
		return all
	}
	defer s.exit()
	rate := shm.TickRate()
	for k, name := range latencyNames {
		l := &Latency{ns: 1e9 / rate}
		for i := uint32(1); i <= s.seg.Slots(); i++ {
			b := shm.At[body](s.r, s.seg.SlotBody(i))
			if h, _ := s.histogramsAt(b.stats.Load()); h != nil {
				for n := range h.counts[k] {
					v := uint64(h.counts[k][n].Load())
					l.ticks[n] += v
					l.N += v
				}
			}
		}
		all[name] = l
	}
	return all
}

// stats frees the dead client's histograms. The block goes to a magazine
// before the slot forgets it; a repeat finds it there.
func (p *repairer) stats() error {
	for range shm.HandlesPerSlot {
		ref := p.body.stats.Load()
		h, next := p.s.histogramsAt(ref)
		if h == nil {
			break
		}
		if !p.anywhere(ref) && !p.put(&p.body.handles[0], ref) {
			// Full of free blocks of that size: make room.
			if err := p.magazines(0); err != nil {
				return err
			}
			p.put(&p.body.handles[0], ref)
		}
		p.body.stats.Store(next)
	}
	p.body.stats.Store(0)
	return nil
}

// anywhere reports whether a magazine of the dead client has the block.
func (p *repairer) anywhere(ref uint32) bool {
	found := false
	for i := range p.body.handles {
		each(&p.body.handles[i], func(w *shm.Word32, _ int) { found = found || w.Load() == ref })
	}
	return found
}

// inStats reports whether the block is one of the slot's histograms.
func (p *repairer) inStats(ref uint32) bool { return ref == p.body.stats.Load() }

func (k *checker) histograms(i uint32, b *body) {
	for ref := b.stats.Load(); ref != 0; {
		if k.visit(ref, histogramClass, "histograms of slot "+strconv.Itoa(int(i))) == nil {
			return
		}
		k.r.Histograms++
		_, ref = k.s.histogramsAt(ref)
	}
}
