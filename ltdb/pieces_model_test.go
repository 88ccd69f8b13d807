package ltdb

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestPiecesModel does random operations on a database of pieces and on one of
// mode kv, from clients that come, leave and die, and on lists in this
// process beside them: the naive twin.
func TestPiecesModel(t *testing.T) {
	seed, ops := seedOf(t), 6000
	if testing.Short() {
		ops = 1500
	}
	for i, cfg := range []Config{small(), {Size: 1 << 20, Slots: 4, MaxValue: 3000, SpanSize: 4096},
		{Size: 24 << 20, Slots: 4, MaxValue: 100_000}} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			m := &piecesModel{t: t, rnd: rand.New(rand.NewPCG(seed, uint64(i))), first: heap(t, cfg),
				max: cfg.MaxValue, twin: map[string][]twinPiece{}, plain: map[string][]byte{}}
			for c := range m.clients {
				m.join(c)
			}
			for op := range ops {
				m.step()
				if t.Failed() {
					t.Fatalf("at operation %d", op)
				}
				if op%300 == 299 {
					m.compare()
				}
			}
			for c := range m.clients {
				m.leave(c, false)
			}
			m.compare()
			if rep := mustCheck(t, m.first); rep.Pieces != 0 || rep.Orphans != 0 || rep.Pages != 0 {
				t.Errorf("%+v", rep)
			}
			t.Logf("%d operations, %d appends, %d refused, %d without room, %d clients, %d deaths", ops, m.appends,
				m.refused, m.full, m.joined, m.deaths)
		})
	}
}

type twinPiece struct {
	client, n int // who, and which of its pieces
	p         Piece
	data      []byte
}

type piecesModel struct {
	t                                      *testing.T
	rnd                                    *rand.Rand
	first                                  *Store
	clients                                [3]*Store
	db, kv                                 [3]*DB
	handles                                [3]*Handle
	twin                                   map[string][]twinPiece
	plain                                  map[string][]byte
	n, max                                 int
	full, appends, refused, joined, deaths int
}

func (m *piecesModel) join(c int) {
	s, err := m.first.Join(bg, "client")
	if err != nil {
		m.t.Fatal(err)
	}
	m.clients[c], m.db[c], m.kv[c] = s, piecesDB(m.t, s, "pieces"), database(m.t, s, "kv", 10)
	if m.handles[c], err = m.db[c].Handle(); err != nil {
		m.t.Fatal(err)
	}
	m.joined++
}

// leave ends a client, and its pieces with it.
func (m *piecesModel) leave(c int, death bool) {
	if death {
		m.deaths++
		m.clients[c].c.SimulateDeath()
		if _, err := m.first.Recover(bg); err != nil {
			m.t.Error(err)
		}
	} else {
		wantErr(m.t, "close", m.handles[c].Close(), nil)
		wantErr(m.t, "close", m.clients[c].Close(), nil)
	}
	for k, ps := range m.twin {
		m.set(k, slices.DeleteFunc(slices.Clone(ps), func(p twinPiece) bool { return p.client == c }))
	}
}

func (m *piecesModel) set(key string, ps []twinPiece) {
	m.twin[key] = ps
	if len(ps) == 0 {
		delete(m.twin, key)
	}
}

func (m *piecesModel) value(key string) (v []byte) {
	for _, p := range m.twin[key] {
		v = append(v, p.data...)
	}
	return v
}

// holds is what the condition must answer, said plainly.
func (m *piecesModel) holds(cond ConditionID, there [][]byte, piece []byte) bool {
	switch cond {
	case IfAbsent:
		return len(there) == 0
	case ShareModes:
		for _, p := range there {
			if len(p) != ShareModesEntry || p[4] == 0 || piece[4] == 0 { // not shared at all
				return false
			}
		}
	}
	return true
}

func (m *piecesModel) step() {
	t, c := m.t, m.rnd.IntN(len(m.clients))
	db, h := m.db[c], m.handles[c]
	key := fmt.Sprint("key ", m.rnd.IntN(12))
	if m.rnd.IntN(3) == 0 {
		key = fmt.Sprintf("%0*d", 1+m.rnd.IntN(MaxKey), m.rnd.IntN(3))
	}
	modes := m.rnd.IntN(3) == 0 // a record of share modes
	if modes {
		key = fmt.Sprint("mode ", m.rnd.IntN(4))
	}
	ps := m.twin[key]
	byHandle := m.rnd.IntN(2) == 0
	switch n := m.rnd.IntN(100); {
	case n < 50:
		cond := Always
		piece := make([]byte, 1+m.rnd.IntN(60))
		if m.rnd.IntN(20) == 0 {
			piece = make([]byte, 1+m.rnd.IntN(m.max))
		}
		for i := range piece {
			piece[i] = byte(m.rnd.Uint32())
		}
		if modes {
			cond, piece = ShareModes, shared(byte(m.n))
			if m.rnd.IntN(2) == 0 {
				piece = exclusive(byte(m.n))
			}
		} else if m.rnd.IntN(4) == 0 {
			cond = IfAbsent
		}
		m.append(c, cond, key, piece, byHandle)
	case n < 85:
		if len(ps) == 0 {
			return
		}
		i := m.rnd.IntN(len(ps))
		p := ps[i]
		var err error
		if byHandle {
			err = h.RemoveAndTrigger(bg, []byte(key), p.p)
		} else {
			err = db.RemoveAndTrigger(bg, []byte(key), p.p)
		}
		if p.client != c {
			// Another client's Piece names nothing here.
			if err == nil || !errors.Is(err, ErrNotFound) {
				t.Errorf("removal of another's piece: %v", err)
			}
			return
		}
		if errors.Is(err, ErrFull) {
			m.full++
			return
		}
		wantErr(t, "remove", err, nil)
		m.set(key, slices.Delete(slices.Clone(ps), i, i+1))
	case n < 90:
		v, err := h.Fetch(bg, []byte(key))
		if want := m.value(key); !bytes.Equal(v, want) || (err == nil) != (len(want) > 0) {
			t.Errorf("fetch of %q: %d bytes, %v; want %d", key, len(v), err, len(want))
		}
	case n < 97:
		m.plainStep(c, key)
	default:
		death := m.rnd.IntN(2) == 0
		m.leave(c, death)
		m.join(c)
	}
}

func (m *piecesModel) append(c int, cond ConditionID, key string, piece []byte, byHandle bool) {
	t := m.t
	var there [][]byte
	for _, p := range m.twin[key] {
		there = append(there, p.data)
	}
	f := m.db[c].ConditionalAppend
	if byHandle {
		f = m.handles[c].ConditionalAppend
	}
	p, err := f(bg, cond, []byte(key), piece)
	switch {
	case !m.holds(cond, there, piece):
		m.refused++
		wantErr(t, "refused append", err, ErrCondition)
	case errors.Is(err, ErrFull):
		m.full++
	case len(m.value(key))+len(piece) > m.max:
		wantErr(t, "long append", err, ErrTooBig)
	case err != nil && !errors.Is(err, ErrTooBig):
		t.Error(err)
	case err != nil:
		// Tags of many pieces need more room than a block has.
		if n := len(m.value(key)) + len(piece) + (len(there)+1)*tagSize + len(key) + 64; uint64(n) < m.first.maxBlock {
			t.Errorf("append of %d bytes to %d pieces, %d bytes in all: %v", len(piece), len(there), n, err)
		}
	default:
		m.appends++
		m.n++
		m.twin[key] = append(m.twin[key], twinPiece{client: c, n: m.n, p: p, data: bytes.Clone(piece)})
	}
}

// plainStep is an append or a removal in the database of mode kv.
func (m *piecesModel) plainStep(c int, key string) {
	t, db, want := m.t, m.kv[c], m.plain[key]
	data := []byte{'x', byte('a' + m.rnd.IntN(3))}
	cond := []ConditionID{Always, IfAbsent}[m.rnd.IntN(2)]
	if m.rnd.IntN(3) > 0 {
		_, err := db.ConditionalAppend(bg, cond, []byte(key), data)
		switch {
		case cond == IfAbsent && len(want) > 0:
			wantErr(t, "append", err, ErrCondition)
		case errors.Is(err, ErrFull):
			m.full++
		case len(want)+2 > m.max:
			wantErr(t, "append", err, ErrTooBig)
		default:
			wantErr(t, "append", err, nil)
			m.plain[key] = append(want, data...)
		}
		return
	}
	err := db.RemoveMatching(bg, cond, []byte(key), data)
	at := bytes.Index(want, data)
	if cond == IfAbsent && !bytes.Equal(want, data) {
		at = -1
	}
	switch {
	case at < 0:
		wantErr(t, "remove", err, ErrNotFound)
	case errors.Is(err, ErrFull):
		m.full++
	default:
		wantErr(t, "remove", err, nil)
		m.plain[key] = slices.Delete(want, at, at+2)
	}
}

// compare looks at everything, and at the invariants.
func (m *piecesModel) compare() {
	m.t.Helper()
	rep := mustCheck(m.t, m.first)
	n := 0
	seen := 0
	for e, err := range piecesDB(m.t, m.first, "pieces").Traverse(bg) {
		if err != nil {
			m.t.Fatal(err)
		}
		seen++
		if !bytes.Equal(e.Data, m.value(string(e.Key))) {
			m.t.Errorf("record %q has %d bytes, want %d", e.Key, len(e.Data), len(m.value(string(e.Key))))
		}
	}
	for _, ps := range m.twin {
		n += len(ps)
	}
	if seen != len(m.twin) || rep.Pieces != n || rep.Orphans != 0 || rep.Empty != 0 {
		m.t.Errorf("%d records, %d pieces in the model: %d, %+v", len(m.twin), n, seen, rep)
	}
	for k, v := range m.plain {
		got, err := database(m.t, m.first, "kv", 10).Fetch(bg, []byte(k))
		if !bytes.Equal(got, v) || err == nil && len(v) == 0 {
			m.t.Errorf("%q in kv: %q, %v; want %q", k, got, err, v)
		}
	}
}
