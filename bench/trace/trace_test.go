package trace

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests, 0 for a new one")

func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

var rw = MakeMode(Read|Write, DenyWrite)

// small is a trace with every kind of reference back: to a new and an old
// thread, process and file, and closes out of order.
var small = []Event{
	{TimeUS: 0, Kind: Open, Open: 0, Process: 0, Thread: 0, File: 0, Mode: MakeMode(Read, DenyNone)},
	{TimeUS: 5, Kind: Open, Open: 1, Process: 1, Thread: 1, File: 0, Mode: rw},
	{TimeUS: 300, Kind: Open, Open: 2, Process: 0, Thread: 2, File: 1, Mode: MakeMode(Write, DenyAll)},
	{TimeUS: 300, Kind: Close, Open: 1, Process: 1, Thread: 1, File: 0, Mode: rw},
	{TimeUS: 301, Kind: Open, Open: 3, Process: 0, Thread: 0, File: 1, Mode: rw},
	{TimeUS: 400, Kind: Close, Open: 0, Process: 0, Thread: 0, File: 0, Mode: MakeMode(Read, DenyNone)},
	{TimeUS: 400, Kind: Close, Open: 2, Process: 0, Thread: 2, File: 1, Mode: MakeMode(Write, DenyAll)},
	{TimeUS: 401, Kind: Close, Open: 3, Process: 0, Thread: 0, File: 1, Mode: rw},
}

// smallBody is the body of small, byte by byte.
var smallBody = []byte{
	0, 0, 0, 0, 1, // open: new thread, new process, new file, read
	20, 0, 0, 1, 2<<2 | 3, // open 5 µs later: new thread and process, file 1 back
	0x9c, 0x09, 0, 2, 0, 3<<2 | 2, // open 295 µs later: new thread, process 2 back, new file
	1, 2, // close 2 back
	4, 3, 1, 2<<2 | 3, // open 1 µs later: thread 3 back, file 1 back
	0x8d, 0x03, 4, // close 99 µs later, 4 back
	1, 2, // close 2 back
	5, 1, // close 1 µs later, 1 back
	2, 8, // end after 8 events
}

func encode(t testing.TB, events []Event) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if err := w.Write(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// pack makes a file around a body.
func pack(t testing.TB, body []byte) []byte {
	t.Helper()
	h := header()
	buf := bytes.NewBuffer(h[:])
	gz, err := gzip.NewWriterLevel(buf, gzip.NoCompression) // fast, for fuzzing
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gz.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// The format is pinned by bytes that were worked out by hand from doc.go.
func TestFormat(t *testing.T) {
	file := encode(t, small)
	want := []byte("mainztrc\x01\x00\x10\x00\x00\x00\x00\x00")
	if !bytes.Equal(file[:16], want) {
		t.Errorf("header is % x, want % x", file[:16], want)
	}
	gz, err := gzip.NewReader(bytes.NewReader(file[16:]))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(gz)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(body, smallBody) {
		t.Errorf("body is % x\n     want % x", body, smallBody)
	}
	tr, err := ReadAll(bytes.NewReader(pack(t, smallBody)))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(tr.Events, small) {
		t.Errorf("read %v\nwant %v", tr.Events, small)
	}
	if tr.Opens != 4 || tr.Files != 2 || tr.Processes != 2 || tr.Threads != 3 {
		t.Errorf("counts: %d opens, %d files, %d processes, %d threads", tr.Opens, tr.Files, tr.Processes, tr.Threads)
	}
}

// randomEvents returns a valid trace with n opens.
func randomEvents(rng *rand.Rand, n int) []Event {
	var events, open []Event
	var threads []uint32
	var processes, files uint32
	now := int64(0)
	for opens := 0; opens < n || len(open) > 0; {
		if len(events) > 0 && rng.IntN(3) > 0 {
			now += rng.Int64N(1 << rng.IntN(20))
		}
		if opens == n || len(open) > 0 && rng.IntN(2) == 0 {
			i := rng.IntN(len(open))
			e := open[i]
			open = slices.Delete(open, i, i+1)
			e.Kind, e.TimeUS = Close, now
			events = append(events, e)
			continue
		}
		e := Event{TimeUS: now, Kind: Open, Open: uint32(opens), Mode: validModes[rng.IntN(len(validModes))]}
		opens++
		e.Thread = uint32(rng.IntN(len(threads) + 1))
		if int(e.Thread) == len(threads) {
			p := uint32(rng.IntN(int(processes) + 1))
			processes = max(processes, p+1)
			threads = append(threads, p)
		}
		e.Process = threads[e.Thread]
		e.File = uint32(rng.IntN(int(files) + 1))
		files = max(files, e.File+1)
		events, open = append(events, e), append(open, e)
	}
	return events
}

func TestRoundTrip(t *testing.T) {
	rng := random(t)
	for _, n := range []int{0, 1, 2, 10, 1000, 20000} {
		want := randomEvents(rng, n)
		// One byte at a time, so that no part relies on how much a read gives.
		tr, err := ReadAll(iotest.OneByteReader(bytes.NewReader(encode(t, want))))
		if err != nil {
			t.Fatalf("%d opens: %v", n, err)
		}
		if !slices.Equal(tr.Events, want) {
			t.Fatalf("%d opens: other events come back", n)
		}
		if tr.Opens != n {
			t.Errorf("Opens = %d, want %d", tr.Opens, n)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	open := func(open, process, thread, file uint32) Event {
		return Event{TimeUS: 10, Kind: Open, Open: open, Process: process, Thread: thread, File: file, Mode: rw}
	}
	first := open(0, 0, 0, 0)
	first.TimeUS = 0
	for _, c := range []struct {
		name   string
		events []Event
		want   string
	}{
		{"late start", []Event{open(0, 0, 0, 0)}, "first event"},
		{"time back", []Event{first, open(1, 0, 0, 0), {TimeUS: 9, Kind: Close, Open: 0}}, "goes back"},
		{"time too far", []Event{first, {TimeUS: maxTimeUS + 1, Kind: Close, Open: 0}}, "limit"},
		{"kind", []Event{{Kind: end}}, "kind 2"},
		{"mode", []Event{{Kind: Open}}, "invalid mode"},
		{"open skipped", []Event{first, open(2, 0, 0, 0)}, "next is 1"},
		{"open twice", []Event{first, open(0, 0, 0, 0)}, "next is 1"},
		{"file skipped", []Event{first, open(1, 0, 0, 2)}, "file 2"},
		{"thread skipped", []Event{first, open(1, 0, 2, 0)}, "thread 2"},
		{"process skipped", []Event{first, open(1, 2, 1, 0)}, "process 2"},
		{"thread moves", []Event{first, open(1, 1, 1, 0), open(2, 0, 1, 0)}, "belongs to 1"},
		{"close of nothing", []Event{first, {TimeUS: 1, Kind: Close, Open: 1}}, "not happened"},
		{"double close", []Event{first, {TimeUS: 1, Kind: Close}, {TimeUS: 1, Kind: Close}}, "second close"},
		{"not closed", []Event{first}, "1 opens not closed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, err := NewWriter(io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			for i, e := range c.events {
				if err = w.Write(e); err != nil && i != len(c.events)-1 {
					t.Fatalf("event %d: %v", i, err)
				}
			}
			if err == nil {
				err = w.Finish()
			}
			if !errors.Is(err, ErrOrder) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want ErrOrder and %q", err, c.want)
			}
			if again := w.Finish(); again == nil {
				t.Error("Finish after an error is nil")
			}
		})
	}
}

func TestWriterAfterFinish(t *testing.T) {
	w, err := NewWriter(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(small[0]); !errors.Is(err, ErrOrder) {
		t.Errorf("Write after Finish: %v", err)
	}
}

type fullDisk struct{ left int }

var errFull = errors.New("disk is full")

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.left -= len(p); d.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriterPassesErrorsOn(t *testing.T) {
	if _, err := NewWriter(&fullDisk{}); !errors.Is(err, errFull) {
		t.Errorf("NewWriter: %v", err)
	}
	w, err := NewWriter(&fullDisk{left: headerSize})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(); !errors.Is(err, errFull) {
		t.Errorf("Finish: %v", err)
	}
}

func TestReaderRefuses(t *testing.T) {
	good := encode(t, small)
	edit := func(at int, b ...byte) []byte {
		f := slices.Clone(good)
		copy(f[at:], b)
		return f
	}
	body := func(b ...byte) []byte { return pack(t, b) }
	open := []byte{0, 0, 0, 0, 1}
	named := bytes.NewBuffer(good[:16:16])
	gz := gzip.NewWriter(named)
	gz.Name = "/home"
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		file []byte
		want []string
	}{
		{"empty", nil, []string{"file offset 0", "cut off", "unexpected EOF"}},
		{"short header", good[:11], []string{"file offset 11", "cut off"}},
		{"magic", edit(0, 'M'), []string{"file offset 0", `"Mainztrc"`}},
		{"version", edit(8, 2), []string{"file offset 8", "version is 2", "capture the trace again"}},
		{"header size", edit(10, 17), []string{"file offset 10", "17"}},
		{"reserved", edit(15, 1), []string{"file offset 12"}},
		{"no body", good[:16], []string{"file offset 16", "unexpected EOF"}},
		{"not gzip", edit(16, 0), []string{"file offset", "gzip"}},
		{"named gzip", named.Bytes(), []string{"file offset 16", "carries text"}},
		{"cut off", good[:len(good)-9], []string{"file offset", "unexpected EOF"}},
		{"sum", edit(len(good)-8, good[len(good)-8]^1), []string{"file offset", "checksum"}},
		{"more behind", append(slices.Clone(good), 0), []string{"file offset", "goes on after the trace"}},
		{"second member", append(slices.Clone(good), good[16:]...), []string{"goes on after the trace"}},
		{"no end", body(), []string{"file offset", "unexpected EOF"}},
		{"half an event", body(open[:4]...), []string{"event 0", "unexpected EOF"}},
		{"late start", body(4, 0, 0, 0, 1), []string{"body offset 0", "event 0", "first event"}},
		{"kind", body(3), []string{"body offset 0", "unknown kind 3"}},
		{"long number", body(0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80),
			[]string{"body offset 0", "64 bits"}},
		{"huge time", body(append(slices.Clone(open), 0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)...),
			[]string{"body offset 5", "event 1", "limit"}},
		{"thread", body(0, 1), []string{"body offset 0", "thread lies 1 back, there are 0"}},
		{"process", body(0, 0, 1), []string{"process lies 1 back, there are 0"}},
		{"file", body(0, 0, 0, 1), []string{"file lies 1 back, there are 0"}},
		{"mode", body(0, 0, 0, 0, 4), []string{"invalid mode 0x04"}},
		{"close of nothing", body(1, 1), []string{"open lies 1 back, there are 0"}},
		{"close of the next", body(append(slices.Clone(open), 1, 0)...), []string{"body offset 5", "not happened"}},
		{"double close", body(append(slices.Clone(open), 1, 1, 1, 1)...),
			[]string{"body offset 7", "event 2", "second close of open 0"}},
		{"not closed", body(append(slices.Clone(open), 2, 1)...), []string{"body offset 5", "1 opens not closed"}},
		{"wrong count", body(2, 1), []string{"body offset 0", "counts 1 events, the file has 0"}},
		{"time of the end", body(6, 0), []string{"the end has a time"}},
		{"body behind the end", body(2, 0, 0), []string{"body offset 0", "after the end"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr, err := ReadAll(bytes.NewReader(c.file))
			if !errors.Is(err, ErrFormat) || tr != nil {
				t.Fatalf("error %v, want ErrFormat", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

// Every file that is cut off, or has one bit turned, is refused or, where the
// bit means nothing (the time in the gzip header), gives the same trace.
func TestReaderDamage(t *testing.T) {
	good := encode(t, randomEvents(random(t), 40))
	want, err := ReadAll(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := ReadAll(bytes.NewReader(good[:n])); !errors.Is(err, ErrFormat) {
			t.Errorf("cut off at %d: %v", n, err)
		}
	}
	same := 0
	for bit := range 8 * len(good) {
		bad := slices.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		tr, err := ReadAll(bytes.NewReader(bad))
		switch {
		case errors.Is(err, ErrFormat):
		case err != nil:
			t.Errorf("bit %d: error %v is not ErrFormat", bit, err)
		case !slices.Equal(tr.Events, want.Events):
			t.Errorf("bit %d: other events and no error", bit)
		default:
			same++
		}
	}
	// MTIME, XFL and OS are six bytes, FLG has bits that readers ignore, and so
	// has the last byte of the deflate stream.
	if same > 6*8+8+7 {
		t.Errorf("%d bits do not matter", same)
	}
}

func TestReaderPassesErrorsOn(t *testing.T) {
	good := encode(t, small)
	broken := errors.New("cable is cut")
	for _, n := range []int{0, 20, len(good) - 1} {
		_, err := ReadAll(io.MultiReader(bytes.NewReader(good[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || errors.Is(err, ErrFormat) {
			t.Errorf("broken at %d: %v", n, err)
		}
	}
}

// A file of some hundred kB must not become gigabytes: the number of events is
// bounded whatever the body says.
func TestReaderBoundsEvents(t *testing.T) {
	body := binary.AppendUvarint(nil, 0)
	body = append(body, 0, 0, 0, 1)
	body = append(body, bytes.Repeat([]byte{0, 1, 1, 1}, MaxEvents)...)
	r, err := NewReader(bytes.NewReader(pack(t, body)))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; err == nil; n++ {
		_, err = r.Next()
	}
	if n-1 != MaxEvents || !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "more than") {
		t.Errorf("stopped after %d events with %v", n-1, err)
	}
	if _, again := r.Next(); again != err {
		t.Errorf("Next after an error: %v", again)
	}
}

func TestByProcessAndByThread(t *testing.T) {
	events := randomEvents(random(t), 2000)
	tr, err := ReadAll(bytes.NewReader(encode(t, events)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		actors [][]Event
		count  int
		of     func(Event) uint32
	}{
		{"ByProcess", tr.ByProcess(), tr.Processes, func(e Event) uint32 { return e.Process }},
		{"ByThread", tr.ByThread(), tr.Threads, func(e Event) uint32 { return e.Thread }},
	} {
		if len(c.actors) != c.count {
			t.Errorf("%s: %d actors, want %d", c.name, len(c.actors), c.count)
		}
		for i, got := range c.actors {
			var want []Event
			for _, e := range events {
				if c.of(e) == uint32(i) {
					want = append(want, e)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: actor %d has other events", c.name, i)
			}
			// What a replay relies on: nothing is closed that the same actor
			// has not opened.
			open := map[uint32]bool{}
			for _, e := range got {
				if e.Kind == Close && !open[e.Open] {
					t.Fatalf("%s: actor %d closes %d before it opens it", c.name, i, e.Open)
				}
				open[e.Open] = e.Kind == Open
			}
		}
	}
}

func TestStats(t *testing.T) {
	tr, err := ReadAll(bytes.NewReader(encode(t, []Event{
		{TimeUS: 0, Kind: Open, Open: 0, Process: 0, Thread: 0, File: 0, Mode: rw},
		{TimeUS: 1, Kind: Open, Open: 1, Process: 1, Thread: 1, File: 0, Mode: rw}, // conflict with 0
		{TimeUS: 2, Kind: Close, Open: 0},
		// with 1, same process; none if 1 was skipped
		{TimeUS: 3, Kind: Open, Open: 2, Process: 1, Thread: 2, File: 0, Mode: rw},
		{TimeUS: 4, Kind: Open, Open: 3, Process: 1, Thread: 2, File: 1, Mode: rw},
		// with 3, same thread
		{TimeUS: 5, Kind: Open, Open: 4, Process: 1, Thread: 2, File: 1, Mode: MakeMode(Read, DenyAll)},
		{TimeUS: 6, Kind: Close, Open: 1},
		{TimeUS: 7, Kind: Open, Open: 5, Process: 0, Thread: 0, File: 0, Mode: MakeMode(Read, DenyNone)},
		{TimeUS: 8, Kind: Close, Open: 2},
		{TimeUS: 8, Kind: Close, Open: 3},
		{TimeUS: 8, Kind: Close, Open: 4},
		{TimeUS: 9, Kind: Close, Open: 5},
	})))
	if err != nil {
		t.Fatal(err)
	}
	s := tr.Stats()
	got := [...]int{s.Events, s.Opens, s.Closes, s.Processes, s.Threads, s.Files, int(s.DurationUS), s.MaxOpen,
		s.Conflicts, s.SameProcess, s.SameThread, s.Refused}
	want := [...]int{12, 6, 6, 2, 3, 2, 9, 4, 3, 2, 1, 2}
	if got != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if want := []ModeCount{{rw, 4}, {MakeMode(Read, DenyNone), 1},
		{MakeMode(Read, DenyAll), 1}}; !slices.Equal(s.Modes, want) {
		t.Errorf("Modes = %v, want %v", s.Modes, want)
	}
	if want := []ClassCount{{rw, rw, 2}, {MakeMode(Read, DenyAll), rw, 1}}; !slices.Equal(s.Classes, want) {
		t.Errorf("Classes = %v, want %v", s.Classes, want)
	}
}

// checkRead holds what the reader accepts against the writer.
func checkRead(t *testing.T, file []byte) {
	tr, err := ReadAll(bytes.NewReader(file))
	if err != nil {
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "offset") {
			t.Fatalf("error %v is not ErrFormat or has no offset", err)
		}
		return
	}
	again, err := ReadAll(bytes.NewReader(encode(t, tr.Events)))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(again.Events, tr.Events) {
		t.Fatal("other events come back")
	}
}

func FuzzReader(f *testing.F) {
	f.Add(encode(f, nil))
	f.Add(encode(f, small))
	f.Fuzz(checkRead)
}

// FuzzBody spares the fuzzer the packing, whose sum it cannot guess.
func FuzzBody(f *testing.F) {
	f.Add([]byte{2, 0})
	f.Add(smallBody)
	f.Fuzz(func(t *testing.T, body []byte) { checkRead(t, pack(t, body)) })
}
