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

// The torture of pieces: processes append pieces and remove them, wait for
// each other's, and are killed with SIGKILL at random moments. Each piece says
// whose it is. After every few kills the living stop between two calls: then
// the records have the pieces of the living that they say they have, none of
// the dead, and Check is clean.

// piecesOracle is shared by all processes of the torture, in a file of its own.
type piecesOracle struct {
	pause, failed atomic.Uint32
	late          atomic.Uint64
	exclusive     atomic.Uint64 // waits for a record of which others had let nobody in
	ops           [workers]struct {
		n atomic.Uint64
		_ [56]byte
	}
	paused [workers][goroutines]atomic.Uint32
	life   [workers]atomic.Uint64 // of the process: in its pieces
	// Number of the piece that a goroutine has in a record, 0 for none. Noted
	// after the append and before the removal.
	has [pieceKeys][workers][goroutines]atomic.Uint64
}

const (
	pieceKeys     = 6
	exclusiveKeys = 2 // of these: whose pieces let nobody else in
)

func pieceKey(k int) []byte { return fmt.Appendf(nil, "pieces %d", k) }

// tortured is a piece: a good entry of ShareModes that says whose it is.
func tortured(k, w, g int, life, n uint64) []byte {
	var who [16]byte
	binary.LittleEndian.PutUint64(who[:], n)
	binary.LittleEndian.PutUint32(who[8:], uint32(life))
	who[12], who[13], who[14] = byte(w), byte(g), byte(k)
	share := uint32(shareAll)
	if k < exclusiveKeys {
		share = 0
	}
	return AppendShareMode(nil, ShareRead, share, who)
}

func mapPiecesOracle(path string) (*piecesOracle, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := int(unsafe.Sizeof(piecesOracle{}))
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return (*piecesOracle)(unsafe.Pointer(&m[0])), nil
}

type piecesTorture struct {
	t      *testing.T
	s      *Store
	o      *piecesOracle
	dir    string
	oracle string
	seed   uint64
	procs  [workers]*exec.Cmd
	starts int
	audits int
}

func TestTorturePieces(t *testing.T) {
	seed := fromEnv(t, "MAINZ_SEED", uint64(time.Now().UnixNano()))
	kills := int(fromEnv(t, "MAINZ_KILLS", 60))
	t.Logf("MAINZ_SEED=%d, %d kills", seed, kills)
	dir := ramdisk(t)
	s, err := Open(bg, dir, Options{Create: true,
		Config: Config{Size: 4 << 20, Slots: 8, MaxValue: 3000, SpanSize: 16 << 10, Databases: 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Database(bg, "pieces", Pieces, DatabaseOptions{Records: 10}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(dir), "pieces oracle")
	o, err := mapPiecesOracle(path)
	if err != nil {
		t.Fatal(err)
	}
	c := &piecesTorture{t: t, s: s, o: o, dir: dir, oracle: path, seed: seed}
	rnd := rand.New(rand.NewPCG(seed, 1))
	for w := range c.procs {
		c.start(w)
	}
	defer func() {
		for w, p := range c.procs {
			p.Process.Kill()
			p.Wait()
			if out := p.Stdout.(*bytes.Buffer); t.Failed() && out.Len() > 0 {
				t.Logf("worker %d: %s", w, out)
			}
		}
		if _, err := s.Recover(bg); err != nil {
			t.Error(err)
		}
		if rep := mustCheck(t, s); rep.Pieces+rep.Orphans+rep.Records != 0 {
			t.Errorf("all are dead: %+v", rep)
		}
	}()
	for k := 0; k < kills && !t.Failed(); k++ {
		w := rnd.IntN(workers)
		c.kill(w, 20+rnd.Uint64N(2000))
		if rnd.IntN(2) == 0 {
			v := (w + 1 + rnd.IntN(workers-1)) % workers
			spin(time.Duration(rnd.IntN(400)) * time.Microsecond)
			c.kill(v, 0)
			c.reap(v)
			k++
		}
		c.reap(w)
		if k%20 < 2 || k >= kills-1 {
			c.audit()
		}
	}
	ops := uint64(0)
	for i := range o.ops {
		ops += o.ops[i].n.Load()
	}
	t.Logf("%d operations, %d late waits, %d audits, %d exclusive appends that waited", ops, o.late.Load(), c.audits,
		o.exclusive.Load())
	if o.late.Load() != 0 {
		t.Errorf("%d waits ended by their time slice though a wake-up was due", o.late.Load())
	}
}

func (c *piecesTorture) start(w int) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestTorturePiecesWorker$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), "TORTURE_DIR="+c.dir, "TORTURE_PIECES="+c.oracle,
		"TORTURE_WORKER="+strconv.Itoa(w), fmt.Sprintf("TORTURE_SEED=%d", c.seed+uint64(c.starts)*977))
	c.starts++
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// Before it starts: the pieces of the last one are the dead's.
	c.o.life[w].Add(1)
	for k := range c.o.has {
		for g := range c.o.has[k][w] {
			c.o.has[k][w][g].Store(0)
		}
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.procs[w] = cmd
}

func (c *piecesTorture) kill(w int, ops uint64) {
	goal := c.o.ops[w].n.Load() + ops
	for limit := time.Now().Add(time.Minute); c.o.ops[w].n.Load() < goal; {
		if c.o.failed.Load() != 0 || time.Now().After(limit) {
			c.t.Errorf("worker %d stands still or failed", w)
			break
		}
		spin(10 * time.Microsecond)
	}
	c.procs[w].Process.Kill()
}

func (c *piecesTorture) reap(w int) {
	p := c.procs[w]
	err := p.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL || c.o.failed.Load() != 0 {
		c.t.Errorf("worker %d: %v\n%s", w, err, p.Stdout.(*bytes.Buffer).Bytes())
	}
	for i := range c.o.paused[w] {
		c.o.paused[w][i].Store(0)
	}
	c.start(w)
}

// audit stops the living and compares.
func (c *piecesTorture) audit() {
	t, o := c.t, c.o
	if t.Failed() {
		return
	}
	c.audits++
	o.pause.Store(1)
	defer o.pause.Store(0)
	limit := time.Now().Add(time.Minute)
	for w := range o.paused {
		for g := range o.paused[w] {
			for o.paused[w][g].Load() == 0 {
				if time.Now().After(limit) {
					t.Errorf("worker %d.%d does not come to rest", w, g)
					return
				}
				time.Sleep(100 * time.Microsecond) // a bounded poll of another process
			}
		}
	}
	if _, err := c.s.Recover(bg); err != nil {
		t.Error(err)
	}
	rep := mustCheck(t, c.s)
	db := piecesDB(t, c.s, "pieces")
	total := 0
	for k := range pieceKeys {
		v, err := db.Fetch(bg, pieceKey(k))
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		var want [][]byte
		for w := range workers {
			for g := range goroutines {
				if n := o.has[k][w][g].Load(); n != 0 {
					want = append(want, tortured(k, w, g, o.life[w].Load(), n))
				}
			}
		}
		total += len(want)
		if len(v) != len(want)*ShareModesEntry {
			t.Errorf("record %d has %d pieces, want %d: %x", k, len(v)/ShareModesEntry, len(want), v)
		}
		for _, p := range want {
			if !bytes.Contains(v, p) {
				t.Errorf("record %d has lost %x: %x", k, p, v)
			}
		}
	}
	if rep.Pieces != total || rep.Orphans != 0 {
		t.Errorf("%d pieces are noted: %+v", total, rep)
	}
}

func TestTorturePiecesWorker(t *testing.T) {
	path := os.Getenv("TORTURE_PIECES")
	if path == "" {
		return // started by TestTorturePieces only
	}
	w, _ := strconv.Atoi(os.Getenv("TORTURE_WORKER"))
	seed, _ := strconv.ParseUint(os.Getenv("TORTURE_SEED"), 10, 64)
	o, err := mapPiecesOracle(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(bg, os.Getenv("TORTURE_DIR"), Options{Name: fmt.Sprint("worker ", w)})
	if err != nil {
		o.failed.Store(1)
		t.Fatal(err)
	}
	db, err := s.Database(bg, "pieces", Pieces, DatabaseOptions{MustExist: true})
	if err != nil {
		o.failed.Store(1)
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			p := &piecesWorker{o: o, s: s, db: db, w: w, g: g, life: o.life[w].Load(),
				rnd: rand.New(rand.NewPCG(seed, uint64(g)))}
			if err := p.run(); err != nil {
				fmt.Fprintf(os.Stderr, "worker %d.%d: %v\n", w, g, err)
				o.failed.Store(1)
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

type piecesWorker struct {
	o      *piecesOracle
	s      *Store
	db     *DB
	w, g   int
	life   uint64
	rnd    *rand.Rand
	n      uint64
	pieces [pieceKeys]Piece
	late   uint64
}

func (p *piecesWorker) run() error {
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
		if err := p.step(h, p.rnd.IntN(pieceKeys)); err != nil && !errors.Is(err, ErrNoSpace) {
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

func (p *piecesWorker) step(h *Handle, k int) error {
	has := &p.o.has[k][p.w][p.g]
	if !p.pieces[k].IsZero() {
		piece := tortured(k, p.w, p.g, p.life, has.Load())
		v, err := p.db.Fetch(bg, pieceKey(k))
		if err != nil || !bytes.Contains(v, piece) || k < exclusiveKeys && len(v) != len(piece) {
			return fmt.Errorf("record %d, %v: %x is to be in %x", k, err, piece, v)
		}
		has.Store(0)
		if err := h.RemoveAndTrigger(bg, pieceKey(k), p.pieces[k]); err != nil {
			return err
		}
		p.pieces[k] = Piece{}
		return nil
	}
	p.n++
	piece := tortured(k, p.w, p.g, p.life, p.n)
	// Who has an exclusive piece and waits for another would wait for ever, if
	// others do the same the other way round; and the audit waits for nobody.
	ctx, stop := context.WithTimeout(bg, time.Duration(p.rnd.IntN(2000))*time.Microsecond)
	defer stop()
	var got Piece
	var err error
	if p.rnd.IntN(2) == 0 {
		got, err = h.ConditionalAppend(bg, ShareModes, pieceKey(k), piece)
	} else {
		got, err = h.ConditionalAppendWait(ctx, ShareModes, pieceKey(k), piece)
		if k < exclusiveKeys {
			p.o.exclusive.Add(1)
		}
	}
	switch {
	case errors.Is(err, ErrCondition) || errors.Is(err, context.DeadlineExceeded):
		if k >= exclusiveKeys && errors.Is(err, ErrCondition) {
			return fmt.Errorf("record %d lets everybody in: %w", k, err)
		}
		return nil
	case err != nil:
		return err
	}
	p.pieces[k] = got
	has.Store(p.n)
	return nil
}
