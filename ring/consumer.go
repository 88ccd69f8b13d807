package ring

import (
	"context"
	"fmt"

	"github.com/mainzdb/mainz/shm"
)

// Consumer is the end of a ring that one goroutine at a time takes messages out.
type Consumer struct {
	view
	pos  uint64 // of the next cell: at least h.released
	opts Options
	idle Idle
	off  shm.Offset
	took bool    // messages since the last Wait
	msg  Message // of the cell being looked at: off the stack and out of the producers' reach

	sleeper sleeper
}

// Stop ends the use of c: it forgets the context of the last Wait.
func (c *Consumer) Stop() { c.sleeper.stop() }

// OpenConsumer opens the end of a ring that messages are taken out, where the
// consumer before it had left off.
func OpenConsumer(r *shm.Region, off shm.Offset, cells int, opts Options) (*Consumer, error) {
	v, err := open(r, off, cells)
	if err != nil {
		return nil, err
	}
	c := &Consumer{view: v, opts: opts, idle: opts.Idle.startAt(opts.Spin), off: off, took: true}
	if c.opts.Wait == nil {
		c.opts.Wait = waitSlice
	}
	c.pos = v.h.released.Load()
	if v.h.claimed.Load()-c.pos > uint64(cells) {
		return nil, fmt.Errorf("ring: at %d: %w", off, errPositions)
	}
	// The one before may have died asleep, or when it was about to wake
	// producers.
	if s := v.h.asleep.Load(); s&1 != 0 {
		v.h.asleep.CAS(s, s+1)
	}
	if !planted("open") {
		v.wakeProducers(true)
	}
	return c, nil
}

// Ready reports whether Poll would find a cell.
func (c *Consumer) Ready() bool {
	return c.at(c.pos).seq.Load()&^aborted == committed(c.pos)
}

// Poll takes up to limit cells, calls f with each message, and releases the
// cells when f has returned for all. It returns how many cells it took, those
// that were aborted included: 0 means that there is none. The message is f's
// until it returns, and may hold anything: another process wrote it.
//
// If the process dies in Poll, the next consumer is given these cells again.
func (c *Consumer) Poll(limit int, f func(*Message)) int {
	n := 0
	for n < limit {
		cell := c.at(c.pos)
		seq := cell.seq.Load()
		if seq&^aborted != committed(c.pos) {
			break
		}
		if planted("release") {
			c.h.released.Swap(c.pos + 1)
		}
		c.pos++
		n++
		if seq&aborted == 0 {
			cell.get(&c.msg)
			f(&c.msg)
		}
	}
	if n > 0 {
		c.took = true
		c.release()
	}
	return n
}

// release gives the cells back that were polled, by a full barrier, and looks
// then whether a producer waits for them.
func (c *Consumer) release() {
	c.h.released.Swap(c.pos)
	c.wakeProducers(false)
}

// wakeProducers wakes those who wait for room; with all also if somebody else
// may have been about to do it.
func (v *view) wakeProducers(all bool) {
	asleep := v.h.full.Load()
	if asleep&1 == 0 && (!all || planted("openodd")) || planted("room") {
		return
	}
	if asleep&1 != 0 {
		v.h.full.CAS(asleep, asleep+1)
	}
	v.h.full.Wake(shm.All)
}

// Wait returns when there is a cell, or a reason to look for something else,
// such as the death of the process at the other end: nil then. The error is
// the context's, or that of Options.Wait. With the strategy Busy only the
// context ends it, beside a cell. Who has waited for long, and calls it again and
// again, does not spin again each time: of 256 clients that wait each would take half
// a per cent of a CPU.
func (c *Consumer) Wait(ctx context.Context) error {
	if !c.took && c.opts.Idle != Busy {
		if c.Ready() {
			return nil
		}
		return c.sleep(ctx)
	}
	c.took = false
	c.idle.Reset()
	for turn := 1; ; turn++ {
		if c.Ready() {
			return nil
		}
		if !c.idle.Again() {
			return c.sleep(ctx)
		}
		if turn%contextEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// contextEvery is how many turns of an idle loop there are between two looks at
// the context.
const contextEvery = 256

// sleep sleeps at most once.
func (c *Consumer) sleep(ctx context.Context) error {
	w := &c.h.asleep
	if planted("look") && c.Ready() {
		return nil
	}
	v := arm(w)
	if !planted("look") && c.Ready() {
		disarm(w, v)
		return nil
	}
	err := c.opts.Wait(shm.Watch{W: w, Val: v}, c.sleeper.cancel(ctx))
	c.sleeper.waited()
	disarm(w, v)
	if err != nil {
		return fmt.Errorf("ring: wait for a message: %w", err)
	}
	return ctx.Err()
}

// Repair aborts what the producer's process had claimed and not committed when
// it died, and returns how many cells that were. Then Poll gives out all that
// it had committed. It may be repeated. ErrCorrupt: the producer's words make
// no sense; all that can be saved is.
//
// Preconditions: no thread of the producer runs any more.
func (c *Consumer) Repair() (int, error) {
	n, err := c.repair(c.pos)
	if err != nil {
		err = fmt.Errorf("ring: repair at %d: %w", c.off, err)
	}
	return n, err
}

// get copies the message out, each word once.
func (c *cell) get(m *Message) {
	m.Head[0] = c.head[0].Load()
	m.Head[1] = c.head[1].Load()
	setWord(m, 0, c.data[0].Load())
	setWord(m, 1, c.data[1].Load())
	setWord(m, 2, c.data[2].Load())
	setWord(m, 3, c.data[3].Load())
	setWord(m, 4, c.data[4].Load())
}
