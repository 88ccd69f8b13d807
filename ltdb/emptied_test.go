package ltdb

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/mainzdb/mainz/shm"
)

// A full store can be emptied: what frees, shrinks or keeps its size never
// answers that the store is full.

// fullStore is a store with files of mode kv that have share modes, as many as
// fit, and small records for the rest.
func fullStore(t *testing.T, cfg Config, opens int) (*DB, int) {
	t.Helper()
	s := heap(t, cfg)
	db := database(t, s, "files", 1000)
	files := 0
	for full := false; !full; files++ {
		for o := range opens {
			if err := db.append(ShareModes, numbered(files), opener(o)); err != nil {
				isFull(t, err)
				full = true
				break
			}
		}
	}
	files-- // the last one is not whole
	for _, n := range []int{2000, 600, 60, 1} {
		fillStore(t, db, 1_000_000*n, n)
	}
	return db, files
}

func opener(o int) []byte {
	return AppendShareMode(nil, ShareRead, shareAll, [16]byte{byte(o), 1})
}

func (db *DB) append(c ConditionID, key, piece []byte) error {
	_, err := db.ConditionalAppend(bg, c, key, piece)
	return err
}

// emptiedConfigs are from the smallest store on.
func emptiedConfigs(t *testing.T) []Config {
	least := Config{Slots: 4, MaxValue: 3000, Size: 64 << 10}
	for {
		if _, err := segmentConfig(least); err == nil {
			break
		}
		least.Size += 64 << 10
	}
	t.Logf("the smallest store: %d KiB", least.Size>>10)
	return []Config{least, {Slots: 4, MaxValue: 3000, Size: 4 << 20}, {Slots: 8, MaxValue: 60_000, Size: 8 << 20},
		{Slots: 8, MaxValue: 1 << 20, Size: 32 << 20}}
}

func TestFullShrinks(t *testing.T) {
	for _, cfg := range emptiedConfigs(t) {
		t.Run(fmt.Sprintf("%dKiB", cfg.Size>>10), func(t *testing.T) {
			opens := 10
			if cfg.Size < 1<<20 {
				opens = 2 // the smallest has one span left for records: those of the smallest class
			}
			db, files := fullStore(t, cfg, opens)
			if files < 5 {
				t.Fatal(files)
			}
			for i := range min(files, 200) {
				key := numbered(i)
				v, err := db.Fetch(bg, key)
				if err != nil || len(v) != opens*ShareModesEntry {
					t.Fatal(len(v), err)
				}
				// As long as before, and with another value.
				copy(v, opener(100))
				if err := db.Store(bg, key, v); err != nil {
					t.Fatalf("an overwrite of the same size: %v", err)
				}
				if err := db.RemoveMatching(bg, ShareModes, key, opener(1)); err != nil {
					t.Fatalf("RemoveMatching: %v", err)
				}
				r, err := db.FetchLocked(bg, key)
				if err != nil {
					t.Fatal(err)
				}
				want := r.Data()
				if opens > 3 {
					want = want[ShareModesEntry:]
				}
				if err := r.Store(want); err != nil {
					t.Fatalf("Store of one entry less: %v", err)
				}
				if want = r.Data(); opens > 3 {
					want = want[ShareModesEntry:]
				}
				if err := r.StoreUnlock(want); err != nil {
					t.Fatalf("StoreUnlock of one entry less: %v", err)
				}
				if v, err := db.Fetch(bg, key); err != nil || len(v) < ShareModesEntry ||
					len(v) != max(1, opens-3)*ShareModesEntry {
					t.Fatal(len(v), err)
				}
				mustCheckSome(t, db.s, i)
			}
			if err := db.clear(bg); err != nil {
				t.Fatalf("clear: %v", err)
			}
			if r := mustCheck(t, db.s); used(r) != 0 {
				t.Fatalf("all was removed: %+v", r)
			}
		})
	}
}

func mustCheckSome(t *testing.T, s *Store, i int) {
	t.Helper()
	if i%50 == 0 {
		mustCheck(t, s)
	}
}

// used is how many blocks records and pieces have.
func used(r *Report) int {
	return r.Blocks - r.Free - r.AtHand - r.Chains - r.Histograms - r.Pages - r.Spare
}

// An attended record that is deleted stays as an empty one, which takes a block.
func TestFullAttended(t *testing.T) {
	db, files := fullStore(t, Config{Slots: 4, MaxValue: 3000, Size: 4 << 20}, 10)
	d, err := db.s.JoinKeeper(bg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := range min(files, 30) {
		d.Attend(db.id, numbered(i), true)
		if err := db.Delete(bg, numbered(i)); err != nil {
			t.Fatalf("delete of an attended record: %v", err)
		}
	}
	// And the dispatcher's own changes.
	for i := 30; i < min(files, 60); i++ {
		var h Held
		if d.TryLock(db.id, numbered(i), false) != LockTaken || !d.Look(db.id, numbered(i), &h) {
			t.Fatal("not locked")
		}
		h.Data = h.Data[ShareModesEntry:]
		if d.Publish(db.id, numbered(i), &h, false) != LockTaken {
			t.Fatal("the dispatcher finds no room for a shorter value")
		}
		d.Unlock(db.id, numbered(i))
	}
	for i := range min(files, 30) {
		d.Attend(db.id, numbered(i), false)
	}
	if err := d.Err(); err != nil {
		t.Fatal(err)
	}
}

// The pieces of the dead are removed from a full store, and one of them that
// can't be yet does not keep the others.
func TestFullOrphans(t *testing.T) {
	// What is left of a record needs a block of a class that nothing else frees.
	own, his := filled(1, 500), filled(2, 120)
	for _, locked := range []bool{false, true} {
		s := heap(t, Config{Slots: 4, MaxValue: 3000, Size: 4 << 20})
		db := piecesDB(t, s, "files")
		dead, err := s.Join(bg, "dead")
		if err != nil {
			t.Fatal(err)
		}
		ddb := piecesDB(t, dead, "files")
		files := 0
		for ; ; files++ {
			if err := db.append(Always, numbered(files), own); err != nil {
				isFull(t, err)
				break
			}
			if err := ddb.append(Always, numbered(files), his); err != nil {
				isFull(t, err)
				files++
				break
			}
		}
		kv := database(t, s, "rest", 100)
		for _, n := range []int{2000, 600, 60, 1} {
			fillStore(t, kv, n*1000, n)
		}
		var r Record
		if locked {
			if r, err = db.FetchLocked(bg, numbered(0)); err != nil {
				t.Fatal(err)
			}
		}
		dead.c.SimulateDeath()
		if _, err := s.Recover(bg); err != nil {
			t.Fatalf("recovery in a full store: %v", err)
		}
		left := mustCheck(t, s).Orphans
		if want := 0; left != want && !locked || locked && left != 1 {
			t.Fatalf("%d pieces of the dead are left, of %d files", left, files)
		}
		if locked {
			if err := r.Unlock(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Recover(bg); err != nil {
				t.Fatal(err)
			}
			if left := mustCheck(t, s).Orphans; left != 0 {
				t.Fatalf("%d pieces of the dead are left", left)
			}
		}
		for i := range files {
			if v, err := db.Fetch(bg, numbered(i)); err == nil && !bytes.Equal(v, own) {
				t.Fatalf("file %d: %x", i, v)
			}
		}
	}
}

// A record that arrives finds room in a full store of any size.
func TestFullArrives(t *testing.T) {
	for _, cfg := range emptiedConfigs(t) {
		s := heap(t, cfg)
		if s.reserve < 1 {
			t.Errorf("%d KiB: %d spans, and no reserve", cfg.Size>>10, len(s.spans))
		}
	}
	db, _ := fullStore(t, Config{Slots: 4, MaxValue: 3000, Size: 4 << 20}, 10)
	d, err := db.s.JoinKeeper(bg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	key := []byte("arriving")
	if d.Room() == 0 || d.TryLock(db.id, key, true) != LockTaken {
		t.Fatal("no room for a record that arrives")
	}
	if d.Publish(db.id, key, &Held{RSN: 1, Data: []byte("value")}, true) != LockTaken {
		t.Fatal("no room for the value of a record that arrives")
	}
	d.Remove(db.id, key)
}

// emptier drives one store: it fills it with all operations in both modes, by
// clients that come, leave and die, and empties it again. What it believes the
// records to be stands beside it.
type emptier struct {
	t     *testing.T
	rnd   *rand.Rand
	first *Store
	cfg   Config
	who   [3]*emptierClient
	kv    map[string][]byte
	keys  []string       // of kv
	pcs   map[string]int // how many pieces a record of mode pieces has
	died  []string       // of kv, whose holder has died: an empty one stays until somebody is told
	fulls int
	dead  int
}

type emptierClient struct {
	s      *Store
	kv     *DB
	pdb    *DB
	pieces map[string][]Piece
	keys   []string
}

func (m *emptier) join(i int) {
	s, err := m.first.Join(bg, fmt.Sprint("client ", i))
	if err != nil {
		m.t.Fatalf("join: %v", err)
	}
	c := &emptierClient{s: s, pieces: map[string][]Piece{}}
	if c.kv, err = s.Database(bg, "kv", KV, DatabaseOptions{Records: 500}); err == nil {
		c.pdb, err = s.Database(bg, "pieces", Pieces, DatabaseOptions{Records: 500})
	}
	if err != nil {
		m.t.Fatalf("join: %v", err)
	}
	m.who[i] = c
}

// may lets an error pass that a growing operation may have.
func (m *emptier) may(err error) bool {
	if err == nil {
		return true
	}
	if errors.Is(err, ErrTooBig) {
		return false
	}
	isFull(m.t, err)
	m.fulls++
	return false
}

// never lets none pass.
func (m *emptier) never(what string, err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
}

func (m *emptier) value() []byte {
	n := 1 + m.rnd.IntN(200)
	switch m.rnd.IntN(10) {
	case 0:
		n = 1 + m.rnd.IntN(m.first.maxValue)
	case 1, 2:
		n = 1 + m.rnd.IntN(min(m.first.maxValue, 3000))
	}
	v := make([]byte, n)
	for i := range v {
		v[i] = byte(m.rnd.Uint32())
	}
	return v
}

// some returns a key of the map, "" if it is empty. keys has all of them, and
// maybe some that it has no more: to range over the map would not repeat a run.
func some[V any](m *emptier, of map[string]V, keys *[]string) string {
	for len(*keys) > 0 {
		i, last := m.rnd.IntN(len(*keys)), len(*keys)-1
		if key := (*keys)[i]; len(of) > 0 {
			if _, there := of[key]; there {
				return key
			}
		}
		(*keys)[i] = (*keys)[last]
		*keys = (*keys)[:last]
	}
	return ""
}

// grow is an operation that may find no room.
func (m *emptier) grow(n int) {
	c := m.who[m.rnd.IntN(len(m.who))]
	key := fmt.Sprint("key ", m.rnd.IntN(n))
	switch m.rnd.IntN(5) {
	case 0, 1:
		v := m.value()
		if m.may(c.kv.Store(bg, []byte(key), v)) {
			m.kv[key], m.keys = v, append(m.keys, key)
		}
	case 2:
		v := m.value()
		if m.may(c.kv.Append(bg, []byte(key), v)) {
			m.kv[key], m.keys = append(m.kv[key][:len(m.kv[key]):len(m.kv[key])], v...), append(m.keys, key)
		}
	case 3:
		v := opener(m.rnd.IntN(1000))
		_, err := c.kv.ConditionalAppend(bg, Always, []byte(key), v)
		if m.may(err) {
			m.kv[key], m.keys = append(m.kv[key][:len(m.kv[key]):len(m.kv[key])], v...), append(m.keys, key)
		}
	case 4:
		p, err := c.pdb.ConditionalAppend(bg, Always, []byte(key), m.value()[:1])
		if m.may(err) {
			c.pieces[key], c.keys = append(c.pieces[key], p), append(c.keys, key)
			m.pcs[key]++
		}
	}
}

// shrink is one that must not.
func (m *emptier) shrink() {
	c := m.who[m.rnd.IntN(len(m.who))]
	if m.rnd.IntN(4) == 0 {
		if key := some(m, c.pieces, &c.keys); key != "" {
			i := m.rnd.IntN(len(c.pieces[key]))
			m.never("RemoveAndTrigger", c.pdb.RemoveAndTrigger(bg, []byte(key), c.pieces[key][i]))
			m.gone(c, key, i)
		}
		return
	}
	key := some(m, m.kv, &m.keys)
	if key == "" {
		return
	}
	k, old := []byte(key), m.kv[key]
	what := m.rnd.IntN(70)
	less := slices.Clone(old[:m.rnd.IntN(len(old))+1])
	for i := range less {
		less[i] ^= byte(i)
	}
	switch what % 7 {
	case 0:
		m.never("Store of no more", c.kv.Store(bg, k, less))
	case 1:
		less = old[:len(old):len(old)]
		m.never("Store of as much", c.kv.Store(bg, k, less))
	case 2:
		r, err := c.kv.FetchLocked(bg, k)
		m.never("FetchLocked", err)
		m.never("Record.Store of no more", r.Store(less))
		if !bytes.Equal(r.Data(), less) || r.Header().RSN == 0 {
			m.t.Fatal("Data is not what was stored")
		}
		less = less[:len(less)/2+1]
		m.never("StoreUnlock of no more", r.StoreUnlock(less))
	case 3:
		r, err := c.kv.FetchLocked(bg, k)
		m.never("FetchLocked", err)
		m.never("Record.Store of no more", r.Store(less))
		m.never("Unlock", r.Unlock())
	case 4:
		i := m.rnd.IntN(len(old))
		j := i + 1 + m.rnd.IntN(len(old)-i)
		at := bytes.Index(old, old[i:j])
		m.never("RemoveMatching", c.kv.RemoveMatching(bg, Always, k, old[i:j]))
		less = append(slices.Clone(old[:at]), old[at+j-i:]...)
	case 5:
		m.never("Delete", c.kv.Delete(bg, k))
		less = nil
	case 6:
		if what > 6 {
			return
		}
		// The client dies with the lock and a shorter value.
		r, err := c.kv.FetchLocked(bg, k)
		m.never("FetchLocked", err)
		m.never("Record.Store of no more", r.Store(less))
		m.kv[key], m.died = less, append(m.died, key)
		m.die(slices.Index(m.who[:], c))
		return
	}
	if m.kv[key] = less; len(less) == 0 {
		delete(m.kv, key)
	}
}

func (m *emptier) gone(c *emptierClient, key string, i int) {
	if c.pieces[key] = slices.Delete(c.pieces[key], i, i+1); len(c.pieces[key]) == 0 {
		delete(c.pieces, key)
	}
	if m.pcs[key]--; m.pcs[key] == 0 {
		delete(m.pcs, key)
	}
}

// die ends a client, and another one comes.
func (m *emptier) die(i int) {
	c := m.who[i]
	if m.rnd.IntN(3) == 0 {
		m.never("Close", c.s.Close())
	} else {
		c.s.c.SimulateDeath()
		m.dead++
	}
	for key := range c.pieces {
		for len(c.pieces[key]) > 0 {
			m.gone(c, key, 0)
		}
	}
	_, err := m.first.Recover(bg)
	m.never("recovery of a dead client", err)
	m.join(i)
}

func notFound(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func (m *emptier) compare(when string) {
	m.t.Helper()
	r := mustCheck(m.t, m.first)
	if r.Orphans != 0 || r.Records != len(m.kv)+len(m.pcs) || m.t.Failed() {
		m.t.Fatalf("%s: %d records and %d of pieces in the model: %+v", when, len(m.kv), len(m.pcs), r)
	}
	c := m.who[0]
	n := 0
	for e, err := range c.kv.Traverse(bg) {
		if err != nil || !bytes.Equal(e.Data, m.kv[string(e.Key)]) {
			m.t.Fatalf("%s: %q has %d bytes, the model %d: %v", when, e.Key, len(e.Data), len(m.kv[string(e.Key)]), err)
		}
		n++
	}
	if n != len(m.kv) {
		m.t.Fatalf("%s: %d records, %d in the model", when, n, len(m.kv))
	}
	for key, n := range m.pcs {
		if v, err := c.pdb.Fetch(bg, []byte(key)); err != nil || len(v) != n {
			m.t.Fatalf("%s: %q has %d pieces, the model %d: %v", when, key, len(v), n, err)
		}
	}
}

// TestTortureEmptied fills stores of all sizes and empties them again, some in
// the short form, hundreds of up to 64 MiB with MAINZ_KILLS of 1,000 and more.
func TestTortureEmptied(t *testing.T) {
	seed := seedOf(t)
	rounds, most := 4, 6
	if n, err := strconv.Atoi(os.Getenv("MAINZ_KILLS")); err == nil {
		rounds, most = max(rounds, n/50), 64
	}
	for round := range rounds {
		m := &emptier{t: t, rnd: rand.New(rand.NewPCG(seed, uint64(round))), kv: map[string][]byte{},
			pcs: map[string]int{}}
		m.cfg = Config{Slots: 6, Size: uint64(4+m.rnd.IntN(most-3)) << 20,
			MaxValue: []int{300, 3000, 50_000}[m.rnd.IntN(3)], Databases: 4}
		if m.cfg.Size >= 16<<20 && m.rnd.IntN(2) == 0 {
			m.cfg.MaxValue = 1 << 20
		}
		m.run(round)
		if t.Failed() {
			return
		}
	}
}

func (m *emptier) run(round int) {
	s, err := OpenHeap(m.cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	defer s.Close()
	m.first = s
	for i := range m.who {
		m.join(i)
	}
	n := 1 << 20
	fill := func(fulls int) {
		for m.fulls = 0; m.fulls < fulls; {
			m.grow(n)
		}
	}
	for turn := range 3 {
		fill(20)
		for range 300 {
			m.shrink()
			if m.rnd.IntN(3) == 0 {
				m.grow(n)
			}
			if m.rnd.IntN(150) == 0 {
				m.die(m.rnd.IntN(len(m.who)))
			}
		}
		if turn == 0 {
			m.compare("full")
		}
	}
	m.t.Logf("round %d: %d KiB, values of %d, %d records, %d of pieces, %d deaths", round, m.cfg.Size>>10,
		m.cfg.MaxValue, len(m.kv), len(m.pcs), m.dead)
	for range len(m.kv) / 2 {
		key := some(m, m.kv, &m.keys)
		m.never("Delete", m.who[0].kv.Delete(bg, []byte(key)))
		delete(m.kv, key)
	}
	m.compare("half empty")
	m.never("clear", m.who[1].kv.clear(bg))
	for _, key := range m.died {
		m.never("Delete", notFound(m.who[1].kv.Delete(bg, []byte(key))))
	}
	clear(m.kv)
	for i, c := range m.who {
		if i == 0 {
			for key := range c.pieces {
				for len(c.pieces[key]) > 0 {
					m.never("RemoveAndTrigger", c.pdb.RemoveAndTrigger(bg, []byte(key), c.pieces[key][0]))
					m.gone(c, key, 0)
				}
			}
			continue
		}
		m.die(i)
	}
	m.compare("emptied")
	r := mustCheck(m.t, s)
	if used(r) != 0 || r.Empty != 0 {
		m.t.Fatalf("all was removed: %+v", r)
	}
}

// A word of a dead client's index that names no piece does not keep the rest.
func TestOrphansPastGarbage(t *testing.T) {
	s, err := OpenHeap(small())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	db := piecesDB(t, s, "files")
	dead, err := s.Join(bg, "dead")
	if err != nil {
		t.Fatal(err)
	}
	ddb := piecesDB(t, dead, "files")
	for i := range 20 {
		if err := ddb.append(Always, numbered(i), shared(1)); err != nil {
			t.Fatal(err)
		}
	}
	s.eachWord(dead.body.pieces.Load(), func(w *shm.Word64, v uint64) bool {
		w.Store(v &^ (1<<refBits - 1))
		return false
	})
	dead.c.SimulateDeath()
	if _, err := s.Recover(bg); !errors.Is(err, ErrCorrupt) {
		t.Errorf("garbage in an index: %v", err)
	}
	left := 0
	for range db.Traverse(bg) {
		left++
	}
	if left != 1 {
		t.Errorf("%d of 20 records are left, one of which nobody can know", left)
	}
}
