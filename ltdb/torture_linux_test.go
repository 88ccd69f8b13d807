//go:build !shmsim

package ltdb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The torture: processes change records of one segment, and are killed with
// SIGKILL at random moments, those that repair the dead included. A page that
// they share beside the segment, the oracle, says what was meant and what was
// acknowledged. After every few kills the living stop between two calls, and
// the whole store is checked and every record compared with the oracle.

// fromEnv reads a number that the environment may set: MAINZ_KILLS, how many
// processes to kill, and MAINZ_SEED, to repeat a run.
func fromEnv(t *testing.T, name string, otherwise uint64) uint64 {
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

const (
	workers     = 3
	goroutines  = 2
	lockKeys    = 24 // changed under their lock
	blindKeys   = 12 // stored and deleted without one
	appendKeys  = 6
	appendLimit = 1500 // bytes, then the record is reset
)

// oracle is shared by all processes of the torture, in a file of its own.
type oracle struct {
	pause  atomic.Uint32
	failed atomic.Uint32
	late   atomic.Uint64 // waits that ended by their slice though a wake-up was due
	died   atomic.Uint64 // locks taken over from the dead
	ops    [workers]struct {
		n atomic.Uint64
		_ [56]byte
	}
	paused [workers][goroutines]atomic.Uint32

	// Of a record changed under its lock: number of the change << 1 | 1 for
	// a delete. intent is stored before it, acked after it.
	intent, acked [lockKeys]atomic.Uint64
	// Of an appended record: how many entries each goroutine meant to append
	// and had acknowledged, and how often the record was meant to be reset.
	meant, done [appendKeys][workers][goroutines]atomic.Uint64
	resets      [appendKeys]atomic.Uint64
	// Values stored blindly, by who stores them.
	stored [workers][goroutines]atomic.Uint64
}

func openOracle(path string) (*oracle, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := int(unsafe.Sizeof(oracle{}))
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*oracle)(unsafe.Pointer(&m[0])), nil
}

// tortureConfig is small, so that memory runs out now and then, spans change
// their class and chains overflow.
var tortureConfig = Config{Size: 3 << 20, Slots: 8, MaxValue: 6000, SpanSize: 16 << 10, Databases: 2}

func TestTorture(t *testing.T) {
	seed := fromEnv(t, "MAINZ_SEED", uint64(time.Now().UnixNano()))
	kills := int(fromEnv(t, "MAINZ_KILLS", 150))
	t.Logf("MAINZ_SEED=%d, %d kills", seed, kills)
	dir := ramdisk(t)
	s, err := Open(bg, dir, Options{Create: true, Config: tortureConfig})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Database(bg, "torture", KV, DatabaseOptions{Records: 10}); err != nil {
		t.Fatal(err)
	}
	oraclePath := filepath.Join(filepath.Dir(dir), "oracle")
	o, err := openOracle(oraclePath)
	if err != nil {
		t.Fatal(err)
	}
	c := &controller{t: t, s: s, o: o, dir: dir, oracle: oraclePath, rnd: rand.New(rand.NewPCG(seed, 1)), seed: seed,
		kills: kills}
	for w := range c.procs {
		c.start(w)
	}
	defer c.end()
	next := time.Now().Add(5 * time.Second)
	for c.killed < kills && !t.Failed() {
		c.killSome()
		if c.killed%50 < 2 || c.killed >= kills {
			c.audit()
		}
		if time.Now().After(next) {
			next = time.Now().Add(5 * time.Second)
			fmt.Fprintf(os.Stderr, "torture: %d of %d kills, %d operations\n", c.killed, kills, c.operations())
		}
	}
	c.audit()
	t.Logf("%d kills, %d operations, %d locks taken over from the dead, %d late waits, %d audits",
		c.killed, c.operations(), o.died.Load(), o.late.Load(), c.audits)
	if o.late.Load() != 0 {
		t.Errorf("%d waits ended by their time slice though a wake-up was due", o.late.Load())
	}
}

type controller struct {
	t              *testing.T
	s              *Store
	o              *oracle
	dir, oracle    string
	rnd            *rand.Rand
	seed           uint64
	procs          [workers]*exec.Cmd
	kills          int // to do
	killed, starts int
	audits         int
}

func (c *controller) start(w int) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestTortureWorker$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), "TORTURE_DIR="+c.dir, "TORTURE_ORACLE="+c.oracle,
		"TORTURE_WORKER="+strconv.Itoa(w), fmt.Sprintf("TORTURE_SEED=%d", c.seed+uint64(c.starts)*977))
	c.starts++
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.procs[w] = cmd
}

func (c *controller) operations() uint64 {
	n := uint64(0)
	for i := range c.o.ops {
		n += c.o.ops[i].n.Load()
	}
	return n
}

// killSome kills one process at a random moment, and often a second one a
// moment later, while it repairs the first.
func (c *controller) killSome() {
	w := c.rnd.IntN(workers)
	c.kill(w, 20+c.rnd.Uint64N(3000))
	if c.rnd.IntN(2) == 0 && c.killed < c.kills {
		v := (w + 1 + c.rnd.IntN(workers-1)) % workers
		spin(time.Duration(c.rnd.IntN(400)) * time.Microsecond)
		c.kill(v, 0)
		c.reap(v)
	}
	c.reap(w)
}

// spin waits for a time that is shorter than a sleep can be.
func spin(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
	}
}

// kill waits until the process has done some more operations, and kills it.
func (c *controller) kill(w int, ops uint64) {
	goal := c.o.ops[w].n.Load() + ops
	for limit := time.Now().Add(2 * time.Minute); c.o.ops[w].n.Load() < goal; {
		if c.o.failed.Load() != 0 || time.Now().After(limit) {
			c.t.Errorf("worker %d stands still or failed", w)
			break
		}
		spin(10 * time.Microsecond)
	}
	c.procs[w].Process.Kill()
	c.killed++
}

// reap collects a killed process and starts the next one in its place.
func (c *controller) reap(w int) {
	p := c.procs[w]
	err := p.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		c.t.Errorf("worker %d: %v\n%s", w, err, p.Stdout.(*bytes.Buffer).Bytes())
	}
	if c.o.failed.Load() != 0 {
		c.t.Errorf("worker %d: %s", w, p.Stdout)
	}
	for i := range c.o.paused[w] {
		c.o.paused[w][i].Store(0)
	}
	c.start(w)
}

// audit stops the living between two calls, checks the store and compares it
// with the oracle.
func (c *controller) audit() {
	t, o := c.t, c.o
	if t.Failed() {
		return
	}
	c.audits++
	o.pause.Store(1)
	defer o.pause.Store(0)
	limit := time.Now().Add(2 * time.Minute)
	for w := range o.paused {
		for g := range o.paused[w] {
			for o.paused[w][g].Load() == 0 {
				if time.Now().After(limit) {
					t.Errorf("worker %d.%d does not come to rest: %+v", w, g, c.s.Clients())
					return
				}
				time.Sleep(100 * time.Microsecond) // a bounded poll of another process
			}
		}
	}
	if _, err := c.s.Recover(bg); err != nil {
		t.Error(err)
	}
	if r := mustCheck(t, c.s); r.Locked != 0 {
		t.Errorf("%d locks are held though everybody rests", r.Locked)
	}
	db, err := c.s.Database(bg, "torture", KV, DatabaseOptions{MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	for k := range lockKeys {
		v, err := db.Fetch(bg, lockKey(k))
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		if err := o.checkLocked(k, v); err != nil {
			t.Error(err)
		}
	}
	for k := range appendKeys {
		v, err := db.Fetch(bg, appendKey(k))
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		if err := o.checkAppended(k, v, o.doneNow(k)); err != nil {
			t.Error(err)
		}
	}
}

func (c *controller) end() {
	for w, p := range c.procs {
		p.Process.Kill()
		p.Wait()
		if out := p.Stdout.(*bytes.Buffer); c.t.Failed() && out.Len() > 0 {
			c.t.Logf("worker %d: %s", w, out)
		}
	}
	if _, err := c.s.Recover(bg); err != nil {
		c.t.Error(err)
	}
	mustCheck(c.t, c.s)
}

func lockKey(k int) []byte   { return fmt.Appendf(nil, "locked record %d", k) }
func blindKey(k int) []byte  { return fmt.Appendf(nil, "blind %d", k) }
func appendKey(k int) []byte { return fmt.Appendf(nil, "appended %d", k) }

// fillValue is a value that shows what it is and whether it is whole: the
// key's number, the change's, and words that follow from both.
func fillValue(dst []byte, k int, n uint64, size int) []byte {
	dst = binary.LittleEndian.AppendUint64(dst[:0], uint64(k))
	dst = binary.LittleEndian.AppendUint64(dst, n)
	for i := 16; i+8 <= size; i += 8 {
		dst = binary.LittleEndian.AppendUint64(dst, (n+uint64(i))*0x9E3779B97F4A7C15^uint64(k))
	}
	return dst
}

func parseValue(k int, v []byte) (n uint64, err error) {
	if len(v) < 16 {
		return 0, fmt.Errorf("key %d: value of %d bytes", k, len(v))
	}
	n = binary.LittleEndian.Uint64(v[8:])
	if got := binary.LittleEndian.Uint64(v); got != uint64(k) || !bytes.Equal(v, fillValue(nil, k, n, len(v))) {
		return n, fmt.Errorf("key %d: torn value of key %d, change %d, %d bytes", k, got, n, len(v))
	}
	return n, nil
}

// checkLocked compares a value, nil for none, with what was acknowledged and
// what was meant. Both were loaded after the value's lock was taken, or while
// everybody rests: the record is in the state of one of the two.
func (o *oracle) checkLocked(k int, v []byte) error {
	acked, intent := o.acked[k].Load(), o.intent[k].Load()
	if v == nil {
		if acked == 0 || acked&1 == 1 || intent&1 == 1 && intent > acked {
			return nil
		}
		return fmt.Errorf("key %d: lost: change %d was acknowledged, %d (%d) meant", k, acked>>1, intent>>1, intent&1)
	}
	n, err := parseValue(k, v)
	if err == nil && n<<1 != acked && n<<1 != intent {
		err = fmt.Errorf("key %d: has change %d, but %d.%d was acknowledged and %d.%d meant", k, n, acked>>1, acked&1,
			intent>>1, intent&1)
	}
	return err
}

type doneCounts struct {
	n      [workers][goroutines]uint64
	resets uint64
}

func (o *oracle) doneNow(k int) (d doneCounts) {
	for w := range d.n {
		for g := range d.n[w] {
			d.n[w][g] = o.done[k][w][g].Load()
		}
	}
	d.resets = o.resets[k].Load()
	return d
}

// checkAppended looks for a hole, a repeat or a loss in an appended record.
// d was loaded before the value.
func (o *oracle) checkAppended(k int, v []byte, d doneCounts) error {
	var last [workers][goroutines]uint64
	if len(v)%24 != 0 {
		return fmt.Errorf("appended %d: %d bytes", k, len(v))
	}
	for i := 0; i < len(v); i += 24 {
		w, g := int(binary.LittleEndian.Uint32(v[i:])), int(binary.LittleEndian.Uint32(v[i+4:]))
		n, sum := binary.LittleEndian.Uint64(v[i+8:]), binary.LittleEndian.Uint64(v[i+16:])
		if w >= workers || g >= goroutines || sum != n*0x9E3779B97F4A7C15+uint64(w*8+g) {
			return fmt.Errorf("appended %d: torn at byte %d", k, i)
		}
		// A number is left out if its process died before the append.
		if n <= last[w][g] {
			return fmt.Errorf("appended %d: entry %d of %d.%d comes after %d", k, n, w, g, last[w][g])
		}
		last[w][g] = n
	}
	if o.resets[k].Load() != d.resets {
		return nil // the record was reset meanwhile, or is about to be
	}
	for w := range last {
		for g := range last[w] {
			if last[w][g] != 0 && last[w][g] < d.n[w][g] {
				return fmt.Errorf("appended %d: entry %d of %d.%d was acknowledged, the last there is %d", k,
					d.n[w][g], w, g, last[w][g])
			}
			if last[w][g] > o.meant[k][w][g].Load() {
				return fmt.Errorf("appended %d: entry %d of %d.%d was never meant", k, last[w][g], w, g)
			}
		}
	}
	return nil
}

func TestTortureWorker(t *testing.T) {
	dir := os.Getenv("TORTURE_DIR")
	if dir == "" {
		return // started by TestTorture only
	}
	w, _ := strconv.Atoi(os.Getenv("TORTURE_WORKER"))
	seed, _ := strconv.ParseUint(os.Getenv("TORTURE_SEED"), 10, 64)
	o, err := openOracle(os.Getenv("TORTURE_ORACLE"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(bg, dir, Options{Name: fmt.Sprint("worker ", w)})
	if err != nil {
		o.failed.Store(1)
		t.Fatal(err)
	}
	db, err := s.Database(bg, "torture", KV, DatabaseOptions{MustExist: true})
	if err != nil {
		o.failed.Store(1)
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Add(1)
		go func() {
			defer wg.Done()
			p := &worker{t: t, o: o, s: s, db: db, w: w, g: g, rnd: rand.New(rand.NewPCG(seed, uint64(g)))}
			if err := p.run(); err != nil {
				fmt.Fprintf(os.Stderr, "worker %d.%d: %v\n", w, g, err)
				o.failed.Store(1)
				t.Error(err)
			}
		}()
	}
	wg.Wait()
}

type worker struct {
	t    *testing.T
	o    *oracle
	s    *Store
	db   *DB
	w, g int
	rnd  *rand.Rand
	buf  []byte
	late uint64
}

func (p *worker) run() error {
	h, err := p.db.Handle()
	if err != nil {
		return err
	}
	for {
		if p.o.pause.Load() != 0 {
			p.o.paused[p.w][p.g].Store(1)
			for p.o.pause.Load() != 0 {
				time.Sleep(100 * time.Microsecond) // a bounded poll of another process
			}
			p.o.paused[p.w][p.g].Store(0)
		}
		switch n := p.rnd.IntN(100); {
		case n < 45:
			err = p.locked(h, p.rnd.IntN(lockKeys))
		case n < 60:
			err = p.blind(h, p.rnd.IntN(blindKeys))
		case n < 80:
			err = p.appended(h, p.rnd.IntN(appendKeys))
		case n < 90:
			err = p.read(h, p.rnd.IntN(lockKeys))
		default:
			err = p.trial(p.rnd.IntN(lockKeys))
		}
		if err != nil && !errors.Is(err, ErrNoSpace) {
			return err
		}
		p.o.ops[p.w].n.Add(1)
		if late := p.s.Stats().Late; p.g == 0 && late != p.late {
			fmt.Fprintln(os.Stderr, p.s.c.Slices().How)
			p.o.late.Add(late - p.late)
			p.late = late
		}
	}
}

// size draws lengths that use many classes of blocks, large ones rarely.
func (p *worker) size() int {
	if p.rnd.IntN(20) == 0 {
		return 16 + 8*p.rnd.IntN(700)
	}
	return 16 + 8*p.rnd.IntN(60)
}

// locked changes a record under its lock, and looks at what is there first.
func (p *worker) locked(h *Handle, k int) error {
	var r Record
	var err error
	if p.rnd.IntN(2) == 0 {
		r, err = h.FetchLocked(bg, lockKey(k))
	} else {
		r, err = p.db.FetchLocked(bg, lockKey(k))
	}
	if err != nil {
		return err
	}
	return p.change(r, k)
}

func (p *worker) change(r Record, k int) error {
	if r.OwnerDied() {
		p.o.died.Add(1)
	}
	if err := p.o.checkLocked(k, r.Data()); err != nil {
		return err
	}
	// From here on what is there counts as acknowledged: a change of somebody
	// dead is settled, and one of somebody living will be.
	was := p.o.acked[k].Load()
	if i := p.o.intent[k].Load(); r.Data() == nil && i&1 == 1 {
		was = i
	} else if r.Data() != nil {
		n, _ := parseValue(k, r.Data())
		was = n << 1
	}
	p.o.acked[k].Store(was)
	n := p.o.intent[k].Load()>>1 + 1
	switch p.rnd.IntN(8) {
	case 0:
		return r.Unlock()
	case 1:
		p.o.intent[k].Store(n<<1 | 1)
		return p.ack(k, n<<1|1, r.Delete())
	case 2: // twice in one lock
		p.o.intent[k].Store(n << 1)
		p.buf = fillValue(p.buf, k, n, p.size())
		if err := p.ack(k, n<<1, r.Store(p.buf)); err != nil {
			return errors.Join(err, r.Unlock())
		}
		n++
		fallthrough
	default:
		p.o.intent[k].Store(n << 1)
		p.buf = fillValue(p.buf, k, n, p.size())
		return p.ack(k, n<<1, r.StoreUnlock(p.buf))
	}
}

// ack notes that a change is done. The next holder may have noted a later
// one by now.
func (p *worker) ack(k int, change uint64, err error) error {
	if err != nil {
		return err
	}
	for {
		was := p.o.acked[k].Load()
		if was >= change || p.o.acked[k].CompareAndSwap(was, change) {
			return nil
		}
	}
}

func (p *worker) blind(h *Handle, k int) error {
	if p.rnd.IntN(4) == 0 {
		if err := h.Delete(bg, blindKey(k)); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		return nil
	}
	if p.rnd.IntN(3) == 0 {
		v, err := h.AppendFetch(bg, p.buf[:0], blindKey(k))
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err == nil {
			_, err = parseValue(k, v)
		}
		return err
	}
	p.buf = fillValue(p.buf, k, p.o.stored[p.w][p.g].Add(1), p.size())
	return h.Store(bg, blindKey(k), p.buf)
}

func (p *worker) appended(h *Handle, k int) error {
	d := p.o.doneNow(k)
	v, err := h.AppendFetch(bg, p.buf[:0], appendKey(k))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	p.buf = v[:0]
	if err := p.o.checkAppended(k, v, d); err != nil {
		return err
	}
	if len(v) > appendLimit {
		p.o.resets[k].Add(1)
		if err := h.Delete(bg, appendKey(k)); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		p.o.resets[k].Add(1)
		return nil
	}
	n := p.o.meant[k][p.w][p.g].Add(1)
	var e [24]byte
	binary.LittleEndian.PutUint32(e[:], uint32(p.w))
	binary.LittleEndian.PutUint32(e[4:], uint32(p.g))
	binary.LittleEndian.PutUint64(e[8:], n)
	binary.LittleEndian.PutUint64(e[16:], n*0x9E3779B97F4A7C15+uint64(p.w*8+p.g))
	if err := h.Append(bg, appendKey(k), e[:]); err != nil {
		return err
	}
	p.o.done[k][p.w][p.g].Store(n)
	return nil
}

// read looks at a record without its lock: it may be any state since acked
// was loaded.
func (p *worker) read(h *Handle, k int) error {
	acked := p.o.acked[k].Load()
	v, err := h.AppendFetch(bg, p.buf[:0], lockKey(k))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	p.buf = v[:0]
	n, err := parseValue(k, v)
	if err == nil && n < acked>>1 {
		err = fmt.Errorf("key %d: read change %d after %d was acknowledged", k, n, acked>>1)
	}
	return err
}

// trial takes the lock if it is free, or waits for a moment only.
func (p *worker) trial(k int) error {
	if p.rnd.IntN(2) == 0 {
		r, err := p.db.TryFetchLocked(bg, lockKey(k))
		if errors.Is(err, ErrLocked) {
			return nil
		}
		if err != nil {
			return err
		}
		return p.change(r, k)
	}
	ctx, stop := context.WithTimeout(bg, time.Duration(p.rnd.IntN(300))*time.Microsecond)
	defer stop()
	r, err := p.db.FetchLocked(ctx, lockKey(k))
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.change(r, k)
}
